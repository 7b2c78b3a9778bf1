"""Gaussian accelerated molecular dynamics: a boost on the potential energy that needs no collective variable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, MaxLen, MinLen
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Doc

from uqbias.bias.base import Array, Bias, Probe, Temperature
from uqbias.errors import UqbiasError
from uqbias.options import Count, Positive
from uqbias.units import KCAL, kt

Steps = Annotated[int, Ge(0)]
#: Energies that spread over less than this many kT are taken for constant: k, which goes with the inverse of the
#: spread, would be made of rounding errors.
LEAST_SPREAD = 0.1


class GaMD(Bias):
    """Gaussian accelerated MD: a boost of low energies.

    ΔV = ½ k (E_thr - E)² wherever E < E_thr, else 0, with k = k0/(V_max - V_min).

    E_thr and k0 follow from extremes, mean and standard deviation σ_V of the potential energy so that the order of
    energies is kept and the boost's standard deviation, about k (E_thr - V_avg) σ_V, stays below ``sigma0``: small
    enough for reweighting by a cumulant expansion (Miao, Feher and McCammon, J. Chem. Theory Comput. 11, 3584, 2015).

    - ``lower``: E_thr = V_max, k0 = min(1, σ0/σ_V · (V_max - V_min)/(V_max - V_avg)).
    - ``upper``: E_thr = V_min + (V_max - V_min)/k0, k0 = (1 - σ0/σ_V) (V_max - V_min)/(V_avg - V_min) if that is in
      (0, 1], else as ``lower``.

    Three stages, counted from the first update: *conventional* (no boost; statistics are collected once
    ``preparation_steps`` are over), *equilibration* (boost on, statistics and parameters updated), *production* (boost
    on and unchanged: only this stage can be reweighted). The statistics are those of all walkers, over both stages, as
    in eABF-GaMD (Hulm, Dietschreit and Ochsenfeld, J. Chem. Phys. 157, 024110, 2022).

    In a run that counts its steps anew a restored GaMD begins anew too, without boost: the potential may be another, as
    after a retraining, and its energies have another mean, minimum and maximum. To go on in production with the
    parameters as they are, set ``frozen``. A run resumed at the step of its snapshot goes on exactly.

    Parameters
    ----------
    threshold : ``lower`` or ``upper``. The upper one boosts more, so much that energies of the boosted run may spread
        more widely than those the parameters were made of: compare the boost's spread in production with ``sigma0``.
    sigma0 : the paper's 6 kcal/mol by default.
    pace : each stage ends at a multiple of it.

    Attributes
    ----------
    production_from : steps, counted as the stages are, from which the boost stays as it is.

    Raises
    ------
    UqbiasError
        If an option is out of range.
    """

    kind = "gamd"
    boosts = True
    estimator = "cumulant"

    def __init__(
        self,
        *,
        variables: Annotated[Sequence[str], MinLen(1), MaxLen(1), Doc("name of the one energy to boost")] = ("energy",),
        threshold: Annotated[
            Literal["lower", "upper"], Doc("bound of the threshold energy; upper boosts more")
        ] = "lower",
        sigma0: Annotated[Positive, Doc("largest standard deviation of the boost, kJ/mol")] = 6 * KCAL,
        preparation_steps: Annotated[Steps, Doc("steps at the start that are left out of the statistics")] = 400,
        conventional_steps: Annotated[Count, Doc("steps without boost, the preparation included")] = 2000,
        equilibration_steps: Annotated[Steps, Doc("steps with a boost that still adapts; then it stays")] = 4000,
        pace: Annotated[Count, Doc("steps between looks at the energies; a multiple of md.pace")] = 50,
        temperature: Temperature = 300.0,
    ) -> None:
        super().__init__(variables)
        self.threshold, self.sigma0 = threshold, float(sigma0)
        self.preparation_steps, self.conventional_steps = int(preparation_steps), int(conventional_steps)
        self.equilibration_steps = int(equilibration_steps)
        self.pace: int = int(pace)
        self.temperature = float(temperature)
        # Stages end at updates, or with a pace of 10 a stage of 25 steps would never be seen to end.
        self._boost_from = math.ceil(self.conventional_steps / self.pace) * self.pace
        self.production_from = math.ceil((self.conventional_steps + self.equilibration_steps) / self.pace) * self.pace
        self.reset()

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        super().check_options(options)
        conventional, preparation = options["conventional_steps"], options["preparation_steps"]
        if not conventional > preparation:
            raise UqbiasError(
                f"gamd with conventional_steps {conventional} and preparation_steps {preparation}",
                "make the conventional stage the longer one, so that it has steps to take the statistics from",
            )

    @classmethod
    def check_run(cls, options: Mapping[str, Any], steps: int) -> None:
        before = options["conventional_steps"]
        if before >= steps:
            raise UqbiasError(
                f"conventional_steps = {before} with md.steps = {steps}",
                "the boost never begins; take fewer, or more md.steps",
            )

    def energy(self, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        # In single precision the difference of two large energies is exact, their squares are not. With k first, a
        # boost that is switched off stays zero however low E is.
        below = torch.relu(state["threshold"] - x[:, 0])
        return 0.5 * state["k"] * below * below

    def on_new_model(self) -> None:
        """Begin anew: boost and statistics are those of the energies of another model."""
        self.reset()

    def reset(self) -> None:
        self._first: int | None = None
        self._elapsed = 0
        self._samples, self._mean, self._squares = 0, 0.0, 0.0
        self._low, self._high = math.inf, -math.inf
        self._boost(0.0, 0.0, 0.0)

    def _boost(self, threshold: float, k: float, k0: float) -> None:
        self._threshold, self._k, self._k0 = threshold, k, k0
        self._set(threshold=threshold, k=k)

    @property
    def stage(self) -> str:
        """``conventional``, ``equilibration`` or ``production``, as of the last update."""
        if self._elapsed < self._boost_from:
            return "conventional"
        return "equilibration" if self._elapsed < self.production_from else "production"

    @classmethod
    def adapts_for(cls, options: Mapping[str, Any]) -> int:
        return int(options["conventional_steps"] + options["equilibration_steps"])

    def equilibrium_from(self) -> int:
        if self.stage != "production":
            raise UqbiasError(
                f"gamd has not got beyond its {self.stage} stage",
                f"run more than {self.production_from} steps: only production, after them, can be used",
            )
        return self.production_from

    @property
    def parameters(self) -> dict[str, float]:
        """Parameters of the boost and the statistics behind them, kJ/mol; k in mol/kJ, k0 and samples without unit.

        ``sigma_boost`` is the boost's standard deviation k (E_thr - V_avg) σ_V that the statistics promise.
        """
        sigma = self._sigma
        return {
            "threshold": self._threshold,
            "k": self._k,
            "k0": self._k0,
            "v_max": self._high,
            "v_min": self._low,
            "v_avg": self._mean,
            "sigma_v": sigma,
            "sigma_boost": self._k * (self._threshold - self._mean) * sigma,
            "samples": float(self._samples),
        }

    @property
    def _sigma(self) -> float:
        return math.sqrt(self._squares / self._samples) if self._samples else 0.0

    def update(self, step: int, x: NDArray[Any], probe: Probe | None = None) -> None:
        if self.frozen:
            return
        if self._first is not None and step < self._first + self._elapsed:
            self.reset()
        if step <= 0 or step % self.pace:
            return
        if self._first is None:
            self._first = step - self.pace
        before, self._elapsed = self._elapsed, step - self._first
        if self._elapsed <= self.preparation_steps or before >= self.production_from:
            return
        energies = np.asarray(x, dtype=np.float64)[:, 0]
        self._collect(energies[np.isfinite(energies)])
        if self._elapsed >= self._boost_from:
            self._adapt()

    def _collect(self, energies: Array) -> None:
        """Merge the energies [n] into mean and sum of squared deviations: Chan's update, as energies of 1e6 kJ/mol
        with a spread of 10 cancel in a plain sum of squares.
        """
        count = len(energies)
        if not count:
            return
        mean = float(energies.mean())
        shift, total = mean - self._mean, self._samples + count
        self._squares += float(np.square(energies - mean).sum()) + shift * shift * self._samples * count / total
        self._mean += shift * count / total
        self._samples = total
        self._low, self._high = min(self._low, float(energies.min())), max(self._high, float(energies.max()))

    def _adapt(self) -> None:
        spread, sigma = self._high - self._low, self._sigma
        if not spread > LEAST_SPREAD * kt(self.temperature):
            return
        if self.threshold == "upper":
            k0 = (1.0 - self.sigma0 / sigma) * spread / (self._mean - self._low)
            if 0.0 < k0 <= 1.0:
                self._boost(self._low + spread / k0, k0 / spread, k0)
                return
        k0 = min(1.0, self.sigma0 / sigma * spread / (self._high - self._mean))
        self._boost(self._high, k0 / spread, k0)

    def value(self, energy: NDArray[Any]) -> Array:
        """Boost [n] in kJ/mol, float64, at the energies [n] (or [n, 1]) in kJ/mol."""
        below = np.maximum(self._threshold - np.asarray(energy, dtype=np.float64).reshape(-1), 0.0)
        return np.asarray(0.5 * self._k * below * below, dtype=np.float64)

    def checkpoint(self) -> dict[str, NDArray[Any]]:
        first = -1 if self._first is None else self._first
        return {
            "steps": np.array([first, self._elapsed, self._samples], dtype=np.int64),
            "statistics": np.array([self._low, self._high, self._mean, self._squares]),
            "parameters": np.array([self._threshold, self._k, self._k0]),
        }

    def _take(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        first, self._elapsed, self._samples = (int(value) for value in arrays["steps"])
        self._first = None if first < 0 else first
        self._low, self._high, self._mean, self._squares = (float(value) for value in arrays["statistics"])
        self._boost(*(float(value) for value in arrays["parameters"]))
