"""From the options of ``uqbias md`` to the sections of a campaign file, whose checks and defaults hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from annotated_types import MaxLen

from uqbias.cli.printing import split_names
from uqbias.errors import UqbiasError, did_you_mean
from uqbias.options import Option, options_of
from uqbias.registry import BIASES, VARIABLES
from uqbias.variables.names import LOCAL, OF_MODEL, expanded, local_names

#: Width of hills on the driver, in nats for a density. On purpose wider than a campaign's, `Uncertainty.hill_width`:
#: a single run is to fill u fast, a campaign begins again and again at its lower end, where wide hills trap walkers.
DRIVER_WIDTH = 1.0
#: Options of a bias that have an option of the command line.
SHORT = ("height", "sigma", "biasfactor")


def choose_kinds(text: str) -> list[str]:
    """Kinds of ``--bias``; empty for none.

    Raises
    ------
    UqbiasError
        If a kind is not known or given twice.
    """
    kinds = split_names(text)
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
    variables: dict[str, dict[str, Any]] = {}
    for entry in entries:
        name, separator, text = (part.strip() for part in entry.partition("="))
        if not (name and separator and text):
            raise UqbiasError(f"--variable {entry}", "write --variable NAME=KIND:ATOMS, such as phi=dihedral:4,6,8,14")
        if name in variables:
            raise UqbiasError(f"--variable {entry}: '{name}' is defined twice", "choose another name")
        kind, _, atoms = text.partition(":")
        if kind not in VARIABLES.names():
            if not atoms.isidentifier():
                raise UqbiasError(f"--variable {entry}: unknown kind '{kind}'", did_you_mean(kind, VARIABLES.names()))
            variables[name] = {"kind": text}  # module:attribute
            continue
        variables[name] = {"kind": kind}
        if atoms in ("all", "heavy"):
            variables[name]["atoms"] = atoms
        elif atoms:
            variables[name]["atoms"] = [int(word) if word.isdecimal() else word for word in split_names(atoms)]
    return variables


def bias_sections(
    kinds: Sequence[str],
    names: Sequence[str] | None,
    variables: Mapping[str, Mapping[str, Any]],
    pace: int,
    short: Mapping[str, Any],
    driver_parts: int = 0,
) -> list[dict[str, Any]]:
    """Sections of the biases, with defaults that fit the variables.

    Parameters
    ----------
    names : names of the variables that they act on; None for ``local`` where that is a bias's default, else driver.
    variables : sections of those that are not the model's.
    short : values of the options in `SHORT`; None where not given.
    driver_parts : number of parts that the driver has.

    Raises
    ------
    UqbiasError
        If a name is not defined, or names or a short option are for none of the kinds.
    """
    parts = {kind: BIASES.part(kind) for kind in kinds}
    given = {option: value for option, value in short.items() if value is not None}
    asked = f"for --bias {','.join(kinds) or 'none'}"
    if names is not None and all(_of_energy(part) for part in parts.values()):
        cure = "it boosts the energy; leave --on out, or use --set gamd.variables=[NAME]" if kinds else "leave it out"
        raise UqbiasError(f"--on {','.join(names)} {asked}", cure)
    parts_of_driver = local_names(driver_parts)
    valid = [*OF_MODEL, *parts_of_driver, *variables]
    for name in names or ():
        if name not in valid and name != LOCAL:
            cure = f"{did_you_mean(name, valid)}; define one with --variable {name}=dihedral:i,j,k,l"
            raise UqbiasError(f"--on {name}: no such variable", cure)
    for option, value in given.items():
        if not any(_key(part, option) for part in parts.values()):
            raise UqbiasError(f"--{option} {value} {asked}", "leave it out, or use --set KIND.KEY=VALUE")
    # None is known for the width of hills on a plain function.
    classes = {name: VARIABLES.get(str(section["kind"])) for name, section in variables.items()}
    widths = {name: getattr(part, "hill_width", None) for name, part in classes.items()}
    widths |= dict.fromkeys(("driver", *parts_of_driver), DRIVER_WIDTH)
    sections = []
    for kind, part in parts.items():
        default = [LOCAL] if _variables(part).default == (LOCAL,) else ["driver"]
        chosen = expanded(default if names is None else names, driver_parts)
        each = [chosen] if _takes_several(part) else [[name] for name in chosen]
        for group in [["energy"]] if _of_energy(part) else each:
            section: dict[str, Any] = {"kind": kind, "variables": group}
            section |= {key: pace for key in ("pace", "hill_pace") if key in options_of(part, BIASES.given)}
            known = [width for name in group if (width := widths.get(name)) is not None]
            if len(known) == len(group):
                section |= part.options_for(known)
            sections.append(section | {key: one for option, one in given.items() if (key := _key(part, option))})
    return sections


def _of_energy(part: Any) -> bool:
    """Whether a bias acts on the energy unless it is told otherwise."""
    return bool(_variables(part).default == ("energy",))


def _takes_several(part: Any) -> bool:
    """Whether one bias acts on several variables together; else each variable gets a bias of its own."""
    longest = (mark.max_length for mark in _variables(part).marks() if isinstance(mark, MaxLen))
    return min(longest, default=2) > 1


def _variables(part: Any) -> Option:
    return options_of(part, BIASES.given)["variables"]


def _key(part: Any, option: str) -> str | None:
    """Key of a bias that a short option sets; None if it has none."""
    keys = [f"hill_{option}", *([] if part.follows and option == "sigma" else [option])]
    return next((key for key in keys if key in options_of(part, BIASES.given)), None)


def needs_width(section: Mapping[str, Any]) -> str | None:
    """Name of the width that a section must be given and was not, or None."""
    count = len(section.get("variables", ["driver"]))
    width = next(iter(BIASES.part(section["kind"]).options_for([1.0] * count)), None)
    return None if width in section else width


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
