"""Measures of how well an uncertainty ranks the true error, bounds it, and predicts its distribution.

Pure functions on arrays. Ranks and bounds need an uncertainty and the size of the error; the distribution metrics take
signed errors as samples of the Gaussian N(0, σ²) that the uncertainty predicts for each.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.errors import UqbiasError

Array = NDArray[np.float64]
#: Errors above this quantile count as large in `auroc`.
LARGE = 0.8
#: Nominal levels of `miscalibration_area`, 0 and 1 included.
LEVELS = 101


def spearman(u: NDArray[Any], error: NDArray[Any]) -> float:
    """Rank correlation of uncertainty and error, ties at their mean rank; NaN if one of them is constant.

    Parameters
    ----------
    u, error : [n], any units.
    """
    from scipy.stats import spearmanr

    u, error = _pair(u, error)
    if np.ptp(u) == 0 or np.ptp(error) == 0:
        return math.nan
    return float(spearmanr(u, error).statistic)


def auroc(u: NDArray[Any], error: NDArray[Any], quantile: float = LARGE) -> float:
    """Probability that a frame with a large error has a higher u than one without; NaN if all errors are the same.

    Parameters
    ----------
    u, error : [n], any units.
    quantile : errors above this quantile of the errors are large; between 0 and 1.
    """
    from sklearn.metrics import roc_auc_score

    check_quantile(quantile)
    u, error = _pair(u, error)
    large = error > np.quantile(error, quantile)
    return float(roc_auc_score(large, u)) if large.any() and not large.all() else math.nan


def coverage(bound: NDArray[Any], error: NDArray[Any]) -> float:
    """Share of errors that are not above their bound; about 1 − α for a conformal bound at miscoverage α.

    Parameters
    ----------
    bound, error : [n], the same unit.
    """
    bound, error = _pair(bound, error)
    return float((error <= bound).mean())


def miscalibration_area(error: NDArray[Any], sigma: NDArray[Any], levels: int = LEVELS) -> float:
    """Area between observed and nominal coverage of the central intervals of N(0, σ²).

    ∫₀¹ |share of errors with |error| ≤ σ Φ⁻¹((1+p)/2) − p| dp, both curves taken as straight between nominal levels p.
    0 for errors that are such samples, ½ at the most (σ far too small or far too large). From the calibration curve of
    Kuleshov, Fenner & Ermon, ICML 2018 (arXiv:1807.00263), as an area in Tran et al., Mach. Learn.: Sci. Technol. 1,
    025006 (2020).

    Parameters
    ----------
    error : signed errors, any shape.
    sigma : predicted standard deviations in the unit of the errors, above 0, broadcast to their shape.
    levels : nominal levels from 0 to 1.

    Returns
    -------
    float
        Without unit.
    """
    from scipy.special import erf

    error, sigma = _samples(error, sigma)
    # An error lies in the central intervals of level erf(|error| / σ√2) and above.
    level = np.sort(erf(np.abs(error / sigma) / math.sqrt(2)), axis=None)
    nominal = np.linspace(0, 1, levels)
    off = np.searchsorted(level, nominal, side="right") / error.size - nominal
    first, second = off[:-1], off[1:]
    heights = np.abs(first) + np.abs(second)
    # Where the curves cross, there are two triangles instead of a trapezium.
    np.divide(first**2 + second**2, heights, out=heights, where=first * second < 0)
    return float(heights.sum() / 2 / (levels - 1))


def gaussian_nll(error: NDArray[Any], sigma: NDArray[Any]) -> float:
    """Negative log likelihood of the errors under N(0, σ²), mean of ½ ln 2πσ² + error²/2σ².

    Parameters
    ----------
    error, sigma : as in `miscalibration_area`.

    Returns
    -------
    float
        Nats for each error. It depends on the unit of the errors: in a unit k times smaller it is larger by ln k.
    """
    from scipy.stats import norm

    error, sigma = _samples(error, sigma)
    return -float(norm.logpdf(error, scale=sigma).mean())


def gaussian_crps(error: NDArray[Any], sigma: NDArray[Any]) -> float:
    """Continuous ranked probability score of N(0, σ²), mean of σ [z (2Φ(z) − 1) + 2φ(z) − 1/√π] with z = error/σ.

    The smaller the better; the mean absolute error for σ → 0, σ/√π for errors that are samples of N(0, σ²). Gneiting &
    Raftery, J. Am. Stat. Assoc. 102, 359 (2007), section 4.2.

    Parameters
    ----------
    error, sigma : as in `miscalibration_area`.

    Returns
    -------
    float
        In the unit of the errors.
    """
    from scipy.special import erf

    error, sigma = _samples(error, sigma)
    z = error / sigma
    density = np.exp(-0.5 * z**2) * math.sqrt(2 / math.pi)
    return float((error * erf(z / math.sqrt(2)) + sigma * (density - 1 / math.sqrt(math.pi))).mean())


def sharpness(sigma: NDArray[Any]) -> float:
    """Root mean square of the predicted standard deviations, in their unit.

    How much is claimed to be known, whatever the errors: equal to their root mean square where the claims are true on
    average. Gneiting, Balabdaoui & Raftery, J. R. Stat. Soc. B 69, 243 (2007).

    Parameters
    ----------
    sigma : any shape.
    """
    return float(np.sqrt(np.square(np.asarray(sigma, dtype=np.float64)).mean()))


def check_quantile(quantile: float) -> None:
    """Refuse a quantile of large errors above which there is none, or nothing else."""
    if not 0 < quantile < 1:
        raise UqbiasError(f"large errors above the quantile {quantile:g}", "give a number between 0 and 1, e.g. 0.8")


def _pair(u: NDArray[Any], error: NDArray[Any]) -> tuple[Array, Array]:
    first, second = (np.asarray(x, dtype=np.float64).reshape(-1) for x in (u, error))
    if first.shape != second.shape or len(first) < 2:
        raise UqbiasError(
            f"{len(first)} uncertainties and {len(second)} errors", "give one of each for 2 or more frames"
        )
    return first, second


def _samples(error: NDArray[Any], sigma: NDArray[Any]) -> tuple[Array, Array]:
    """Errors, and the standard deviation of each, checked."""
    errors, deviations = (np.asarray(x, dtype=np.float64) for x in (error, sigma))
    if not errors.size:
        raise UqbiasError("no error to compare an uncertainty with", "give one or more")
    try:
        deviations_of_each = np.broadcast_to(deviations, errors.shape)
    except ValueError:
        raise UqbiasError(
            f"standard deviations of shape {deviations.shape} for errors of shape {errors.shape}",
            "give one for each error",
        ) from None
    if not (np.isfinite(deviations).all() and (deviations > 0).all()):
        worst = deviations.reshape(-1)[int(np.argmin(np.isfinite(deviations) & (deviations > 0)))]
        raise UqbiasError(f"a standard deviation of {worst:g}", "give finite ones above 0")
    if not np.isfinite(errors).all():
        raise UqbiasError("an error is not finite", "leave that frame out")
    return errors, deviations_of_each
