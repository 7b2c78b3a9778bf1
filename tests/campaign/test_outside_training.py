"""Campaigns whose potential is used as it is, or trained by another program between rounds."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from label_desk import run_here
from molecules import PEROXIDE, peroxide
from peroxide_oracle import make_system

from uqbias.campaign import outside_training, retraining
from uqbias.campaign.progress import SilentProgress
from uqbias.campaign.verification import verify
from uqbias.errors import UqbiasError
from uqbias.model.inference import evaluate_frames
from uqbias.model.model import UncertaintyModel
from uqbias.model.splitting import Split
from uqbias.molecule.frames import Frames, read_frames, write_frames
from uqbias.registry import named_paths
from uqbias.report.page import write_report
from uqbias.report.run_data import RunData
from uqbias.settings.training_sections import Training


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model file that a campaign of other frames has left."""
    folder = tmp_path_factory.mktemp("trained")
    campaign = make_system(folder, "local")
    campaign.write_text(campaign.read_text().replace("rounds: 2", "rounds: 0"))
    assert run_here(campaign, folder / "run")
    return folder / "run" / "round_00" / "model.uqb"


def system(folder, rounds=1, **training):
    """A campaign that begins with other frames."""
    campaign = make_system(folder, "local")
    random = np.random.default_rng(5)
    frames = [peroxide(torsion) + random.normal(0, 0.003, (4, 3)) for torsion in random.normal(2.0, 0.6, 24)]
    write_frames(folder / "start.xyz", Frames(np.array(PEROXIDE.numbers), np.array(frames)))
    settings = yaml.safe_load(campaign.read_text())
    settings |= {"training": {"runner": "eager", **training}, "stop": {"rounds": rounds}}
    del settings["potential"]
    campaign.write_text(yaml.safe_dump(settings))
    return campaign


def weights(path):
    return torch.cat([weight.flatten() for weight in UncertaintyModel.load(path).potential.parameters()])


def test_without_training_driver_and_judge_learn(tmp_path, trained):
    run = tmp_path / "run"
    assert run_here(system(tmp_path, kind="none", model=str(trained)), run)
    first, second = (UncertaintyModel.load(run / f"round_0{i}" / "model.uqb") for i in (0, 1))
    assert torch.equal(weights(trained), weights(run / "round_01" / "model.uqb"))
    assert second.provenance["frames"] > first.provenance["frames"]
    assert len(second.seen) > len(first.seen)
    facts = json.loads((run / "round_01" / "training.json").read_text())
    assert facts["history"] == []
    start = read_frames(run / "dataset.xyz")[:24]
    assert abs(np.mean(evaluate_frames(second, start).energy - start.energies)) < 1e-3
    assert verify(run).faults == []
    write_report(RunData.load(run), tmp_path / "report.html")


def test_a_frozen_kind_stands_in_the_campaign_file(tmp_path):
    campaign, run = system(tmp_path, rounds=0, kind="none"), tmp_path / "run"
    settings = yaml.safe_load(campaign.read_text())
    settings["potential"] = {"kind": "module", "factory": "documented_module:make"}
    campaign.write_text(yaml.safe_dump(settings))
    assert run_here(campaign, run)
    model = UncertaintyModel.load(run / "round_00" / "model.uqb")
    assert model.potential.kind == "module"
    assert model.calibration.fitted
    # As a file on its own, on the frames that judge and calibration were made from: the potential has not seen them.
    named_paths.discard(settings["potential"]["factory"])
    settings["training"]["model"] = str(run / "round_00" / "model.uqb")
    potential = settings.pop("potential")
    campaign.write_text(yaml.safe_dump(settings))
    with pytest.raises(UqbiasError, match=r"nothing is imported; give --trust .*training\.trust"):
        run_here(campaign, tmp_path / "again")
    settings["training"]["trust"] = True
    campaign.write_text(yaml.safe_dump(settings))
    assert run_here(campaign, tmp_path / "again")
    assert len(UncertaintyModel.load(tmp_path / "again" / "round_00" / "model.uqb").potential.seen) == 0
    settings |= {"potential": potential, "training": {"kind": "adam", "runner": "eager"}}
    campaign.write_text(yaml.safe_dump(settings))
    with pytest.raises(UqbiasError, match="potential = module, which is frozen"):
        run_here(campaign, tmp_path / "other")


def test_a_command_trains_and_is_not_run_twice(tmp_path, trained, monkeypatch):
    run, calls = tmp_path / "run", tmp_path / "calls"
    tool = tmp_path / "tool.sh"
    tool.write_text(f'echo "$@" >> {calls}; head -1 "$1" | grep -q 4 && cp "$3" "$4"\n')
    command = "sh tool.sh {train} {valid} {model_in} {model_out} {round}"
    options = {"model": str(trained), "run": command, "files": [str(tool)], "result": "new.uqb"}
    campaign = system(tmp_path, kind="command", **options)
    monkeypatch.setattr(retraining, "complete_model", stopped)
    with pytest.raises(KeyboardInterrupt):  # the command has come to its end
        run_here(campaign, run)
    monkeypatch.undo()
    assert run_here(campaign, run)
    lines = calls.read_text().splitlines()
    assert [line.split()[-1] for line in lines] == ["0", "1"]
    assert lines[0].split()[2] == str(trained)
    assert lines[1].split()[2] == str(run / "round_00" / "training" / "new.uqb")
    assert len(read_frames(run / "round_01" / "training" / "train.xyz")) > 20
    assert torch.equal(weights(trained), weights(run / "round_01" / "model.uqb"))
    assert verify(run).faults == []
    (run / "round_01" / "training" / "new.uqb").write_bytes(b"")
    assert any("new.uqb" in fault for fault in verify(run).faults)


def stopped(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("exit 1 # {model_out}", r"training.run failed in round 0: .* ended with exit code 1; it printed nothing; see"),
        ("echo epoch 1; echo loss is nan; exit 3 # {model_out}", r"exit code 3; its last lines: epoch 1 / loss is nan"),
        ("echo done # {model_out}", r"wrote no new.uqb in round 0; its last lines: done; see .*training.partial"),
        ("echo x > {model_out}", r"training.partial/new.uqb"),
        ("echo slow; sleep 60 # {model_out}", r"no answer within 6 s \(training.timeout\); its last lines: slow"),
    ],
)
def test_a_command_that_fails_is_one_line(tmp_path, command, said):
    frames = Frames(np.array(PEROXIDE.numbers), np.array([peroxide(1.0), peroxide(2.0)]))
    work = SimpleNamespace(
        campaign=SimpleNamespace(training=Training(kind="command", run=command, timeout=6, result="new.uqb")),
        folder=lambda index: tmp_path / f"round_{index:02d}",
        seed=lambda *_: 1,
        topology=PEROXIDE,
        progress=SilentProgress(),
    )
    with pytest.raises(UqbiasError, match=said) as caught:
        outside_training.train_by_command(work, 0, Split(frames, frames, frames))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "round_00" / "training").exists()


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"kind": "none"}, r"training.kind = none with potential = power_spectrum, which has not learned anything"),
        ({"kind": "none", "steps": 10}, r"steps has no effect with kind = none"),
        ({"kind": "command", "run": "tool"}, r"needs a run with {model_out} in it"),
        ({"kind": "command", "run": "tool {model_in} {model_out}"}, r"run has {model_in}, and there is no model"),
        ({"run": "tool {model_out}"}, "run has no effect with kind = adam"),
        ({"kind": "nothing"}, "nothing"),
    ],
)
def test_bad_sections(tmp_path, training, said):
    with pytest.raises(UqbiasError, match=said):
        run_here(system(tmp_path, **training), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_judge_with_weights_is_refused_before_anything_is_paid(tmp_path, trained):
    campaign = system(tmp_path, kind="none", model=str(trained))
    settings = yaml.safe_load(campaign.read_text())
    campaign.write_text(yaml.safe_dump(settings | {"judge": {"kind": "mve"}}))
    with pytest.raises(UqbiasError, match=r"'mve' with training.kind = none: it has weights"):
        run_here(campaign, tmp_path / "run")
    assert not (tmp_path / "run").exists()
