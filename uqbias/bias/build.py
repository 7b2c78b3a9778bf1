"""Biases from the sections of a campaign file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from uqbias.errors import UqbiasError
from uqbias.options import parameters_of
from uqbias.registry import BIASES
from uqbias.variables.names import EXTENDED, LOCAL, expanded, local_names, missing_part

if TYPE_CHECKING:
    from uqbias.bias.base import BiasSum

Array = NDArray[np.float64]
#: (kind, options) of each part of a bias.
BiasParts = tuple[tuple[str, dict[str, Any]], ...]
Periods = Mapping[str, float]


def build_bias(parts: BiasParts, temperature: float, periods: Periods | None = None) -> BiasSum:
    """Sum of the biases named.

    Parameters
    ----------
    parts : (kind, options) of each bias; see `completed` for what may be left out.
    temperature : temperature of the MD, K.
    periods : period of each variable that has one, by name.

    Raises
    ------
    UqbiasError
        If a kind or an option is not known, or out of range.
    """
    from uqbias.bias.base import BiasSum

    return BiasSum([BIASES.rebuild(kind, options) for kind, options in completed(parts, temperature, periods)])


def completed(
    parts: BiasParts,
    temperature: float,
    periods: Periods | None = None,
    lowest: float | None = None,
    local: Sequence[float] | None = None,
) -> BiasParts:
    """The parts with the temperature of the MD, the periods of their variables and numbers in place of ``lowest``.

    Parameters
    ----------
    lowest : driver's lowest value over the labelled frames, for ``reflect_at: lowest``.
    local : [K] the same of each part of the driver, whose names are put in place of the variable ``local``; None where
        no model is known.

    Raises
    ------
    UqbiasError
        If a kind is not known, a variable has a period and the bias has no use for one, or the driver lacks a part.
    """
    known = dict(periods or {})
    known |= {f"{EXTENDED}{name}": period for name, period in known.items()}
    lows = {"driver": lowest, **dict(zip(local_names(len(local or ())), local or (), strict=True))}
    result = []
    for kind, options in parts:
        taken = parameters_of(BIASES.get(kind))
        full = dict(options)
        names = full.get("variables", taken["variables"][0].default if "variables" in taken else ("driver",))
        names = (names,) if isinstance(names, str) else names
        if local is not None:
            if LOCAL in names:
                names = full["variables"] = expanded(names, len(local))
            if lacking := missing_part(names, len(local)):
                raise UqbiasError(f"{kind} on {lacking[0]}", lacking[1])
        own_periods = [known.get(name) for name in names]
        if "temperature" in taken:
            full.setdefault("temperature", temperature)
        if "periods" in taken:
            full.setdefault("periods", own_periods)
        elif any(own_periods):
            raise UqbiasError(f"{kind} on '{names[0]}', which is periodic", "choose a variable without a period")
        if "reflect_at" in full and lowest is not None:
            full["reflect_at"] = _reflected(full["reflect_at"], names, lows)
        result.append((kind, full))
    return tuple(result)


def _reflected(bound: Any, names: Sequence[str], lows: Mapping[str, float | None]) -> Any:
    """Bounds with ``lowest`` as a number for driver and parts of it, None for variables that have no such bound."""
    listed = isinstance(bound, list | tuple)
    if not listed and bound != "lowest":
        return bound
    values = zip(bound if listed else [bound] * len(names), names, strict=True)
    bounds = [value if value != "lowest" else lows.get(name) for value, name in values]
    return bounds if listed or len(bounds) > 1 else bounds[0]
