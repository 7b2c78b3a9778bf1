"""Internal coordinates of a molecule: torsions, bonds and angles, changed by rigid moves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Doc

from uqbias.attacks.base import DistortionSpace, checked_reference
from uqbias.attacks.moves import Move, RigidMoves, rigid_move
from uqbias.errors import UqbiasError
from uqbias.molecule.rotors import rotors
from uqbias.molecule.topology import Pair, Topology, Triple

#: Sine of an angle below which it counts as straight: it has no plane to be bent in, and no dihedral about its bonds.
STRAIGHT = 0.1


class Internal(DistortionSpace):
    """Torsions, bonds and angles of the bond graph, each changed by a rigid move of the smaller side of a bond.

    One coordinate for every bond that does not lie in a ring: a turn about it (``torsions``, where that changes a
    dihedral) and a stretch of it (``bonds``); and one for every bonded triple that can be bent without breaking a ring
    (``angles``). A turn leaves all bonds and angles as they are, so torsions alone, the default, cannot break a bond;
    atoms may still clash. Angles around one atom depend on each other (four neighbours: six angles, five of them free),
    and bending one changes others there. δ is in rad; a stretch of 0.1 nm counts as 1 rad.

    Parameters
    ----------
    n_atoms : atoms of the molecule, N.
    moves : one a coordinate.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from uqbias.molecule.topology import Topology
    >>> from uqbias.registry import SPACES
    >>> peroxide = Topology((1, 8, 8, 1), ((0, 1), (1, 2), (2, 3)))
    >>> x = np.array([[0.1, 0, 0], [0, 0, 0], [0, 0, 0.15], [0, 0.1, 0.15]])
    >>> space = SPACES.build("internal", topology=peroxide, reference=x)
    >>> space.labels
    ('torsion 1-2',)
    >>> space(torch.tensor(x)[None], torch.tensor([[np.pi / 2]]).double())[0, 3].round(decimals=6) + 0.0
    tensor([-0.1000,  0.0000,  0.1500], dtype=torch.float64)
    """

    kind: ClassVar[str] = "internal"

    def __init__(self, n_atoms: int, moves: list[Move]) -> None:
        super().__init__()
        self.n_coordinates = len(moves)
        self.labels = tuple(_label(move) for move in moves)
        self.moves = RigidMoves(n_atoms, moves)

    @classmethod
    def build(
        cls,
        topology: Topology,
        reference: NDArray[Any],
        *,
        torsions: Annotated[
            bool | Literal["soft"],
            Doc("turn about the bonds that are in no ring; soft: about single bonds between heavy atoms alone"),
        ] = True,
        bonds: Annotated[bool, Doc("stretch bonds; 0.1 nm counts as 1 rad")] = False,
        angles: Annotated[bool, Doc("bend angles")] = False,
    ) -> Self:
        """Make the space of one molecule.

        Raises
        ------
        UqbiasError
            If the molecule has none of the coordinates that are switched on.
        """
        reference = checked_reference(topology, reference)
        candidates: list[Move | None] = []
        if torsions:
            turning: Iterable[Pair] = topology.bonds
            if torsions == "soft":
                turning = [rotor.bond for rotor in rotors(topology, reference) if rotor.soft]
            candidates += [rigid_move(topology, "turn", *bond) for bond in turning if _turns(topology, bond, reference)]
        if bonds:
            candidates += [rigid_move(topology, "stretch", *bond) for bond in topology.bonds]
        if angles:
            candidates += [
                bend(topology, triple) for triple in topology.angles() if _sine(reference, *triple) > STRAIGHT
            ]
        moves = [move for move in candidates if move is not None]
        if not moves:
            turns = "soft torsions" if torsions == "soft" else "torsions"
            switches = ((turns, torsions), ("bonds", bonds), ("angles", angles))
            wanted = " and ".join(name for name, on in switches if on) or "nothing"
            raise UqbiasError(
                f"space 'internal' of {wanted}: this molecule of {len(topology)} atoms has no such coordinate outside "
                "rings",
                "switch bonds or angles on, or choose the space 'cartesian'",
            )
        return cls(len(topology), moves)

    def forward(self, base: Tensor, delta: Tensor) -> Tensor:
        """Moved geometries, [W, N, 3] nm."""
        moved: Tensor = self.moves(base, delta)
        return moved


def bend(topology: Topology, triple: Triple) -> Move | None:
    """Bend of an angle i-j-k about j, by the move of fewer atoms; None where that would break a ring."""
    i, j, k = triple
    candidates: list[Move] = []
    for third, end in ((i, k), (k, i)):
        move = rigid_move(topology, "bend", j, end, (third, j, end))
        # The third atom must be on the side of the vertex.
        if move is not None and (third in move.atoms) == (j in move.atoms):
            candidates.append(move)
    return min(candidates, key=lambda move: len(move.atoms), default=None)


def _label(move: Move) -> str:
    if move.kind == "bend":
        return "angle {}-{}-{}".format(*move.angle)
    low, high = sorted((move.fixed, move.pivot))
    return f"{'torsion' if move.kind == 'turn' else 'bond'} {low}-{high}"


def _turns(topology: Topology, bond: tuple[int, int], reference: NDArray[Any]) -> bool:
    """Whether a turn about a bond changes a dihedral: both ends have a neighbour that is not in line with it."""
    i, j = bond
    return all(
        any(_sine(reference, third, at, other) > STRAIGHT for third in topology.neighbours[at] if third != other)
        for at, other in ((i, j), (j, i))
    )


def _sine(reference: NDArray[Any], i: int, j: int, k: int) -> float:
    """Sine of the angle i-j-k."""
    first, second = reference[i] - reference[j], reference[k] - reference[j]
    area, size = np.linalg.norm(np.cross(first, second)), np.linalg.norm(first) * np.linalg.norm(second)
    return float(area) / max(float(size), 1e-12)
