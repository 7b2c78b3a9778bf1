"""Adversarial attacks: what they climb, its gradient, and what the batch does when one of them goes wrong."""

import copy
import math

import numpy as np
import pytest
import torch

from uqbias.attacks import AttackOptions, Objective, RandomOptions, attack, distort, distort_at_random
from uqbias.attacks.objective import AttackGraph, log_partition, log_softplus
from uqbias.errors import UqbiasError
from uqbias.model.inference import evaluate_frames
from uqbias.molecule.frames import Frames
from uqbias.registry import SPACES
from uqbias.testing import build_case, molecule
from uqbias.units import kt

TURN = {"turn": {"kind": "dihedral", "atoms": list(molecule.TORSION)}}
FRAMES = molecule.frames(6, seed=5).positions
QUICK = {"runner": "eager", "iterations": 8, "temperature": 1000.0, "batch": 4}
KINDS = {
    "committee": {},
    "committee_forces": {"quantity": "forces"},
    "shallow_ensemble": {},
    "mve": {},
    "evidential": {},
    "llpr": {},
    "distance": {},
    "kernel_density": {},
    "gmm": {"n_components": 2},
}


@pytest.fixture(scope="module")
def model():
    return build_case("gmm", {"n_components": 2}, steps=60).model


def run(model, positions=FRAMES, *, seed=0, training_energies=None, **options):
    return attack(
        model,
        positions,
        AttackOptions(**{**QUICK, **options}),
        variables=TURN,
        seed=seed,
        training_energies=training_energies,
        dtype=torch.float64,
    )


@pytest.fixture(scope="module")
def plain(model):
    """Attacks with the options of `QUICK`, for tests that compare with them."""
    return run(model)


def test_partition_function_is_the_sum_and_does_not_overflow():
    energies = np.random.default_rng(0).normal(0.0, 5.0, 50)
    assert log_partition(energies, 300.0) == pytest.approx(math.log(np.exp(-energies / kt(300.0)).sum()))
    for shift in (1e6, -1e9):
        shifted = log_partition(energies + shift, 300.0)
        assert shifted == pytest.approx(log_partition(energies, 300.0) - shift / kt(300.0), rel=1e-12)
    assert log_partition(np.array([-1e9, 1e9]), 300.0) == pytest.approx(1e9 / kt(300.0))


def test_likelihood_is_the_published_one_where_u_is_positive():
    random = np.random.default_rng(1)
    energies, u = random.normal(0.0, 10.0, 40), random.uniform(20.0, 30.0, 40)
    objective = Objective.from_frames(energies, u, 500.0)
    E, judge = 12.0, 90.0
    likelihood = judge * math.exp(-E / kt(500.0)) / np.exp(-energies / kt(500.0)).sum()
    assert float(objective(np.array(judge), np.array(E))) == pytest.approx(math.log(likelihood), rel=1e-6)
    # The zero of the energies does not matter, to rounding of a number of 1e9.
    moved = Objective.from_frames(energies - 1e9, u, 500.0)
    assert float(moved(np.array(judge), np.array(E - 1e9))) == pytest.approx(math.log(likelihood), abs=1e-6)


def test_positive_form_of_u():
    objective = Objective.from_frames(np.zeros(3), np.array([-2.0, 0.0, 2.0]), 300.0)
    u = np.array([-1e4, -50.0, -1.0, 0.0, 1.0, 5.0, 1e6])
    found = objective.log_positive(u)
    s = objective.scale
    np.testing.assert_allclose(found[2:5], np.log(s * np.log1p(np.exp(u[2:5] / s))))
    np.testing.assert_allclose(found[:2], u[:2] / s + math.log(s))
    np.testing.assert_allclose(found[5:], np.log(u[5:]), rtol=1e-3)
    assert (np.diff(found) > 0).all()
    z = torch.tensor([*(u / s), -14.999, -15.001], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(log_softplus(z).sum(), z)
    np.testing.assert_allclose(log_softplus(z).detach().numpy()[:7], found - math.log(s), rtol=1e-6)
    assert torch.isfinite(slope).all()
    assert (slope > 0).all()
    assert Objective.from_frames(np.zeros(1), np.zeros(4), 300.0).scale > 0


def test_objective_leaves_out_what_is_not_finite():
    good = Objective.from_frames(np.array([1.0, 2.0]), np.array([3.0, 4.0]), 300.0)
    bad = Objective.from_frames(np.array([1.0, np.nan, 2.0, np.inf]), np.array([3.0, -np.inf, 4.0]), 300.0)
    assert bad == good
    with pytest.raises(UqbiasError, match="finite for none"):
        Objective.from_frames(np.array([np.nan]), np.ones(1), 300.0)


def graph_of(model, space, **options):
    sound = evaluate_frames(model, FRAMES)
    objective = Objective.from_frames(sound.energy, sound.judge, 800.0, **options)
    return AttackGraph(
        model, space, 2, Frames(np.array(model.numbers), FRAMES), objective, runner="eager", dtype=torch.float64
    ), objective


def check_gradient(model, space, **options):
    graph, objective = graph_of(model, space, **options)
    random = np.random.default_rng(3)
    # 0.005 nm, 0.05 rad: away from the frames, not into broken molecules.
    delta = 5.0 * space.default_noise * random.standard_normal((2, space.n_coordinates)) / math.sqrt(5.0)
    of = options.get("of", "judge")

    def climbed(at):
        point = graph(FRAMES[:2], at)
        return objective(getattr(point, of), point.energy)

    gradient = graph(FRAMES[:2], delta).gradient
    for _ in range(3):
        direction = random.standard_normal(delta.shape)
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        step = 1e-3 * space.default_noise
        slope = (climbed(delta + step * direction) - climbed(delta - step * direction)) / (2 * step)
        np.testing.assert_allclose((gradient * direction).sum(1), slope, rtol=1e-4, atol=1e-5 * np.abs(gradient).max())
    point = graph(FRAMES[:2], delta)
    found = evaluate_frames(model, distort(space, FRAMES[:2], delta))
    np.testing.assert_allclose(point.energy + float(model.potential.energy_shift), found.energy, rtol=1e-9)
    np.testing.assert_allclose(point.judge, found.judge, rtol=1e-7)
    np.testing.assert_allclose(point.driver, found.driver, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", KINDS)
def test_gradient_of_every_kind(name):
    case = build_case(name.removesuffix("_forces"), KINDS[name], steps=15)
    check_gradient(case.model, SPACES.build("cartesian", topology=molecule.topology(), reference=FRAMES[0]))


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "internal", "bonds": True, "angles": True},
        {"kind": "variables"},
        {"kind": "variables", "rigid": False},
    ],
)
def test_gradient_in_every_space(model, spec):
    space = SPACES.build(spec, topology=molecule.topology(), reference=FRAMES[0], collective_variables=TURN)
    check_gradient(model, space, of="driver")


@pytest.mark.parametrize("space", ["cartesian", "internal", "variables"])
def test_likelihood_rises(model, space):
    found = run(model, space={"kind": space}, iterations=25)
    start = found.trajectory["log_likelihood"][0]
    assert not found.failed.any()
    assert (found.log_likelihood >= start).all()
    assert np.median(found.log_likelihood - start) > 0.1
    np.testing.assert_allclose(found.log_likelihood, found.trajectory["log_likelihood"].max(axis=0))
    again = evaluate_frames(model, found.positions)
    np.testing.assert_allclose(found.energy, again.energy)
    np.testing.assert_allclose(found.judge, again.judge)
    np.testing.assert_allclose(found.driver, again.driver)


def test_bound_is_kept(model):
    free, bound = run(model, iterations=20), run(model, iterations=20, bound=0.01)
    assert free.norm.max() > 0.012
    assert bound.norm.max() <= 0.01 * (1 + 1e-12)
    moved = np.linalg.norm(bound.trajectory["positions"] - FRAMES, axis=(2, 3))
    assert moved.max() <= 0.01 * (1 + 1e-9)
    on = bound.norm > 0.0999999 * 0.1
    assert {bound.status[i] for i in np.flatnonzero(on)} == {"bound"}
    assert on.any()


def test_a_batch_does_what_each_attack_does_alone(model, plain):
    alone = run(model, batch=1)
    np.testing.assert_allclose(alone.positions, plain.positions, atol=1e-12)
    np.testing.assert_allclose(alone.log_likelihood, plain.log_likelihood, atol=1e-9)
    assert alone.status == plain.status


def test_stopped_attacks_make_room_for_waiting_ones(model):
    told = []
    options = AttackOptions(**QUICK | {"batch": 2, "tolerance": 4.0, "patience": 2})
    found = attack(model, FRAMES, options, dtype=torch.float64, advance=lambda n, note: told.append(n))
    assert set(found.status) <= {"converged", "iterations"}
    assert (found.iterations <= 8).all()
    assert sum(told) == 8 * len(FRAMES)
    for i, (status, made) in enumerate(zip(found.status, found.iterations, strict=True)):
        assert (status == "iterations") == (made == 8)
        later = found.trajectory["positions"][made:, i]
        assert (later == later[0]).all(), "a stopped attack is not moved any more"
        if made:
            assert (found.trajectory["positions"][made - 1, i] != later[0]).any()
    same = run(model, tolerance=4.0, patience=2, batch=6)
    np.testing.assert_allclose(same.positions, found.positions, atol=1e-12)
    assert same.status == found.status
    assert "converged" in found.status, "tolerance and patience of this test must stop some"


def test_one_seed_gives_one_result(model, plain):
    again, other = run(model), run(model, seed=1)
    np.testing.assert_array_equal(again.positions, plain.positions)
    assert not np.allclose(other.positions, plain.positions, atol=1e-5)


def test_the_model_is_left_as_it_was(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attack(model, FRAMES[:1], AttackOptions(**QUICK), dtype=torch.float32)
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype, name
        assert torch.equal(tensor, before[name]), name


def test_a_poisoned_frame_does_not_disturb_the_others(model):
    poisoned = np.concatenate([FRAMES, FRAMES[:3]])
    poisoned[1] = np.nan
    poisoned[6, 1] = poisoned[6, 0]  # two atoms in one place
    poisoned[7, 3, 1] = np.inf
    energies = evaluate_frames(model, FRAMES).energy
    found = run(model, poisoned, training_energies=energies, noise=0.0, batch=4, scale=20.0)
    clean = [0, 2, 3, 4, 5, 8]
    assert [found.status[i] for i in (1, 7)] == ["failed: the start frame is not finite"] * 2
    assert not found.failed[clean].any()
    assert np.isfinite(found.positions[clean]).all()
    assert np.isfinite(found.log_likelihood[clean]).all()
    # Frame 2 comes again as frame 8.
    np.testing.assert_allclose(found.positions[2], found.positions[8], atol=1e-13)
    alone = run(model, poisoned[clean], training_energies=energies, noise=0.0, scale=20.0)
    np.testing.assert_allclose(found.positions[clean], alone.positions, atol=1e-12)
    np.testing.assert_allclose(found.log_likelihood[clean], alone.log_likelihood, atol=1e-9)
    assert np.abs(alone.positions - poisoned[clean]).max() > 1e-3


def test_a_broken_frame_hardly_changes_the_scale_of_u():
    u = np.random.default_rng(0).uniform(10.0, 20.0, 50)
    scale = Objective.from_frames(np.zeros(1), u, 300.0).scale
    assert Objective.from_frames(np.zeros(1), np.append(u, 1e9), 300.0).scale == pytest.approx(scale, rel=0.1)
    assert Objective.from_frames(np.zeros(1), u, 300.0, scale=3.0).scale == 3.0


class Cliff(torch.nn.Module):
    """A potential that is not finite, or very high, once an atom has gone 0.003 nm along x."""

    def __init__(self, potential, height, first):
        super().__init__()
        self.inner, self.height = potential, height
        self.first = first
        self.numbers, self.n_members = potential.numbers, potential.n_members
        self.register_buffer("energy_shift", potential.energy_shift)
        self.seen = potential.seen

    def uses_table(self, *, box):
        return self.inner.uses_table(box=box)

    def forward(self, positions, geometry=None):
        energy, latents = self.inner(positions, geometry)
        beyond = (positions[..., 0, 0] - self.first).abs() < 0.05
        moved = positions[..., 0, 0] > self.first + 0.002
        return energy + torch.where(beyond & moved, self.height, 0.0), latents


@pytest.mark.parametrize(
    ("height", "reason"), [(float("nan"), "the energy is not finite"), (1e7, "kJ/mol"), (float("inf"), "not finite")]
)
def test_an_attack_that_falls_off_a_cliff_keeps_its_last_good_geometry(model, height, reason):
    apart = FRAMES + np.arange(len(FRAMES))[:, None, None] * np.array([1.0, 0.0, 0.0])
    broken = copy.deepcopy(model)
    energies = evaluate_frames(model, apart).energy
    broken.potential = Cliff(broken.potential, height, float(apart[2, 0, 0]))
    # Every attack is drawn along x by a start far along it.
    options = {"space": {"kind": "cartesian", "atoms": [0], "axes": "x"}, "learning_rate": 0.004, "patience": 20}
    found = run(broken, apart, training_energies=energies, noise=0.0, iterations=12, **options)
    sound = run(model, apart, training_energies=energies, noise=0.0, iterations=12, **options)
    crossed = sound.trajectory["positions"][:, 2, 0, 0].max() > apart[2, 0, 0] + 0.002
    if not crossed:
        pytest.fail("the attack of this test has to reach the cliff")
    assert found.failed.tolist() == [False, False, True, False, False, False]
    assert reason in found.status[2]
    assert found.positions[2, 0, 0] <= apart[2, 0, 0] + 0.002
    assert np.isfinite(found.positions).all()
    assert np.isfinite(found.energy).all()
    others = [0, 1, 3, 4, 5]
    np.testing.assert_allclose(found.positions[others], sound.positions[others], atol=1e-12)


def test_attacks_that_fly_apart_are_stopped(model):
    found = run(model, learning_rate=5.0, iterations=5)
    assert found.failed.all()
    assert {"flew apart" in status or "kJ/mol" in status for status in found.status} == {True}
    assert np.abs(found.positions - FRAMES).max() < 0.1
    assert (found.iterations < 5).all()


def test_total_energies_of_a_billion_keep_their_digits(model):
    far = copy.deepcopy(model)
    far.potential.energy_shift.fill_(-1e9)
    near, moved = (attack(one, FRAMES, AttackOptions(**QUICK), dtype=torch.float32) for one in (model, far))
    shift = float(model.potential.energy_shift)
    np.testing.assert_allclose(moved.positions, near.positions, atol=1e-6)
    np.testing.assert_allclose(moved.energy + 1e9, near.energy - shift, atol=1e-2)
    np.testing.assert_allclose(moved.log_likelihood, near.log_likelihood, atol=1e-2)


def test_trajectory(model, plain):
    third, none = run(model, keep_every=3), run(model, keep_every=0)
    assert plain.trajectory["iteration"].tolist() == list(range(9))
    assert third.trajectory["iteration"].tolist() == [0, 3, 6]
    for name in ("positions", "energy", "judge", "log_likelihood"):
        np.testing.assert_array_equal(third.trajectory[name], plain.trajectory[name][::3])
        assert len(plain.trajectory[name]) == 9
    assert none.trajectory == {}
    np.testing.assert_array_equal(none.positions, plain.positions)
    assert plain.trajectory["positions"].shape == (9, *FRAMES.shape)


def test_wrong_options():
    for name, value in (
        ("iterations", 0),
        ("learning_rate", 0.0),
        ("temperature", -1.0),
        ("temperature", math.nan),
        ("noise", -0.1),
        ("bound", 0.0),
        ("patience", 0),
        ("batch", 0),
        ("keep_every", -1),
    ):
        with pytest.raises(UqbiasError, match=f"attack with {name} {value}"):
            AttackOptions(**{name: value})
    with pytest.raises(UqbiasError, match="did you mean 'judge'"):
        AttackOptions(of="juge")
    with pytest.raises(UqbiasError, match="amplitude"):
        RandomOptions(amplitude=[0.1, -0.1])
    with pytest.raises(UqbiasError, match="did you mean 'uniform'"):
        RandomOptions(distribution="unifrm")


def test_wrong_frames(model):
    with pytest.raises(UqbiasError, match=r"shape \(6, 4, 3\) for a model of 12 atoms"):
        run(model, FRAMES[:, :4])
    with pytest.raises(UqbiasError, match="none of the 2 frames is finite"):
        run(model, np.full((2, 12, 3), np.nan))
    with pytest.raises(UqbiasError, match="n > 0"):
        run(model, FRAMES[:0])


def test_random_distortions(model):
    many = np.repeat(FRAMES[:1], 400, axis=0)
    for distribution, widest in (("normal", np.inf), ("uniform", 0.02)):
        found = distort_at_random(model, many, RandomOptions(amplitude=0.02, distribution=distribution))
        apart = found.positions - many
        assert np.abs(apart).max() <= widest
        assert apart.std() == pytest.approx(0.02 if distribution == "normal" else 0.02 / math.sqrt(3), rel=0.02)
        np.testing.assert_allclose(found.norm, np.linalg.norm(apart, axis=(1, 2)))
        assert set(found.status) == {"random"}
        again = evaluate_frames(model, found.positions[:5])
        np.testing.assert_allclose(found.judge[:5], again.judge)
    internal = {"kind": "internal", "torsions": True}
    amplitudes = [0.5, 0.0, 0.1]
    found = distort_at_random(model, many[:50], RandomOptions(space=internal, amplitude=amplitudes), seed=4)
    np.testing.assert_allclose(found.delta.std(axis=0), amplitudes, rtol=0.3)
    with pytest.raises(UqbiasError, match="2 amplitudes for 3 coordinates"):
        distort_at_random(model, many[:2], RandomOptions(space=internal, amplitude=[0.1, 0.1]))
    with pytest.raises(UqbiasError, match="frame 1 to distort is not finite"):
        distort_at_random(model, np.where(np.arange(3)[:, None, None] == 1, np.nan, many[:3]))


def test_a_random_distortion_that_cannot_be_evaluated_keeps_its_start(model):
    found = distort_at_random(model, FRAMES, RandomOptions(amplitude=1e200))
    assert found.failed.all()
    np.testing.assert_array_equal(found.positions, FRAMES)
    np.testing.assert_allclose(found.energy, evaluate_frames(model, FRAMES).energy)
    assert not found.delta.any()
