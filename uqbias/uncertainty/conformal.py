"""The conformal bound: an uncertainty in any unit to a force error that is seldom exceeded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from uqbias.errors import UqbiasError, did_you_mean
from uqbias.uncertainty.base import set_buffers

STATISTICS = ("deviation", "variance", "log_density")
SHAPES = ("linear", "power")
#: Exponent that is expected of the error, before any frame is seen, by what u is like.
EXPONENT = {"log_density": 0.5, "variance": 0.5, "deviation": 1.0}
#: Weight of that expectation: variance of ln error about the curve over that of the exponent, (0.4/0.3)².
RIDGE = 2.0
#: Width in ln s over which the fitted exponent goes over into the expected one.
SOFT = 0.25
#: Fewest frames from which an exponent is learned; with fewer it is the expected one.
FEWEST = 5
#: Lowest and highest exponent, so that a bound rises beyond the calibrated range, too, and not without limit.
EXPONENTS = (0.1, 2.0)
#: Miscoverages whose conformal quantile is kept in the model file, where the calibration frames suffice.
ALPHAS = (0.01, 0.05, 0.1, 0.2, 0.32, 0.5)


class PositivePart(nn.Module):
    """The smooth positive function s(u) that every calibration starts from.

    - u a log-density, whose zero means nothing: s = (x + √(x² + 4δ²))/2 with x = u − min u and
      δ = (median − minimum)/2, over the calibration frames.
    - u a deviation or a variance: s = √(u² + δ²), δ a quarter of the median.

    Far above δ it is u (from its minimum). Without the rounding, frames at the minimum would have an error infinitely
    larger than s, and own every statistic.

    Parameters
    ----------
    statistic : what the uncertainty is like: ``deviation``, ``variance`` or ``log_density``.
    numbers : further buffers, as they are before `fit`.

    Attributes
    ----------
    shift : smallest u of the calibration frames; 0 for a deviation or a variance.
    width : δ.
    fitted : 1 after `fit`, else 0.
    """

    shift: Tensor
    width: Tensor
    fitted: Tensor

    def __init__(self, statistic: str, **numbers: float | list[float]) -> None:
        super().__init__()
        if statistic not in STATISTICS:
            raise UqbiasError(f"unknown statistic '{statistic}' of u", did_you_mean(statistic, STATISTICS))
        self.statistic = statistic
        for name, number in {"shift": 0.0, "width": 1.0, "fitted": 0.0, **numbers}.items():
            self.register_buffer(name, torch.tensor(number))

    def _set_shift(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Set shift and width from u and return s."""
        median, shift = float(np.median(values)), 0.0
        if self.statistic == "log_density":
            shift = float(values.min())
            width = 0.5 * (median - shift)
        else:
            width = 0.25 * abs(median)
        set_buffers(self, shift=shift, width=max(width, 1e-6 * max(1.0, abs(median))))
        with torch.no_grad():
            above_zero: NDArray[np.float64] = self.positive(torch.as_tensor(values).to(self.width.device)).cpu().numpy()
        return above_zero

    def positive(self, u: Tensor) -> Tensor:
        """Smooth positive part s, any shape."""
        if self.statistic == "log_density":
            above = u - self.shift
            return 0.5 * (above + (above * above + 4 * self.width * self.width).sqrt())
        return (u * u + self.width * self.width).sqrt()

    def log_positive(self, u: Tensor) -> Tensor:
        """Logarithm of s, finite however far below the shift u is."""
        if self.statistic == "log_density":
            return self.width.log() + torch.asinh((u - self.shift) / (2 * self.width))
        return 0.5 * (u * u + self.width * self.width).log()


class Conformal(PositivePart):
    """Bound u_cal = q̂ · f(s(u)) of the force error, kJ/mol/nm, exceeded with probability α; s as in `PositivePart`.

    f is s itself (``linear``) or s^b (``power``), b fitted by `fit_shape` to frames that the bound is not calibrated
    on. Errors flatten once the labels cover what is visited: b of 0.2 to 0.6 is usual then. Beyond the largest s of
    those frames, of which they say nothing, the exponent is the expected one if that is larger.

    q̂ is the ⌈(n+1)(1−α)⌉/n quantile of |error| / f over the calibration frames. Coverage is that of split conformal
    prediction (Vovk et al. 2005; Angelopoulos & Bates, arXiv:2107.07511), whatever f is, for frames like those. Where
    `fit_shape` was not called, shift and width come from the same frames: a percent for ten frames, nothing for fifty.
    Atoms have a q̂ for each element (Mondrian; Vovk et al. 2003). Before `fit` it is the identity.

    Parameters
    ----------
    statistic : see `PositivePart`.
    shape : ``linear`` or ``power``.
    numbers : atomic numbers of the N atoms, for a bound of atoms, and after them of the elements that only other
        systems have; None for one of structures.

    Attributes
    ----------
    scale : [] or [length of numbers] q̂, kJ/mol/nm per unit of f.
    exponent, beyond, edge : b, what is added to it beyond, and ln s where; a bound that is ``linear`` has none.
    quantiles : q̂ at other miscoverages, ``{α: q̂}``, for those of `ALPHAS` that the calibration frames suffice for.
    """

    scale: Tensor
    exponent: Tensor
    beyond: Tensor
    edge: Tensor

    def __init__(
        self, statistic: str = "log_density", shape: str = "linear", numbers: Sequence[int] | None = None
    ) -> None:
        if shape not in SHAPES:
            raise UqbiasError(f"unknown shape '{shape}' of a bound", did_you_mean(shape, SHAPES))
        super().__init__(statistic, scale=1.0 if numbers is None else [1.0] * len(numbers))
        if shape == "power":
            self.register_buffer("exponent", torch.tensor(EXPONENT[statistic]))
            self.register_buffer("beyond", torch.tensor(0.0))
            self.register_buffer("edge", torch.tensor(0.0))
        self.shape = shape
        self.numbers = numbers
        self.quantiles: dict[float, float | list[float]] = {}
        self._shaped = False

    def fit_shape(self, u: NDArray[Any], error: NDArray[Any], numbers: NDArray[Any] | None = None) -> None:
        """Fit b by regression of ln error on ln s, held near what is expected of it where the frames say little.

        Parameters
        ----------
        u, error : as in `fit`, of frames that the judge has not seen and that `fit` is not given.
        numbers : atomic numbers along the last axis of u; the level of each element is its own.
        """
        values, errors = checked_pair(u, error)
        largest = float(errors.max(initial=0.0))
        if self.shape == "linear" or len(u) < FEWEST or not largest > 0:
            return
        self._set_shift(values)
        self._shaped = True
        with torch.no_grad():
            x = self.log_positive(torch.as_tensor(values).to(self.width.device)).cpu().numpy()
        edge = float(x.max())
        y = np.log(np.maximum(errors, 1e-6 * largest))
        elements = np.zeros(len(y)) if numbers is None else np.broadcast_to(numbers, np.shape(u)).ravel()
        for element in np.unique(elements):
            rows = elements == element
            x[rows] -= x[rows].mean()
            y[rows] -= y[rows].mean()
        exponent = (x @ y + RIDGE * EXPONENT[self.statistic]) / (x @ x + RIDGE)
        exponent = float(np.clip(exponent, *EXPONENTS))
        set_buffers(self, exponent=exponent, beyond=max(EXPONENT[self.statistic] - exponent, 0.0), edge=edge)

    def fit(
        self,
        u: Tensor | NDArray[Any],
        error: Tensor | NDArray[Any],
        alpha: float = 0.1,
        numbers: NDArray[Any] | None = None,
    ) -> None:
        """Calibrate on frames that were not trained on.

        Parameters
        ----------
        u : uncertainties, one per frame (or per atom), any shape.
        error : root-mean-square force errors, kJ/mol/nm, same shape.
        alpha : share of errors that may be above the calibrated uncertainty.
        numbers : atomic numbers along the last axis of u, for a bound of atoms.

        Raises
        ------
        UqbiasError
            If the frames are fewer than 1/α, or a value is not finite.
        """
        if not 0 < alpha < 1:
            raise UqbiasError(f"alpha: {alpha}", "give a share between 0 and 1")
        shape = tuple(u.shape)
        values, errors = checked_pair(u, error)
        if len(values) < frames_needed(alpha):
            raise UqbiasError(
                f"{len(values)} calibration frames for alpha {alpha:g}",
                f"hold out at least {frames_needed(alpha)}, or raise alpha",
            )
        if not self._shaped:
            self._set_shift(values)
        with torch.no_grad():
            f = self.shaped(torch.as_tensor(values).to(self.width.device)).cpu().numpy()
        scores = (errors / f).reshape(shape)
        scale = conformal_quantile(scores, alpha)
        if not scale > 0:
            raise UqbiasError(f"the force errors of {len(errors)} calibration frames are zero", "hold out other frames")
        set_buffers(self, scale=self._of_elements(scores, alpha, numbers), fitted=1.0)
        self.quantiles = {
            level: self._of_elements(scores, level, numbers) for level in ALPHAS if scores.size >= frames_needed(level)
        }

    def _of_elements(
        self, scores: NDArray[np.float64], alpha: float, numbers: NDArray[Any] | None
    ) -> float | list[float]:
        """q̂, of each of the N atoms by its element where the bound is one of atoms."""
        overall = conformal_quantile(scores, alpha)
        if self.numbers is None or numbers is None:
            return overall
        each = {z: conformal_quantile(scores[..., numbers == z], alpha) or overall for z in np.unique(numbers).tolist()}
        return [each.get(int(z), overall) for z in self.numbers]

    def shaped(self, u: Tensor) -> Tensor:
        """f(s(u)), any shape."""
        if self.shape == "linear":
            return self.positive(u)
        x = self.log_positive(u)
        return (self.exponent * x + self.beyond * SOFT * nn.functional.softplus((x - self.edge) / SOFT)).exp()

    def at(self, alpha: float, u: Tensor) -> Tensor:
        """Bound at another of the miscoverages in `quantiles`."""
        return self._of_atoms(u.new_tensor(self.quantiles[alpha]), u) * self.shaped(u)

    def _of_atoms(self, scale: Tensor, u: Tensor) -> Tensor:
        """What a scale says of the atoms that there are."""
        return scale if self.numbers is None or scale.dim() == 0 else scale[: u.shape[-1]]

    def forward(self, u: Tensor) -> Tensor:
        """Calibrate u of any shape; kJ/mol/nm, above zero once fitted."""
        scale = self._of_atoms(self.scale, u)
        return scale * (self.fitted * self.shaped(u) + (1.0 - self.fitted) * (u - self.shift))


def frames_needed(alpha: float) -> int:
    """Fewest calibration frames for which the conformal quantile at ``alpha`` exists."""
    return math.ceil(1 / alpha - 1e-9)


def conformal_quantile(scores: NDArray[Any], alpha: float) -> float:
    """The ⌈(n+1)(1−α)⌉-th smallest of n scores; the largest if that is beyond n."""
    rank = min(math.ceil((scores.size + 1) * (1 - alpha) - 1e-9), scores.size)
    return float(np.sort(scores, axis=None)[max(rank, 1) - 1])


def checked_pair(
    u: Tensor | NDArray[Any], error: Tensor | NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Flat float64 arrays of u and |error|, of one length and finite."""
    values, errors = (
        np.asarray(x.detach().cpu().numpy() if isinstance(x, Tensor) else x, dtype=np.float64).reshape(-1)
        for x in (u, error)
    )
    if values.shape != errors.shape:
        raise UqbiasError(f"{len(values)} uncertainties and {len(errors)} errors", "give one error per uncertainty")
    if not (np.isfinite(values).all() and np.isfinite(errors).all()):
        raise UqbiasError("an uncertainty or error of the calibration frames is not finite", "remove that frame")
    return values, np.abs(errors)
