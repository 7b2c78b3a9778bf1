import pickle

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
