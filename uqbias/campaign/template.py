"""A commented campaign file, written from the schema."""

from __future__ import annotations

import textwrap
from typing import Any

import yaml
from pydantic import BaseModel

from uqbias.campaign.schema import Campaign, Score, System

WIDTH = 110
HEADER = """\
# Campaign file of uqbias: an uncertainty-driven active-learning campaign.
# Paths are relative to this file. Units: nm, ps, kJ/mol, K; extended-XYZ files are in eV and Å.
# Every key but those of `system` may be left out; the values here are the defaults.
"""


def example_campaign() -> Campaign:
    """All defaults, with names of files that a user has to supply."""
    return Campaign(
        system=System(structure="structure.pdb", start="start.xyz"),
        score=Score(),
    )


def campaign_template(campaign: Campaign | None = None) -> str:
    """YAML text of a campaign, a comment above or beside each key, that `load_campaign` reads."""
    return HEADER + "\n" + "\n".join(_section(campaign or example_campaign(), 0)) + "\n"


def _section(section: BaseModel, depth: int) -> list[str]:
    lines: list[str] = []
    indent = "  " * depth
    extra = section.model_extra or {}
    for name in [*type(section).model_fields, *extra]:
        field = type(section).model_fields.get(name)
        value = getattr(section, name)
        description = (field.description if field is not None else None) or ""
        if depth == 0 and lines:
            lines.append("")
        if isinstance(value, BaseModel):
            lines += [*_comment(description, indent), f"{indent}{name}:", *_section(value, depth + 1)]
        elif isinstance(value, list) and value and all(isinstance(entry, BaseModel) for entry in value):
            lines += [*_comment(description, indent), f"{indent}{name}:"]
            for entry in value:
                inner = _section(entry, depth + 2)
                # The first key carries the dash; a comment of its own would come before it.
                first = next(index for index, line in enumerate(inner) if not line.lstrip().startswith("#"))
                inner[first] = f"{indent}  - {inner[first].lstrip()}"
                lines += inner
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
