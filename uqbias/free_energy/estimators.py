"""Estimators of a free energy: from the frames taken, ln P of each bin and the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from uqbias.bias.czar import czar
from uqbias.errors import UqbiasError
from uqbias.free_energy.multistate import mbar, minimum_image, overlap, window_log_weights
from uqbias.free_energy.result import Axis
from uqbias.free_energy.reweighting import anharmonicity, cumulant_log_factors
from uqbias.free_energy.weighted_frames import Pool

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
#: From a mask [n] of the frames taken, of all runs one after the other, to ln P of each bin, without a norm, and to
#: the logarithmic weights of these frames, of which only differences have a meaning.
Estimator = Callable[[Mask], tuple[Array, Array]]

#: Runs that overlap less than this are two groups, whose relative free energy rests on next to nothing.
LEAST_OVERLAP = 1e-3
#: Frames that a bin needs for its skewness to count, and a run, by their weights, for its free energy.
ENOUGH = 50


class Coupled(Protocol):
    """A bias with an extended variable λ that follows ξ by a spring."""

    variables: tuple[str, ...]  # ξ and λ
    sigma: float  # σ = √(kT/k), in units of ξ
    period: float | None
    coupling: float  # k, kJ/mol per squared unit of ξ


def weighted(pool: Pool, bias: Array) -> Estimator:
    """Weights that are known once and for all, of mean one in each run."""
    log_weights = bias / pool.kt

    def estimate(taken: Mask) -> tuple[Array, Array]:
        chosen, run = log_weights[taken].copy(), pool.run[taken]
        for index in np.unique(run):
            mine = run == index
            chosen[mine] -= logsumexp(chosen[mine]) - np.log(mine.sum())
        return pool.log_density(taken, chosen), chosen

    return estimate


def across_runs(pool: Pool) -> tuple[Estimator, dict[str, str]]:
    """MBAR with every frame under the last bias of every run; and a note of their overlap.

    Raises
    ------
    UqbiasError
        If the runs fall into groups that have next to nothing in common.
    """
    runs = [one.run for one in pool.frames]
    reduced = np.stack([np.concatenate([one.under(run) for one in pool.frames]) for run in runs]) / pool.kt
    counts = np.bincount(pool.run)
    log_weights, f = mbar(reduced, counts)
    common = overlap(reduced, counts, f, log_weights) if len(counts) > 1 else 1.0
    if common < LEAST_OVERLAP:
        raise UqbiasError(
            f"the runs {', '.join(str(run.path) for run in runs)} do not overlap ({common:.1g}): nothing says how "
            "the free energies of their parts compare",
            "add a run between them, or analyse them one by one",
        )

    def estimate(taken: Mask) -> tuple[Array, Array]:
        counts = np.bincount(pool.run[taken], minlength=len(pool.frames))
        chosen = mbar(reduced[:, taken], counts, f)[0]
        return pool.log_density(taken, chosen), chosen

    note = f"{common:.3g}; 1: all runs sample one ensemble, 0: they have nothing in common"
    return estimate, {"overlap": note}


def over_windows(pool: Pool, part: Coupled, bias: Array) -> Estimator:
    """MBAR over the windows of an extended variable, for any quantity."""
    xi, lam = (pool.column(name) for name in part.variables)

    def estimate(taken: Mask) -> tuple[Array, Array]:
        chosen = window_log_weights(xi[taken], lam[taken], part.sigma, part.period) + bias[taken] / pool.kt
        return pool.log_density(taken, chosen), chosen

    return estimate


def by_czar(pool: Pool, part: Coupled, bias: Array, axis: Axis) -> Estimator:
    """CZAR along the variable that the extended one follows, frames weighted for the other biases."""
    xi, lam = (pool.column(name) for name in part.variables)
    deviation = minimum_image(lam - xi, part.period)
    # The bins are in degrees for an angle, the coupling is not.
    centres = axis.centres * (np.pi / 180.0 if axis.unit == "°" else 1.0)

    def estimate(taken: Mask) -> tuple[Array, Array]:
        chosen, bins = bias[taken] / pool.kt, pool.bins[taken]
        inside = bins >= 0
        w = np.exp(chosen[inside] - chosen[inside].max())
        weights, sums = (
            np.bincount(bins[inside], values, minlength=pool.n_bins).astype(np.float64)
            for values in (w, w * deviation[taken][inside])
        )
        mean = sums / np.where(weights > 0, weights, 1.0)
        F = czar(centres, weights, mean, part.coupling, pool.kt, part.period)[1]
        return -F / pool.kt, chosen

    return estimate


def by_cumulants(pool: Pool, rest: Estimator, boost: Array, order: int) -> tuple[Estimator, dict[str, str]]:
    """Another estimator's density times the cumulant expansion of ⟨exp(ΔV/kT)⟩ in each bin; and a note of ΔV."""

    def moments(taken: Mask) -> tuple[Array, Array, Array, Array]:
        density, chosen = rest(taken)
        factors, skew = cumulant_log_factors(pool.bins[taken], pool.n_bins, boost[taken], pool.kt, chosen, order)
        return density, chosen, factors, skew

    def estimate(taken: Mask) -> tuple[Array, Array]:
        density, chosen, factors, _ = moments(taken)
        bins = pool.bins[taken]
        return density + factors, chosen + np.where(bins >= 0, factors[bins], 0.0)

    skew = moments(np.ones(len(pool.bins), dtype=bool))[3]
    filled = pool.counts() >= ENOUGH
    largest = f"{float(np.abs(skew[filled]).max()):.2f}" if filled.any() else "unknown"
    note = (
        f"γ of ΔV = {anharmonicity(boost):.4f}, largest |skewness| in a bin of {ENOUGH} frames or more {largest}, "
        f"standard deviation of ΔV {float(boost.std()) / pool.kt:.2f} kT; order {order} is exact for a Gaussian ΔV "
        "(both 0)"
    )
    return estimate, {"anharmonicity": note}
