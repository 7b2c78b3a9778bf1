"""GaMD: the formulas of its two thresholds, its stages, and a double well that it makes shallower."""

import json

import numpy as np
import pytest
import torch

from uqbias.bias.base import BiasSum
from uqbias.bias.fixed import UpperWall
from uqbias.bias.gamd import GaMD
from uqbias.campaign.samplers.base import Exploration
from uqbias.campaign.samplers.md import BiasedDynamics
from uqbias.errors import UqbiasError
from uqbias.settings.file import check_campaign
from uqbias.units import GAS_CONSTANT

torch.set_num_threads(1)

STAGES = {"preparation_steps": 20, "conventional_steps": 50, "equilibration_steps": 40, "pace": 10}
THRESHOLDS = pytest.mark.parametrize("threshold", ["lower", "upper"])


def energies(seed, n=6, centre=-1000.0):
    """A skewed distribution, as that of potential energies is."""
    return centre + np.random.default_rng(seed).gamma(4.0, 8.0, n)[:, None]


def run(bias, first, last, centre=-1000.0):
    for step in range(first, last + 1):
        bias.update(step, energies(step, centre=centre))
    return bias


def boost(bias, x):
    points = torch.tensor(x, dtype=bias.state()["k"].dtype, requires_grad=True)
    energy = bias.energy(points[:, None], bias.state())
    return energy.detach().numpy(), torch.autograd.grad(energy.sum(), points)[0].numpy()


def by_the_book(values, threshold, sigma0):
    """(E_thr, k, k0) of Miao et al. from all energies so far."""
    high, low, mean, sigma = values.max(), values.min(), values.mean(), values.std()
    k0 = (1 - sigma0 / sigma) * (high - low) / (mean - low)
    if threshold == "upper" and 0 < k0 <= 1:
        return low + (high - low) / k0, k0 / (high - low), k0
    k0 = min(1.0, sigma0 / sigma * (high - low) / (high - mean))
    return high, k0 / (high - low), k0


@pytest.mark.parametrize(
    ("threshold", "sigma0", "branch"),
    [
        ("lower", 2.0, "lower"),
        ("lower", 10.0, "capped"),
        ("upper", 2.0, "lower"),
        ("upper", 10.0, "upper"),
        ("upper", 300.0, "capped"),
    ],
)
def test_parameters_follow_the_paper(threshold, sigma0, branch):
    bias = run(GaMD(threshold=threshold, sigma0=sigma0, **STAGES), 1, 80)
    values = np.concatenate([energies(step) for step in (30, 40, 50, 60, 70, 80)])
    expected = by_the_book(values, threshold, sigma0)
    found = bias.parameters
    assert (found["threshold"], found["k"], found["k0"]) == pytest.approx(expected, rel=1e-12)
    assert (found["v_avg"], found["sigma_v"]) == pytest.approx((values.mean(), values.std()), rel=1e-12)
    assert found["samples"] == 36
    assert (found["threshold"] > found["v_max"]) == (branch == "upper")
    assert (found["k0"] == 1.0) == (branch == "capped")
    assert found["sigma_boost"] <= sigma0 * (1 + 1e-12)
    assert found["threshold"] <= found["v_min"] + 1 / found["k"] + 1e-9


@THRESHOLDS
def test_boost_and_its_gradient(threshold):
    bias = run(GaMD(threshold=threshold, sigma0=10.0, **STAGES), 1, 200).to(torch.float64)
    limit, k = bias.parameters["threshold"], bias.parameters["k"]
    x = np.array([limit - 70.0, limit - 30.0, limit - 1e-3, limit, limit + 40.0])
    energy, slope = boost(bias, x)
    below = np.maximum(limit - x, 0)
    np.testing.assert_allclose(energy, 0.5 * k * below**2, rtol=1e-12)
    np.testing.assert_allclose(slope, -k * below, rtol=1e-12)
    np.testing.assert_allclose((boost(bias, x + 1e-4)[0] - boost(bias, x - 1e-4)[0]) / 2e-4, slope, atol=1e-5)
    np.testing.assert_allclose(bias.value(x), energy, rtol=1e-12)
    # Energies keep their order: d(E + V)/dE stays positive above V_min.
    inside = np.linspace(bias.parameters["v_min"], limit, 100)
    assert (1 + boost(bias, inside)[1]).min() > -1e-9


def test_stages():
    bias = GaMD(**STAGES)
    seen = {}
    for step in range(1, 141):
        bias.update(step, energies(step))
        seen.setdefault(bias.stage, step)
        if step < 50:
            assert bias.parameters["k"] == 0
        if step == 20:
            assert bias.parameters["samples"] == 0
        if step in (50, 80, 90, 140):
            seen[step] = bias.parameters
    assert [seen[name] for name in ("conventional", "equilibration", "production")] == [1, 50, 90]
    assert seen[50]["k"] > 0
    assert seen[80]["samples"] < seen[90]["samples"]
    assert seen[90] == seen[140]


def test_stages_count_from_the_first_update_and_end_at_updates():
    late = GaMD(**STAGES)
    for step in range(1, 91):
        late.update(1_000_000 + step, energies(step))
    assert late.parameters == run(GaMD(**STAGES), 1, 90).parameters
    assert late.stage == "production"
    uneven = GaMD(preparation_steps=0, conventional_steps=25, equilibration_steps=0, pace=10)
    run(uneven, 1, 29)
    assert (uneven.stage, uneven.parameters["k"]) == ("conventional", 0)
    run(uneven, 30, 30)
    assert uneven.stage == "production"
    assert uneven.parameters["k"] > 0


def test_no_boost_before_there_are_statistics():
    bias = GaMD(**STAGES)
    energy, slope = boost(bias, [-1e30, -1e6, 0.0, 1e6])
    assert energy.tolist() == slope.tolist() == [0, 0, 0, 0]
    # Energies that do not differ, but for rounding, are no statistics either.
    for step in range(1, 81):
        bias.update(step, np.array([[-1e6], [-1e6 + 1e-9]]))
    assert bias.stage == "equilibration"
    assert bias.parameters["k"] == 0
    run(bias, 81, 90)
    assert bias.parameters["k"] > 0


def test_which_samples_count():
    bias, other = GaMD(**STAGES), GaMD(**STAGES)
    bias.update(0, energies(0) + 500.0)
    for step in range(1, 91):
        good = energies(step)
        bias.update(step, np.concatenate([good, [[np.nan], [np.inf]]]))
        other.update(step, good)
        if step % 10 == 0:
            bias.update(step + 5, good + 500.0)
    assert bias.parameters == other.parameters
    frozen = run(GaMD(**STAGES), 1, 60)
    before = frozen.parameters
    frozen.frozen = True
    run(frozen, 61, 90)
    assert frozen.parameters == before
    nothing = GaMD(**STAGES)
    for step in range(1, 91):
        nothing.update(step, np.full((3, 1), np.nan))
    assert (nothing.parameters["k"], nothing.parameters["samples"]) == (0, 0)


def test_large_energies():
    """At -1e6 kJ/mol single precision resolves 0.06 kJ/mol; statistics and boost are as good as at 0."""
    near = run(GaMD(sigma0=10.0, **STAGES), 1, 90, centre=0.0)
    far = run(GaMD(sigma0=10.0, **STAGES), 1, 90, centre=-1e6)
    for name in ("k", "k0", "sigma_v"):
        assert far.parameters[name] == pytest.approx(near.parameters[name], rel=1e-7)
    x = np.linspace(near.parameters["v_min"], near.parameters["v_max"], 50)
    energy, slope = boost(far, x - 1e6)
    expected = boost(near.to(torch.float64), x)
    np.testing.assert_allclose(energy, expected[0], atol=0.13 * np.abs(expected[1]).max())
    np.testing.assert_allclose(slope, expected[1], atol=0.13 * near.parameters["k"])


@THRESHOLDS
@pytest.mark.parametrize("at", [15, 45, 65, 100])
def test_continues_exactly_from_a_checkpoint(threshold, at):
    whole = run(GaMD(threshold=threshold, sigma0=10.0, **STAGES), 1, 120)
    again = run(GaMD(threshold=threshold, sigma0=10.0, **STAGES), 1, 75, centre=50.0)
    again.restore(run(GaMD(threshold=threshold, sigma0=10.0, **STAGES), 1, at).checkpoint())
    run(again, at + 1, 120)
    assert again.parameters == whole.parameters
    assert again.stage == whole.stage
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, again.state()[name])
    with pytest.raises(UqbiasError, match="holds"):
        again.restore({"nonsense": np.zeros(1)})
    again.reset()
    assert again.stage == "conventional"
    assert run(again, 1, 120).parameters == whole.parameters


@pytest.mark.parametrize("first", [0, 1])
def test_begins_anew_where_steps_do(first):
    """In a new run the potential may be another: neither its old statistics nor its old boost are of use."""
    old = run(GaMD(sigma0=10.0, **STAGES), 1, 120)
    kept, frozen, fresh = (GaMD(sigma0=10.0, **STAGES) for _ in range(3))
    for one in (kept, frozen):
        one.restore(old.checkpoint())
    frozen.frozen = True
    for one in (kept, frozen, fresh):
        run(one, first, 40, centre=-500.0)
    assert (kept.stage, kept.parameters["k"]) == ("conventional", 0)
    assert (frozen.stage, frozen.parameters) == ("production", old.parameters)
    for one in (kept, fresh):
        run(one, 41, 100, centre=-500.0)
    assert kept.parameters == fresh.parameters
    for name, tensor in fresh.state().items():
        assert torch.equal(tensor, kept.state()[name])


def test_of_another_model_in_a_campaign(alanine_model, alanine_frames, tmp_path):
    """With old_bias: keep not even the first step feels the boost made for the energies of the last model."""
    old = tmp_path / "old"
    old.mkdir()
    (old / "run.json").write_text('{"lowest_u": 0.0}')
    np.savez(old / "bias.npz", **BiasSum([run(GaMD(**STAGES), 1, 120, centre=1e4)]).checkpoint())
    alanine_model.save(tmp_path / "m.uqb")
    settings = check_campaign(
        {
            "system": {"structure": "-", "start": "-"},
            "md": {"walkers": 2, "steps": 100, "pace": 10, "observe_every": 10, "runner": "eager"},
            "bias": [{"kind": "gamd", **STAGES}],
        }
    )
    frames = alanine_frames.positions[:4]
    job = Exploration(
        model=tmp_path / "m.uqb",
        folder=tmp_path / "md",
        biases=tuple((section.kind, section.arguments()) for section in settings.bias),
        md=settings.md.model_copy(update={"steps": 20}),
        guards=settings.guards.model_copy(update={"driver_cap": None}),
        safe_frames=frames,
        safe_weights=np.full(4, 0.25),
        reference=frames[0],
        seed=0,
        earlier_bias=old / "bias.npz",
    )
    BiasedDynamics().explore(job)
    with np.load(tmp_path / "md" / "observations.npz") as seen:
        assert seen["bias"].tolist() == [[0, 0]] * 3
    with np.load(tmp_path / "md" / "bias.npz") as arrays:
        assert arrays["0.steps"].tolist() == [0, 20, 0]


def test_in_a_sum_and_moved():
    options = json.loads(json.dumps({"variables": ["solute_energy"], "threshold": "upper", "sigma0": 10.0, **STAGES}))
    bias = BiasSum([UpperWall(at=1.0), GaMD(**options)])
    assert bias.variables == ("driver", "solute_energy")
    for step in range(1, 91):
        bias.update(step, np.concatenate([np.zeros((6, 1)), energies(step)], axis=1))
    x = torch.tensor([[2.0, -990.0], [0.0, -980.0]])
    expected = bias.biases[1].value(x[:, 1].numpy()) + np.array([20.0, 0.0])
    np.testing.assert_allclose(bias.energy(x, bias.state()).numpy(), expected, rtol=1e-4)
    bias.to(torch.float64)
    np.testing.assert_allclose(bias.energy(x.double(), bias.state()).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": "loewer"},
        {"sigma0": 0.0},
        {"sigma0": float("inf")},
        {"pace": 0},
        {"pace": 2.7},
        {"conventional_steps": float("inf")},
        {"equilibration_steps": 10.5},
        {"temperature": -1.0},
        {"preparation_steps": -1},
        {"equilibration_steps": -1},
        {"conventional_steps": 100, "preparation_steps": 100},
        {"variables": ["energy", "driver"]},
    ],
)
def test_bad_options(wrong):
    with pytest.raises(UqbiasError, match=next(iter(wrong))):
        GaMD(**wrong)


# Physics: 64 walkers in a double well with a barrier of 6 kT and a bath of harmonic oscillators, which makes the
# distribution of energies nearly Gaussian, as that of a molecule is.


def well(x):
    return 5 * x**4 - 10 * x**2 + 1.5 * x


LEFT, TOP, RIGHT = np.sort(np.roots([20, 0, -20, 1.5]).real)
KT = (well(TOP) - well(LEFT)) / 6
OSCILLATORS = 10


def potential(x):
    return well(x[..., 0]) + 0.5 * 20.0 * (x[..., 1:] ** 2).sum(-1)


def sample(bias, steps, seed=0, walkers=64):
    """Langevin dynamics (BAOAB) with mass kT, so that thermal velocities are 1; [steps, W, 1 + OSCILLATORS]."""
    rng = np.random.default_rng(seed)
    dt, friction = 0.05, 1.0
    keep, kick = np.exp(-friction * dt), np.sqrt(1 - np.exp(-2 * friction * dt))

    def force(x):
        points = torch.tensor(x, requires_grad=True)
        energy = potential(points)
        (slope,) = torch.autograd.grad((energy + bias.energy(energy[:, None], bias.state())).sum(), points)
        return -slope.numpy()

    x = np.zeros((walkers, 1 + OSCILLATORS))
    x[:, 0] = LEFT
    v = rng.normal(size=x.shape)
    f = force(x)
    series = []
    for step in range(1, steps + 1):
        v += 0.5 * dt * f / KT
        x = x + 0.5 * dt * v
        v = keep * v + kick * rng.normal(size=x.shape)
        x = x + 0.5 * dt * v
        f = force(x)
        v += 0.5 * dt * f / KT
        bias.update(step, potential(x)[:, None])
        series.append(x)
    return np.array(series)


def crossings(series):
    """Number of passages from the bottom of one well to that of the other."""
    side = np.where(series < LEFT, -1.0, np.where(series > RIGHT, 1.0, np.nan))
    return sum(int((np.diff(walker[np.isfinite(walker)]) != 0).sum()) for walker in side.T)


@pytest.mark.slow
# The upper threshold boosts so much that the statistics of a boosted stage lead back to the lower one; without such a
# stage the boost's spread is promised by the conventional stage alone.
@pytest.mark.parametrize(
    ("threshold", "sigma0", "equilibration_steps", "excess"), [("lower", 1.6, 2000, 1.0), ("upper", 1.9, 0, 1.15)]
)
def test_boost_flattens_the_well_and_can_be_reweighted(threshold, sigma0, equilibration_steps, excess):
    bias = GaMD(
        threshold=threshold,
        sigma0=sigma0 * KT,
        preparation_steps=200,
        conventional_steps=2000,
        equilibration_steps=equilibration_steps,
        pace=5,
        temperature=KT / GAS_CONSTANT,
    ).to(torch.float64)
    start = 2000 + equilibration_steps
    series = sample(bias, start + 5000)
    assert bias.stage == "production"
    found = bias.parameters
    assert (found["threshold"] > found["v_max"]) == (threshold == "upper")
    assert found["sigma_boost"] <= sigma0 * KT * (1 + 1e-9)
    before, after = crossings(series[:2000, :, 0]) / 2000, crossings(series[start:, :, 0]) / 5000
    assert after > 3 * before > 0
    # The barrier as it is felt with the oscillators at their mean energy.
    bath = 0.5 * OSCILLATORS * KT
    top, bottom = (well(x) + bath + bias.value([well(x) + bath]).item() for x in (TOP, LEFT))
    assert 0 < top - bottom < 0.8 * 6 * KT
    production = series[start:]
    boost = bias.value(potential(production).ravel())
    assert 0.5 * sigma0 < boost.std() / KT <= excess * sigma0
    x = production[..., 0].ravel()
    edges = np.linspace(-1.5, 1.5, 61)
    centres = 0.5 * (edges[1:] + edges[:-1])
    low = well(centres) - well(LEFT) < 6 * KT
    errors = []
    for weights in (np.exp(boost / KT), None):
        histogram, _ = np.histogram(x, bins=edges, weights=weights)
        difference = -np.log(histogram[low]) - well(centres[low]) / KT
        errors.append(np.sqrt(np.mean((difference - difference.mean()) ** 2)))
    assert errors[0] < 0.2 < errors[1]
