"""Scores of a round in the regions and basins that the campaign file names."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from uqbias.campaign import scoring
from uqbias.campaign.ledger import open_ledger
from uqbias.campaign.post_label import label_verdicts
from uqbias.molecule.frames import Frames, read_frames
from uqbias.molecule.topology import Topology
from uqbias.report.run_data import RunData
from uqbias.report.summary import campaign_story
from uqbias.settings.file import load_campaign

SYSTEM = Path(__file__).parents[2] / "systems/alanine_dipeptide"


@pytest.fixture
def work(tmp_path):
    file = load_campaign(SYSTEM / "campaign.yaml")
    test_set = read_frames(SYSTEM / "reference/test_set.xyz")
    return SimpleNamespace(
        file=file,
        campaign=file.campaign,
        topology=Topology.from_pdb(SYSTEM / "structure.pdb"),
        accepted=lambda _: test_set,
        model_path=lambda _: tmp_path / "model.uqb",
        folder=lambda _: tmp_path,
    )


def test_errors_of_a_region_are_those_of_its_frames(work, monkeypatch):
    frames = work.accepted(0)
    n = len(frames)
    force, energy = np.arange(n, dtype=float), np.arange(n)[::-1] / 7
    errors = {"force_mae_frame": force, "energy_error_frame": energy}
    monkeypatch.setattr(scoring, "force_errors", lambda *_: errors)
    monkeypatch.setattr(scoring.UncertaintyModel, "load", lambda *_: None)
    score = work.campaign.score
    entry = scoring._errors(work, 0, score)
    phi = scoring.angles_of(frames.positions, score.coordinates)["phi"]
    there = (phi > 15) & (phi < 135)
    assert there.any()
    assert entry == {
        "force_mae_meV_per_A": force.mean(),
        "energy_mae_meV_per_atom": energy.mean(),
        "force_mae_phi_positive_meV_per_A": force[there].mean(),
        "energy_mae_phi_positive_meV_per_atom": energy[there].mean(),
    }
    reached = scoring._reached(work, 0, score)
    assert reached["labels_phi_positive"] == there.sum()
    assert reached["basins"] == ["C7eq", "C5", "C7ax", "alphaR", "alphaL"]
    assert reached["coverage"] == 1.0


def test_the_entry_of_a_round_has_its_jumps(tmp_path):
    with open_ledger(tmp_path, {"seed": 0}, np.array([1, 1]), {}) as ledger:
        for index, jumps in enumerate(
            [{"proposed": 8, "passed": 2}, {"none": "no soft bond"}, {"proposed": 9, "passed": 3}]
        ):
            ledger.append("phase", round=index, phase="md", wall_s=1.0, jumps=jumps)
        none = Frames(np.array([1, 1]), np.zeros((0, 2, 3)))
        campaign = SimpleNamespace(sampling=SimpleNamespace(kind="md"))
        work = SimpleNamespace(ledger=ledger, labels=lambda _: (none, []), campaign=campaign)
        entries = [scoring._counts(work, index) for index in range(3)]
    assert [entry.get("jumps_passed") for entry in entries] == [2, None, 3]
    assert [entry.get("jumps_proposed") for entry in entries] == [8, None, 9]


def test_the_summary_says_how_many_labels_failed_and_why(tmp_path):
    numbers = np.array([1, 1])
    with open_ledger(tmp_path, {"seed": 0}, numbers, {}) as ledger:
        for index, reason in enumerate(["no convergence", "its process was ended by SIGSEGV", "no convergence"]):
            ledger.append("failure", round=0, index=index, key=str(index), reason=reason)
        campaign = SimpleNamespace(name="x", seed=0)
        summary = scoring.write_summary(SimpleNamespace(ledger=ledger, directory=tmp_path, campaign=campaign))
    assert summary["failure_reasons"] == {"no convergence": 2, "its process was ended by SIGSEGV": 1}
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"rounds": [{"labels": 5}]}))
    assert campaign_story(RunData.load(tmp_path))[-1] == (
        "The oracle failed on 3 geometries: no convergence (2); its process was ended by SIGSEGV (1)."
    )


@pytest.mark.parametrize(
    ("energy", "verdict"), [(301.0, "301 kJ/mol above"), (-3001.0, "3001 kJ/mol below"), (-2999.0, "")]
)
def test_labels_far_from_the_start_frames_are_rejected_on_both_sides(energy, verdict):
    frames = Frames(np.array([1]), np.zeros((1, 1, 3)), np.array([energy]), np.zeros((1, 1, 3)), [{}])
    (said,) = label_verdicts(frames, 0.0)
    assert verdict in said
    assert bool(said) == bool(verdict)


def test_campaign_without_regions_has_none(work, monkeypatch):
    errors = {"force_mae_frame": np.ones(2), "energy_error_frame": np.ones(2)}
    monkeypatch.setattr(scoring, "force_errors", lambda *_: errors)
    monkeypatch.setattr(scoring.UncertaintyModel, "load", lambda *_: None)
    monkeypatch.setattr(scoring, "read_test_set", lambda *_: work.accepted(0)[:2])
    score = work.campaign.score.model_copy(update={"regions": {}, "basins": {}, "surface": None})
    assert set(scoring._errors(work, 0, score)) == {"force_mae_meV_per_A", "energy_mae_meV_per_atom"}
    assert scoring._reached(work, 0, score) == {}
