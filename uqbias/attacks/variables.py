"""Collective variables as coordinates of a distortion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Doc

from uqbias.attacks.base import DistortionSpace, checked_reference
from uqbias.attacks.internal import bend
from uqbias.attacks.moves import LENGTH_UNIT, Move, RigidMoves, branch, rigid_move
from uqbias.errors import UqbiasError, did_you_mean
from uqbias.molecule.topology import Topology
from uqbias.variables.base import CollectiveVariable, build_variables

#: Parts into which a change is cut, and Newton steps on the whole of it after them.
PARTS, POLISH = 2, 1
#: Added to the squared mass-weighted gradients, relative to their mean and absolute: a variable without a gradient
#: moves nothing.
DAMPING, SMALLEST = 1e-7, 1e-12


class Variables(DistortionSpace):
    r"""Changes of the collective variables of `variables:`: δ = 0.2 makes a φ that is 0.2 rad larger.

    Where every variable is a dihedral, an angle or a distance along bonds that cut the molecule in two, the geometry
    is moved rigidly, as in `uqbias.attacks.internal.Internal`, exactly and for any δ. Otherwise (`rmsd`,
    `coordination`, a user's function, or two variables that move each other's atoms otherwise than rigidly) all
    of them are brought to s(x₀) + δ along their mass-weighted gradients by Newton steps,

    .. math:: x \leftarrow x + J^+ (s^* - s(x)), \qquad J^+ = M^{-1} J^T (J M^{-1} J^T)^{-1}, \quad J = \partial s /
              \partial x,

    the least displacement, weighted by masses, that brings the linearised variables to s*. The change is cut in two
    halves and followed by a step on the whole, all of them in the graph, with the gradient through them; s* is reached
    to 1 % for changes of about a radian. Such a move knows nothing of bonds: keep it short, or give the dihedrals
    themselves. Differences of periodic variables are wrapped. Of `rmsd` the gradient of the move is right to a few per
    cent only, since autograd does not see how the best superposition turns.

    δ is in the unit of each variable, with 0.1 nm for a length as in the space ``internal``.

    Parameters
    ----------
    variables : by name.
    moves : rigid move of each variable, or None where they are brought there by Newton steps.
    masses : [N] dalton.
    """

    kind: ClassVar[str] = "variables"

    def __init__(
        self, variables: Mapping[str, CollectiveVariable], moves: list[Move] | None, masses: Sequence[float]
    ) -> None:
        super().__init__()
        self.labels = tuple(variables)
        self.n_coordinates = len(variables)
        self.modules_of_variables = torch.nn.ModuleList(variables.values())
        self.moves = None if moves is None else RigidMoves(len(masses), moves)
        self.periods = [variable.period for variable in variables.values()]
        units = [LENGTH_UNIT if variable.unit == "nm" else 1.0 for variable in variables.values()]
        self.register_buffer("units", torch.tensor(units, dtype=torch.float64), persistent=False)
        inverse = 1.0 / np.asarray(masses, dtype=float)
        self.register_buffer("inverse_masses", torch.tensor(inverse / inverse.mean()), persistent=False)
        self.units: Tensor
        self.inverse_masses: Tensor

    @classmethod
    def build(
        cls,
        topology: Topology,
        reference: NDArray[Any],
        collective_variables: Mapping[str, Any] | None = None,
        *,
        names: Annotated[list[str] | str | None, Doc("names of those that are changed; null: all")] = None,
        rigid: Annotated[
            bool,
            Doc("move rigid parts of the molecule where that suffices; false: the least displacement"),
        ] = True,
    ) -> Self:
        """Make the space of one molecule.

        Raises
        ------
        UqbiasError
            If a variable is not defined.
        """
        reference = checked_reference(topology, reference)
        defined = dict(collective_variables or {})
        chosen = list(defined) if names is None else [names] if isinstance(names, str) else list(names)
        for name in chosen:
            if name not in defined:
                cure = did_you_mean(name, defined) if defined else "define it: variables: {phi: {kind: dihedral, ..}}"
                raise UqbiasError(f"space 'variables': no variable '{name}'", cure)
        if not chosen:
            raise UqbiasError("space 'variables' without a variable", "define one, such as phi: {kind: dihedral, ..}")
        if len(set(chosen)) < len(chosen):
            raise UqbiasError(f"space 'variables' of {chosen}", "name each variable once")
        built = build_variables({name: defined[name] for name in chosen}, topology, reference)
        moves = [move_of(topology, variable) for variable in built.values()] if rigid else [None]
        rigid_moves = [move for move in moves if move is not None]
        independent = len(rigid_moves) == len(moves) and _independent(built, rigid_moves, reference)
        return cls(built, rigid_moves if independent else None, topology.masses().tolist())

    def forward(self, base: Tensor, delta: Tensor) -> Tensor:
        """Geometries with changed variables, [W, N, 3] nm."""
        if self.moves is not None:
            moved: Tensor = self.moves(base, delta)
            return moved
        change = delta * self.units.to(delta.dtype)
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():  # type: ignore[no-untyped-call]
            x = base if base.requires_grad else base.detach().clone().requires_grad_()
            begun, _ = self._values(x)
            begun = begun.detach()
            for part in range(1, PARTS + POLISH + 1):
                values, gradients = self._values(x)
                x = x + self._newton(gradients, self._wrapped(begun + change * min(part / PARTS, 1.0) - values))
        return x if differentiable else x.detach()

    def values(self, positions: Tensor) -> Tensor:
        """Variables of geometries [W, N, 3] nm, [W, D]."""
        return torch.stack([variable(positions) for variable in self.modules_of_variables], dim=1)

    def _values(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        values = self.values(x)
        gradients = [
            torch.autograd.grad(value.sum(), x, create_graph=True, materialize_grads=True)[0]
            for value in values.unbind(1)
        ]
        return values, gradients

    def _wrapped(self, difference: Tensor) -> Tensor:
        columns = [
            column if period is None else column - period * torch.round(column.detach() / period)
            for column, period in zip(difference.unbind(1), self.periods, strict=True)
        ]
        return torch.stack(columns, dim=1)

    def _newton(self, gradients: list[Tensor], residual: Tensor) -> Tensor:
        """J⁺ times the residual [W, D]: a displacement [W, N, 3]."""
        inverse = self.inverse_masses.to(residual.dtype).view(1, -1, 1)
        weighted = [gradient * inverse for gradient in gradients]
        rows = [[(one * other).sum((1, 2)) for other in weighted] for one in gradients]
        D = len(rows)
        for i in range(D):
            rows[i][i] = rows[i][i] * (1.0 + DAMPING) + SMALLEST
        # Gauss elimination, without pivots since the matrix is symmetric and positive.
        right = list(residual.unbind(1))
        for i in range(D):
            for j in range(i + 1, D):
                factor = rows[j][i] / rows[i][i]
                rows[j] = [a - factor * b for a, b in zip(rows[j], rows[i], strict=True)]
                right[j] = right[j] - factor * right[i]
        solution = list(right)
        for i in reversed(range(D)):
            known = sum((rows[i][j] * solution[j] for j in range(i + 1, D)), torch.zeros_like(right[i]))
            solution[i] = (right[i] - known) / rows[i][i]
        return sum(
            (column.view(-1, 1, 1) * gradient for column, gradient in zip(solution, weighted, strict=True)),
            torch.zeros_like(weighted[0]),
        )


def move_of(topology: Topology, variable: CollectiveVariable) -> Move | None:
    """The rigid move that changes a variable by δ, or None where there is none."""
    match variable.internal_coordinate:
        case (i, j):
            return rigid_move(topology, "stretch", i, j)
        case (i, j, k):
            return bend(topology, (i, j, k))
        case (first, j, k, last):
            beyond = branch(topology, j, k) or () if k in topology.neighbours[j] else ()
            return rigid_move(topology, "turn", j, k) if last in beyond and first not in beyond else None
    return None


def _independent(variables: Mapping[str, CollectiveVariable], moves: list[Move], reference: NDArray[Any]) -> bool:
    """Whether all moves together change each variable by its own δ, at the reference."""
    x = torch.tensor(reference, dtype=torch.float64)[None]
    random = torch.Generator().manual_seed(0)
    delta = 0.1 * torch.randn(1, len(moves), generator=random, dtype=torch.float64)
    with torch.no_grad():
        moved = RigidMoves(len(reference), moves)(x, delta)
        for place, variable in enumerate(variables.values()):
            change = float(variable(moved) - variable(x))
            if variable.period is not None:
                change -= variable.period * round(change / variable.period)
            wanted = float(delta[0, place]) * (LENGTH_UNIT if variable.unit == "nm" else 1.0)
            if not math.isclose(change, wanted, abs_tol=1e-4 * abs(wanted) + 1e-7):
                return False
    return True
