"""How well an uncertainty ranks and bounds the true error."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.errors import UqbiasError

#: Errors above this quantile count as large in `auroc`.
LARGE = 0.8


def spearman(u: NDArray[Any], error: NDArray[Any]) -> float:
    """Rank correlation of uncertainty and error, ties at their mean rank; NaN if one of them is constant.

    Parameters
    ----------
    u, error : [n], any units.
    """
    u, error = _pair(u, error)
    ranks = [_ranks(x) - (len(x) - 1) / 2 for x in (u, error)]
    norm = float(np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return float((ranks[0] * ranks[1]).sum() / norm) if norm > 0 else float("nan")


def auroc(u: NDArray[Any], error: NDArray[Any], quantile: float = LARGE) -> float:
    """Probability that a frame with a large error has a higher u than one without; NaN if all errors are the same.

    Parameters
    ----------
    u, error : [n], any units.
    quantile : errors above this quantile of the errors are large.
    """
    u, error = _pair(u, error)
    large = error > np.quantile(error, quantile)
    n_large, n_small = int(large.sum()), int((~large).sum())
    if n_large == 0 or n_small == 0:
        return float("nan")
    return float((_ranks(u)[large].sum() - n_large * (n_large - 1) / 2) / (n_large * n_small))


def coverage(u_calibrated: NDArray[Any], error: NDArray[Any]) -> float:
    """Share of frames whose error is not above the calibrated uncertainty; about 1 − α if the calibration holds.

    Parameters
    ----------
    u_calibrated, error : [n], the same unit.
    """
    u, error = _pair(u_calibrated, error)
    return float((error <= u).mean())


def quality(u_calibrated: NDArray[Any], error: NDArray[Any]) -> dict[str, float]:
    """All of the above, for reports: ``spearman``, ``auroc``, ``coverage``."""
    return {
        "spearman": spearman(u_calibrated, error),
        "auroc": auroc(u_calibrated, error),
        "coverage": coverage(u_calibrated, error),
    }


def _pair(u: NDArray[Any], error: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = (np.asarray(x, dtype=np.float64).reshape(-1) for x in (u, error))
    if first.shape != second.shape or len(first) < 2:
        raise UqbiasError(
            f"{len(first)} uncertainties and {len(second)} errors", "give one of each for 2 or more frames"
        )
    return first, second


def _ranks(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 0, ties at their mean."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts + 1) / 2)[inverse]
    return ranks
