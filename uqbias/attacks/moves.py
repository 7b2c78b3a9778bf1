"""Rigid moves of one side of a bond, many of them in a few tensor operations."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from uqbias.molecule.topology import Topology
from uqbias.variables.base import take

#: nm that a bond is stretched by δ = 1: 1 Å counts as 1 rad.
LENGTH_UNIT = 0.1


class Move(NamedTuple):
    """A rigid move of the smaller side of a bond that lies in no ring.

    A ``turn`` about the bond by δ rad changes the dihedrals about it and nothing else, a ``stretch`` along it its
    length, and a ``bend`` an angle at one of its ends, with the dihedrals that end there.
    """

    kind: str
    fixed: int
    #: End of the bond whose side moves.
    pivot: int
    #: Atoms that move.
    atoms: tuple[int, ...]
    #: For a bend, the angle i-j-k: j is ``fixed`` or ``pivot``, k the other one.
    angle: tuple[int, int, int] = (-1, -1, -1)


def branch(topology: Topology, fixed: int, pivot: int) -> tuple[int, ...] | None:
    """Atoms on the side of ``pivot`` of the bond ``fixed``-``pivot``, ascending; None where the bond is in a ring."""
    without = topology.graph(without=(min(fixed, pivot), max(fixed, pivot)))
    _, part = connected_components(without, directed=False)
    return None if part[fixed] == part[pivot] else tuple(np.flatnonzero(part == part[pivot]).tolist())


def rigid_move(
    topology: Topology, kind: str, i: int, j: int, angle: tuple[int, int, int] = (-1, -1, -1)
) -> Move | None:
    """The move of the smaller side of the bond i-j; None where they are not bonded, or in a ring.

    Of two bonds, the smaller sides lie one within the other or apart, which `RigidMoves` needs.
    """
    if j not in topology.neighbours[i]:
        return None
    first, second = branch(topology, j, i), branch(topology, i, j)
    if first is None or second is None:
        return None
    if len(first) < len(second):
        return Move(kind, j, i, first, angle)
    return Move(kind, i, j, second, angle)


class RigidMoves(torch.nn.Module):
    r"""All moves at once; coordinate d is the δ of move d.

    The sides that move are nested or disjoint. The smallest are moved first and the larger ones take them along, so
    that each axis is that of the base. Of a bond f-p with unit vector u, the side of p goes

    .. math:: x \to f + R_f\,(p - f + s\,u + R_t R_p\,(x - p))

    with the turn R_t about u, the stretch s, and the bends R_f and R_p at its ends, each a rotation by the sum of δ·n
    over its angles, n being the normal of the angle's plane. The levels of the nesting are as many steps of the graph,
    whatever the number of moves.

    Parameters
    ----------
    n_atoms : atoms of the molecule, N.
    moves : D moves, as `rigid_move` makes them.
    """

    fixed: Tensor
    pivot: Tensor
    angles: Tensor
    stretching: Tensor
    turning: Tensor
    chosen: Tensor
    bending: Tensor
    sides: Tensor

    def __init__(self, n_atoms: int, moves: list[Move]) -> None:
        super().__init__()
        bonds = list(dict.fromkeys((move.fixed, move.pivot, move.atoms) for move in moves))
        bends = [place for place, move in enumerate(moves) if move.kind == "bend"]
        B, D = len(bonds), len(moves)
        self.kinds = {move.kind for move in moves}
        maps = {"stretch": torch.zeros(D, B), "turn": torch.zeros(D, B)}
        bending = torch.zeros(2, len(bends), B)
        for place, move in enumerate(moves):
            bond = bonds.index((move.fixed, move.pivot, move.atoms))
            if move.kind == "bend":
                # Around its own end the moving side turns the other way round.
                at_pivot = int(move.angle[1] == move.pivot)
                bending[at_pivot, bends.index(place), bond] = -1.0 if at_pivot else 1.0
            else:
                maps[move.kind][place, bond] = 1.0
        inside = [set(atoms) for _, _, atoms in bonds]
        depths = [sum(moved < other for other in inside) for moved in inside]
        # Sides of one depth have no atom in common; the deepest are moved first.
        sides = torch.zeros(max(depths) + 1, n_atoms, B)
        for b, (_, _, atoms) in enumerate(bonds):
            sides[max(depths) - depths[b], list(atoms), b] = 1.0
        chosen = torch.zeros(D, len(bends))
        chosen[bends, range(len(bends))] = 1.0
        for name, tensor in {
            "fixed": torch.tensor([bond[0] for bond in bonds]),
            "pivot": torch.tensor([bond[1] for bond in bonds]),
            "angles": torch.tensor([moves[place].angle for place in bends], dtype=torch.int64).reshape(-1, 3).T,
            "stretching": LENGTH_UNIT * maps["stretch"],
            "turning": maps["turn"],
            "chosen": chosen,
            "bending": bending,
            "sides": sides,
        }.items():
            self.register_buffer(name, tensor.double() if tensor.is_floating_point() else tensor, persistent=False)

    def forward(self, base: Tensor, delta: Tensor) -> Tensor:
        """Moved geometries [W, N, 3] nm; ``delta`` [W, D]."""
        dtype = base.dtype
        fixed, pivot = take(base, self.fixed), take(base, self.pivot)
        along = pivot - fixed
        axis = unit_vector(along)
        turn = change = torch.zeros_like(axis).unsqueeze(-1) * axis.unsqueeze(-2)
        shift = (delta @ self.stretching.to(dtype)).unsqueeze(-1) * axis
        if "turn" in self.kinds:
            change = turn = rotation((delta @ self.turning.to(dtype)).unsqueeze(-1) * axis)
        if "bend" in self.kinds:
            at_fixed, at_pivot = (rotation(vector) for vector in self._bend_vectors(base, delta))
            change = _both(_both(at_fixed, turn), at_pivot)
            shift = shift + _apply(at_fixed, along + shift)
        positions = base
        for side in self.sides.to(dtype).unbind(0):
            # A product with zeros and ones: an atom takes the values of the bond that moves it, if there is one.
            matrix = (side @ change.flatten(-2)).view(*base.shape, 3)
            positions = positions + _apply(matrix, positions - side @ pivot) + side @ shift
        return positions

    def _bend_vectors(self, base: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Rotation vectors [W, B, 3] of the bends at the fixed and at the moving end of each bond."""
        i, j, k = (take(base, index) for index in self.angles.unbind(0))
        normal = unit_vector(torch.linalg.cross(i - j, k - j)) * (delta @ self.chosen.to(delta.dtype)).unsqueeze(-1)
        first, second = (rows.to(base.dtype).T @ normal for rows in self.bending.unbind(0))
        return first, second


def unit_vector(vector: Tensor) -> Tensor:
    """Vectors [..., 3] over their length; finite for a vanishing one."""
    length: Tensor = (vector.square().sum(-1, keepdim=True) + 1e-20).sqrt()
    return vector / length


def rotation(vector: Tensor) -> Tensor:
    """R - 1 [..., 3, 3] of right-handed rotations by rotation vectors [..., 3] rad (Rodrigues' formula); 0 for 0."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).reshape(*x.shape, 3, 3)
    angle = (vector.square().sum(-1) + 1e-20).sqrt()[..., None, None]
    half = torch.sin(0.5 * angle) / angle
    turned: Tensor = torch.sin(angle) / angle * cross + 2.0 * half * half * _product(cross, cross)
    return turned


def _both(first: Tensor, second: Tensor) -> Tensor:
    """R S - 1 from R - 1 and S - 1."""
    return first + second + _product(first, second)


def _product(first: Tensor, second: Tensor) -> Tensor:
    return (first.unsqueeze(-1) * second.unsqueeze(-3)).sum(-2)


def _apply(matrix: Tensor, vectors: Tensor) -> Tensor:
    return (matrix * vectors.unsqueeze(-2)).sum(-1)
