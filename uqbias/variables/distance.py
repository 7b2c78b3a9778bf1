"""Distance between two atoms, or between the centres of mass of two groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

import torch
from annotated_types import MaxLen, MinLen
from torch import Tensor
from typing_extensions import Doc

from uqbias.errors import UqbiasError
from uqbias.molecule.atoms import Atom, Atoms, fixed_atoms, ordered_atoms
from uqbias.molecule.topology import Topology
from uqbias.variables.base import SOFTENING, CollectiveVariable, take


class Distance(CollectiveVariable):
    r"""Distance of two atoms or of two centres of mass, nm.

    .. math:: d = \sqrt{|X_2 - X_1|^2 + \varepsilon^2}, \qquad X_g = \sum_{i \in g} w_{gi} x_i

    with ε = 1e-4 nm, which gives coinciding atoms a derivative. PLUMED's DISTANCE with NOPBC, between two atoms or two
    CENTERs.

    Parameters
    ----------
    groups : two lists of atom indices.
    weights : weight of each atom of each group, sum 1 in a group; None for equal ones.

    Examples
    --------
    >>> import torch
    >>> from uqbias.molecule.topology import Topology
    >>> from uqbias.registry import VARIABLES
    >>> water = Topology((8, 1, 1), ((0, 1), (0, 2)))
    >>> bond = VARIABLES.build({"kind": "distance", "atoms": [0, 1]}, topology=water)
    >>> bond(torch.tensor([[[0.0, 0, 0], [0.1, 0, 0], [0, 0.1, 0]]]))
    tensor([0.1000])
    """

    kind = "distance"
    unit = "nm"
    hill_width = 0.02
    index: Tensor
    signed: Tensor

    def __init__(self, groups: Sequence[Sequence[int]], weights: Sequence[Sequence[float]] | None = None) -> None:
        super().__init__()
        self.groups = [[int(i) for i in group] for group in groups]
        self.weights = [[1.0 / len(group)] * len(group) for group in groups] if weights is None else weights
        signed = [sign * w for sign, group in zip((-1.0, 1.0), self.weights, strict=True) for w in group]
        self.register_buffer("index", torch.tensor([i for group in self.groups for i in group]), persistent=False)
        self.register_buffer("signed", torch.tensor(signed, dtype=torch.float64), persistent=False)

    @classmethod
    def build(
        cls,
        topology: Topology,
        *,
        atoms: Annotated[Sequence[Atom] | None, MinLen(2), MaxLen(2), Doc("the two atoms")] = None,
        groups: Annotated[
            Sequence[Atoms] | None, MinLen(2), MaxLen(2), Doc("or two groups, whose centres of mass count")
        ] = None,
    ) -> Self:
        """Make the variable of two atoms or of two groups of a molecule."""
        if groups is None:
            assert atoms is not None
            i, j = fixed_atoms(topology, atoms, 2, "atoms of distance")
            return cls([[i], [j]])
        chosen = [ordered_atoms(topology, group, "groups of distance") for group in groups]
        masses = [topology.masses()[list(group)] for group in chosen]
        return cls(chosen, [(mass / mass.sum()).tolist() for mass in masses])

    @staticmethod
    def check_options(options: Mapping[str, Any]) -> None:
        if (options["atoms"] is None) == (options["groups"] is None):
            raise UqbiasError(
                "variable 'distance' needs atoms or groups", "give either atoms: [i, j] or groups: [[...], [...]]"
            )

    @property
    def internal_coordinate(self) -> tuple[int, ...]:
        """The two atoms; empty for groups of several."""
        atoms = tuple(i for group in self.groups for i in group)
        return atoms if len(atoms) == 2 else ()

    def forward(self, positions: Tensor) -> Tensor:
        """Distance [W], nm."""
        signed = self.signed.to(positions.dtype).unsqueeze(-1)
        apart = (take(positions, self.index) * signed).sum(1)
        return ((apart * apart).sum(-1) + SOFTENING**2).sqrt()
