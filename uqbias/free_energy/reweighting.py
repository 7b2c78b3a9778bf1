"""Weights that lead from a biased run to the unbiased ensemble, and their use: arrays only, energies in kJ/mol.

Every weight is kept as its logarithm, since the weights of one run span many orders of magnitude. With the total bias
V, walls and restraints included, ln w is

- (V(x) - c)/kT with one constant c where V does not change: umbrella sampling (Torrie and Valleau, J. Comput. Phys. 23,
  187, 1977). The *last bias* stands for V in a run of metadynamics or OPES whose bias hardly changes any more
  (Branduardi, Bussi and Parrinello, J. Chem. Theory Comput. 8, 2247, 2012).
- (V(x, t) - c(t))/kT with the V that acted on the frame. *Tiwary and Parrinello* give c(t) for metadynamics, see
  `reweighting_offset`; OPES keeps its normalisation itself, so that c is constant once its kernels have settled: the
  *quasi-static* weights of Invernizzi and Parrinello (J. Phys. Chem. Lett. 11, 2731, 2020).
- -ln Σ_k N_k exp(f_k - V_k(x)/kT) for frames of several biases V_k, see `uqbias.free_energy.multistate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from uqbias.errors import UqbiasError

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

#: Points per sigma of the grid on which c(t) is integrated, in one, two, three dimensions. The integrands vary over
#: sigma or more, so that the sum over a regular grid is as good as the integral.
POINTS_PER_SIGMA = (4, 3, 2)
#: A hill ends here: exp(-5²/2) = 4e-6 of its height.
SUPPORT = 5.0
MAX_POINTS = 4_000_000
#: exp() of more than this overflows.
MAX_EXPONENT = 650.0


def kish(log_weights: Array) -> float:
    """Effective sample size (Σ w)² / Σ w² (Kish, Survey Sampling, 1965): n for equal weights, 1 if one dominates."""
    return float(np.exp(2.0 * logsumexp(log_weights) - logsumexp(2.0 * log_weights))) if len(log_weights) else 0.0


def log_density(bins: Indices, n_bins: int, log_weights: Array) -> Array:
    """Logarithm of the sum of the weights in each bin; -inf in an empty one.

    Parameters
    ----------
    bins : [n] bin of each frame; negative for a frame that is in none.
    log_weights : [n].

    Returns
    -------
    [n_bins].
    """
    inside = bins >= 0
    if not inside.any():
        return np.full(n_bins, -np.inf)
    largest = float(log_weights[inside].max())
    sums = np.bincount(bins[inside], np.exp(log_weights[inside] - largest), minlength=n_bins)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(sums) + largest)


def free_energy_of(log_densities: Array, kt: float) -> Array:
    """F = -kT ln P with Σ P = 1 over bins of equal size; inf where P is zero."""
    if not np.isfinite(log_densities).any():
        return np.full(log_densities.shape, np.inf)
    return np.asarray(-kt * (log_densities - logsumexp(log_densities)), dtype=np.float64)


def jackknife_error(replicates: Array) -> Array:
    """Standard error from estimates that leave out one block each: √((B-1)/B Σ_b (F_b - ⟨F⟩)²).

    Delete-one-block jackknife (Efron and Stein, Ann. Stat. 9, 586, 1981): it takes any estimator, CZAR and cumulant
    expansion too. Blocks are to be longer than the correlation time.

    Parameters
    ----------
    replicates : [B, n_bins], inf where the frames of the other blocks do not reach.

    Returns
    -------
    [n_bins]; NaN where a replicate is not finite: a bin that one block alone has seen.
    """
    finite = np.isfinite(replicates).all(axis=0)
    values = np.where(finite, replicates, 0.0)
    count = len(replicates)
    error = np.sqrt((count - 1) / count * ((values - values.mean(axis=0)) ** 2).sum(axis=0))
    return np.asarray(np.where(finite, error, np.nan))


@dataclass(frozen=True)
class HillHistory:
    """The hills of a metadynamics run, in the order of deposition.

    Attributes
    ----------
    step : [n] MD step of the deposition; a hill acts on later steps.
    centre, sigma : [n, D] in units of the variables.
    height : [n] kJ/mol as added to the bias.
    biasfactor : γ > 1; None for untempered.
    periods : [D], None for a variable without one.
    lowest : [D] lowest value that the variable can take (mirror images lie beyond it), or None.
    """

    step: Indices
    centre: Array
    sigma: Array
    height: Array
    biasfactor: float | None
    periods: Sequence[float | None]
    lowest: Sequence[float | None]


def reweighting_offset(hills: HillHistory, kt: float) -> tuple[Indices, Array]:
    """c(t) of Tiwary and Parrinello, J. Phys. Chem. B 119, 736 (2015), the bias's own growth in time.

    c(t) = kT ln [∫ ds exp(γ/(γ-1) V(s,t)/kT) / ∫ ds exp(1/(γ-1) V(s,t)/kT)]; untempered, γ → ∞: kT ln ⟨exp(V/kT)⟩ over
    the domain. It rests on F(s) = -γ/(γ-1) V(s,t) + const at every t: leave out the time before the wells are filled.
    The domain is what the run has visited in the end, the points within one sigma of a hill's centre: beyond it
    neither exp(-F/kT) nor exp(-(F+V)/kT) weighs, whereas V = 0 would count there as if they did.

    V is built hill by hill on a grid and both integrals follow it, so that the cost does not grow with the grid.

    Returns
    -------
    steps : [m] steps of deposition, ascending.
    c : [m + 1] kJ/mol; ``c[i]`` holds after i of them, so that a frame of step t has ``c[searchsorted(steps, t)]``.

    Raises
    ------
    UqbiasError
        If the grid would be too large, or V is hundreds of kT.
    """
    if not len(hills.step):
        return np.empty(0, dtype=np.int64), np.zeros(1)
    grid = _Grid(hills)
    final, count = np.zeros(grid.shape), np.zeros(grid.shape)
    for index, height in enumerate(hills.height.tolist()):
        where, kernel = grid.kernel(index)
        final[where] += height * kernel
        count[where] += kernel
    inside = (count >= np.exp(-0.5)) & grid.allowed()
    factor = 1.0 if hills.biasfactor is None else hills.biasfactor / (hills.biasfactor - 1.0)
    rates = (factor / kt, 0.0 if hills.biasfactor is None else 1.0 / (hills.biasfactor - 1.0) / kt)
    highest = float(final[inside].max())
    if rates[0] * highest > MAX_EXPONENT:
        raise UqbiasError(
            f"a bias of {highest / kt:.0f} kT cannot be reweighted", "use lower hills, a bias factor, or the last bias"
        )
    # V only grows, so that the integrals are sums of positive terms and lose no digits.
    sums = [float(np.exp(-rate * highest) * inside.sum()) for rate in rates]
    value = np.zeros(grid.shape)
    steps, starts = np.unique(hills.step, return_index=True)
    ends = np.append(starts[1:], len(hills.step))
    c = np.zeros(len(steps) + 1)
    for row, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        for index in range(start, end):
            where, kernel = grid.kernel(index)
            old, new = value[where], value[where] + float(hills.height[index]) * kernel
            value[where] = new
            mask = inside[where]
            for which, rate in enumerate(rates):
                if rate:
                    sums[which] += float((np.exp(rate * (new - highest)) - np.exp(rate * (old - highest)))[mask].sum())
        c[row + 1] = kt * np.log(sums[0] / sums[1]) + highest
    return steps, c


class _Grid:
    """Points that cover all hills, and each hill's kernel on the points near it."""

    def __init__(self, hills: HillHistory) -> None:
        self.hills = hills
        width = hills.sigma.min(axis=0)
        d = len(width)
        low, high = hills.centre.min(axis=0) - 2.0 * width, hills.centre.max(axis=0) + 2.0 * width
        spacing = width / POINTS_PER_SIGMA[min(d, 3) - 1]
        shape = []
        for k, period in enumerate(hills.periods):
            if period is not None:
                low[k], high[k] = -period / 2, period / 2
                spacing[k] = period / max(2, int(np.ceil(period / spacing[k])))
            shape.append(round((high[k] - low[k]) / spacing[k]) + (period is None))
        if np.prod(np.array(shape, dtype=float)) > MAX_POINTS:
            raise UqbiasError(
                f"hills from {low.tolist()} to {high.tolist()} take a grid of {shape}", "reweight with the last bias"
            )
        self.low, self.spacing, self.shape = low, spacing, tuple(shape)

    def kernel(self, index: int) -> tuple[Any, Array]:
        """Places of the points near hill ``index``, and its Gaussian of height one there."""
        where, product = [], np.ones(())
        for k, period in enumerate(self.hills.periods):
            centre, sigma = float(self.hills.centre[index, k]), float(self.hills.sigma[index, k])
            reach = SUPPORT * sigma if period is None else min(SUPPORT * sigma, 0.5 * (period - self.spacing[k]))
            first = int(np.ceil((centre - reach - self.low[k]) / self.spacing[k]))
            last = int(np.floor((centre + reach - self.low[k]) / self.spacing[k]))
            if period is None:
                first, last = max(first, 0), min(last, self.shape[k] - 1)
            points = np.arange(first, last + 1)
            z = (self.low[k] + self.spacing[k] * points - centre) / sigma
            where.append(points % self.shape[k])
            product = product[..., None] * np.exp(-0.5 * z * z)
        return np.ix_(*where), np.asarray(product)

    def allowed(self) -> NDArray[np.bool_]:
        """Points that the variables can take."""
        inside = np.ones(self.shape, dtype=bool)
        for k, bound in enumerate(self.hills.lowest):
            if bound is not None:
                points = self.low[k] + self.spacing[k] * np.arange(self.shape[k])
                inside &= (points >= bound).reshape([-1 if axis == k else 1 for axis in range(len(self.shape))])
        return inside


def cumulant_log_factors(
    bins: Indices, n_bins: int, boost: Array, kt: float, log_weights: Array, order: int = 2
) -> tuple[Array, Array]:
    """Logarithm of ⟨exp(ΔV/kT)⟩ of each bin by cumulant expansion: C1/kT + C2/2(kT)² + C3/6(kT)³.

    Of a Gaussian ΔV the second order is exact, and it needs far fewer frames than the exponential average, which hangs
    on the largest ΔV (Miao, Sinko, Pierce, Bucher, Walker and McCammon, J. Chem. Theory Comput. 10, 2677, 2014; Miao,
    Feher and McCammon, J. Chem. Theory Comput. 11, 3584, 2015).

    Parameters
    ----------
    bins : [n] bin of each frame, negative for none.
    boost : [n] ΔV, kJ/mol.
    log_weights : [n] logarithmic weights for the other biases, over which the averages are taken.
    order : 2 or 3.

    Returns
    -------
    factors : [n_bins]; 0 in an empty bin.
    skew : [n_bins] skewness of ΔV, 0 where a bin has fewer than two values: what the second order leaves out.
    """
    inside = bins >= 0
    chosen, v = bins[inside], boost[inside] / kt
    # Weights relative to the largest of the bin, so that no bin's weights all vanish.
    largest = np.full(n_bins, -np.inf)
    np.maximum.at(largest, chosen, log_weights[inside])
    w = np.exp(log_weights[inside] - largest[chosen])
    total = np.maximum(np.bincount(chosen, w, minlength=n_bins), np.finfo(float).tiny)
    mean = np.bincount(chosen, w * v, minlength=n_bins) / total
    deviation = v - mean[chosen]
    second, third = (np.bincount(chosen, w * deviation**k, minlength=n_bins) / total for k in (2, 3))
    spread = second > 1e-12 * (1.0 + mean**2)
    skew = np.where(spread, third / np.where(spread, second, 1.0) ** 1.5, 0.0)
    factors = mean + second / 2.0 + (third / 6.0 if order == 3 else 0.0)
    return np.asarray(factors), np.asarray(skew)


def anharmonicity(boost: Array) -> float:
    """Distance of the distribution of ΔV from a Gaussian: γ = ½ ln(2πe σ²) + ∫ p ln p dV (Miao et al. 2014), 0 for one.

    The entropy comes from a histogram in units of σ with the Miller-Madow correction of its bias.
    """
    spread = float(boost.std())
    if not spread > 0.0:
        return 0.0
    counts = np.histogram((boost - boost.mean()) / spread, bins=np.arange(-8.0, 8.01, 0.1))[0]
    p = counts[counts > 0] / counts.sum()
    entropy = -(p * np.log(p)).sum() + (len(p) - 1) / (2.0 * counts.sum()) + np.log(0.1)
    return float(0.5 * np.log(2.0 * np.pi * np.e) - entropy)
