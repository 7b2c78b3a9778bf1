"""Harmonic restraint on one variable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from uqbias.bias.fixed import FixedBias
from uqbias.errors import UqbiasError


class Restraint(FixedBias):
    """V(x) = ½ kappa (x - at)²: PLUMED's RESTRAINT, with its factor ½, which PLUMED's walls do not have.

    Parameters
    ----------
    at : value of the variable where V is 0.
    kappa : force constant, kJ/mol per squared unit of the variable.
    variables : name of the one variable.
    periods : its period, or None; x - at is to the nearest image, and the force jumps half a period away from ``at``.

    Raises
    ------
    UqbiasError
        If kappa is negative, or a value is not finite.

    Examples
    --------
    >>> import torch
    >>> umbrella = Restraint(at=3.0, kappa=10.0, variables=["phi"], periods=[6.0])
    >>> umbrella.energy(torch.tensor([[2.0], [-2.0]]), umbrella.state())
    tensor([5., 5.])
    """

    kind = "restraint"

    def __init__(
        self,
        *,
        at: float,
        kappa: float,
        variables: Sequence[str] = ("u",),
        periods: Sequence[float | None] | None = None,
    ) -> None:
        if kappa < 0:
            raise UqbiasError(f"restraint with kappa {kappa}", "a restraint that attracts has kappa > 0")
        super().__init__(variables, periods, at=at, kappa=kappa)
        self.at, self.kappa = float(at), float(kappa)

    def energy(self, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        away = self.displacement(x, state["at"])
        return 0.5 * state["kappa"] * away * away
