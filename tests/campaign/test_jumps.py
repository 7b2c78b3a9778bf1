"""Jumps: labelled frames turned about soft bonds, sifted, and walkers placed on them."""

import dataclasses
import json

import numpy as np
import pytest
from molecules import peroxide_geometries, peroxide_model

from uqbias.campaign.exploring import _jumped
from uqbias.campaign.samplers import jumps
from uqbias.campaign.samplers.base import Exploration
from uqbias.campaign.samplers.md import BiasedDynamics, begin
from uqbias.errors import UqbiasError
from uqbias.free_energy.estimate import free_energy
from uqbias.md.loop import Placements
from uqbias.molecule.measures import dihedral_angles, distances
from uqbias.molecule.topology import Topology
from uqbias.settings.file import check_campaign

#: Four walkers, two of which jump every 20 steps.
MD = {
    "walkers": 4,
    "timestep_fs": 0.02,  # the model is untrained
    "steps": 60,
    "pace": 10,
    "observe_every": 10,
    "trajectory_every": 60,
    "runner": "eager",
    "backend": "pythonforce",
    "jumps": {"share": 0.5, "every": 15, "relax": 1},
}


@pytest.fixture
def job(alanine_model, alanine_frames, tmp_path):
    alanine_model.save(tmp_path / "m.uqb")
    settings = check_campaign({"system": {"structure": "-", "start": "-"}, "md": MD})
    frames = alanine_frames.positions[:6]
    return Exploration(
        model=tmp_path / "m.uqb",
        folder=tmp_path / "md",
        biases=(),
        md=settings.md,
        guards=settings.guards.model_copy(update={"driver_cap": None}),
        safe_frames=frames,
        safe_weights=np.full(6, 1 / 6),
        reference=frames[0],
        seed=3,
    )


def run(job, folder, interrupt_at=None, **changes):
    """Observations of an exploration; with ``interrupt_at`` it is interrupted at that step."""

    def advance(*_):
        nonlocal calls
        calls += 1
        if interrupt_at is not None and calls * job.md.pace >= interrupt_at:
            raise KeyboardInterrupt

    calls = 0
    facts = BiasedDynamics().explore(dataclasses.replace(job, folder=folder, **changes), advance)
    with np.load(folder / "observations.npz") as arrays:
        return facts, dict(arrays)


def test_a_turn_keeps_all_but_its_dihedral(alanine_model, alanine_frames):
    topology, x = alanine_model.topology, alanine_frames.positions[0]
    moves, random = jumps.moves_of(topology, alanine_frames.positions), np.random.default_rng(0)
    # φ and ψ turn; the two amides do not.
    assert len(moves) == 2
    fours = topology.proper_dihedrals(heavy_only=True)
    bonds, ends = np.array(topology.bonds), np.array(topology.angles())[:, [0, 2]]
    for move in moves:
        y = move(x, random)
        for pairs in (bonds, ends):
            np.testing.assert_allclose(distances(y[None], pairs), distances(x[None], pairs), rtol=1e-9)
        change = dihedral_angles(y, fours) - dihedral_angles(x, fours)
        turned = {four[1:3] for four, angle in zip(fours, np.cos(change), strict=True) if angle < 1 - 1e-9}
        assert len(turned) == 1
        assert np.cos(change).min() <= 0.5 + 1e-9


def test_no_move_in_rings_nor_of_other_fragments():
    silicon = [14] * 8
    ring = Topology((*silicon[:4],), tuple((i, (i + 1) % 4) for i in range(4)))
    assert jumps.moves_of(ring, np.random.default_rng(0).normal(size=(1, 4, 3))) == []
    # A chain of four, a bond that turns in it, and another chain beside.
    two = Topology((*silicon,), ((0, 1), (1, 2), (2, 3), (4, 5), (5, 6), (6, 7)))
    x = np.random.default_rng(1).normal(size=(8, 3))
    first, second = jumps.moves_of(two, x[None])
    random = np.random.default_rng(2)
    assert (first(x, random)[4:] == x[4:]).all()
    assert (second(x, random)[:4] == x[:4]).all()


def test_frames_are_counted_spread_and_sound(job, alanine_model):
    _, settings, facts = begin(job, alanine_model)
    frames = settings["safe_frames"]
    assert facts["proposed"] == jumps.TRIED * 2 * 3
    assert 0 < facts["passed"] <= facts["relaxed"] <= jumps.RELAXED * 2 * 3
    assert facts["passed"] + sum(facts["refused"].values()) <= facts["proposed"]
    assert settings["placements"] == Placements((2, 3), 20, 6, len(frames) - 6)
    assert 0 < len(frames) - 6 <= 2 * 3
    assert settings["guard"].check(frames) == []
    assert (settings["constraint_geometry"] == job.safe_frames).all()
    fours = alanine_model.topology.proper_dihedrals(heavy_only=True)
    angles = dihedral_angles(frames, fours)
    apart = np.abs(np.exp(1j * angles[:, None]) - np.exp(1j * angles[None])).max(axis=-1)
    # Each is another conformer than every labelled frame and every other.
    assert (apart[6:] + 9 * np.eye(len(frames))[6:]).min() > 0.1
    again = begin(job, alanine_model)[1]["safe_frames"]
    assert (again == frames).all()
    random = np.random.default_rng(0)
    assert all(settings["choose_restart"](0, frames, random) < 6 for _ in range(40))
    assert all(settings["choose_restart"](3, frames, random) >= 6 for _ in range(40))


def test_walkers_are_placed_and_marked(job, alanine_model, tmp_path):
    facts, seen = run(job, tmp_path / "a")
    frames = begin(job, alanine_model)[1]["safe_frames"]
    count = len(frames) - 6
    assert facts["jumps"]["walkers"] == (2, 3)
    assert facts["stopped"] == 0
    jumped = np.isin(seen["step"], (20, 40, 60))
    assert (seen["restarted"] == np.outer(jumped, [0, 0, 1, 1])).all()
    np.testing.assert_allclose(seen["positions"][0, 2:], frames[6:8], atol=1e-6)
    # Soon after a jump a walker is still near the frame that it was placed on.
    for step, place in ((20, 2), (40, 4)):
        here = seen["positions"][seen["step"] == step + 10][0, 2:]
        there = frames[[6 + place % count, 6 + (place + 1) % count]]
        assert np.abs(here - there).max() < 0.05
        before = seen["positions"][seen["step"] == step][0, 2:]
        assert np.abs(before - there).max() > 0.1
    with pytest.raises(UqbiasError, match="2 of its walkers were placed on turned frames"):
        free_energy([tmp_path / "a"], ["driver"])


def test_interrupted_as_uninterrupted(job, tmp_path):
    job = dataclasses.replace(job, snapshot_every=20, biases=(("metadynamics", {"height": 1.0, "pace": 10}),))
    _, whole = run(job, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(job, tmp_path / "broken", interrupt_at=50)
    _, resumed = run(job, tmp_path / "broken", resume=True)
    for name, values in whole.items():
        assert resumed[name].tobytes() == values.tobytes()
    for name in ("HILLS", "COLVAR.2", "events.jsonl"):
        assert (tmp_path / "whole" / name).read_text() == (tmp_path / "broken" / name).read_text()


@pytest.mark.parametrize("limit", ["JUDGED", "WIDTHS"])
def test_a_wild_model_gets_no_jumps(job, tmp_path, monkeypatch, limit):
    monkeypatch.setattr(jumps, limit, -1e6)
    facts, seen = run(job, tmp_path / "a")
    found = facts["jumps"]
    assert (found["passed"], sum(found["refused"].values())) == (0, found["proposed"])
    assert {"JUDGED": "judge", "WIDTHS": "energy"}[limit] in found["refused"]
    none = job.md.model_copy(update={"jumps": job.md.jumps.model_copy(update={"share": 0.0})})
    without, same = run(job, tmp_path / "b", md=none)
    assert "jumps" not in without
    for name, values in same.items():
        assert seen[name].tobytes() == values.tobytes()


def test_a_molecule_without_soft_bonds_is_told_once():
    class Silent:
        def __init__(self):
            self.lines = []

        def message(self, text):
            self.lines.append(text)

    work = type("Work", (), {"progress": Silent()})()
    for index in (1, 2):
        assert _jumped(work, index, [{"none": "no soft bond, flipping ring or mobile proton"}] * 2) == {
            "none": "no soft bond, flipping ring or mobile proton"
        }
    assert work.progress.lines == ["no jumps: no soft bond, flipping ring or mobile proton"]
    group = {"proposed": 48, "relaxed": 5, "passed": 3, "refused": {"clash": 40, "energy": 5}}
    total = _jumped(work, 3, [group, {**group, "refused": {"energy": 45}}])
    assert total == {"proposed": 96, "relaxed": 10, "passed": 6, "refused": {"energy": 50, "clash": 40}}
    assert work.progress.lines[1:] == ["round 3: 96 jumps tried, 10 relaxed, 6 passed (refused: energy 50, clash 40)"]


def test_peroxide_does_not_jump(job, tmp_path):
    peroxide_model().save(tmp_path / "peroxide.uqb")
    frames = peroxide_geometries(6)
    changes = {"model": tmp_path / "peroxide.uqb", "safe_frames": frames, "reference": frames[0]}
    facts, seen = run(job, tmp_path / "a", **changes)
    assert facts["jumps"] == {"none": "no soft bond, flipping ring or mobile proton"}
    assert not seen["restarted"].any()


def test_frames_just_after_a_jump_are_no_candidates(tmp_path):
    path = tmp_path / "run.json"
    step, walker = np.meshgrid(np.arange(100, 1001, 100), np.arange(2), indexing="ij")
    assert jumps.settled(path, 0.5, step, walker).all()
    path.write_text(json.dumps({"jumps": {"walkers": [1], "every": 500}}))
    kept = jumps.settled(path, 0.5, step, walker)
    assert kept[:, 0].all()
    assert step[:, 1][~kept[:, 1]].tolist() == [100, 600]
    # Walkers that jump at every observation have no other frames.
    path.write_text(json.dumps({"jumps": {"walkers": [1], "every": 170}}))
    assert jumps.settled(path, 0.5, step, walker).all()
    path.write_text(json.dumps({"jumps": {"walkers": [1], "every": 0}}))
    with pytest.raises(UqbiasError, match=r"run\.json"):
        jumps.settled(path, 0.5, step, walker)


def test_share_by_default_and_under_plumed(tmp_path):
    system = {"structure": "-", "start": "-"}
    md = check_campaign({"system": system}).md
    assert (md.jumps.of(8), md.in_campaign().jumps.of(8), md.in_campaign().jumps.of(1)) == (0, 4, 0)
    plumed = {"engine": "plumed", "plumed": "plumed.dat"}
    assert check_campaign({"system": system, "md": plumed}).md.in_campaign().jumps.of(8) == 0
    with pytest.raises(UqbiasError, match=r"engine = plumed with jumps.share = 0.5"):
        check_campaign({"system": system, "md": {**plumed, "jumps": {"share": 0.5}}})
