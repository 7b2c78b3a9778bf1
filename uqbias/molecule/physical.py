"""Filter of geometries: which are physical, and if not, why not."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.molecule.limits import Limits
from uqbias.molecule.measures import Shape, van_der_waals_contacts
from uqbias.molecule.topology import Topology
from uqbias.units import ANGSTROM

#: Verdict of a frame that passed every filter.
PHYSICAL = ""
#: Verdicts by kind of fault; fields are the atoms, the value and, for a distance, the value in Å.
MESSAGES = {
    "bond": "bond {0}-{1} is {value:.2f} x reference",
    "angle": "angle {0}-{1}-{2} is {value:.0f} degrees off reference",
    "clash": "clash of {0} and {1} at {angstrom:.2f} Å",
    "chirality": "chirality of atom {0} inverted",
}


class PhysicalFilter:
    """Bond lengths, angles, clashes, chirality, stiff torsions and energy, against reference frames.

    Parameters
    ----------
    topology : bond graph.
    reference : [n, N, 3] nm, physical frames (the start frames); lengths and angles are compared with their means.
    reference_energy : mean energy of the reference frames, kJ/mol; None leaves the energy out.
    limits : tolerances; None for the defaults.
    """

    def __init__(
        self,
        topology: Topology,
        reference: NDArray[Any],
        reference_energy: float | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.reference_energy = reference_energy
        self._shape = Shape(
            topology,
            reference,
            bonds=(self.limits.bond_low, self.limits.bond_high),
            angle=self.limits.angle_tolerance,
            contacts=van_der_waals_contacts(topology.numbers, self.limits.clash, self.limits.hydrogen_bond),
        )

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
        for index, fault in zip(np.flatnonzero(finite), self._shape.faults(positions[finite]), strict=True):
            if fault is not None:
                result[index] = MESSAGES[fault.kind].format(
                    *fault.atoms, value=fault.value, angstrom=fault.value / ANGSTROM
                )
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
