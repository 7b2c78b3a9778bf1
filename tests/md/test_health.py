"""A run that is not meaningful sampling ends with a line; one in good health does not."""

import json

import numpy as np
import pytest
import torch
from command_line import call, refused
from peroxide_oracle import make_system
from toy_walkers import Peroxide, make

from uqbias.compile.fused import FusedEvaluator
from uqbias.errors import UqbiasError
from uqbias.md import health as room
from uqbias.md.health import HOT, LOOKS, Health
from uqbias.molecule.frames import Frames, write_frames
from uqbias.testing.peroxide import peroxide_geometries, peroxide_model

STOPPED = "walkers were stopped at"


def test_walkers_that_are_stopped_most_of_the_time():
    for stopped, fault in ((1, None), (2, None), (3, STOPPED)):
        health = Health(4, 300.0, 1.0)
        for look in range(LOOKS // 4):
            assert health.fault is None  # too few looks
            health.note(0.1 * look, np.arange(4) < stopped)
        assert (health.fault is None) == (fault is None)
    assert health.fault[0].startswith(f"{STOPPED} 75% of {LOOKS} observations")


@pytest.mark.parametrize(("temperature", "healthy"), [(HOT * 300 - 1, True), (HOT * 300 + 1, False)])
def test_a_hot_run(temperature, healthy):
    health = Health(2, 300.0, 2.0)
    never = np.zeros(2, dtype=bool)
    for look in range(100):
        # Where a walker begins anew its heat counts only when the thermostat has had time.
        began = look in (30, 31)
        kinetic = np.full(2, 1e5 if look < 10 or 30 <= look < 40 else temperature)
        health.note(0.151 * look, ~never if began else never, kinetic)
    assert (health.fault is None) == healthy
    if not healthy:
        assert "601 K under a thermostat of 300 K" in health.fault[0]


@pytest.mark.parametrize(("step", "healthy"), [(0.2, True), (2.0, False)])
def test_energy_without_a_thermostat(step, healthy):
    """The bonds with hydrogen have a period of 9 fs; a step of 2 fs is stable and conserves nothing to kT."""
    walkers = make(n_walkers=2, friction_per_ps=None, timestep_fs=step, guard=None)
    walkers.run(400, pace=20)
    assert (walkers.health.fault is None) == healthy, walkers.health._drift


def test_a_thermostat_keeps_a_run_healthy():
    walkers = make(n_walkers=4, friction_per_ps=20.0, timestep_fs=0.5)
    walkers.run(2000, pace=20)
    assert walkers.health._settled > 300
    assert walkers.health._heat / walkers.health._settled == pytest.approx(300.0, rel=0.1)
    assert walkers.health.fault is None


@pytest.mark.parametrize("friction", [20.0, None])
def test_a_resumed_run_is_judged_as_a_whole(tmp_path, friction):
    def begin():
        return make(n_walkers=2, friction_per_ps=friction, timestep_fs=0.5, guard=None, platform="Reference")

    whole = begin()  # one after the other: the Reference platform has one series of random numbers for all
    whole.run(600, pace=20)
    killed = begin()
    killed.run(400, pace=20)
    killed.save(tmp_path / "snapshot.npz")
    resumed = begin()
    resumed.load(tmp_path / "snapshot.npz")
    resumed.run(200, pace=20)
    assert resumed.health.state() == whole.health.state()
    assert whole.health.state()["settled" if friction else "drift"] > 0


def test_a_walker_that_begins_anew_does_so_behind_a_snapshot_too():
    health, other = Health(2, 300.0, None), Health(2, 300.0, None)
    health.note(0.0, np.array([False, True]), conserved=np.array([1.0, 2.0]))
    other.restore(json.loads(json.dumps(health.state())))
    for each in (health, other):
        each.note(0.1, np.zeros(2, dtype=bool), conserved=np.array([1.1, 9.0]))
    assert health.state() == other.state()
    assert other.state()["drift"] == pytest.approx(0.1)


@pytest.mark.parametrize("wrong", ["nan", "off", "nothing"])
def test_compiled_code_is_compared_on_visited_frames(wrong):
    evaluator = FusedEvaluator(Peroxide(), None, 2, runner="torchscript", dtype=torch.float64)
    right, calls = evaluator._run, []

    def lying(inputs):
        values = list(right(inputs))
        calls.append(1)
        if len(calls) > 9 and wrong != "nothing":
            values[0 if wrong == "nan" else 4] = values[0 if wrong == "nan" else 4] * (
                np.nan if wrong == "nan" else 1.1
            )
        return values

    evaluator._run = lying
    x = torch.tensor(peroxide_geometries(2)[:, [2, 0, 1, 3]])
    evaluator.evaluate(x)
    evaluator.verify(0)
    calls += [1] * 9
    evaluator.evaluate(x)
    if wrong == "nothing":
        evaluator.verify(7)
        return
    with pytest.raises(UqbiasError, match="at step 7 the torchscript code of this model does not give what its graph"):
        evaluator.verify(7)


class Shifted(Peroxide):
    """A total energy, as potentials with a reference have it."""

    def __init__(self):
        super().__init__()
        self.potential = torch.nn.Module()
        self.potential.register_buffer("energy_shift", torch.tensor(-1e6, dtype=torch.float64))

    def forward(self, x):
        energy, driver, judge = super().forward(x)
        return energy.double() + self.potential.energy_shift, driver, judge


def test_a_wrong_energy_is_seen_behind_a_large_offset():
    evaluator = FusedEvaluator(Shifted(), None, 2, runner="torchscript", dtype=torch.float32)
    right = evaluator._run
    evaluator.evaluate(torch.tensor(peroxide_geometries(2)[:, [2, 0, 1, 3]]))
    evaluator.verify(0)

    def lying(inputs):
        energy, *others = right(inputs)
        return [energy + 5e3, *others]  # half a percent of the total energy

    evaluator._run = lying
    with pytest.raises(UqbiasError, match="does not give what its graph gives: output 0"):
        evaluator.verify(1)


@pytest.fixture
def folder(tmp_path):
    model = peroxide_model().float()
    model.save(tmp_path / "m.uqb")
    x = peroxide_geometries(4)
    write_frames(tmp_path / "d.xyz", Frames(np.array(model.numbers), x))
    return tmp_path


def options(folder, *more):
    common = ("--start", folder / "d.xyz", "--bias", "none", "--pace", 10, "--timestep", 0.1, "--runner", "eager")
    return ("md", folder / "m.uqb", *common, "-q", "-o", folder / "md", *more)


def test_a_run_whose_walkers_are_stopped_ends_with_a_line(folder):
    """The files are there; asked for again, the finished run still says so."""
    often = options(folder, "--steps", 150, "--walkers", 4, "--cap", 0.01, "--set", "guards.bond_high=1.9")
    lowest = call("evaluate", folder / "m.uqb", folder / "d.xyz", "--json")
    assert lowest.exit_code in (0, 2)
    done = call(*options(folder, "--steps", 150, "--walkers", 4))
    assert done.exit_code == 0, done.output
    with np.load(folder / "md" / "observations.npz") as seen:
        cap = float(np.quantile(seen["driver"], 0.05))
    often = tuple(folder / "often" if part == folder / "md" else part for part in often)
    often = tuple(cap if part == 0.01 else part for part in often)
    line = refused(*often)
    assert STOPPED in line
    assert (folder / "often" / "observations.npz").is_file()
    assert json.loads((folder / "often" / "run.json").read_text())["finished"]["fault"]
    assert refused(*often, "--resume") == line


def test_a_campaign_goes_on_and_says_it_at_its_end(tmp_path, monkeypatch):
    """Its labels are paid once, also where it is run again; the folder may be relative."""
    monkeypatch.setattr(room, "LOOKS", 1)
    monkeypatch.setattr(room, "MOSTLY", -1.0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PEROXIDE_CALLS", str(tmp_path / "calls"))
    campaign = make_system(tmp_path, "local")
    first = call("run", campaign, "-o", "run", "-q")
    assert first.exit_code == 2, first.output
    line = first.stderr.splitlines()[-1]
    assert f"round 1: {STOPPED} 0% of 22 observations" in line
    assert "(2 such rounds)" in line
    monkeypatch.setattr(room, "MOSTLY", 0.5)
    again = call("run", campaign, "-o", "run", "-q")
    assert again.exit_code == 2, again.output
    assert again.stderr.splitlines()[-1] == line
    assert len((tmp_path / "calls").read_text().split()) == 24 + 2 * 5
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["stopped"] == "all 2 rounds are done"
    assert [fault[:7] for fault in summary["unhealthy"]] == ["round 1", "round 2"]
    assert (tmp_path / "run" / "report.html").is_file()
    described = json.loads((tmp_path / "run" / "round_02" / "md" / "run.json").read_text())
    assert described["model"]["path"] == str(tmp_path / "run" / "round_01" / "model.uqb")


def test_a_model_that_gives_nan(folder):
    model = peroxide_model().float()
    with torch.no_grad():
        next(model.potential.parameters()).fill_(np.nan)
    model.save(folder / "m.uqb")
    for command in (options(folder), ("export", folder / "m.uqb", "-o", folder / "u.pt")):
        assert "weights that are not finite numbers" in refused(*command)
    assert not (folder / "md").exists()
    model = peroxide_model().float()
    model.driver.references.fill_(np.nan)
    model.save(folder / "m.uqb")
    assert "driver nan" in refused(*options(folder))
    assert not (folder / "md").exists()
