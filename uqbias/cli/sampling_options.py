"""From the options of ``uqbias md`` to the sections of a campaign file, whose checks and defaults hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from uqbias.errors import UqbiasError, did_you_mean

#: Hills on a variable of a kind are this wide unless the user says otherwise; u is in nats for a density.
WIDTHS = {
    "driver": 1.0,
    "distance": 0.02,
    "angle": 0.1,
    "dihedral": 0.35,
    "rmsd": 0.02,
    "coordination": 0.2,
    "position": 0.02,
}
#: Kinds that take all variables in one bias; the other kinds take a bias for each.
TOGETHER = ("metadynamics", "opes")
OF_ENERGY = ("gamd",)
#: Which key of a kind each short option sets.
SHORT = {
    "height": {"metadynamics": "height", "wtm_eabf": "height"},
    "sigma": {"metadynamics": "sigma", "opes": "sigma", "wtm_eabf": "hill_sigma"},
    "biasfactor": {"metadynamics": "biasfactor", "opes": "biasfactor", "wtm_eabf": "biasfactor"},
}


def choose_kinds(text: str) -> list[str]:
    """Kinds of ``--bias``; empty for none.

    Raises
    ------
    UqbiasError
        If a kind is not known or given twice.
    """
    from uqbias.registry import BIASES

    kinds = [kind.strip() for kind in text.split(",")]
    if kinds == ["none"]:
        return []
    if "none" in kinds:
        raise UqbiasError(f"--bias {text}", "give none by itself")
    valid = BIASES.names()
    for kind in kinds:
        if kind not in valid and ":" not in kind:
            raise UqbiasError(f"unknown bias '{kind}'", did_you_mean(kind, [*valid, "none"]))
        if kinds.count(kind) > 1:
            raise UqbiasError(f"--bias {text}", f"name {kind} once")
    return kinds


def parse_variables(entries: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Sections of ``--variable NAME=KIND:ATOM,ATOM,...``.

    Raises
    ------
    UqbiasError
        If an entry is not written like that, or a name is given twice.
    """
    from uqbias.registry import VARIABLES

    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        name, separator, text = (part.strip() for part in entry.partition("="))
        if not (name and separator and text):
            raise UqbiasError(f"--variable {entry}", "write --variable NAME=KIND:ATOMS, such as phi=dihedral:4,6,8,14")
        if name in found:
            raise UqbiasError(f"--variable {entry}: '{name}' is defined twice", "choose another name")
        kind, _, atoms = text.partition(":")
        if kind not in VARIABLES.names():
            if not atoms.isidentifier():
                raise UqbiasError(f"--variable {entry}: unknown kind '{kind}'", did_you_mean(kind, VARIABLES.names()))
            found[name] = {"kind": text}  # module:attribute
            continue
        found[name] = {"kind": kind}
        if atoms in ("all", "heavy"):
            found[name]["atoms"] = atoms
        elif atoms:
            words = [word.strip() for word in atoms.split(",")]
            found[name]["atoms"] = [int(word) if word.isdecimal() else word for word in words]
    return found


def bias_sections(
    kinds: Sequence[str],
    names: Sequence[str] | None,
    variables: Mapping[str, Mapping[str, Any]],
    pace: int,
    short: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Sections of the biases, with defaults that fit the variables.

    Parameters
    ----------
    names : of the variables that they act on; None for the driver.
    variables : sections of those that are not the model's.
    short : values of the options in `SHORT`; None where not given.

    Raises
    ------
    UqbiasError
        If a name is not defined, or names or a short option are for none of the kinds.
    """
    if names is not None and set(kinds) <= set(OF_ENERGY):
        cure = "it boosts the energy; leave --on out, or use --set gamd.variables=[NAME]" if kinds else "leave it out"
        raise UqbiasError(f"--on {','.join(names)} for --bias {','.join(kinds) or 'none'}", cure)
    names = ["driver"] if names is None else names
    valid = ["driver", "judge", "energy", *variables]
    for name in names:
        if name not in valid:
            raise UqbiasError(
                f"--on {name}: no such variable",
                f"{did_you_mean(name, valid)}; define one with --variable {name}=dihedral:i,j,k,l",
            )
    for option, value in short.items():
        if value is not None and not set(kinds) & set(SHORT[option]):
            raise UqbiasError(
                f"--{option} {value} for --bias {','.join(kinds) or 'none'}",
                "leave it out, or use --set KIND.KEY=VALUE",
            )
    sections = []
    for kind in kinds:
        groups = (
            [["energy"]] if kind in OF_ENERGY else [list(names)] if kind in TOGETHER else [[name] for name in names]
        )
        for group in groups:
            widths = [WIDTHS.get(str(variables[name]["kind"]) if name in variables else name) for name in group]
            section = {"kind": kind, "variables": group, **_defaults(kind, widths, pace)}
            for option, keys in SHORT.items():
                if short.get(option) is not None and kind in keys:
                    section[keys[kind]] = short[option]
            sections.append(section)
    return sections


def _defaults(kind: str, widths: Sequence[float | None], pace: int) -> dict[str, Any]:
    """Options that depend on pace and variables; no width where nobody knows one."""
    known = [width for width in widths if width is not None]
    options: dict[str, Any] = {}
    if kind in ("metadynamics", "opes", "eabf", "wtm_eabf", "gamd", "linear"):
        options["pace"] = pace
    if kind == "wtm_eabf":
        options["hill_pace"] = pace
    if len(known) == len(widths) and kind in TOGETHER:
        options["sigma"] = known[0] if len(known) == 1 else known
    if known and kind in ("eabf", "wtm_eabf"):
        # The same motion of the extended variable in units of the width, whatever the variable.
        (width,) = known
        options |= {"sigma": 0.5 * width, "bin_width": 0.1 * width, "mass": 0.5 / width**2}
        if kind == "wtm_eabf":
            options["hill_sigma"] = width
    return options


def needs_width(section: Mapping[str, Any]) -> str | None:
    """Name of the width that a section must be given and was not, or None."""
    if section["kind"] in (*TOGETHER, "eabf", "wtm_eabf") and "sigma" not in section:
        return "sigma"
    return None


def apply_changes(
    changes: Sequence[str],
    kinds: Sequence[str],
    biases: list[dict[str, Any]],
    others: dict[str, dict[str, Any]],
    variables: dict[str, dict[str, Any]],
) -> None:
    """Put ``--set SECTION.KEY=VALUE`` into the sections: a kind of bias (``bias`` if there is but one), a variable, ...

    Raises
    ------
    UqbiasError
        If there is no such section.
    """
    from uqbias.cli.models import set_key

    wanted: dict[str, Any] = {}
    for entry in changes:
        set_key(wanted, entry)
    for name, keys in wanted.items():
        section = kinds[0] if name == "bias" and len(kinds) == 1 else name
        named = {**others, **variables}
        chosen = [bias for bias in biases if bias["kind"] == section] or [named[key] for key in named if key == section]
        if not chosen:
            valid = {*(bias["kind"] for bias in biases), *named}
            raise UqbiasError(f"--set {name}: no such section", did_you_mean(name, valid))
        for target in chosen:
            target.update(keys)
