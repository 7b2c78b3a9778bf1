"""Rigid bonds and angles: which distances to fix without redundant ones, and putting a geometry onto them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.errors import UqbiasError, did_you_mean
from uqbias.molecule.topology import Topology

Array = NDArray[np.float64]
#: (i, j, length in nm).
Constraint = tuple[int, int, float]

KINDS = ("none", "hbonds", "bonds", "bonds_angles")
#: Relative accuracy of constrained distances.
TOLERANCE = 1e-6
#: A constraint whose direction is nearer than this to the span of the others counts as redundant.
INDEPENDENT = 0.05


def choose_constraints(topology: Topology, positions: NDArray[Any], kind: str) -> list[Constraint]:
    """Distances to fix, with their mean lengths over given geometries.

    In a single frame of a simulation each bond is several per cent too long or too short: held there, a hydrogen bond
    was off by 3 kJ/mol.

    An angle is fixed by the distance of its outer atoms. A centre with n neighbours has 2n-3 independent angles (a
    planar centre: n-1), so at most 1, 2, 5 distances are fixed around centres with 2, 3, 4 neighbours; distances
    between heavy atoms come first. In rings more may depend on each other: a distance whose gradient lies in the
    span of those already chosen is left out, since redundant constraints do not converge.

    Parameters
    ----------
    positions : [n, N, 3] or [N, 3] nm, the geometries that give the lengths.
    kind : ``"none"``, ``"hbonds"`` (bonds to hydrogen), ``"bonds"`` or ``"bonds_angles"``.

    Returns
    -------
    List of (i, j, length in nm).

    Raises
    ------
    UqbiasError
        If the kind is unknown, or bonds are held in a molecule with a mobile proton.
    """
    if kind not in KINDS:
        raise UqbiasError(f"unknown constraints '{kind}'", did_you_mean(kind, KINDS))
    frames = np.asarray(positions, dtype=np.float64).reshape(-1, len(topology), 3)
    if kind == "none":
        return []
    if topology.mobile:
        _, hydrogen, acceptor = topology.mobile[0]
        raise UqbiasError(
            f"constraints '{kind}' would hold hydrogen {hydrogen}, which may move to atom {acceptor}",
            "take constraints: none and steps of 0.5 fs; in a campaign, system.mobile_protons: [] keeps it in place",
        )
    bonds = [
        pair
        for pair in topology.bonds
        if kind != "hbonds" or 1 in (topology.numbers[pair[0]], topology.numbers[pair[1]])
    ]
    chosen = _Independent(frames[0])
    pairs = [pair for pair in bonds if chosen.add(pair)]
    if kind == "bonds_angles":
        bonded = set(topology.bonds)
        for around in topology.neighbours:
            allowed = {0: 0, 1: 0, 2: 1, 3: 2}.get(len(around), 2 * len(around) - 3)
            outer = [(i, j) for n, i in enumerate(around) for j in around[n + 1 :] if (i, j) not in bonded]
            outer.sort(key=lambda pair: ((topology.numbers[pair[0]] == 1) + (topology.numbers[pair[1]] == 1), pair))
            for pair in outer:
                if allowed and chosen.add(pair):
                    pairs.append(pair)
                    allowed -= 1
    return [(i, j, float(np.linalg.norm(frames[:, i] - frames[:, j], axis=-1).mean())) for i, j in pairs]


class _Independent:
    """Keeps an orthonormal basis of the gradients of the distances chosen so far."""

    def __init__(self, positions: Array) -> None:
        self.positions = positions
        self.basis = np.zeros((0, positions.size))

    def add(self, pair: tuple[int, int]) -> bool:
        """Take the pair if its gradient is independent of the earlier ones."""
        i, j = pair
        direction = self.positions[i] - self.positions[j]
        row = np.zeros_like(self.positions)
        row[i] = direction / (np.sqrt(2) * np.linalg.norm(direction))
        row[j] = -row[i]
        flat = row.ravel()
        for _ in range(2):
            flat = flat - (self.basis @ flat) @ self.basis
        length = np.linalg.norm(flat)
        if length < INDEPENDENT:
            return False
        self.basis = np.vstack([self.basis, flat / length])
        return True


class Projector:
    """Puts positions and velocities of one molecule onto its constraints, apart from any running simulation.

    Parameters
    ----------
    masses : [N] dalton.
    constraints : as of `choose_constraints`.
    """

    def __init__(self, masses: NDArray[Any], constraints: Sequence[Constraint]) -> None:
        self.constraints = list(constraints)
        if self.constraints:
            import openmm

            system = openmm.System()
            for mass in masses:
                system.addParticle(float(mass))
            for i, j, length in self.constraints:
                system.addConstraint(i, j, length)
            integrator = openmm.VerletIntegrator(0.001)
            integrator.setConstraintTolerance(TOLERANCE)
            self._context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))

    def __call__(self, positions: Array, velocities: Array) -> tuple[Array, Array]:
        """Nearest positions [N, 3] nm with the constrained lengths, and velocities [N, 3] nm/ps along them.

        Raises
        ------
        UqbiasError
            If the lengths cannot be reached from this geometry. OpenMM's solver (CCMA) takes the angles between
            constraints as constant, but those of the angles in a chain change with its torsions: it then diverges.
        """
        if not self.constraints:
            return positions, velocities
        self._context.setPositions(positions)
        self._context.applyConstraints(TOLERANCE)
        self._context.setVelocities(velocities)
        self._context.applyVelocityConstraints(TOLERANCE)
        state = self._context.getState(positions=True, velocities=True)
        x = np.asarray(state.getPositions(asNumpy=True)._value, dtype=np.float64)
        v = np.asarray(state.getVelocities(asNumpy=True)._value, dtype=np.float64)
        # Of NaN and numbers Python's max gives either.
        worst = float(np.max([abs(np.linalg.norm(x[i] - x[j]) / length - 1) for i, j, length in self.constraints]))
        if not np.isfinite(worst):
            raise UqbiasError(
                f"OpenMM's solver diverges with the {len(self.constraints)} constraints of this molecule",
                "take constraints: bonds; bonds_angles works for angles about one centre, not along a chain",
            )
        if not worst < 100 * TOLERANCE:
            raise UqbiasError(
                f"constraints off by {worst:.1e} after projection",
                "start from a geometry nearer to the constrained one",
            )
        return x, v


def check_constraints(topology: Topology, positions: Array, kind: str) -> None:
    """Put each of ``positions`` [n, N, 3] nm onto the constraints once, so that what cannot be held is said early.

    Raises
    ------
    UqbiasError
        As `choose_constraints` and `Projector`.
    """
    project = Projector(topology.masses(), choose_constraints(topology, positions, kind))
    for geometry in positions:
        project(geometry, np.zeros_like(geometry))
