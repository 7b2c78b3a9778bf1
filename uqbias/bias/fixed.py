"""Biases that never change: walls, a harmonic restraint, uncertainty-driven dynamics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor
from typing_extensions import Doc

from uqbias.bias.base import Bias, OneName, Periods, nearest_image
from uqbias.errors import UqbiasError
from uqbias.options import Count, Positive
from uqbias.uncertainty.base import WALL

Stiffness = Annotated[Positive, Doc("kJ/mol per squared unit of the variable")]
WallBegins = Annotated[float, Doc("value of the variable where the wall begins")]


class FixedBias(Bias):
    """A bias on one variable whose state is a few constants, so that their values are inputs of the graph.

    Parameters
    ----------
    variables : name of the one variable.
    periods : its period, or None where it has none.
    constants : the state by name; kept in double precision on the host.
    """

    def __init__(self, variables: Sequence[str], periods: Any = None, **constants: float) -> None:
        super().__init__(variables)
        (self.period,) = self._each(periods)
        self._set(**constants)

    @property
    def periods(self) -> tuple[float | None]:
        """Period of each variable, None where it has none."""
        return (self.period,)

    def displacement(self, x: Tensor, at: Tensor) -> Tensor:
        """Difference x - at, [W], to the nearest image of ``at`` where the variable has a period."""
        return nearest_image(x[:, 0] - at, self.period)


class Harmonic(FixedBias):
    """A harmonic potential about a value ``at`` of the variable; subclasses say on which side it acts."""

    def __init__(
        self,
        *,
        variables: OneName = ("driver",),
        at: Annotated[float, Doc("value of the variable that it is held at")],
        kappa: Stiffness,
        periods: Periods = None,
    ) -> None:
        super().__init__(variables, periods, at=at, kappa=kappa)
        self.at, self.kappa = float(at), float(kappa)


class Restraint(Harmonic):
    """Harmonic restraint ½ κ (x − at)², as PLUMED's RESTRAINT. The factor ½ is one that PLUMED's walls do not have.

    Parameters
    ----------
    periods : x - at is to the nearest image, and the force jumps half a period away from ``at``.

    Examples
    --------
    >>> import torch
    >>> umbrella = Restraint(at=3.0, kappa=10.0, variables=["phi"], periods=[6.0])
    >>> umbrella.energy(torch.tensor([[2.0], [-2.0]]), umbrella.state())
    tensor([5., 5.])
    """

    kind = "restraint"

    def energy(self, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        away = self.displacement(x, state["at"])
        return 0.5 * state["kappa"] * away * away


class LowerWall(Harmonic):
    """Wall κ (x − at)² below `at`, as PLUMED's LOWER_WALLS. With EXP=2, and without a factor ½.

    Parameters
    ----------
    periods : with one, the wall reaches from ``at`` half a period far, as in PLUMED.
    """

    kind = "lower_wall"
    side: ClassVar[float] = -1.0

    def __init__(self, *, at: WallBegins, kappa: Stiffness = 20.0, **options: Any) -> None:
        super().__init__(at=at, kappa=kappa, **options)

    def energy(self, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        beyond = torch.relu(self.side * self.displacement(x, state["at"]))
        return state["kappa"] * beyond * beyond


class UpperWall(LowerWall):
    """Wall κ (x − at)² above `at`, as PLUMED's UPPER_WALLS. Otherwise as `LowerWall`."""

    kind = "upper_wall"
    side = 1.0

    def __init__(
        self,
        *,
        at: Annotated[
            float | Literal["wall"],
            Doc("value of the variable where the wall begins; wall: the driver's own, 14 where none is known"),
        ] = "wall",
        **options: Any,
    ) -> None:
        super().__init__(at=WALL if at == "wall" else at, **options)


class UDD(FixedBias):
    r"""Uncertainty-driven dynamics: an inverted Gaussian of a committee's disagreement.

    Kulichenko et al., Nat. Comput. Sci. 3, 230 (2023), equation 4:

    .. math:: V = A \left[\exp\left(-\frac{\sigma_E^2}{N_M N_A B^2}\right) - 1\right], \qquad
              \sigma_E^2 = \tfrac12 \sum_{m=1}^{N_M} (E_m - \bar E)^2 = \tfrac12 (N_M - 1)\, u^2

    Note the factor ½ in their σ_E² (equation 2). The variable u is here the committee's standard deviation with N_M - 1
    in the denominator, as the uncertainty ``committee`` has it, so V is -A (1 - exp(-u²/2w²)) with
    w = B √(N_A N_M / (N_M - 1)). V is 0 where the members agree, -A where they do not at all, and steepest at u = w.
    The paper advises an A a few times the barrier of interest, and a B that makes the bias force about a third of the
    model's; its glycine has A = 15.4 and B = 0.12 kcal/mol, which are the defaults.

    Parameters
    ----------
    n_members, n_atoms : N_M and N_A. Without both, w is B itself, and u may be any uncertainty.

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
        variables: OneName = ("driver",),
        A: Annotated[Positive, Doc("depth, kJ/mol")] = 64.4,
        B: Annotated[Positive, Doc("width in units of the variable, per √atom where the next two are given")] = 0.5,
        n_members: Annotated[
            int | None, Ge(2), Doc("size of the committee whose disagreement the variable is, or null")
        ] = None,
        n_atoms: Annotated[Count | None, Doc("number of atoms, or null")] = None,
    ) -> None:
        width = float(B)
        if n_members is not None and n_atoms is not None:
            width *= math.sqrt(n_atoms * n_members / (n_members - 1))
        super().__init__(variables, A=A, width=width)

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        super().check_options(options)
        n_members, n_atoms = options["n_members"], options["n_atoms"]
        if (n_members is None) != (n_atoms is None):
            raise UqbiasError(f"udd with n_members {n_members} and n_atoms {n_atoms}", "give both, or none")

    def energy(self, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        scaled = x[:, 0] / state["width"]
        return state["A"] * torch.expm1(-0.5 * scaled * scaled)
