"""Calibration: an uncertainty in any unit to an expected force error, by frames that were held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from uqbias.errors import UqbiasError, did_you_mean
from uqbias.uncertainty.base import set_buffers, share_state
from uqbias.uncertainty.conformal import Conformal, PositivePart, checked_pair

KINDS = ("conformal", "variance_scaling")


class HeldOut(NamedTuple):
    """What is known of frames that the judge has not seen, n of them.

    Attributes
    ----------
    u, error : [n] judge and root-mean-square force error of each frame, kJ/mol/nm.
    atom_u, atom_error : [n, A] the same for atoms; None for a judge without per-atom values.
    numbers : [A] atomic numbers.
    """

    u: NDArray[Any]
    error: NDArray[Any]
    atom_u: NDArray[Any] | None = None
    atom_error: NDArray[Any] | None = None
    numbers: NDArray[Any] | None = None


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


def with_elements(numbers: Sequence[int], known: Sequence[int]) -> list[int]:
    """The atomic ``numbers``, and after them the ``known`` elements that are not among them, ascending."""
    return [*numbers, *sorted(set(known) - set(numbers))]


class Calibration(nn.Module):
    """All maps from a judge's u to a force error, for a structure and for an atom.

    ``forward`` is the map named by ``kind``: ``conformal`` bounds the force error with probability 1 − α,
    ``variance_scaling`` is its expected root mean square. Both are fitted, so that either can be asked for.

    Parameters
    ----------
    kind : ``conformal`` or ``variance_scaling``.
    alpha : miscoverage of the conformal map.
    statistic : what the judge's u is like, see `PositivePart`.
    shape : how the conformal bound grows with u, see `Conformal`.
    numbers : atomic numbers, so that atoms have a bound for each element, and after them the elements that only other
        systems have; None: one for all.
    """

    def __init__(
        self,
        kind: str = "conformal",
        alpha: float = 0.1,
        statistic: str = "log_density",
        shape: str = "linear",
        numbers: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise UqbiasError(f"unknown calibration '{kind}'", did_you_mean(kind, KINDS))
        self.kind = kind
        self.alpha = float(alpha)
        self.frames = 0
        self.statistic = statistic
        self.shape = shape
        self.numbers = None if numbers is None else [int(z) for z in numbers]
        self.structure_bound, self.atom_bound = Conformal(statistic, shape), Conformal(statistic, shape, self.numbers)
        self.structure_deviation, self.atom_deviation = VarianceScaling(statistic), VarianceScaling(statistic)

    def with_numbers(self, numbers: Sequence[int]) -> Calibration:
        """A twin for other atoms: the bounds of structures are the same, each atom has that of its element.

        Raises
        ------
        UqbiasError
            If an element has no bound.
        """
        more = None if self.numbers is None else with_elements(numbers, self.numbers)
        twin = Calibration(self.kind, self.alpha, self.statistic, self.shape, more).to(self.structure_bound.shift)
        mine, others = self.atom_bound, twin.atom_bound
        scale = others.scale
        share_state(self, twin)
        twin.frames = self.frames
        twin.structure_bound.quantiles, others.quantiles = self.structure_bound.quantiles, mine.quantiles
        if self.numbers is None or more is None:
            return twin
        if strangers := sorted(set(more) - set(self.numbers)):
            raise UqbiasError(
                f"a calibration for atoms of elements {sorted(set(self.numbers))}, atoms of element {strangers[0]}",
                "calibrate with frames of such a system",
            )
        places = [self.numbers.index(number) for number in more]
        others.scale = scale
        set_buffers(others, scale=mine.scale[places] if mine.scale.dim() else mine.scale)
        others.quantiles = {
            level: [each[place] for place in places] if isinstance(each, list) else each
            for level, each in mine.quantiles.items()
        }
        return twin

    def _fit(self, held_out: HeldOut, shape: HeldOut | None = None) -> None:
        """Fit every map; called by `uqbias.model.fit.calibrate`, which sees to it that the frames were held out.

        Parameters
        ----------
        held_out : the calibration frames.
        shape : other frames that the judge has not seen, for the shape of the bound; None: it is what is expected.
        """
        if shape is not None:
            self.structure_bound.fit_shape(shape.u, shape.error)
        self.structure_bound.fit(held_out.u, held_out.error, self.alpha)
        self.structure_deviation.fit(held_out.u, held_out.error)
        if held_out.atom_u is not None and held_out.atom_error is not None:
            if shape is not None and shape.atom_u is not None and shape.atom_error is not None:
                self.atom_bound.fit_shape(shape.atom_u, shape.atom_error, shape.numbers)
            self.atom_bound.fit(held_out.atom_u, held_out.atom_error, self.alpha, held_out.numbers)
            self.atom_deviation.fit(held_out.atom_u, held_out.atom_error)
            # Atoms of one frame err together: their number is no more proof than that of the frames.
            allowed = self.structure_bound.quantiles
            self.atom_bound.quantiles = {a: q for a, q in self.atom_bound.quantiles.items() if a in allowed}
        self.frames = len(held_out.u)

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
            "shape": self.shape,
            "numbers": self.numbers,
            "frames": self.frames,
            "unit": "kJ/mol/nm",
            "meaning": self.meaning,
            "structure_quantiles": {f"{level:g}": q for level, q in self.structure_bound.quantiles.items()},
            "atom_quantiles": {f"{level:g}": q for level, q in self.atom_bound.quantiles.items()},
        }

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Calibration:
        """Inverse of `describe`; the tensors still have to be loaded."""
        # Files of before there were shapes lack both keys.
        more = (description.get("shape", "linear"), description.get("numbers"))
        calibration = cls(description["kind"], description["alpha"], description["statistic"], *more)
        calibration.frames = description["frames"]
        for part, of in ((calibration.structure_bound, "structure"), (calibration.atom_bound, "atom")):
            part.quantiles = {float(level): q for level, q in description[f"{of}_quantiles"].items()}
        return calibration
