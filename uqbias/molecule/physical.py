"""Which geometries are physical, and if not, why not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.molecule.topology import Topology, chirality
from uqbias.units import ANGSTROM

Array = NDArray[np.float64]

#: Verdict of a frame that passed every filter.
PHYSICAL = ""


#: Elements that a hydrogen may approach in a hydrogen bond.
HYDROGEN_BOND = (7, 8, 9)


@dataclass(frozen=True)
class Limits:
    """How far a physical geometry may be from the reference.

    Attributes
    ----------
    bond_low, bond_high : bond length as a multiple of its reference.
    angle_tolerance : degrees.
    clash : share of the sum of van der Waals radii, for atoms three or more bonds apart.
    hydrogen_bond : the same for hydrogen and N, O or F, which come closer.
    stiff_torsion : degrees that a stiff torsion may turn.
    energy_window : model energy above or below the reference mean, kJ/mol; a model may invent deep holes.
    """

    bond_low: float = 0.8
    bond_high: float = 1.25
    angle_tolerance: float = 25.0
    clash: float = 0.7
    hydrogen_bond: float = 0.6
    stiff_torsion: float = 60.0
    energy_window: float = 120.0


class PhysicalFilter:
    """Bond lengths, angles, clashes, chirality, stiff torsions and energy, against reference frames.

    Parameters
    ----------
    topology : bond graph.
    reference : [n, N, 3] nm, physical frames (the start frames); lengths and angles are compared with their means.
    reference_energy : mean energy of the reference frames, kJ/mol; None leaves the energy out.
    limits : tolerances.
    """

    def __init__(
        self,
        topology: Topology,
        reference: NDArray[Any],
        reference_energy: float | None = None,
        limits: Limits | None = None,
    ) -> None:
        from ase.data import vdw_radii

        self.limits = limits or Limits()
        self.reference_energy = reference_energy
        self.topology = topology
        self._bonds = np.array(topology.bonds, dtype=np.int64).reshape(-1, 2)
        self._angles = np.array(topology.angles(), dtype=np.int64).reshape(-1, 3)
        self._centres = topology.chiral_centres()
        first, second = np.triu_indices(len(topology.numbers), 1)
        far = topology.bond_separation()[first, second] >= 3
        self._pairs = np.stack([first[far], second[far]], axis=1)
        radii = np.nan_to_num(vdw_radii[list(topology.numbers)], nan=1.7) * ANGSTROM
        light = np.array(topology.numbers)[self._pairs]
        bridge = (light == 1).any(axis=1) & np.isin(light, HYDROGEN_BOND).any(axis=1)
        share = np.where(bridge, self.limits.hydrogen_bond, self.limits.clash)
        self._closest = share * radii[self._pairs].sum(axis=1)
        reference = np.asarray(reference, dtype=np.float64)
        self._bond_reference = _lengths(reference, self._bonds).mean(axis=0)
        self._angle_reference = _bond_angles(reference, self._angles).mean(axis=0)
        signs = chirality(reference, self._centres)
        self._handedness = np.sign(signs.sum(axis=0))

    def verdicts(
        self,
        positions: NDArray[Any],
        energy: NDArray[Any] | None = None,
        stiff_deviation: NDArray[Any] | None = None,
    ) -> list[str]:
        """Judge frames; the first fault found is the verdict.

        Parameters
        ----------
        positions : [n, N, 3] nm.
        energy : [n] model energy, kJ/mol, or None.
        stiff_deviation : [n] largest turn of a stiff torsion from its reference, degrees, or None.

        Returns
        -------
        list of str
            `PHYSICAL` (empty) or the fault, e.g. ``"bond 3-5 is 1.40 x reference"``.
        """
        positions = np.asarray(positions, dtype=np.float64)
        result = np.full(len(positions), PHYSICAL, dtype=object)
        finite = np.isfinite(positions).all(axis=(1, 2))
        if energy is not None:
            finite &= np.isfinite(energy)
        result[~finite] = "not finite"
        open_frames = np.flatnonzero(finite)
        faults = self._geometry_faults(positions[open_frames])
        result[open_frames] = faults
        if stiff_deviation is not None:
            turned = (result == PHYSICAL) & ~(np.asarray(stiff_deviation) <= self.limits.stiff_torsion)
            for index in np.flatnonzero(turned):
                result[index] = f"stiff torsion turned by {stiff_deviation[index]:.0f} degrees"
        if energy is not None and self.reference_energy is not None:
            excess = np.asarray(energy) - self.reference_energy
            for index in np.flatnonzero((result == PHYSICAL) & (np.abs(excess) > self.limits.energy_window)):
                side = "above" if excess[index] > 0 else "below"
                result[index] = f"energy {abs(excess[index]):.0f} kJ/mol {side} mean"
        return [str(verdict) for verdict in result]

    def _geometry_faults(self, positions: Array) -> NDArray[Any]:
        """Faults of finite frames by bond, angle, clash and chirality, in this order."""
        limits, result = self.limits, np.full(len(positions), PHYSICAL, dtype=object)
        if not len(positions):
            return result
        if len(self._bonds):
            ratio = _lengths(positions, self._bonds) / self._bond_reference
            excess = np.maximum(ratio / limits.bond_high, limits.bond_low / np.maximum(ratio, 1e-12))
            for index in np.flatnonzero(excess.max(axis=1) > 1.0):
                worst = int(excess[index].argmax())
                i, j = self._bonds[worst]
                result[index] = f"bond {i}-{j} is {ratio[index, worst]:.2f} x reference"
        if len(self._angles):
            angle = _bond_angles(positions, self._angles)
            off = np.abs(angle - self._angle_reference)
            for index in np.flatnonzero((result == PHYSICAL) & (off.max(axis=1) > limits.angle_tolerance)):
                worst = int(off[index].argmax())
                i, j, k = self._angles[worst]
                result[index] = f"angle {i}-{j}-{k} is {off[index, worst]:.0f} degrees off reference"
        if len(self._pairs):
            distance = _lengths(positions, self._pairs)
            share = distance / self._closest
            for index in np.flatnonzero((result == PHYSICAL) & (share.min(axis=1) < 1.0)):
                worst = int(share[index].argmin())
                i, j = self._pairs[worst]
                result[index] = f"clash of {i} and {j} at {distance[index, worst] / ANGSTROM:.2f} Å"
        if self._centres:
            wrong = chirality(positions, self._centres) * self._handedness < 0
            for index in np.flatnonzero((result == PHYSICAL) & wrong.any(axis=1)):
                result[index] = f"chirality of atom {self._centres[int(wrong[index].argmax())][0]} inverted"
        return result


def _lengths(positions: Array, pairs: NDArray[np.int64]) -> Array:
    """Distances [n, P] in nm."""
    difference = positions[:, pairs[:, 0]] - positions[:, pairs[:, 1]]
    return np.asarray(np.linalg.norm(difference, axis=-1))


def _bond_angles(positions: Array, triples: NDArray[np.int64]) -> Array:
    """Angles [n, A] in degrees."""
    first = positions[:, triples[:, 0]] - positions[:, triples[:, 1]]
    second = positions[:, triples[:, 2]] - positions[:, triples[:, 1]]
    norm = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    cosine = (first * second).sum(axis=-1) / np.maximum(norm, 1e-12)
    return np.asarray(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))))
