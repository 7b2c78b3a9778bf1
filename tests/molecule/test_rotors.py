"""Bonds that turn and rings that pucker, on molecules whose chemistry is known."""

from pathlib import Path

import ase.build
import numpy as np
import pytest

from uqbias.molecule.rotors import bond_reasons, ring_systems, rotors
from uqbias.molecule.topology import Topology, read_pdb

ALANINE = Path(__file__).parents[2] / "systems" / "alanine_dipeptide" / "structure.pdb"


def graph(atoms, bonds=None):
    """Topology of heavy atoms such as ``CH3``, a chain unless bonds are given, with hydrogens."""
    elements = {"C": 6, "N": 7, "O": 8, "S": 16}
    bonds = [(i, i + 1) for i in range(len(atoms.split()) - 1)] if bonds is None else list(bonds)
    numbers, counts = [], []
    for atom in atoms.split():
        element, _, count = atom.partition("H")
        numbers.append(elements[element])
        counts.append(int(count or "H" in atom))
    for i, count in enumerate(counts):
        bonds += [(i, len(numbers) + k) for k in range(count)]
        numbers += [1] * count
    return Topology(tuple(numbers), tuple(bonds))


def ring(size, first=0):
    return [(first + i, first + (i + 1) % size) for i in range(size)]


def kinds(topology, positions=None):
    return {rotor.bond: rotor.reason for rotor in rotors(topology, positions)}


def test_alanine_dipeptide_turns_phi_and_psi():
    topology, positions = read_pdb(ALANINE)
    topology = Topology.from_openmm(topology)
    named = {tuple(topology.names[i] for i in bond): reason for bond, reason in kinds(topology, positions).items()}
    assert named == {("C", "N"): "amide", ("N", "CA"): "single bond", ("CA", "C"): "single bond"}
    assert [rotor.bond for rotor in rotors(topology, positions) if rotor.soft] == [(6, 8), (8, 14)]


def test_three_alanines_turn_six_bonds_whatever_the_start_frames():
    residue = ["NH", "CH", "CH3", "C", "O"]
    atoms = ["CH3", "C", "O", *residue * 3, "NH", "CH3"]
    bonds = [(0, 1), (1, 2)]
    for first, before in ((3, 1), (8, 6), (13, 11)):
        bonds += [(before, first), (first, first + 1), (first + 1, first + 2), (first + 1, first + 3)]
        bonds += [(first + 3, first + 4)]
    bonds += [(16, 18), (18, 19)]
    reasons = list(kinds(graph(" ".join(atoms), bonds)).values())
    assert (reasons.count("single bond"), reasons.count("amide"), len(reasons)) == (6, 4, 10)


PHENYL = "C CH CH CH CH CH"
CASES = {
    "n-decane": (graph("CH3 " + "CH2 " * 8 + "CH3"), {(i, i + 1): "single bond" for i in range(1, 8)}),
    "butadiene": (graph("CH2 CH CH CH2"), {(1, 2): "single bond"}),
    "2-butene": (graph("CH3 CH CH CH3"), {(1, 2): "double bond"}),
    "allene": (graph("CH3 CH C CH CH3"), {(1, 2): "linear", (2, 3): "linear"}),
    "alkyne": (graph("CH3 CH2 C C CH2 CH3"), {(1, 2): "linear", (2, 3): "linear", (3, 4): "linear"}),
    "azide": (graph("CH3 CH2 N N N"), {(1, 2): "single bond", (2, 3): "linear"}),
    "ester": (
        graph("CH3 CH2 O C O CH3", [(0, 1), (1, 2), (2, 3), (3, 4), (3, 5)]),
        {(1, 2): "single bond", (2, 3): "ester"},
    ),
    "disulphide": (graph("CH3 CH2 S S CH2 CH3"), {(1, 2): "single bond", (2, 3): "single bond", (3, 4): "single bond"}),
    "acetylacetone": (
        graph("CH3 C CH C CH3 OH O", [(0, 1), (1, 2), (2, 3), (3, 4), (1, 5), (3, 6)]),
        {(1, 2): "double bond", (2, 3): "conjugated"},
    ),
    "acetylacetonate": (
        graph("CH3 C CH C CH3 O O", [(0, 1), (1, 2), (2, 3), (3, 4), (1, 5), (3, 6)]),
        {(1, 2): "conjugated", (2, 3): "conjugated"},
    ),
    "diketone": (
        graph("CH3 C CH2 C CH3 O O", [(0, 1), (1, 2), (2, 3), (3, 4), (1, 5), (3, 6)]),
        {(1, 2): "single bond", (2, 3): "single bond"},
    ),
    "aspartate": (
        graph("CH3 CH2 C O O", [(0, 1), (1, 2), (2, 3), (2, 4)]),
        {(1, 2): "single bond"},
    ),
    "guanidinium": (
        graph("CH3 CH2 NH C NH2 NH2", [(0, 1), (1, 2), (2, 3), (3, 4), (3, 5)]),
        {(1, 2): "single bond", (2, 3): "conjugated"},
    ),
    "amidine": (
        graph("CH3 NH C NH CH3", [(0, 1), (1, 2), (2, 3), (2, 4)]),
        {(1, 2): "conjugated"},
    ),
    "iminium": (graph("CH3 CH NH CH2 CH3"), {(1, 2): "double bond", (2, 3): "single bond"}),
    "nitropropane": (
        graph("CH3 CH2 CH2 N O O", [(0, 1), (1, 2), (2, 3), (3, 4), (3, 5)]),
        {(1, 2): "single bond", (2, 3): "single bond"},
    ),
    "sulphonamide": (
        graph("CH3 CH2 S NH CH3 O O", [(0, 1), (1, 2), (2, 3), (3, 4), (2, 5), (2, 6)]),
        {(1, 2): "single bond", (2, 3): "single bond"},
    ),
    "ethanol": (graph("CH3 CH2 OH"), {}),
    "water dimer": (graph("OH2 OH2", []), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_reasons(name):
    topology, expected = CASES[name]
    assert kinds(topology) == expected
    assert not ring_systems(topology)


def test_biphenyl_turns_about_the_bond_between_its_rings_alone():
    atoms = f"{PHENYL} {PHENYL}"
    reasons = kinds(graph(atoms, [*ring(6), *ring(6, 6), (0, 6)]))
    assert reasons.pop((0, 6)) == "single bond"
    assert set(reasons.values()) == {"flat ring"}


def test_aryl_ether_of_a_pyridine_turns_in_three_places():
    """3BPA: 3-(benzyloxy)pyridin-2-amine."""
    atoms = f"{PHENYL} CH2 O C C N CH CH CH NH2"
    bonds = [*ring(6), (0, 6), (6, 7), (7, 8), (8, 9), (9, 10), (10, 11), (11, 12), (12, 13), (13, 8), (9, 14)]
    assert [rotor.bond for rotor in rotors(graph(atoms, bonds)) if rotor.soft] == [(0, 6), (6, 7), (7, 8)]


def test_aspirin_holds_its_ester():
    atoms = "C C CH CH CH CH C O OH O C O CH3"
    bonds = [*ring(6), (0, 6), (6, 7), (6, 8), (1, 9), (9, 10), (10, 11), (10, 12)]
    reasons = {bond: reason for bond, reason in kinds(graph(atoms, bonds)).items() if reason != "flat ring"}
    assert reasons == {(0, 6): "single bond", (1, 9): "single bond", (9, 10): "ester"}


def test_rings_pucker_where_neighbouring_atoms_are_saturated():
    cyclohexane = graph("CH2 " * 6, ring(6))
    assert {*kinds(cyclohexane).values()} == {"ring"}
    (atoms,) = ring_systems(cyclohexane)
    assert all(j in cyclohexane.neighbours[i] for i, j in zip(atoms, atoms[1:] + atoms[:1], strict=True))
    assert sorted(atoms) == [0, 1, 2, 3, 4, 5]
    assert not ring_systems(graph("CH " * 6, ring(6)))  # benzene
    assert len(ring_systems(graph("CH CH CH2 CH2 CH2 CH2", ring(6)))) == 1  # cyclohexene
    assert not ring_systems(graph("CH CH CH2 CH CH CH2", ring(6)))  # 1,4-cyclohexadiene is flat
    assert not ring_systems(graph("O CH CH CH CH", ring(5)))  # furan
    sugar = graph("O CH CH CH CH CH2 OH OH OH OH", [*ring(6), *((i, i + 5) for i in range(1, 5))])
    assert len(ring_systems(sugar)) == 1
    decalin = graph("CH CH2 CH2 CH2 CH2 CH CH2 CH2 CH2 CH2", [*ring(6), (5, 6), (6, 7), (7, 8), (8, 9), (9, 0)])
    assert len(ring_systems(decalin)) == 2
    norbornane = graph("CH CH2 CH2 CH CH2 CH2 CH2", [*ring(6), (0, 6), (3, 6)])
    assert not ring_systems(norbornane)


def test_tops_are_judged_but_not_listed():
    topology = graph("CH3 C O NH2", [(0, 1), (1, 2), (1, 3)])
    assert bond_reasons(topology) == {(0, 1): "single bond", (1, 3): "amide"}
    assert not rotors(topology)


def test_a_long_bond_is_none_but_single_whatever_hydrogens_are_missing():
    atoms = ase.build.molecule("trans-butane")
    carbons = atoms.positions[atoms.numbers == 6] * 0.1
    bare = Topology.from_positions([6] * 4, carbons)
    ((bond, reason),) = kinds(bare).items()
    assert reason != "single bond"
    assert kinds(bare, np.stack([carbons, carbons])) == {bond: "single bond"}
