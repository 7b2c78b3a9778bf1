"""Half-harmonic walls on one variable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from uqbias.bias.fixed import FixedBias
from uqbias.errors import UqbiasError


class Wall(FixedBias):
    """V(x) = kappa (x - at)² on one side of ``at``, else 0: PLUMED's walls with EXP=2, without a factor ½.

    Parameters
    ----------
    at : value of the variable where the wall begins.
    kappa : force constant, kJ/mol per squared unit of the variable.
    variables : name of the one variable.
    periods : its period, or None. With one, the wall reaches from ``at`` half a period far, as in PLUMED.

    Raises
    ------
    UqbiasError
        If kappa is negative, or a value is not finite.
    """

    side: ClassVar[float]

    def __init__(
        self,
        *,
        at: float,
        kappa: float = 20.0,
        variables: Sequence[str] = ("u",),
        periods: Sequence[float | None] | None = None,
    ) -> None:
        if kappa < 0:
            raise UqbiasError(f"{self.kind} with kappa {kappa}", "a wall that repels has kappa > 0")
        super().__init__(variables, periods, at=at, kappa=kappa)
        self.at, self.kappa = float(at), float(kappa)

    def energy(self, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        beyond = torch.relu(self.side * self.displacement(x, state["at"]))
        return state["kappa"] * beyond * beyond


class UpperWall(Wall):
    """V(x) = kappa (x - at)² for x > at, else 0: PLUMED's UPPER_WALLS."""

    kind = "upper_wall"
    side = 1.0


class LowerWall(Wall):
    """V(x) = kappa (x - at)² for x < at, else 0: PLUMED's LOWER_WALLS."""

    kind = "lower_wall"
    side = -1.0
