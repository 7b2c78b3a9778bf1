"""Geometric measures of a molecule: bonds, angles, contacts, handedness and torsions, and the faults in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.molecule.approaches import Approaches, Fault
from uqbias.molecule.frames import Frames
from uqbias.molecule.limits import CoordinationLimits
from uqbias.molecule.structure import made_whole
from uqbias.molecule.topology import Quadruple, Topology
from uqbias.units import ANGSTROM

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
#: Elements that a hydrogen may approach in a hydrogen bond.
HYDROGEN_BOND = (7, 8, 9)


class Shape:
    """Shape of a molecule in reference geometries, and how far a geometry may be from it.

    Parameters
    ----------
    topology : bond graph. A mobile hydrogen is judged by the bond to donor or acceptor that is shorter relative to its
        reference; angles at it are not judged, nor is it too close to either or to their neighbours.
    reference : frames, or positions [n, N, 3] nm in vacuum; lengths and angles are compared with their means, and
        handedness with that of the majority.
    bonds : shortest and longest bond as multiples of its reference length.
    angle : largest deviation of an angle, degrees; None for no such test.
    contacts : [N, N] nm, least distance of atoms three or more bonds apart; None for no such test.
    closest, coordination : see `uqbias.molecule.approaches.Approaches`, of reference frames with cells.
    keep_chirality : whether an inverted stereocentre is a fault.
    """

    def __init__(
        self,
        topology: Topology,
        reference: Frames | NDArray[Any],
        *,
        bonds: tuple[float, float],
        angle: float | None = None,
        contacts: Array | None = None,
        closest: float = 0.0,
        coordination: Sequence[CoordinationLimits] = (),
        keep_chirality: bool = True,
    ) -> None:
        frames = reference if isinstance(reference, Frames) else Frames(np.array(topology.numbers), reference)
        x = made_whole(topology, frames.positions, frames.cells, frames.periodic)
        self._topology, self._periodic, self._approaches = topology, frames.periodic, None
        if frames.cells is not None or coordination:
            self._approaches = Approaches(topology, replace(frames, positions=x), closest, contacts, coordination)
        self._bond_range, self._angle_tolerance = bonds, angle
        self._bonds = np.array(topology.bonds, dtype=np.int64).reshape(-1, 2)
        self._lengths = distances(x, self._bonds).mean(axis=0)
        mobile = np.array(topology.mobile, dtype=np.int64).reshape(-1, 3)
        hydrogens = mobile[:, 1]
        self._moving = np.array(topology.mobile_bonds(), dtype=np.int64)
        self._accepted = mobile[:, 1:]
        self._lengths[self._moving], self._accepted_lengths = _side_lengths(topology, x)
        angles = [] if angle is None else [three for three in topology.angles() if not np.isin(three, hydrogens).any()]
        self._angles = np.array(angles, dtype=np.int64).reshape(-1, 3)
        self._bent = bond_angles(x, self._angles).mean(axis=0)
        separation = topology.bond_separation()
        far = np.triu(separation >= 3, k=1)
        if frames.cells is not None:
            far &= separation < len(topology)  # the others approach through images, too
        either = topology.either_side().bond_separation() >= 3
        far[hydrogens] &= either[hydrogens]
        far[:, hydrogens] &= either[:, hydrogens]
        self._far = np.argwhere(far if contacts is not None else np.zeros_like(far))
        self._nearest = np.empty(0) if contacts is None else contacts[self._far[:, 0], self._far[:, 1]]
        centres = topology.chiral_centres() if keep_chirality else []
        self._centres = np.array(centres, dtype=np.int64).reshape(-1, 4)
        self._handedness = np.sign(chirality(x, centres).sum(axis=0))

    def faults(self, positions: Array, cells: Array | None = None) -> list[Fault | None]:
        """First fault by bond, angle, contact and handedness, of finite ``positions`` [n, N, 3] nm; None for none.

        ``cells`` [n, 3, 3] nm where the reference has some.
        """
        result: list[Fault | None] = [None] * len(positions)
        positions = made_whole(self._topology, positions, cells, self._periodic)
        for kind, atoms, values, severity, limit in self._measured(positions):
            if not severity.size:
                continue
            worst = severity.argmax(axis=1)
            for index in np.flatnonzero(severity.max(axis=1) > limit):
                if result[index] is None:
                    place = worst[index]
                    result[index] = Fault(kind, tuple(atoms[place].tolist()), float(values[index, place]))
        if self._approaches is not None:
            further = self._approaches.faults(positions, cells)
            result = [first or second for first, second in zip(result, further, strict=True)]
        return result

    def _measured(self, x: Array) -> Iterator[tuple[str, Indices, NDArray[Any], NDArray[Any], float]]:
        """Kind of fault, atoms [K, ...], measures [n, K], how bad each is [n, K], and from where on that is a fault."""
        low, high = self._bond_range
        ratio = distances(x, self._bonds) / self._lengths
        accepted = distances(x, self._accepted) / self._accepted_lengths
        ratio[:, self._moving] = np.minimum(ratio[:, self._moving], accepted)
        yield "bond", self._bonds, ratio, np.maximum(ratio / high, low / np.maximum(ratio, 1e-12)), 1.0
        if self._angle_tolerance is not None:
            off = np.abs(bond_angles(x, self._angles) - self._bent)
            yield "angle", self._angles, off, off, self._angle_tolerance
        distance = distances(x, self._far)
        yield "clash", self._far, distance, -distance / self._nearest, -1.0
        inverted = -chirality(x, self._centres) * self._handedness
        yield "chirality", self._centres, inverted, inverted, 0.0


def _side_lengths(topology: Topology, x: Array) -> tuple[Array, Array]:
    """Mean lengths of mobile hydrogens' bonds to donor and acceptor, [M] nm each, over the frames on that side.

    Where there are none the sum of the covalent radii.
    """
    from ase.data import covalent_radii

    sides = np.array([[(d, h), (a, h)] for d, h, a in topology.mobile], dtype=np.int64).reshape(-1, 2)
    usual = covalent_radii[np.array(topology.numbers)[sides]].sum(axis=1).reshape(-1, 2) * ANGSTROM
    lengths = distances(x, sides).reshape(len(x), -1, 2)
    there = (lengths / usual).argmin(axis=2)[..., None] == np.arange(2)
    count = there.sum(axis=0)
    mean = np.where(count > 0, (lengths * there).sum(axis=0) / np.maximum(count, 1), usual)
    return mean[:, 0], mean[:, 1]


def covalent_contacts(numbers: Sequence[int], share: float) -> Array:
    """Least distances [N, N] nm as a share of the sum of covalent radii."""
    from ase.data import covalent_radii

    radii = covalent_radii[list(numbers)] * ANGSTROM
    return np.asarray(share * (radii[:, None] + radii))


def van_der_waals_contacts(numbers: Sequence[int], share: float, hydrogen_bond: float) -> Array:
    """Least distances [N, N] nm as a share of the sum of van der Waals radii.

    Parameters
    ----------
    numbers : [N] atomic numbers.
    hydrogen_bond : the share for hydrogen and N, O or F, which come closer.
    """
    from ase.data import vdw_radii

    elements = np.array(numbers)
    radii = np.nan_to_num(vdw_radii[elements], nan=1.7) * ANGSTROM
    donated = (elements == 1)[:, None] & np.isin(elements, HYDROGEN_BOND)
    return np.asarray(np.where(donated | donated.T, hydrogen_bond, share) * (radii[:, None] + radii))


class StiffTorsions:
    """Largest turn of given torsions away from their values in a reference geometry.

    Parameters
    ----------
    quadruples : [T, 4] atom indices of the stiff torsions.
    reference : [N, 3] nm.
    """

    def __init__(self, quadruples: Sequence[Sequence[int]], reference: NDArray[Any]) -> None:
        self.quadruples = [tuple(int(i) for i in four) for four in quadruples]
        self.reference = dihedral_angles(np.asarray(reference)[None], self.quadruples)

    def __call__(self, positions: Array) -> Array:
        """Turn in degrees, [W], of ``positions`` [W, N, 3]."""
        if not self.quadruples:
            return np.zeros(len(positions))
        turn = dihedral_angles(positions, self.quadruples) - self.reference
        return np.asarray(np.degrees(np.abs((turn + np.pi) % (2 * np.pi) - np.pi)).max(axis=1), dtype=np.float64)


def distances(positions: Array, pairs: Indices) -> Array:
    """Distances [n, P] of the pairs [P, 2] of atoms in ``positions`` [n, N, 3], in the same unit."""
    return np.asarray(np.linalg.norm(positions[:, pairs[:, 0]] - positions[:, pairs[:, 1]], axis=-1))


def bond_angles(positions: Array, triples: Indices) -> Array:
    """Angles [n, A] in degrees of the triples [A, 3], the vertex second, in ``positions`` [n, N, 3]."""
    first = positions[:, triples[:, 0]] - positions[:, triples[:, 1]]
    second = positions[:, triples[:, 2]] - positions[:, triples[:, 1]]
    norm = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    cosine = (first * second).sum(axis=-1) / np.maximum(norm, 1e-12)
    return np.asarray(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))))


def dihedral_angles(positions: NDArray[Any], quadruples: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Dihedral angles in the IUPAC sign convention: 0 for cis, positive for a clockwise turn of the far bond.

    Parameters
    ----------
    positions : [..., N, 3], any unit of length.
    quadruples : [T, 4] atom indices.

    Returns
    -------
    [..., T] rad in (-π, π].
    """
    x = np.asarray(positions, dtype=float)
    index = np.asarray(quadruples, dtype=int).reshape(-1, 4)
    a, b, c, d = (x[..., index[:, column], :] for column in range(4))
    axis = c - b
    first = np.cross(b - a, axis)
    second = np.cross(axis, d - c)
    sine = np.einsum("...x,...x->...", b - a, second) * np.linalg.norm(axis, axis=-1)
    angles: NDArray[np.float64] = np.arctan2(sine, np.einsum("...x,...x->...", first, second))
    return angles


def chirality(positions: NDArray[Any], centres: Sequence[Quadruple] | Indices) -> NDArray[np.int64]:
    """Handedness of each centre of `Topology.chiral_centres`.

    Parameters
    ----------
    positions : [n, N, 3], any unit of length.

    Returns
    -------
    [n, C] sign (+1, -1; 0 if flat, or too far apart for a number) of (a - centre) · [(b - centre) × (c - centre)].
    """
    x = np.asarray(positions, dtype=float)
    index = np.asarray(centres, dtype=int).reshape(-1, 4)
    a, b, c = (x[:, index[:, column]] - x[:, index[:, 0]] for column in (1, 2, 3))
    with np.errstate(over="ignore", invalid="ignore"):
        volumes = np.nan_to_num(np.einsum("ncx,ncx->nc", a, np.cross(b, c)))
    signs: NDArray[np.int64] = np.sign(volumes).astype(np.int64)
    return signs
