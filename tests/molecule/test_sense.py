"""Frames that make no sense are refused with atoms, lengths and the likely reason; good ones pass without a word."""

import dataclasses

import numpy as np
import pytest
from molecules import HYDROGENS_LAST, peroxide_geometries

from uqbias.errors import UqbiasError
from uqbias.molecule.frames import Frames
from uqbias.molecule.labels import likely_units
from uqbias.molecule.sense import check_geometries, check_labels, check_sense
from uqbias.molecule.topology import Topology
from uqbias.testing import molecule

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
