"""Names of collective variables, and what the biases of a campaign file must agree on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from uqbias.errors import UqbiasError, did_you_mean
from uqbias.options import KindSection, of_kind
from uqbias.registry import BIASES, VARIABLES
from uqbias.variables.names import EXTENDED, LOCAL, OF_MODEL, is_of_model, is_taken


def check_name(name: str) -> str:
    """Refuse a variable's name that a file or a graph could not hold."""
    if is_taken(name):
        raise PydanticCustomError("taken", "'{name}' is taken; choose another name, such as phi", {"name": name})
    if not re.fullmatch(r"[A-Za-z]\w*", name):
        raise PydanticCustomError(
            "name", "'{name}' is not a name; take a letter, then letters, digits and underscores", {"name": name}
        )
    return name


Name = Annotated[str, AfterValidator(check_name)]
Variables = dict[Name, Annotated[KindSection, of_kind(VARIABLES)]]


def known_names(variables: dict[str, Any], extended: tuple[str, ...] = ()) -> list[str]:
    """What a bias may act on: the model's, the defined, and those that follow one of them."""
    return [*OF_MODEL, LOCAL, *variables, *(f"{EXTENDED}{name}" for name in extended)]


def check_biases(sections: Sequence[Any], variables: dict[str, Any], pace: int, steps: int) -> None:
    """See that biases fit each other, the variables, and pace and number of steps of the MD.

    Raises
    ------
    ValueError
        One line with key, value and cure.
    """
    followed: list[str] = []
    for index, section in enumerate(sections):
        for key in ("pace", "hill_pace"):
            every = getattr(section, key, None)
            if isinstance(every, int) and every % pace:
                raise ValueError(f"bias.{index}.{key} = {every} is not a multiple of md.pace = {pace}")
        part = BIASES.get(section.kind)
        if part.follows:
            (name,) = section.variables
            if name in followed:
                raise ValueError(
                    f"bias.{index}.variables = {[name]}: '{name}' has an eabf already; keep one of the two"
                )
            followed.append(name)
    valid = known_names(variables, tuple(followed))
    for index, section in enumerate(sections):
        names: Sequence[str] = getattr(section, "variables", ())
        for name in (names,) if isinstance(names, str) else names:
            if name not in valid and not is_of_model(name):
                hint = did_you_mean(str(name), valid)
                raise ValueError(
                    f"bias.{index}.variables = {list(names)}: no variable '{name}' is defined; {hint}; or define it: "
                    f"variables: {{{name}: {{kind: dihedral, atoms: [i, j, k, l]}}}}"
                )
        if len(set(names)) < len(names):
            raise ValueError(f"bias.{index}.variables = {list(names)}: name each variable once")
        if BIASES.get(section.kind).feels_atoms(section.arguments()) and names[0].startswith(EXTENDED):
            raise ValueError(
                f"bias.{index}.variables = {names}: τ is adapted to forces on atoms, and an extended "
                "variable has none; give tau"
            )
        try:
            BIASES.get(section.kind).check_run(section.arguments(), steps)
        except UqbiasError as error:
            raise ValueError(f"bias.{index}.{error.what}: {error.cure}") from None
