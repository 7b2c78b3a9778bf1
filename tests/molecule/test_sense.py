"""Frames that make no sense are refused with atoms, lengths and the likely reason; good ones pass without a word."""

import dataclasses

import numpy as np
import pytest
from ase.build import bulk
from molecules import HYDROGENS_LAST, peroxide_geometries

from uqbias.errors import UqbiasError
from uqbias.molecule.frames import Frames
from uqbias.molecule.labels import likely_units
from uqbias.molecule.sense import check_geometries, check_labels, check_sense
from uqbias.molecule.structure import from_distances, whole_frames
from uqbias.molecule.topology import Topology
from uqbias.testing import molecule
from uqbias.units import ANGSTROM, EV, EV_PER_ANGSTROM

TOPOLOGY = molecule.topology()
#: Å in a bohr, eV in a Hartree, and what a data file in eV and Å holds for 1 kcal/mol, 1 kJ/mol.
BOHR, HARTREE, KCAL, KJ = 0.52917721, 27.211386, 23.060548, 96.485332


@pytest.fixture(scope="module")
def good():
    return dataclasses.replace(molecule.frames(300, seed=3, turn=0.1), source="data.xyz")


@pytest.fixture(scope="module")
def far():
    """Too few frames, too far apart, to compare energies."""
    return dataclasses.replace(molecule.frames(12, seed=4, turn=2.0), source="data.xyz")


def scaled(frames, energies=1.0, forces=1.0, positions=1.0):
    values = frames.energies * energies, frames.forces * forces
    return dataclasses.replace(frames, positions=frames.positions * positions, energies=values[0], forces=values[1])


def refusal(frames, topology=TOPOLOGY):
    with pytest.raises(UqbiasError) as caught:
        check_sense(frames, topology)
    assert str(caught.value).startswith("data.xyz: ")
    return str(caught.value)


@pytest.mark.parametrize("topology", [TOPOLOGY, None])
def test_good_frames_pass(good, far, topology):
    for frames in (good, far, good[:1], good[:2], scaled(good, positions=1.1), scaled(good, 1.0, 0.9)):
        check_sense(frames, topology)


def test_energies_may_have_any_zero(good):
    check_labels(dataclasses.replace(good, energies=good.energies - 3e8))


@pytest.mark.parametrize(
    ("factor", "unit"), [(1 / BOHR, "bohr"), (0.1, "nm"), (BOHR, "converted from bohr twice"), (10, "Å taken for nm")]
)
@pytest.mark.parametrize("topology", [TOPOLOGY, None])
def test_lengths_in_another_unit(good, factor, unit, topology):
    message = refusal(scaled(good, positions=factor), topology)
    assert "bond lengths apart; most likely the positions" in message
    assert unit in message


@pytest.mark.parametrize(
    ("numbers", "shortest", "longest"), [((7, 7), 0.9, 4.0), ((1, 9), 0.7, 4.0), ((9, 9), 1.1, 4.0), ((3, 9), 1.2, 5.0)]
)
@pytest.mark.parametrize("count", [12, 40])
def test_a_scan_of_a_bond_is_in_no_other_unit(numbers, shortest, longest, count):
    x = np.zeros((count, 2, 3))
    x[:, 1, 0] = np.linspace(shortest, longest, count) / 10
    check_geometries(x, numbers)
    check_geometries(x[::-1], numbers)
    if numbers == (1, 9):
        with pytest.raises(UqbiasError, match="in bohr"):
            check_geometries(x[:1] * 1.3 / BOHR, numbers)
    x[-1, 1, 0] += 0.1  # a step, as a cut makes
    with pytest.raises(UqbiasError, match="cut by the edge of a periodic box, or has come apart"):
        check_geometries(x, numbers)


def test_atoms_in_another_order_than_the_structure(good):
    order = np.arange(12)
    order[[1, 3]] = order[[3, 1]]  # two carbons
    shuffled = dataclasses.replace(good, positions=good.positions[:, order], forces=good.forces[:, order])
    message = refusal(shuffled)
    assert "bond C-H (atoms 1 and 5) of the structure is 2.14 Å long in frame 0, as 5 more of 11 bonds" in message
    assert "in another order than the structure; write both in the same order" in message
    with pytest.raises(UqbiasError, match=r"the structure \[.*\], the same in another order"):
        check_sense(dataclasses.replace(good, numbers=good.numbers[::-1].copy()), TOPOLOGY)


def test_molecules_cut_by_a_box(good):
    x = good.positions.copy()
    x[7, 3] += [0.8, 0, 0]
    message = refusal(dataclasses.replace(good, positions=x))
    assert "Å long in frame 7; most likely the molecule is cut by the edge of a periodic box" in message
    assert "C-" in message
    x[:, 0] += [0.8, 0, 0]
    message = refusal(dataclasses.replace(good, positions=x))
    assert "cut by the edge" in message
    # Without a structure the bonds of the first frame, which is cut, are too few.
    x = good.positions.copy()
    x[0, 3] += [0.8, 0, 0]
    assert "not bonded in the structure" in refusal(dataclasses.replace(good, positions=x), None)


def test_atoms_in_one_place(good):
    x = good.positions.copy()
    x[5, 4] = x[5, 5] + 0.001
    assert "atoms 4 and 5 are 0.02 Å apart in frame 5" in refusal(dataclasses.replace(good, positions=x))


def test_a_proton_that_jumps_is_no_fault():
    """Of H-O-O-H one hydrogen sits at either oxygen, as in enols, and in some frames in between."""
    x = peroxide_geometries(30, seed=2)
    x[::2, 3] = 2 * x[::2, 0] - x[::2, 2] + [0.02, 0, 0]
    check_geometries(x, HYDROGENS_LAST.numbers, HYDROGENS_LAST)


def test_single_atoms_ions_and_clusters_have_no_bonds_to_check():
    check_geometries(np.zeros((2, 1, 3)), [18])
    argon = 0.376 * np.array([[[0, 0, 0], [1, 0, 0], [0, 1, 0]]])
    check_geometries(argon, [18, 18, 18])
    check_geometries(argon, [18, 18, 18], Topology((18, 18, 18), ()))
    check_geometries(np.array([[[0, 0, 0], [0.5, 0, 0]]]), [1, 1], Topology((1, 1), ()))


@pytest.mark.parametrize(
    ("energies", "forces", "likely"),
    [
        (1, -1, "the forces are gradients, with the other sign"),
        (1 / HARTREE, 1, "the energies are in Hartree"),
        (1 / HARTREE, BOHR / HARTREE, "the energies are in Hartree and the forces are in Hartree/bohr"),
        (KCAL, KCAL, "the energies are in kcal/mol and the forces are in kcal/mol/Å"),
        (KJ, KJ, "the energies are in kJ/mol and the forces are in kJ/mol/Å"),
        (KCAL, 1, "the energies are in kcal/mol"),
        (1, KCAL, "the forces are in kcal/mol/Å"),
        (1, KJ * 10, "the forces are in kJ/mol/nm"),
        (1, BOHR, "the forces are in eV/bohr"),
        (1, -BOHR / HARTREE, "gradients, with the other sign and the forces are in Hartree/bohr"),
        (1 / 12, 1, "the energies are in eV per atom"),
    ],
)
def test_units_of_labels(good, energies, forces, likely):
    message = refusal(scaled(good, energies, forces))
    assert f"most likely {likely};" in message or message.partition("most likely ")[2].startswith("the forces are grad")
    assert likely in message


def test_signs_and_units_of_forces_far_apart(far):
    """Bonds of hydrogen tell where no two frames are near; energies are then not judged."""
    assert "the forces are gradients" in refusal(scaled(far, 1, -1))
    assert "the forces are in kJ/mol/Å" in refusal(scaled(far, KJ, KJ))
    check_labels(scaled(far, 1 / HARTREE))


def test_energies_of_other_frames():
    near = molecule.frames(60, seed=5, noise=0.002, turn=0.01)
    check_labels(near)
    for energies in (np.random.default_rng(0).permutation(near.energies), np.zeros(60)):
        frames = dataclasses.replace(near, energies=energies, source="data.xyz")
        assert "the energies are those of other frames" in refusal(frames)


def test_two_units_in_one_file(good):
    energies = good.energies - 1e6
    energies[150:] /= HARTREE
    assert "eV apart; most likely in two units" in refusal(dataclasses.replace(good, energies=energies))


def test_forces_that_were_not_computed(good):
    assert "the forces of 300 of 300 frames" in refusal(scaled(good, forces=0.0))
    f = good.forces.copy()
    f[[4, 9]] = 0.0
    assert "the first of them frame 4, are all zero" in refusal(dataclasses.replace(good, forces=f))
    # A minimum alone may have none.
    f = good.forces.copy()
    f[good.energies.argmin()] = 0.0
    check_labels(dataclasses.replace(good, forces=f))


def test_labels_that_are_not_there_are_not_judged(good):
    check_sense(Frames(good.numbers, good.positions), TOPOLOGY)
    check_sense(Frames(good.numbers, good.positions, good.energies), TOPOLOGY)


def test_slopes_and_force_constants_without_a_unit_that_explains_them():
    assert likely_units(None, None, 5) is None
    assert likely_units(1.3, 60.0, 5) is None
    assert likely_units(1.0, -15.0, 5) is None
    fault = likely_units(1e7, None, 5)
    assert "they do not belong together" in fault.what
    assert "Hartree/bohr" in likely_units(51.0, None, 5).what


def copper(n=20, strained=False):
    """Copper in a skewed cell that EMT labels, atoms anywhere among the images."""
    from ase import Atoms
    from ase.calculators.emt import EMT

    random = np.random.default_rng(0)
    ideal = bulk("Cu", a=3.6).repeat((3, 3, 3))
    ideal.set_cell(ideal.cell.array @ np.array([[1, 0, 0], [0.1, 1, 0], [0, 0.05, 1]]), scale_atoms=True)
    x, cells, energies, forces, stresses = [], [], [], [], []
    for _ in range(n):
        atoms = Atoms(ideal)
        atoms.positions += random.normal(scale=0.06, size=ideal.positions.shape)
        if strained:
            strain = random.normal(scale=0.005, size=(3, 3))
            atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain + strain.T), scale_atoms=True)
        atoms.positions += random.integers(-2, 3, size=atoms.positions.shape) @ atoms.cell.array
        atoms.calc = EMT()
        x.append(atoms.positions * ANGSTROM)
        cells.append(atoms.cell.array * ANGSTROM)
        energies.append(atoms.get_potential_energy() * EV)
        forces.append(atoms.get_forces() * EV_PER_ANGSTROM)
        stresses.append(atoms.get_stress(voigt=False) * EV / ANGSTROM**3)
    return Frames(ideal.numbers, *map(np.array, (x, energies, forces)), [], *map(np.array, (cells, stresses)))


@pytest.mark.parametrize("strained", [False, True])
def test_labels_of_a_crystal(strained):
    frames = copper(strained=strained)
    check_sense(frames)
    check_sense(frames, from_distances(frames.numbers, frames.positions[0], frames.cells[0]))
    with pytest.raises(UqbiasError, match="most likely the forces are gradients, with the other sign"):
        check_sense(dataclasses.replace(frames, forces=-frames.forces, stresses=-frames.stresses))
    with pytest.raises(UqbiasError, match="most likely the forces are in Hartree/bohr"):
        check_sense(dataclasses.replace(frames, forces=frames.forces / 51.422, stresses=frames.stresses / 51.422))
    # Cells of frames without stress say nothing, but never anything wrong.
    check_sense(dataclasses.replace(frames, stresses=None))


@pytest.mark.parametrize(
    ("factor", "message"), [(0.1, "most likely the positions are in nm"), (1 / 0.529, "the positions are in bohr")]
)
def test_quartz_in_another_unit(factor, message):
    from ase.spacegroup import crystal

    sites = [(0.4697, 0.0, 2 / 3), (0.4133, 0.2672, 0.7856)]
    atoms = crystal(["Si", "O"], sites, spacegroup=154, cellpar=[4.916, 4.916, 5.405, 90, 90, 120]).repeat((2, 2, 1))
    x, cell = atoms.positions[None] * ANGSTROM, atoms.cell.array[None] * ANGSTROM
    check_geometries(x, atoms.numbers.tolist(), cells=cell)
    with pytest.raises(UqbiasError, match=message):
        check_geometries(x * factor, atoms.numbers.tolist(), cells=cell * factor)


def test_atoms_on_images_are_named():
    x = np.array([[[0.0, 0.0, 0.0], [0.5, 0.5, 0.98], [0.5, 0.5, 0.5]]])
    with pytest.raises(UqbiasError, match=r"atoms 0 and 3 are 0.20 Å apart in frame 0"):
        check_geometries(np.concatenate([x, [[[0.0, 0.0, 0.98]]]], axis=1), [18] * 4, cells=np.eye(3)[None])


def test_a_molecule_in_a_cell_that_is_cut_is_refused_or_made_whole():
    frames = molecule.frames(3)
    cells = np.tile(2.0 * np.eye(3), (3, 1, 1))
    frames = dataclasses.replace(frames, cells=cells)
    x = frames.positions.copy()
    x[1, 0, 0] += 2.0
    cut = dataclasses.replace(frames, positions=x)
    with pytest.raises(UqbiasError, match="cut by the edge of a periodic box, or has come apart"):
        check_sense(cut, molecule.topology())
    whole = whole_frames(cut, molecule.topology())
    check_sense(whole, molecule.topology())
    moved = whole.positions - frames.positions
    np.testing.assert_allclose(moved - moved[:, :1], 0.0, atol=1e-12)
