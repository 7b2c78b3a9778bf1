"""A whole campaign with each family of uncertainties as judge or driver: trained along, kept, calibrated."""

import json

import pytest
import torch
import yaml
from peroxide_oracle import make_system

from uqbias.campaign.rounds import run_campaign
from uqbias.model.model import UncertaintyModel
from uqbias.molecule.frames import read_frames
from uqbias.molecule.seen import is_in
from uqbias.settings.file import load_campaign

CASES = {
    "trained judge": {"judge": {"kind": "mve", "hidden": 4}},
    "committee as judge": {"judge": {"kind": "committee", "quantity": "forces", "bootstrap": True}},
    # In kJ/mol, where the cap of the defaults is for nats.
    "committee as driver": {
        "driver": {"kind": "committee"},
        "potential": {"n_members": 3},
        "guards": {"driver_cap": None},
    },
    "rigidity on neighbours": {"judge": {"kind": "llpr"}, "driver": {"kind": "distance", "metric": "knn", "k": 3}},
    "expected error": {"judge": {"kind": "evidential"}, "calibration": {"kind": "variance_scaling"}},
}


@pytest.mark.parametrize("case", CASES)
def test_campaign(case, tmp_path):
    path = make_system(tmp_path, "local")
    content = yaml.safe_load(path.read_text())
    for section, changes in CASES[case].items():
        content[section] = changes if section in ("driver", "judge") else content[section] | changes
    content["stop"]["rounds"] = 1
    path.write_text(yaml.safe_dump(content))
    torch.set_num_threads(1)
    run_campaign(load_campaign(path), tmp_path / "run")
    rounds = json.loads((tmp_path / "run" / "summary.json").read_text())["rounds"]
    assert [entry["labels"] for entry in rounds] == [24, 29]
    first, last = (UncertaintyModel.load(tmp_path / "run" / f"round_0{index}" / "model.uqb") for index in (0, 1))
    assert last.judge.kind == content["judge"]["kind"]
    assert last.calibration.fitted
    assert last.calibration.kind == content["calibration"].get("kind", "conformal")
    dataset = read_frames(tmp_path / "run" / "dataset.xyz")
    seen = is_in(last.seen, dataset.positions)
    assert 0 < (~seen).sum() == last.calibration.frames < len(dataset)
    assert is_in(last.seen, dataset.positions[is_in(first.seen, dataset.positions)]).all()
    assert is_in(last.calibrated_on, dataset.positions[~seen]).all()
    with torch.no_grad():
        values = last(torch.tensor(dataset.positions, dtype=torch.float32))
    assert all(torch.isfinite(value).all() for value in values)
    assert (values.judge > 0).all()


def test_weights_of_a_judge_go_on_from_round_to_round(tmp_path):
    """With a learning rate of nearly zero in later rounds the trained weights stay, and all else is fitted anew."""
    path = make_system(tmp_path, "local")
    content = yaml.safe_load(path.read_text())
    content |= {"judge": {"kind": "mve", "hidden": 4}, "stop": {"rounds": 1}}
    content["training"]["later_learning_rate"] = 1e-12
    path.write_text(yaml.safe_dump(content))
    run_campaign(load_campaign(path), tmp_path / "run")
    first, last = (UncertaintyModel.load(tmp_path / "run" / f"round_0{index}" / "model.uqb") for index in (0, 1))
    for old, new in zip(first.judge.parameters(), last.judge.parameters(), strict=True):
        torch.testing.assert_close(new, old, rtol=1e-6, atol=1e-8)
    assert float(first.judge.force_unit) != float(last.judge.force_unit)
