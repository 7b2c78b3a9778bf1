"""Parallel-bias metadynamics: one variable's metadynamics for each of many, joined so that free energies stay right."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor
from typing_extensions import Doc

from uqbias.bias.base import Array, CompositeBias, ManyNames, Periods, Probe, Reflection, Temperature, finite, within
from uqbias.bias.grid import hermite, joined
from uqbias.bias.metad import BiasFactor, HillKernel, HillPace, HillWidth, MetaD
from uqbias.options import Positive
from uqbias.units import kt
from uqbias.variables.names import LOCAL


class ParallelMetaD(CompositeBias):
    """Parallel-bias metadynamics: a one-dimensional bias on each of K variables at once. All walkers share them.

    V(x) = -k_B T ln (1/K) Σ_i exp(-V_i(x_i)/k_B T) (Pfaendtner and Bonomi, J. Chem. Theory Comput. 11, 5062, 2015;
    with the factor 1/K, as in PLUMED's PBMETAD, so that V is 0 without hills). V_i is a `MetaD` of x_i alone, whose
    hills have the weight of V_i in the sum: h_i = height · exp(-V_i/(k_B T (γ-1))) · exp(-V_i/k_B T)/Σ_j
    exp(-V_j/k_B T), with all V_j before the deposition.

    It is as if a walker drew, again and again, which one of the V_i acts on it, so that each V_i converges as if it
    were alone, to -(1 - 1/γ) F(x_i). Time and memory grow with K, not with a power of it, and the barriers of one
    variable are paid for by its own hills. With one variable it is `MetaD`, to the last digit.

    The time-dependent constant of `uqbias.free_energy.reweighting.reweighting_offset` is joined as V is: with c_i(t) of
    V_i it is C(t) = -k_B T ln (1/K) Σ_i exp(-c_i(t)/k_B T), since exp(-c_i/k_B T) = ⟨exp(-V_i/k_B T)⟩ without a bias.

    Parameters
    ----------
    periods, temperature, reflect_at, kernel : see `MetaD`; k_B T counts even without a bias factor.

    Attributes
    ----------
    metadynamics : the K biases V_i, each with ``hills`` of its own.

    Raises
    ------
    UqbiasError
        If a parameter is out of range.
    """

    kind = "parallel_metadynamics"
    estimator = "tiwary-parrinello"

    def __init__(
        self,
        *,
        variables: ManyNames = (LOCAL,),
        height: Annotated[
            Positive | None,
            Doc("height of a new hill, kJ/mol, which the variables share; null: 1 for each of them"),
        ] = None,
        sigma: HillWidth = 0.3,
        biasfactor: BiasFactor = 10.0,
        pace: HillPace = 50,
        kernel: HillKernel = "gaussian",
        reflect_at: Reflection = "lowest",
        periods: Periods = None,
        temperature: Temperature = 300.0,
    ) -> None:
        self.metadynamics: list[MetaD] = []
        super().__init__(self.metadynamics, variables)
        self.pace: int = int(pace)
        self.temperature = float(temperature)
        height = float(len(self.variables)) if height is None else height
        each = zip(self.variables, self._each(sigma), self._each(reflect_at), self._each(periods), strict=True)
        self.metadynamics += [
            MetaD(
                variables=[name],
                height=height,
                sigma=width,
                biasfactor=biasfactor,
                pace=pace,
                kernel=kernel,
                reflect_at=bound,
                periods=period,
                temperature=temperature,
            )
            for name, width, bound, period in each
        ]
        self.periods = tuple(period for part in self.metadynamics for period in part.periods)

    def energy(self, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        if len(self.periods) == 1:
            return hermite(x, within("0.", state), self.periods)
        values = []
        for periodic in (False, True):
            # Which of the V_i is which does not matter to their sum, and together they cost little more than one.
            if chosen := [index for index, period in enumerate(self.periods) if (period is not None) == periodic]:
                grids = joined([within(f"{index}.", state) for index in chosen])
                columns = torch.stack([x[:, index] for index in chosen], dim=1)
                values.append(hermite(columns.unsqueeze(-1), grids, [self.periods[chosen[0]]]))
        return soft_minimum(torch.cat(values, dim=1), kt(self.temperature))

    def update(self, step: int, x: NDArray[Any], probe: Probe | None = None) -> None:
        if self.frozen or step <= 0 or step % self.pace or not len(rows := finite(x)):
            return
        columns = np.split(rows, len(self.metadynamics), axis=1)
        values = np.stack([part.value(column) for part, column in zip(self.metadynamics, columns, strict=True)], axis=1)
        weights: Array = softmax(-values / kt(self.temperature), axis=1)
        for part, column, weight in zip(self.metadynamics, columns, weights.T, strict=True):
            part.add(step, column, weight)


def soft_minimum(values: Tensor, kt: float) -> Tensor:
    """-k_B T ln (1/K) Σ_i exp(-v_i/k_B T) over the last dimension of ``values`` [..., K], kJ/mol."""
    return -kt * (torch.logsumexp(-values / kt, dim=-1) - math.log(values.shape[-1]))
