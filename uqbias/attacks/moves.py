"""Rigid moves of one side of a bond."""

from __future__ import annotations

import torch
from torch import Tensor

from uqbias.topology import Topology


def branch(topology: Topology, fixed: int, pivot: int) -> tuple[int, ...] | None:
    """Atoms on the side of ``pivot`` of the bond ``fixed``-``pivot``, ascending; None where the bond is in a ring."""
    reached, front = {pivot}, [pivot]
    while front:
        i = front.pop()
        for j in topology.neighbours[i]:
            if (i, j) == (pivot, fixed):
                continue
            if j == fixed:
                return None
            if j not in reached:
                reached.add(j)
                front.append(j)
    return tuple(sorted(reached))


def smaller_side(topology: Topology, i: int, j: int) -> tuple[int, int] | None:
    """The bond as (fixed, pivot) so that the side of ``pivot`` has fewer atoms; None where it is in a ring."""
    first, second = branch(topology, j, i), branch(topology, i, j)
    if first is None or second is None:
        return None
    return (j, i) if len(first) < len(second) else (i, j)


def mask(n_atoms: int, atoms: tuple[int, ...]) -> Tensor:
    """[N] one for the atoms given, else zero."""
    found = torch.zeros(n_atoms)
    found[list(atoms)] = 1.0
    return found


def unit_vector(vector: Tensor) -> Tensor:
    """Vectors [..., 3] nm over their length; finite for a vanishing one."""
    length: Tensor = (vector.square().sum(-1, keepdim=True) + 1e-20).sqrt()
    return vector / length


def rotated(positions: Tensor, origin: Tensor, axis: Tensor, angle: Tensor, moves: Tensor) -> Tensor:
    """Positions [W, N, 3] with the atoms of ``moves`` turned about an axis, right-handed (Rodrigues' formula).

    Parameters
    ----------
    origin : [W, 3] a point of the axis.
    axis : [W, 3] of length one.
    angle : [W] rad; an angle of zero moves nothing, to the last bit.
    moves : [N] one for the atoms that turn, else zero.
    """
    apart = positions - origin.unsqueeze(1)
    along = axis.unsqueeze(1).expand_as(apart)
    cosine, sine = torch.cos(angle).view(-1, 1, 1), torch.sin(angle).view(-1, 1, 1)
    across = torch.linalg.cross(along, apart)
    share = (along * apart).sum(-1, keepdim=True)
    change = (cosine - 1.0) * (apart - along * share) + sine * across
    found: Tensor = positions + moves.view(1, -1, 1) * change
    return found
