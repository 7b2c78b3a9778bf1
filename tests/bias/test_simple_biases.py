"""Biases with a closed formula: linear (HAL), UDD, walls, restraint."""

import doctest
import importlib
import json
import math

import numpy as np
import pytest
import torch

from uqbias.bias.base import BiasSum
from uqbias.bias.fixed import UDD, LowerWall, Restraint, UpperWall
from uqbias.bias.linear import Linear
from uqbias.compile.fused import FusedEvaluator
from uqbias.compile.runners import compile_function
from uqbias.errors import UqbiasError
from uqbias.registry import BIASES

CASES = {
    "linear": {"relative": 0.2, "pace": 5, "averaging": 3},
    "udd": {"A": 30.0, "B": 0.1, "n_members": 4, "n_atoms": 22},
    "upper_wall": {"at": 0.1, "kappa": 3.0},
    "lower_wall": {"at": 0.1, "kappa": 3.0, "variables": ["d"]},
    "restraint": {"at": 0.1, "kappa": 3.0, "variables": ["phi"], "periods": [2 * math.pi]},
}


@pytest.fixture(params=CASES)
def bias(request):
    options = json.loads(json.dumps(CASES[request.param]))
    made = BIASES.get(request.param)(**options).to(torch.float64)
    if request.param == "linear":
        made.restore({"tau": np.array(1.7), "mean_forces": np.array([3.0, 4.0]), "count": np.array(9)})
    return made


def energy_and_slope(bias, x):
    x = torch.as_tensor(x).reshape(-1, 1).requires_grad_()
    energy = bias.energy(x, bias.state())
    return energy.detach(), torch.autograd.grad(energy.sum(), x)[0][:, 0]


def test_contract(bias):
    """A value for each walker, a gradient that belongs to it, and an exact checkpoint."""
    x = torch.linspace(-3.0, 3.0, 25, dtype=torch.float64).reshape(-1, 1) + 0.01
    assert bias.energy(x, bias.state()).shape == (25,)
    assert torch.autograd.gradcheck(lambda y: bias.energy(y, bias.state()), x.requires_grad_())
    again = type(bias)(**CASES[bias.kind]).to(torch.float64)
    again.restore(bias.checkpoint())
    torch.testing.assert_close(again.energy(x, again.state()), bias.energy(x, bias.state()), rtol=0, atol=0)
    with pytest.raises(UqbiasError, match="nonsense"):
        again.restore({"nonsense": np.zeros(1)})


def test_values_are_inputs_of_the_graph_and_lose_no_digits(bias):
    """0.1 in single precision is another number: going there and back must not leave it behind."""
    before = {name: tensor.clone() for name, tensor in bias.state().items()}
    assert all(tensor.dtype == torch.float64 for tensor in before.values())
    bias.to(torch.float32)
    assert all(tensor.dtype == torch.float32 for tensor in bias.state().values())
    bias.to(torch.float64)
    for name, tensor in bias.state().items():
        assert torch.equal(tensor, before[name])
    names = list(before)

    def function(inputs):
        x = inputs[0].detach().requires_grad_()
        energy = bias.energy(x, dict(zip(names, inputs[1:], strict=True)))
        return energy, torch.autograd.grad(energy.sum(), x)[0]

    x = torch.linspace(-1.0, 2.0, 9, dtype=torch.float64).reshape(-1, 1)
    graph = compile_function(function, [x, *before.values()], runner="torchscript")
    other = [1.5 * tensor for tensor in before.values()]
    for found, expected in zip(graph([x, *other]), function([x, *other]), strict=True):
        torch.testing.assert_close(found, expected.detach())
    assert not torch.allclose(graph([x, *other])[0], graph([x, *before.values()])[0])


def test_one_variable_only(bias):
    with pytest.raises(UqbiasError, match=rf"{bias.kind} with variables \['a', 'b'\]; list should have at most 1"):
        type(bias)(**CASES[bias.kind] | {"variables": ["a", "b"]})


@pytest.mark.parametrize("kind", ["linear", "fixed"])
def test_example_in_the_docstring(kind):
    result = doctest.testmod(importlib.import_module(f"uqbias.bias.{kind}"))
    assert (result.failed, result.attempted > 2) == (0, True)


def test_walls_are_half_parabolas():
    x = torch.tensor([-1.0, 0.5, 2.0])
    energy, slope = energy_and_slope(UpperWall(at=0.5, kappa=3.0), x)
    assert energy.tolist() == pytest.approx([0, 0, 3 * 1.5**2])
    assert slope.tolist() == pytest.approx([0, 0, 9])
    energy, slope = energy_and_slope(LowerWall(at=0.5, kappa=3.0), x)
    assert energy.tolist() == pytest.approx([3 * 1.5**2, 0, 0])
    assert slope.tolist() == pytest.approx([-9, 0, 0])


def test_wall_on_a_periodic_variable_reaches_half_a_period():
    x = torch.tensor([2.0, 2.9, -3.0, -1.5, 0.5])
    energy, _ = energy_and_slope(UpperWall(at=2.5, kappa=1.0, periods=[2 * math.pi]), x)
    assert energy.tolist() == pytest.approx(
        [0, 0.4**2, (2 * math.pi - 5.5) ** 2, (2 * math.pi - 4.0) ** 2, 0], rel=1e-5
    )


def test_restraint_takes_the_nearest_image():
    x = torch.tensor([-3.0, 2.0, 3.1])
    energy, slope = energy_and_slope(Restraint(at=3.0, kappa=4.0, periods=[2 * math.pi]), x)
    away = np.array([2 * math.pi - 6.0, -1.0, 0.1])
    np.testing.assert_allclose(energy, 2 * away**2, rtol=1e-5)
    np.testing.assert_allclose(slope, 4 * away, rtol=1e-5)
    energy, _ = energy_and_slope(Restraint(at=3.0, kappa=4.0), x)
    np.testing.assert_allclose(energy, [72.0, 2.0, 0.02], rtol=1e-5)


def test_udd_is_the_published_formula():
    """From the members' energies, with σ_E² = ½ Σ (E_m − mean)² (equation 2) in A [exp(−σ_E²/(N_M N_A B²)) − 1]."""
    rng = np.random.default_rng(0)
    members = rng.normal(0.0, 3.0, (8, 20))
    squared = 0.5 * ((members - members.mean(0)) ** 2).sum(0)
    expected = 50.0 * (np.exp(-squared / (8 * 10 * 0.7**2)) - 1)
    bias = UDD(A=50.0, B=0.7, n_members=8, n_atoms=10).to(torch.float64)
    np.testing.assert_allclose(energy_and_slope(bias, members.std(0, ddof=1))[0], expected, rtol=1e-12)
    # Without the sizes, u is their ρ = √(2/(N_M N_A)) σ_E.
    plain = UDD(A=50.0, B=0.7).to(torch.float64)
    np.testing.assert_allclose(energy_and_slope(plain, np.sqrt(2 * squared / 80))[0], expected, rtol=1e-12)


class Forces:
    """A probe: model forces and the gradient of u, both random, for the state that it is given."""

    def __init__(self, seed=0, walkers=3):
        rng = np.random.default_rng(seed)
        self.model, self.gradient = rng.normal(0, 400, (walkers, 5, 3)), rng.normal(0, 30, (walkers, 5, 3))

    def __call__(self, state):
        return self.model + float(state["tau"]) * self.gradient

    def ratio(self, walkers=slice(None)):
        norms = [np.linalg.norm(f[walkers], axis=-1).mean() for f in (self.model, self.gradient)]
        return norms[0] / norms[1]


def test_tau_makes_the_bias_force_a_fraction_of_the_models():
    bias = Linear(relative=0.25, pace=10, averaging=1).to(torch.float64)
    x, forces = np.zeros((3, 1)), Forces()
    tau = bias.state()["tau"]
    for step in (0, 5, 10):
        bias.update(step, x, forces)
    assert tau.item() == 0.0
    bias.update(20, x, forces)
    assert tau is bias.state()["tau"]
    assert tau.item() == bias.tau == pytest.approx(0.25 * forces.ratio(), rel=1e-12)
    biased = forces({"tau": tau}) - forces.model
    share = np.linalg.norm(biased, axis=-1).mean() / np.linalg.norm(forces.model, axis=-1).mean()
    assert share == pytest.approx(0.25, rel=1e-12)


def test_averages_fall_off_exponentially():
    bias = Linear(relative=1.0, pace=1, averaging=4)
    x = np.zeros((3, 1))
    means = None
    for step in range(1, 12):
        forces = Forces(step)
        new = np.array([np.linalg.norm(f, axis=-1).mean() for f in (forces.model, forces.gradient)])
        means = new if means is None else 0.75 * means + 0.25 * new
        bias.update(step, x, forces)
        assert bias.tau == pytest.approx(means[0] / means[1] if step > 4 else 0.0, rel=1e-12)


def test_walkers_left_out_and_nothing_to_learn():
    bias = Linear(relative=1.0, pace=1, averaging=1)
    forces = Forces()
    forces.model[1] = np.nan
    x = np.array([[0.0], [0.0], [np.nan]])
    bias.update(1, x, forces)
    bias.update(2, x, forces)
    assert bias.tau == pytest.approx(forces.ratio([0]), rel=1e-9)
    before = bias.checkpoint()
    bias.update(3, np.full((3, 1), np.nan), Forces(5))
    bias.frozen = True
    bias.update(4, np.zeros((3, 1)), Forces(5))
    for name, array in bias.checkpoint().items():
        np.testing.assert_array_equal(array, before[name])


def test_flat_uncertainty_leaves_tau_finite():
    bias = Linear(relative=1.0, pace=1, averaging=1)
    forces = Forces()
    forces.gradient[:] = 0
    for step in (1, 2, 3):
        bias.update(step, np.zeros((3, 1)), forces)
    assert bias.tau == 0.0


def test_linear_continues_exactly():
    whole, part = (Linear(relative=0.1, pace=2, averaging=3) for _ in range(2))
    for step in range(2, 20, 2):
        for one in (whole, part):
            one.update(step, np.zeros((3, 1)), Forces(step))
    again = Linear(relative=0.1, pace=2, averaging=3)
    again.restore(part.checkpoint())
    for one in (whole, again):
        one.update(20, np.zeros((3, 1)), Forces(20))
    assert whole.tau == again.tau > 0
    assert torch.equal(whole.state()["tau"], again.state()["tau"])
    again.reset()
    assert again.tau == again.state()["tau"].item() == 0.0


def test_fixed_tau():
    bias = Linear(tau=2.5)
    assert bias.pace is None
    bias.update(100, np.zeros((3, 1)))
    energy, slope = energy_and_slope(bias, torch.tensor([0.0, 2.0]))
    assert energy.tolist() == [0.0, -5.0]
    assert slope.tolist() == [-2.5, -2.5]
    bias.reset()
    assert bias.tau == 2.5


def test_linear_in_a_compiled_graph(tiny_model, tiny_positions):
    """Beside another bias, which counts with the model's forces, and in the second place of a sum."""
    linear = Linear(relative=0.3, pace=1, averaging=1)
    bias = BiasSum([UpperWall(at=0.0, kappa=2.0), linear])
    evaluator = FusedEvaluator(tiny_model, bias, 3, runner="eager", dtype=torch.float64)
    for step in (1, 2):
        found = evaluator.evaluate(tiny_positions)
        bias.update(step, found.variables.numpy().astype(float), evaluator.probe)
    x = tiny_positions.clone().requires_grad_()
    prediction = tiny_model(x)
    rest = prediction.energy + 2.0 * torch.relu(prediction.driver) ** 2
    (without,) = torch.autograd.grad(rest.sum(), x, retain_graph=True)
    (gradient,) = torch.autograd.grad(prediction.driver.sum(), x)
    assert linear.tau == pytest.approx(0.3 * (without.norm(dim=-1).mean() / gradient.norm(dim=-1).mean()).item())
    forces = evaluator.evaluate(tiny_positions).forces
    torch.testing.assert_close(forces, linear.tau * gradient - without, rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("linear", {"relative": 0}, "linear with relative 0"),
        ("linear", {"relative": math.inf}, "linear with relative inf"),
        ("linear", {"pace": 0}, "linear with pace 0"),
        ("linear", {"pace": 2.5}, "linear with pace 2.5; input should be a valid integer"),
        ("linear", {"averaging": 2.5}, "linear with averaging 2.5"),
        ("linear", {"averaging": -1}, "linear with averaging -1"),
        ("linear", {"tau": float("nan")}, "linear with tau nan"),
        ("udd", {"A": -1}, "udd with A -1"),
        ("udd", {"B": 0}, "udd with B 0"),
        ("udd", {"n_members": 4}, "n_members 4 and n_atoms None; give both"),
        ("udd", {"n_members": 1, "n_atoms": 5}, "n_members 1; input should be greater than or equal to 2"),
        ("udd", {"A": float("inf")}, "udd with A inf; input should be a finite number"),
        ("upper_wall", {"at": 1.0, "kappa": -2}, "upper_wall with kappa -2"),
        ("lower_wall", {"at": float("nan")}, "lower_wall with at nan"),
        ("restraint", {"at": 0.0, "kappa": -1.0}, "restraint with kappa -1.0"),
        ("restraint", {"at": 0.0, "kappa": 1.0, "periods": [0.0]}, r"restraint with periods \[0.0\]; .* than 0"),
        ("restraint", {"at": 0.0, "kappa": 1.0, "periods": [math.inf]}, r"restraint with periods \[inf\]"),
        ("restraint", {"at": 0.0, "kappa": 1.0, "periods": [None, 1.0]}, "2 values of periods for 1 variable"),
    ],
)
def test_bad_options(kind, options, message):
    with pytest.raises(UqbiasError, match=message):
        BIASES.get(kind)(**options)


def test_linear_needs_forces():
    bias = Linear(pace=1)
    with pytest.raises(UqbiasError, match="this driver gives none; give it a fixed tau"):
        bias.update(1, np.zeros((3, 1)))
    forces = Forces()
    forces.model[:] = 0
    with pytest.raises(UqbiasError, match="forces without the bias are zero"):
        bias.update(1, np.zeros((3, 1)), forces)
