"""Walkers on a toy molecule: evaluations counted, statistics, determinism, guards, constraints."""

import numpy as np
import pytest
import torch
from molecules import PEROXIDE, peroxide
from toy_walkers import Peroxide, make

from uqbias.bias.base import BiasSum
from uqbias.bias.fixed import UpperWall
from uqbias.bias.metad import MetaD
from uqbias.errors import UqbiasError
from uqbias.md.constraints import choose_constraints
from uqbias.md.engines import ENGINES
from uqbias.md.guards import Guard
from uqbias.molecule.measures import StiffTorsions, dihedral_angles
from uqbias.molecule.topology import Topology
from uqbias.units import kt

#: Multiples of the reference lengths, narrower than usual.
TIGHT = (0.8, 1.25)

torch.set_num_threads(1)


@pytest.mark.parametrize("backend", ["pythonforce", "torchforce"])
def test_one_evaluation_a_step(backend):
    if backend == "torchforce":
        pytest.importorskip("openmmtorch")
    bias = BiasSum([MetaD(pace=20, sigma=0.3), UpperWall(at=5.5)])
    walkers = make(bias=bias, backend=backend)
    seen = []
    walkers.run(100, pace=10, observers=[seen.append])
    # One for each of the 101 places visited, the start and the end included.
    assert walkers.evaluator.n_evaluations == 101
    walkers.run(100, pace=10, observers=[seen.append])
    assert walkers.evaluator.n_evaluations == 201
    assert [o.step for o in seen] == list(range(0, 201, 10))
    assert len(bias.biases[0].hills) == 4 * 10
    assert seen[-1].time_ps == pytest.approx(0.1)


def test_observations_are_of_the_current_positions():
    bias = MetaD(pace=10, sigma=0.5, height=2.0)
    walkers = make(bias=bias)
    seen = []
    walkers.run(100, pace=10, observers=[seen.append])
    model = Peroxide()
    for o in seen:
        energy, driver, judge = model(torch.tensor(o.positions))
        np.testing.assert_allclose(o.energy, energy.detach(), rtol=1e-12)
        np.testing.assert_allclose(o.driver, driver.detach(), rtol=1e-12)
        np.testing.assert_allclose(o.judge, judge.detach(), rtol=1e-9)
    # Hills of step k act from step k+1 on: the bias seen at a deposition is that of the earlier hills.
    last = seen[-1]
    earlier = bias.hills[bias.hills["step"] < last.step]
    scaled = (last.driver[:, None] - earlier["centre"][:, 0]) / earlier["sigma"][:, 0]
    gauss = earlier["height"] * np.exp(-0.5 * scaled**2)
    np.testing.assert_allclose(last.bias, gauss.sum(1), atol=1e-4)
    np.testing.assert_allclose(bias.hills["centre"][-4:, 0], last.driver)


def test_same_seed_same_run():
    runs = []
    for seed in (3, 3, 4):
        seen = []
        bias = MetaD(pace=10, sigma=0.3)
        make(bias=bias, seed=seed).run(200, pace=10, observers=[seen.append])
        runs.append(np.concatenate([o.positions for o in seen] + [bias.value(np.linspace(0, 6, 12))], axis=None))
    np.testing.assert_array_equal(runs[0], runs[1])
    assert np.abs(runs[0] - runs[2]).max() > 1e-3


@pytest.mark.parametrize("engine", ENGINES)
def test_canonical_torsion_and_temperature(engine):
    walkers = make(n_walkers=32, seed=1, friction_per_ps=20.0, engine=engine)
    # Half the walkers start in either well, so that only the shape of the wells is tested.
    for walker in range(16):
        walkers.place(walker, peroxide(-np.pi / 2))
    seen, temperatures = [], []
    walkers.run(4000, pace=20, observers=[seen.append, lambda o: temperatures.append(walkers.kinetic_temperatures())])
    assert np.mean(temperatures[50:]) == pytest.approx(300.0, rel=0.03)
    phi = np.concatenate([dihedral_angles(o.positions, [(0, 1, 2, 3)])[:, 0] for o in seen[50:]])
    grid = np.linspace(-np.pi, np.pi, 2001)
    weight = np.exp(-12.0 * np.cos(grid) ** 2 / kt(300.0))
    expected = (weight * np.cos(grid) ** 2).sum() / weight.sum()
    assert np.mean(np.cos(phi) ** 2) == pytest.approx(expected, rel=0.12)


@pytest.mark.parametrize("engine", ENGINES)
def test_guard_restarts_one_walker_and_leaves_the_others(engine):
    guard = Guard(PEROXIDE, peroxide(), bond_range=TIGHT)
    alone, disturbed = [], []
    make(seed=5, guard=guard, engine=engine).run(100, pace=10, observers=[alone.append])
    walkers = make(seed=5, guard=guard, engine=engine)
    walkers.run(50, pace=10, observers=[disturbed.append])
    x, v = walkers.snapshot(2)
    v[0] += 400.0
    walkers.place(2, x, v)
    walkers.run(50, pace=10, observers=[disturbed.append])
    assert [event.walker for event in walkers.events] == [2]
    event = walkers.events[0]
    assert event.step == 60
    assert event.reason in {"bond", "force"}
    stopped = next(o for o in disturbed if o.restarted.any())
    assert stopped.restarted.tolist() == [False, False, True, False]
    others = [0, 1, 3]
    for one, other in zip(alone, disturbed, strict=True):
        np.testing.assert_array_equal(one.positions[others], other.positions[others])
        assert np.isfinite(other.positions).all()
    assert not guard.check(disturbed[-1].positions)
    # The restart costs one evaluation, since the next step starts elsewhere.
    assert walkers.evaluator.n_evaluations == 101 + 1


@pytest.mark.parametrize(
    "settings",
    [
        {"platform": platform, "constraints": constraints}
        for platform in ("Reference", "CPU")
        for constraints in ("none", "bonds_angles")
    ]
    + [{"engine": "torch"}],
    ids=str,
)
def test_not_finite_walker_is_restarted(settings):
    walkers = make(guard=Guard(PEROXIDE, peroxide(), bond_range=TIGHT), **settings)
    walkers.run(10, pace=10)
    x, v = walkers.snapshot(1)
    walkers._place({1: (np.full_like(x, np.nan), v)})
    seen = []
    walkers.run(20, pace=10, observers=[seen.append])
    assert [(e.walker, e.reason) for e in walkers.events] == [(1, "not_finite")]
    assert seen[0].restarted[1]
    assert np.isfinite(seen[1].positions).all()
    assert np.isfinite(walkers.kinetic_temperatures()).all()


def test_stopped_walkers_deposit_no_hill():
    bias = MetaD(pace=10, sigma=0.3)
    guard = Guard(PEROXIDE, peroxide(), bond_range=TIGHT, driver_cap=5.0)
    safe = np.stack([peroxide(-0.5 * np.pi), peroxide(-0.4 * np.pi)])
    walkers = make(bias=bias, guard=guard, safe_frames=safe, choose_restart=lambda walker, frames, rng: 1)
    walkers.run(10, pace=10)
    assert len(bias.hills) == 0 or (bias.hills["centre"] <= 5.0).all()
    first = [e for e in walkers.events if e.step == 0]
    assert [(e.walker, e.reason, e.restart_frame) for e in first] == [(w, "driver", 1) for w in range(4)]
    assert first[0].values["driver"] == pytest.approx(6.0)


def test_walker_without_a_safe_place_is_an_error():
    walkers = make(n_walkers=1, guard=Guard(PEROXIDE, peroxide(), bond_range=TIGHT, driver_cap=-1.0))
    with pytest.raises(UqbiasError, match="20 observations in a row"):
        walkers.run(1000, pace=10)


def test_unphysical_safe_frames_are_refused():
    wrong = np.stack([peroxide(), peroxide() * 1.4])
    with pytest.raises(UqbiasError, match=r"safe frame 1 violates the guard itself: 'bond'"):
        make(guard=Guard(PEROXIDE, peroxide(), bond_range=TIGHT), safe_frames=wrong)


def test_reasons_of_the_guard():
    lactic = Topology((6, 1, 9, 17, 35), tuple((0, i) for i in range(1, 5)))
    tetrahedron = 0.15 * np.array([[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3)
    guard = Guard(lactic, tetrahedron)
    mirrored = tetrahedron * [1, 1, -1]
    assert [(v.walker, v.reason) for v in guard.check(np.stack([tetrahedron, mirrored]))] == [(1, "chirality")]

    x = np.stack([peroxide(), peroxide(-np.pi / 2), peroxide(), peroxide(), peroxide()])
    x[2, 0] = x[2, 3] + [0.0, 0.03, 0.0]
    stiff = StiffTorsions([(0, 1, 2, 3)], peroxide())
    guard = Guard(PEROXIDE, peroxide(), bond_range=(0.1, 9.0), turned=stiff, driver_cap=1.0, judge_cap=5.0)
    found = guard.check(x, np.array([0, 0, 0, 2.0, 0]), np.array([0, 0, 0, 0, 6.0]))
    assert [(v.walker, v.reason) for v in found] == [
        (1, "torsion"),
        (2, "clash"),
        (3, "driver"),
        (4, "judge"),
    ]
    assert found[0].values["degrees"] == pytest.approx(180.0)
    broken = guard.check(x[:1], broken=np.array([True]))
    assert broken[0].reason == "force"


@pytest.mark.parametrize(("kind", "number"), [("none", 0), ("hbonds", 2), ("bonds", 3), ("bonds_angles", 5)])
def test_constraints_hold(kind, number):
    walkers = make(constraints=kind, start=np.stack([peroxide(), peroxide(2.0)]) * 1.02, constraint_geometry=peroxide())
    assert len(walkers.constraints) == number
    seen = []
    walkers.run(400, pace=100, observers=[seen.append])
    for o in seen:
        for i, j, length in walkers.constraints:
            np.testing.assert_allclose(
                np.linalg.norm(o.positions[:, i] - o.positions[:, j], axis=-1), length, rtol=1e-5
            )
    assert walkers.evaluator.n_evaluations == 401


def test_constraints_are_independent():
    """Cyclobutane-like ring: all bonds and both diagonals are more than the ring's internal coordinates allow."""
    ring = Topology((6, 6, 6), ((0, 1), (1, 2), (0, 2)))
    triangle = np.array([[0, 0, 0], [0.15, 0, 0], [0.075, 0.13, 0]])
    assert len(choose_constraints(ring, triangle, "bonds_angles")) == 3
    methane = Topology((6, 1, 1, 1, 1), tuple((0, i) for i in range(1, 5)))
    x = 0.109 * np.array([[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3)
    assert len(choose_constraints(methane, x, "bonds_angles")) == 9
    planar = Topology((6, 8, 1, 1), ((0, 1), (0, 2), (0, 3)))
    x = np.array([[0, 0, 0], [0, 0.12, 0], [0.095, -0.055, 0], [-0.095, -0.055, 0]])
    pairs = [(i, j) for i, j, _ in choose_constraints(planar, x, "bonds_angles")]
    assert pairs == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)]
    with pytest.raises(UqbiasError, match="did you mean 'bonds'"):
        choose_constraints(planar, x, "bond")


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: make().run(15, pace=10), "multiple"),
        (lambda: make(bias=MetaD(pace=25)).run(100, pace=10), "misses updates"),
        (lambda: make(platform="CUDAA"), "platform"),
        (lambda: make(start=np.zeros((2, 3, 3))), "shape"),
        (lambda: make(start=np.full((1, 4, 3), np.nan)), "finite"),
    ],
)
def test_bad_input(action, message):
    with pytest.raises(UqbiasError, match=message):
        action()


def test_an_error_inside_the_evaluation_comes_out_as_itself():
    walkers = make()
    walkers.evaluator._run = lambda inputs: 1 / 0
    with pytest.raises(ZeroDivisionError):
        walkers.run(10, pace=10)
