"""`uqbias evaluate` on errors that are samples of a known distribution, and what it says where it cannot score."""

import json

import numpy as np
import pytest
import torch
from molecules import HYDROGENS_LAST, peroxide_geometries, peroxide_model
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from uqbias.cli import app
from uqbias.errors import UqbiasError
from uqbias.model.fit import calibrate
from uqbias.model.inference import evaluate_frames
from uqbias.model.model import UncertaintyModel
from uqbias.model.score import score_model
from uqbias.molecule.frames import Frames, write_frames
from uqbias.registry import UNCERTAINTIES
from uqbias.units import EV_PER_ANGSTROM

NUMBERS = np.array(HYDROGENS_LAST.numbers)
MEV_PER_ANGSTROM = EV_PER_ANGSTROM / 1e3
SCORES = (
    "spearman",
    "auroc",
    "coverage",
    "coverage_0.05",
    "coverage_0.32",
    "miscalibration_area",
    "nll",
    "crps_meV_per_A",
    "sharpness_meV_per_A",
)


def noise_of(u, lowest):
    """Standard deviation of the force errors that the labels are given, kJ/mol/nm; lowest is the least u."""
    return np.sqrt(50.0**2 + 60.0**2 * np.maximum(u - lowest, 0.0))


def labelled(model, count, seed):
    """Frames whose labels are the model's values, off by samples of N(0, σ²) with σ a function of the judge's u."""
    x = peroxide_geometries(count, seed)
    found = evaluate_frames(model, x, forces=True)
    lowest = evaluate_frames(model, peroxide_geometries(60)).raw_judge.min()
    sigma = noise_of(found.raw_judge, lowest)
    rng = np.random.default_rng(seed)
    error = sigma[:, None, None] * rng.normal(size=x.shape)
    return Frames(NUMBERS, x, found.energy + rng.normal(size=count), found.forces - error), sigma, error


def calibrated(count=400, **options):
    model = peroxide_model()
    model.potential.record_seen(peroxide_geometries(60))
    calibrate(model, labelled(model, count, seed=5)[0], **options)
    return model


@pytest.fixture(scope="module")
def model():
    return calibrated()


@pytest.fixture(scope="module")
def held_out(model):
    return labelled(model, 1500, seed=6)


@pytest.fixture(scope="module")
def folder(model, held_out, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    model.save(folder / "m.uqb")
    write_frames(folder / "test.xyz", held_out[0])
    return folder


def call(*arguments):
    return CliRunner().invoke(app, ["evaluate", *(str(argument) for argument in arguments)])


def rows(text):
    """First word or words of a line with two columns of numbers, to the columns."""
    lines = [line for line in text.splitlines() if len(line) >= 38 and line[:20].strip()]
    return {line[:20].strip(): (line[20:29].strip(), line[29:38].strip()) for line in lines}


def test_errors_that_are_samples_of_the_prediction(model, held_out):
    frames, sigma, error = held_out
    scores = score_model(model, frames)
    sigma, error = sigma / MEV_PER_ANGSTROM, error / MEV_PER_ANGSTROM
    assert scores["frames"] == 1500
    assert scores["frames_trained_on"] == 0
    assert scores["force_mae_meV_per_A"] == pytest.approx(np.abs(error).mean(), rel=1e-6)
    assert scores["force_rmse_meV_per_A"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-6)
    # The noise is in the family of the variance scaling, so that what it found is the truth within sampling error.
    thirds = [scores[f"coverage_{third}"] for third in ("low", "middle", "high")]
    assert np.mean(thirds) == pytest.approx(scores["coverage"])
    assert min(thirds) < max(thirds)
    assert scores["miscalibration_area"] < 0.02
    entropy = 0.5 * np.log(2 * np.pi * np.e) + np.log(sigma).mean()
    assert scores["nll"] == pytest.approx(entropy, abs=0.03)
    assert scores["crps_meV_per_A"] == pytest.approx((sigma / np.sqrt(np.pi)).mean(), rel=0.03)
    assert scores["sharpness_meV_per_A"] == pytest.approx(scores["force_rmse_meV_per_A"], rel=0.05)
    # Two standard deviations: of the quantile of 400 calibration frames, and of the share of 1500.
    for alpha, margin in ((0.05, 0.025), (0.32, 0.055)):
        assert scores[f"coverage_{alpha:g}"] == pytest.approx(1 - alpha, abs=margin)
        assert scores[f"atom_coverage_{alpha:g}"] == pytest.approx(1 - alpha, abs=margin)
    assert 0.3 < scores["spearman"] < 1
    assert scores["atoms"] == 4
    assert {name for name in scores if name.startswith("atom_")} == {f"atom_{name}" for name in SCORES}


def test_scores_are_those_of_the_calibrated_uncertainty(model, held_out):
    frames, _, error = held_out
    scores = score_model(model, frames, large=0.6)
    found = evaluate_frames(model, frames.positions, atoms=True)
    frame_error, atom_error = (np.sqrt((error**2).mean(axis=axes)) for axes in ((1, 2), 2))
    of_atoms = model.calibration.per_atom(torch.tensor(found.raw_atom_uncertainty)).numpy().ravel()
    for prefix, u, size in (("", found.judge, frame_error), ("atom_", of_atoms, atom_error.ravel())):
        assert scores[f"{prefix}spearman"] == pytest.approx(spearmanr(u, size).statistic, abs=1e-6)
        large = size > np.quantile(size, 0.6)
        assert scores[f"{prefix}auroc"] == pytest.approx(roc_auc_score(large, u), abs=1e-6)
        assert scores[f"{prefix}coverage"] == pytest.approx((size <= u).mean(), abs=1e-12)
    assert scores["driver_spearman"] == pytest.approx(spearmanr(found.driver, frame_error).statistic, abs=1e-6)


def test_command(folder):
    text = call(folder / "m.uqb", folder / "test.xyz")
    assert text.exit_code == 0, text.output
    facts = json.loads(call(folder / "m.uqb", folder / "test.xyz", "--json").stdout)
    table = rows(text.stdout)
    assert float(table["force"][0]) == pytest.approx(facts["force_mae_meV_per_A"], rel=0.01)
    for name, key in (
        ("Spearman ρ", "spearman"),
        ("AUROC", "auroc"),
        ("miscalibration area", "miscalibration_area"),
        ("calibrated NLL", "nll"),
        ("CRPS", "crps_meV_per_A"),
        ("sharpness", "sharpness_meV_per_A"),
        ("coverage, α = 0.05", "coverage_0.05"),
        ("coverage, α = 0.1", "coverage"),
        ("coverage, α = 0.32", "coverage_0.32"),
    ):
        for shown, found in zip(table[name], (facts[key], facts[f"atom_{key}"]), strict=True):
            assert float(shown) == pytest.approx(found, rel=0.006), name
    assert table["Spearman ρ, driver"][1] == "–"
    assert "the 20 % with the largest error" in text.stdout
    assert "warning" not in text.stdout
    other = json.loads(call(folder / "m.uqb", folder / "test.xyz", "--json", "--large", 0.95).stdout)
    assert other["auroc"] != facts["auroc"]
    assert {key for key in facts if facts[key] != other[key]} == {"large", "auroc", "atom_auroc"}


def test_frames_that_were_trained_on(folder, model, held_out, tmp_path):
    x = peroxide_geometries(60)[:7]
    labels = evaluate_frames(model, x, forces=True)
    seen = Frames(NUMBERS, x, labels.energy, labels.forces)
    write_frames(tmp_path / "mixed.xyz", Frames.concatenate([seen, held_out[0][:20]]))
    text = call(folder / "m.uqb", tmp_path / "mixed.xyz").stdout
    assert "warning: the model was made from 7 of these frames" in text
    forgetful = peroxide_model()
    assert "frames_trained_on" not in score_model(forgetful, seen)
    forgetful.save(tmp_path / "forgetful.uqb")
    assert "does not know which frames" in call(tmp_path / "forgetful.uqb", tmp_path / "mixed.xyz").stdout


def test_uncalibrated(held_out, tmp_path):
    model = peroxide_model()
    scores = score_model(model, held_out[0])
    kept = {"spearman", "auroc"}
    assert {name for name in SCORES if name in scores} == kept
    assert {name for name in SCORES if f"atom_{name}" in scores} == kept
    model.save(tmp_path / "m.uqb")
    write_frames(tmp_path / "t.xyz", held_out[0][:20])
    text = call(tmp_path / "m.uqb", tmp_path / "t.xyz").stdout
    assert text.count("the model is not calibrated") == 1
    assert "CRPS" not in text


def test_too_few_calibration_frames_for_a_bound(held_out, tmp_path):
    model = calibrated(12)
    scores = score_model(model, held_out[0])
    assert "coverage_0.05" not in scores
    assert "coverage_0.32" in scores
    model.save(tmp_path / "m.uqb")
    write_frames(tmp_path / "t.xyz", held_out[0][:20])
    text = call(tmp_path / "m.uqb", tmp_path / "t.xyz").stdout
    assert "needs 20 calibration frames, the model has 12" in text
    assert rows(text)["coverage, α = 0.05"][0] == "–"
    assert "coverage, α = 0.1" in rows(text)
    # A standard deviation bounds nothing: with the other kind only the two miscoverages are left.
    calibrated(12, kind="variance_scaling").save(tmp_path / "v.uqb")
    table = rows(call(tmp_path / "v.uqb", tmp_path / "t.xyz").stdout)
    assert [name for name in table if name.startswith("cov")] == ["coverage, α = 0.05", "coverage, α = 0.32"]


def test_a_kind_without_values_per_atom(held_out, tmp_path):
    twin = peroxide_model()
    model = UncertaintyModel(twin.potential, twin.driver, twin.topology)
    model.potential.record_seen(peroxide_geometries(60))
    calibrate(model, labelled(model, 40, seed=5)[0])
    model = model.eval()
    scores = score_model(model, held_out[0][:50])
    assert not any(name.startswith("atom") for name in scores)
    assert scores["judge"] == "kernel_density"
    model.save(tmp_path / "m.uqb")
    write_frames(tmp_path / "t.xyz", held_out[0][:20])
    text = call(tmp_path / "m.uqb", tmp_path / "t.xyz").stdout
    assert "this kind has no values per atom" in text
    assert {column[1] for name, column in rows(text).items() if name.startswith(("Sp", "AU", "CR", "cov"))} == {"–"}


def test_atoms_that_are_left_out(held_out):
    """Only the oxygens have a value; the hydrogens' zeros are no uncertainty."""
    twin = peroxide_model()
    options = {"n_components": 1, "features": {"kind": "latents", "atoms": "heavy"}}
    judge = UNCERTAINTIES.build("gmm", options, topology=twin.topology, n_latents=twin.potential.n_latents).double()
    with torch.no_grad():
        x = torch.tensor(peroxide_geometries(60))
        judge.fit(x, *twin.potential(x), seed=0)
    model = UncertaintyModel(twin.potential, judge, twin.topology, twin.driver).double().eval()
    frames, _, error = held_out
    scores = score_model(model, frames)
    assert scores["atoms"] == 2
    found = evaluate_frames(model, frames.positions, atoms=True).raw_atom_uncertainty[:, :2].ravel()
    expected = spearmanr(found, np.sqrt((error[:, :2] ** 2).mean(axis=2)).ravel()).statistic
    assert scores["atom_spearman"] == pytest.approx(expected, abs=1e-9)


def test_refusals(folder, held_out, tmp_path):
    write_frames(tmp_path / "one.xyz", held_out[0][:1])
    for arguments, message in (
        ((folder / "test.xyz", "--large", 1.5), "quantile 1.5; give a number between 0 and 1"),
        ((tmp_path / "one.xyz",), "1 labelled frame to evaluate on; give two or more"),
    ):
        done = call(folder / "m.uqb", *arguments)
        assert done.exit_code == 2
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_prediction_that_is_not_finite(model, held_out):
    positions = held_out[0].positions[:5].copy()
    positions[3, 0, 0] = np.nan
    frames = Frames(NUMBERS, positions, np.zeros(5), np.zeros((5, 4, 3)))
    with pytest.raises(UqbiasError, match="force of frame 3 is not finite"):
        score_model(model, frames)
