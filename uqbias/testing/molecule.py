"""A molecule to test on: methoxyethane with a force field of its own, so that no oracle is needed."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.csgraph import breadth_first_order
from scipy.spatial.transform import Rotation
from torch import Tensor

from uqbias.molecule.frames import Frames
from uqbias.molecule.topology import Topology

Array = NDArray[np.float64]

#: Three elements, each of several atoms but oxygen, and one torsion of heavy atoms.
NUMBERS = (8, 6, 6, 6, 1, 1, 1, 1, 1, 1, 1, 1)
#: nm; the trans minimum, atoms in the order O, CH2, CH3 (on O), CH3, then their hydrogens.
POSITIONS = 0.1 * np.array(
    [
        [0.006, -0.713, 0.000],
        [0.000, 0.706, 0.000],
        [1.325, -1.226, 0.000],
        [-1.442, 1.160, 0.000],
        [0.531, 1.086, 0.887],
        [0.531, 1.086, -0.887],
        [1.242, -2.313, 0.000],
        [1.881, -0.906, -0.892],
        [1.881, -0.906, 0.892],
        [-1.955, 0.781, -0.886],
        [-1.955, 0.781, 0.886],
        [-1.502, 2.252, 0.000],
    ]
)
#: C-O-C-C: the torsion of the heavy atoms.
TORSION = (2, 0, 1, 3)
#: Bonds that turn freely, as (fixed atom, turned atom); the first is the axis of `TORSION`.
ROTATABLE = ((0, 1), (0, 2), (1, 3))
#: kJ/mol/nm², of bonds and of distances over two bonds.
STRETCH, BEND = 2.0e5, 4.0e4
#: kJ/mol, threefold barrier of `TORSION`.
BARRIER = 6.0
#: kJ/mol and nm, repulsion A exp(-d/ρ) of atoms three and more bonds apart.
REPULSION, RANGE = 4.0e4, 0.025


@cache
def topology() -> Topology:
    """Bond graph of the molecule."""
    return Topology.from_positions(NUMBERS, POSITIONS)


def energy(positions: Tensor) -> Tensor:
    """Energy of the test force field: harmonic bonds and 1-3 distances, a torsion and a repulsion.

    Parameters
    ----------
    positions : [n, N, 3] nm.

    Returns
    -------
    [n] kJ/mol.
    """
    apart = torch.from_numpy(np.triu(topology().bond_separation(), k=1))
    rest = torch.tensor(POSITIONS, dtype=positions.dtype)
    total = positions.new_zeros(len(positions))
    for separation, constant in ((1, STRETCH), (2, BEND)):
        i, j = torch.nonzero(apart == separation, as_tuple=True)
        stretched = (positions[:, i] - positions[:, j]).norm(dim=-1) - (rest[i] - rest[j]).norm(dim=-1)
        total = total + 0.5 * constant * stretched.square().sum(-1)
    i, j = torch.nonzero(apart >= 3, as_tuple=True)
    total = total + REPULSION * torch.exp(-(positions[:, i] - positions[:, j]).norm(dim=-1) / RANGE).sum(-1)
    a, b, c, d = (positions[:, atom] for atom in TORSION)
    first, second = torch.linalg.cross(b - a, c - b), torch.linalg.cross(c - b, d - c)
    cosine = (first * second).sum(-1) / (first.norm(dim=-1) * second.norm(dim=-1))
    result: Tensor = total + 0.5 * BARRIER * (1 + 4 * cosine**3 - 3 * cosine)
    return result


def label(positions: NDArray[Any]) -> Frames:
    """Frames at ``positions`` [n, N, 3] nm with energies and forces of `energy`."""
    x = torch.tensor(positions, dtype=torch.float64, requires_grad=True)
    energies = energy(x)
    (gradient,) = torch.autograd.grad(energies.sum(), x)
    return Frames(np.array(NUMBERS), x.detach().numpy(), energies.detach().numpy(), -gradient.numpy())


def frames(n: int, seed: int = 0, noise: float = 0.003, turn: float = 0.7) -> Frames:
    """Labelled frames: every bond of `ROTATABLE` turned at random, and noise on every coordinate.

    Parameters
    ----------
    n : frames.
    seed : seed of the random numbers.
    noise : nm, standard deviation.
    turn : rad, standard deviation of the turns.
    """
    random = np.random.default_rng(seed)
    x = np.repeat(POSITIONS[None], n, axis=0)
    for bond in ROTATABLE:
        x = turned(x, bond, random.normal(0.0, turn, n))
    return label(x + random.normal(0.0, noise, x.shape))


def turned(positions: Array, bond: tuple[int, int], angles: Array) -> Array:
    """Turn what lies beyond the second atom of ``bond``.

    Parameters
    ----------
    positions : [n, N, 3].
    bond : (fixed atom, turned atom).
    angles : [n] rad.

    Returns
    -------
    [n, N, 3].
    """
    fixed, pivot = bond
    far, centre = side(fixed, pivot), positions[:, pivot, None]
    axis = positions[:, pivot] - positions[:, fixed]
    turn = Rotation.from_rotvec(axis * (angles / np.linalg.norm(axis, axis=-1))[:, None]).as_matrix()
    moved = positions.copy()
    moved[:, far] = centre + (positions[:, far] - centre) @ turn.swapaxes(1, 2)
    return moved


def side(fixed: int, pivot: int) -> list[int]:
    """Atoms on the far side of the bond from ``fixed`` to ``pivot``, ``pivot`` included."""
    graph = topology().graph(without=(min(fixed, pivot), max(fixed, pivot)))
    return sorted(breadth_first_order(graph, pivot, directed=False, return_predecessors=False).tolist())


def swaps(labelled: bool) -> list[tuple[int, int]]:
    """Pairs of like atoms whose exchange must leave u as it is.

    Parameters
    ----------
    labelled : whether u tells like atoms apart by the bond graph; then only hydrogens on one atom are exchanged.
    """
    like = [(i, j) for i in range(len(NUMBERS)) for j in range(i) if NUMBERS[i] == NUMBERS[j]]
    if not labelled:
        return like
    neighbours = topology().neighbours
    return [(i, j) for i, j in like if NUMBERS[i] == 1 and neighbours[i] == neighbours[j]]


def exploded() -> dict[str, Array]:
    """Broken geometries by what is wrong with them, [G, N, 3] nm.

    ``clash``: two atoms 0.02 nm apart, bonded and not. ``apart``: fragments 5 nm apart, and every atom 5 nm from the
    next. ``line``: all atoms on a straight line.
    """
    random = np.random.default_rng(0)
    clashes = []
    for i, j in ((2, 3), (0, 1), (1, 2), (6, 11), (1, 4), (0, 9)):
        x = frames(1, seed=i + 1).positions[0].copy()
        direction = random.normal(size=3)
        x[j] = x[i] + 0.02 * direction / np.linalg.norm(direction)
        clashes.append(x)
    apart = []
    for fixed, pivot in (*ROTATABLE, (3, 11)):
        x = frames(1, seed=pivot).positions[0].copy()
        bond = x[pivot] - x[fixed]
        x[side(fixed, pivot)] += 5.0 * bond / np.linalg.norm(bond)
        apart.append(x)
    spread = 5.0 * np.stack(np.meshgrid(range(2), range(2), range(3), indexing="ij"), axis=-1).reshape(-1, 3)
    along = np.zeros_like(POSITIONS)
    along[:, 0] = 0.13 * np.arange(len(NUMBERS))
    tilted = along @ np.array([[0.48, 0.6, 0.64], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    return {
        "clash": np.stack(clashes),
        "apart": np.stack([*apart, spread + random.normal(0.0, 0.01, spread.shape)]),
        "line": np.stack([along, tilted]),
    }
