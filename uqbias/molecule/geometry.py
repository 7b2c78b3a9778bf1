"""The surroundings of a molecule's positions: its cell, and which atoms are neighbours."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Geometry(NamedTuple):
    """What a potential reads beside the positions of W walkers with N atoms each.

    The tensors have fixed shapes, so that all of them are inputs of a compiled graph. Atom j in slot k of atom i is at
    ``r_ij = x_j - x_i + shifts @ box``. Without a geometry a molecule is in vacuum and all pairs of atoms count.
    """

    #: [W, 3, 3] nm, rows are lattice vectors; differentiable. None in vacuum.
    box: Tensor | None
    #: [W, N, K] int64, neighbours j of each atom i, in blocks per element of j; N, a ghost atom, where a slot is empty.
    #: None where all pairs count.
    neighbours: Tensor | None = None
    #: [W, N, K, 3] whole numbers of lattice vectors, in the dtype of the box; None without neighbours or in vacuum.
    shifts: Tensor | None = None
