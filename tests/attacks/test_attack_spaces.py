"""Distortion spaces: what moves and what does not, exactness at zero, gradients, options."""

import math

import numpy as np
import pytest
import torch
from molecules import ALANINE_PDB

from uqbias import registry
from uqbias.attacks import distort
from uqbias.attacks.base import DistortionSpace
from uqbias.compile.flatten import flatten
from uqbias.errors import UqbiasError
from uqbias.molecule.measures import dihedral_angles
from uqbias.molecule.topology import Topology
from uqbias.registry import VARIABLES
from uqbias.testing import molecule

TOPOLOGY = molecule.topology()
BASE = molecule.frames(4, seed=3).positions
TORSION = list(molecule.TORSION)
TURNS = {
    "turn": {"kind": "dihedral", "atoms": TORSION},
    "back": {"kind": "dihedral", "atoms": TORSION[::-1]},
    "bend": {"kind": "angle", "atoms": [2, 0, 1]},
    "bond": {"kind": "distance", "atoms": [0, 1]},
    "ends": {"kind": "distance", "atoms": [2, 3]},
    "rmsd": {"kind": "rmsd", "atoms": "heavy"},
    "contacts": {"kind": "coordination", "group_a": [2], "group_b": [3], "r0": 0.3},
    "own": {"kind": f"{__name__}:own_torsion", "period": 2 * math.pi},
}
SPACES = {
    "cartesian": {"kind": "cartesian"},
    "heavy_xy": {"kind": "cartesian", "atoms": "heavy", "axes": "xy"},
    "torsions": {"kind": "internal"},
    "internal": {"kind": "internal", "bonds": True, "angles": True},
    "rigid": {"kind": "variables", "names": ["turn", "bend", "bond"]},
    "newton": {"kind": "variables", "names": ["turn", "bend", "bond"], "rigid": False},
    "mixed": {"kind": "variables", "names": ["turn", "ends"]},
    "own": {"kind": "variables", "names": "own"},
}


#: The quick ones of each way to move.
FLATTENED = ("heavy_xy", "internal", "own")


def own_torsion(positions):
    """A user's function, for which no rigid move is known."""
    return VARIABLES.build({"kind": "dihedral", "atoms": TORSION}, topology=TOPOLOGY)(positions)


def build_space(spec, topology, reference, variables=None):
    return registry.SPACES.build(spec, topology=topology, reference=reference, collective_variables=variables)


def space(name):
    return build_space(SPACES[name], TOPOLOGY, BASE[0], TURNS)


def changes(variable, before, after):
    """Change of a variable [n], wrapped."""
    module = VARIABLES.build(TURNS[variable], topology=TOPOLOGY, start=BASE[0])
    with torch.no_grad():
        found = (module(torch.tensor(after)) - module(torch.tensor(before))).numpy()
    return found if module.period is None else found - module.period * np.round(found / module.period)


def lengths(positions):
    i, j = np.array(TOPOLOGY.bonds).T
    return np.linalg.norm(positions[:, i] - positions[:, j], axis=-1)


def angles(positions):
    i, j, k = np.array(TOPOLOGY.angles()).T
    first, second = positions[:, i] - positions[:, j], positions[:, k] - positions[:, j]
    return np.arctan2(np.linalg.norm(np.cross(first, second), axis=-1), (first * second).sum(-1))


@pytest.mark.parametrize("name", SPACES)
def test_zero_gives_the_base_to_the_last_bit(name):
    chosen = space(name)
    assert len(chosen.labels) == chosen.n_coordinates
    delta = np.zeros((4, chosen.n_coordinates))
    np.testing.assert_array_equal(distort(chosen, BASE, delta), BASE)
    for dtype in (torch.float32, torch.float64):
        base = torch.tensor(BASE, dtype=dtype)
        assert torch.equal(chosen(base, torch.zeros(4, chosen.n_coordinates, dtype=dtype)).detach(), base)
    assert float(chosen.norm(torch.tensor(delta))[0]) == 0.0


@pytest.mark.parametrize("name", SPACES)
def test_every_coordinate_moves_atoms_and_has_the_right_gradient(name):
    chosen = space(name)
    D = chosen.n_coordinates
    random = torch.Generator().manual_seed(1)
    base = torch.tensor(BASE[:2])
    delta = 0.1 * torch.randn(2, D, generator=random, dtype=torch.float64)
    weights = torch.randn(2, len(TOPOLOGY), 3, generator=random, dtype=torch.float64)

    def value(inputs):
        moved = inputs[0].detach().requires_grad_()
        return torch.autograd.grad((chosen(base, moved) * weights).sum(), moved)

    (gradient,) = value([delta])
    if name in FLATTENED:
        torch.testing.assert_close(flatten(value, [0.1 * delta])(delta)[0], gradient)
    for place in range(D):
        step = torch.zeros_like(delta)
        step[:, place] = 1e-5
        with torch.no_grad():
            difference = (chosen(base, delta + step) - chosen(base, delta - step)) * weights
        slope = difference.sum((1, 2)) / 2e-5
        assert difference.abs().max() > 1e-8, chosen.labels[place]
        torch.testing.assert_close(gradient[:, place], slope, rtol=1e-6, atol=1e-7)


def test_torsions_are_turned_by_delta_and_nothing_else_changes():
    chosen = space("torsions")
    random = np.random.default_rng(0)
    delta = random.uniform(-3.0, 3.0, (4, chosen.n_coordinates))
    moved = distort(chosen, BASE, delta)
    assert chosen.labels == ("torsion 0-1", "torsion 0-2", "torsion 1-3")
    np.testing.assert_allclose(lengths(moved), lengths(BASE), atol=1e-12)
    np.testing.assert_allclose(angles(moved), angles(BASE), atol=1e-10)
    for label, turned in zip(chosen.labels, delta.T, strict=True):
        i, j = (int(word) for word in label.split()[1].split("-"))
        about = [four for four in TOPOLOGY.proper_dihedrals(heavy_only=False) if set(four[1:3]) == {i, j}]
        change = dihedral_angles(moved, about) - dihedral_angles(BASE, about) - turned[:, None]
        np.testing.assert_allclose(np.abs(np.exp(1j * change) - 1), 0.0, atol=1e-10)


def test_bonds_and_angles_change_by_delta():
    bonds = build_space({"kind": "internal", "torsions": False, "bonds": True}, TOPOLOGY, BASE[0])
    random = np.random.default_rng(0)
    delta = random.uniform(-0.3, 0.3, (4, bonds.n_coordinates))
    moved = distort(bonds, BASE, delta)
    assert [label.split()[0] for label in bonds.labels] == ["bond"] * len(TOPOLOGY.bonds)
    np.testing.assert_allclose(lengths(moved) - lengths(BASE), 0.1 * delta, atol=1e-12)
    np.testing.assert_allclose(angles(moved), angles(BASE), atol=1e-9)

    bends = build_space({"kind": "internal", "torsions": False, "angles": True}, TOPOLOGY, BASE[0])
    place = bends.n_coordinates - 1
    i, j, k = (int(word) for word in bends.labels[place].split()[1].split("-"))
    alone = np.zeros((4, bends.n_coordinates))
    alone[:, place] = delta[:, 0]
    moved = distort(bends, BASE, alone)
    at = TOPOLOGY.angles().index((min(i, k), j, max(i, k)))
    np.testing.assert_allclose((angles(moved) - angles(BASE))[:, at], delta[:, 0], atol=1e-9)
    np.testing.assert_allclose(lengths(moved), lengths(BASE), atol=1e-12)


def test_rigid_variables_change_by_delta_and_keep_the_bonds():
    chosen = space("rigid")
    assert chosen.moves is not None
    delta = np.random.default_rng(2).uniform(-0.5, 0.5, (4, 3))
    moved = distort(chosen, BASE, delta)
    for name, unit, change in zip(("turn", "bend", "bond"), (1.0, 1.0, 0.1), delta.T, strict=True):
        np.testing.assert_allclose(changes(name, BASE, moved), unit * change, atol=1e-7)
    others = [place for place, bond in enumerate(TOPOLOGY.bonds) if bond != (0, 1)]
    np.testing.assert_allclose(lengths(moved)[:, others], lengths(BASE)[:, others], atol=1e-12)


@pytest.mark.parametrize(
    ("names", "reach"),
    [(["turn"], 1.0), (["back"], 1.0), (["own"], 1.0), (["turn", "ends"], 0.4), (["contacts"], 0.1), (["rmsd"], 0.2)],
)
def test_newton_steps_reach_any_variable(names, reach):
    chosen = build_space({"kind": "variables", "names": names, "rigid": False}, TOPOLOGY, BASE[0], TURNS)
    assert chosen.moves is None
    delta = np.random.default_rng(2).uniform(-reach, reach, (4, len(names)))
    if names == ["rmsd"]:  # it cannot become negative
        delta = np.abs(delta) + 0.05
    moved = distort(chosen, BASE, delta)
    for name, change in zip(names, delta.T, strict=True):
        unit = 0.1 if name in ("ends", "rmsd") else 1.0
        # The RMSD of the first frame, which is its reference, is at its minimum and has no gradient.
        chosen = slice(name == "rmsd", None)
        np.testing.assert_allclose(changes(name, BASE, moved)[chosen], unit * change[chosen], rtol=0.01)


def test_newton_steps_are_wrapped():
    chosen = space("own")
    delta = np.array([[-2.6], [2.6], [-0.5], [0.5]])
    moved = distort(chosen, BASE, delta)
    begun = dihedral_angles(BASE, [TORSION])[:, 0]
    assert (np.abs(begun + delta[:, 0]) > np.pi).any(), "one of them has to pass through 180 degrees"
    np.testing.assert_allclose(changes("own", BASE, moved), delta[:, 0], rtol=0.01)


def test_the_least_mass_weighted_displacement_moves_light_atoms_more():
    chosen = build_space(
        {"kind": "variables", "names": ["bond"], "rigid": False},
        TOPOLOGY,
        BASE[0],
        {"bond": {"kind": "distance", "atoms": [1, 4]}},
    )
    moved = np.linalg.norm(distort(chosen, BASE, np.full((4, 1), 0.1)) - BASE, axis=-1)
    masses = TOPOLOGY.masses()
    np.testing.assert_allclose(moved[:, 4] / moved[:, 1], masses[1] / masses[4], rtol=1e-4)
    assert moved[:, [0, 2, 3, 5]].max() == 0.0


def test_a_variable_without_a_gradient_moves_nothing():
    chosen = build_space({"kind": "variables"}, TOPOLOGY, BASE[0], {"flat": {"kind": f"{__name__}:flat"}})
    np.testing.assert_array_equal(distort(chosen, BASE, np.ones((4, 1))), BASE)


def flat(positions):
    return 0.0 * positions.sum((1, 2))


def test_variables_that_move_each_other_are_not_moved_rigidly():
    assert space("mixed").moves is None
    both = {"turn": TURNS["turn"], "other": {"kind": "dihedral", "atoms": [6, 2, 0, 1]}}
    assert build_space({"kind": "variables"}, TOPOLOGY, BASE[0], both).moves is not None
    same = {"turn": TURNS["turn"], "twin": {"kind": "dihedral", "atoms": [2, 0, 1, 4]}}
    assert build_space({"kind": "variables"}, TOPOLOGY, BASE[0], same).moves is None


def test_ring_bonds_are_left_out():
    # Cyclopropane with a methyl group on atom 0, carbons only.
    ring = Topology((6, 6, 6, 6, 1), ((0, 1), (1, 2), (0, 2), (0, 3), (3, 4)))
    x = np.array([[0, 0, 0], [0.15, 0, 0], [0.07, 0.13, 0], [-0.1, -0.1, 0], [-0.1, -0.15, 0.1]])
    chosen = build_space({"kind": "internal", "bonds": True, "angles": True}, ring, x)
    assert chosen.labels == (
        "torsion 0-3",
        "bond 0-3",
        "bond 3-4",
        "angle 1-0-3",
        "angle 2-0-3",
        "angle 0-3-4",
    )
    only = Topology((6, 6, 6), ((0, 1), (1, 2), (0, 2)))
    with pytest.raises(UqbiasError, match="no such coordinate outside rings"):
        build_space("internal", only, x[:3])
    dihedral = {"phi": {"kind": "dihedral", "atoms": [3, 0, 1, 2]}}
    assert build_space("variables", ring, x, dihedral).moves is None


def test_straight_angles_are_left_out():
    acetylene = Topology((1, 6, 6, 1), ((0, 1), (1, 2), (2, 3)))
    x = np.array([[-0.1, 0, 0], [0, 0, 0], [0.12, 0, 0], [0.22, 0, 0]])
    chosen = build_space({"kind": "internal", "torsions": False, "bonds": True, "angles": True}, acetylene, x)
    assert chosen.labels == ("bond 0-1", "bond 1-2", "bond 2-3")


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("cartesan", "did you mean 'cartesian'"),
        ({"bonds": True}, "has no kind"),
        ({"kind": "internal", "bond": True}, "did you mean 'bonds'"),
        ({"kind": "cartesian", "axes": "xw"}, "axes 'xw'"),
        ({"kind": "cartesian", "atoms": [99]}, "99 in a molecule of 12 atoms"),
        ({"kind": "variables", "names": ["trun"]}, "did you mean 'turn'"),
        ({"kind": "variables", "names": []}, "without a variable"),
        ({"kind": "variables", "names": ["turn", "turn"]}, "each variable once"),
        ({"kind": "variables", "variables": {}}, "unknown option 'variables'"),
        ({"kind": "internal", "torsions": False}, "of nothing"),
        ({"kind": "pathlib:Path"}, "is not a space"),
    ],
)
def test_wrong_options(spec, match):
    with pytest.raises(UqbiasError, match=match):
        build_space(spec, TOPOLOGY, BASE[0], TURNS)


def test_reference_of_another_molecule():
    with pytest.raises(UqbiasError, match=r"reference of shape \(3, 3\)"):
        build_space("cartesian", TOPOLOGY, np.zeros((3, 3)))


class Breathing(DistortionSpace):
    """A third party's space: the molecule as a whole becomes larger or smaller."""

    kind = "breathing"
    n_coordinates = 1
    labels = ("size",)

    @classmethod
    def build(cls, topology, reference):
        return cls()

    def forward(self, base, delta):
        return base * (1.0 + delta.view(-1, 1, 1))


def test_a_space_of_ones_own():
    chosen = build_space(f"{__name__}:Breathing", TOPOLOGY, BASE[0])
    np.testing.assert_allclose(distort(chosen, BASE, np.full((4, 1), 0.5)), 1.5 * BASE)


def test_soft_torsions_are_those_of_single_bonds_between_heavy_atoms(alanine_frames):
    """φ and ψ of alanine dipeptide; not the amides, nor the methyl groups."""
    topology = Topology.from_pdb(ALANINE_PDB)
    chosen = build_space({"kind": "internal", "torsions": "soft"}, topology, alanine_frames.positions[0])
    assert chosen.labels == ("torsion 6-8", "torsion 8-14")
