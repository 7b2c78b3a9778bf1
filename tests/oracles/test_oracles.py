import pickle
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from ase.calculators.calculator import Calculator, all_changes
from molecules import ALANINE_PDB

from uqbias.errors import UqbiasError
from uqbias.molecule.topology import read_pdb
from uqbias.oracles.ase import ASEOracle
from uqbias.oracles.base import OracleError
from uqbias.oracles.openmm import OpenMMOracle
from uqbias.registry import ORACLES
from uqbias.units import EV

CO2 = np.array([[0.0, 0.0, 0.0], [0.117, 0.002, 0.0], [-0.116, 0.0, 0.01]])
EMT = "ase.calculators.emt:EMT"


class Broken(Calculator):
    """Calculator that answers NaN, or raises where the first atom is displaced."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        if atoms.positions[0, 0] != 0:
            raise RuntimeError("no convergence\nafter 50 cycles")
        self.results = {"energy": np.nan, "forces": np.zeros((len(atoms), 3))}


def openmm_oracle():
    return OpenMMOracle(structure=ALANINE_PDB)


def ase_oracle():
    return ASEOracle(calculator=EMT, calculator_options={"asap_cutoff": False}, numbers=[6, 8, 8])


def distorted():
    return read_pdb(ALANINE_PDB)[1] + np.random.default_rng(1).normal(scale=0.004, size=(22, 3))


@pytest.mark.parametrize(("build", "positions"), [(openmm_oracle, distorted()), (ase_oracle, CO2)])
def test_forces_are_minus_the_gradient(build, positions):
    oracle = build()
    forces = oracle.label(positions).forces
    step = 1e-5
    numerical = np.zeros_like(positions)
    for atom, axis in np.ndindex(*positions.shape):
        shift = np.zeros_like(positions)
        shift[atom, axis] = step
        up, down = oracle.label(positions + shift).energy, oracle.label(positions - shift).energy
        numerical[atom, axis] = -(up - down) / (2 * step)
    assert np.abs(forces).max() > 100
    np.testing.assert_allclose(forces, numerical, atol=1e-6 * np.abs(forces).max())


@pytest.mark.parametrize(("build", "positions"), [(openmm_oracle, distorted()), (ase_oracle, CO2)])
def test_a_copy_from_another_process_gives_the_same_label(build, positions):
    oracle = build()
    copy = pickle.loads(pickle.dumps(oracle))
    other = ORACLES.rebuild(oracle.kind, oracle.options())
    for label in (copy.label(positions), other.label(positions)):
        assert label.energy == pytest.approx(oracle.label(positions).energy, rel=1e-12)


def test_ase_units():
    """One eV is 96.485 kJ/mol and one eV/Å 964.85 kJ/mol/nm."""
    from ase import Atoms
    from ase.calculators import emt

    atoms = Atoms("CO2", CO2 * 10, calculator=emt.EMT())
    label = ase_oracle().label(CO2)
    assert label.energy == pytest.approx(atoms.get_potential_energy() * 96.4853321, rel=1e-6)
    np.testing.assert_allclose(label.forces, atoms.get_forces() * 964.853321, rtol=1e-6, atol=1e-6)


def test_import_path_with_a_dot():
    assert ASEOracle(calculator="ase.calculators.emt.EMT", numbers=[6, 8, 8]).label(CO2).energy == pytest.approx(
        ase_oracle().label(CO2).energy, abs=200
    )


def test_numbers_from_a_structure():
    assert len(ASEOracle(calculator=EMT, structure=ALANINE_PDB).numbers) == 22


def test_a_calculator_that_writes_files():
    """ASE's GenericFileIOCalculator (ORCA, Espresso) takes its directory for a Path."""
    from ase.calculators.genericfileio import GenericFileIOCalculator

    template = SimpleNamespace(
        name="written",
        implemented_properties=["energy", "forces"],
        write_input=lambda directory, **_: (directory / "input").write_text("2"),
        execute=lambda directory, profile: (directory / "input").rename(directory / "output"),
        read_results=lambda directory: {
            "energy": float((directory / "output").read_text()),
            "forces": np.zeros((3, 3)),
        },
    )
    oracle = ase_oracle()
    oracle._atoms.calc = GenericFileIOCalculator(template=template, profile="", directory=".", parameters={})
    assert oracle.label(CO2).energy == pytest.approx(2 * 96.4853321)


def test_failure_is_one_line_and_the_next_label_works(monkeypatch):
    oracle = ase_oracle()
    oracle._atoms.calc = Broken()
    with pytest.raises(OracleError, match="no convergence after 50 cycles"):
        oracle.label(CO2 + 0.01)
    with pytest.raises(OracleError, match="not finite"):
        oracle.label(CO2)


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (np.full((22, 3), np.nan), "not finite"),
        (np.zeros((22, 3)), "not finite|failed"),
        (np.zeros((21, 3)), r"\(21, 3\)"),
        (np.zeros(66), r"\(66,\)"),
    ],
)
def test_hopeless_geometries_are_refused(positions, message):
    with pytest.raises(OracleError, match=message):
        openmm_oracle().label(positions)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("openm", {}, "did you mean 'openmm'"),
        ("openmm", {}, "oracle 'openmm' without structure"),
        ("openmm", {"structure": "absent.pdb"}, "no such file: absent.pdb"),
        ("openmm", {"structure": ALANINE_PDB, "forcefeld": "x.xml"}, "did you mean 'forcefield'"),
        ("openmm", {"structure": ALANINE_PDB, "forcefield": "amber15.xml"}, "amber15.xml"),
        ("openmm", {"structure": ALANINE_PDB, "forcefield": "amber14/tip3p.xml"}, "does not fit"),
        ("openmm", {"structure": ALANINE_PDB, "platform": "Referenc"}, "input should be 'Reference'"),
        ("ase", {"calculator": "absent_package:X", "numbers": [1]}, "absent_package.*pip install"),
        ("ase", {"calculator": "ase.calculators.emt:EMU", "numbers": [1]}, "no 'EMU'"),
        ("ase", {"calculator": "EMT", "numbers": [1]}, "not an import path"),
        ("ase", {"calculator": "ase:Atoms", "calculator_options": {"x": 1}, "numbers": [1]}, "cannot be built"),
        ("ase", {"calculator": EMT}, "neither numbers nor structure"),
    ],
)
def test_bad_options_name_the_value(kind, options, message):
    with pytest.raises(UqbiasError, match=message):
        ORACLES.rebuild(kind, options)


class Electrons(Calculator):
    """Calculator whose energy is 100 eV a charge, and 1 eV a multiplicity."""

    implemented_properties = ("energy", "free_energy", "forces")
    default_parameters = {"charge": 0, "multiplicity": 1}  # noqa: RUF012

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        energy = 100.0 * self.parameters.charge + self.parameters.multiplicity
        self.results = {"energy": energy, "forces": np.zeros((len(atoms), 3))}


def electrons(**options):
    return ASEOracle(calculator=f"{__name__}:Electrons", numbers=[6, 8, 8], **options)


def test_charge_and_multiplicity_reach_the_calculator_by_its_own_names(monkeypatch):
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or ModuleType(__name__))
    monkeypatch.setattr(sys.modules[__name__], "Electrons", Electrons, raising=False)
    oracle = electrons(charge=-1, spin=2)
    assert (oracle.charge, oracle.spin) == (-1, 2)
    assert oracle.label(CO2).energy == pytest.approx(-98 * EV)
    assert pickle.loads(pickle.dumps(oracle)).label(CO2).energy == oracle.label(CO2).energy
    default = electrons()
    assert (default.charge, default.spin) == (0, 1)
    assert "charge" not in default.options(), "labels paid before are known by their options"
    assert electrons(charge=1, calculator_options={"charge": 1}).charge == 1
    with pytest.raises(UqbiasError, match="charge = 1, and charge = 2 in calculator_options"):
        electrons(charge=1, calculator_options={"charge": 2})
    with pytest.raises(UqbiasError, match=r"system.spin = 3: the calculator '.*EMT' takes no multiplicity or mult"):
        ASEOracle(calculator=EMT, numbers=[6, 8, 8], spin=3)


def test_force_fields_have_a_charge_of_their_own():
    assert OpenMMOracle(structure=ALANINE_PDB, charge=0).charge == 0
    with pytest.raises(UqbiasError, match=r"system.charge = 1: the force field gives .* a charge of 0"):
        OpenMMOracle(structure=ALANINE_PDB, charge=1)


def test_files_go_to_a_fresh_folder(tmp_path):
    oracle = ase_oracle()
    oracle.label(CO2)
    first = Path(oracle._atoms.calc.directory)
    oracle.label(CO2)
    assert first != Path(oracle._atoms.calc.directory)
    assert not first.exists()
    oracle.folder = tmp_path
    oracle.label(CO2)
    assert Path(oracle._atoms.calc.directory) == tmp_path
