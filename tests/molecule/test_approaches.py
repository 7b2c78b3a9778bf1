"""Physical limits of crystals and molecules in boxes: for the filter and the guard alike, through images."""

import dataclasses

import ase.build
import numpy as np
import pytest
from ase.spacegroup import crystal

from uqbias.errors import UqbiasError
from uqbias.md.guards import Guard
from uqbias.molecule.frames import Frames
from uqbias.molecule.limits import CoordinationLimits, Limits
from uqbias.molecule.physical import NETWORK_WINDOW, PhysicalFilter
from uqbias.molecule.structure import from_distances
from uqbias.units import ANGSTROM

SITES = [(0.4697, 0.0, 2 / 3), (0.4133, 0.2672, 0.7856)]


@pytest.fixture(scope="module")
def quartz():
    atoms = crystal(["Si", "O"], SITES, spacegroup=154, cellpar=[4.916, 4.916, 5.405, 90, 90, 120]).repeat((2, 2, 2))
    random = np.random.default_rng(0)
    x = atoms.positions * ANGSTROM + random.normal(scale=0.003, size=(6, len(atoms), 3))
    frames = Frames(atoms.numbers, x, cells=np.tile(atoms.cell.array * ANGSTROM, (6, 1, 1)))
    return from_distances(frames.numbers, x[0], frames.cells[0]), frames


def squeezed(frames, i, j, apart):
    """The first frame with atom j moved to a distance from atom i, and to another image."""
    x, cell = frames.positions[0].copy(), frames.cells[0]
    move = x[j] - x[i]
    move -= np.round(move @ np.linalg.inv(cell)) @ cell
    x[j] = x[i] + move * apart / np.linalg.norm(move) + np.array([2, -1, 1]) @ cell
    return dataclasses.replace(frames[:1], positions=x[None])


def nearest(frames, i, number):
    move = frames.positions[0] - frames.positions[0, i]
    move -= np.round(move @ np.linalg.inv(frames.cells[0])) @ frames.cells[0]
    apart = np.where(frames.numbers == number, np.linalg.norm(move, axis=1), np.inf)
    apart[i] = np.inf
    return int(apart.argmin())


def test_a_crystal_keeps_the_distances_of_its_elements(quartz):
    graph, frames = quartz
    verdicts = PhysicalFilter(graph, frames).verdicts
    assert verdicts(frames) == [""] * 6
    silicon = int((frames.numbers == 14).argmax())
    oxygen = nearest(frames, silicon, 8)
    assert verdicts(squeezed(frames, silicon, oxygen, 0.13)) == [""]
    (verdict,) = verdicts(squeezed(frames, silicon, oxygen, 0.10))
    assert verdict.startswith("clash of")
    assert verdict.endswith("at 1.00 Å")
    strained = dataclasses.replace(frames, positions=frames.positions * 0.7, cells=frames.cells * 0.7)
    assert all(verdict.startswith("clash") for verdict in verdicts(strained))


def test_coordination_energy_and_force(quartz):
    graph, frames = quartz
    rule = CoordinationLimits(centre="Si", neighbour="O", within=0.2, least=4, most=4)
    physical = PhysicalFilter(graph, frames, 0.0, Limits(coordination=[rule], largest_force=500.0))
    assert physical.verdicts(frames) == [""] * 6
    silicon = int((frames.numbers == 14).argmax())
    out = squeezed(frames, silicon, nearest(frames, silicon, 8), 0.22)
    assert physical.verdicts(out) == [f"coordination of atom {silicon} is 3"]
    window = 120.0 + NETWORK_WINDOW * 72
    forces = np.zeros((6, 72, 3))
    forces[3, 5, 1] = -501.0
    energies = np.array([0.0, window + 1, -window - 1, 0.0, window - 1, 0.0])
    assert physical.verdicts(frames, energies, forces=forces) == [
        "",
        f"energy {window + 1:.0f} kJ/mol above mean",
        f"energy {window + 1:.0f} kJ/mol below mean",
        "force component 501 kJ/mol/nm",
        "",
        "",
    ]
    wrong = CoordinationLimits(centre="Al", neighbour="O", within=0.2)
    with pytest.raises(UqbiasError, match="coordination of Al, which is not there"):
        PhysicalFilter(graph, frames, limits=Limits(coordination=[wrong]))


def test_the_guard_stops_walkers_in_cells(quartz):
    graph, frames = quartz
    guard = Guard(graph, frames.positions[0], labelled=frames)
    assert guard.check(frames.positions, boxes=frames.cells) == []
    silicon = int((frames.numbers == 14).argmax())
    near = squeezed(frames, silicon, nearest(frames, silicon, 8), 0.09)
    (violation,) = guard.check(near.positions, boxes=near.cells)
    assert violation.reason == "clash"
    assert violation.values["distance"] == pytest.approx(0.09)
    with pytest.raises(UqbiasError, match="a guard whose labelled frames have cells, and walkers without"):
        guard.check(frames.positions)


def test_molecules_in_a_box_keep_their_rules_through_its_boundary():
    water = ase.build.molecule("H2O")
    atoms = water + water
    atoms.positions[3:] += [3.0, 0.0, 0.0]
    cell = np.diag([6.2, 6.0, 6.0]) * ANGSTROM
    x = atoms.positions * ANGSTROM
    graph = from_distances(atoms.numbers, x, cell)
    assert len(graph.bonds) == 4
    assert not graph.network
    frames = Frames(atoms.numbers, x[None], cells=cell[None])
    physical = PhysicalFilter(graph, frames)
    assert physical.verdicts(frames) == [""]
    moved = x.copy()
    moved[4] += cell[0]  # one hydrogen at another image: the same geometry
    assert physical.verdicts(dataclasses.replace(frames, positions=moved[None])) == [""]
    stretched = x.copy()
    stretched[4, 1] *= 1.6
    (verdict,) = physical.verdicts(dataclasses.replace(frames, positions=stretched[None]))
    assert verdict.startswith("bond 3-4")
    through = x.copy()
    through[3:, 0] += 0.14  # now 1.8 Å from an image of the first
    (verdict,) = physical.verdicts(dataclasses.replace(frames, positions=through[None]))
    assert verdict.startswith("clash of 0 and 3") or verdict.startswith("clash of 3 and 0")
