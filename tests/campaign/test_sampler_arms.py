"""The samplers benchmark: every arm is a campaign that is in order, and differs from the others in its sampler only."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from uqbias.campaign.dry_run import check_parts
from uqbias.campaign.work import read_molecule
from uqbias.model.model import UncertaintyModel
from uqbias.molecule.frames import Frames, write_frames
from uqbias.molecule.topology import Topology
from uqbias.potentials.coordinates import Coordinates
from uqbias.registry import UNCERTAINTIES
from uqbias.settings.file import CampaignFile, check_campaign

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def samplers():
    sys.path.insert(0, str(FOLDER))
    try:
        specification = importlib.util.spec_from_file_location("samplers", FOLDER / "samplers.py")
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(FOLDER))
        sys.modules.pop("sampler_arms", None)


@pytest.mark.parametrize("name", ["alanine_dipeptide", "ammonia", "double_well_1d", "double_well_2d"])
def test_every_arm_is_in_order_at_equal_labels(samplers, name):
    system = samplers.SYSTEMS[name]
    budgets = set()
    for arm in system.arms:
        campaign = check_campaign(samplers.settings(system, arm, 7, {}))
        file = CampaignFile(campaign, FOLDER)
        check_parts(file, *read_molecule(file))
        assert campaign.seed == 7
        budgets.add((campaign.harvest.labels_per_round, campaign.stop.rounds, campaign.stop.labels))
        same = {"potential": campaign.potential, "training": campaign.training, "judge": campaign.judge}
        first = check_campaign(samplers.settings(system, next(iter(system.arms)), 7, {}))
        assert same == {key: getattr(first, key) for key in same}
        # Distortions have no window on the driver by default.
        filters = [found.harvest.model_dump(exclude={"driver_window"}) for found in (campaign, first)]
        assert filters[0] == filters[1]
    assert len(budgets) == 1
    assert len({samplers.folder(arm) for arm in system.arms}) == len(system.arms) >= 6


def test_a_command_line_change_reaches_every_arm(samplers):
    system = samplers.SYSTEMS["double_well_1d"]
    content = samplers.settings(system, "attack", 1, {"attack.noise": 0.3, "stop.rounds": 1})
    assert (content["attack"]["noise"], content["stop"]["rounds"]) == (0.3, 1)


def test_table_has_medians_ratios_and_what_ended_early(samplers):
    system = samplers.SYSTEMS["double_well_1d"]
    basis = {"oracle_calls": 3, "failures": 0, "rejected": 1, "labels": 10, "energy": 1.0, "low_rmse": 1.0}
    results = {
        "random": {
            seed: [{**basis, "rmse": 9.0}, {**basis, "rmse": value}] for seed, value in enumerate((2.0, 4.0, 6.0))
        },
        "attack": {
            0: [{**basis, "rmse": 1.0}],
            1: [{**basis, "rmse": 3.0, "early": 1.0}],
            2: [{**basis, "rmse": math.nan}],
        },
    }
    text = "\n".join(samplers.table("wells", system, results))
    assert "| random | 4 (3, 5) |" in text
    assert "| attack [1 ended early] | 2 (1.5, 2.5) [1 without] |" in text
    assert "attack                   RMSE, kJ/mol 0.50" in text


def test_scores_of_a_double_well_by_hand(samplers, tmp_path):
    topology = Topology((1,), ())
    potential = Coordinates((1,), n_members=2, hidden=[4], axes="x", length=0.5)
    judge = UNCERTAINTIES.build("committee", {"quantity": "energy"}, topology=topology, n_latents=potential.n_latents)
    places = np.array([-1.0, -0.9, 0.0, 0.5, 1.0])
    positions = np.zeros((5, 1, 3))
    positions[:, 0, 0] = places
    energies = 5 * places**4 - 10 * places**2 + 1.5 * places
    rounds = [{"round": index, "verdict": "accepted"} for index in (0, 0, 1, 1, 3)]
    write_frames(tmp_path / "dataset.xyz", Frames([1], positions, energies, np.zeros((5, 1, 3)), rounds))
    (tmp_path / "campaign.yaml").write_text("oracle: {kind: double_well, dimensions: 1}")
    (tmp_path / "summary.json").write_text(json.dumps({"rounds": [{"round": index} for index in range(4)]}))
    shift = {0: -3.0, 1: 0.0, 3: 2.0}
    for index, value in shift.items():
        for parameter in potential.parameters():
            torch.nn.init.zeros_(parameter)
        potential.energy_shift.fill_(value)
        (tmp_path / f"round_{index:02d}").mkdir()
        UncertaintyModel(potential, judge, topology).eval().save(tmp_path / f"round_{index:02d}" / "model.uqb")
    found = samplers.SYSTEMS["double_well_1d"].score(tmp_path)
    x = np.linspace(-1.65, 1.65, 331)
    truth = 5 * x**4 - 10 * x**2 + 1.5 * x
    # Round 2 made no model: it has that of round 1.
    expected = [np.sqrt(((value - truth) ** 2).mean()) for value in (-3.0, 0.0, 0.0, 2.0)]
    np.testing.assert_allclose([entry["rmse"] for entry in found], expected, rtol=1e-5)
    chosen = [math.nan, energies[2:4].mean(), energies[2:4].mean(), energies[2:].mean()]
    np.testing.assert_allclose([entry["energy"] for entry in found], chosen, rtol=1e-5)


def test_a_campaign_that_ended_early_keeps_its_rounds(samplers, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text(json.dumps({"rounds": [{"round": 0, "labels": 5}]}))
    monkeypatch.setattr(samplers, "RUN", "import sys; print('walker 1 was stopped', file=sys.stderr); sys.exit(3)")
    system = samplers.System("f", {}, {}, lambda directory: [{"rmse": 1.0}])
    expected = [{"round": 0, "labels": 5, "rmse": 1.0, "early": 1.0}]
    assert samplers.run(system, tmp_path / "run", {"seed": 1}) == expected
    monkeypatch.setattr(samplers, "RUN", "raise RuntimeError('not to be run again')")
    assert samplers.run(system, tmp_path / "run", {"seed": 1}) == expected
    with pytest.raises(RuntimeError, match="not to be run again"):
        samplers.run(system, tmp_path / "other", {"seed": 1})
    with pytest.raises(SystemExit, match="has other settings"):
        samplers.run(system, tmp_path / "run", {"seed": 2})
