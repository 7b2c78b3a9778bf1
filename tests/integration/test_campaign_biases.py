"""A whole campaign under biases of each kind, on the uncertainty and on collective variables."""

import json

import numpy as np
import pytest
import torch
import yaml
from command_line import refused
from peroxide_oracle import make_system

from uqbias.bias.build import build_bias
from uqbias.campaign.rounds import run_campaign
from uqbias.runs.hills import read_hills
from uqbias.settings.file import load_campaign

PHI = {"phi": {"kind": "dihedral", "atoms": [0, 1, 2, 3]}}
OPES = {"kind": "opes", "barrier": 20.0, "pace": 10}
GAMD = {"kind": "gamd", "pace": 10, "preparation_steps": 0, "conventional_steps": 30, "equilibration_steps": 30}
WTM = {"kind": "wtm_eabf", "pace": 10, "hill_pace": 10}
LINEAR = {"kind": "linear", "pace": 10, "averaging": 2}
CASES = {
    "opes on two": [{**OPES, "variables": ["driver", "phi"], "sigma": [0.3, 0.4]}],
    "published": [WTM, GAMD, {"kind": "upper_wall", "at": 8.0}],
    "eabf between walls": [
        {"kind": "eabf", "variables": ["phi"], "sigma": 0.2, "pace": 10},
        {"kind": "lower_wall", "variables": ["extended_phi"], "at": -3.0},
        {"kind": "restraint", "at": 2.0, "kappa": 1.0},
    ],
    "linear and udd": [LINEAR, {"kind": "udd"}],
}


def prepare(folder, biases, **changes):
    path = make_system(folder, "local")
    content = yaml.safe_load(path.read_text())
    content |= {"bias": biases, "variables": PHI, "stop": {"rounds": 1}, **changes}
    path.write_text(yaml.safe_dump(content))
    return path


def restored(md):
    facts = json.loads((md / "run.json").read_text())
    bias = build_bias([(part.pop("kind"), part) for part in facts["biases"]], facts["temperature"])
    with np.load(md / "bias.npz") as arrays:
        bias.restore(dict(arrays))
    return bias


@pytest.mark.parametrize("case", CASES)
def test_campaign(case, tmp_path):
    torch.set_num_threads(1)
    run_campaign(load_campaign(prepare(tmp_path, CASES[case])), tmp_path / "run")
    rounds = json.loads((tmp_path / "run" / "summary.json").read_text())["rounds"]
    assert [entry["labels"] for entry in rounds] == [24, 29]
    md = tmp_path / "run" / "round_01" / "md"
    bias = restored(md).to(torch.float64)
    with np.load(md / "observations.npz") as seen:
        assert tuple(seen["variable_names"]) == bias.variables
        assert np.isfinite(seen["variables"]).all()
        # The bias of the last frame is that of the end, but for what came with that frame.
        values = bias.energy(torch.tensor(seen["variables"][-1]), bias.state()).detach().numpy()
        assert np.abs(seen["bias"]).max() > 0.01
        np.testing.assert_allclose(values, seen["bias"][-1], rtol=0.5, atol=5.0)
    if case == "published":
        assert bias.biases[1].stage == "production"
        hills = read_hills(md / "HILLS", 0.5, ["extended_driver"])
        np.testing.assert_array_equal(hills["centre"], bias.biases[0].metadynamics.hills["centre"])
    else:
        assert not (md / "HILLS").exists()


def test_bias_is_carried_on_from_round_to_round(tmp_path):
    """With old_bias: keep the second round begins with the samples, hills and kernels of the first."""
    path = prepare(tmp_path, [WTM, OPES, LINEAR], stop={"rounds": 2}, old_bias="keep")
    run_campaign(load_campaign(path), tmp_path / "run")
    first, second = (restored(tmp_path / "run" / f"round_0{index}" / "md") for index in (1, 2))
    hills = [bias.biases[0].metadynamics.hills for bias in (first, second)]
    np.testing.assert_array_equal(hills[1][: len(hills[0])], hills[0])
    assert len(hills[1]) > len(hills[0])
    counts = [int(bias.biases[0].checkpoint()["force_weights"].sum()) for bias in (first, second)]
    # A walker that is stopped leaves out its sample of that step; which are stopped differs between processors.
    stopped = (tmp_path / "run" / "round_01" / "md" / "events.jsonl").read_text().count("\n")
    assert counts[1] > counts[0] == 2 * 10 - stopped
    assert second.biases[1].reflect_at == first.biases[1].reflect_at
    assert second.biases[1].neff > first.biases[1].neff
    assert second.biases[2].checkpoint()["count"] == 2 * first.biases[2].checkpoint()["count"] == 20


def test_nothing_is_begun_with_a_variable_of_other_atoms(tmp_path):
    variables = {"phi": {"kind": "dihedral", "atoms": [0, 1, 2, "H9"]}}
    path = prepare(tmp_path, CASES["opes on two"], variables=variables)
    for command in ("validate", "run"):
        options = ["-o", tmp_path / "run", "-q"] if command == "run" else []
        assert "variables.phi: atoms of dihedral: no atom is called 'H9'" in refused(command, path, *options)
    assert not (tmp_path / "run").exists()
