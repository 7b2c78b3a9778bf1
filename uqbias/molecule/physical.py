"""Filter of geometries: which are physical, and if not, why not."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.molecule.frames import Frames
from uqbias.molecule.limits import Limits
from uqbias.molecule.measures import Shape, van_der_waals_contacts
from uqbias.molecule.topology import Topology
from uqbias.units import ANGSTROM

#: Verdict of a frame that passed every filter.
PHYSICAL = ""
#: kJ/mol; by so much wider is the energy window for each atom of a network: 3/2 kT at 3000 K, and what melting takes.
NETWORK_WINDOW = 50.0
#: Verdicts by kind of fault; fields are the atoms, the value and, for a distance, the value in Å.
MESSAGES = {
    "bond": "bond {0}-{1} is {value:.2f} x reference",
    "angle": "angle {0}-{1}-{2} is {value:.0f} degrees off reference",
    "clash": "clash of {0} and {1} at {angstrom:.2f} Å",
    "chirality": "chirality of atom {0} inverted",
    "coordination": "coordination of atom {0} is {value:.0f}",
}


class PhysicalFilter:
    """Bond lengths, angles, clashes, chirality, stiff torsions, energy and forces, against reference frames.

    Parameters
    ----------
    topology : bond graph.
    reference : physical frames (the start frames), or positions [n, N, 3] nm in vacuum; lengths and angles are compared
        with their means.
    reference_energy : mean energy of the reference frames, kJ/mol; None leaves the energy out.
    limits : tolerances; None for the defaults.
    """

    def __init__(
        self,
        topology: Topology,
        reference: Frames | NDArray[Any],
        reference_energy: float | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.reference_energy = reference_energy
        self._window = self.limits.energy_window + NETWORK_WINDOW * len(topology.network)
        self._shape = Shape(
            topology,
            reference,
            bonds=(self.limits.bond_low, self.limits.bond_high),
            angle=self.limits.angle_tolerance,
            closest=self.limits.closest,
            coordination=self.limits.coordination,
            contacts=van_der_waals_contacts(topology.numbers, self.limits.clash, self.limits.hydrogen_bond),
        )

    def verdicts(
        self,
        frames: Frames | NDArray[Any],
        energy: NDArray[Any] | None = None,
        stiff_deviation: NDArray[Any] | None = None,
        forces: NDArray[Any] | None = None,
    ) -> list[str]:
        """Judge frames; the first fault found is the verdict.

        Parameters
        ----------
        frames : frames, or positions [n, N, 3] nm in vacuum.
        energy : [n] model energy, kJ/mol, or None.
        stiff_deviation : [n] largest turn of a stiff torsion from its reference, degrees, or None.
        forces : [n, N, 3] model forces, kJ/mol/nm, or None.

        Returns
        -------
        list of str
            `PHYSICAL` (empty) or the fault, e.g. ``"bond 3-5 is 1.40 x reference"``.
        """
        cells = frames.cells if isinstance(frames, Frames) else None
        positions = np.asarray(frames.positions if isinstance(frames, Frames) else frames, dtype=np.float64)
        result = np.full(len(positions), PHYSICAL, dtype=object)
        finite = np.isfinite(positions).all(axis=(1, 2))
        if energy is not None:
            finite &= np.isfinite(energy)
        result[~finite] = "not finite"
        faults = self._shape.faults(positions[finite], None if cells is None else cells[finite])
        for index, fault in zip(np.flatnonzero(finite), faults, strict=True):
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
            for index in np.flatnonzero((result == PHYSICAL) & (np.abs(excess) > self._window)):
                side = "above" if excess[index] > 0 else "below"
                result[index] = f"energy {abs(excess[index]):.0f} kJ/mol {side} mean"
        if forces is not None and self.limits.largest_force is not None:
            largest = np.abs(forces).max(axis=(1, 2), initial=0.0)
            for index in np.flatnonzero((result == PHYSICAL) & ~(largest <= self.limits.largest_force)):
                result[index] = f"force component {largest[index]:.0f} kJ/mol/nm"
        return [str(verdict) for verdict in result]
