"""Biases that never change: walls, a harmonic restraint, uncertainty-driven dynamics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from uqbias.bias.base import Bias
from uqbias.bias.options import per_variable, positive
from uqbias.errors import UqbiasError


class FixedBias(Bias):
    """A bias on one variable whose state is a few constants, so that their values are inputs of the graph.

    Parameters
    ----------
    variables : name of the one variable.
    periods : its period, or None where it has none.
    constants : the state by name; kept in double precision on the host.

    Raises
    ------
    UqbiasError
        For more than one variable, or a value that is not finite.
    """

    def __init__(
        self, variables: Sequence[str], periods: Sequence[float | None] | None = None, **constants: float
    ) -> None:
        super().__init__(variables)
        for name, value in constants.items():
            if not math.isfinite(value):
                raise UqbiasError(f"{self.kind} with {name} {value}", "give a finite number")
        if len(self.variables) != 1:
            raise UqbiasError(
                f"{self.kind} on the variables {list(self.variables)}", "give each variable one of its own"
            )
        (self.period,) = per_variable(self.kind, "periods", periods, 1)
        if self.period is not None:
            positive(self.kind, "periods", self.period)
        self._constants = {name: float(value) for name, value in constants.items()}
        self.to(self._dtype, self._device)

    @property
    def periods(self) -> tuple[float | None]:
        """Period of each variable, None where it has none."""
        return (self.period,)

    def displacement(self, x: Tensor, at: Tensor) -> Tensor:
        """Difference x - at, [W], to the nearest image of ``at`` where the variable has a period."""
        away = x[:, 0] - at
        return away if self.period is None else away - self.period * torch.round(away / self.period)

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> FixedBias:
        self._dtype, self._device = dtype, torch.device(device)
        for name, value in self._constants.items():
            self._state[name] = torch.tensor([value], dtype=dtype, device=device)
        return self


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
        variables: Sequence[str] = ("driver",),
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
        variables: Sequence[str] = ("driver",),
        periods: Sequence[float | None] | None = None,
    ) -> None:
        if kappa < 0:
            raise UqbiasError(f"restraint with kappa {kappa}", "a restraint that attracts has kappa > 0")
        super().__init__(variables, periods, at=at, kappa=kappa)
        self.at, self.kappa = float(at), float(kappa)

    def energy(self, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        away = self.displacement(x, state["at"])
        return 0.5 * state["kappa"] * away * away


class UDD(FixedBias):
    r"""Bias of Kulichenko et al., Nat. Comput. Sci. 3, 230 (2023), equation 4.

    .. math:: V = A \left[\exp\left(-\frac{\sigma_E^2}{N_M N_A B^2}\right) - 1\right], \qquad
              \sigma_E^2 = \tfrac12 \sum_{m=1}^{N_M} (E_m - \bar E)^2 = \tfrac12 (N_M - 1)\, u^2

    Note the factor ½ in their σ_E² (equation 2). The variable u is here the committee's standard deviation with N_M - 1
    in the denominator, as the uncertainty ``committee`` has it, so V is -A (1 - exp(-u²/2w²)) with
    w = B √(N_A N_M / (N_M - 1)). V is 0 where the members agree, -A where they do not at all, and steepest at u = w.
    The paper advises an A a few times the barrier of interest, and a B that makes the bias force about a third of the
    model's; its glycine has A = 15.4 and B = 0.12 kcal/mol, which are the defaults.

    Parameters
    ----------
    A : depth, kJ/mol.
    B : width, in units of u per √atom.
    n_members, n_atoms : N_M and N_A. Without both, w is B itself, and u may be any uncertainty.
    variables : name of the one variable.

    Raises
    ------
    UqbiasError
        If a parameter is out of range.

    Examples
    --------
    >>> import torch
    >>> bias = UDD(A=60.0, B=0.5, n_members=8, n_atoms=10)
    >>> bias.energy(torch.tensor([[0.0], [1.69], [100.0]]), bias.state())
    tensor([ -0.0000, -23.6015, -60.0000])
    """

    kind = "udd"

    def __init__(
        self,
        *,
        A: float = 64.4,
        B: float = 0.50,
        n_members: int | None = None,
        n_atoms: int | None = None,
        variables: Sequence[str] = ("driver",),
    ) -> None:
        for name, value in (("A", A), ("B", B)):
            positive(self.kind, name, value)
        width = float(B)
        if (n_members is None) != (n_atoms is None):
            raise UqbiasError(f"udd with n_members {n_members} and n_atoms {n_atoms}", "give both, or none")
        if n_members is not None and n_atoms is not None:
            if n_members < 2 or n_atoms < 1:
                raise UqbiasError(f"udd with n_members {n_members} and n_atoms {n_atoms}", "a committee has 2 or more")
            width *= math.sqrt(n_atoms * n_members / (n_members - 1))
        super().__init__(variables, A=A, width=width)

    def energy(self, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        scaled = x[:, 0] / state["width"]
        return state["A"] * torch.expm1(-0.5 * scaled * scaled)
