"""Dihedral angle of four atoms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Self

import torch
from annotated_types import MaxLen, MinLen
from torch import Tensor
from typing_extensions import Doc

from uqbias.molecule.atoms import Atom, fixed_atoms
from uqbias.molecule.topology import Topology
from uqbias.variables.base import SOFTENING, AtomVariable, take

#: nm⁴. There is no dihedral where |b₁| |b₂|² |b₃| sin α sin β is below this: three atoms in a row are collinear, or
#: atoms coincide. Bonds of 0.15 nm and usual bond angles give 4e-4.
COLLINEAR = 1e-7


class Dihedral(AtomVariable):
    r"""Dihedral of four atoms, rad, period 2π.

    The angle i-j-k-l, -π to π, 0 for cis, in the IUPAC sign convention:

    .. math:: \varphi = \mathrm{atan2}(|b_2|\, b_1 \cdot n_2,\; n_1 \cdot n_2), \qquad
              n_1 = b_1 \times b_2, \quad n_2 = b_2 \times b_3

    with the bond vectors b₁ = x_j − x_i, b₂ = x_k − x_j, b₃ = x_l − x_k (Blondel and Karplus, J. Comput. Chem. 17,
    1132, 1996). The four atoms need not be bonded. PLUMED's TORSION with NOPBC. Where there is no dihedral, since three
    atoms in a row are collinear to 3e-4 rad or two coincide, value and gradient are 0.

    Parameters
    ----------
    atoms : indices i, j, k, l.

    Examples
    --------
    >>> import torch
    >>> from uqbias.molecule.topology import Topology
    >>> from uqbias.registry import VARIABLES
    >>> peroxide = Topology((1, 8, 8, 1), ((0, 1), (1, 2), (2, 3)))
    >>> turn = VARIABLES.build({"kind": "dihedral", "atoms": [0, 1, 2, 3]}, topology=peroxide)
    >>> turn(torch.tensor([[[0.1, 0, 0], [0, 0, 0], [0, 0, 0.15], [0, 0.1, 0.15]]]))
    tensor([1.5708])
    """

    kind = "dihedral"
    unit = "rad"
    period = 2 * math.pi
    hill_width = 0.35

    @classmethod
    def build(
        cls,
        topology: Topology,
        *,
        atoms: Annotated[Sequence[Atom], MinLen(4), MaxLen(4), Doc("the four atoms")],
    ) -> Self:
        """Make the variable of four atoms of a molecule."""
        return cls(fixed_atoms(topology, atoms, 4, "atoms of dihedral"))

    def forward(self, positions: Tensor) -> Tensor:
        """Dihedral [W], rad."""
        i, j, k, m = take(positions, self.index).unbind(1)
        first, axis, last = j - i, k - j, m - k
        normal = torch.linalg.cross(axis, last)
        length = ((axis * axis).sum(-1) + SOFTENING**2).sqrt()
        sine = (first * normal).sum(-1) * length
        cosine = (torch.linalg.cross(first, axis) * normal).sum(-1)
        # The derivative of atan2 is 0/0 where both arguments vanish.
        exists = sine * sine + cosine * cosine > COLLINEAR**2
        return torch.atan2(
            torch.where(exists, sine, torch.zeros_like(sine)), torch.where(exists, cosine, torch.ones_like(cosine))
        )
