"""Grid, metadynamics and walls against their formulas."""

import inspect
import json

import numpy as np
import pytest
import torch

from uqbias.bias.base import BiasSum
from uqbias.bias.fixed import UpperWall
from uqbias.bias.grid import GrowingGrid, hermite
from uqbias.bias.metad import MetaD, hill_type
from uqbias.errors import UqbiasError
from uqbias.options import options_of
from uqbias.registry import BIASES
from uqbias.units import kt

torch.set_num_threads(1)


def explicit(hills, u):
    scaled = (u[:, None] - hills["centre"][:, 0]) / hills["sigma"][:, 0]
    gaussians = hills["height"] * np.exp(-0.5 * scaled**2)
    return gaussians.sum(1), (-gaussians * scaled / hills["sigma"][:, 0]).sum(1)


def filled(seed=0, steps=40, walkers=8, **options):
    bias = MetaD(**{"height": 1.0, "sigma": 0.7, "pace": 10, "biasfactor": 10.0, **options})
    rng = np.random.default_rng(seed)
    for step in range(0, 10 * steps + 1, 5):
        bias.update(step, rng.normal(2.0, 3.0, (walkers, 1)))
    return bias


@pytest.mark.parametrize("biasfactor", [None, 10.0])
def test_grid_equals_the_sum_of_gaussians(biasfactor):
    bias = filled(biasfactor=biasfactor).to(torch.float64)
    assert len(bias.hills) == 40 * 8
    u = np.random.default_rng(1).uniform(-12, 16, 4000)
    value, slope = explicit(bias.hills, u)
    x = torch.tensor(u, requires_grad=True)
    energy = bias.energy(x[:, None], bias.state())
    (derivative,) = torch.autograd.grad(energy.sum(), x)
    # 320 hills of up to 1 kJ/mol together stay within 1e-4 of one hill's height.
    assert np.abs(energy.detach().numpy() - value).max() < 1e-4
    assert np.abs(derivative.numpy() - slope).max() < 5e-3 / 0.7
    np.testing.assert_allclose(bias.value(u), energy.detach().numpy(), atol=1e-12)


def test_one_hill_to_its_own_precision():
    bias = MetaD(height=2.0, sigma=1.0, pace=1, biasfactor=None).to(torch.float64)
    bias.update(1, np.array([3.14159])[:, None])
    u = np.linspace(-6, 12, 5001)
    assert np.abs(bias.value(u) - explicit(bias.hills, u)[0]).max() < 1e-6 * 2.0


def test_force_is_the_derivative_of_the_interpolated_energy():
    bias = filled().to(torch.float64)
    x = torch.linspace(-9, 13, 997, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u: bias.energy(u[:, None], bias.state()), x, eps=1e-7, atol=1e-6)


def test_single_precision_agrees_with_double():
    bias = filled().to(torch.float32)
    u = np.random.default_rng(1).uniform(-5, 9, 500).astype(np.float32)
    x = torch.tensor(u, requires_grad=True)
    energy = bias.energy(x[:, None], bias.state())
    (slope,) = torch.autograd.grad(energy.sum(), x)
    value, derivative = explicit(bias.hills, u.astype(float))
    assert np.abs(energy.detach().numpy() - value).max() < 1e-5 * value.max()
    assert np.abs(slope.numpy() - derivative).max() < 2e-3 * np.abs(derivative).max()


def test_outside_the_grid_the_bias_is_flat_and_finite():
    bias = filled().to(torch.float64)
    x = torch.tensor([-1e9, -1e3, 1e3, 1e30], dtype=torch.float64, requires_grad=True)
    energy = bias.energy(x[:, None], bias.state())
    (slope,) = torch.autograd.grad(energy.sum(), x)
    assert energy.abs().max() < 1e-6
    assert slope.abs().max() == 0


def test_hills_change_the_tensors_in_place_until_the_grid_grows():
    bias = MetaD(height=1.0, sigma=1.0, pace=1)
    bias.update(1, np.array([0.0])[:, None])
    state, table = bias.state(), bias.state()["table"]
    before = bias.value(np.array([0.0, 1.0]))
    bias.update(2, np.array([0.2])[:, None])
    assert bias.state() is state
    assert bias.state()["table"] is table
    bias.update(3, np.array([300.0])[:, None])
    bias.update(4, np.array([-40.0])[:, None])
    assert bias.state() is state
    assert bias.state()["table"] is not table
    assert int(state["shape"]) == len(state["table"]) == len(bias.grid.table)
    value, _ = explicit(bias.hills, np.array([0.0, 1.0, 300.0, -40.0]))
    np.testing.assert_allclose(bias.value(np.array([0.0, 1.0, 300.0, -40.0])), value, atol=1e-6)
    assert (value[:2] > before).all()
    np.testing.assert_array_equal(state["table"].numpy(), bias.grid.table.astype(np.float32))


def test_heights_follow_the_well_tempered_rule_with_the_bias_before_the_step():
    bias = MetaD(height=1.2, sigma=1.0, pace=5, biasfactor=5.0, temperature=300.0)
    bias.update(5, np.array([0.0, 0.0, 0.4])[:, None])
    np.testing.assert_array_equal(bias.hills["height"], [1.2] * 3)
    before = explicit(bias.hills, np.array([0.1]))[0][0]
    bias.update(10, np.array([0.1, 9.0])[:, None])
    assert bias.hills["height"][3] == pytest.approx(1.2 * np.exp(-before / (kt(300.0) * 4.0)), rel=1e-5)
    assert bias.hills["height"][4] == pytest.approx(1.2, rel=1e-5)
    assert list(bias.hills["step"]) == [5, 5, 5, 10, 10]


def test_order_of_walkers_does_not_matter():
    u = np.random.default_rng(3).normal(0, 2, (20, 6))
    one, other = (MetaD(sigma=0.5, pace=1) for _ in range(2))
    for step, values in enumerate(u, start=1):
        one.update(step, values[:, None])
        other.update(step, values[::-1][:, None])
    x = np.linspace(-6, 6, 301)
    np.testing.assert_allclose(one.value(x), other.value(x), atol=1e-12)


def test_when_hills_are_left_out():
    bias = MetaD(pace=10)
    bias.update(0, np.array([1.0])[:, None])
    bias.update(7, np.array([1.0])[:, None])
    bias.update(10, np.array([np.nan, np.inf])[:, None])
    assert len(bias.hills) == 0
    bias.update(20, np.array([np.nan, 1.0])[:, None])
    assert len(bias.hills) == 1
    bias.frozen = True
    bias.update(30, np.array([1.0])[:, None])
    assert len(bias.hills) == 1


@pytest.mark.slow
def test_free_energy_of_a_converged_bias():
    rng = np.random.default_rng(0)
    gamma, temperature = 5.0, 300.0
    bias = MetaD(height=0.05, sigma=0.15, pace=1, biasfactor=gamma, temperature=temperature)
    grid = np.linspace(-3, 3, 401)
    truth = 4.0 * (grid**2 - 1.5) ** 2 / 2.25 + 0.8 * grid
    # Sampling u from exp(-(F+V)/kT) exactly stands for a run that is quasi-static.
    for step in range(1, 12001):
        weight = np.exp(-(truth + bias.value(grid)) / kt(temperature))
        u = rng.choice(grid, size=4, p=weight / weight.sum())
        bias.update(step, u[:, None])
    at = np.linspace(-1.7, 1.7, 69)
    _, energy = bias.free_energy(at)
    expected = np.interp(at, grid, truth)
    difference = energy - expected
    assert np.abs(difference - difference.mean()).max() < 0.8
    assert np.ptp(expected) > 4.0
    assert bias.free_energy()[1].min() == 0


def test_checkpoint_continues_exactly():
    whole, part = filled(steps=20, seed=5), filled(steps=20, seed=5)
    again = MetaD(height=1.0, sigma=0.7, pace=10, biasfactor=10.0)
    again.restore(part.checkpoint())
    for bias in (whole, again):
        bias.update(500, np.array([2.5, 25.0])[:, None])
    x = np.linspace(-10, 30, 501)
    np.testing.assert_array_equal(whole.value(x), again.value(x))
    np.testing.assert_array_equal(whole.hills, again.hills)
    with pytest.raises(UqbiasError, match=r"sigma \[0\.7\]"):
        MetaD(sigma=1.0).restore(part.checkpoint())
    with pytest.raises(UqbiasError, match="holds"):
        again.restore({"nonsense": np.zeros(1)})


def test_loaded_hills_and_reset():
    bias = filled()
    again = MetaD(height=1.0, sigma=0.7, pace=10)
    again.load_hills(bias.hills.copy())
    x = np.linspace(-9, 13, 401)
    np.testing.assert_allclose(again.value(x), bias.value(x), atol=1e-5)
    again.reset()
    assert len(again.hills) == 0
    assert np.abs(again.value(x)).max() == 0
    assert float(again.state()["table"].abs().max()) == 0
    narrow = np.array([(1, [0.0], [0.1], 1.0, 10.0)], dtype=hill_type(1))
    with pytest.raises(UqbiasError, match=r"sigma \[0\.1\]"):
        again.load_hills(narrow)


def test_runaway_variable_is_refused():
    with pytest.raises(UqbiasError, match="run away"):
        MetaD(sigma=0.1, pace=1).update(1, np.array([1e9])[:, None])


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    "wrong",
    [
        *({"height": value} for value in (0, INF, NAN)),
        *({"sigma": value} for value in (-1, INF, [0.1, 0.2])),
        *({"pace": value} for value in (0, 2.7, INF)),
        *({"biasfactor": value} for value in (1.0, INF, NAN)),
        *({"temperature": value} for value in (INF, NAN)),
        *({"periods": [value]} for value in (-1.0, 0, NAN, INF)),
        *({"reflect_at": value} for value in (INF, [NAN])),
        *({"grid_range": value} for value in ([], [(0, INF)], [(NAN, 1)], (0, 1), [(0, 1, 2)], [(0, 1)] * 2)),
    ],
)
def test_bad_parameters(wrong):
    with pytest.raises(UqbiasError, match=next(iter(wrong))):
        MetaD(**wrong)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("opes", {"barrier": 40.0, "sigma": 0.1}),
        ("eabf", {}),
        ("wtm_eabf", {}),
        ("restraint", {"at": 0.0, "kappa": 1.0}),
        ("upper_wall", {"at": 0.0}),
    ],
)
def test_other_kinds_make_the_same_checks(kind, options):
    make = BIASES.get(kind)
    make(**options, periods=[2.0])
    for name, value in (("periods", [-1.0]), ("periods", [INF]), ("sigma", INF), ("pace", 2.7), ("hill_pace", 2.7)):
        if name in inspect.signature(make).parameters:
            with pytest.raises(UqbiasError, match=f"{kind} with {name} "):
                make(**{**options, name: value})


def test_widths_from_an_array():
    bias = MetaD(variables=["a", "b"], sigma=np.array([0.1, 0.2]), grid_range=[(0, 1), None])
    assert bias.sigma.tolist() == [0.1, 0.2]


def test_wall_is_plumeds():
    wall = UpperWall(at=2.0, kappa=3.0)
    u = torch.tensor([1.0, 2.0, 3.5], requires_grad=True)
    energy = wall.energy(u[:, None], wall.state())
    assert energy.tolist() == pytest.approx([0.0, 0.0, 3.0 * 1.5**2])
    assert torch.autograd.grad(energy.sum(), u)[0].tolist() == pytest.approx([0.0, 0.0, 9.0])


def test_sum_of_biases():
    bias = BiasSum([MetaD(sigma=1.0, pace=4), UpperWall(at=1.0, kappa=2.0), MetaD(sigma=2.0, pace=6)])
    assert bias.pace == 2
    state = bias.state()
    for step in (4, 6, 12):
        bias.update(step, np.array([2.0, 50.0 * step])[:, None])
    assert bias.state() is state
    assert [len(bias.biases[i].hills) for i in (0, 2)] == [4, 4]
    u = torch.tensor([2.0, 2.5])
    expected = sum(term.energy(u[:, None], term.state()) for term in bias.biases)
    torch.testing.assert_close(bias.energy(u[:, None], state), expected)
    again = BiasSum([MetaD(sigma=1.0, pace=4), UpperWall(at=1.0, kappa=2.0), MetaD(sigma=2.0, pace=6)])
    again.restore(bias.checkpoint())
    torch.testing.assert_close(again.energy(u[:, None], again.state()), expected)
    bias.to(torch.float64)
    assert bias.state()["0.table"].dtype == torch.float64
    assert bias.state()["0.shape"].dtype == torch.int64
    assert BiasSum([]).energy(u[:, None], {}).tolist() == [0, 0]


def test_hermite_traces_with_a_grid_of_any_length():
    """The compiled graph must not have the grid's length in it."""
    from torch.fx.experimental.proxy_tensor import make_fx

    grid = GrowingGrid([0.1], {})
    x = torch.rand(3, 1)

    def force(u, table, origin, spacing, shape):
        state = {"table": table, "origin": origin, "spacing": spacing, "shape": shape}
        with torch.enable_grad():
            v = u.detach().requires_grad_()
            energy = hermite(v, state)
            (slope,) = torch.autograd.grad(energy.sum(), v)
        return energy, slope

    arguments = [grid.state[name] for name in ("table", "origin", "spacing", "shape")]
    graph = make_fx(force, tracing_mode="symbolic")(x, *arguments)
    grid.load(np.array([-20.0]), np.random.default_rng(0).normal(size=(999, 2)))
    arguments = [grid.state[name] for name in ("table", "origin", "spacing", "shape")]
    u = torch.rand(3, 1) * 40 - 10
    torch.testing.assert_close(graph(u, *arguments), force(u, *arguments))


def test_hills_are_mirrored_at_a_bound():
    """With a uniform histogram above the bound the reflected bias is flat there, the plain one falls off."""
    u = np.linspace(0.0, 6.0, 601)
    slopes = []
    for reflect_at in (None, 0.0):
        bias = MetaD(sigma=0.5, pace=1, biasfactor=None, reflect_at=reflect_at)
        for step, centre in enumerate(u, start=1):
            bias.update(step, np.array([centre])[:, None])
        edge, inside = bias.value(np.array([0.0, 3.0]))
        slopes.append(edge / inside)
    assert slopes[0] == pytest.approx(0.5, abs=0.02)
    assert slopes[1] == pytest.approx(1.0, abs=0.02)
    assert (bias.hills["centre"] < 0).sum() == (np.abs(u[1:]) < 6 * 0.5).sum()


def test_stretched_kernel_is_that_of_plumed():
    """(exp(-x²/2) − e^−6.25)/(1 − e^−6.25) up to x² = 12.5 and zero beyond, with its derivative."""
    bias = MetaD(height=2.0, sigma=0.5, pace=1, biasfactor=None, kernel="stretched-gaussian").to(torch.float64)
    bias.update(1, np.array([1.0])[:, None])
    x = np.linspace(-3.4, 3.4, 41)
    expected = 2.0 * (np.exp(-0.5 * x**2) - np.exp(-6.25)) / (1 - np.exp(-6.25))
    np.testing.assert_allclose(bias.value(1.0 + 0.5 * x), expected, atol=2e-6)
    np.testing.assert_allclose(bias.value(1.0 + 0.5 * np.array([-4.0, -3.7, 3.7, 4.0])), 0.0, atol=1e-12)
    with pytest.raises(UqbiasError, match="kernel 'gausian'; input should be 'gaussian'"):
        MetaD(kernel="gausian")


def test_metadynamics_takes_what_scripts_hand_over():
    one = MetaD(variables={"phi"}, pace=50.0, grid_range=np.array([[0.0, 1.0]]))
    assert (one.variables, one.pace) == (("phi",), 50)
    with pytest.raises(UqbiasError, match="did you mean 'gaussian'"):
        MetaD(kernel="gausian")
    with pytest.raises(UqbiasError, match="maximum above the minimum"):
        MetaD(grid_range=np.array([[1.0, 0.0]]))


class Tall(MetaD):
    """A default changed where it is declared: what is stored has it, and the bias made from that has it too."""

    kind = f"{__name__}:Tall"

    def __init__(self, *, height=4.0, **options):
        super().__init__(height=height, **options)


class InBody(MetaD):
    height = 4.0


class Unseen(MetaD):
    def __init__(self, **options):
        options.setdefault("height", 4.0)
        super().__init__(**options)


class Doubled(MetaD):
    def __init__(self, **options):
        super().__init__(**options | {"height": 2 * options.get("height", 1.0)})


class Behind(MetaD):
    def __init__(self, **options):
        super().__init__(**options)
        self.height = 4.0


def test_a_default_changed_in_a_subclass_is_stored():
    bias = Tall(variables="x", sigma=[0.4])
    description = json.loads(json.dumps(bias.describe()))
    twin = BIASES.restore(description)
    assert (twin.height, twin.variables, description["options"]["height"]) == (4.0, ("x",), 4.0)
    assert twin.describe() == bias.describe()
    assert Tall(height=2.0).options()["height"] == 2.0


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (InBody, r"InBody sets the option 'height' in its class body; declare height as a parameter"),
        (Unseen, r"Unseen changes its option height from 1\.0 to 4\.0; declare height as a parameter"),
        (Doubled, r"Doubled changes its option height from 1\.0 to 2\.0"),
        (Behind, r"Behind changes its option height from 1\.0 to 4\.0"),
    ],
)
def test_a_default_changed_unseen_is_refused(cls, message):
    with pytest.raises(UqbiasError, match=message):
        cls()


@pytest.mark.parametrize("kind", sorted(BIASES.names()))
def test_made_again_from_its_description(kind):
    needed = {name: 1.0 for name, option in options_of(BIASES.get(kind)).items() if option.required}
    values = {"variables": ["x"], **needed}
    bias = BIASES.rebuild(kind, values)
    twin = BIASES.restore(json.loads(json.dumps(bias.describe())))
    assert (twin.variables, twin.describe()) == (bias.variables, bias.describe())
    assert twin.describe()["options"]["variables"] == ["x"]
