"""A Cartesian coordinate of an atom, for particles in an external field."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from torch import Tensor
from typing_extensions import Doc

from uqbias.errors import UqbiasError
from uqbias.molecule.atoms import Atom, fixed_atoms
from uqbias.molecule.topology import Topology
from uqbias.variables.base import CollectiveVariable

AXES = "xyz"


class Position(CollectiveVariable):
    """Cartesian coordinate of an atom in an external field, nm.

    Neither rotation nor translation leaves it alone: it is of no use for a free molecule.
    PLUMED's POSITION with NOPBC.

    Parameters
    ----------
    axis : ``x``, ``y`` or ``z``.
    atom : index of the atom.

    Raises
    ------
    UqbiasError
        If there is no such axis.

    Examples
    --------
    >>> import torch
    >>> from uqbias.molecule.topology import Topology
    >>> from uqbias.registry import VARIABLES
    >>> height = VARIABLES.build({"kind": "position", "axis": "y"}, topology=Topology((1,), ()))
    >>> height(torch.tensor([[[0.1, 0.2, 0.3]]]))
    tensor([0.2000])
    """

    kind = "position"
    unit = "nm"
    hill_width = 0.02
    invariant = False

    def __init__(self, axis: str = "x", atom: int = 0) -> None:
        super().__init__()
        if len(axis) != 1 or axis not in AXES:
            raise UqbiasError(f"axis '{axis}' of position", "choose x, y or z")
        self.axis, self.atom = axis, int(atom)

    @classmethod
    def build(
        cls,
        topology: Topology,
        *,
        axis: Annotated[Literal["x", "y", "z"], Doc("x, y or z")],
        atom: Annotated[Atom, Doc("index or name")] = 0,
    ) -> Self:
        """Make the variable of one atom of a molecule."""
        return cls(axis, fixed_atoms(topology, [atom], 1, "atom of position")[0])

    def forward(self, positions: Tensor) -> Tensor:
        """Coordinate [W], nm."""
        return positions[:, self.atom, AXES.index(self.axis)]
