"""Mobile protons: which hydrogens are, and what is judged of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule
from ase.io import read
from molecules import ALANINE_PDB, malonaldehyde

from uqbias.errors import UqbiasError
from uqbias.md.constraints import choose_constraints
from uqbias.md.guards import Guard
from uqbias.molecule.frames import Frames
from uqbias.molecule.physical import PHYSICAL, PhysicalFilter
from uqbias.molecule.protons import mobile_protons, with_mobile_protons
from uqbias.molecule.sense import check_geometries, check_sense
from uqbias.molecule.topology import Topology, read_pdb

DATA = Path(__file__).parents[3] / "shared" / "data"
published = pytest.mark.skipif(not DATA.is_dir(), reason=f"the published frames are not in {DATA}")


def frames_of(name):
    """Bond graph of the first frame, and positions [n, N, 3] nm."""
    if (path := DATA / f"{name}.xyz").is_file():
        images = read(path, ":")
        numbers, x = images[0].numbers, np.array([image.positions for image in images])
    else:
        arrays = np.load(DATA / "rmd17" / f"{name}_train_01.npz")
        numbers, x = arrays["nuclear_charges"], arrays["coords"]
    return Topology.from_positions(numbers, 0.1 * x[0]), 0.1 * x


@published
@pytest.mark.parametrize(
    ("name", "protons"),
    [
        ("acetylacetone_train_300K", [(3, 11, 5)]),
        ("acetylacetone_train_600K", [(5, 11, 3)]),
        ("salicylic", [(3, 10, 8)]),
        *((name, []) for name in ("aspirin", "paracetamol", "ethanol", "uracil", "3bpa_train_300K", "malonaldehyde")),
    ],
)
def test_published_frames(name, protons):
    """The malonaldehyde of MD17 is the dialdehyde, which has no enol's hydrogen."""
    assert mobile_protons(*frames_of(name)) == protons


def test_the_enol_of_malonaldehyde_has_one_and_alanine_dipeptide_none():
    topology, x = malonaldehyde()
    assert topology.mobile == ((0, 5, 4),)
    openmm_topology, folded = read_pdb(ALANINE_PDB)
    dipeptide = Topology.from_openmm(openmm_topology)
    assert mobile_protons(dipeptide, folded[None]) == []
    # However near N-H and C=O of its ring of seven come: the other side would be a zwitterion.
    named = {name: index for index, name in enumerate(zip(dipeptide.names, dipeptide.residues, strict=True))}
    near = folded.copy()
    near[named["N", "NME3"]] = near[named["O", "ACE1"]] + [0.24, 0, 0]
    assert mobile_protons(dipeptide, near[None]) == []
    # Too far from each other in most frames.
    wide = x.copy()
    wide[4] -= [0.06, 0, 0]
    assert mobile_protons(replace(topology, mobile=()), np.array([x, *[wide] * 4])) == []


@pytest.mark.parametrize(
    ("acid", "why"),
    [
        ("HCOOH", "a ring of four"),
        ("CH3CH2OH", "no acceptor"),
    ],
)
def test_none_in(acid, why):
    atoms = molecule(acid)
    topology = Topology.from_positions(atoms.numbers, 0.1 * atoms.positions)
    assert mobile_protons(topology, 0.1 * atoms.positions[None]) == [], why


def test_both_sides_are_physical_and_a_proton_far_from_both_is_not():
    topology, on_donor = malonaldehyde()
    _, on_acceptor = malonaldehyde(moved=True)
    lost = on_donor.copy()
    lost[5, 2] += 0.12
    frames = np.array([on_donor, on_acceptor, lost])
    guard, filtered = Guard(topology, on_donor), PhysicalFilter(topology, on_donor[None])
    assert [(violation.walker, violation.reason) for violation in guard.check(frames)] == [(2, "bond")]
    assert filtered.verdicts(frames)[:2] == [PHYSICAL, PHYSICAL]
    assert filtered.verdicts(frames)[2].startswith("bond 0-5 is")
    # Without the mark the other side is a broken bond; and with it other bonds are judged as before.
    fixed = replace(topology, mobile=())
    assert [violation.walker for violation in Guard(fixed, on_donor).check(frames)] == [1, 2]
    torn = on_acceptor.copy()
    torn[6] += [0.08, -0.05, 0]
    assert PhysicalFilter(topology, on_donor[None]).verdicts(torn[None])[0].startswith("bond 1-6 is")
    bent = on_acceptor.copy()
    bent[0] += [-0.02, 0.04, 0]
    assert PhysicalFilter(topology, on_donor[None]).verdicts(bent[None])[0].startswith(("angle", "bond 0-1"))


def test_a_reference_of_both_sides_does_not_blur_the_bond():
    topology, on_donor = malonaldehyde()
    _, on_acceptor = malonaldehyde(moved=True)
    both = PhysicalFilter(topology, np.array([on_donor, on_acceptor]))
    squeezed = on_donor.copy()
    squeezed[5] = on_donor[0] + 0.7 * (on_donor[5] - on_donor[0])
    verdicts = both.verdicts(np.array([on_donor, on_acceptor, squeezed]))
    assert verdicts == [PHYSICAL, PHYSICAL, "bond 0-5 is 0.70 x reference"]


@published
def test_most_frames_of_hot_acetylacetone_are_physical():
    topology, start = frames_of("acetylacetone_train_300K")
    _, hot = frames_of("acetylacetone_train_600K")
    marked = with_mobile_protons(topology, start)
    elsewhere = np.linalg.norm(hot[:, 5] - hot[:, 11], axis=1) < np.linalg.norm(hot[:, 3] - hot[:, 11], axis=1)
    assert 0.3 < elsewhere.mean() < 0.7

    def share(graph, frames):
        verdicts = PhysicalFilter(graph, start[:1]).verdicts(frames)
        return np.mean([verdict == PHYSICAL for verdict in verdicts])

    assert share(topology, hot[elsewhere]) < 0.05
    assert abs(share(marked, hot[elsewhere]) - share(marked, hot[~elsewhere])) < 0.1
    guard = Guard(marked, start[0])
    assert len(guard.check(hot)) < 0.05 * len(hot)


def test_frames_with_the_proton_on_the_other_side_make_sense():
    topology, _ = malonaldehyde()
    moved = np.repeat(malonaldehyde(moved=True)[1][None], 20, axis=0)
    moved += 0.001 * np.random.default_rng(0).normal(size=moved.shape)
    check_sense(Frames(np.array(topology.numbers), moved), topology)
    with pytest.raises(UqbiasError, match="bond"):
        check_geometries(moved, topology.numbers, replace(topology, mobile=()))


def test_handedness_counts_a_side_as_either():
    """The carbon between two carbonyl groups of an enol is no stereocentre where the proton makes them alike."""
    # H2N-CHF between two -CO(H)... groups: O(0)-C(1)-C(2)-C(3)-O(4), H 5 on O 0; C 2 has F 6 and H 7 as well.
    bonds = ((0, 1), (1, 2), (2, 3), (3, 4), (0, 5), (2, 6), (2, 7))
    fixed = Topology((8, 6, 6, 6, 8, 1, 9, 1), bonds)
    assert fixed.chiral_centres() == [(2, 1, 3, 6)]
    assert replace(fixed, mobile=((0, 5, 4),)).chiral_centres() == []


def test_topology_keeps_them():
    topology, x = malonaldehyde()
    assert Topology.from_dict(topology.to_dict()) == topology
    old = replace(topology, mobile=()).to_dict()
    assert "mobile" not in old
    assert Topology.from_dict(old).mobile == ()
    assert with_mobile_protons(topology, x[None] + 9.0) is topology
    for wrong in ((1, 5, 4), (0, 5, 0), (0, 5, 9), (0, 6, 4), (0, 1, 4)):
        with pytest.raises(UqbiasError, match="mobile proton"):
            replace(topology, mobile=(wrong,))


@pytest.mark.parametrize("kind", ["hbonds", "bonds", "bonds_angles"])
def test_constraints_that_would_hold_it_are_refused(kind):
    topology, x = malonaldehyde()
    assert choose_constraints(topology, x, "none") == []
    with pytest.raises(UqbiasError, match="would hold hydrogen 5, which may move to atom 4"):
        choose_constraints(topology, x, kind)
