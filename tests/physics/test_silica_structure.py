"""Silica: rings and coordination of crystals, which are known; what the files hold; BKS against sums by hand."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import yaml
from ase.neighborlist import neighbor_list
from scipy.special import erfc

from uqbias.campaign.work import Work
from uqbias.molecule.frames import read_frames
from uqbias.molecule.structure import read_structure
from uqbias.oracles.openmm import OpenMMOracle
from uqbias.settings.file import load_campaign
from uqbias.units import ANGSTROM, EV, EV_PER_ANGSTROM

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


@pytest.fixture(scope="module")
def oracle():
    return OpenMMOracle(SILICA / "quartz.xyz", forcefield=str(SILICA / "bks.xml"), cutoff=0.55, strain=1e-4)


@pytest.mark.parametrize("file", ["start", "reference/liquid", "reference/coesite"])
def test_labels_are_those_of_the_oracle(oracle, file):
    frames = read_frames(SILICA / f"{file}.xyz", periodic=True)[[7]]
    label = oracle.label(frames.positions[0], frames.cells[0])
    np.testing.assert_allclose(label.energy, frames.energies[0], atol=24 * 1e-4 * EV)
    np.testing.assert_allclose(label.forces, frames.forces[0], atol=1e-3 * EV_PER_ANGSTROM)
    np.testing.assert_allclose(label.stress, frames.stresses[0], atol=2e-4 * EV / ANGSTROM**3)


def test_bks_is_the_published_potential(crystals, oracle):
    """Pairs summed over images, and the Ewald sum by reciprocal and real space, in eV and Å."""
    atoms = crystals["quartz"].copy()
    atoms.rattle(0.1, seed=1)
    parameters = {  # A, B, C; ε, σ
        "OO": (1388.7730, 2.76, 175.0, 0.00105105, 1.779239),
        "OSi": (18003.7572, 4.87318, 133.5381, 0.0030949598, 1.313635),
    }
    i, j, r = neighbor_list("ijd", atoms, 5.5)
    short = 0.0
    for pair, (a, b, c, epsilon, sigma) in parameters.items():
        d = r[["".join(sorted(one)) == pair for one in zip(atoms.symbols[i], atoms.symbols[j], strict=True)]]
        x = np.clip((d - 4.95) / 0.55, 0.0, 1.0)
        value = a * np.exp(-b * d) - c / d**6 + 4 * epsilon * ((sigma / d) ** 24 - (sigma / d) ** 6)
        short += 0.5 * (value * (1 - 6 * x**5 + 15 * x**4 - 10 * x**3)).sum()
    charges = np.where(atoms.numbers == 14, 2.4, -1.2)
    alpha, volume = 0.6, atoms.get_volume()
    i, j, r = neighbor_list("ijd", atoms, 9.0)
    coulomb = 0.5 * (charges[i] * charges[j] * erfc(alpha * r) / r).sum()
    n = np.stack(np.meshgrid(*[np.arange(-14, 15)] * 3), axis=-1).reshape(-1, 3)
    k = 2 * np.pi * n[n.any(axis=1)] @ np.linalg.inv(atoms.cell.array).T
    square = (k**2).sum(axis=1)
    k, square = k[square < 49.0], square[square < 49.0]
    structure = np.abs(np.exp(1j * k @ atoms.positions.T) @ charges) ** 2
    coulomb += 2 * np.pi / volume * (np.exp(-square / (4 * alpha**2)) / square * structure).sum()
    coulomb -= alpha / np.sqrt(np.pi) * (charges**2).sum()
    label = oracle.label(atoms.positions * ANGSTROM, atoms.cell.array * ANGSTROM)
    assert label.energy / EV / 24 == pytest.approx((short + 14.399645 * coulomb) / 24, abs=1e-4)


def test_every_label_tells_the_cutoff(tmp_path):
    content = {
        "system": {"structure": str(SILICA / "quartz.xyz"), "start": str(SILICA / "start.xyz")},
        "oracle": {"kind": "openmm", "forcefield": str(SILICA / "bks.xml"), "cutoff": 0.55},
    }
    (tmp_path / "campaign.yaml").write_text(yaml.safe_dump(content))
    file = load_campaign(tmp_path / "campaign.yaml")
    start = read_frames(SILICA / "start.xyz", labelled=False, periodic=True)
    work = Work(file, tmp_path, None, read_structure(SILICA / "quartz.xyz").topology, start, None)
    assert work.topology.network == frozenset(range(72))
    assert work.oracle_facts == {"cutoff_nm": 0.55}
