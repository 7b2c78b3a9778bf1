"""CZAR: the free energy along a variable from a run in which an extended variable followed it under any bias."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.bias.base import nearest_image
from uqbias.bias.grid import MAX_POINTS, fitting_width
from uqbias.errors import UqbiasError
from uqbias.units import kt

Array = NDArray[np.float64]

#: Bins added beyond what is needed, so that the arrays seldom grow.
_MARGIN = 64


class Bins:
    """Weights of one variable x in bins, and in each the mean of a second quantity; bins are added where x gets to.

    Parameters
    ----------
    width : width of a bin; for a periodic variable a little less, so that it divides the period. Centres are at
        multiples of the width, those of a periodic variable at -period/2 + i · width, as in `GrowingGrid`.
    period : period of x, or None.

    Attributes
    ----------
    weights : [G] sum of the weights.
    sums : [G] sum of weight · quantity.
    """

    def __init__(self, width: float, period: float | None = None) -> None:
        self.period, self.width = period, fitting_width(width, period)
        self.clear()

    def clear(self) -> None:
        """Back to nothing."""
        size = 0 if self.period is None else round(self.period / self.width)
        self.first = 0
        self.weights, self.sums = np.zeros(size), np.zeros(size)

    @property
    def centres(self) -> Array:
        """[G]."""
        base = 0.0 if self.period is None else -self.period / 2
        return np.asarray(base + self.width * (self.first + np.arange(len(self.weights))), dtype=np.float64)

    def mean(self, empty: float) -> Array:
        """[G] mean of the quantity, ``empty`` in a bin without weight."""
        filled = self.weights > 0
        return np.where(filled, self.sums / np.where(filled, self.weights, 1.0), empty)

    def sampled(self, x: Array) -> NDArray[np.bool_]:
        """[n] whether the bin that ``x`` [n] is in has a weight."""
        index = self._index(x)
        inside = (index >= 0) & (index < len(self.weights))
        return np.where(inside, self.weights[np.where(inside, index, 0)] > 0, False)

    def _index(self, x: Array) -> NDArray[np.int64]:
        if self.period is None:
            return np.rint(x / self.width).astype(np.int64) - self.first
        return np.rint((x + self.period / 2) / self.width).astype(np.int64) % len(self.weights)

    def cover(self, x: Array) -> None:
        """Grow to hold ``x`` [n], which must be finite.

        Raises
        ------
        UqbiasError
            If that takes more than four million bins.
        """
        if self.period is not None or not len(x):
            return
        low, high = np.rint(x.min() / self.width), np.rint(x.max() / self.width)
        if len(self.weights):
            low, high = min(low, self.first), max(high, self.first + len(self.weights) - 1)
        if high - low > MAX_POINTS:
            raise UqbiasError(
                f"bins of {self.width:.6g} from {low * self.width:.6g} to {high * self.width:.6g} are more than "
                f"{MAX_POINTS}",
                "the variable has run away: put a cap or a wall on it, or widen the bins",
            )
        if not len(self.weights):
            self.first = int(low)
        before = self.first - int(low)
        after = int(high) - (self.first + len(self.weights) - 1)
        if before or after:
            padding = (before + _MARGIN * (before > 0), after + _MARGIN * (after > 0))
            self.first -= padding[0]
            self.weights, self.sums = np.pad(self.weights, padding), np.pad(self.sums, padding)

    def add(self, x: Array, quantity: Array, weights: Array | None = None) -> None:
        """Add samples: ``x`` [n], ``quantity`` [n], ``weights`` [n] or all 1."""
        self.cover(x)
        index = self._index(x)
        weights = np.ones(len(x)) if weights is None else weights
        np.add.at(self.weights, index, weights)
        np.add.at(self.sums, index, weights * quantity)

    def czar(self, k: float, kT: float, name: str = "ξ") -> tuple[Array, Array, Array]:
        """Centres of the bins between the outermost samples, or of the whole period, and there what `czar` gives."""
        where = np.flatnonzero(self.weights)
        if not len(where):
            raise UqbiasError(f"no samples of '{name}', no free energy", "run with the bias first, or give finite ones")
        span = slice(where[0], where[-1] + 1) if self.period is None else slice(None)
        centres = self.centres[span]
        return centres, *czar(centres, self.weights[span], self.mean(empty=0.0)[span], k, kT, self.period)

    def checkpoint(self) -> dict[str, NDArray[Any]]:
        """All arrays."""
        return {"first": np.array(self.first), "weights": self.weights.copy(), "sums": self.sums.copy()}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take the arrays of a `checkpoint`."""
        self.first = int(arrays["first"])
        self.weights = np.array(arrays["weights"], dtype=np.float64)
        self.sums = np.array(arrays["sums"], dtype=np.float64)


def czar(
    centres: Array, weights: Array, deviation: Array, k: float, kT: float, period: float | None = None
) -> tuple[Array, Array]:
    """Corrected z-averaged restraint, dF/dξ = -kT d ln ρ(ξ)/dξ + k (⟨λ⟩_ξ - ξ).

    Lesage, Lelièvre, Stoltz and Hénin, J. Phys. Chem. B 121, 3676, 2017. A bias on λ that changes in time does
    no harm, since ρ and ⟨λ⟩_ξ are averaged over the same times. F is integrated term by term, ln ρ as it is and the
    restraint by the trapezoidal rule, so that no derivative of a histogram is taken. Across bins without a sample the
    restraint is taken to be linear.

    Parameters
    ----------
    centres : [G] of the bins of ξ, equidistant; for a periodic variable all bins of one period.
    weights : [G] number of samples or sum of their weights, proportional to ρ.
    deviation : [G] mean of λ - ξ over the samples of a bin; of no account in a bin without one.
    k : coupling of λ and ξ, kJ/mol per squared unit.
    kT : kJ/mol.
    period : period of ξ, or None.

    Returns
    -------
    gradient : [G] dF/dξ, kJ/mol per unit; NaN in a bin without a sample.
    F : [G] kJ/mol, lowest 0; inf in a bin without a sample.

    Raises
    ------
    UqbiasError
        If no bin holds a sample.
    """
    size = len(centres)
    filled = np.asarray(weights) > 0
    if not filled.any():
        raise UqbiasError("CZAR without a sample", "give samples of ξ and λ")
    width = float(centres[1] - centres[0]) if size > 1 else 1.0
    # A ring is cut at its widest gap: F on the two sides of the cut is connected the other way around.
    cut = 0 if period is None else _after_widest_gap(filled)
    filled, mean = np.roll(filled, -cut), np.roll(np.asarray(deviation, dtype=np.float64), -cut)
    log_density = np.log(np.where(filled, np.roll(np.asarray(weights, dtype=np.float64), -cut), 1.0))
    places = np.arange(size)
    mean = np.interp(places, places[filled], mean[filled])
    closed = period is not None and bool(filled.all())
    if closed:
        mean = mean - mean.mean()  # F returns to its value after a period
    work = k * width * np.concatenate([[0.0], np.cumsum(0.5 * (mean[1:] + mean[:-1]))])
    F = np.where(filled, work - kT * log_density, np.inf)
    gradient = k * mean - kT * _derivative(np.where(filled, log_density, np.nan), width, closed)
    return np.roll(gradient, cut), np.roll(F - F.min(), cut)


def _after_widest_gap(filled: NDArray[np.bool_]) -> int:
    """Index of the first filled bin after the longest run of empty ones around the ring; 0 if none is empty."""
    places = np.flatnonzero(filled)
    gaps = np.diff(places, prepend=places[-1] - len(filled))
    return int(places[gaps.argmax()]) if gaps.max() > 1 else 0


def _derivative(values: Array, width: float, closed: bool) -> Array:
    """Central differences; one-sided at an end and next to NaN, zero where neither neighbour has a value."""
    steps = np.diff(values) / width
    around = (values[0] - values[-1]) / width if closed and len(values) > 1 else np.nan
    sides = np.stack([np.concatenate([[around], steps]), np.concatenate([steps, [around]])])
    known = np.isfinite(sides)
    mean = np.where(known, sides, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return np.where(np.isnan(values), np.nan, mean)


def czar_series(
    xi: NDArray[Any],
    extended: NDArray[Any],
    *,
    bin_width: float,
    sigma: float,
    temperature: float,
    weights: NDArray[Any] | None = None,
    period: float | None = None,
) -> tuple[Array, Array]:
    """CZAR from the series of a variable ξ and the extended variable λ that follows it.

    Parameters
    ----------
    xi, extended : ξ and λ, of any and the same shape; pairs that are not finite are left out.
    bin_width : width of the bins of ξ.
    sigma : width of the coupling, k = k_B T/σ².
    temperature : temperature, K.
    weights : weights of the samples, of the same shape: exp(V'/kT) for a bias V' that does not act on λ alone.
    period : period of ξ, or None.

    Returns
    -------
    centres : [G] of the bins between the outermost samples, or of the whole period.
    F : [G] kJ/mol, lowest 0; inf in a bin without a sample.

    Raises
    ------
    UqbiasError
        If the shapes differ, a parameter is not above zero, a weight is negative, or no sample is left.
    """
    for name, value in (("bin_width", bin_width), ("sigma", sigma), ("temperature", temperature)):
        if not value > 0:
            raise UqbiasError(f"CZAR with {name} {value}", f"give a {name} > 0")
    x, y = np.asarray(xi, dtype=np.float64), np.asarray(extended, dtype=np.float64)
    w = np.ones(x.shape) if weights is None else np.asarray(weights, dtype=np.float64)
    if not x.shape == y.shape == w.shape:
        raise UqbiasError(f"CZAR of {x.shape} values of ξ, {y.shape} of λ, {w.shape} weights", "give one for each")
    usable = np.isfinite(x) & np.isfinite(y) & np.isfinite(w)
    x, y, w = x[usable], y[usable], w[usable]
    if (w < 0).any():
        raise UqbiasError(f"CZAR with a weight of {w.min():.6g}", "give weights of 0 or more")
    bins = Bins(bin_width, period)
    bins.add(x, nearest_image(y - x, period), w)
    kT = kt(temperature)
    centres, _, F = bins.czar(kT / sigma**2, kT)
    return centres, F
