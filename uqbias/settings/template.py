"""A commented campaign file, written from the schema."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from uqbias.errors import UqbiasError, did_you_mean
from uqbias.registry import (
    BIASES,
    EXECUTORS,
    FEATURES,
    ORACLES,
    POTENTIALS,
    SAMPLERS,
    SPACES,
    UNCERTAINTIES,
    VARIABLES,
    Registry,
)
from uqbias.settings.schema import Campaign, Score
from uqbias.settings.system_section import System

WIDTH = 110
#: Registries of the sections whose ``kind`` decides which keys they have.
OF_KINDS: dict[str, Registry] = {
    "bias": BIASES,
    "variables": VARIABLES,
    "driver": UNCERTAINTIES,
    "judge": UNCERTAINTIES,
    "features": FEATURES,
    "potential": POTENTIALS,
    "oracle": ORACLES,
    "sampler": SAMPLERS,
    "space": SPACES,
    "executors": EXECUTORS,
}
HEADER = """\
# Campaign file of uqbias: an uncertainty-driven active-learning campaign.
# Paths are relative to this file. Units: nm, ps, kJ/mol, K; data files are in eV and Å.
# Every key but those of `system` may be left out; the values here are the defaults.
"""


def example_campaign() -> Campaign:
    """All defaults, with names of files that a user has to supply."""
    return Campaign(
        system=System(structure="structure.pdb", start="start.xyz"),
        score=Score(),
    )


def campaign_template(campaign: Campaign | None = None, comments: Sequence[str] = ()) -> str:
    """YAML text of a campaign that `load_campaign` reads: ``comments``, then all keys, each with its own."""
    header = "".join(f"{line}\n" for text in comments for line in _comment(text, ""))
    return HEADER + header + "\n" + "\n".join(_section(campaign or example_campaign(), 0)) + "\n"


def kinds_template(section: str) -> str:
    """YAML text: a list of all kinds of a section of the campaign file, with their keys as in `campaign_template`.

    Raises
    ------
    UqbiasError
        If the section is not one of `OF_KINDS`.
    """
    if section not in OF_KINDS:
        raise UqbiasError(f"no section '{section}' with kinds", did_you_mean(section, OF_KINDS))
    lines: list[str] = [f"# Kinds of `{section}`: their keys, defaults and units."]
    registry = OF_KINDS[section]
    for kind in dict.fromkeys([*registry.builtin, *registry.names()]):
        cls = registry.section(kind)
        try:
            blank = cls(kind=kind)
        except ValidationError:  # something must be given
            blank = cls.model_construct()
        lines += ["", *_entry(blank, "")]
    return "\n".join(lines) + "\n"


def _entry(section: BaseModel, indent: str) -> list[str]:
    """A section as an entry of a list."""
    inner = _section(section, len(indent) // 2 + 1)
    # The first key carries the dash; a comment of its own would come before it.
    first = next(index for index, line in enumerate(inner) if not line.lstrip().startswith("#"))
    inner[first] = f"{indent}- {inner[first].lstrip()}"
    return inner


def _section(section: BaseModel, depth: int, title: str = "") -> list[str]:
    lines: list[str] = []
    indent = "  " * depth
    extra = section.model_extra or {}
    for name in [*type(section).model_fields, *extra]:
        field = type(section).model_fields.get(name)
        description = (field.description if field is not None else None) or ""
        if not hasattr(section, name):  # of a kind, without a default
            lines.append(f"{indent}{name}:  # required: {description}")
            continue
        value = getattr(section, name)
        if name == "kind" and value == title:  # said by the key of the section
            continue
        if depth == 0 and lines:
            lines.append("")
        if isinstance(value, BaseModel):
            lines += [*_comment(description, indent), f"{indent}{name}:", *_section(value, depth + 1, name)]
        elif isinstance(value, list) and value and all(isinstance(entry, BaseModel) for entry in value):
            lines += [*_comment(description, indent), f"{indent}{name}:"]
            for entry in value:
                lines += _entry(entry, indent + "  ")
        elif isinstance(value, dict) and value and all(isinstance(entry, BaseModel) for entry in value.values()):
            lines += [*_comment(description, indent), f"{indent}{name}:"]
            for key, entry in value.items():
                lines += [f"{indent}  {key}:", *_section(entry, depth + 2)]
        else:
            plain = f"{indent}{name}: {_plain(value)}"
            beside = f"{plain}  # {description}"
            lines += [beside] if description and len(beside) <= WIDTH else [*_comment(description, indent), plain]
    return lines


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ") if text else []


def _plain(value: Any) -> str:
    """One value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")
