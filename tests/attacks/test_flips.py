"""Flips of rings and moves of protons: bonds, angles and handedness stay, the other well is reached."""

import numpy as np
import pytest
from molecules import malonaldehyde

from uqbias.attacks.flips import proton_moves, ring_flips
from uqbias.molecule.measures import Shape, distances
from uqbias.molecule.topology import Topology

RANDOM = np.random.default_rng(0)
SIX = tuple(range(6))


def chair(members="CCCCCC", equatorial=(), axial=()):
    """Bond graph and positions [N, 3] nm of a six-ring; the named positions bear C or O (``{0: "C"}``), else H.

    An atom C of a substituent has three H, one of O one.
    """
    numbers = [{"C": 6, "O": 8}[member] for member in members]
    angle = np.arange(6) * np.pi / 3
    up = np.where(np.arange(6) % 2, -1.0, 1.0)
    out = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    x = list(1.46 * out + 0.25 * up[:, None] * [0, 0, 1])
    bonds = [(k, (k + 1) % 6) for k in range(6)]
    for k, member in enumerate(members):
        if member == "O":
            continue
        tilted = 0.943 * out[k] - 0.333 * up[k] * np.array([0, 0, 1])
        for direction, borne in ((tilted, dict(equatorial)), (np.array([0, 0, up[k]]), dict(axial))):
            what = borne.get(k)
            heavy = len(x)
            numbers.append({"C": 6, "O": 8, None: 1}[what])
            x.append(x[k] + {"C": 1.53, "O": 1.43, None: 1.09}[what] * direction)
            bonds.append((k, heavy))
            side = np.cross(direction, out[(k + 1) % 6])
            side /= np.linalg.norm(side)
            for turn in {"C": (0, 2, 4), "O": (3,), None: ()}[what]:
                around = np.cos(turn * np.pi / 3) * side + np.sin(turn * np.pi / 3) * np.cross(direction, side)
                numbers.append(1)
                x.append(x[heavy] + (1.09 if what == "C" else 0.97) * (0.333 * direction + 0.943 * around))
                bonds.append((heavy, len(x) - 1))
    return Topology(tuple(numbers), tuple(bonds)), 0.1 * np.array(x)


#: Pyranose ring with four OH and a methyl group, all equatorial: rhamnose-like, five stereocentres.
SUGAR = {"members": "CCCCCO", "equatorial": {0: "O", 1: "O", 2: "O", 3: "O", 4: "C"}}
RINGS = [{}, {"equatorial": {0: "C"}}, {"axial": {0: "C"}}, SUGAR, {"equatorial": {0: "C"}, "axial": {1: "O"}}]
NAMES = ["cyclohexane", "equatorial", "axial", "sugar", "two"]


def normal_share(x, ring, atom, neighbour):
    """Share of a bond along the normal of the ring's mean plane: 1 axial, about 0.3 equatorial."""
    normal = np.linalg.svd(x[[*ring]] - x[[*ring]].mean(axis=0))[2][2]
    bond = x[neighbour] - x[atom]
    return abs(bond @ normal) / np.linalg.norm(bond)


@pytest.mark.parametrize("options", RINGS, ids=NAMES)
def test_a_flip_keeps_bonds_angles_and_handedness(options):
    topology, x = chair(**options)
    x = x + 0.003 * np.random.default_rng(1).normal(size=x.shape)
    (flip,) = ring_flips(topology, [SIX])
    flipped = flip(x, RANDOM)
    kept = Shape(topology, x[None], bonds=(0.999999, 1.000001), angle=1e-4)
    assert kept.faults(flipped[None]) == [None]
    mirrored = x * [1, 1, -1]
    assert (kept.faults(mirrored[None])[0] is None) == (not topology.chiral_centres())
    np.testing.assert_allclose(flip(flipped, RANDOM)[[*SIX]], x[[*SIX]], atol=1e-12)
    assert np.abs(flipped - x).max() > 0.04


def test_a_sugar_has_stereocentres_to_be_kept():
    topology, _ = chair(**SUGAR)
    assert {centre for centre, *_ in topology.chiral_centres()} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(("before", "after"), [("equatorial", "axial"), ("axial", "equatorial")])
def test_methyl_changes_between_axial_and_equatorial(before, after):
    topology, x = chair(**{before: {0: "C"}})
    methyl = next(i for i in topology.neighbours[0] if i > 5 and topology.numbers[i] == 6)
    (flip,) = ring_flips(topology, [SIX])
    place = {"axial": 1.0, "equatorial": 1 / 3}
    assert normal_share(x, SIX, 0, methyl) == pytest.approx(place[before], abs=0.02)
    assert normal_share(flip(x, RANDOM), SIX, 0, methyl) == pytest.approx(place[after], abs=0.1)


def test_a_ring_that_the_move_would_break_is_left_out():
    # Two rings with a common bond, and one with a bridge.
    decalin = Topology((6,) * 10, (*((k, (k + 1) % 6) for k in range(6)), (0, 6), (6, 7), (7, 8), (8, 9), (9, 1)))
    bridged = Topology((6,) * 7, (*((k, (k + 1) % 6) for k in range(6)), (0, 6), (6, 3)))
    for topology in (decalin, bridged):
        assert ring_flips(topology, [SIX]) == []


def test_a_proton_goes_to_the_other_side_and_back():
    topology, x = malonaldehyde()
    (move,) = proton_moves(topology)
    there = move(x, RANDOM)
    np.testing.assert_allclose(there, malonaldehyde(moved=True)[1], atol=1e-12)
    np.testing.assert_allclose(move(there, RANDOM), x, atol=1e-12)


def test_a_proton_has_the_length_of_its_new_bond():
    topology, x = malonaldehyde()
    imine = Topology((*topology.numbers[:4], 7, *topology.numbers[5:]), topology.bonds, mobile=topology.mobile)
    there = proton_moves(imine)[0](x, RANDOM)
    lengths = distances(np.array([x, there]), np.array([(0, 5), (4, 5)]))
    assert lengths[1, 1] / lengths[0, 0] == pytest.approx((0.31 + 0.71) / (0.31 + 0.66))


@pytest.mark.slow
@pytest.mark.parametrize("options", [*RINGS, None], ids=[*NAMES, "proton"])
def test_gfn2_relaxes_it_to_the_other_well(options):
    pytest.importorskip("tblite")
    from ase import Atoms
    from ase.optimize import BFGS
    from tblite.ase import TBLite

    topology, x = malonaldehyde() if options is None else chair(**options)
    (move,) = proton_moves(topology) if options is None else ring_flips(topology, [SIX])

    def relaxed(positions):
        atoms = Atoms(topology.numbers, 10 * positions, calculator=TBLite(method="GFN2-xTB", verbosity=0))
        BFGS(atoms, logfile=None).run(fmax=0.1, steps=200)
        return 0.1 * atoms.positions

    here = relaxed(x)
    there = relaxed(move(here, RANDOM))
    assert Shape(topology, here[None], bonds=(0.9, 1.1), angle=15.0).faults(there[None]) == [None]
    if options is None:
        assert np.linalg.norm(there[5] - there[4]) < 0.11 < np.linalg.norm(there[5] - there[0])
    elif options:
        atom, other = next((i, j) for i, j in topology.bonds if i < 6 and j > 5 and topology.numbers[j] > 1)
        sides = [normal_share(geometry, SIX, atom, other) > 0.66 for geometry in (here, there)]
        assert sides[0] != sides[1]
