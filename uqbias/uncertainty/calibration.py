"""Calibration: an uncertainty in any unit to an expected force error, by frames that were held out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from uqbias.errors import UqbiasError, did_you_mean
from uqbias.uncertainty.base import set_buffers

KINDS = ("conformal", "variance_scaling")
STATISTICS = ("deviation", "variance", "log_density")
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

    def __init__(self, statistic: str, **numbers: float) -> None:
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


class Conformal(PositivePart):
    """Bound u_cal = q̂ · s(u) of the force error, kJ/mol/nm, exceeded with probability α; s as in `PositivePart`.

    q̂ is the ⌈(n+1)(1−α)⌉/n quantile of |error| / s over the calibration frames. Coverage is that of split conformal
    prediction (Vovk et al. 2005; Angelopoulos & Bates, arXiv:2107.07511), but for shift and width, which come from the
    same frames: a percent for ten frames, nothing for fifty. Before `fit` it is the identity.

    Attributes
    ----------
    scale : q̂, kJ/mol/nm per unit of u.
    quantiles : q̂ at other miscoverages, ``{α: q̂}``, for those of `ALPHAS` that the calibration frames suffice for.
    """

    scale: Tensor

    def __init__(self, statistic: str = "log_density") -> None:
        super().__init__(statistic, scale=1.0)
        self.quantiles: dict[float, float] = {}

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
        if not 0 < alpha < 1:
            raise UqbiasError(f"alpha: {alpha}", "give a share between 0 and 1")
        values, errors = checked_pair(u, error)
        if len(values) < frames_needed(alpha):
            raise UqbiasError(
                f"{len(values)} calibration frames for alpha {alpha:g}",
                f"hold out at least {frames_needed(alpha)}, or raise alpha",
            )
        scores = errors / self._set_shift(values)
        scale = conformal_quantile(scores, alpha)
        if not scale > 0:
            raise UqbiasError(f"the force errors of {len(errors)} calibration frames are zero", "hold out other frames")
        set_buffers(self, scale=scale, fitted=1.0)
        self.quantiles = {
            level: conformal_quantile(scores, level) for level in ALPHAS if len(scores) >= frames_needed(level)
        }

    def forward(self, u: Tensor) -> Tensor:
        """Calibrate u of any shape; kJ/mol/nm, above zero once fitted."""
        return self.scale * (self.fitted * self.positive(u) + (1.0 - self.fitted) * (u - self.shift))


class VarianceScaling(PositivePart):
    """Standard deviation σ = √(a v + b) of a force component, kJ/mol/nm, by maximum likelihood.

    v is u² for a deviation and s(u) for a variance or a log-density, s as in `PositivePart`. a ≥ 0 and b > 0 minimise
    Σ ½ ln σ² + error²/2σ² over the calibration frames, errors taken as Gaussian, as Palmer et al., npj Comput. Mater.
    8, 115 (2022) do for a linear map of σ. Before `fit` it is the identity.

    Attributes
    ----------
    slope, offset : a and b, (kJ/mol/nm)².
    """

    slope: Tensor
    offset: Tensor

    def __init__(self, statistic: str = "log_density") -> None:
        super().__init__(statistic, slope=1.0, offset=0.0)

    def fit(self, u: Tensor | NDArray[Any], error: Tensor | NDArray[Any]) -> None:
        """Calibrate on frames that were not trained on; arguments as in `Conformal.fit`."""
        from scipy.optimize import minimize

        values, errors = checked_pair(u, error)
        positive = self._set_shift(values)
        if self.statistic == "deviation":  # b keeps it above zero
            positive = values**2
        squares, unit = errors**2, float(np.mean(errors**2))
        if not unit > 0:
            raise UqbiasError(f"the force errors of {len(errors)} calibration frames are zero", "hold out other frames")
        scaled = positive / positive.mean()

        def negative_log_likelihood(logarithms: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            a, b = np.exp(logarithms)
            variance = a * scaled + b
            slope = 0.5 / variance - 0.5 * (squares / unit) / variance**2
            value = float(np.mean(0.5 * np.log(variance) + 0.5 * (squares / unit) / variance))
            return value, np.array([a * np.mean(slope * scaled), b * np.mean(slope)])

        # Three starts, since the likelihood has a plateau where either term vanishes.
        starts = [np.log([a, 1.0 - a]) for a in (0.1, 0.5, 0.9)]
        fits = [
            minimize(negative_log_likelihood, start, jac=True, bounds=[(-16.0, 8.0)] * 2, method="L-BFGS-B")
            for start in starts
        ]
        a, b = np.exp(min(fits, key=lambda result: float(result.fun)).x)
        set_buffers(self, slope=a * unit / positive.mean(), offset=b * unit, fitted=1.0)

    def forward(self, u: Tensor) -> Tensor:
        """Calibrate u of any shape; kJ/mol/nm, above zero once fitted."""
        positive = u * u if self.statistic == "deviation" else self.positive(u)
        # One where unfitted, so that the root has a finite slope there.
        variance = self.fitted * (self.slope * positive + self.offset) + (1.0 - self.fitted)
        return self.fitted * variance.sqrt() + (1.0 - self.fitted) * (u - self.shift)


class Calibration(nn.Module):
    """All maps from a judge's u to a force error, for a structure and for an atom.

    ``forward`` is the map named by ``kind``: ``conformal`` bounds the force error with probability 1 − α,
    ``variance_scaling`` is its expected root mean square. Both are fitted, so that either can be asked for.

    Parameters
    ----------
    kind : ``conformal`` or ``variance_scaling``.
    alpha : miscoverage of the conformal map.
    statistic : what the judge's u is like, see `PositivePart`.
    """

    def __init__(self, kind: str = "conformal", alpha: float = 0.1, statistic: str = "log_density") -> None:
        super().__init__()
        if kind not in KINDS:
            raise UqbiasError(f"unknown calibration '{kind}'", did_you_mean(kind, KINDS))
        self.kind = kind
        self.alpha = float(alpha)
        self.frames = 0
        self.statistic = statistic
        self.structure_bound, self.atom_bound = Conformal(statistic), Conformal(statistic)
        self.structure_deviation, self.atom_deviation = VarianceScaling(statistic), VarianceScaling(statistic)

    def _fit(
        self,
        u: NDArray[Any],
        error: NDArray[Any],
        atom_u: NDArray[Any] | None = None,
        atom_error: NDArray[Any] | None = None,
    ) -> None:
        """Fit every map; called by `uqbias.model.fit.calibrate`, which sees to it that the frames were held out.

        Parameters
        ----------
        u, error : [n] judge and root-mean-square force error of each frame, kJ/mol/nm.
        atom_u, atom_error : the same for each atom, any shape; None for a judge without per-atom values.
        """
        self.structure_bound.fit(u, error, self.alpha)
        self.structure_deviation.fit(u, error)
        if atom_u is not None and atom_error is not None:
            self.atom_bound.fit(atom_u, atom_error, self.alpha)
            self.atom_deviation.fit(atom_u, atom_error)
            # Atoms of one frame err together: their number is no more proof than that of the frames.
            allowed = self.structure_bound.quantiles
            self.atom_bound.quantiles = {a: q for a, q in self.atom_bound.quantiles.items() if a in allowed}
        self.frames = len(u)

    @property
    def fitted(self) -> bool:
        """Whether `fit` was called."""
        return bool(self.structure_bound.fitted)

    @property
    def has_atoms(self) -> bool:
        """Whether there are maps for single atoms."""
        return bool(self.atom_bound.fitted)

    def forward(self, u: Tensor) -> Tensor:
        """Calibrated uncertainty of structures, kJ/mol/nm."""
        return self._calibrated(u, self.structure_bound, self.structure_deviation)

    def per_atom(self, u: Tensor) -> Tensor:
        """Calibrated uncertainty of atoms, kJ/mol/nm."""
        return self._calibrated(u, self.atom_bound, self.atom_deviation)

    def _calibrated(self, u: Tensor, bound: Conformal, deviation: VarianceScaling) -> Tensor:
        return cast("Tensor", bound(u) if self.kind == "conformal" else deviation(u))

    @property
    def meaning(self) -> str:
        """Meaning of a calibrated value, in words."""
        if self.kind == "conformal":
            return f"kJ/mol/nm of force error (RMS per component) that is exceeded with probability {self.alpha:g}"
        return "kJ/mol/nm of expected force error (RMS per component)"

    def describe(self) -> dict[str, Any]:
        """Description for the manifest of a model file."""
        return {
            "kind": self.kind,
            "alpha": self.alpha,
            "statistic": self.statistic,
            "frames": self.frames,
            "unit": "kJ/mol/nm",
            "meaning": self.meaning,
            "structure_quantiles": {f"{level:g}": q for level, q in self.structure_bound.quantiles.items()},
            "atom_quantiles": {f"{level:g}": q for level, q in self.atom_bound.quantiles.items()},
        }

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Calibration:
        """Inverse of `describe`; the tensors still have to be loaded."""
        calibration = cls(description["kind"], description["alpha"], description["statistic"])
        calibration.frames = description["frames"]
        for part, of in ((calibration.structure_bound, "structure"), (calibration.atom_bound, "atom")):
            part.quantiles = {float(level): q for level, q in description[f"{of}_quantiles"].items()}
        return calibration


def frames_needed(alpha: float) -> int:
    """Fewest calibration frames for which the conformal quantile at ``alpha`` exists."""
    return math.ceil(1 / alpha - 1e-9)


def conformal_quantile(scores: NDArray[Any], alpha: float) -> float:
    """The ⌈(n+1)(1−α)⌉-th smallest of n scores; the largest if that is beyond n."""
    rank = min(math.ceil((len(scores) + 1) * (1 - alpha) - 1e-9), len(scores))
    return float(np.sort(scores)[max(rank, 1) - 1])


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
