"""Metadynamics on two and three variables against its formula; sums that share variables; the graph."""

import numpy as np
import pytest
import torch

from uqbias.bias.base import Bias, BiasSum
from uqbias.bias.fixed import LowerWall, UpperWall
from uqbias.bias.grid import GrowingGrid
from uqbias.bias.metad import MetaD
from uqbias.compile.fused import FusedEvaluator
from uqbias.errors import UqbiasError

torch.set_num_threads(1)
PERIODS = {"none": None, "some": 2 * np.pi}


def filled(dimensions, period=None, steps=15, walkers=4, **options):
    names = [f"x{d}" for d in range(dimensions)]
    periods = [period, *[None] * (dimensions - 1)]
    bias = MetaD(variables=names, periods=periods, sigma=0.35, pace=1, **options).to(torch.float64)
    rng = np.random.default_rng(dimensions)
    for step in range(1, steps + 1):
        x = rng.normal(size=(walkers, dimensions))
        if period is not None:
            x[:, 0] = rng.uniform(-period / 2, period / 2, walkers)
        bias.update(step, x)
    return bias


def explicit(bias, x):
    """Values [n] and gradients [n, D] of the sum of Gaussians, nearest images."""
    hills = bias.hills
    offset = x[:, None] - hills["centre"]
    for d, period in enumerate(bias.periods):
        if period is not None:
            offset[..., d] -= period * np.round(offset[..., d] / period)
    gauss = hills["height"] * np.exp(-0.5 * np.square(offset / hills["sigma"]).sum(-1))
    return gauss.sum(1), -(gauss[..., None] * offset / hills["sigma"] ** 2).sum(1)


@pytest.mark.parametrize("period", PERIODS)
@pytest.mark.parametrize(("dimensions", "accuracy"), [(1, 1e-5), (2, 1e-4), (3, 3e-3)])
def test_grid_equals_the_sum_of_gaussians(dimensions, accuracy, period):
    bias = filled(dimensions, PERIODS[period])
    x = np.random.default_rng(0).normal(size=(400, dimensions)) * 1.3
    value, slope = explicit(bias, x)
    point = torch.tensor(x, requires_grad=True)
    energy = bias.energy(point, bias.state())
    (gradient,) = torch.autograd.grad(energy.sum(), point)
    assert np.abs(energy.detach().numpy() - value).max() < accuracy * value.max()
    assert np.abs(gradient.numpy() - slope).max() < 20 * accuracy * np.abs(slope).max()
    np.testing.assert_allclose(bias.value(x), energy.detach().numpy(), atol=1e-12)
    assert value.max() > 1.0


@pytest.mark.parametrize("dimensions", [2, 3])
def test_force_is_the_derivative_of_the_interpolated_energy(dimensions):
    bias = filled(dimensions, 2 * np.pi)
    x = torch.tensor(np.random.default_rng(5).normal(size=(40, dimensions)), requires_grad=True)
    assert torch.autograd.gradcheck(lambda at: bias.energy(at, bias.state()), x, eps=1e-7, atol=1e-5)


def test_a_periodic_variable_wraps():
    bias = filled(2, 2 * np.pi)
    x = np.random.default_rng(1).normal(size=(50, 2))
    np.testing.assert_allclose(bias.value(x), bias.value(x + np.array([2 * np.pi, 0])), atol=1e-9)
    np.testing.assert_allclose(bias.value(x), bias.value(x - np.array([6 * np.pi, 0])), atol=1e-9)
    assert bias.grid.shape[0] * bias.grid.spacing[0] == pytest.approx(2 * np.pi)


def test_grid_grows_in_each_dimension_and_keeps_every_hill():
    bias = MetaD(variables=["a", "b"], sigma=0.5, pace=1, biasfactor=None).to(torch.float64)
    places = [(0.0, 0.0), (30.0, 0.0), (0.0, -20.0), (-9.0, 25.0)]
    for step, place in enumerate(places, start=1):
        bias.update(step, np.array([place]))
        np.testing.assert_allclose(bias.value(np.array(places[:step])), 1.0, atol=1e-4)
    x = np.random.default_rng(0).uniform(-30, 40, (300, 2))
    np.testing.assert_allclose(bias.value(x), explicit(bias, x)[0], atol=1e-4)
    outside = torch.tensor([[1e9, 0.0], [0.0, -1e30], [np.inf, 0.0]], dtype=torch.float64, requires_grad=True)
    energy = bias.energy(outside, bias.state())
    (slope,) = torch.autograd.grad(energy.sum(), outside)
    assert energy.abs().max() < 1e-6
    assert slope.abs().max() == 0
    with pytest.raises(UqbiasError, match="run away"):
        bias.update(9, np.array([[1e6, 1e6]]))


def test_two_dimensional_stretched_kernel_is_plumeds():
    bias = MetaD(
        variables=["a", "b"], sigma=[0.4, 0.8], pace=1, biasfactor=None, kernel="stretched-gaussian", height=2.0
    ).to(torch.float64)
    bias.update(1, np.array([[0.3, -0.2]]))
    # On grid points there is no interpolation.
    a, b = np.meshgrid(bias.grid.points(0), bias.grid.points(1), indexing="ij")
    half = 0.5 * (((a - 0.3) / 0.4) ** 2 + ((b + 0.2) / 0.8) ** 2)
    expected = np.where(half < 6.25, 2.0 * (np.exp(-half) - np.exp(-6.25)) / (1 - np.exp(-6.25)), 0.0)
    np.testing.assert_allclose(bias.value(np.stack([a, b], -1).reshape(-1, 2)), expected.ravel(), atol=1e-9)


def test_a_corner_of_two_bounds_is_flat():
    """Uniform deposition over a quadrant with both bounds reflecting: the bias at the corner is that inside."""
    ticks = np.arange(0.0, 5.0, 0.1) + 0.05
    bias = MetaD(variables=["a", "b"], sigma=0.5, pace=1, biasfactor=None, reflect_at=0.0)
    bias.update(1, np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2))
    corner, edge, inside = bias.value(np.array([[0.0, 0.0], [0.0, 2.0], [2.0, 2.0]]))
    assert corner == pytest.approx(inside, rel=0.01)
    assert edge == pytest.approx(inside, rel=0.01)


def test_checkpoint_of_two_variables_continues_exactly():
    whole, part = filled(2, 2 * np.pi), filled(2, 2 * np.pi)
    again = MetaD(variables=["x0", "x1"], periods=[2 * np.pi, None], sigma=0.35, pace=1)
    again.restore(part.checkpoint())
    for bias in (whole, again):
        bias.update(99, np.array([[3.0, 40.0], [-3.0, 1.0]]))
    np.testing.assert_array_equal(whole.grid.table, again.grid.table)
    np.testing.assert_array_equal(whole.hills, again.hills)
    with pytest.raises(UqbiasError, match="sigma"):
        MetaD(sigma=0.35).restore(part.checkpoint())
    with pytest.raises(UqbiasError, match=r"hills of 2 variable"):
        MetaD(sigma=0.35).load_hills(whole.hills)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variables": ["a", "a"]}, "each once"),
        ({"variables": []}, "at least 1"),
        ({"variables": ["a", "b", "c", "d"]}, "at most 3 items"),
        ({"variables": ["a", "b"], "sigma": [1.0]}, "1 values of sigma"),
        ({"variables": ["a", "b"], "sigma": [1.0, 0.0]}, r"sigma \[1.0, 0.0\]; input should be greater than 0"),
        ({"grid_range": [[1.0, 1.0]]}, "maximum above the minimum"),
        ({"sigma": 1e-6, "grid_range": [[0.0, 10.0]]}, "over 4000000 points"),
        ({"variables": ["a", "b"], "periods": [None]}, "1 values of periods"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UqbiasError, match=message):
        MetaD(**options)


def test_grid_spans_its_range_from_the_beginning():
    bias = MetaD(sigma=0.5, grid_range=[[-3.0, 4.0]])
    points = bias.grid.points()
    assert points[0] == -3.0
    assert points[-1] >= 4.0
    assert GrowingGrid([0.3], {}, ranges=[[0.0, 1.0]]).shape == (5,)


class FirstCoordinate(torch.nn.Module):
    def forward(self, positions):
        return positions[:, 0, 0] - positions[:, 1, 0]


def test_variables_of_a_sum_in_the_fused_graph(tiny_model, tiny_positions):
    """Bias on (u, x) together, walls on x and on the energy: forces are minus the gradient of E + V."""
    metadynamics = MetaD(variables=["driver", "x"], sigma=[0.5, 0.1], pace=1, height=30.0, biasfactor=None)
    bias = BiasSum(
        [
            metadynamics,
            UpperWall(at=-0.1, kappa=50.0, variables=["x"]),
            LowerWall(at=1e3, kappa=1e-4, variables=["energy"]),
        ]
    )
    assert bias.variables == ("driver", "x", "energy")
    evaluator = FusedEvaluator(
        tiny_model, bias, 3, variables={"x": FirstCoordinate()}, runner="eager", dtype=torch.float64
    )
    first = evaluator.evaluate(tiny_positions)
    expected = [first.driver, FirstCoordinate()(tiny_positions), first.energy]
    torch.testing.assert_close(first.variables, torch.stack(expected, dim=1))
    bias.update(1, first.variables.numpy() + np.array([0.3, 0.05, 0.0]))
    found = evaluator.evaluate(tiny_positions)
    assert found.bias.abs().min() > 1.0

    def total(x):
        evaluation = evaluator.evaluate(x)
        return evaluation.energy + evaluation.bias

    for atom, axis in ((0, 0), (1, 0), (3, 2)):
        shift = torch.zeros_like(tiny_positions)
        shift[:, atom, axis] = 1e-6
        slope = (total(tiny_positions + shift) - total(tiny_positions - shift)) / 2e-6
        torch.testing.assert_close(found.forces[:, atom, axis], -slope, rtol=1e-6, atol=1e-4)


class Spring(Bias):
    """½ k (u - y)² with y from outside."""

    kind = "spring"

    def __init__(self):
        super().__init__(("driver", "y"))
        self._state = {"k": torch.tensor([40.0])}

    def energy(self, x, state):
        return 0.5 * state["k"] * (x[:, 0] - x[:, 1]) ** 2


@pytest.mark.parametrize("runner", ["eager", "torchscript"])
def test_a_variable_from_outside_gets_its_force(tiny_model, tiny_positions, runner):
    evaluator = FusedEvaluator(tiny_model, Spring(), 3, runner=runner, dtype=torch.float64)
    assert evaluator.input_names == ("y",)
    y = torch.tensor([[0.3], [1.0], [2.0]], dtype=torch.float64)
    found = evaluator.evaluate(tiny_positions, y)
    torch.testing.assert_close(found.bias, 20.0 * (found.driver - y[:, 0]) ** 2)
    torch.testing.assert_close(found.input_forces[:, 0], 40.0 * (found.driver - y[:, 0]))
    particles = torch.zeros(3 * 5 + 3, 3, dtype=torch.float64)
    particles[:15] = tiny_positions.reshape(-1, 3)
    particles[15:, 0] = y[:, 0]
    energy, forces = evaluator.evaluate_for_host(particles)
    torch.testing.assert_close(energy, (found.energy + found.bias).sum())
    torch.testing.assert_close(forces[15:, 0], found.input_forces[:, 0])
    assert forces[15:, 1:].abs().max() == 0
    torch.testing.assert_close(forces[:15], found.forces.reshape(-1, 3))


def test_probe_gives_forces_under_another_state(tiny_model, tiny_positions):
    evaluator = FusedEvaluator(tiny_model, Spring(), 3, runner="eager", dtype=torch.float64)
    y = torch.zeros(3, 1, dtype=torch.float64)
    now = evaluator.evaluate(tiny_positions, y)
    without = evaluator.probe({"k": torch.tensor([0.0])})
    twice = evaluator.probe({"k": torch.tensor([80.0])})
    np.testing.assert_allclose(twice - without, 2 * (now.forces.numpy() - without), atol=1e-9)
    assert evaluator.last is now
