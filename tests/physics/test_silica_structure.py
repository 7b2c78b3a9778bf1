"""Rings and coordination of silica crystals, which are known, by the script that looks at glasses."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from uqbias.molecule.frames import read_frames

SILICA = Path(__file__).parents[2] / "systems/silica"
GLASS = runpy.run_path(str(SILICA / "glass.py"))


@pytest.fixture(scope="module")
def crystals():
    return runpy.run_path(str(SILICA / "make_reference.py"))["polymorphs"]()


@pytest.mark.parametrize(
    ("name", "rings", "oxygens"),
    # Of the six pairs of neighbours of each of the 24 silicons, all lie in six-rings in cristobalite; in quartz every
    # third is in an eight-ring.
    [
        ("cristobalite", {6: 144}, 4),
        ("quartz", {6: 96, 8: 48}, 4),
        ("coesite", {4: 48, 6: 48, 8: 36, 9: 12}, 4),
        ("stishovite", None, 6),
    ],
)
def test_crystals(crystals, name, rings, oxygens):
    atoms = crystals[name]
    assert atoms.numbers.tolist() == [14] * 24 + [8] * 48
    assert GLASS["coordination"]([atoms]) == {oxygens: 24}
    if rings:
        assert GLASS["rings"](atoms) == rings


def test_rings_do_not_depend_on_where_the_cell_begins(crystals):
    atoms = crystals["quartz"].copy()
    atoms.translate([3.3, -1.7, 20.0])
    atoms.wrap()
    assert GLASS["rings"](atoms) == {6: 96, 8: 48}


def test_pair_distribution_counts_neighbours(crystals):
    """The integral of g(r) over the first peak is the coordination."""
    atoms = crystals["quartz"]
    r, g = GLASS["pair_distribution"]([atoms], "Si-O", 2.2, 220)
    density = 48 / atoms.get_volume()
    assert (4 * np.pi * r**2 * g * density).sum() * 0.01 == pytest.approx(4, rel=1e-3)


def test_structures_are_those_of_the_script(crystals):

    for name in ("quartz", "cristobalite"):
        frames = read_frames(SILICA / f"{name}.xyz", labelled=False, periodic=True)
        np.testing.assert_allclose(frames.positions[0], crystals[name].positions / 10, atol=1e-8)
        np.testing.assert_allclose(frames.cells[0], crystals[name].cell.array / 10, atol=1e-9)


@pytest.mark.parametrize(
    ("file", "oxygens", "least"),
    [("start", 4, 1.0), ("reference/stishovite", 6, 1.0), ("reference/coesite", 4, 1.0), ("reference/glass", 4, 0.99)],
)
def test_frames_are_what_they_are_called(file, oxygens, least):

    frames = read_frames(SILICA / f"{file}.xyz", periodic=True)
    counts = GLASS["coordination"](GLASS["images"](frames))
    assert counts[oxygens] >= least * counts.total()
    assert all(entry["cutoff_nm"] == 0.55 for entry in frames.info)


def test_melts_hold_what_no_crystal_does():

    images = GLASS["images"](read_frames(SILICA / "reference/liquid.xyz", periodic=True))
    counts = GLASS["coordination"](images)
    assert 0.02 < 1 - counts[4] / counts.total() < 0.2
    rings = set().union(*(GLASS["rings"](one) for one in images))
    assert {3, 4, 5, 6, 7, 8} <= rings
