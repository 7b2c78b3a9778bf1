"""Labels from an OpenMM force field, in double precision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import MinLen
from typing_extensions import Doc

from uqbias.errors import UqbiasError, did_you_mean
from uqbias.molecule.topology import Topology, read_pdb
from uqbias.oracles.base import Array, Oracle

#: Platforms that compute in double precision: the CPU platform does not.
PLATFORMS = ("Reference", "CUDA", "OpenCL")


class OpenMMOracle(Oracle):
    """Force field of OpenMM in vacuum: no cutoff, no constraints.

    Parameters
    ----------
    structure : PDB file that names residues and atoms; its coordinates are not used.
    forcefield : XML files, from OpenMM's collection or by path. The default is Amber ff14SB
        (Maier et al., J. Chem. Theory Comput. 11, 3696, 2015).
    platform : ``Reference`` (double precision, right for small molecules), ``CUDA`` or ``OpenCL``
        (set to double precision).
    charge : total charge that the force field must give the molecule; None: whatever it gives.

    Raises
    ------
    UqbiasError
        If the structure cannot be read, the force field does not know its residues or gives them another charge, or
        the platform is not there.
    """

    kind: ClassVar[str] = "openmm"

    def __init__(
        self,
        structure: str | Path,
        *,
        forcefield: Annotated[Annotated[Sequence[str], MinLen(1)] | str, Doc("OpenMM force-field files")] = (
            "amber14/protein.ff14SB.xml",
        ),
        platform: Annotated[
            Literal["Reference", "CUDA", "OpenCL"], Doc("OpenMM platform, double precision")
        ] = "Reference",
        charge: int | None = None,
    ) -> None:
        self.structure = str(structure)
        self.forcefield = [forcefield] if isinstance(forcefield, str) else list(forcefield)
        self.platform = platform
        self.pdb_topology, self.start_positions = read_pdb(structure)
        self.numbers = Topology.from_openmm(self.pdb_topology).numbers
        self.system = self._make_system()
        self.charge = self._total_charge()
        if charge is not None and self.charge != charge:
            raise UqbiasError(
                f"system.charge = {charge}: the force field gives {self.structure} a charge of {self.charge}",
                "check the residues (protonation, termini), or correct system.charge",
            )
        self._context = self._make_context()

    def options(self) -> dict[str, Any]:
        """JSON-able keyword arguments that rebuild this oracle."""
        return {"structure": self.structure, "forcefield": self.forcefield, "platform": self.platform}

    def _make_system(self) -> Any:
        """System with every interaction and no constraint, so that its forces are the gradient of its energy."""
        from openmm import app

        try:
            forcefield = app.ForceField(*self.forcefield)
        except Exception as error:
            raise UqbiasError(
                f"force field {self.forcefield} cannot be read ({error})",
                "name XML files of OpenMM (amber14/protein.ff14SB.xml) or give their paths",
            ) from error
        try:
            return forcefield.createSystem(
                self.pdb_topology,
                nonbondedMethod=app.NoCutoff,
                constraints=None,
                rigidWater=False,
                removeCMMotion=False,
            )
        except Exception as error:
            raise UqbiasError(
                f"force field {self.forcefield} does not fit {self.structure} ({' '.join(str(error).split())})",
                "check residue and atom names and that all hydrogens are there",
            ) from error

    def _total_charge(self) -> int | None:
        """Sum of the atoms' charges; None where the force field has none."""
        from openmm import NonbondedForce, unit

        forces = [force for force in self.system.getForces() if isinstance(force, NonbondedForce)]
        charges = [
            force.getParticleParameters(index)[0].value_in_unit(unit.elementary_charge)
            for force in forces
            for index in range(force.getNumParticles())
        ]
        return round(sum(charges)) if charges else None

    def _make_context(self) -> Any:
        import openmm

        valid = [name for name in PLATFORMS if name in _platforms()]
        if self.platform not in valid:
            raise UqbiasError(f"oracle platform '{self.platform}' is not there", did_you_mean(self.platform, valid))
        # The oracle never integrates; a Context only needs some integrator.
        integrator = openmm.VerletIntegrator(0.001)
        platform = openmm.Platform.getPlatform(self.platform)
        properties = {} if self.platform == "Reference" else {"Precision": "double"}
        return openmm.Context(self.system, integrator, platform, properties)

    def _evaluate(self, positions: Array) -> tuple[float, Array]:
        from openmm import unit

        self._context.setPositions(positions)
        state = self._context.getState(energy=True, forces=True)
        energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
        forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer)
        return energy, np.array(forces)


def _platforms() -> list[str]:
    import openmm

    return [openmm.Platform.getPlatform(index).getName() for index in range(openmm.Platform.getNumPlatforms())]
