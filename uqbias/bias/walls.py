"""Half-harmonic walls on one variable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from uqbias.bias.base import Bias
from uqbias.errors import UqbiasError


class Wall(Bias):
    """V(x) = kappa (x - at)² on one side of ``at``, else 0: PLUMED's walls with EXP=2, without a factor ½.

    Parameters
    ----------
    at : value of the variable where the wall begins.
    kappa : force constant, kJ/mol per squared unit of the variable.
    variables : name of the one variable.
    """

    side: ClassVar[float]

    def __init__(self, *, at: float, kappa: float = 20.0, variables: Sequence[str] = ("u",)) -> None:
        super().__init__(variables)
        if len(self.variables) != 1:
            raise UqbiasError(f"a wall on {list(self.variables)}", "give each variable a wall of its own")
        if kappa < 0:
            raise UqbiasError(f"wall with kappa {kappa}", "a wall that repels has kappa > 0")
        self.at, self.kappa = float(at), float(kappa)
        self._state = {"at": torch.tensor([self.at]), "kappa": torch.tensor([self.kappa])}

    def energy(self, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        beyond = torch.relu(self.side * (x[:, 0] - state["at"]))
        return state["kappa"] * beyond * beyond


class UpperWall(Wall):
    """V(x) = kappa (x - at)² for x > at, else 0: PLUMED's UPPER_WALLS."""

    kind = "upper_wall"
    side = 1.0


class LowerWall(Wall):
    """V(x) = kappa (x - at)² for x < at, else 0: PLUMED's LOWER_WALLS."""

    kind = "lower_wall"
    side = -1.0
