"""Whole campaigns whose candidates come from attacks, random distortions or a pool."""

import json
import shutil

import numpy as np
import pytest
import yaml
from molecules import PEROXIDE, peroxide
from peroxide_oracle import Peroxide, make_system

from uqbias.campaign.rounds import run_campaign
from uqbias.errors import UqbiasError
from uqbias.molecule.frames import Frames, read_frames, write_frames
from uqbias.molecule.sameness import rmsd
from uqbias.report.page import render
from uqbias.report.run_data import RunData
from uqbias.report.summary import campaign_story
from uqbias.settings.file import load_campaign
from uqbias.units import ANGSTROM

VARIABLES = {"torsion": {"kind": "dihedral", "atoms": [0, 1, 2, 3]}}
ATTACK = {"count": 12, "iterations": 5, "runner": "eager", "batch": 12}


def make_campaign(folder, **changes):
    path = make_system(folder, "local")
    content = yaml.safe_load(path.read_text())
    for section, values in changes.items():
        content[section] = content.get(section, {}) | values if isinstance(values, dict) else values
    path.write_text(yaml.safe_dump(content))
    return path


def run(path, directory):
    run_campaign(load_campaign(path), directory)
    return json.loads((directory / "summary.json").read_text())


def ledger(directory, kind):
    events = map(json.loads, (directory / "ledger.jsonl").read_text().splitlines())
    return [event for event in events if event["event"] == kind]


CASES = {
    "attack, cartesian": {"sampler": "attack", "attack": ATTACK},
    "attack, torsions": {"sampler": "attack", "attack": ATTACK | {"space": {"kind": "internal"}}},
    "attack, variables": {
        "sampler": "attack",
        "variables": VARIABLES,
        "attack": ATTACK | {"space": {"kind": "variables", "names": ["torsion"]}, "of": "driver", "bound": 1.0},
    },
    "random": {"sampler": "random", "random": {"count": 12, "amplitude": 0.005}},
}


@pytest.mark.parametrize("case", CASES)
def test_distorted_frames_are_labelled(case, tmp_path):
    rounds = 2 if case == "random" else 1
    selection = {"duplicates": "rmsd", "minimum_rmsd": 1e-4, "kind": "cluster"}
    path = make_campaign(tmp_path, harvest={"selection": selection}, stop={"rounds": rounds}, **CASES[case])
    summary = run(path, tmp_path / "run")
    assert [entry["labels"] for entry in summary["rounds"]] == [24, 29, 34][: rounds + 1]
    assert [entry["proposed"] for entry in summary["rounds"]] == [0, 12, 24][: rounds + 1]
    assert all(entry["md_steps"] == 0 for entry in summary["rounds"])
    labels = ledger(tmp_path / "run", "label")
    places = {f"{event['round']}/{event['index']}": np.array(event["positions"]) for event in labels}
    for event in labels:
        if event["round"]:
            info = event["info"]
            apart = rmsd(np.array(event["positions"])[None], places[info["source"]])[0]
            assert 0 < apart < 0.1
            assert info["status"] in ("iterations", "converged", "bound", "random")
            assert (info["log_likelihood"] is None) == (info["status"] == "random")
    if case == "attack, torsions":
        # A turn leaves bonds and angles as they were.
        event = labels[-1]
        x, y = np.array(event["positions"]), places[event["info"]["source"]]
        for i, j in ((0, 1), (1, 2), (0, 2), (2, 3), (1, 3)):
            assert np.linalg.norm(x[i] - x[j]) == pytest.approx(np.linalg.norm(y[i] - y[j]), abs=1e-5)
    data = RunData.load(tmp_path / "run")
    text, page = " ".join(campaign_story(data)), render(data).partition('id="configuration"')[0]
    assert "walkers" not in text + page
    assert ("adversarial attacks" in text) == (data.config["sampler"] == "attack")
    assert ('id="attacks"' in page) == (data.config["sampler"] == "attack")
    assert 'id="bias"' not in page
    assert 'id="walkers"' not in page


def test_attacks_raise_uncertainty_and_leave_their_ways_behind(tmp_path):
    path = make_campaign(tmp_path, **CASES["attack, cartesian"], stop={"rounds": 1})
    run(path, tmp_path / "run")
    folder = tmp_path / "run" / "round_01" / "md"
    with np.load(folder / "attacks.npz") as ways:
        assert ways["positions"].shape == (6, 12, 4, 3)
        assert (ways["log_likelihood"][-1] > ways["log_likelihood"][0]).mean() > 0.8
    with np.load(folder / "observations.npz") as seen:
        assert seen["positions"].shape == (1, 12, 4, 3)
        assert seen["source"].shape == (1, 12)
    candidates = read_frames(folder / "candidates.xyz", labelled=False)
    assert len(candidates) == 12
    assert not candidates.labelled
    facts = json.loads((folder / "run.json").read_text())
    assert (facts["proposed"], facts["failed"]) == (12, 0)


def test_campaign_goes_on_in_the_middle_as_without_interruption(tmp_path):
    path = make_campaign(tmp_path, **CASES["attack, cartesian"])
    run(path, tmp_path / "whole")
    # As if killed while the attacks of round 2 were being written.
    run(make_campaign(tmp_path, **CASES["attack, cartesian"], stop={"rounds": 1}), tmp_path / "cut")
    shutil.copytree(tmp_path / "whole" / "round_02" / "md", tmp_path / "cut" / "round_02" / "md.partial")
    (tmp_path / "cut" / "round_02" / "md.partial" / "observations.npz").unlink()
    path = make_campaign(tmp_path, **CASES["attack, cartesian"])
    run(path, tmp_path / "cut")
    assert (tmp_path / "cut" / "dataset.xyz").read_bytes() == (tmp_path / "whole" / "dataset.xyz").read_bytes()


@pytest.mark.parametrize("keep_every", [0, 1])
def test_failed_attacks_are_counted_and_no_candidates(tmp_path, monkeypatch, keep_every):
    from uqbias.attacks import ascent

    whole = ascent.attack

    def failing(*arguments, **options):
        result = whole(*arguments, **options)
        result.status[3] = "failed: the molecule flew apart"
        result.status[5] = "failed: the energy is not finite"
        return result

    monkeypatch.setattr(ascent, "attack", failing)
    case = CASES["attack, cartesian"]
    case = case | {"attack": case["attack"] | {"keep_every": keep_every}}
    path = make_campaign(tmp_path, **case, stop={"rounds": 1})
    summary = run(path, tmp_path / "run")
    assert (summary["rounds"][1]["proposed"], summary["rounds"][1]["failed"]) == (12, 2)
    harvest = json.loads((tmp_path / "run" / "round_01" / "harvest.json").read_text())
    assert len(harvest["candidates"]) == 10
    assert {3, 5}.isdisjoint(entry["attack"] for entry in harvest["candidates"])
    events = (tmp_path / "run" / "round_01" / "md" / "events.jsonl").read_text().splitlines()
    assert [json.loads(event)["reason"] for event in events] == [
        "failed: the molecule flew apart",
        "failed: the energy is not finite",
    ]
    page = render(RunData.load(tmp_path / "run"))
    assert "could not be read" not in page
    assert "2 of 12 attacks failed" in page


def test_all_attacks_failing_ends_the_campaign_with_a_reason(tmp_path, monkeypatch):
    from uqbias.attacks import ascent

    whole = ascent.attack

    def failing(*arguments, **options):
        result = whole(*arguments, **options)
        result.status[:] = ["failed: the molecule flew apart"] * len(result.status)
        return result

    monkeypatch.setattr(ascent, "attack", failing)
    summary = run(make_campaign(tmp_path, **CASES["attack, cartesian"]), tmp_path / "run")
    assert summary["stopped"] == "all 12 attacks of round 1 failed: see round_01/md/events.jsonl"


def pool_of(folder, count, seed=5):
    """Labelled frames of the peroxide, some of them the start frames."""
    from ase import Atoms

    from uqbias.units import EV, EV_PER_ANGSTROM

    random = np.random.default_rng(seed)
    start = read_frames(folder / "start.xyz", labelled=False).positions
    more = [peroxide(torsion) + random.normal(0, 0.003, (4, 3)) for torsion in random.uniform(0, 6, count - len(start))]
    positions = np.concatenate([start, more])
    energies, forces = [], []
    for x in positions:
        atoms = Atoms(PEROXIDE.numbers, positions=x / ANGSTROM)
        atoms.calc = Peroxide()
        energies.append(atoms.get_potential_energy() * EV)
        forces.append(atoms.get_forces() * EV_PER_ANGSTROM)
    frames = Frames(np.array(PEROXIDE.numbers), positions, np.array(energies), np.array(forces))
    write_frames(folder / "pool.xyz", frames)
    return frames


def test_pool_is_labelled_from_its_file_until_it_is_used_up(tmp_path):
    path = make_campaign(
        tmp_path,
        sampler="pool",
        pool={"file": "pool.xyz"},
        oracle={"kind": "pool", "file": "labels.xyz"},
        stop={"rounds": 9},
        training={"steps": 4},
    )
    content = yaml.safe_load(path.read_text())
    del content["oracle"]["calculator"]
    path.write_text(yaml.safe_dump(content))
    pool = pool_of(tmp_path, 32)
    write_frames(tmp_path / "labels.xyz", pool[:-1])  # the last frame cannot be labelled
    summary = run(path, tmp_path / "run")
    assert summary["stopped"] == "the pool is used up: the oracle was asked for every frame of pool.xyz"
    assert summary["rounds"][0]["labels"] == 24
    assert summary["rounds"][-1]["labels"] == 31
    assert summary["rounds"][-1]["failures"] == 1
    assert len(ledger(tmp_path / "run", "failure")) == 1
    found = read_frames(tmp_path / "run" / "dataset.xyz")
    order = np.argsort(found.positions[:, 0, 0])
    expected = np.argsort(pool.positions[:-1, 0, 0])
    np.testing.assert_allclose(found.energies[order], pool.energies[:-1][expected], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "pool"}, "sampler = pool without a pool"),
        ({"sampler": "pool", "pool": {"file": "nothing.xyz"}}, r"pool\.file = nothing\.xyz: no such file"),
        ({"sampler": "attack", "attack": {"iteration": 5}}, "did you mean 'iterations'"),
        ({"sampler": "attack", "attack": {"space": {"kind": "torsion"}}}, "attack.space.kind = 'torsion'"),
        ({"sampler": "attack", "attack": {"space": {"kind": "variables", "names": ["phi"]}}}, "variables: {phi: {"),
        (
            {
                "sampler": "attack",
                "variables": VARIABLES,
                "attack": {"space": {"kind": "variables", "names": ["torsoin"]}},
            },
            "did you mean 'torsion'",
        ),
        ({"sampler": "attack", "attack": {"space": {"kind": "cartesian", "atoms": [7]}}}, "attack: .*7"),
        ({"sampler": "random", "random": {"amplitude": [0.1, 0.2]}}, "random.amplitude: 2 numbers for 12 coordinates"),
        ({"sampler": "attack", "md": {"engine": "plumed", "plumed": "plumed.dat"}}, "sampler = attack with md.engine"),
        ({"oracle": {"kind": "pool", "file": "start.xyz"}}, "oracle.kind = pool with sampler = metadynamics"),
        (
            {"sampler": "pool", "pool": {"file": "start.xyz"}, "oracle": {"kind": "pool", "file": "start.xyz"}},
            "frame 0 has no energy",
        ),
        ({"sampler": "pool", "pool": {"file": "water.xyz"}}, r"has atoms \[8, 1, 1\]"),
        ({"driver": {"kind": "kernel_density", "features": {"kind": "torsions"}}}, "heavy_only: false"),
    ],
)
def test_a_fault_is_told_before_anything_is_paid(changes, message, tmp_path):
    path = make_system(tmp_path, "local")
    (tmp_path / "plumed.dat").write_text("")
    write_frames(tmp_path / "water.xyz", Frames(np.array([8, 1, 1]), np.zeros((1, 3, 3))))
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    with pytest.raises(UqbiasError, match=message):
        run_campaign(load_campaign(path), tmp_path / "run")
    assert not (tmp_path / "run" / "ledger.jsonl").exists()


def test_start_frames_of_any_driver_all_get_a_chance():
    """A density in nats weighs by itself; a driver in kJ/mol/nm would leave all attacks to one frame."""
    from types import SimpleNamespace

    from uqbias.campaign.exploring import _sparseness

    driver = np.array([3.0, 900.0, 40.0, 41.0])
    weights = _sparseness(SimpleNamespace(driver=SimpleNamespace(unit="kJ/mol/nm")), driver)
    np.testing.assert_allclose(weights, [0.25, 1.0, 0.5, 0.75])
    for wall, softer in ((14.0, 1.0), (42.0, 3.0)):
        weights = _sparseness(SimpleNamespace(driver=SimpleNamespace(unit="nats", wall=wall)), driver / 100)
        np.testing.assert_allclose(weights, np.exp((driver / 100 - 9.0) / softer))


def test_files_of_attacks_are_no_md_run(tmp_path):
    from uqbias.runs.reader import RunFolder

    (tmp_path / "run.json").write_text(json.dumps({"format": "uqbias-proposals", "version": 1}))
    with pytest.raises(UqbiasError, match="proposed geometries and no MD"):
        RunFolder(tmp_path)
