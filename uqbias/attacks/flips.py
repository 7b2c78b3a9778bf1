"""Moves over barriers that no turn of a bond crosses: rings that flip, protons that change sides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from scipy.spatial.transform import Rotation

from uqbias.molecule.topology import Topology

Array = NDArray[np.float64]
#: Another geometry [N, 3] nm of one; it may clash, and is to be relaxed.
Displacement = Callable[[Array, np.random.Generator], Array]


def ring_flips(topology: Topology, rings: Sequence[Sequence[int]]) -> list[Displacement]:
    """Flip of each ring, chair to chair: the ring is reflected in its mean plane, what it bears is carried along.

    Each substituent turns as the corner of its ring atom does, so that all bonds and angles, and the handedness of each
    stereocentre, stay; axial ones become equatorial. None for a ring that shares a bond with another or is bridged:
    the move would break it.

    Parameters
    ----------
    rings : atoms of each ring in ring order, as `uqbias.molecule.rotors.ring_systems` gives them.
    """
    moves = []
    for ring in rings:
        opened = Topology(topology.numbers, tuple(bond for bond in topology.bonds if not {*bond} <= {*ring}))
        part = connected_components(opened.graph(), directed=False)[1]
        if len({*part[[*ring]].tolist()}) == len(ring):
            moves.append(_flip([*ring], [np.flatnonzero(part == part[atom]) for atom in ring]))
    return moves


def proton_moves(topology: Topology) -> list[Displacement]:
    """Transfer of each mobile proton, from where it is to the other side of its hydrogen bond.

    It is reflected in the plane midway between donor and acceptor; its bond keeps its length relative to the sum of the
    covalent radii.
    """
    from ase.data import covalent_radii

    radii = covalent_radii[list(topology.numbers)]

    def transfer(d: int, h: int, a: int) -> Displacement:
        def moved(positions: Array, random: np.random.Generator) -> Array:
            x, apart = positions.copy(), positions[a] - positions[d]
            x[h] -= 2 * ((x[h] - (x[a] + x[d]) / 2) @ apart) / (apart @ apart) * apart
            old, new = (a, d) if np.linalg.norm(x[h] - x[d]) < np.linalg.norm(x[h] - x[a]) else (d, a)
            x[h] = x[new] + (x[h] - x[new]) * (radii[h] + radii[new]) / (radii[h] + radii[old])
            return x

        return moved

    return [transfer(*triple) for triple in topology.mobile]


def _flip(ring: list[int], branches: list[NDArray[Any]]) -> Displacement:
    def moved(positions: Array, random: np.random.Generator) -> Array:
        x, old = positions.copy(), positions[ring]
        normal = np.linalg.svd(old - old.mean(axis=0))[2][2]
        new = old - 2 * np.outer((old - old.mean(axis=0)) @ normal, normal)
        for k, branch in enumerate(branches):
            sides = [k - 1, (k + 1) % len(ring)]
            turn, _ = Rotation.align_vectors(new[sides] - new[k], old[sides] - old[k])
            x[branch] = turn.apply(positions[branch] - old[k]) + new[k]
        return x

    return moved
