"""Checks of a bias's options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from uqbias.errors import UqbiasError


def positive(kind: str, name: str, value: float) -> None:
    """Raise UqbiasError unless ``value`` is above zero."""
    if not value > 0:
        raise UqbiasError(f"{kind} with {name} {value}", f"give a {name} > 0")


def per_variable(kind: str, name: str, value: Any, count: int) -> list[Any]:
    """One value for each of ``count`` variables, from one for all or a list.

    Raises
    ------
    UqbiasError
        If the list has another length.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        return [value] * count
    if len(value) != count:
        raise UqbiasError(f"{kind} with {len(value)} values of {name} for {count} variable(s)", "give one each")
    return list(value)
