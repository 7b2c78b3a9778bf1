"""Walkers in cells: energy and temperature, lists that grow on the way, constant pressure, snapshots, files."""

import mdtraj
import numpy as np
import pytest
import torch
from molecules import PEROXIDE, peroxide
from periodic_systems import CELLS, atoms
from toy_crystal import BOX, BULK, NEON, PLACES, Solid, make
from toy_walkers import Peroxide

from uqbias.bias.linear import Linear
from uqbias.bias.metad import MetaD
from uqbias.compile.fused import FusedEvaluator
from uqbias.errors import UqbiasError
from uqbias.md.guards import Guard
from uqbias.md.walkers import Walkers
from uqbias.molecule.frames import Frames
from uqbias.runs.series import stacked
from uqbias.runs.trajectories import Trajectories
from uqbias.units import BAR, kt

torch.set_num_threads(1)
KT = kt(300.0)


@pytest.fixture(scope="module", params=["narrow", "slab"])
def solid(request):
    box, periodic = CELLS[request.param]
    numbers, positions = atoms(box, periodic, n_walkers=2)
    return Solid(numbers), positions.numpy(), box, periodic


def walk(solid, bias=None, *, skin=0.02, **options):
    whole, positions, box, periodic = solid
    evaluator = FusedEvaluator(
        whole, bias, 2, runner="eager", dtype=torch.float64, box=box, periodic=periodic, skin=skin
    )
    settings = {"temperature": 300.0, "friction_per_ps": 5.0, "seed": 7, "backend": "pythonforce", **options}
    return Walkers(whole.topology, evaluator, positions, **settings)


def test_without_a_thermostat_the_energy_stays(solid):
    walkers, seen = walk(solid, friction_per_ps=None, timestep_fs=0.25), []
    freedom = 1.5 * walkers.n_atoms * kt(1.0)
    # Velocities are half a step behind the positions: the mean of two steps' kinetic energies is that between them.

    def note(one):
        seen.append((one.energy, freedom * walkers.kinetic_temperatures()))

    walkers.run(300, pace=1, observers=[note])
    energy, kinetic = (np.array(values) for values in zip(*seen, strict=True))
    total = energy[:-1] + 0.5 * (kinetic[:-1] + kinetic[1:])
    assert walkers.evaluator.neighbours.builds > 2, "atoms move by more than the skin"
    assert np.ptp(energy, axis=0).min() > 0.1 * freedom * 300.0, "potential and kinetic energy are exchanged"
    drift = np.abs(total[-100:].mean(0) - total[:100].mean(0))
    assert drift.max() < 1e-3 * freedom * 300.0


def test_atoms_that_cross_the_boundary_are_not_wrapped(solid):
    """At another image of each atom the run is the same."""
    whole, positions, box, periodic = solid
    away = np.where(periodic, np.random.default_rng(0).integers(-2, 3, (1, positions.shape[1], 3)), 0) @ box
    ends = []
    for start in (positions, positions + away):
        walkers = walk((whole, start, box, periodic))
        walkers.run(40, pace=20)
        ends.append(walkers.look().positions)
    np.testing.assert_allclose(ends[1] - away, ends[0], atol=1e-8)


@pytest.mark.parametrize("solid", ["triclinic"], indirect=True)
def test_a_list_that_overflows_goes_on_from_the_same_step(solid, caplog, monkeypatch):
    """With tables that have no room to spare, and few slots in them, the run is the same."""
    monkeypatch.setattr("uqbias.molecule.neighbours.LANES", 1)
    ends = []
    for spare in (1.0, 3.0):
        monkeypatch.setattr("uqbias.molecule.neighbours.SPARE", spare)
        walkers = walk(solid, temperature=900.0)
        caplog.clear()
        walkers.run(100, pace=20)
        grown = [record for record in caplog.records if "compiled once more" in record.message]
        assert bool(grown) == (spare == 1.0)
        assert walkers.step == walkers.context.getStepCount() == 100
        ends.append(walkers.look().positions)
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-6)


@pytest.fixture
def often(monkeypatch):
    for module in ("barostat", "walker_cells"):
        monkeypatch.setattr(f"uqbias.md.{module}.EVERY", 3)


def volumes_of(walkers, steps=600):
    seen = []
    walkers.run(steps, pace=30, observers=[lambda one: seen.append(np.linalg.det(one.boxes))])
    return np.array(seen[5:])


def test_the_volume_at_constant_pressure(often):
    """Springs that follow the cell leave P(V) ∝ exp(-(K (V - V0)²/2 + pV)/kT): mean V0 - p/K, variance kT/K."""
    pressure = 3000.0
    expected, spread = 1.0 - pressure * BAR / BULK, np.sqrt(KT / BULK)
    box = np.cbrt(expected) * BOX
    walkers = make(200, box=box, start=(PLACES @ box)[None], pressure=pressure)
    volumes = volumes_of(walkers)
    assert abs(volumes.mean() - expected) < 0.12 * spread
    assert abs(volumes.std() / spread - 1) < 0.08
    assert abs(walkers.kinetic_temperatures().mean() - 300.0) < 40.0
    assert expected < 1.0 - 2 * spread


def test_the_stress_of_a_bias_acts_on_the_cell(often):
    """A bias V = -τu on u = the volume is a pressure of -τ."""
    tau, spread = 120.0, np.sqrt(KT / BULK)
    box = np.cbrt(1.0 + tau / BULK) * BOX
    walkers = make(200, Linear(tau=tau), box=box, start=(PLACES @ box)[None], pressure=0.0)
    assert abs(volumes_of(walkers).mean() - (1.0 + tau / BULK)) < 0.12 * spread
    assert tau / BULK > spread


def test_hills_are_of_states_that_were_accepted():
    hills = MetaD(variables=["driver"], pace=50, sigma=0.02, height=0.5)
    walkers, seen = make(3, hills, pressure=1.0), []
    walkers.run(500, pace=25, observers=[seen.append])
    centres = np.concatenate([one.driver for one in seen[2::2]])
    np.testing.assert_allclose(hills.hills["centre"].ravel(), centres, rtol=1e-6)
    for one in seen:
        np.testing.assert_allclose(one.driver, np.linalg.det(one.boxes), rtol=1e-12)
    assert not walkers.evaluator.broken.any()


@pytest.mark.parametrize(("solid", "pressure"), [("slab", None), ("narrow", 2000.0)], indirect=["solid"])
def test_interrupted_run_is_the_uninterrupted_run(solid, tmp_path, pressure):
    def biased(seed=7):
        hills = MetaD(variables=["driver"], pace=10, sigma=0.3)
        return walk(solid, hills, pressure=pressure, barostat="anisotropic", seed=seed)

    whole, seen = biased(), []
    whole.run(60, pace=10, observers=[seen.append])
    whole.save(tmp_path / "snapshot.npz")
    whole.run(60, pace=10, observers=[seen.append])
    again, rest = biased(seed=99), []
    again.load(tmp_path / "snapshot.npz")
    again.run(60, pace=10, observers=[rest.append])
    assert len(rest) == 6
    for one, other in zip(seen[7:], rest, strict=True):
        for name in ("positions", "boxes", "energy", "driver", "bias"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert (pressure is None) == (np.ptp([one.boxes for one in seen], axis=0).max() == 0)
    if pressure is not None:
        with pytest.raises(UqbiasError, match=r"written with pressure 2000\.0, this run has 1\.0"):
            walk(solid, MetaD(variables=["driver"], pace=10, sigma=0.3), pressure=1.0).load(tmp_path / "snapshot.npz")


def test_stopped_walkers_begin_again_in_the_cell_of_their_frame():
    frames = np.stack([PLACES @ BOX, PLACES @ (1.1 * BOX)])
    boxes = np.stack([BOX, 1.05 * BOX])
    labelled = Frames(np.array(NEON.numbers), PLACES @ boxes, cells=boxes)
    guard = Guard(NEON, PLACES @ BOX, driver_cap=1.2, labelled=labelled)
    walkers = make(2, guard=guard, safe_frames=frames, safe_boxes=boxes, choose_restart=lambda *_: 1)
    walkers.place(0, PLACES @ (1.2 * BOX), box=1.2 * BOX)
    seen = []
    walkers.run(50, pace=25, observers=[seen.append])
    assert [event.walker for event in walkers.events] == [0]
    np.testing.assert_allclose(seen[0].boxes, [1.2 * BOX, BOX])
    np.testing.assert_allclose(seen[1].boxes, [1.05 * BOX, BOX])
    np.testing.assert_allclose(walkers.evaluator.box, [1.05 * BOX, BOX])


def test_files_carry_the_boxes(tmp_path):
    walkers, seen = make(2, pressure=1.0), []
    trajectories = Trajectories(tmp_path, NEON, 2)
    walkers.run(200, pace=50, observers=[seen.append, trajectories])
    trajectories.close()
    arrays = stacked(seen)
    np.testing.assert_array_equal(arrays["boxes"], [one.boxes for one in seen])
    loaded = mdtraj.load(tmp_path / "walker_1.xtc", top=tmp_path / "topology.pdb")
    np.testing.assert_allclose(loaded.unitcell_volumes, np.linalg.det(arrays["boxes"][:, 1]), rtol=1e-3)
    # What stands in the file is the same crystal, turned: atoms at the same places in the cell.
    places = loaded.xyz @ np.linalg.inv(loaded.unitcell_vectors) - PLACES
    assert np.abs(places - np.round(places)).max() < 0.05
    assert "CRYST1" in (tmp_path / "topology.pdb").read_text()


def test_what_is_refused():
    vacuum = FusedEvaluator(Peroxide(), None, 1, runner="eager", dtype=torch.float64)
    start = {"positions": peroxide()[None], "temperature": 300.0, "backend": "pythonforce"}
    with pytest.raises(UqbiasError, match="a box for walkers whose evaluator has none"):
        Walkers(PEROXIDE, vacuum, box=np.eye(3), **start)
    with pytest.raises(UqbiasError, match="a pressure of 1 bar on a molecule in vacuum"):
        Walkers(PEROXIDE, vacuum, pressure=1.0, **start)
    with pytest.raises(UqbiasError, match="a pressure of 1 bar without a thermostat"):
        make(1, pressure=1.0, friction_per_ps=None)
    crystal, place = make(1).evaluator, (PLACES @ BOX)[None]
    for boxes, what in ((np.zeros((2, 3, 3)), "box of shape"), (np.diag([1, 1, 1e-5]), "degenerate")):
        with pytest.raises(UqbiasError, match=what):
            Walkers(NEON, crystal, place, temperature=300.0, box=boxes)
    with pytest.raises(UqbiasError, match="is of walkers in vacuum, these are in cells"):
        make(1).cells.check("snapshot.npz", {})
