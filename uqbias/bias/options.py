"""Checks of a bias's options."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np

from uqbias.errors import UqbiasError

#: Options that count steps or updates.
COUNTS = ("pace", "hill_pace", "averaging")


def number(kind: str, name: str, value: Any) -> float:
    """``value`` as a float; raises UqbiasError unless it is a real number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise UqbiasError(f"{kind} with {name} {value!r}", "give a number")
    return float(value)


def positive(kind: str, name: str, value: float) -> None:
    """Raise UqbiasError unless ``value`` is finite and above zero, and whole if it is one of `COUNTS`."""
    if not 0 < number(kind, name, value) < math.inf:
        raise UqbiasError(f"{kind} with {name} {value}", f"give a finite {name} > 0")
    if name in COUNTS:
        whole(kind, name, value, 1)


def whole(kind: str, name: str, value: float, least: int) -> None:
    """Raise UqbiasError unless ``value`` is a whole number, ``least`` or more."""
    if not (number(kind, name, value) >= least and float(value).is_integer()):
        raise UqbiasError(f"{kind} with {name} {value}", f"give a whole number, {least} or more")


def per_variable(kind: str, name: str, value: Any, count: int) -> list[Any]:
    """One value for each of ``count`` variables, from one for all or a list; None stands for none.

    Raises
    ------
    UqbiasError
        If the list has another length, a number is not finite, or a period is not above zero.
    """
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, Sequence) or isinstance(value, str):
        value = [value] * count
    if len(value) != count:
        raise UqbiasError(f"{kind} with {len(value)} values of {name} for {count} variable(s)", "give one each")
    for one in value:
        if one is not None and not math.isfinite(number(kind, name, one)):
            raise UqbiasError(f"{kind} with {name} {one}", "give a finite number")
        if one is not None and name == "periods":
            positive(kind, name, one)
    return list(value)
