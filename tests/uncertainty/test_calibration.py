"""Calibration: variance scaling, both maps in one object, and frames that are not held out being refused."""

import copy
import json

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from uqbias.errors import UqbiasError
from uqbias.model.fit import calibrate, fit_model
from uqbias.model.model import UncertaintyModel
from uqbias.model.splitting import split_by_role
from uqbias.molecule.frames import Frames, read_frames, write_frames
from uqbias.molecule.seen import invariants, is_in
from uqbias.uncertainty.calibration import Calibration, HeldOut, VarianceScaling
from uqbias.uncertainty.conformal import Conformal


@pytest.fixture
def model(alanine_model, alanine_frames):
    parts = (copy.deepcopy(part) for part in (alanine_model.potential, alanine_model.judge))
    fresh = UncertaintyModel(*parts, alanine_model.topology)
    fresh.judge.record_seen(alanine_frames.positions[:60])
    return fresh


def test_variance_scaling_finds_the_variance():
    """Errors drawn with σ² = a s(u) + b give back that σ, far better than one σ for all."""
    rng = np.random.default_rng(0)
    u = rng.gamma(2.0, size=4000)
    made = VarianceScaling().double()
    made._set_shift(u)
    true = np.sqrt(900.0 * made.positive(torch.tensor(u)).numpy() + 400.0)
    made.fit(u, true * rng.normal(size=len(u)))
    found = made(torch.tensor(u)).numpy()
    assert np.abs(found / true - 1).mean() < 0.05
    assert np.abs(true.mean() / true - 1).mean() > 0.15
    assert np.array_equal(np.argsort(found), np.argsort(u))


def test_variance_scaling_of_an_uninformative_u_is_one_variance():
    rng = np.random.default_rng(1)
    made = VarianceScaling().double()
    made.fit(rng.gamma(2.0, size=5000), 50.0 * rng.normal(size=5000))
    found = made(torch.linspace(0.5, 4.0, 20, dtype=torch.float64)).numpy()
    assert found == pytest.approx(50.0, rel=0.05)


@pytest.mark.parametrize("kind", ["conformal", "variance_scaling"])
def test_either_map_can_be_the_models_uncertainty(model, alanine_frames, kind, tmp_path):
    facts = calibrate(model, alanine_frames[60:], alpha=0.1, kind=kind)
    assert facts["calibration_force_rmse"] > 0
    part = model.calibration.structure_bound if kind == "conformal" else model.calibration.structure_deviation
    x = torch.tensor(alanine_frames.positions[:5])
    raw, *_ = model.uncertainties(x, *model.potential(x))
    assert torch.equal(model(x).judge, part(raw))
    model.save(tmp_path / "model.uqb")
    loaded = UncertaintyModel.load(tmp_path / "model.uqb")
    assert torch.equal(loaded(x).judge, model(x).judge)
    assert loaded.calibration.describe() == model.calibration.describe()
    assert loaded.calibration.has_atoms
    assert np.array_equal(loaded.seen, model.seen)


def test_quantiles_of_other_levels(model, alanine_frames):
    calibrate(model, alanine_frames[60:], alpha=0.1)
    quantiles = model.calibration.structure_bound.quantiles
    assert set(quantiles) == {0.05, 0.1, 0.2, 0.32, 0.5}  # 40 frames are too few for 0.01
    assert list(quantiles.values()) == sorted(quantiles.values(), reverse=True)
    assert quantiles[0.1] == pytest.approx(float(model.calibration.structure_bound.scale))
    json.dumps(model.manifest())


def test_frames_that_were_trained_on_are_refused(model, alanine_frames):
    with pytest.raises(UqbiasError, match="20 of 60 calibration frames, the first of them frame 0"):
        calibrate(model, alanine_frames[40:])
    assert not model.calibration.fitted


def test_the_memory_survives_the_file(model, alanine_frames, tmp_path):
    model.save(tmp_path / "model.uqb")
    with pytest.raises(UqbiasError, match="were used to train"):
        calibrate(UncertaintyModel.load(tmp_path / "model.uqb"), alanine_frames[59:])


@pytest.mark.parametrize("how", ["moved", "turned", "single precision", "file"])
def test_training_frames_in_disguise_are_recognised(model, alanine_frames, how, tmp_path):
    x = alanine_frames.positions[:60]
    if how == "moved":
        x = x - x.mean(axis=1, keepdims=True)
    elif how == "turned":
        x = x @ Rotation.random(random_state=1).as_matrix().T + 3.0
    elif how == "single precision":
        x = x.astype(np.float32)
    else:
        write_frames(tmp_path / "frames.xyz", alanine_frames[:60])
        x = read_frames(tmp_path / "frames.xyz").positions
    assert is_in(model.seen, x).all()
    assert not is_in(model.seen, alanine_frames.positions[60:]).any()


def test_the_memory_goes_with_the_parts(model, alanine_frames):
    """A new model of trained parts knows what they were trained on."""
    again = UncertaintyModel(model.potential, model.judge, model.topology)
    with pytest.raises(UqbiasError, match="were used to train"):
        calibrate(again, alanine_frames[50:])


def test_a_model_without_memory_is_refused(alanine_model, alanine_frames):
    with pytest.raises(UqbiasError, match="does not know which frames it was made from"):
        calibrate(alanine_model, alanine_frames)


def test_a_copy_of_a_training_frame_is_not_held_out(alanine_frames):
    copied = Frames.concatenate([alanine_frames[:30], alanine_frames[3:5]])
    split = split_by_role(copied, np.repeat([0, 1, 2], [20, 5, 7]))
    assert [len(part) for part in split] == [22, 5, 5]
    assert not is_in(invariants(split.training.positions), split.calibration.positions).any()


def test_a_deviation_is_calibrated_as_one():
    """Errors drawn with the σ that u states: its map gives that σ back, and hardly anything is lost to the shift."""
    rng = np.random.default_rng(0)
    sigma = rng.gamma(2.0, size=4000) * 10 + 2.0
    error = sigma * rng.normal(size=4000)
    made = VarianceScaling("deviation").double()
    made.fit(sigma, error)
    assert np.abs(made(torch.tensor(sigma)).numpy() / sigma - 1).mean() < 0.04
    other = VarianceScaling("log_density").double()
    other.fit(sigma, error)
    assert np.abs(other(torch.tensor(sigma)).numpy() / sigma - 1).mean() > 0.1


def drawn(rng, count, exponent=0.3):
    """Log-densities, and errors that grow as a power of their smooth positive part, up to a factor."""
    u = rng.gamma(2.0, 10.0, size=count) - 80.0
    return u, 30.0 * (np.abs(u + 80.0) + 1.0) ** exponent * rng.lognormal(sigma=0.3, size=count)


def test_the_exponent_of_flat_errors_is_found_and_the_bound_is_as_wide_as_they_are():
    rng = np.random.default_rng(0)
    power, linear = Conformal(shape="power").double(), Conformal().double()
    power.fit_shape(*drawn(rng, 300))
    known = drawn(rng, 300)
    u, error = drawn(rng, 6000)
    for part in (power, linear):
        part.fit(*known)
    assert float(power.exponent) == pytest.approx(0.35, abs=0.06)  # s is rounder than u
    bounds = {part: part(torch.tensor(u)).numpy() for part in (power, linear)}
    for third in np.array_split(np.argsort(u), 3):
        assert (error[third] <= bounds[power][third]).mean() == pytest.approx(0.9, abs=0.04)
    assert (error <= bounds[linear]).mean() == pytest.approx(0.9, abs=0.03)
    assert np.mean(bounds[power]) < 0.85 * np.mean(bounds[linear])


def test_coverage_is_guaranteed_whatever_the_shape():
    """On average over calibration sets of 20 frames, of which none shaped the bound, at least 90 % and hardly more."""
    rng = np.random.default_rng(1)
    shares = []
    for _ in range(300):
        bound = Conformal(shape="power").double()
        bound.fit_shape(*drawn(rng, 10, exponent=1.5))
        bound.fit(*drawn(rng, 20))
        u, error = drawn(rng, 300)
        shares.append((error <= bound(torch.tensor(u)).numpy()).mean())
    assert 0.89 < np.mean(shares) < 0.93


@pytest.mark.parametrize("statistic", ["log_density", "deviation", "variance"])
def test_the_bound_rises_smoothly_far_beyond_the_calibrated_range(statistic):
    rng = np.random.default_rng(2)
    bound = Conformal(statistic, shape="power")
    u, error = np.abs(drawn(rng, 60))
    bound.fit_shape(u, error)
    bound.fit(u, error)
    low = -1e6 if statistic == "log_density" else 0.0
    x = torch.cat([torch.linspace(low, 300, 200), torch.logspace(2.6, 6, 100)]).requires_grad_()
    y = bound(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert torch.isfinite(slope).all()
    assert (y.diff() > 0).all()
    assert (y > 0).all()
    assert y[-1] > 2 * bound(torch.tensor(300.0))
    x64 = torch.linspace(-20, 90, 23, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(bound.double(), x64)


@pytest.mark.parametrize(("statistic", "expected"), [("log_density", 0.5), ("deviation", 1.0)])
def test_frames_say_nothing_of_what_lies_beyond_them(statistic, expected):
    """The exponent there is the expected one, unless the frames have a larger one."""
    x = torch.tensor([1e5, 1e6], dtype=torch.float64)
    for exponent in (0.2, 1.5):
        u = np.random.default_rng(5).uniform(1.0, 50.0, size=400)
        bound = Conformal(statistic, "power").double()
        error = (u - 1.0 * (statistic == "log_density") + 1e-3) ** exponent
        bound.fit_shape(u, error)
        bound.fit(u, error)
        assert (float(bound.exponent) < expected) == (exponent < expected)
        slope = np.log10(float(bound(x)[1] / bound(x)[0]))
        assert slope == pytest.approx(max(expected, float(bound.exponent)), abs=0.01)


def test_few_frames_do_not_make_an_exponent():
    bound = Conformal(shape="power")
    bound.fit_shape(np.arange(4.0), np.arange(4.0) + 1)
    assert float(bound.exponent) == 0.5
    assert float(Conformal("deviation", "power").exponent) == 1.0
    with pytest.raises(UqbiasError, match="did you mean 'power'"):
        Conformal(shape="powr")


def test_each_element_has_a_bound_of_its_own():
    rng = np.random.default_rng(3)
    numbers = np.array([1, 8, 1, 1])
    level = np.where(numbers == 8, 50.0, 5.0)

    def atoms(count):
        u = rng.gamma(2.0, size=(count, 4))
        return u, level * u**0.3 * rng.lognormal(sigma=0.2, size=(count, 4))

    bound = Conformal("deviation", "power", [1, 8, 1, 1, 7]).double()
    bound.fit_shape(*atoms(50), numbers)
    bound.fit(*atoms(100), 0.1, numbers)
    u, error = atoms(2000)
    mapped = bound(torch.tensor(np.pad(u, ((0, 0), (0, 1))))).numpy()[:, :4]
    for z in (1, 8):
        assert (error <= mapped)[:, numbers == z].mean() == pytest.approx(0.9, abs=0.04)
    assert bound.quantiles[0.1] == pytest.approx(bound.scale.tolist())
    assert float(bound.scale[1] / bound.scale[0]) == pytest.approx(10.0, rel=0.2)


def test_files_of_before_there_were_shapes_are_read():
    old = Calibration()
    u, error = drawn(np.random.default_rng(4), 30)
    old._fit(HeldOut(u, error, u[:, None], error[:, None]))
    description = {key: value for key, value in old.describe().items() if key not in ("shape", "numbers")}
    again = Calibration.from_description(description)
    again.load_state_dict(old.state_dict())
    x = torch.linspace(-90, 0, 9)
    assert torch.equal(again(x), old(x))
    assert torch.equal(again.per_atom(x[:, None]), old.per_atom(x[:, None]))


def test_validation_frames_shape_the_bound_of_a_model(model, alanine_frames, tmp_path):
    calibrate(model, alanine_frames[70:], shape="power")
    expected = model.calibration.structure_bound
    assert float(expected.exponent) == 0.5
    calibrate(model, alanine_frames[70:], shape="power", shape_frames=alanine_frames[60:70])
    for bound in (model.calibration.structure_bound, model.calibration.atom_bound):
        assert float(bound.exponent) != 0.5
    assert not torch.equal(expected.shift, model.calibration.structure_bound.shift)
    model.save(tmp_path / "model.uqb")
    loaded = UncertaintyModel.load(tmp_path / "model.uqb").calibration
    assert loaded.describe() == model.calibration.describe()
    x = torch.linspace(-50, 50, 22, dtype=torch.float64)[None]
    assert torch.equal(loaded.per_atom(x), model.calibration.per_atom(x))


def test_too_few_copies_are_told_before_training(alanine_frames):
    twice = Frames.concatenate([alanine_frames[:30], alanine_frames[:30]])
    begun = []
    with pytest.raises(UqbiasError, match="a copy of a training frame does not count"):
        fit_model(twice, begin=lambda: begun.append(1))
    assert not begun


def test_too_few_frames(model, alanine_frames):
    with pytest.raises(UqbiasError, match=r"9 calibration frames for alpha 0\.1; hold out at least 10"):
        calibrate(model, alanine_frames[60:69])
    with pytest.raises(UqbiasError, match="no frame is left for calibration"):
        calibrate(model, alanine_frames[60:60])


def test_unknown_kind():
    with pytest.raises(UqbiasError, match="did you mean 'conformal'"):
        Calibration("conformel")


def test_before_fit_it_is_the_identity():
    u = torch.linspace(-2, 2, 9)
    for kind in ("conformal", "variance_scaling"):
        torch.testing.assert_close(Calibration(kind)(u), u)
        assert not Calibration(kind).fitted
