"""A free energy on a grid of one or two variables: values, error bars, where they come from, and the table of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from uqbias.errors import UqbiasError, did_you_mean
from uqbias.files import write_text
from uqbias.free_energy.multistate import minimum_image
from uqbias.free_energy.reweighting import jackknife_error
from uqbias.units import EV, KCAL, kt

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

UNITS = ("kJ/mol", "kcal/mol", "kT", "eV")
_AXIS = ("name", "unit", "low", "high", "bins", "period")


@dataclass(frozen=True)
class Axis:
    """Equal bins of one variable.

    Attributes
    ----------
    name : name of the variable.
    unit : its unit; degrees for angles.
    low, high : outer edges.
    bins : number of bins.
    period : high - low for a variable with a period, else None.
    """

    name: str
    unit: str
    low: float
    high: float
    bins: int
    period: float | None = None

    @property
    def edges(self) -> Array:
        """[bins + 1]."""
        return np.linspace(self.low, self.high, self.bins + 1)

    @property
    def centres(self) -> Array:
        """[bins]."""
        edges = self.edges
        return np.asarray(0.5 * (edges[1:] + edges[:-1]))

    @property
    def label(self) -> str:
        """Name and unit."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def indices(self, values: Array) -> NDArray[np.int64]:
        """[n] bin of each value; -1 outside. The upper edge belongs to the last bin."""
        if self.period is not None:
            values = minimum_image(values, self.period)
        index = np.floor((values - self.low) * (self.bins / (self.high - self.low)))
        index = np.where(values == self.high, self.bins - 1, index)
        return np.where((index >= 0) & (index < self.bins), index, -1).astype(np.int64)


@dataclass(frozen=True)
class FreeEnergy:
    """F(s) = -kT ln P(s) on bins of equal size.

    Attributes
    ----------
    axes : one or two variables.
    values : [bins, ...] kJ/mol above the lowest; inf in a bin without a frame.
    error : [bins, ...] kJ/mol, one standard error of -kT ln P(s), P normalised; NaN where not known.
    counts : [bins, ...] frames in the bin.
    temperature : temperature, K.
    method : how it was estimated.
    effective : effective sample size; NaN for a method without weights.
    notes : further lines for the header of the file, by name.
    replicates : [B, bins, ...] kJ/mol, -kT ln P without one block each; empty where there are none.
    """

    axes: tuple[Axis, ...]
    values: Array
    error: Array
    counts: NDArray[np.int64]
    temperature: float
    method: str
    effective: float
    notes: Mapping[str, str] = field(default_factory=dict)
    replicates: Array = field(default_factory=lambda: np.empty(0))

    @property
    def n_frames(self) -> int:
        """Frames in the bins."""
        return int(self.counts.sum())

    def factor(self, unit: str) -> float:
        """One kJ/mol in ``unit``: kJ/mol, kcal/mol, kT or eV.

        Raises
        ------
        UqbiasError
            For another unit.
        """
        factors = {"kJ/mol": 1.0, "kcal/mol": 1.0 / KCAL, "kT": 1.0 / kt(self.temperature), "eV": 1.0 / EV}
        if unit not in factors:
            raise UqbiasError(f"unknown unit '{unit}'", did_you_mean(unit, UNITS))
        return factors[unit]

    def region(self, low: Sequence[float], high: Sequence[float]) -> Mask:
        """[bins, ...] bins whose centre lies in a box, ``low`` and ``high`` one each per variable.

        For a variable with a period ``low`` > ``high`` goes through its bound.
        """
        masks = []
        for axis, bottom, top in zip(self.axes, low, high, strict=True):
            if axis.period is None:
                masks.append((axis.centres >= bottom) & (axis.centres <= top))
            else:
                masks.append((axis.centres - bottom) % axis.period <= ((top - bottom) % axis.period or axis.period))
        return np.asarray(masks[0] if len(masks) == 1 else masks[0][:, None] & masks[1])

    def difference(self, first: Mask, second: Mask) -> tuple[float, float]:
        """Free energy of the region ``second`` less that of ``first`` and its standard error, kJ/mol.

        Parameters
        ----------
        first, second : [bins, ...], as of `region`.

        Returns
        -------
        difference, error
            inf where one region has no frame; the error is NaN without replicates.
        """
        thermal = kt(self.temperature)

        def of(values: Array) -> float:
            with np.errstate(invalid="ignore"):
                return float(thermal * (logsumexp(-values[first] / thermal) - logsumexp(-values[second] / thermal)))

        if not len(self.replicates):
            return of(self.values), float("nan")
        error = jackknife_error(np.array([[of(values)] for values in self.replicates]))
        return of(self.values), float(error[0])

    def table(self, unit: str = "kJ/mol") -> str:
        """CSV with a header of comments: variables, F, error, frames, one line a bin, the last variable fastest."""
        factor, thermal = self.factor(unit), kt(self.temperature)
        lines = ["# free energy by uqbias"]
        for axis in self.axes:
            entries = zip(_AXIS, (getattr(axis, name) for name in _AXIS), strict=True)
            lines.append("# axis: " + ", ".join(f"{name} {_text(value)}" for name, value in entries))
        lines += [
            f"# method: {self.method}",
            f"# unit: {unit}",
            f"# temperature: {self.temperature!r} K, kT = {thermal * factor:.6g} {unit}",
            "# minimum: the lowest F is 0; inf: no frame in the bin",
            f"# frames: {self.n_frames}, effective (Kish): {self.effective:.1f}",
            *(f"# {name}: {' '.join(text.split())}" for name, text in self.notes.items()),
            ",".join([*(axis.name for axis in self.axes), "F", "error", "frames"]),
        ]
        for place in np.ndindex(*self.values.shape):
            at = [f"{axis.centres[i]:.10g}" for axis, i in zip(self.axes, place, strict=True)]
            numbers = [f"{self.values[place] * factor:.8g}", f"{self.error[place] * factor:.6g}"]
            lines.append(",".join([*at, *numbers, str(int(self.counts[place]))]))
        return "\n".join(lines) + "\n"

    def save(self, path: str | Path, unit: str = "kJ/mol") -> None:
        """Write `table` atomically."""
        write_text(path, self.table(unit))


def _text(value: Any) -> str:
    return "-" if value in (None, "") else repr(value) if isinstance(value, float) else str(value)
