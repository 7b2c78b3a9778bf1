"""The samplers benchmark: every arm is a campaign that is in order, and differs from the others in its sampler only."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest

from uqbias.campaign.config import CampaignFile, check_campaign
from uqbias.campaign.dry_run import check_parts
from uqbias.campaign.work import read_start
from uqbias.topology import Topology

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
        topology = Topology.from_pdb(file.path("system", "structure"))
        check_parts(file, topology, read_start(file, topology))
        assert campaign.seed == 7
        budgets.add((campaign.harvest.labels_per_round, campaign.stop.rounds, campaign.stop.labels))
        same = {"potential": campaign.potential, "training": campaign.training, "uncertainty": campaign.uncertainty}
        first = check_campaign(samplers.settings(system, next(iter(system.arms)), 7, {}))
        assert same == {key: getattr(first, key) for key in same}
        # Distortions have no window on the driver by default.
        filters = [found.harvest.model_dump(exclude={"cv_window"}) for found in (campaign, first)]
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


def test_a_campaign_that_ended_early_keeps_its_rounds(samplers, tmp_path, monkeypatch):
    summary = {"rounds": [{"round": 0, "labels": 5}]}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary))
    monkeypatch.setattr(samplers, "RUN", "raise SystemExit('uqbias.errors.UqbiasError: walker 1 was lost')")
    system = samplers.System("f", {}, {}, lambda directory: [{"rmse": 1.0}])
    expected = [{"round": 0, "labels": 5, "rmse": 1.0, "early": 1.0}]
    assert samplers.run(system, tmp_path / "run", {}) == expected
    monkeypatch.setattr(samplers, "RUN", "raise RuntimeError('not to be run again')")
    assert samplers.run(system, tmp_path / "run", {}) == expected
    with pytest.raises(RuntimeError, match="not to be run again"):
        samplers.run(system, tmp_path / "other", {})
