"""OPES against its formulas: kernels, weights, merging, the grid, and a free energy that is known."""

import math

import numpy as np
import pytest
import torch

from uqbias.bias.base import BiasSum
from uqbias.bias.opes import OPES
from uqbias.errors import UqbiasError
from uqbias.units import kt

torch.set_num_threads(1)
KT = kt(300.0)
TURN = 2 * math.pi
PLAIN = {"barrier": 30.0, "sigma": 0.4, "pace": 10}
TWO = {"barrier": 25.0, "sigma": [0.4, 0.3], "pace": 10, "variables": ["driver", "phi"], "periods": [None, TURN]}
CASES = {
    "plain": PLAIN,
    "exploratory": {**PLAIN, "exploratory": True},
    "flat": {**PLAIN, "biasfactor": math.inf},
    "reflected": {**PLAIN, "reflect_at": -0.5},
    "periodic": {**TWO},
    "exploratory-periodic": {**TWO, "exploratory": True},
}


def series(dimensions, n, walkers=3, seed=0):
    """Values [n, W, D] that wander and come back."""
    rng = np.random.default_rng(seed)
    angle = np.cumsum(rng.normal(0, 0.25, (n, walkers, dimensions)), axis=0)
    return 1.5 * np.sin(angle) + 0.5 + rng.normal(0, 0.1, angle.shape)


def filled(n=150, walkers=3, seed=0, **options):
    bias = OPES(**options).to(torch.float64)
    for index, x in enumerate(series(len(bias.variables), n, walkers, seed)):
        bias.update(10 * index, x)
    return bias


def difference(bias, a, b):
    apart = a - b
    for d, period in enumerate(bias.periods):
        if period is not None:
            apart[..., d] = (apart[..., d] + period / 2) % period - period / 2
    return apart


def explicit_sum(bias, x):
    """Σ_k G_k at x [n, D], from the records of the kernels."""
    kernels, total = bias.kernels, np.zeros(len(x))
    bound = bias.reflect_at[0]
    for centres in (kernels["centre"],) if bound is None else (kernels["centre"], 2 * bound - kernels["centre"]):
        squared = np.square(difference(bias, x[:, None], centres) / kernels["sigma"]).sum(-1)
        values = kernels["height"] * (np.exp(-squared / 2) - math.exp(-(bias.cutoff**2) / 2))
        total += np.where(squared < bias.cutoff**2, values, 0.0).sum(1)
    return total


def explicit_bias(bias, x):
    """Normalised by the mean over the kernel centres, which is Z times the norm."""
    density = explicit_sum(bias, x) / explicit_sum(bias, bias.kernels["centre"]).mean()
    factor = bias.biasfactor - 1 if bias.exploratory else 1 - 1 / bias.biasfactor
    return KT * factor * np.log(density + bias.epsilon)


def energy_and_slope(bias, x, state=None):
    points = torch.tensor(x, requires_grad=True)
    energy = bias.energy(points, state or bias.state())
    (slope,) = torch.autograd.grad(energy.sum(), points)
    return energy.detach().numpy(), slope.numpy()


def somewhere(bias, n=2000, seed=1):
    low, high = (0, 3) if bias.reflect_at[0] is not None else (-3, 4)
    x = np.random.default_rng(seed).uniform(low, high, (n, len(bias.variables)))
    if len(bias.variables) > 1:
        x[:, 1] *= 2  # through more than one period
    return x


@pytest.mark.parametrize("case", CASES)
def test_energy_in_the_graph_is_that_of_the_explicit_kernels(case):
    bias = filled(**CASES[case])
    x = somewhere(bias)
    energy, slope = energy_and_slope(bias, x)
    expected = explicit_bias(bias, x)
    assert np.ptp(expected) > 20.0
    # Where only ends of kernels reach, log P magnifies what interpolation does there; see POINTS_PER_SIGMA_MIN.
    error = np.abs(energy - expected)
    assert np.median(error) < 1e-5
    assert np.quantile(error, 0.99) < 2e-3
    assert error.max() < 0.5
    np.testing.assert_allclose(bias.value(x), energy, atol=1e-9)
    step = 1e-4
    for d in range(x.shape[1]):
        shift = step * np.eye(x.shape[1])[d]
        numeric = (explicit_bias(bias, x + shift) - explicit_bias(bias, x - shift)) / (2 * step)
        # A kernel's end is a corner of V.
        assert np.quantile(np.abs(slope[:, d] - numeric), 0.98) < 1e-2 * np.abs(numeric).max()


@pytest.mark.parametrize("case", ["plain", "exploratory-periodic"])
def test_force_is_the_derivative_of_the_energy(case):
    bias = filled(**CASES[case])
    x = torch.tensor(somewhere(bias, 200), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: bias.energy(x, bias.state()), x, eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("case", ["plain", "exploratory-periodic"])
def test_single_precision_agrees_with_double(case):
    bias = filled(**CASES[case])
    x = somewhere(bias, 500)
    energy, slope = energy_and_slope(bias, x)
    bias.to(torch.float32)
    assert all(tensor.dtype == torch.float32 for name, tensor in bias.state().items() if name != "shape")
    single, single_slope = energy_and_slope(bias, x.astype(np.float32))
    assert np.abs(single - energy).max() < 2e-3
    assert np.quantile(np.abs(single_slope - slope), 0.98) < 2e-3 * np.abs(slope).max()


def test_the_formulas_step_by_step_without_merging():
    """Weights, n_eff, sigma, heights and Z of three walkers, written out once more."""
    gamma = 30.0 / KT
    bias = OPES(**PLAIN, compression_threshold=0.0, sigma_min=0.15)
    epsilon = math.exp(-30.0 / KT / (1 - 1 / gamma))
    assert bias.epsilon == pytest.approx(epsilon, rel=1e-12)
    assert bias.cutoff == pytest.approx(math.sqrt(-2 * math.log(epsilon)), rel=1e-12)
    assert bias.neff == pytest.approx(1.0, rel=1e-4)
    weights, centres, sigmas, heights = [math.exp(-30.0 / KT)], np.empty((0, 1)), [], []
    for index, x in enumerate(series(1, 30), start=1):
        now = explicit_bias(bias, x) if index > 1 else np.full(3, -30.0)
        bias.update(10 * index, x)
        new = np.exp(now / KT)
        weights += list(new)
        n = (1 + sum(weights)) ** 2 / (1 + np.square(weights[1:]).sum() + weights[0] ** 2)
        sigma = max(0.15, 0.4 * (n * 3 / 4) ** (-1 / 5))
        centres, sigmas, heights = np.concatenate([centres, x]), [*sigmas, *[sigma] * 3], [*heights, *new * 0.4 / sigma]
        np.testing.assert_allclose(bias.neff, n, rtol=1e-12)
        assert bias.rct == pytest.approx(KT * math.log(sum(weights) / (1 + 3 * index)), rel=1e-12)
    np.testing.assert_array_equal(bias.kernels["centre"], centres)
    np.testing.assert_allclose(bias.kernels["sigma"][:, 0], sigmas, rtol=1e-12)
    np.testing.assert_allclose(bias.kernels["height"], heights, rtol=1e-10)
    assert sigmas[-1] < 0.3
    zed = explicit_sum(bias, centres).mean() / sum(weights)
    assert bias.zed == pytest.approx(zed, rel=1e-10)


def test_exploratory_kernels():
    bias = OPES(**PLAIN, exploratory=True, compression_threshold=0.0, biasfactor=9.0)
    for index, x in enumerate(series(1, 10), start=1):
        bias.update(10 * index, x)
    # Widths of √γ sigma at first, Silverman's rule for the number of samples, heights of equal area.
    expected = [1.2 * ((1 + 3 * (1 + index // 3)) * 3 / 4) ** (-1 / 5) for index in range(30)]
    np.testing.assert_allclose(bias.kernels["sigma"][:, 0], expected, rtol=1e-12)
    np.testing.assert_allclose(bias.kernels["height"] * bias.kernels["sigma"][:, 0], 1.2, rtol=1e-12)
    assert bias.zed == pytest.approx(explicit_sum(bias, bias.kernels["centre"]).mean() / 31, rel=1e-10)
    assert bias.epsilon == pytest.approx(math.exp(-30.0 / KT / 8), rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["plain", "periodic", "reflected"])
def test_z_and_the_grid_after_many_merges(case):
    """Both are kept up to date by differences, which must not drift."""
    bias = filled(n=800, **CASES[case])
    assert len(bias.kernels) < 400  # of 2397
    assert bias._density.sum_at_centres == pytest.approx(explicit_sum(bias, bias.kernels["centre"]).sum(), rel=1e-10)
    at = np.stack(np.meshgrid(*(bias.grid.points(d) for d in range(bias.grid.dimensions)), indexing="ij"), axis=-1)
    at = at.reshape(-1, bias.grid.dimensions)
    if case == "reflected":
        at = at[at[:, 0] > -0.5]
    at = at[:: max(1, len(at) // 5000)]
    exact = explicit_sum(bias, at)
    np.testing.assert_allclose(bias.grid.value(at), exact, rtol=1e-9, atol=1e-14 * exact.max())


def test_merging_keeps_height_mean_and_variance():
    options = {**PLAIN, "sigma_min": 0.4}
    merged, apart = OPES(**options), OPES(**options, compression_threshold=0.0)
    x = np.array([[0.0], [0.3], [5.0], [0.1]])
    for bias in (merged, apart):
        bias.update(10, x)
    assert len(apart.kernels) == 4
    assert len(merged.kernels) == 2

    def moments(kernels):
        h, c, s = kernels["height"], kernels["centre"][:, 0], kernels["sigma"][:, 0]
        return np.array([h.sum(), (h * c).sum(), (h * (s**2 + c**2)).sum()])

    np.testing.assert_allclose(moments(merged.kernels), moments(apart.kernels), rtol=1e-12)
    near = merged.kernels[0]
    assert near["centre"][0] == pytest.approx(0.4 / 3)
    assert near["sigma"][0] ** 2 == pytest.approx(apart.kernels["sigma"][0, 0] ** 2 + np.var([0.0, 0.3, 0.1]))


def test_a_merged_kernel_is_merged_again():
    bias = OPES(**{**PLAIN, "sigma_min": 0.4})
    bias.update(10, np.array([[0.0], [0.7]]))
    assert len(bias.kernels) == 2
    first = bias.kernels["height"].copy()
    # Nearest to the second kernel, which it draws within 0.4 of the first: it is the heaviest by far.
    bias.update(20, np.array([[0.36]]))
    assert len(bias.kernels) == 1
    assert bias.kernels["centre"][0, 0] == pytest.approx(0.36, abs=1e-3)
    assert bias.kernels["height"][0] > 1e3 * first.sum()


def test_kernels_merge_and_act_across_the_period():
    bias = OPES(barrier=20.0, sigma=0.3, pace=1, variables=["phi"], periods=[TURN]).to(torch.float64)
    bias.update(1, np.array([[math.pi - 0.05]]))
    bias.update(2, np.array([[-math.pi + 0.05]]))
    assert len(bias.kernels) == 1
    assert abs(bias.kernels["centre"][0, 0]) == pytest.approx(math.pi, abs=0.05)
    assert bias.kernels["sigma"][0, 0] < 0.35
    x = np.linspace(-3, 3, 101)[:, None]
    np.testing.assert_allclose(bias.value(x + TURN), bias.value(x), atol=1e-9)
    np.testing.assert_allclose(bias.value(-math.pi - x * 0.1), bias.value(math.pi - x * 0.1), atol=1e-9)
    assert bias.value(np.array([[math.pi]]))[0] > bias.value(np.array([[2.0]]))[0] + 5.0


def test_compression_hardly_changes_the_bias():
    merged, apart = filled(n=150, **PLAIN), filled(n=150, **PLAIN, compression_threshold=0.0)
    assert len(merged.kernels) < 30
    assert len(apart.kernels) == 149 * 3
    x = np.linspace(-0.8, 1.8, 101)[:, None]
    assert np.abs(merged.value(x) - apart.value(x)).max() < 0.5 * KT
    assert np.ptp(apart.value(x)) > 2 * KT


def test_order_of_walkers():
    x = series(1, 60, walkers=5)
    one, other = (OPES(**PLAIN, compression_threshold=0.0) for _ in range(2))
    merged, reversed_ = (OPES(**PLAIN) for _ in range(2))
    for index, values in enumerate(x, start=1):
        for bias, rows in ((one, values), (other, values[::-1]), (merged, values), (reversed_, values[::-1])):
            bias.update(10 * index, rows)
    at = np.linspace(-2, 3, 301)[:, None]
    np.testing.assert_allclose(one.value(at), other.value(at), atol=1e-9)
    # Kernels are merged one after the other, as in PLUMED: the order is felt, but little.
    assert np.abs(merged.value(at) - reversed_.value(at))[60:-60].max() < 1.0


def test_tensors_change_in_place_until_the_grid_grows():
    bias = OPES(**{**PLAIN, "pace": 1})
    total = BiasSum([bias])
    assert bias.value(np.array([[0.0]]))[0] == pytest.approx(-30.0)
    bias.update(1, np.array([[0.5]]))
    state, tensors = bias.state(), dict(bias.state())
    bias.update(2, np.array([[0.9]]))
    assert bias.state() is state
    assert all(state[name] is tensor for name, tensor in tensors.items())
    before = bias.kernels.copy()
    bias.update(3, np.array([[60.0], [-20.0]]))
    assert bias.state() is state
    assert state["table"] is not tensors["table"]
    assert len(bias.kernels) == len(before) + 2
    np.testing.assert_array_equal(state["table"].numpy(), bias.grid.table.reshape(-1, 2).astype(np.float32))
    x = np.array([[0.5], [60.0], [-20.0], [10.0], [1e6], [-1e30]])
    energy, slope = energy_and_slope(bias, x.astype(np.float32), bias.state())
    np.testing.assert_allclose(energy, explicit_bias(bias, x), atol=1e-3)
    assert energy[3:] == pytest.approx([-30.0] * 3, abs=1e-3)
    assert (slope[3:] == 0).all()
    both = total.energy(torch.tensor(x[:3], dtype=torch.float32), total.state())
    np.testing.assert_allclose(both.numpy(), energy[:3], atol=1e-5)


def test_a_runaway_variable_is_refused_and_nothing_lost():
    bias = filled(n=20, **{**PLAIN, "sigma_min": 0.05})
    before = bias.checkpoint()
    with pytest.raises(UqbiasError, match="run away"):
        bias.update(1000, np.array([[1.0], [1e9]]))
    after = bias.checkpoint()
    assert all(np.array_equal(before[name], after[name], equal_nan=True) for name in before)


def test_when_kernels_are_left_out():
    bias = OPES(**TWO)
    bias.update(0, np.ones((1, 2)))
    bias.update(7, np.ones((1, 2)))
    bias.update(10, np.array([[np.nan, 1.0], [1.0, np.inf]]))
    assert len(bias.kernels) == 0
    bias.update(20, np.array([[np.nan, 1.0], [1.0, 1.0]]))
    assert len(bias.kernels) == 1
    # One sample and the one that is there from the start.
    assert bias.rct == pytest.approx(KT * math.log(2 * math.exp(-25.0 / KT) / 2))
    bias.frozen = True
    bias.update(30, np.zeros((1, 2)))
    assert len(bias.kernels) == 1


@pytest.mark.parametrize("exploratory", [False, True])
def test_reflection_is_a_run_with_mirrored_walkers(exploratory):
    options = {"barrier": 30.0, "sigma": 0.4, "sigma_min": 0.4, "pace": 1, "exploratory": exploratory}
    options |= {"compression_threshold": 0.0, "biasfactor": 10.0}
    if exploratory:
        options["sigma_min"] = 0.4 * math.sqrt(10)
    plain, reflected = OPES(**options), OPES(**options, reflect_at=1.0)
    for step, x in enumerate(1.0 + np.random.default_rng(0).exponential(0.5, (40, 1, 1)), start=1):
        reflected.update(step, x)
        plain.update(step, np.concatenate([x, 2.0 - x]))
    x = np.linspace(1.0, 4.0, 201)[:, None]
    assert len(reflected.kernels) == len(plain.kernels) / 2
    np.testing.assert_allclose(reflected.value(x), plain.value(x), atol=1e-8)
    x = np.array([[1.0], [1.3], [0.7], [-1.0]])
    energy, slope = energy_and_slope(reflected.to(torch.float64), x)
    np.testing.assert_allclose(energy, plain.value(x), atol=1e-4)
    assert slope[0, 0] == pytest.approx(0.0, abs=1e-3)
    assert slope[1, 0] == pytest.approx(-slope[2, 0])


@pytest.mark.parametrize("case", ["plain", "exploratory-periodic"])
def test_checkpoint_continues_exactly(case, tmp_path):
    bias = filled(n=60, seed=3, **CASES[case])
    np.savez(tmp_path / "bias.npz", **bias.checkpoint())
    again = OPES(**CASES[case]).to(torch.float64)
    again.restore(dict(np.load(tmp_path / "bias.npz")))
    for index, x in enumerate(series(len(bias.variables), 60, seed=4)):
        for one in (bias, again):
            one.update(10 * index + 10, x * 1.5)
    first, second = bias.checkpoint(), again.checkpoint()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    for name, tensor in bias.state().items():
        assert torch.equal(tensor, again.state()[name])
    assert (bias.neff, bias.zed, bias.rct) == (again.neff, again.zed, again.rct)


def test_checkpoints_that_do_not_fit():
    saved = filled(n=10, **PLAIN).checkpoint()
    with pytest.raises(UqbiasError, match=r"barrier 30\.0, this one has 40\.0"):
        OPES(**{**PLAIN, "barrier": 40.0, "biasfactor": 30.0 / KT}).restore(saved)
    with pytest.raises(UqbiasError, match="exploratory"):
        OPES(**PLAIN, exploratory=True).restore(saved)
    with pytest.raises(UqbiasError, match=r"sigma \[0\.4\]"):
        OPES(**{**TWO, "barrier": 30.0}).restore(saved)
    with pytest.raises(UqbiasError, match="one of opes holds"):
        OPES(**PLAIN).restore({"table": np.zeros((4, 2)), "hill_step": np.zeros(3)})


def test_reset():
    bias = filled(**PLAIN)
    bias.reset()
    assert len(bias.kernels) == 0
    assert bias.value(np.array([[0.5]]))[0] == pytest.approx(-30.0)
    fresh = OPES(**PLAIN).to(torch.float64)
    for one in (bias, fresh):
        one.update(10, np.array([[0.3], [2.0]]))
    np.testing.assert_array_equal(bias.kernels, fresh.kernels)
    assert bias.neff == fresh.neff


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"barrier": 0.0}, "barrier 0"),
        ({"barrier": -1.0}, "barrier -1"),
        ({"barrier": 2.0}, "barrier above k_B T"),
        ({"barrier": 5000.0}, "barrier 5000"),
        ({"biasfactor": 1.0}, "biasfactor 1"),
        ({"biasfactor": math.inf, "exploratory": True}, "exploratory opes with biasfactor inf"),
        ({"sigma": 0.0}, "sigma 0"),
        ({"sigma": [0.1, 0.2]}, "2 values of sigma"),
        ({"sigma_min": 0.5}, r"sigma_min 0\.5 above"),
        ({"sigma_min": -0.1}, "sigma_min -0"),
        ({"sigma_min": [0.1, 0.1]}, "2 values of sigma_min"),
        ({"pace": 0}, "pace 0"),
        ({"temperature": 0.0}, "temperature 0"),
        ({"compression_threshold": -1.0}, "compression_threshold -1"),
        ({"compression_threshold": 9.0}, "compression_threshold 9"),
        ({"periods": [None, None]}, "2 values of periods"),
        ({"periods": [TURN], "reflect_at": 0.0}, "reflect_at"),
        ({"variables": ["a", "b", "c", "d"], "sigma": 1.0}, "at most 3 items"),
    ],
)
def test_bad_options(wrong, says):
    with pytest.raises(UqbiasError, match=says):
        OPES(**{**PLAIN, **wrong})


def double_well(x):
    """kJ/mol, barrier 10 k_B T."""
    return 3.8 * (5 * x**4 - 10 * x**2 + 1.5 * x)


def metropolis(bias, steps, walkers=8, seed=0):
    """Walk in the double well under the bias; visited positions and their bias, [n]."""
    rng, grid = np.random.default_rng(seed), np.linspace(-2.2, 2.2, 2001)
    x, visited, weights = np.full(walkers, -1.0), [], []
    for start in range(0, steps, bias.pace):
        acting = bias.value(grid[:, None])
        total = (double_well(grid) + acting) / KT
        now = np.interp(x, grid, total)
        for _ in range(bias.pace):
            trial = x + rng.normal(0, 0.15, walkers)
            then = np.interp(trial, grid, total)
            accepted = (np.log(rng.random(walkers)) < now - then) & (np.abs(trial) < 2.2)
            x, now = np.where(accepted, trial, x), np.where(accepted, then, now)
            visited.append(x)
            weights.append(np.interp(x, grid, acting))
        bias.update(start + bias.pace, x[:, None])
    return np.concatenate(visited), np.concatenate(weights)


@pytest.mark.parametrize("exploratory", [False, True])
def test_free_energy_of_a_double_well(exploratory):
    bias = OPES(barrier=12 * KT, sigma=0.1, pace=100, exploratory=exploratory)
    with pytest.raises(UqbiasError, match="no kernels"):
        bias.free_energy()
    x, acting = metropolis(bias, 40000)
    centres = np.linspace(-1.6, 1.6, 81)
    truth = double_well(centres)
    low = truth - truth.min() < 10 * KT

    def error(energy):
        difference = (energy - truth)[low] / KT
        return np.sqrt(np.square(difference - difference.mean()).mean())

    assert error(bias.free_energy(centres)[1]) < 0.3
    # Umbrella-sampling weights of the second half, as both papers recommend.
    half = slice(len(x) // 2, None)
    counts, _ = np.histogram(x[half], np.append(centres - 0.02, centres[-1] + 0.02), weights=np.exp(acting[half] / KT))
    assert error(-KT * np.log(np.maximum(counts, 1e-300))) < 0.3
    everywhere, energy = bias.free_energy()
    assert everywhere.shape == (len(energy), 1)
    assert np.nanmin(energy) == 0
    assert bias.free_energy([[50.0], [-1.0]])[1][0] == np.inf
