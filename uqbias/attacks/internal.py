"""Internal coordinates of a molecule: torsions, bonds and angles, changed by rigid moves."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uqbias.attacks.base import LENGTH_UNIT, DistortionSpace
from uqbias.attacks.moves import branch, mask, rotated, smaller_side, unit_vector
from uqbias.errors import UqbiasError
from uqbias.topology import Topology, Triple

#: Sine of an angle below which it counts as straight: it has no plane to be changed in.
STRAIGHT = 0.1


class Move(NamedTuple):
    """A rigid move of one side of a bond: ``turn`` about it, ``stretch`` along it, ``bend`` towards a third atom."""

    kind: str
    #: The bond; the side of ``pivot`` moves.
    fixed: int
    pivot: int
    #: Of a bend, the third atom of the angle.
    third: int
    #: Atoms that move.
    atoms: tuple[int, ...]


class RigidMoves(torch.nn.Module):
    """Moves of D coordinates, one after the other: first all stretches, then turns and bends in their order.

    A turn changes the dihedral angles about its bond and no other internal coordinate, a stretch the length of its bond
    alone, and a bend the angle third-fixed-pivot with the dihedrals that end in it. δ counts in rad, and in 0.1 nm for
    a stretch.
    """

    def __init__(self, n_atoms: int, moves: list[Move]) -> None:
        super().__init__()
        self.moves = moves
        rows = [mask(n_atoms, move.atoms) for move in moves]
        self.register_buffer("moving", torch.stack(rows), persistent=False)
        self.moving: Tensor

    def forward(self, base: Tensor, delta: Tensor) -> Tensor:
        """Moved geometries [W, N, 3] nm; ``delta`` [W, D]."""
        moving = self.moving.to(base.dtype)
        positions = base
        for place, move in enumerate(self.moves):
            if move.kind == "stretch":
                # A stretch turns no bond: all of them can be taken from the base.
                along = unit_vector(base[:, move.pivot] - base[:, move.fixed])
                shift = along * (LENGTH_UNIT * delta[:, place : place + 1])
                positions = positions + moving[place].view(1, -1, 1) * shift.unsqueeze(1)
        for place, move in enumerate(self.moves):
            if move.kind == "stretch":
                continue
            origin = positions[:, move.fixed]
            axis = positions[:, move.pivot] - origin
            if move.kind == "bend":
                axis = torch.linalg.cross(positions[:, move.third] - origin, axis)
            positions = rotated(positions, origin, unit_vector(axis), delta[:, place], moving[place])
        return positions


class Internal(DistortionSpace):
    """Torsions, bonds and angles of the bond graph, each changed by a rigid move of the smaller side of a bond.

    One coordinate for every bond that does not lie in a ring: a turn about it (``torsions``, where both sides have more
    than one atom) and a stretch of it (``bonds``); and one for every bonded triple that can be bent without breaking a
    ring (``angles``). A turn leaves all bonds and angles as they are, so torsions alone, the default, cannot break a
    bond; atoms may still clash. Angles around one atom depend on each other (four neighbours: six angles, five of them
    free), and bending one changes others there. δ is in rad; a stretch of 0.1 nm counts as 1 rad.

    Parameters
    ----------
    n_atoms : N.
    moves : one a coordinate.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from uqbias.attacks.base import build_space
    >>> from uqbias.topology import Topology
    >>> peroxide = Topology((1, 8, 8, 1), ((0, 1), (1, 2), (2, 3)))
    >>> x = np.array([[0.1, 0, 0], [0, 0, 0], [0, 0, 0.15], [0, 0.1, 0.15]])
    >>> space = build_space("internal", peroxide, x)
    >>> space.labels
    ('torsion 1-2',)
    >>> space(torch.tensor(x)[None], torch.tensor([[np.pi / 2]]))[0, 3].abs().round(decimals=6)
    tensor([0.1000, 0.0000, 0.1500], dtype=torch.float64)
    """

    kind: ClassVar[str] = "internal"

    def __init__(self, n_atoms: int, moves: list[Move]) -> None:
        super().__init__()
        self.n_coordinates = len(moves)
        names = {"turn": "torsion {0}-{1}", "stretch": "bond {0}-{1}", "bend": "angle {2}-{0}-{1}"}
        self.labels = tuple(names[move.kind].format(move.fixed, move.pivot, move.third) for move in moves)
        self.moves = RigidMoves(n_atoms, moves)

    @classmethod
    def build(
        cls,
        topology: Topology,
        reference: NDArray[Any],
        *,
        torsions: bool = True,
        bonds: bool = False,
        angles: bool = False,
    ) -> Self:
        """Switches for the three sorts of coordinates.

        Raises
        ------
        UqbiasError
            If none is left.
        """
        moves = []
        for i, j in topology.bonds:
            ends = smaller_side(topology, i, j)
            if ends is None:
                continue
            atoms = branch(topology, *ends) or ()
            if torsions and len(atoms) > 1 and _has_neighbours(topology, ends):
                moves.append(Move("turn", *ends, -1, atoms))
            if bonds:
                moves.append(Move("stretch", *ends, -1, atoms))
        if angles:
            moves += [move for triple in topology.angles() if (move := _bend(topology, triple, reference))]
        if not moves:
            wanted = [name for name, on in (("torsions", torsions), ("bonds", bonds), ("angles", angles)) if on] or [
                "nothing"
            ]
            raise UqbiasError(
                f"space 'internal' of {' and '.join(wanted)}: this molecule of {len(topology)} atoms has no such "
                "coordinate outside rings",
                "switch bonds or angles on, or choose the space 'cartesian'",
            )
        return cls(len(topology), moves)

    def forward(self, base: Tensor, delta: Tensor) -> Tensor:
        """Moved geometries, [W, N, 3] nm."""
        moved: Tensor = self.moves(base, delta)
        return moved


def _has_neighbours(topology: Topology, bond: tuple[int, int]) -> bool:
    return all(len(topology.neighbours[i]) > 1 for i in bond)


def _bend(topology: Topology, triple: Triple, reference: NDArray[Any]) -> Move | None:
    """Bend of an angle by moving the smaller of its two outer sides; None in a ring or on a line."""
    i, j, k = triple
    first, second = reference[i] - reference[j], reference[k] - reference[j]
    sine = np.linalg.norm(np.cross(first, second)) / (np.linalg.norm(first) * np.linalg.norm(second))
    if not sine > STRAIGHT:
        return None
    sides = [(atoms, third, pivot) for third, pivot in ((i, k), (k, i)) if (atoms := branch(topology, j, pivot))]
    if not sides:
        return None
    atoms, third, pivot = min(sides, key=lambda side: len(side[0]))
    return Move("bend", j, pivot, third, atoms)
