"""Extended-system adaptive biasing force, alone and with well-tempered metadynamics, and the CZAR estimator."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

import numpy as np
import torch
from annotated_types import Gt, MaxLen, MinLen
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Doc

from uqbias.bias.base import Array, Extended, Periods, Probe, Temperature, finite, nearest_image, prefixed, within
from uqbias.bias.czar import Bins
from uqbias.bias.grid import GrowingGrid, hermite
from uqbias.bias.grid_bias import GridBias
from uqbias.bias.metad import MetaD
from uqbias.options import Count, Positive, options_of
from uqbias.units import kt
from uqbias.variables.names import EXTENDED

_HILLS = "hills."


class ExtendedABF(GridBias):
    """Adaptive biasing force on an extended variable λ that follows a variable ξ. All walkers share one bias.

    V(ξ, λ) = k/2 (ξ - λ)² + V_abf(λ) with k = k_B T/σ² (Lesage, Lelièvre, Stoltz and Hénin, J. Phys. Chem. B 121,
    3676, 2017). Every ``pace`` steps each walker adds its force on λ, k (ξ - λ), to the mean of the bin that λ is in.
    The slope of V_abf at the centre of a bin is this mean times min(1, n/full_samples), so that on average no force is
    left on λ; between centres the slope is linear and V_abf its integral. The variable needs no known range: bins are
    added as λ gets there, and V_abf is flat where λ has never been.

    Every ``pace`` steps ξ is noted too, for the free energy along ξ itself by CZAR (see `uqbias.bias.czar.czar`).

    Parameters
    ----------
    variables : ξ; the extended variable is called ``"extended_" + name``.
    sigma : σ, thermal width of the coupling, in units of ξ. Make it narrower than the barriers: under a wider one ξ
        is free to sit on either side of a barrier at the same λ, and crosses it no faster.
    mass : mass of λ, dalton nm² per squared unit of ξ. The default is that of Tan, Dietschreit and Gómez-Bombarelli
        (J. Chem. Phys. 162, 034114, 2025), 50 in ASE's dalton Å².
    bin_width : for a periodic variable a little less, so that it divides the period.
    pace : steps between updates, too.

    Attributes
    ----------
    grid : V_abf on its grid, float64; the grid points are the centres of the bins of λ.
    coupling : k, kJ/mol per squared unit of ξ.

    Raises
    ------
    UqbiasError
        If an option is out of range.
    """

    kind = "eabf"
    estimator = "czar"
    follows = True

    def __init__(
        self,
        *,
        variables: Annotated[Sequence[str], MinLen(1), MaxLen(1), Doc("name of the one variable to follow")] = (
            "driver",
        ),
        sigma: Annotated[Positive, Doc("thermal width of the coupling kT/σ², in units of the variable")] = 0.5,
        mass: Annotated[
            Positive, Doc("mass of the extended variable, dalton nm² per squared unit of the variable")
        ] = 0.5,
        bin_width: Annotated[Positive, Doc("width of the bins of the mean force, in units of the variable")] = 0.1,
        full_samples: Annotated[Count, Doc("samples from which on all of the mean force acts")] = 100,
        pace: Annotated[Count, Doc("steps between samples; a multiple of md.pace")] = 50,
        periods: Periods = None,
        temperature: Temperature = 300.0,
    ) -> None:
        name = variables if isinstance(variables, str) else variables[0]
        super().__init__((name, f"{EXTENDED}{name}"))
        self.period: float | None = self._each(periods)[0]
        self.sigma, self.temperature = float(sigma), float(temperature)
        self.full_samples = int(full_samples)
        self.coupling = kt(self.temperature) / self.sigma**2
        self.sample_pace = int(pace)
        self.extended = (Extended(name=self.variables[1], of=self.variables[0], mass=float(mass)),)
        self._set(coupling=self.coupling)
        self.grid = GrowingGrid([float(bin_width)], self._state, [self.period])
        self._forces = Bins(bin_width, self.period)  # of λ, with the sum of k (ξ - λ)
        self._deviations = Bins(bin_width, self.period)  # of ξ, with the sum of λ - ξ

    @classmethod
    def options_for(cls, widths: Sequence[float]) -> dict[str, Any]:
        # The same motion of the extended variable in units of the width, whatever the variable.
        (width,) = widths
        usual = {name: option.default for name, option in options_of(cls).items()}
        return {
            "sigma": usual["sigma"] * width,
            "bin_width": usual["bin_width"] * width,
            "mass": usual["mass"] / width**2,
        }

    @property
    def pace(self) -> int:  # type: ignore[override]
        """Steps between updates."""
        return self.sample_pace

    @property
    def periods(self) -> tuple[float | None, float | None]:
        """Period of each variable, None where it has none."""
        return (self.period, self.period)

    def energy(self, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        stretch = nearest_image(x[:, 0] - x[:, 1], self.period)
        return 0.5 * state["coupling"] * stretch * stretch + hermite(x[:, 1:2], state, (self.period,))

    def update(self, step: int, x: NDArray[Any], probe: Probe | None = None) -> None:
        rows = self._due(step, x, self.sample_pace)
        if not len(rows):
            return
        xi, extended = rows[:, 0], rows[:, 1]
        deviation = nearest_image(extended - xi, self.period)
        # Room in both first: a variable that has run away must not leave one of them changed.
        self._forces.cover(extended)
        self._deviations.cover(xi)
        self._forces.add(extended, -self.coupling * deviation)
        self._deviations.add(xi, deviation)
        self._integrate()

    def _integrate(self) -> None:
        """Make V_abf of the mean forces."""
        bins = self._forces
        sampled = bins.weights > 0
        centres = bins.centres[sampled]
        mean = bins.mean(empty=0.0)[sampled]
        ramp = np.minimum(1.0, bins.weights[sampled] / self.full_samples)
        # One empty bin on either side: the slope falls to zero across it, not at its edge.
        self.grid.cover(centres[:1] - bins.width, centres[-1:] + bins.width)
        places = np.rint((centres - self.grid.origin[0]) / bins.width).astype(np.int64)
        self.grid.table[:, 1] = 0.0
        self.grid.table[places, 1] = ramp * mean
        if self.period is not None:
            # A potential on a ring has no mean force around it; what there is, is noise or bins that wait for samples.
            self.grid.table[:, 1] -= self.grid.table[:, 1].mean()
        slopes = self.grid.table[:, 1]
        # With the trapezoidal rule between the points the cubic Hermite interpolant is a parabola, its slope linear.
        rise = 0.5 * self.grid.spacing[0] * (slopes[1:] + slopes[:-1])
        values = np.concatenate([[0.0], np.cumsum(rise)])
        self.grid.table[:, 0] = values - values.min()
        self.grid.push()

    def value(self, extended: NDArray[Any]) -> Array:
        """V_abf [n] in kJ/mol, float64, at ``extended`` [n]: values of λ."""
        return self.grid.value(extended)

    def mean_force(self) -> tuple[Array, Array]:
        """Gradient of the free energy along ξ by CZAR.

        Returns
        -------
        xi : [n] centres of the bins between the outermost samples.
        gradient : [n] dF/dξ, kJ/mol per unit of ξ: the mean force with the sign turned; NaN in bins without a sample.
        """
        centres, gradient, _ = self._deviations.czar(self.coupling, kt(self.temperature), self.variables[0])
        return centres, gradient

    def free_energy(self, xi: NDArray[Any] | None = None) -> tuple[Array, Array]:
        """Free energy along ξ by CZAR; lowest is 0.

        It needs neither a converged bias nor the value of it, but walkers that are in equilibrium at their λ, and no
        bias on anything but λ: with one (GaMD, a wall on ξ) take `uqbias.bias.czar.czar_series` with weights.

        Parameters
        ----------
        xi : [n] where to give it, linear between the centres of bins with samples; the centres of all bins if None.

        Returns
        -------
        xi : [n].
        F : [n] kJ/mol; inf in bins without a sample.
        """
        centres, _, F = self._deviations.czar(self.coupling, kt(self.temperature), self.variables[0])
        if xi is None:
            return centres, F
        at, known = np.asarray(xi, dtype=np.float64), np.isfinite(F)
        between = np.interp(at, centres[known], F[known], period=self.period)
        F = np.where(self._deviations.sampled(at), between, np.inf)
        return at, F - (F.min() if np.isfinite(F).any() else 0.0)

    def reset(self) -> None:
        super().reset()
        self._forces.clear()
        self._deviations.clear()

    def checkpoint(self) -> dict[str, NDArray[Any]]:
        return {
            "settings": np.array([self.grid.spacing[0], self.sigma, self.temperature]),
            "origin": self.grid.origin.copy(),
            "table": self.grid.table.copy(),
            **prefixed("force_", self._forces.checkpoint()),
            **prefixed("deviation_", self._deviations.checkpoint()),
        }

    def _take(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        present = {"bin_width": self.grid.spacing[0], "sigma": self.sigma, "temperature": self.temperature}
        self._agree(dict(zip(present, arrays["settings"], strict=True)), present)
        self.grid.load(arrays["origin"], arrays["table"])
        self._forces.restore(within("force_", arrays))
        self._deviations.restore(within("deviation_", arrays))


class WellTemperedExtendedABF(ExtendedABF):
    """Adaptive biasing force as of ``eabf``, and well-tempered metadynamics on the extended variable.

    V = k/2 (ξ - λ)² + V_abf(λ) + V_meta(λ), k and V_abf as of `ExtendedABF` (Fu, Zhang, Chen, Shao, Chipot and Cai,
    J. Phys. Chem. Lett. 9, 4738, 2018): the hills push λ out of bins whose mean force is not known yet, the adaptive
    force flattens those that are.

    Parameters
    ----------
    of_extended : options of `ExtendedABF`.
    height, hill_sigma, biasfactor, hill_pace : height, sigma, biasfactor and pace of the `MetaD` on λ.

    Attributes
    ----------
    metadynamics : the bias of the hills.
    """

    kind = "wtm_eabf"

    def __init__(
        self,
        *,
        height: Annotated[Positive, Doc("height of a new hill, kJ/mol")] = 1.0,
        hill_sigma: Annotated[Positive, Doc("width of a hill, in units of the variable")] = 0.3,
        biasfactor: Annotated[float | None, Gt(1), Doc("γ of the hills; null: they keep their height")] = 10.0,
        hill_pace: Annotated[Count, Doc("steps between hills of one walker; a multiple of md.pace")] = 50,
        **of_extended: Any,
    ) -> None:
        super().__init__(**of_extended)
        self.metadynamics = MetaD(
            variables=self.variables[1:],
            periods=[self.period],
            height=height,
            sigma=hill_sigma,
            biasfactor=biasfactor,
            pace=hill_pace,
            temperature=self.temperature,
        )
        self.state()

    @property
    def pace(self) -> int:  # type: ignore[override]
        """Greatest common divisor of the paces of samples and hills."""
        return math.gcd(self.sample_pace, self.metadynamics.pace)

    @classmethod
    def options_for(cls, widths: Sequence[float]) -> dict[str, Any]:
        return {**super().options_for(widths), "hill_sigma": widths[0]}

    def state(self) -> dict[str, Tensor]:
        self._state |= prefixed(_HILLS, self.metadynamics.state())
        return self._state

    def energy(self, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        return super().energy(x, state) + self.metadynamics.energy(x[:, 1:2], within(_HILLS, state))

    def update(self, step: int, x: NDArray[Any], probe: Probe | None = None) -> None:
        super().update(step, x, probe)
        rows = finite(x)
        if self.frozen or not len(rows):
            return
        # OpenMM does not wrap particles, and a HILLS file holds values within the period.
        self.metadynamics.update(step, nearest_image(rows[:, 1:2], self.period))
        self.state()

    def value(self, extended: NDArray[Any]) -> Array:
        """V_abf + V_meta [n] in kJ/mol, float64, at ``extended`` [n]: values of λ."""
        return super().value(extended) + self.metadynamics.value(extended)

    def reset(self) -> None:
        super().reset()
        self.metadynamics.reset()

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Self:
        super().to(dtype, device)
        self.metadynamics.to(dtype, device)
        self.state()
        return self

    def checkpoint(self) -> dict[str, NDArray[Any]]:
        return {**super().checkpoint(), **prefixed(_HILLS, self.metadynamics.checkpoint())}

    def _take(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.metadynamics.restore(within(_HILLS, arrays))
        super()._take(arrays)
