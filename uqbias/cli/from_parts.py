"""Options of the command line that are options of a part: described, and given a default, where the part has them."""

from __future__ import annotations

from functools import cache
from typing import Any

import typer

from uqbias.options import Option, options_of


@cache
def _options(part: Any) -> dict[str, Option]:
    return options_of(part)


def option(part: Any, name: str, *declarations: str, also: str = "", **looks: Any) -> Any:
    """Describe an option of the command line by the option ``name`` of a part, which checks its range.

    Parameters
    ----------
    part : class whose options are annotated, or section of the campaign file.
    declarations : flags, such as ``--timestep``; by default made from the name of the parameter.
    also : a sentence more for the help text.
    looks : further arguments of `typer.Option`, such as ``metavar``.
    """
    text = _options(part)[name].description.replace("null:", "left out:")
    return typer.Option(*declarations, help=f"{text[:1].upper()}{text[1:]}. {also}".rstrip(), **looks)


def default(part: Any, name: str) -> Any:
    """Default of an option of a part."""
    return _options(part)[name].default
