"""Extended-system ABF, WTM-eABF and CZAR: tables, bookkeeping, and the free energy of a double well."""

import json

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from uqbias.bias.base import BiasSum
from uqbias.bias.czar import czar, czar_series
from uqbias.bias.eabf import ExtendedABF, WellTemperedExtendedABF
from uqbias.bias.gamd import GaMD
from uqbias.compile.fused import FusedEvaluator
from uqbias.errors import UqbiasError
from uqbias.units import GAS_CONSTANT, kt

torch.set_num_threads(1)

BOTH = pytest.mark.parametrize("cls", [ExtendedABF, WellTemperedExtendedABF])


def well(x):
    return 5 * x**4 - 10 * x**2 + 1.5 * x


LEFT, TOP, RIGHT = np.sort(np.roots([20, 0, -20, 1.5]).real)
KT = (well(TOP) - well(LEFT)) / 10
TEMPERATURE = KT / GAS_CONSTANT


def filled(cls=ExtendedABF, seed=0, steps=60, walkers=8, first=1, bias=None, **options):
    """A bias after ``steps`` updates with random walkers; the same for the same seed."""
    if bias is None:
        bias = cls(**{"variables": ["x"], "sigma": 0.4, "bin_width": 0.25, "full_samples": 6, "pace": 2, **options})
    rng = np.random.default_rng(seed)
    for step in range(1, first + steps):
        extended = rng.normal(1.0, 2.0, walkers)
        x = np.stack([extended + rng.normal(0, 0.4, walkers), extended], axis=1)
        if step >= first:
            bias.update(step, x)
    return bias


def gradient(bias, x):
    points = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    energy = bias.energy(points, bias.state())
    return energy.detach().numpy(), torch.autograd.grad(energy.sum(), points)[0].numpy()


@BOTH
@pytest.mark.parametrize("periods", [None, [2 * np.pi]])
def test_gradient_is_that_of_the_energy(cls, periods):
    bias = filled(cls, periods=periods).to(torch.float64)
    rng = np.random.default_rng(1)
    extended = rng.uniform(-9, 9, 200)
    x = np.stack([extended + rng.normal(0, 0.5, 200), extended], axis=1)
    _, slopes = gradient(bias, x)
    numbers = np.empty_like(slopes)
    for d in range(2):
        shift = np.eye(2)[d] * 1e-6
        numbers[:, d] = (gradient(bias, x + shift)[0] - gradient(bias, x - shift)[0]) / 2e-6
    np.testing.assert_allclose(slopes, numbers, atol=1e-6)
    assert np.abs(slopes - bias.coupling * (x[:, :1] - x[:, 1:]) * [1, -1]).max() > 0.5


def test_slope_is_the_ramped_mean_force():
    bias = ExtendedABF(variables=["x"], sigma=0.5, bin_width=0.2, full_samples=4, pace=1).to(torch.float64)
    k = kt(300.0) / 0.25
    bias.update(1, np.array([[0.5, 0.4], [0.9, 0.45], [1.3, 0.8]]))
    bias.update(2, np.array([[0.1, 0.35], [0.0, 0.3001], [0.2, 0.41], [1.3, 0.8]]))
    mean = k * np.mean([0.5 - 0.4, 0.9 - 0.45, 0.1 - 0.35, 0.0 - 0.3001, 0.2 - 0.41])
    at = np.array([0.4, 0.8, 0.6, 0.5, 2.0])
    _, slopes = gradient(bias, np.stack([at, at], axis=1))
    full, half = mean, 0.5 * k * 0.5
    np.testing.assert_allclose(slopes[:, 1], [full, half, 0, full / 2, 0], atol=1e-9)
    # A trapezium under the slopes, flat on both sides.
    steps = bias.value(np.array([-5.0, 0.2, 0.4, 0.6, 0.8, 1.0, 9.0]))
    np.testing.assert_allclose(np.diff(steps), 0.1 * np.array([0, full, full, half, half, 0]), atol=1e-9)
    assert steps.min() == pytest.approx(0.0, abs=1e-12)


def test_coupling_alone_before_the_first_sample():
    bias = ExtendedABF(variables="phi", sigma=0.1, periods=2 * np.pi).to(torch.float64)
    assert bias.variables == ("phi", "extended_phi")
    (extended,) = bias.extended
    assert (extended.name, extended.of, extended.mass) == ("extended_phi", "phi", 0.5)
    energy, slopes = gradient(bias, [[3.1, -3.1], [0.3, 0.1], [0.3, 0.1 + 8 * np.pi]])
    gap = 2 * np.pi - 6.2
    np.testing.assert_allclose(energy, kt(300.0) / 0.02 * np.array([gap**2, 0.04, 0.04]), rtol=1e-9)
    np.testing.assert_allclose(slopes[0], kt(300.0) / 0.01 * np.array([-gap, gap]), rtol=1e-9)


@BOTH
def test_ring_closes_and_repeats(cls):
    period = 2 * np.pi
    bias = cls(variables=["phi"], periods=[period], sigma=0.3, bin_width=0.3, full_samples=5, pace=1).to(torch.float64)
    rng = np.random.default_rng(3)
    for step in range(1, 200):
        # λ drifts turns away, as an OpenMM particle does.
        extended = rng.uniform(-3 * np.pi, 5 * np.pi, 6)
        xi = extended + 0.2 + 0.1 * np.cos(extended)
        bias.update(step, np.stack([(xi + np.pi) % period - np.pi, extended], axis=1))
    assert bias.grid.shape == (21,)
    assert bias.grid.spacing[0] == pytest.approx(period / 21)
    at = np.linspace(-np.pi, np.pi, 97)
    x = np.stack([at, at], axis=1)
    energy, slopes = gradient(bias, x)
    assert np.ptp(energy) > 1.0
    assert energy[0] == pytest.approx(energy[-1], abs=1e-9)
    assert slopes[0, 1] == pytest.approx(slopes[-1, 1], abs=1e-9)
    for turns in ((2, 0), (0, -1), (-1, 3)):
        again = gradient(bias, x + period * np.array(turns))
        np.testing.assert_allclose(again[0], energy, atol=1e-9)
        np.testing.assert_allclose(again[1], slopes, atol=1e-8)
    if cls is WellTemperedExtendedABF:
        assert np.abs(bias.metadynamics.hills["centre"]).max() <= np.pi
    else:
        # 0.1 cos φ has a mean of zero around the ring, the 0.2 has gone.
        np.testing.assert_allclose(slopes[:, 1], bias.coupling * 0.1 * np.cos(at), atol=0.05 * bias.coupling * 0.1)


@BOTH
def test_grid_grows_without_bound_and_without_loss(cls):
    bias = cls(variables=["x"], sigma=0.5, bin_width=0.1, full_samples=1, pace=1)
    bias.update(1, np.array([[0.3, 0.1]]))
    state, table = bias.state(), bias.state()["table"]
    near = np.array([0.0, 0.1, 0.2])
    bias.update(2, np.array([[0.4, 0.2]]))
    assert bias.state() is state
    assert bias.state()["table"] is table
    rises = np.diff(bias.value(near))
    bias.update(3, np.array([[500.5, 500.0], [-80.0, -80.0]]))
    bias.update(4, np.array([[500.5, 500.0]]))
    assert state["table"] is not table
    assert bias.state() is state
    if cls is ExtendedABF:
        np.testing.assert_allclose(np.diff(bias.value(near)), rises, atol=1e-9)
        assert np.ptp(bias.value(np.linspace(1.0, 499.0, 50))) < 1e-9
        assert bias.value(np.array([501.0])) - bias.value(np.array([499.0])) == pytest.approx(0.1 * bias.coupling * 0.5)
    np.testing.assert_array_equal(state["table"].numpy(), bias.grid.table.astype(np.float32))
    with pytest.raises(UqbiasError, match="run away"):
        bias.update(5, np.array([[0.1, 1e9]]))
    with pytest.raises(UqbiasError, match="run away"):
        bias.update(5, np.array([[1e30, 0.1]]))


@BOTH
def test_which_samples_count(cls):
    bias = cls(variables=["x"], pace=10, **({"hill_pace": 15} if cls is WellTemperedExtendedABF else {}))
    assert bias.pace == (5 if cls is WellTemperedExtendedABF else 10)
    row = np.array([[0.1, 0.2]])
    for step in (0, 3, 14):
        bias.update(step, row)
    bias.update(10, np.array([[np.nan, 1.0], [1.0, np.nan], [np.inf, 1.0]]))
    with pytest.raises(UqbiasError, match="no samples of 'x'"):
        bias.free_energy()
    bias.update(20, np.array([[np.nan, 1.0], [0.1, 0.2]]))
    bias.update(15, row)
    bias.frozen = True
    bias.update(30, row)
    assert bias.free_energy()[1].tolist() == [0.0]
    assert bias.checkpoint()["force_weights"].sum() == bias.checkpoint()["deviation_weights"].sum() == 1
    if cls is WellTemperedExtendedABF:
        assert bias.metadynamics.hills["step"].tolist() == [15]
        assert bias.metadynamics.hills["centre"].tolist() == [[0.2]]


@BOTH
@pytest.mark.parametrize("periods", [None, [2 * np.pi]])
def test_continues_exactly_from_a_checkpoint(cls, periods):
    whole = filled(cls, steps=60, periods=periods)
    part = filled(cls, steps=31, periods=periods)
    again = filled(cls, seed=9, steps=10, periods=periods)
    again.restore(part.checkpoint())
    filled(bias=again, steps=29, first=32)
    assert set(whole.state()) == set(again.state())
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, again.state()[name]), name
    for one, other in zip(whole.free_energy(), again.free_energy(), strict=True):
        np.testing.assert_array_equal(one, other)
    for name, array in whole.checkpoint().items():
        np.testing.assert_array_equal(array, again.checkpoint()[name])
    with pytest.raises(UqbiasError, match="holds"):
        again.restore({"nonsense": np.zeros(1)})
    with pytest.raises(UqbiasError, match=r"sigma 0\.4, this one has 0\.3"):
        cls(variables=["x"], sigma=0.3, bin_width=0.25, periods=periods).restore(part.checkpoint())


@BOTH
def test_reset_is_as_new(cls):
    bias = filled(cls)
    bias.reset()
    new = cls(variables=["x"], sigma=0.4, bin_width=0.25, full_samples=6, pace=2)
    for name, tensor in new.state().items():
        assert torch.equal(tensor, bias.state()[name]), name
    with pytest.raises(UqbiasError, match="no samples"):
        bias.free_energy()


@BOTH
def test_compiled_graph_takes_a_grown_table(cls):
    """Traced once with the first table; used with a larger one, in single precision, against double precision."""
    bias = cls(variables=["x"], sigma=0.4, bin_width=0.25, full_samples=6, pace=2)
    names = list(bias.state())

    def force(x, *tensors):
        with torch.enable_grad():
            points = x.detach().requires_grad_()
            energy = bias.energy(points, dict(zip(names, tensors, strict=True)))
            (slope,) = torch.autograd.grad(energy.sum(), points)
        return energy, slope

    graph = make_fx(force, tracing_mode="symbolic")(torch.rand(3, 2), *bias.state().values())
    filled(bias=bias, steps=100)
    bias.update(102, np.array([[30.2, 30.0]]))
    x = torch.rand(3, 2) * 8 - 3
    energy, slope = graph(x, *(bias.state()[name] for name in names))
    expected = gradient(bias.to(torch.float64), x.double().numpy())
    np.testing.assert_allclose(energy.numpy(), expected[0], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(slope.numpy(), expected[1], rtol=1e-4, atol=1e-3)


def test_forces_on_atoms_and_on_the_extended_variable(tiny_model, tiny_positions):
    """WTM-eABF on u and GaMD on E in the fused graph, after both tables have grown, against central differences."""
    bias = BiasSum(
        [
            WellTemperedExtendedABF(sigma=0.3, pace=1, hill_pace=2, full_samples=3, height=2.0),
            GaMD(preparation_steps=0, conventional_steps=20, equilibration_steps=0, sigma0=5.0),
        ]
    )
    evaluator = FusedEvaluator(tiny_model, bias, 3, runner="torchscript", dtype=torch.float64)
    assert evaluator.input_names == ("extended_driver",)
    prediction = tiny_model(tiny_positions)
    driver, energy = prediction.driver.detach().numpy(), prediction.energy.detach().numpy()
    rng = np.random.default_rng(0)
    for step in range(1, 41):
        extended = driver + rng.normal(0, 0.3, 3) + (30 if step > 35 else 0)
        bias.update(step, np.stack([driver + rng.normal(0, 0.1, 3), extended, energy + rng.normal(0, 10, 3)], axis=1))
    inputs = torch.tensor(driver)[:, None] + 0.1
    evaluation = evaluator.evaluate(tiny_positions, inputs)
    forces, input_forces = evaluation.forces.clone(), evaluation.input_forces.clone()
    assert input_forces.abs().min() > 1.0

    def slope(moved, place):
        totals = []
        for sign in (1, -1):
            shifted = {"positions": tiny_positions.clone(), "inputs": inputs.clone()}
            shifted[moved][place] += sign * 1e-6
            evaluator.evaluate(*shifted.values())
            totals.append(float(evaluator.total_energy))
        return (totals[0] - totals[1]) / 2e-6

    for walker in range(3):
        assert -slope("inputs", (walker, 0)) == pytest.approx(float(input_forces[walker, 0]), abs=1e-5)
        place = (walker, walker + 1, walker)
        assert -slope("positions", place) == pytest.approx(float(forces[place]), rel=1e-6, abs=1e-5)


@BOTH
@pytest.mark.parametrize(
    "wrong",
    [
        {"sigma": 0},
        {"mass": -1},
        {"bin_width": 0},
        {"full_samples": 0},
        {"full_samples": 2.5},
        {"pace": 0},
        {"temperature": 0},
        {"periods": [-1.0]},
        {"periods": [1.0, 2.0]},
        {"variables": ["x", "y"]},
    ],
)
def test_bad_options(cls, wrong):
    with pytest.raises(UqbiasError, match=next(iter(wrong))):
        cls(**wrong)


@pytest.mark.parametrize("wrong", [{"height": 0}, {"hill_sigma": 0}, {"hill_pace": 0}, {"biasfactor": 1.0}])
def test_bad_options_of_the_hills(wrong):
    with pytest.raises(UqbiasError, match=next(iter(wrong))):
        WellTemperedExtendedABF(**wrong)


def test_options_survive_json():
    options = {"variables": ["phi"], "periods": [6.283], "sigma": 0.2, "mass": 3.0, "height": 0.4, "biasfactor": None}
    bias = WellTemperedExtendedABF(**json.loads(json.dumps(options)))
    assert (bias.period, bias.sigma, bias.extended[0].mass) == (6.283, 0.2, 3.0)
    assert (bias.metadynamics.height, bias.metadynamics.biasfactor) == (0.4, None)
    assert bias.metadynamics.variables == ("extended_phi",)


def test_hills_act_on_the_extended_variable_only():
    bias = filled(WellTemperedExtendedABF, hill_pace=3, hill_sigma=0.3).to(torch.float64)
    plain = filled(ExtendedABF).to(torch.float64)
    x = np.random.default_rng(5).normal(1, 2, (40, 2))
    energy = gradient(bias, x)[0] - gradient(plain, x)[0]
    np.testing.assert_allclose(energy, bias.metadynamics.value(x[:, 1:]), atol=1e-9)
    assert energy.max() > 1.0
    np.testing.assert_allclose(bias.value(x[:, 1]), plain.value(x[:, 1]) + energy, atol=1e-9)


# CZAR on densities that are known exactly


def joint(A, bias, k, kT, period=None, points=2001, low=-2.0, high=2.0):
    """ρ(ξ) and <λ - ξ>_ξ by quadrature of exp(-(A(ξ) + k/2 (ξ-λ)² + bias(λ))/kT)."""
    xi = np.linspace(low, high, points, endpoint=period is None)
    s = np.linspace(-6, 6, 1201) * np.sqrt(kT / k)
    weight = np.exp(-(0.5 * k * s**2 + bias(xi[:, None] + s)) / kT)
    total = weight.sum(1)
    return xi, np.exp(-A(xi) / kT) * total, (weight * s).sum(1) / total


def test_czar_is_exact_whatever_the_bias_and_the_coupling():
    for k, strength in ((4.0, 0.0), (4.0, 5.0), (40.0, 5.0)):
        xi, density, deviation = joint(well, lambda x, f=strength: f * np.sin(3 * x), k, KT, low=-1.4, high=1.4)
        slope, F = czar(xi, density, deviation, k, KT)
        expected = well(xi) - well(LEFT)
        assert np.abs(F - expected - (F - expected).mean()).max() < 1e-3
        assert np.abs(slope[1:-1] - np.gradient(expected, xi)[1:-1]).max() < 1e-2


def test_czar_around_a_ring_and_across_its_end():
    def surface(x):
        return 3.0 * np.cos(x) + np.sin(2 * x)

    xi, density, deviation = joint(surface, lambda x: -0.5 * surface(x), 30.0, 2.5, 2 * np.pi, 720, -np.pi, np.pi)
    expected = surface(xi) - surface(xi).min()
    slope, F = czar(xi, density, deviation, 30.0, 2.5, 2 * np.pi)
    np.testing.assert_allclose(F, expected, atol=1e-3)
    np.testing.assert_allclose(slope, -3 * np.sin(xi) + 2 * np.cos(2 * xi), atol=1e-3)
    # Without samples around 0 the two sides are connected through ±π; with a wrong drift they would differ.
    unseen = np.abs(xi) < 1.0
    holes = np.where(unseen, np.nan, deviation)
    slope, F = czar(xi, np.where(unseen, 0.0, density), holes, 30.0, 2.5, 2 * np.pi)
    assert np.isinf(F[unseen]).all()
    assert np.isnan(slope[unseen]).all()
    seen = expected[~unseen]
    np.testing.assert_allclose(F[~unseen], seen - seen.min(), atol=1e-3)


def test_czar_of_a_series_with_weights_and_gaps():
    rng = np.random.default_rng(0)
    temperature, kT = 300.0, kt(300.0)
    xi = rng.normal(0.0, 1.0, (500, 400))
    extended = xi + rng.normal(0.0, 0.3, xi.shape)
    weights = np.exp(-0.5 * (xi - 1.0) ** 2 + 0.5 * xi**2)
    xi[0, :2] = np.nan
    extended[1, 0] = np.inf
    options = {"bin_width": 0.1, "sigma": 0.3, "temperature": temperature}
    for w, centre in ((None, 0.0), (weights, 1.0)):
        centres, F = czar_series(xi, extended, weights=w, **options)
        inner = np.abs(centres - centre) < 1.5
        np.testing.assert_allclose(F[inner], 0.5 * kT * (centres[inner] - centre) ** 2, atol=0.15)
    gap = np.abs(xi - 0.5) > 0.2
    centres, F = czar_series(xi[gap], extended[gap], **options)
    assert np.isinf(F[np.abs(centres - 0.5) < 0.1]).all()
    beyond = (centres > 0.75) & (centres < 1.5)
    np.testing.assert_allclose(F[beyond], 0.5 * kT * centres[beyond] ** 2, atol=0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma": 0.0}, "sigma"),
        ({"bin_width": -1.0}, "bin_width"),
        ({"temperature": 0.0}, "temperature"),
        ({"extended": np.zeros(3)}, "one for each"),
        ({"weights": np.array([1.0, -1.0])}, "weight of -1"),
        ({"xi": np.array([np.nan, np.nan])}, "finite"),
    ],
)
def test_bad_series(change, message):
    good = {"xi": np.zeros(2), "extended": np.zeros(2), "bin_width": 0.1, "sigma": 0.1, "temperature": 300.0}
    with pytest.raises(UqbiasError, match=message):
        czar_series(**{**good, **change})


def test_free_energy_at_points_is_that_of_the_bins():
    bias = filled(steps=200, walkers=4)
    centres, F = bias.free_energy()
    np.testing.assert_array_equal(bias.free_energy(centres)[1], F)
    assert np.isinf(bias.free_energy([centres[-1] + 0.2])[1]).all()
    i = int(np.abs(centres - 1.0).argmin())
    between = bias.free_energy([centres[i], 0.5 * (centres[i] + centres[i + 1])])[1]
    assert np.diff(between) == pytest.approx(0.5 * (F[i + 1] - F[i]), abs=1e-12)
    assert F[i + 1] != F[i]
    at, slopes = bias.mean_force()
    assert slopes[np.isfinite(F)].size == np.isfinite(slopes).sum()
    np.testing.assert_array_equal(at, centres)


# Physics: 64 walkers in the double well with a barrier of 10 kT, ξ = x


def sample(bias, steps, seed=0, walkers=64, start=LEFT):
    """Langevin dynamics (BAOAB) of x and λ with mass kT, so that thermal velocities are 1; [steps, W, D]."""
    rng = np.random.default_rng(seed)
    dt, friction = 0.05, 1.5
    keep, kick = np.exp(-friction * dt), np.sqrt(1 - np.exp(-2 * friction * dt))
    with_energy = "energy" in bias.variables

    def observe(x):
        points = torch.tensor(x, requires_grad=True)
        energy = well(points[:, 0])
        columns = torch.cat([points, energy[:, None]], dim=1) if with_energy else points
        (slope,) = torch.autograd.grad((energy + bias.energy(columns, bias.state())).sum(), points)
        return -slope.numpy(), columns.detach().numpy()

    x = np.full((walkers, 2), start)
    v = rng.normal(size=x.shape)
    force, _ = observe(x)
    series = []
    for step in range(1, steps + 1):
        v += 0.5 * dt * force / KT
        x = x + 0.5 * dt * v
        v = keep * v + kick * rng.normal(size=v.shape)
        x = x + 0.5 * dt * v
        force, columns = observe(x)
        v += 0.5 * dt * force / KT
        bias.update(step, columns)
        series.append(columns)
    return np.array(series)


def rmse(xi, F):
    """In kT, over F <= 10 kT."""
    expected = well(xi) - well(LEFT)
    low = expected <= 10 * KT
    assert low.sum() > 50
    difference = (F - expected)[low]
    return np.sqrt(np.mean((difference - difference.mean()) ** 2)) / KT


OPTIONS = {
    "variables": ["x"],
    "sigma": 0.15,
    "mass": KT,
    "bin_width": 0.05,
    "full_samples": 200,
    "pace": 5,
    "temperature": TEMPERATURE,
}


@pytest.mark.slow
def test_eabf_recovers_the_free_energy():
    bias = ExtendedABF(**OPTIONS).to(torch.float64)
    series = sample(bias, 6000)
    assert rmse(*bias.free_energy()) < 0.2
    # The same samples as a series give the same estimate.
    updates = series[4::5]
    _, F = czar_series(updates[..., 0], updates[..., 1], bin_width=0.05, sigma=0.15, temperature=TEMPERATURE)
    np.testing.assert_allclose(F, bias.free_energy()[1], atol=1e-9)
    # λ diffuses freely: at the end half of it is on either side of the barrier, as its flat profile has it.
    assert np.mean(series[-2000:, :, 1] > TOP) == pytest.approx(0.5, abs=0.12)


@pytest.mark.slow
def test_wtm_eabf_recovers_the_free_energy_sooner():
    start = 1200
    rough = []
    for cls, more in (
        (ExtendedABF, {}),
        (WellTemperedExtendedABF, {"height": 0.05, "hill_sigma": 0.1, "biasfactor": 20.0}),
    ):
        bias = cls(**OPTIONS, **more).to(torch.float64)
        series = sample(bias, start, seed=1)
        rough.append(np.mean(series[:, :, 0] > TOP))
    # With hills walkers get across while the mean force of the barrier's bins is still unknown.
    assert rough[1] > 4 * rough[0]
    bias = WellTemperedExtendedABF(**OPTIONS, height=0.02, hill_sigma=0.1, biasfactor=20.0).to(torch.float64)
    sample(bias, 6000)
    assert rmse(*bias.free_energy()) < 0.25


@pytest.mark.slow
def test_eabf_with_gamd_is_reweighted_exactly():
    boost = GaMD(
        threshold="lower",
        sigma0=1.2 * KT,
        preparation_steps=100,
        conventional_steps=500,
        equilibration_steps=1000,
        pace=5,
        temperature=TEMPERATURE,
    )
    bias = BiasSum([ExtendedABF(**OPTIONS), boost]).to(torch.float64)
    assert bias.variables == ("x", "extended_x", "energy")
    assert bias.pace == 5
    series = sample(bias, 7000)[1500:]
    assert boost.stage == "production"
    potential = boost.value(series[:, :, 2].ravel()).reshape(series.shape[:2])
    options = {"bin_width": 0.05, "sigma": 0.15, "temperature": TEMPERATURE}
    xi, extended = series[:, :, 0], series[:, :, 1]
    assert rmse(*czar_series(xi, extended, weights=np.exp(potential / KT), **options)) < 0.3
    assert rmse(*czar_series(xi, extended, **options)) > 0.5
