"""Labels from an OpenMM force field, in double precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import MinLen
from typing_extensions import Doc

from uqbias.errors import UqbiasError, did_you_mean
from uqbias.molecule.cells import lower_triangular, volume
from uqbias.molecule.structure import PDB, read_structure
from uqbias.molecule.topology import Topology, read_pdb
from uqbias.options import InputFile, Positive
from uqbias.oracles.base import Answer, Array, Oracle, OracleError

#: Platforms that compute in double precision: the CPU platform does not.
PLATFORMS = ("Reference", "CUDA", "OpenCL")
#: Relative error of PME (1e-4 eV/Å of forces in silica; a tenth of it takes five times as long); its meshes have a
#: multiple of this many points; most Contexts that are kept.
EWALD, MESH, CONTEXTS = 1e-5, 6, 4


def _in_collection(name: str) -> bool:
    """Whether a force field is one that OpenMM, or a package that adds to it, brings along."""
    from openmm.app import forcefield

    return any((Path(folder) / name).is_file() for folder in forcefield._getDataDirectories())


class OpenMMOracle(Oracle):
    """Force field of OpenMM without constraints: in vacuum without a cutoff, in a cell with PME and one.

    A cell whose heights are less than twice the cutoff is repeated, as often as that needs, and the label is that of
    one cell. PME's mesh follows from the cell alone, so that a label does not depend on what was labelled before.

    Parameters
    ----------
    structure : file that names residues and atoms, or at least elements; its coordinates are not used.
    forcefield : XML files, from OpenMM's collection or by path. The default is Amber ff14SB
        (Maier et al., J. Chem. Theory Comput. 11, 3696, 2015).
    platform : ``Reference`` (double precision, right for small molecules), ``CUDA`` or ``OpenCL``
        (set to double precision).
    cutoff : nm, of geometries with a cell, where nothing corrects for what is beyond. The energy depends on it.
    strain : step of the strain whose energy differences (twelve more energies a label) give the stress of geometries
        with a cell, such as 1e-4; None: no stress.
    charge : total charge that the force field must give the molecule; None: whatever it gives.

    Raises
    ------
    UqbiasError
        If the structure cannot be read, the force field does not know its residues or gives them another charge, or
        the platform is not there.
    """

    kind: ClassVar[str] = "openmm"
    periodic: ClassVar[bool] = True
    noted: ClassVar[Mapping[str, str]] = MappingProxyType({"cutoff": "cutoff_nm"})

    def __init__(
        self,
        structure: str | Path,
        *,
        forcefield: Annotated[
            Annotated[Sequence[str], MinLen(1)] | str,
            InputFile(_in_collection),
            Doc("OpenMM force-field files: of its collection, or your own"),
        ] = ("amber14/protein.ff14SB.xml",),
        platform: Annotated[
            Literal["Reference", "CUDA", "OpenCL"], Doc("OpenMM platform, double precision")
        ] = "Reference",
        cutoff: Annotated[Positive | None, Doc("nm, needed where there is a cell: the energy depends on it")] = None,
        strain: Annotated[
            Positive | None, Doc("strain in the differences that give the stress of a cell, 1e-4 say; null: no stress")
        ] = None,
        charge: int | None = None,
    ) -> None:
        self.structure = str(structure)
        self.forcefield = [forcefield] if isinstance(forcefield, str) else list(forcefield)
        self.platform, self.cutoff, self.strain = platform, cutoff, strain
        if Path(structure).suffix.lower() in PDB:
            self.pdb_topology, self.start_positions = read_pdb(structure)
            self.numbers = Topology.from_openmm(self.pdb_topology).numbers
        else:
            topology, self.start_positions, *_ = read_structure(structure)
            self.pdb_topology, self.numbers = topology.to_openmm(), topology.numbers
        self.system = self._make_system()
        self.charge = self._total_charge()
        if charge is not None and self.charge != charge:
            raise UqbiasError(
                f"system.charge = {charge}: the force field gives {self.structure} a charge of {self.charge}",
                "check the residues (protonation, termini), or correct system.charge",
            )
        self._context = self._make_context(self.system)
        self._cells: dict[tuple[int, ...], Any] = {}

    def options(self) -> dict[str, Any]:
        """JSON-able keyword arguments that rebuild this oracle."""
        further = {name: value for name in ("cutoff", "strain") if (value := getattr(self, name)) is not None}
        return {"structure": self.structure, "forcefield": self.forcefield, "platform": self.platform, **further}

    def _make_system(self, copies: int = 1, box: Array | None = None) -> Any:
        """System with every interaction and no constraint, so that its forces are the gradient of its energy.

        Parameters
        ----------
        copies : number of cells, one after another.
        box : [3, 3] nm, all of them together; None in vacuum.
        """
        from openmm import app, unit

        try:
            forcefield = app.ForceField(*self.forcefield)
        except Exception as error:
            raise UqbiasError(
                f"force field {self.forcefield} cannot be read ({error})",
                "name XML files of OpenMM (amber14/protein.ff14SB.xml) or give their paths",
            ) from error
        topology, method = self.pdb_topology, {"nonbondedMethod": app.NoCutoff}
        if box is not None:
            positions = self.start_positions * unit.nanometer
            cells = app.Modeller(topology, positions)
            for _ in range(copies - 1):
                cells.add(topology, positions)
            topology, method = cells.topology, {"nonbondedMethod": app.PME, "nonbondedCutoff": self.cutoff}
            topology.setPeriodicBoxVectors(box)
        try:
            return forcefield.createSystem(topology, constraints=None, rigidWater=False, removeCMMotion=False, **method)
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

    def _make_context(self, system: Any) -> Any:
        import openmm

        valid = [name for name in PLATFORMS if name in _platforms()]
        if self.platform not in valid:
            raise UqbiasError(f"oracle platform '{self.platform}' is not there", did_you_mean(self.platform, valid))
        # The oracle never integrates; a Context only needs some integrator.
        integrator = openmm.VerletIntegrator(0.001)
        platform = openmm.Platform.getPlatform(self.platform)
        properties = {} if self.platform == "Reference" else {"Precision": "double"}
        return openmm.Context(system, integrator, platform, properties)

    def _evaluate(self, positions: Array, cell: Array | None = None) -> Answer:
        if cell is None:
            return _energy_and_forces(self._context, positions)
        from ase.geometry import minkowski_reduce

        if self.cutoff is None:
            raise OracleError("openmm oracle: the geometry has a cell, and there is no cutoff", "give oracle.cutoff")
        box, turn = lower_triangular(minkowski_reduce(cell)[0])
        x, repeats = positions @ turn, _repeats(box, self.cutoff)
        # As OpenMM chooses them (its user guide, on the Ewald error tolerance), in steps, as cells breathe.
        alpha = np.sqrt(-np.log(2 * EWALD)) / self.cutoff
        points = np.diag(box) * repeats * 2 * alpha / (3 * EWALD**0.2)
        context = self._cell_context(box, repeats, alpha, (np.ceil(points / MESH).astype(int) * MESH).tolist())
        energy, forces = _in_cell(context, x, box, repeats)
        if self.strain is None:
            return energy, forces @ turn.T
        slopes = np.zeros((3, 3))
        for row, column in zip(*np.tril_indices(3), strict=True):
            strain = np.zeros((3, 3))
            strain[row, column] = self.strain  # so the box keeps its form; turning it changes no energy
            ahead, behind = (
                _in_cell(context, x @ moved, box @ moved, repeats)[0]
                for moved in (np.eye(3) + strain, np.eye(3) - strain)
            )
            slopes[row, column] = slopes[column, row] = (ahead - behind) / (2 * self.strain)
        return energy, forces @ turn.T, turn @ slopes @ turn.T / volume(cell)

    def _cell_context(self, box: Array, repeats: tuple[int, ...], alpha: float, mesh: list[int]) -> Any:
        """Context of so many cells, with a mesh of PME."""
        key = (*repeats, *mesh)
        if key not in self._cells:
            large, _ = lower_triangular(box * np.array(repeats)[:, None])
            system = self._make_system(int(np.prod(repeats)), large)
            for force in system.getForces():
                if hasattr(force, "setPMEParameters"):
                    force.setPMEParameters(alpha, *mesh)
                    force.setUseDispersionCorrection(False)  # it depends on how many cells there are
                if hasattr(force, "setUsesPeriodicBoundaryConditions"):
                    force.setUsesPeriodicBoundaryConditions(True)
            if len(self._cells) >= CONTEXTS:
                self._cells.clear()
            self._cells[key] = self._make_context(system)
        return self._cells[key]


def _in_cell(context: Any, positions: Array, box: Array, repeats: tuple[int, ...]) -> tuple[float, Array]:
    """Energy of one cell, and forces on its atoms, in a Context of ``repeats`` of them."""
    large, _ = lower_triangular(box * np.array(repeats)[:, None])
    images = np.array(list(np.ndindex(*repeats))) @ box
    context.setPeriodicBoxVectors(*large)
    energy, forces = _energy_and_forces(context, (images[:, None] + positions).reshape(-1, 3))
    return energy / len(images), forces[: len(positions)]


def _repeats(box: Array, cutoff: float) -> tuple[int, ...]:
    """How often a box in OpenMM's form is repeated along each vector, so that no pair of atoms is lost.

    No atom may be near two images of another. Nor may the box be tilted too much: OpenMM's Reference platform looks for
    neighbours in a table of voxels, half a cutoff wide, of one box, which it leaves for one image at most.

    Raises
    ------
    OracleError
        If no multiple of the box does.
    """
    least = np.ceil(2 * cutoff * (1 + 1e-9) / np.diag(box)).astype(int)
    choices = [tuple((least + more).tolist()) for more in np.ndindex(4, 4, 4)]
    for repeats in sorted(choices, key=lambda each: (np.prod(each), each)):
        large, _ = lower_triangular(box * np.array(repeats)[:, None])
        edges = np.diag(large)
        voxels = 2 * np.floor(edges / cutoff)
        reach = np.floor(cutoff * voxels / edges) + 1
        tilts = np.abs(large / edges).sum(axis=0)[:2] - 1
        inside = tilts <= (1 - reach / voxels)[:2]
        # Where a search covers half of a vector or more, an atom is looked for at one image only: in the wrong place
        # of a tilted box, unless there all voxels are searched.
        once = voxels >= 2 * reach + 2
        whole = (voxels[:2] == 4) | (tilts < 1e-9) | [once[1:].all(), once[2]]
        if inside.all() and whole.all():
            return repeats
    raise OracleError("openmm oracle: the cell is too skewed", "give a reduced cell (ase.build.niggli_reduce)")


def _energy_and_forces(context: Any, positions: Array) -> tuple[float, Array]:
    from openmm import unit

    context.setPositions(positions)
    state = context.getState(energy=True, forces=True)
    energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer)
    return float(energy), np.array(forces)


def _platforms() -> list[str]:
    import openmm

    return [openmm.Platform.getPlatform(index).getName() for index in range(openmm.Platform.getNumPlatforms())]
