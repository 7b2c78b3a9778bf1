"""OPES: a bias from the probability density of the variables, estimated on the fly by compressed kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Gt
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field
from torch import Tensor
from typing_extensions import Doc

from uqbias.bias.base import ONE_EACH, Array, Names, Periods, Probe, Reflection, Temperature, Width, prefixed, within
from uqbias.bias.compressed_kernels import CompressedKernels
from uqbias.bias.grid import GrowingGrid, hermite
from uqbias.bias.grid_bias import KernelBias
from uqbias.errors import UqbiasError
from uqbias.options import Count, NotNegative, Positive, infinite
from uqbias.units import kt

#: Default of sigma_min as a part of the first sigma, for one, two, three variables. Silverman's rule reaches 0.2 at an
#: effective sample size of 4e3 in 1D and 2e4 in 2D: narrower kernels would resolve noise. A table of three variables
#: with that resolution does not fit into memory.
SIGMA_MIN = (0.2, 0.2, 0.5)
#: Grid points per sigma_min. With s = spacing/sigma, interpolation changes P by 3/384 s⁴ at the centre of the narrowest
#: kernel (8e-7, 3e-5, 5e-4) and by 2.8 s⁴ where it ends at 6 sigma (3e-4, 1e-2, 2e-1), per variable; V by k_B T times
#: that. Wider kernels, which most are, are resolved better by the fourth power of their width. Measured after hundreds
#: of kernels, against their explicit sum: V within 1e-4 (1D) and 3e-3 kJ/mol (2D) where P/Z > 100 ε; in the cells where
#: an outermost kernel ends, 2e-3 and 0.2 kJ/mol at most.
POINTS_PER_SIGMA_MIN = (10, 4, 2)
#: Single precision cannot hold P/Z next to a smaller ε.
SMALLEST_EPSILON = 1e-36


class OPES(KernelBias):
    """On-the-fly probability enhanced sampling, as PLUMED's OPES_METAD. All walkers share one bias.

    V(x) = k_B T (1 - 1/γ) log(P(x)/Z + ε) (Invernizzi and Parrinello, J. Phys. Chem. Lett. 11, 2731, 2020).
    P(x) = Σ_k G_k(x) / Σ_k w_k is the unbiased density, estimated from the biased run with weights w_k = exp(V/k_B T),
    Z the mean of P over the kernel centres, ε = exp(-barrier/(k_B T (1 - 1/γ))). A kernel G_k is a Gaussian that is
    truncated at √(2 barrier/(k_B T (1 - 1/γ))) sigma and shifted to be zero there. Its sigma follows Silverman's rule
    for the effective sample size n, sigma · (n (D+2)/4)^(-1/(D+4)), not below ``sigma_min``. A kernel whose centre is
    within ``compression_threshold`` sigma of another is merged into it, moments kept.

    ``exploratory``: OPES_METAD_EXPLORE (Invernizzi and Parrinello, J. Chem. Theory Comput. 18, 3988, 2022): the
    density is that of the biased run itself, w_k = 1, and V(x) = k_B T (γ - 1) log(P(x)/Z + ε), with kernels wider by
    √γ and truncated at √(2 barrier/k_B T).

    This is PLUMED's algorithm for OPES_METAD and OPES_METAD_EXPLORE with SIGMA given, step by step: every ``pace``
    steps, but not at step 0, each walker adds a kernel. Weights of all kernels of one step come from the bias as it was
    before that step, as with WALKERS_MPI; the walkers' kernels are then merged one after the other. The force is the
    exact gradient of V, which PLUMED's is not close to where a kernel is truncated.

    The sum of the compressed kernels is kept on a grid that grows, so that a step costs the same whatever their
    number; V and forces come from there. Weights and Z come from the kernels themselves.

    Parameters
    ----------
    periods : a kernel counts by the nearest image, as in PLUMED.
    sigma_min : None for 0.2 (three variables: 0.5) of the width of the first kernels. It sets the grid spacing.
    compression_threshold : 0 merges nothing.
    reflect_at : the density is mirrored there (Silverman, Density Estimation for Statistics and Data Analysis, 1986,
        section 2.10), and so is V; without that the density is underestimated by up to one half at the bound.

    Attributes
    ----------
    grid : Σ_k G_k on its grid, float64.
    epsilon : ε.
    cutoff : where kernels end, in units of sigma.
    zed : Z; like PLUMED's opes.zed.

    Raises
    ------
    UqbiasError
        If an option is out of range.
    """

    kind = "opes"
    _counter: int
    _sum_weights: float
    _sum_weights2: float

    def __init__(
        self,
        *,
        variables: Names = ("driver",),
        barrier: Annotated[Positive, Doc("free energy to be overcome, kJ/mol")] = 40.0,
        sigma: Annotated[
            Width, Doc("width of the first kernels: what the variable fluctuates by in a basin (or a list)")
        ] = 0.3,
        pace: Annotated[Count, Doc("steps between kernels of one walker; a multiple of md.pace")] = 100,
        biasfactor: Annotated[
            float | None,
            Gt(1),
            Field(allow_inf_nan=True),
            BeforeValidator(infinite),
            Doc("γ; inf: a flat target; null: barrier/kT"),
        ] = None,
        sigma_min: Annotated[
            Width | None, ONE_EACH, Doc("kernels are never narrower; null: a fifth of the first ones")
        ] = None,
        compression_threshold: Annotated[
            NotNegative, Doc("kernels closer than this, in units of sigma, are merged")
        ] = 1.0,
        exploratory: Annotated[bool, Doc("OPES_METAD_EXPLORE: explore fast, converge slowly")] = False,
        reflect_at: Reflection = "lowest",
        periods: Periods = None,
        temperature: Temperature = 300.0,
    ) -> None:
        super().__init__(variables)
        self.barrier, self.temperature = float(barrier), float(temperature)
        self.pace: int = int(pace)
        self.exploratory = bool(exploratory)
        self._kt = kt(self.temperature)
        self.biasfactor: float = self.barrier / self._kt if biasfactor is None else float(biasfactor)
        if not self.biasfactor > 1:
            raise UqbiasError(
                f"opes with biasfactor {self.biasfactor:g} (barrier/k_B T)", "choose a barrier above k_B T"
            )
        if self.exploratory and math.isinf(self.biasfactor):
            raise UqbiasError(
                "exploratory opes with biasfactor inf", "give a finite one: the target must be well-tempered"
            )
        #: V in units of k_B T per log(P/Z + ε).
        self._prefactor = self.biasfactor - 1 if self.exploratory else 1 - 1 / self.biasfactor
        self.epsilon = math.exp(-self.barrier / (self._kt * self._prefactor))
        self.cutoff = math.sqrt(2 * self.barrier / (self._kt * (1 if self.exploratory else self._prefactor)))
        if self.epsilon < SMALLEST_EPSILON:
            raise UqbiasError(
                f"opes with barrier {self.barrier:g} kJ/mol, {self.barrier / self._kt:.0f} k_B T",
                f"choose one below {-math.log(SMALLEST_EPSILON) * self._kt * self._prefactor:.0f} kJ/mol",
            )
        self.compression_threshold = float(compression_threshold)
        if not self.compression_threshold < self.cutoff:
            raise UqbiasError(
                f"opes with compression_threshold {compression_threshold}",
                f"choose one from 0 to below the kernels' end at {self.cutoff:.3g} sigma",
            )
        count = len(self.variables)
        self.sigma = np.array(self._each(sigma), dtype=np.float64)
        #: Width of the first kernels: the target of the exploratory form is broader.
        self._sigma0 = self.sigma * (math.sqrt(self.biasfactor) if self.exploratory else 1.0)
        narrowest = SIGMA_MIN[count - 1] * self._sigma0 if sigma_min is None else self._each(sigma_min)
        self.sigma_min = np.array(narrowest, dtype=np.float64)
        for least, first in zip(self.sigma_min, self._sigma0, strict=True):
            if least > first:
                raise UqbiasError(
                    f"opes with sigma_min {least:g} above the first kernels' width {first:g}", "give a smaller one"
                )
        self.periods, self.reflect_at = tuple(self._each(periods)), self._bounds(reflect_at)
        for name, period, bound in zip(self.variables, self.periods, self.reflect_at, strict=True):
            if period is not None and bound is not None:
                raise UqbiasError(
                    f"opes with reflect_at {bound} for '{name}', which is periodic", "give one of the two"
                )
        spacing = self.sigma_min / POINTS_PER_SIGMA_MIN[count - 1]
        self.grid = GrowingGrid(spacing.tolist(), self._state, self.periods, names=self.variables)
        self._density = CompressedKernels(self.periods, self.cutoff, self.compression_threshold, self.reflect_at)
        self._set(norm=1.0, epsilon=self.epsilon)
        self._forget()

    def energy(self, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        folded = [
            column if bound is None else bound + torch.abs(column - bound)
            for column, bound in zip(x.unbind(dim=1), self.reflect_at, strict=True)
        ]
        # Next to the end of a kernel the interpolant can fall below zero by a small part of ε.
        density = torch.relu(hermite(torch.stack(folded, dim=1), state, self.periods)) / state["norm"]
        return self._kt * self._prefactor * torch.log(density + state["epsilon"])

    @property
    def kernels(self) -> NDArray[Any]:
        """Record array of the compressed kernels, see `uqbias.bias.compressed_kernels.kernel_type`."""
        return self._density.records()

    @property
    def neff(self) -> float:
        """Effective sample size (Σw)²/Σw², as PLUMED's opes.neff."""
        return float((1 + self._sum_weights) ** 2 / (1 + self._sum_weights2))

    @property
    def rct(self) -> float:
        """k_B T log of the mean weight in kJ/mol, as PLUMED's opes.rct; not fit for reweighting."""
        return self._kt * math.log(self._sum_weights / self._counter)

    def update(self, step: int, x: NDArray[Any], probe: Probe | None = None) -> None:
        centres = self._folded(self._due(step, x, self.pace))
        if not len(centres):
            return
        probability = self._density.evaluate(centres) / self._norm
        weights = (probability + self.epsilon) ** self._prefactor
        counter = self._counter + len(centres)
        sums = self._sum_weights + float(weights.sum()), self._sum_weights2 + float(np.square(weights).sum())
        size = counter if self.exploratory else (1 + sums[0]) ** 2 / (1 + sums[1])
        d = len(self.variables)
        sigma = np.maximum(self._sigma0 * (size * (d + 2) / 4) ** (-1 / (d + 4)), self.sigma_min)
        # A normalised Gaussian is lower by 1/sigma; what is common to all kernels goes out with Z.
        heights = (np.ones(len(centres)) if self.exploratory else weights) * np.prod(self._sigma0 / sigma)
        self._density.add(np.column_stack([heights, centres, np.tile(sigma, (len(centres), 1))]), self.grid)
        self._counter = counter
        self._sum_weights, self._sum_weights2 = sums
        self._set_norm()

    def _set_norm(self) -> None:
        """Z, and its product with the norm of the kernels: the mean of Σ_k G_k over the kernel centres."""
        kernels = self._density
        self._norm = kernels.sum_at_centres / len(kernels.rows) if len(kernels.rows) else 1.0
        self.zed = self._norm / (self._counter if self.exploratory else self._sum_weights) if len(kernels.rows) else 1.0
        self._set(norm=self._norm)

    def _folded(self, x: NDArray[Any]) -> Array:
        """Copy [n, D] of ``x`` with what is below a bound mirrored; the density is the same there."""
        folded = np.array(x, dtype=np.float64).reshape(-1, len(self.variables))
        for d, bound in enumerate(self.reflect_at):
            if bound is not None:
                folded[:, d] = bound + np.abs(folded[:, d] - bound)
        return folded

    def value(self, x: NDArray[Any]) -> Array:
        """Bias V [n] in kJ/mol, float64, at ``x`` [n, D] (or [n] for one variable)."""
        density = np.maximum(self.grid.value(self._folded(x)), 0.0) / self._norm
        return np.asarray(self._kt * self._prefactor * np.log(density + self.epsilon), dtype=np.float64)

    def _centres(self) -> Array:
        if not len(self._density.rows):
            raise UqbiasError("no kernels, no free energy", "run with the bias first")
        return np.asarray(self.kernels["centre"], dtype=np.float64)

    def _estimate(self, x: Array) -> Array:
        """F(x) = -k_B T log P(x), of the exploratory form less V(x).

        Smoothed by the kernels, which lift minima and lower barriers by about sigma² |F''|/2.
        """
        self._centres()
        with np.errstate(divide="ignore"):
            energy = -self._kt * np.log(np.maximum(self.grid.value(self._folded(x)), 0.0))
        # Its run is in equilibrium under V with the ε that V has; -γ k_B T log P would hold for ε = 0 only.
        return np.asarray(energy - self.value(x) if self.exploratory else energy, dtype=np.float64)

    def _forget(self) -> None:
        self._density.clear()
        # As if one sample with the weight of the bias of the beginning, -barrier, had been seen.
        self._counter, self._sum_weights = 1, math.exp(-self.barrier / self._kt)
        self._sum_weights2 = self._sum_weights**2
        self._set_norm()

    def reset(self) -> None:
        super().reset()
        self._forget()

    def _options(self) -> dict[str, Array]:
        """What a checkpoint must agree in; NaN for None."""
        names = ["barrier", "biasfactor", "temperature", "exploratory", "compression_threshold"]
        names += ["sigma", "sigma_min", "periods", "reflect_at"]
        return {name: np.array(getattr(self, name), dtype=np.float64) for name in names}

    def checkpoint(self) -> dict[str, NDArray[Any]]:
        return {
            **prefixed("option_", self._options()),
            "origin": self.grid.origin.copy(),
            "table": self.grid.table.copy(),
            "kernels": self._density.rows.copy(),
            "counter": np.array(self._counter),
            "sums": np.array([self._sum_weights, self._sum_weights2, self._density.sum_at_centres]),
        }

    def _take(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._agree(within("option_", arrays), self._options())
        self.grid.load(arrays["origin"], arrays["table"])
        self._density.rows = np.array(arrays["kernels"], dtype=np.float64)
        self._counter = int(arrays["counter"])
        self._sum_weights, self._sum_weights2, self._density.sum_at_centres = map(float, arrays["sums"])
        self._set_norm()
