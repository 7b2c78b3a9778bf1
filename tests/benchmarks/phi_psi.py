"""The expert's yardstick: well-tempered metadynamics on two dihedrals that somebody chose by hand.

A campaign uses it with ``sampler: phi_psi:explore_phi_psi``; everything else (model, walkers, guards, gates, selection)
is the campaign's own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openmm

from uqbias.campaign.exploration import Exploration, explore
from uqbias.topology import Topology, dihedral_angles
from uqbias.units import kt

BINS = 72
PHI_PSI = ((4, 6, 8, 14), (6, 8, 14, 16))


class PhiPsiMetadynamics:
    """Bias of all walkers on (φ, ψ), on a periodic grid, as one OpenMM Force."""

    def __init__(
        self,
        temperature: float,
        height: float = 1.0,
        sigma: float = 0.35,
        biasfactor: float = 10.0,
        pace: int = 50,
    ) -> None:
        self.temperature, self.height, self.sigma, self.biasfactor = temperature, height, sigma, biasfactor
        self.pace = pace
        self.grid = np.linspace(-np.pi, np.pi, BINS + 1)
        self.values = np.zeros((BINS + 1, BINS + 1))
        self.table: Any = None
        self.force: Any = None

    def forces(self, topology: Topology, n_walkers: int) -> list[Any]:
        """One force over all walkers, sharing one table."""
        self.table = openmm.Continuous2DFunction(BINS + 1, BINS + 1, self._flat(), *([-np.pi, np.pi] * 2), True)
        self.force = openmm.CustomCompoundBondForce(5, "bias(dihedral(p1, p2, p3, p4), dihedral(p2, p3, p4, p5))")
        self.force.addTabulatedFunction("bias", self.table)
        for walker in range(n_walkers):
            shift = walker * len(topology)
            self.force.addBond([atom + shift for atom in (*PHI_PSI[0], PHI_PSI[1][3])])
        return [self.force]

    def update(self, context: Any, step: int, positions: np.ndarray) -> None:
        """Deposit a hill for each walker."""
        if step == 0 or step % self.pace:
            return
        angles = dihedral_angles(positions, PHI_PSI)
        angles = angles[np.isfinite(angles).all(axis=1)]
        here = np.array([self._value(phi, psi) for phi, psi in angles])
        scale = np.exp(-here / (kt(self.temperature) * (self.biasfactor - 1)))
        for (phi, psi), factor in zip(angles, scale, strict=True):
            kernels = [
                np.exp(-0.5 * (np.angle(np.exp(1j * (self.grid - centre))) / self.sigma) ** 2) for centre in (phi, psi)
            ]
            self.values += self.height * factor * np.outer(*kernels)
        # The ends of a periodic table must agree to the last bit.
        self.values[-1, :], self.values[:, -1] = self.values[0, :], self.values[:, 0]
        self.table.setFunctionParameters(BINS + 1, BINS + 1, self._flat(), *([-np.pi, np.pi] * 2))
        self.force.updateParametersInContext(context)

    def _value(self, phi: float, psi: float) -> float:
        i, j = (round((angle + np.pi) / (2 * np.pi) * BINS) for angle in (phi, psi))
        return float(self.values[i, j])

    def _flat(self) -> np.ndarray:
        return self.values.T.flatten()  # OpenMM wants φ to run fastest


def explore_phi_psi(job: Exploration, advance: Any = None) -> dict[str, Any]:
    """Sampler of a campaign."""
    return explore(job, advance, external=PhiPsiMetadynamics(job.md["temperature"]))
