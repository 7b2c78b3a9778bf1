"""Labels of periodic systems: ASE and OpenMM agree, whatever the cell's shape, and labels of a pool know their cell."""

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones

from uqbias.errors import UqbiasError
from uqbias.molecule.cells import check_cell, heights, lower_triangular
from uqbias.molecule.frames import Frames, read_frames, write_frames
from uqbias.oracles.ase import ASEOracle
from uqbias.oracles.base import OracleError
from uqbias.oracles.pool import PoolOracle
from uqbias.units import ANGSTROM, EV, EV_PER_ANGSTROM

HEXAGONAL = np.array([[5.1, 0, 0], [-2.55, 4.42, 0], [0.3, 0.2, 6.0]])
CELLS = {
    "cubic": 5.2 * np.eye(3),
    "hexagonal": HEXAGONAL,
    "left-handed": HEXAGONAL[[1, 0, 2]],
    "skewed": np.array([[5.0, 1.0, 0.0], [14.0, 6.0, 0.5], [-9.0, 3.0, 7.0]]),
}


def copper(cell):
    fractions = np.array([[0, 0, 0], [0.5, 0.5, 0.1], [0.5, 0.1, 0.5], [0.05, 0.5, 0.55]])
    return Atoms("Cu4", scaled_positions=fractions, cell=cell, pbc=True)


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_openmm_form_is_the_same_lattice(cell):
    box, turn = lower_triangular(cell)
    np.testing.assert_allclose(np.linalg.det(turn), 1.0)
    steps = np.linalg.solve((cell @ turn).T, box.T)
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-9)
    np.testing.assert_allclose(abs(np.linalg.det(steps)), 1.0)
    assert (np.diag(box) > 0).all()
    assert (np.abs(np.tril(box, -1)) <= np.diag(box) / 2).all()
    assert not np.triu(box, 1).any()


def test_heights_are_distances_of_faces():
    np.testing.assert_allclose(
        heights(np.array([[2.0, 0, 0], [1.0, 3.0, 0], [0, 0, 4.0]])), [6 / np.sqrt(10), 3.0, 4.0]
    )


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_ase_labels_have_the_stress(cell):
    oracle = ASEOracle(calculator="ase.calculators.emt.EMT", numbers=[29] * 4)
    atoms = copper(cell)
    label = oracle.label(atoms.positions * ANGSTROM, atoms.cell.array * ANGSTROM)
    atoms.calc = EMT()
    np.testing.assert_allclose(label.energy, atoms.get_potential_energy() * EV)
    np.testing.assert_allclose(label.forces, atoms.get_forces() * EV_PER_ANGSTROM)
    np.testing.assert_allclose(label.stress, atoms.get_stress(voigt=False) * EV / ANGSTROM**3)
    alone = oracle.label(atoms.positions * ANGSTROM)
    assert alone.stress is None
    atoms.set_pbc(False)
    np.testing.assert_allclose(alone.energy, atoms.get_potential_energy() * EV)


def test_ase_labels_of_a_slab():
    oracle = ASEOracle(calculator="ase.calculators.lj.LennardJones", numbers=[29] * 4, pbc=[True, True, False])
    atoms = copper(HEXAGONAL)
    again = type(oracle)(**oracle.options())
    energy = again.label(atoms.positions * ANGSTROM, HEXAGONAL * ANGSTROM).energy
    atoms.set_pbc([True, True, False])
    atoms.calc = LennardJones()
    np.testing.assert_allclose(energy, atoms.get_potential_energy() * EV)


FORCE_FIELD = """<ForceField>
 <AtomTypes><Type name="Na" class="Na" element="Na" mass="22.99"/><Type name="Cl" class="Cl" element="Cl" mass="35.45"/>
 </AtomTypes>
 <Residues><Residue name="NA"><Atom name="NA" type="Na"/></Residue>
  <Residue name="CL"><Atom name="CL" type="Cl"/></Residue></Residues>
 <NonbondedForce coulomb14scale="1" lj14scale="1">
  <Atom type="Na" charge="1" sigma="0.2" epsilon="0.1"/><Atom type="Cl" charge="-1" sigma="0.35" epsilon="0.4"/>
 </NonbondedForce>
</ForceField>
"""
SALT = """HETATM    1 NA   NA  A   1       0.000   0.000   0.000  1.00  0.00          NA
HETATM    2 CL   CL  A   2       2.820   0.000   0.000  1.00  0.00          CL
END
"""


@pytest.fixture
def salt(tmp_path):
    from uqbias.oracles.openmm import OpenMMOracle

    (tmp_path / "salt.xml").write_text(FORCE_FIELD)
    (tmp_path / "salt.pdb").write_text(SALT)

    def build(**options):
        return OpenMMOracle(tmp_path / "salt.pdb", forcefield=str(tmp_path / "salt.xml"), **options)

    return build


PRIMITIVE = 0.282 * np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
IONS = np.array([[0.0, 0.0, 0.0], [0.282, 0.0, 0.0]])


def test_openmm_label_is_that_of_the_lattice(salt):
    """Rock salt: the Madelung energy; the same of other cells of the lattice, turned."""
    oracle = salt(cutoff=0.9)
    label = oracle.label(IONS, PRIMITIVE)
    madelung = -1.74756459 * 138.93545764 / 0.282
    repulsion = oracle.label(IONS, PRIMITIVE).energy - madelung
    assert 0 > repulsion > -0.02 * abs(madelung)  # what the Lennard-Jones pairs give
    np.testing.assert_allclose(label.forces, 0.0, atol=0.5)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    moved = IONS + np.array([0.02, 0.01, -0.03]) * [[0], [1]]
    label = oracle.label(moved, PRIMITIVE)
    for cell in (PRIMITIVE[[1, 0, 2]], PRIMITIVE + PRIMITIVE[[1, 2, 0]] * [[3], [0], [0]]):
        other = oracle.label(moved @ turn, cell @ turn)
        np.testing.assert_allclose(other.energy, label.energy, atol=5e-3)
        np.testing.assert_allclose(other.forces, label.forces @ turn, atol=0.1)


def test_openmm_forces_and_stress_are_derivatives(salt):
    oracle, step = salt(cutoff=0.73, strain=1e-4), 1e-5
    x = IONS + np.array([0.02, 0.01, -0.03]) * [[0], [1]]
    label = oracle.label(x, PRIMITIVE)
    direction = np.random.default_rng(0).normal(size=x.shape)
    ahead, behind = (oracle.label(x + side * step * direction, PRIMITIVE).energy for side in (1, -1))
    np.testing.assert_allclose((ahead - behind) / (2 * step), -(label.forces * direction).sum(), rtol=1e-3)
    grown, shrunk = (oracle.label(x * scale, PRIMITIVE * scale).energy for scale in (1.001, 0.999))
    pressure = (grown - shrunk) / 0.002 / abs(np.linalg.det(PRIMITIVE))
    np.testing.assert_allclose(np.trace(label.stress), pressure, rtol=1e-3)


def test_openmm_label_does_not_depend_on_the_one_before(salt):
    fresh, used = salt(cutoff=0.7), salt(cutoff=0.7)
    used.label(IONS, 1.3 * PRIMITIVE)
    used.label(IONS)
    assert used.label(IONS, PRIMITIVE).energy == fresh.label(IONS, PRIMITIVE).energy


def test_openmm_needs_a_cutoff(salt):
    with pytest.raises(OracleError, match="the geometry has a cell, and there is no cutoff; give"):
        salt().label(IONS, PRIMITIVE)


def test_oracles_refuse_what_is_no_cell():
    from uqbias.oracles.analytic import DoubleWellOracle

    with pytest.raises(OracleError, match="double_well oracle: it labels molecules in vacuum"):
        DoubleWellOracle().label(np.zeros((1, 3)), np.eye(3))
    oracle = ASEOracle(calculator="ase.calculators.emt.EMT", numbers=[29])
    for cell, message in (
        (np.eye(2), "a cell of shape"),
        (np.diag([1.0, 1.0, 0.0]), "has no vector c"),
        (np.diag([1.0, 1.0, 0.01]), "its cell is degenerate, with a volume of 10 Å³ and images 0.1 Å"),
        (np.array([[1.0, 0, 0], [0, 1.0, 0], [1.0, 1.0, 0]]), "its cell is degenerate, with a volume of 0 Å³"),
        (np.diag([1.0, np.nan, 1.0]), "its cell is not finite"),
    ):
        with pytest.raises(OracleError, match=message):
            oracle.label(np.zeros((1, 3)), cell)


def test_a_pool_knows_the_cell(tmp_path):
    x = np.random.default_rng(0).normal(size=(1, 2, 3)).repeat(2, axis=0)
    cells = np.array([np.eye(3), 1.1 * np.eye(3)])
    frames = Frames(np.array([1, 1]), x, np.array([1.0, 2.0]), 0.1 * x, [], cells, np.array([cells[0], cells[1]]))
    write_frames(tmp_path / "pool.xyz", frames)
    oracle = PoolOracle(file=str(tmp_path / "pool.xyz"))
    for index in (0, 1):
        label = oracle.label(x[index], cells[index])
        np.testing.assert_allclose(label.energy, index + 1.0)
        np.testing.assert_allclose(label.stress, cells[index], rtol=1e-6)
    for cell in (None, 1.2 * np.eye(3)):
        with pytest.raises(OracleError, match=r"no frame of .* has this geometry"):
            oracle.label(x[0], cell)


def test_missing_vectors_of_a_slab_are_completed(tmp_path):
    whole = check_cell(np.diag([1.0, 2.0, 0.0]), (True, True, False), "frame")
    np.testing.assert_allclose(np.abs(whole), np.diag([1.0, 2.0, 0.1]))
    (tmp_path / "slab.xyz").write_text(
        '1\nLattice="9 0 0 0 9 0 0 0 0" Properties=species:S:1:pos:R:3 pbc="T T F"\nCu 0 0 0\n'
    )
    frames = read_frames(tmp_path / "slab.xyz", labelled=False, periodic=True)
    assert frames.periodic == (True, True, False)
    np.testing.assert_allclose(frames.cells[0], np.diag([0.9, 0.9, 0.1]))
    (tmp_path / "bare.xyz").write_text('1\nProperties=species:S:1:pos:R:3 pbc="T T T"\nCu 0 0 0\n')
    with pytest.raises(
        UqbiasError, match=r"bare.xyz: frame 0 is periodic .* and its cell has no vector a; give the cell"
    ):
        read_frames(tmp_path / "bare.xyz", labelled=False, periodic=True)
