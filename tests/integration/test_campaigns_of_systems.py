"""Campaigns of several systems: one model, a ledger and labels of each, resumable between any two of its phases."""

import json
import shutil

import numpy as np
import pytest
import yaml

from tests.helpers.command_line import call, refused
from tests.helpers.molecules import emt_frames
from uqbias.campaign.rounds import run_campaign
from uqbias.campaign.verification import verify
from uqbias.errors import UqbiasError
from uqbias.model.model import UncertaintyModel
from uqbias.model.several import of_system, score_systems
from uqbias.molecule.frames import read_frames, write_frames
from uqbias.settings.file import load_campaign

FORMULAS = {"water": "H2O", "methanol": "CH3OH"}


def campaign(folder, **changes):
    for name, formula in FORMULAS.items():
        frames = emt_frames(formula, 24, seed=1)
        write_frames(folder / f"{name}.xyz", frames)
        write_frames(folder / f"{name}_test.xyz", emt_frames(formula, 8, seed=2))
    systems = [
        {"name": name, "structure": f"{name}.xyz", "start": f"{name}.xyz", "test_set": f"{name}_test.xyz"}
        for name in FORMULAS
    ]
    content = {
        "name": "two",
        "systems": systems,
        "oracle": {"kind": "ase", "calculator": "ase.calculators.emt.EMT"},
        "potential": {"n_radial": 4, "n_channels": 2, "l_max": 1, "hidden": [8, 6]},
        "training": {"steps": 60, "later_steps": 30, "evaluate_every": 30, "batch_size": 4, "runner": "eager"},
        "judge": {"kind": "gmm", "n_components": 1},
        "sampler": "random",
        "random": {"count": 12, "amplitude": 0.01},
        "harvest": {"labels_per_round": 5, "selection": {"space": "latents", "minimum_distance": 1e-6}},
        "executors": {"label": "local", "explore": "local"},
        "stop": {"rounds": 1},
        **changes,
    }
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def events(folder, kind):
    return [
        entry for entry in map(json.loads, (folder / "ledger.jsonl").read_text().splitlines()) if entry["event"] == kind
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    run_campaign(load_campaign(campaign(folder)), folder / "run")
    return folder


def test_a_model_of_all_and_labels_of_each(finished):
    run = finished / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["stopped"] == "all 1 rounds are done"
    labels = {name: [entry["labels"] for entry in rounds] for name, rounds in summary["systems"].items()}
    assert [count[0] for count in labels.values()] == [24, 24]
    # Of five labels of a round water may take three.
    assert all(0 <= step <= 3 for step in np.diff(labels["water"]))
    assert all(0 <= step <= 2 for step in np.diff(labels["methanol"]))
    assert sum(count[-1] for count in labels.values()) > 48
    models = {name: UncertaintyModel.load(run / name / "round_01" / "model.uqb") for name in FORMULAS}
    together = UncertaintyModel.load(run / "round_01" / "model.uqb")
    assert list(together.systems) == list(FORMULAS)
    assert together.driver is together.judge
    tests = {name: read_frames(finished / f"{name}_test.xyz") for name in FORMULAS}
    scores = score_systems(together, tests)["systems"]
    for name, model in models.items():
        assert not verify(run / name).faults
        data = read_frames(run / name / "dataset.xyz")
        assert data.numbers.tolist() == tests[name].numbers.tolist()
        entry = summary["systems"][name][-1]
        assert entry["force_mae_meV_per_A"] == pytest.approx(scores[name]["force_mae_meV_per_A"], rel=1e-6)
        # One potential and judge; the driver is of the molecule.
        for weight, other in zip(model.potential.parameters(), together.potential.parameters(), strict=True):
            assert weight.equal(other)
        assert model.driver.kind == "kernel_density"
        assert model.calibration.frames == together.calibration.frames
        assert of_system(model, tests[name]) is model
        assert len({event["key"] for event in events(run / name, "label")}) == len(data) == labels[name][-1]


@pytest.mark.slow
def test_it_goes_on_where_it_stopped(finished, tmp_path):
    """A training that no ledger knows of is done again, the same to the bit; one that a ledger knows of is not."""
    shutil.copytree(finished, tmp_path / "copy")
    run = tmp_path / "copy" / "run"
    for name in FORMULAS:
        cut(run / name, "train", 1)
    before = {name: (run / name / "round_01" / "model.uqb").read_bytes() for name in FORMULAS}
    (run / "methanol" / "round_01" / "model.uqb").unlink()
    run_campaign(load_campaign(tmp_path / "copy" / "campaign.yaml"), run)
    assert {name: (run / name / "round_01" / "model.uqb").read_bytes() for name in FORMULAS} == before
    # One ledger knows of the training already: nothing is trained, the other is told.
    cut(run / "methanol", "train", 1)
    stamp = (run / "water" / "round_01" / "model.uqb").stat().st_mtime_ns
    summary = run_campaign(load_campaign(tmp_path / "copy" / "campaign.yaml"), run)
    assert (run / "water" / "round_01" / "model.uqb").stat().st_mtime_ns == stamp
    first = json.loads((finished / "run" / "summary.json").read_text())
    for name in FORMULAS:
        here, there = ([{**entry, "wall_s": 0} for entry in each["systems"][name]] for each in (summary, first))
        assert here == there
    for name in FORMULAS:
        assert not verify(run / name).faults


def cut(folder, phase, round_index):
    """Let a ledger end before a phase, as after a kill."""
    lines = (folder / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    place = next(
        i for i, line in enumerate(lines) if (e := json.loads(line)).get("phase") == phase and e["round"] == round_index
    )
    (folder / "ledger.jsonl").write_bytes(b"".join(lines[:place]))
    (folder / "ledger.head").unlink()


@pytest.mark.slow
def test_commands(finished):
    run = finished / "run"
    done = call("report", run)
    assert done.exit_code == 0, done.output
    assert (run / "water" / "report.html").is_file()
    assert [line for line in done.stdout.splitlines() if line in FORMULAS] == list(FORMULAS)
    done = call("verify", run)
    assert done.stdout.count(" is in order") == 2
    done = call("validate", finished / "campaign.yaml")
    assert done.exit_code == 0, done.output
    assert "2 systems, one model; labels of a round, in all: 5" in done.stdout
    line = refused("run", run / "water" / "campaign.yaml", "-o", run / "water")
    assert "a campaign file of water alone, whose model is one of water, methanol; run the campaign of all" in line


@pytest.mark.slow
def test_walkers_of_each_system(tmp_path):
    """Metadynamics on the driver of each; labels in all are limited."""
    md = {"walkers": 2, "steps": 40, "pace": 10, "runner": "eager", "timestep_fs": 0.5}
    path = campaign(
        tmp_path,
        sampler="metadynamics",
        md=md,
        stop={"rounds": 1, "labels": 51},
        harvest={"labels_per_round": 4, "driver_window": [None, None], "selection": {"space": "latents"}},
        guards={"driver_cap": None},
    )
    summary = run_campaign(load_campaign(path), tmp_path / "run")
    for name in FORMULAS:
        with np.load(tmp_path / "run" / name / "round_01" / "md" / "observations.npz") as seen:
            assert seen["positions"].shape[2] == len(read_frames(tmp_path / f"{name}.xyz").numbers)
    assert sum(rounds[-1]["labels"] for rounds in summary["systems"].values()) <= 51
    assert summary["systems"]["water"][0]["labels"] == 24


def test_a_folder_of_systems_and_what_does_not_fit(tmp_path):
    path = campaign(tmp_path)
    content = yaml.safe_load(path.read_text())
    (tmp_path / "start").mkdir()
    for name in FORMULAS:
        shutil.copy(tmp_path / f"{name}.xyz", tmp_path / "start" / f"{name}.xyz")

    def told(**changes):
        path.write_text(yaml.safe_dump({**content, **changes}))
        with pytest.raises(UqbiasError) as error:
            run_campaign(load_campaign(path), tmp_path / "run")
        assert not (tmp_path / "run").exists()
        return str(error.value)

    path.write_text(yaml.safe_dump({**content, "systems": "start"}))
    members = load_campaign(path).members()
    assert {name: member.campaign.system.structure for name, member in members.items()} == {
        "methanol": "start/methanol.xyz",
        "water": "start/water.xyz",
    }
    assert "systems = nowhere: 0 file(s) *.xyz in this folder" in told(systems="nowhere")
    first, second = content["systems"]
    assert "two systems are called 'water'" in told(systems=[first, {**second, "name": "water"}])
    assert "`system`, which is of one molecule, beside `systems`" in told(system={"structure": "a", "start": "b"})
    assert "`variables`, which is of one molecule, beside `systems`" in told(variables={"d": {"kind": "distance"}})
    assert "systems.1 (methanol): oracle.calulator" in told(systems=[first, {**second, "oracle": {"calulator": "x"}}])
    assert "'kernel_density' is of one molecule" in told(
        judge={
            "kind": "kernel_density",
            "kernel": "gaussian",
            "features": {"kind": "pair_distances", "heavy_only": False, "min_separation": 1},
        }
    )
    assert "training.kind = none with several systems; leave it out: adam" in told(training={"kind": "none"})
    assert "executors.train = process with several systems" in told(executors={"train": "process"})
