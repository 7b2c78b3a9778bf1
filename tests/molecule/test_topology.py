import json

import numpy as np
import pytest
from molecules import PEROXIDE

from uqbias.errors import UqbiasError
from uqbias.molecule.atoms import ordered_atoms
from uqbias.molecule.measures import chirality, dihedral_angles
from uqbias.molecule.topology import Topology

BUTANE = Topology(numbers=(6, 6, 6, 6), bonds=((0, 1), (1, 2), (2, 3)))


def butane(angle):
    """Carbon chain whose dihedral 0-1-2-3 is ``angle`` (rad), seen along +z from atom 1 to atom 2."""
    # Looking from atom 1 towards 2 (along +z), a clockwise turn takes x towards y.
    return np.array([[1, 0, 0], [0, 0, 0], [0, 0, 1.5], [np.cos(angle), np.sin(angle), 1.5]]) * 0.1


def bromochlorofluoromethane(mirror=1):
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) * 0.1
    positions = np.vstack([np.zeros(3), corners])
    return Topology((6, 35, 17, 9, 1), ((0, 1), (0, 2), (0, 3), (0, 4))), positions * [1, 1, mirror]


@pytest.mark.parametrize("degrees", [-179.0, -80.0, 0.5, 75.0, 120.0])
def test_dihedral_has_the_iupac_sign(degrees):
    found = np.degrees(dihedral_angles(butane(np.radians(degrees))[None], [(0, 1, 2, 3)]))
    assert found[0, 0] == pytest.approx(degrees, abs=1e-9)


def test_dihedral_agrees_with_mdtraj():
    import mdtraj

    x = np.random.default_rng(0).normal(size=(7, 6, 3))
    quadruples = [(0, 1, 2, 3), (5, 3, 1, 0), (2, 4, 5, 1)]
    trajectory = mdtraj.Trajectory(x, None)
    expected = mdtraj.compute_dihedrals(trajectory, quadruples, opt=False)
    np.testing.assert_allclose(dihedral_angles(x, quadruples), expected, atol=1e-5)


def test_internal_coordinates_of_a_chain():
    assert BUTANE.angles() == [(0, 1, 2), (1, 2, 3)]
    assert BUTANE.proper_dihedrals() == [(0, 1, 2, 3)]
    assert BUTANE.bond_separation()[0].tolist() == [0, 1, 2, 3]


def test_dihedrals_of_hydrogens_only_on_request():
    assert PEROXIDE.proper_dihedrals() == []
    assert PEROXIDE.proper_dihedrals(heavy_only=False) == [(0, 1, 2, 3)]


def test_three_ring_has_no_dihedral_through_itself():
    assert Topology((6, 6, 6), ((0, 1), (1, 2), (0, 2))).proper_dihedrals() == []


def test_disconnected_atoms_are_far():
    separation = Topology((1, 1, 2), ((0, 1),)).bond_separation()
    assert separation[0, 2] == 3
    assert separation[0, 1] == 1


def test_chiral_centre_changes_sign_in_the_mirror():
    topology, right = bromochlorofluoromethane()
    _, left = bromochlorofluoromethane(mirror=-1)
    centres = topology.chiral_centres()
    assert centres == [(0, 1, 2, 3)]
    signs = chirality(np.stack([right, left]), centres)
    assert signs[0, 0] == -signs[1, 0] != 0


def test_equivalent_substituents_make_no_centre():
    assert Topology((6, 35, 17, 1, 1), ((0, 1), (0, 2), (0, 3), (0, 4))).chiral_centres() == []


def test_substituents_that_differ_further_out_make_a_centre():
    # 3-methylhexane: ethyl and propyl on carbon 2 differ only in their tails.
    carbons = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (2, 6)]
    topology = Topology((6,) * 7 + (1,), (*carbons, (2, 7)))
    assert [four[0] for four in topology.chiral_centres()] == [2]


def test_bonds_guessed_from_distances():
    water = Topology.from_positions([8, 1, 1], np.array([[0, 0, 0], [0.096, 0, 0], [-0.024, 0.093, 0]]))
    assert water.bonds == ((0, 1), (0, 2))
    assert water.masses() == pytest.approx([15.999, 1.008, 1.008], abs=0.01)


def test_round_trips():
    topology = Topology((6, 8, 1), ((2, 0), (1, 0)), ("C", "O", "H"), ("ALA2", "ALA2", "NME3"))
    assert topology.bonds == ((0, 1), (0, 2))
    assert Topology.from_dict(json.loads(json.dumps(topology.to_dict()))) == topology
    assert Topology.from_openmm(topology.to_openmm()) == topology
    other = topology.to_mdtraj()
    assert [atom.element.atomic_number for atom in other.atoms] == [6, 8, 1]
    assert other.n_bonds == 2
    assert [str(residue) for residue in other.residues] == ["ALA2", "NME3"]


def test_unnamed_molecule_becomes_an_openmm_topology():
    assert [atom.name for atom in BUTANE.to_openmm().atoms()] == ["C1", "C2", "C3", "C4"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bonds": ((0, 3),)}, r"bond \(0, 3\)"),
        ({"bonds": ((1, 1),)}, r"bond \(1, 1\)"),
        ({"bonds": (), "names": ("C",)}, "1 names for 2 atoms"),
    ],
)
def test_bad_input_is_refused(values, message):
    with pytest.raises(UqbiasError, match=message):
        Topology((6, 6), **values)


def test_missing_and_broken_pdb(tmp_path):
    with pytest.raises(UqbiasError, match="no such file"):
        Topology.from_pdb(tmp_path / "absent.pdb")
    empty = tmp_path / "empty.pdb"
    empty.write_text("REMARK nothing\n")
    with pytest.raises(UqbiasError, match=r"empty\.pdb"):
        Topology.from_pdb(empty)


def residue_pdb(path, residues):
    """Water oxygens, one a residue: (name, chain, number, insertion code); None ends a chain."""
    lines = []
    for index, entry in enumerate(residues):
        if entry is None:
            lines.append("TER")
            continue
        name, chain, number, code = entry
        lines.append(
            f"HETATM{index + 1:5d}  O   {name:>3s} {chain}{number:4d}{code or ' '}   {3.0 * index:8.3f}{0:8.3f}{0:8.3f}"
            "  1.00  0.00           O"
        )
    path.write_text("\n".join([*lines, "END", ""]))
    return Topology.from_pdb(path)


@pytest.mark.parametrize(
    ("residues", "labels"),
    [
        ([("ALA", "A", 2, ""), ("GLY", "B", 3, "")], ("ALA2", "GLY3")),
        ([("ALA", "A", 2, ""), ("ALA", "B", 2, ""), ("GLY", "B", 3, "")], ("A:ALA2", "B:ALA2", "GLY3")),
        ([("GLY", "A", 52, ""), ("GLY", "A", 52, "A"), ("GLY", "A", 52, "B")], ("GLY52", "GLY52A", "GLY52B")),
        ([("ALA", "A", 2, ""), None, ("ALA", "A", 2, "")], ("A0:ALA2", "A1:ALA2")),
        ([("ALA", "A", -3, ""), ("ALA", "A", 3, "")], ("ALA-3", "ALA3")),
    ],
)
def test_residues_are_told_apart_by_chain_and_insertion_code(tmp_path, residues, labels):
    topology = residue_pdb(tmp_path / "r.pdb", residues)
    assert topology.residues == labels
    for index, label in enumerate(labels):
        assert ordered_atoms(topology, [f"{label}:O"], "atoms") == (index,)
    assert len(list(topology.to_openmm().residues())) == len(labels)
    again = Topology.from_openmm(topology.to_openmm())
    assert len(set(again.residues)) == len(labels)
    if not labels[0].startswith("A0"):
        assert again == topology


def test_handedness_of_atoms_flown_off_is_no_number_and_no_warning():
    """Walkers that blow up have positions whose products overflow."""
    centre = [(0, 1, 2, 3)]
    x = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=float)
    far = 1e200 * np.array([[0, 0, 0], [1, 1, 1], [1, 2, 3], [3, 2, 1]])
    assert chirality(np.array([x, -x, far]), centre).tolist() == [[1], [-1], [0]]
