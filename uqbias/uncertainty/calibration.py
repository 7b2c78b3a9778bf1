"""From an uncertainty in any unit to an expected force error, by split conformal prediction."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from uqbias.errors import UqbiasError
from uqbias.uncertainty.base import set_buffers

#: Rounding of the shifted u at zero, as a share of (median − minimum) over the calibration frames.
ROUNDING = 0.5


class Conformal(nn.Module):
    """u_cal = q̂ · s(u − min u), kJ/mol/nm of force error that is exceeded with probability α.

    The shift is the smallest u of the calibration frames and q̂ the ⌈(n+1)(1−α)⌉/n quantile of |error| / s. Frames at
    the minimum would make that ratio infinite and own the quantile, so s(x) = (x + √(x² + 4δ²))/2 is a smooth positive
    part: s(x) → x for x ≫ δ, with δ = (median − minimum)/2. Coverage is that of conformal prediction for any s
    (Vovk et al. 2005; Angelopoulos & Bates, arXiv:2107.07511). Before `fit` it is the identity.

    Attributes
    ----------
    shift : smallest u of the calibration frames.
    width : δ.
    scale : q̂, kJ/mol/nm per unit of u.
    fitted : 1 after `fit`, else 0.
    """

    shift: Tensor
    width: Tensor
    scale: Tensor
    fitted: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("width", torch.ones(()))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("fitted", torch.zeros(()))

    def fit(self, u: Tensor | NDArray[Any], error: Tensor | NDArray[Any], alpha: float = 0.1) -> None:
        """Calibrate on frames that were not trained on.

        Parameters
        ----------
        u : uncertainties, one per frame (or per atom), any shape.
        error : root-mean-square force errors, kJ/mol/nm, same shape.
        alpha : share of errors that may be above the calibrated uncertainty.

        Raises
        ------
        UqbiasError
            If the frames are fewer than 1/α, or a value is not finite.
        """
        values, errors = (np.abs(_flat(x)) if index else _flat(x) for index, x in enumerate((u, error)))
        if not 0 < alpha < 1:
            raise UqbiasError(f"alpha: {alpha}", "give a share between 0 and 1")
        if values.shape != errors.shape:
            raise UqbiasError(f"{len(values)} uncertainties and {len(errors)} errors", "give one error per uncertainty")
        needed = math.ceil(1 / alpha - 1e-9)
        if len(values) < needed:
            raise UqbiasError(
                f"{len(values)} calibration frames for alpha {alpha:g}", f"hold out at least {needed}, or raise alpha"
            )
        if not (np.isfinite(values).all() and np.isfinite(errors).all()):
            raise UqbiasError("an uncertainty or error of the calibration frames is not finite", "remove that frame")
        shift = values.min()
        median = float(np.median(values))
        width = max(ROUNDING * (median - shift), 1e-6 * max(1.0, abs(median)))
        positive = 0.5 * (values - shift + np.sqrt((values - shift) ** 2 + 4 * width**2))
        scale = conformal_quantile(errors / positive, alpha)
        if not scale > 0:
            raise UqbiasError(f"the force errors of {len(errors)} calibration frames are zero", "hold out other frames")
        set_buffers(self, shift=shift, width=width, scale=scale, fitted=1.0)

    def forward(self, u: Tensor) -> Tensor:
        """Calibrate u of any shape; kJ/mol/nm, above zero once fitted."""
        above = u - self.shift
        positive = 0.5 * (above + (above * above + 4 * self.width * self.width).sqrt())
        return self.scale * (self.fitted * positive + (1.0 - self.fitted) * above)


def conformal_quantile(scores: NDArray[Any], alpha: float) -> float:
    """The ⌈(n+1)(1−α)⌉-th smallest of n scores; the largest if that is beyond n."""
    rank = min(math.ceil((len(scores) + 1) * (1 - alpha) - 1e-9), len(scores))
    return float(np.sort(scores)[max(rank, 1) - 1])


def _flat(values: Tensor | NDArray[Any]) -> NDArray[np.float64]:
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=np.float64).reshape(-1)
