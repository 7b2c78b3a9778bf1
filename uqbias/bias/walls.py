"""Walls on the driver."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from uqbias.bias.base import Bias
from uqbias.errors import UqbiasError


class UpperWall(Bias):
    """V(u) = kappa (u - at)² for u > at, else 0: PLUMED's UPPER_WALLS with EXP=2, without a factor ½.

    Parameters
    ----------
    at : value of the driver where the wall begins.
    kappa : force constant, kJ/mol per squared unit of the driver.
    """

    kind = "upper_wall"

    def __init__(self, *, at: float, kappa: float = 20.0) -> None:
        super().__init__()
        if kappa < 0:
            raise UqbiasError(f"wall with kappa {kappa}", "a wall that repels has kappa > 0")
        self.at, self.kappa = float(at), float(kappa)
        self._state = {"at": torch.tensor([self.at]), "kappa": torch.tensor([self.kappa])}

    def energy(self, u: Tensor, E: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        beyond = torch.relu(u - state["at"])
        return state["kappa"] * beyond * beyond
