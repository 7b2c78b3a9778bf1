"""Estimators of a free energy, each a function of which frames are taken."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from uqbias.bias.czar import czar
from uqbias.errors import UqbiasError
from uqbias.free_energy.multistate import mbar, minimum_image, overlap, window_log_weights
from uqbias.free_energy.result import Axis
from uqbias.free_energy.reweighting import anharmonicity, cumulant_log_factors, log_density
from uqbias.free_energy.weighted_frames import Pool
from uqbias.runs.reader import RunFolder

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

#: Runs that overlap less than this are two groups, whose relative free energy rests on next to nothing.
LEAST_OVERLAP = 1e-3
#: Frames that a bin needs for its skewness to count, and a run, by their weights, for its free energy.
ENOUGH = 50


class Estimate(NamedTuple):
    """Estimate from the frames taken.

    Attributes
    ----------
    log_density : [bins] ln P, without a norm.
    log_weights : [n] logarithmic weights of the frames taken; only their differences have a meaning.
    """

    log_density: Array
    log_weights: Array


class Estimator(ABC):
    """An estimate from the frames that ``taken`` [n] marks, of all runs one after the other."""

    @abstractmethod
    def __call__(self, taken: Mask) -> Estimate:
        """Estimate from these frames."""

    def notes(self) -> dict[str, str]:
        """Notes for the reader of the result, by name."""
        return {}


class Weighted(Estimator):
    """Weights that are known once and for all, of mean one in each run."""

    def __init__(self, pool: Pool, bias: Array) -> None:
        self.pool, self.log_weights = pool, bias / pool.kt

    def __call__(self, taken: Mask) -> Estimate:
        chosen, run = self.log_weights[taken].copy(), self.pool.run[taken]
        for index in np.unique(run):
            mine = run == index
            chosen[mine] -= logsumexp(chosen[mine]) - np.log(mine.sum())
        return Estimate(log_density(self.pool.bins[taken], self.pool.n_bins, chosen), chosen)


class AcrossRuns(Estimator):
    """MBAR with every frame under the last bias of every run."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.reduced = np.stack([self._under(run) for run in (one.run for one in pool.frames)]) / pool.kt
        counts = np.bincount(pool.run)
        log_weights, self._f = mbar(self.reduced, counts)
        self.overlap = overlap(self.reduced, counts, self._f, log_weights) if len(counts) > 1 else 1.0
        if self.overlap < LEAST_OVERLAP:
            raise UqbiasError(
                f"the runs {', '.join(str(one.run.path) for one in pool.frames)} do not overlap ({self.overlap:.1g}): "
                "nothing says how the free energies of their parts compare",
                "add a run between them, or analyse them one by one",
            )

    def notes(self) -> dict[str, str]:
        return {"overlap": f"{self.overlap:.3g}; 1: all runs sample one ensemble, 0: they have nothing in common"}

    def _under(self, run: RunFolder) -> Array:
        return self.pool.of(
            lambda one: sum((run.energy_of(index, one.column) for index in range(len(run.parts))), np.zeros(len(one)))
        )

    def __call__(self, taken: Mask) -> Estimate:
        counts = np.bincount(self.pool.run[taken], minlength=len(self.pool.frames))
        log_weights, _ = mbar(self.reduced[:, taken], counts, self._f)
        return Estimate(log_density(self.pool.bins[taken], self.pool.n_bins, log_weights), log_weights)


class Coupled(Protocol):
    """A bias with an extended variable λ that follows ξ by a spring."""

    variables: tuple[str, ...]  # ξ and λ
    sigma: float  # σ = √(kT/k), in units of ξ
    period: float | None
    coupling: float  # k, kJ/mol per squared unit of ξ


class OverWindows(Estimator):
    """MBAR over the windows of an extended variable, for any quantity."""

    def __init__(self, pool: Pool, part: Coupled, bias: Array) -> None:
        self.pool, self.part, self.log_weights = pool, part, bias / pool.kt
        self.xi, self.lam = (pool.column(name) for name in part.variables)

    def __call__(self, taken: Mask) -> Estimate:
        windows = window_log_weights(self.xi[taken], self.lam[taken], self.part.sigma, self.part.period)
        log_weights = windows + self.log_weights[taken]
        return Estimate(log_density(self.pool.bins[taken], self.pool.n_bins, log_weights), log_weights)


class Czar(Estimator):
    """CZAR along the variable that the extended one follows, frames weighted for the other biases."""

    def __init__(self, pool: Pool, part: Coupled, bias: Array, axis: Axis) -> None:
        self.pool, self.part, self.axis, self.log_weights = pool, part, axis, bias / pool.kt
        self.xi, lam = (pool.column(name) for name in part.variables)
        self.deviation = minimum_image(lam - self.xi, part.period)

    def __call__(self, taken: Mask) -> Estimate:
        log_weights = self.log_weights[taken]
        bins = self.pool.bins[taken]
        inside = bins >= 0
        w = np.exp(log_weights[inside] - log_weights[inside].max())
        weights, sums = (
            np.bincount(bins[inside], values, minlength=self.pool.n_bins).astype(np.float64)
            for values in (w, w * self.deviation[taken][inside])
        )
        mean = sums / np.where(weights > 0, weights, 1.0)
        # The bins are in degrees for an angle, the coupling is not.
        scale = np.pi / 180.0 if self.axis.unit == "°" else 1.0
        part = self.part
        F = czar(self.axis.centres * scale, weights, mean, part.coupling, self.pool.kt, part.period)[1]
        return Estimate(-F / self.pool.kt, log_weights)


class Cumulant(Estimator):
    """Another estimator's density times the cumulant expansion of ⟨exp(ΔV/kT)⟩ in each bin."""

    def __init__(self, pool: Pool, rest: Estimator, boost: Array, order: int) -> None:
        self.pool, self.rest, self.boost, self.order = pool, rest, boost, order

    def __call__(self, taken: Mask) -> Estimate:
        rest = self.rest(taken)
        factors, _ = self.moments(taken, rest.log_weights)
        bins = self.pool.bins[taken]
        return Estimate(rest.log_density + factors, rest.log_weights + np.where(bins >= 0, factors[bins], 0.0))

    def moments(self, taken: Mask, log_weights: Array) -> tuple[Array, Array]:
        """Factors and skewness, see `cumulant_log_factors`."""
        pool = self.pool
        bins, boost = pool.bins[taken], self.boost[taken]
        return cumulant_log_factors(bins, pool.n_bins, boost, pool.kt, log_weights, self.order)

    def notes(self) -> dict[str, str]:
        everything = np.ones(len(self.pool.bins), dtype=bool)
        skew = self.moments(everything, self.rest(everything).log_weights)[1]
        filled = self.pool.counts() >= ENOUGH
        largest = f"{float(np.abs(skew[filled]).max()):.2f}" if filled.any() else "unknown"
        text = (
            f"γ of ΔV = {anharmonicity(self.boost):.4f}, largest |skewness| in a bin of {ENOUGH} frames or more "
            f"{largest}, standard deviation of ΔV {float(self.boost.std()) / self.pool.kt:.2f} kT; order {self.order} "
            "is exact for a Gaussian ΔV (both 0)"
        )
        return {"anharmonicity": text}
