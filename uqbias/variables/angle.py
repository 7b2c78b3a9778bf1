"""Angle between three atoms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self

import torch
from annotated_types import MaxLen, MinLen
from torch import Tensor
from typing_extensions import Doc

from uqbias.molecule.atoms import Atom, fixed_atoms
from uqbias.molecule.topology import Topology
from uqbias.variables.base import AtomVariable, take

#: nm²; |a × b| is √(|a × b|² + FLAT²), so that a straight angle has a derivative. It moves a straight angle of two
#: bonds of 0.15 nm by 4e-5 rad, one of 120 degrees by less than 1e-9.
FLAT = 1e-6


class Angle(AtomVariable):
    r"""Angle of three atoms, rad.

    The angle i-j-k at the atom j, 0 to π:

    .. math:: \theta = \mathrm{atan2}(|a \times b|, a \cdot b), \qquad a = x_i - x_j, \quad b = x_k - x_j

    which keeps its precision near 0 and π, where an arc cosine loses half of the digits. The gradient of an angle jumps
    at 0 and π; the rounding of that kink is 4e-5 rad wide. PLUMED's ANGLE with NOPBC.

    Parameters
    ----------
    atoms : indices i, j, k.

    Examples
    --------
    >>> import torch
    >>> from uqbias.molecule.topology import Topology
    >>> from uqbias.registry import VARIABLES
    >>> water = Topology((8, 1, 1), ((0, 1), (0, 2)))
    >>> bend = VARIABLES.build({"kind": "angle", "atoms": [1, 0, 2]}, topology=water)
    >>> bend(torch.tensor([[[0.0, 0, 0], [0.1, 0, 0], [0, 0.1, 0]]]))
    tensor([1.5708])
    """

    kind = "angle"
    unit = "rad"
    hill_width = 0.1

    @classmethod
    def build(
        cls,
        topology: Topology,
        *,
        atoms: Annotated[Sequence[Atom], MinLen(3), MaxLen(3), Doc("the three atoms, the vertex second")],
    ) -> Self:
        """Make the variable of three atoms of a molecule."""
        return cls(fixed_atoms(topology, atoms, 3, "atoms of angle"))

    def forward(self, positions: Tensor) -> Tensor:
        """Angle [W], rad."""
        i, j, k = take(positions, self.index).unbind(1)
        first, second = i - j, k - j
        normal = torch.linalg.cross(first, second)
        sine = ((normal * normal).sum(-1) + FLAT**2).sqrt()
        return torch.atan2(sine, (first * second).sum(-1))
