"""Adversarial directions: the gradient, the directions, failures, relaxation, tables."""

import csv
import json
from typing import ClassVar

import numpy as np
import pytest
from molecules import HYDROGENS_LAST, PEROXIDE, peroxide_geometries, peroxide_model
from scipy.spatial.transform import Rotation

from uqbias.attacks import relaxation
from uqbias.attacks.attack_options import DirectionOptions
from uqbias.attacks.direction_tables import first_step, lines_of, summary, write_tables
from uqbias.attacks.directions import directions, n_labels, random_directions, rigid_modes, uncertainty_gradient
from uqbias.attacks.relaxation import recorded_steps, relax
from uqbias.errors import UqbiasError
from uqbias.model.inference import evaluate_frames
from uqbias.oracles.base import Oracle, OracleError
from uqbias.report.direction_plots import save_direction_figure
from uqbias.units import ANGSTROM, EV

PAIRS = [(0, 1, 0.145), (0, 2, 0.097), (1, 3, 0.097), (0, 3, 0.19), (1, 2, 0.19)]
CONSTANT = 2e4  # kJ/mol/nm²


class Springs(Oracle):
    """Springs between atoms; some geometries cannot be labelled."""

    kind: ClassVar[str] = "springs"
    numbers = HYDROGENS_LAST.numbers

    def __init__(self, longest=None):
        self.longest = longest
        self.calls = 0

    def options(self):
        return {"longest": self.longest}

    def _evaluate(self, positions):
        self.calls += 1
        energy, forces = 0.0, np.zeros_like(positions)
        for i, j, length in PAIRS:
            apart = positions[i] - positions[j]
            r = np.linalg.norm(apart)
            if self.longest is not None and r > self.longest:
                raise OracleError(f"no convergence at {r:.3f} nm")
            energy += 0.5 * CONSTANT * (r - length) ** 2
            pull = -CONSTANT * (r - length) * apart / r
            forces[i] += pull
            forces[j] -= pull
        return energy, forces


class Broken(Springs):
    def _evaluate(self, positions):
        raise RuntimeError("it is switched off")


@pytest.fixture(scope="module")
def model():
    return peroxide_model()


@pytest.fixture(scope="module")
def frames():
    return peroxide_geometries(12, 4)


QUICK = DirectionOptions(epsilons=(1e-6, 0.01, 0.1), n_random=5, ascents=("judge", "driver"), relax_steps=12)


@pytest.fixture(scope="module")
def result(model, frames):
    return directions(model, frames, Springs(), QUICK)


def norm(result):
    return np.linalg.norm(result.gradient, axis=(1, 2))


def error(model, oracle, x):
    return float(evaluate_frames(model, x[None]).energy[0]) - oracle.label(x).energy


def test_gradient_against_central_differences(model, frames):
    oracle, zero, h = Springs(), -37.0, 1e-6
    found = directions(model, frames[:2], oracle, DirectionOptions(zero=zero / EV, relax_steps=0, epsilons=(0.1,)))
    for n in range(2):
        expected = np.zeros_like(frames[n])
        for place in np.ndindex(expected.shape):
            squares = []
            for sign in (1, -1):
                x = frames[n].copy()
                x[place] += sign * h
                squares.append((error(model, oracle, x) - zero) ** 2)
            expected[place] = (squares[0] - squares[1]) / (2 * h)
        assert found.gradient[n] == pytest.approx(expected, rel=1e-5, abs=1e-5 * np.abs(expected).max())
        assert norm(found)[n] == pytest.approx(np.linalg.norm(expected), rel=1e-5)
        forces = evaluate_frames(model, frames[n][None], forces=True).forces[0]
        cos = (expected * forces).sum() / np.linalg.norm(expected) / np.linalg.norm(forces)
        assert found.cosines["theta"][n] == pytest.approx(cos, abs=1e-5)


def test_cosines_do_not_turn_with_the_molecule(model, frames, result):
    turn = Rotation.random(len(frames), random_state=3).as_matrix()
    turned = np.einsum("nij,nkj->nki", turn, frames) + np.array([0.3, -1.0, 2.0])
    other = directions(model, turned, Springs(), DirectionOptions(ascents=("judge", "driver"), relax_steps=0))
    assert np.all(np.abs(result.cosines["theta"]) <= 1)
    assert result.cosines["theta"].min() < 0 < result.cosines["theta"].max()
    assert other.cosines["theta"] == pytest.approx(result.cosines["theta"], abs=1e-8)
    for name in ("judge", "driver"):
        assert other.cosines[name] == pytest.approx(result.cosines[name], abs=1e-7)
    assert norm(other) == pytest.approx(norm(result), rel=1e-8)


def test_random_directions_move_no_molecule_as_a_whole(frames):
    found = random_directions(frames[0], 200, np.random.default_rng(0))
    assert np.linalg.norm(found, axis=(1, 2)) == pytest.approx(np.ones(200))
    assert np.abs(found.sum(axis=1)).max() < 1e-12
    centred = frames[0] - frames[0].mean(axis=0)
    assert np.abs(np.cross(centred, found).sum(axis=1)).max() < 1e-12
    # All the other directions occur, none of them more than others.
    sizes = np.linalg.svd(found.reshape(200, 12), compute_uv=False)
    assert (sizes > 1).sum() == 6
    assert sizes[5] > 0.5 * sizes[0]


def test_rigid_modes_of_lines_and_atoms():
    line = np.array([[0, 0, 0], [0.1, 0, 0], [0.25, 0, 0.0]])
    assert len(rigid_modes(line)) == 5
    assert len(rigid_modes(line + np.array([[0, 0, 0], [0, 0.05, 0], [0, 0, 0]]))) == 6
    one = random_directions(np.zeros((1, 3)), 50, np.random.default_rng(0))
    assert np.linalg.norm(one, axis=(1, 2)) == pytest.approx(np.ones(50))


def test_uncertainty_gradient_against_differences(model, frames):
    h = 1e-6
    for name, of in (("judge", "raw_judge"), ("driver", "driver")):
        gradient = uncertainty_gradient(model, frames[:1], name)[0]
        step = np.zeros_like(frames[0])
        step[2, 1] = h
        up, down = (getattr(evaluate_frames(model, (frames[0] + sign * step)[None]), of)[0] for sign in (1, -1))
        assert gradient[2, 1] == pytest.approx((up - down) / (2 * h), rel=1e-5, abs=1e-6)


def test_errors_at_displaced_geometries(model, frames, result):
    assert result.names == ["adversarial", *["random"] * 5, "judge", "driver"]
    assert result.displaced.shape == (3, 12, 8, 3)
    expected = [error(model, Springs(), x) for x in frames]
    assert result.zero == pytest.approx(np.mean(np.sort(expected)[3:9]))
    assert result.start[0] == pytest.approx(np.array(expected) - result.zero)
    for kind in dict.fromkeys(result.names):
        along = result.errors_along(kind)
        assert along.shape == (12, 4)
        assert along[:, 0] == pytest.approx(np.abs(result.start[0]))
    # The displacement has the length √ε, along the gradient.
    delta = np.sqrt(0.01) * ANGSTROM * result.gradient[3] / norm(result)[3]
    assert result.displaced[0][3, 0, 1] == pytest.approx(
        error(model, Springs(), frames[3] + delta) - result.zero, abs=1e-8
    )
    # At first order the error grows by |F_app − F_acc| along it: nothing else grows it faster.
    slope = np.sqrt(12) * result.start[1] * np.sqrt(1e-6) * ANGSTROM
    growth = result.errors_along("adversarial")[:, 1] - np.abs(result.start[0])
    assert growth == pytest.approx(slope, rel=0.03)
    others = np.abs(result.displaced[0][:, 1:, 0]) - np.abs(result.start[0])[:, None]
    assert (others < 1.05 * slope[:, None]).all()


def test_no_displacement_no_change(model, frames):
    found = directions(model, frames, Springs(), DirectionOptions(epsilons=(1e-18,), relax_steps=0))
    for kind in dict.fromkeys(found.names):
        along = found.errors_along(kind)
        assert along[:, 1] == pytest.approx(along[:, 0], abs=1e-5)
        force = found.errors_along(kind, 1)
        assert force[:, 1] == pytest.approx(force[:, 0], abs=1e-3)


def test_zero_of_the_energies(model, frames, result):
    none = directions(model, frames, Springs(), DirectionOptions(zero="none", relax_steps=0, epsilons=(0.1,)))
    assert none.zero == 0
    assert none.start[0] == pytest.approx(result.start[0] + result.zero)


def test_a_zero_of_one_frame_is_refused_before_it_costs_a_label(model, frames):
    oracle = Springs()
    spoilt = frames[:2].copy()
    spoilt[1, 0, 0] = np.nan
    for few in (frames[:1], spoilt):
        with pytest.raises(UqbiasError, match="cannot be taken from one frame"):
            directions(model, few, oracle)
    assert oracle.calls == 0


def test_failures_are_counted_and_left_out(model, frames, result):
    longest = max(np.linalg.norm(frames[:, i] - frames[:, j], axis=1).max() for i, j, _ in PAIRS)
    long = frames.copy()
    long[4, 3] += [0.0, 0.0, 0.5]
    told = []
    found = directions(model, long, Springs(longest + 0.005), QUICK, advance=lambda count, note: told.append(count))
    assert found.source.tolist() == [n for n in range(12) if n != 4]
    reasons = {(failure.frame, failure.place) for failure in found.failures}
    assert (4, "frame") in reasons
    lost = [failure for failure in found.failures if failure.place != "frame"]
    missing = np.isnan(found.displaced[0])
    assert 0 < missing.sum() < missing.size
    assert missing.sum() == sum(not failure.place.startswith("relaxation") for failure in lost)
    assert np.array_equal(missing, np.isnan(found.displaced[1]))
    # What is left is what it was, but for the zero, which one frame less shifts.
    kept = np.delete(np.arange(12), 4)
    ours, theirs = found.displaced[0] + found.zero, (result.displaced[0] + result.zero)[kept]
    assert ours[:, 1:6][~missing[:, 1:6]] == pytest.approx(theirs[:, 1:6][~missing[:, 1:6]])
    facts = summary(found)
    assert facts["failed"] == len(found.failures)
    assert facts["frames_used"] == 11
    assert np.isfinite(facts["energy_error_meV"]["random"]["mean"]).all()
    assert sum(told) <= n_labels(12, QUICK)


def test_an_oracle_that_always_fails(model, frames):
    with pytest.raises(UqbiasError, match="none of 12 frames could be labelled: springs oracle failed: it is switched"):
        directions(model, frames, Broken())


def test_frames_that_are_not_numbers(model, frames):
    spoilt = frames.copy()
    spoilt[2, 0, 0] = np.nan
    found = directions(model, spoilt, Springs(), DirectionOptions(epsilons=(0.1,), relax_steps=0))
    assert found.source.tolist() == [n for n in range(12) if n != 2]
    assert [failure.frame for failure in found.failures] == [2]


def test_a_frame_without_error(model, frames, tmp_path):
    """It has no adversarial direction; the rest is measured all the same."""
    options = {"epsilons": (0.1,), "relax_steps": 2}
    plain = directions(model, frames, Springs(), DirectionOptions(zero="none", **options))
    found = directions(model, frames, Springs(), DirectionOptions(zero=plain.start[0][5] / EV, **options))
    assert norm(found)[5] == 0
    assert np.flatnonzero(np.isnan(found.cosines["theta"])).tolist() == [5]
    assert np.flatnonzero(np.isnan(found.errors_along("adversarial")[:, 1])).tolist() == [5]
    assert np.isfinite(found.errors_along("random")).all()
    assert [failure[:2] for failure in found.failures] == [(5, "adversarial")]
    assert np.isfinite(summary(found)["cos_theta"]["mean"])
    save_direction_figure({"first": found, "second": plain}, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_relaxation_goes_downhill(model, frames):
    path = relax(model.potential, frames, steps=60, every=20)
    assert path.steps.tolist() == [0, 1, 20, 40, 60] == recorded_steps(60, 20)
    energies = [evaluate_frames(model, x).energy for x in path.positions]
    assert (energies[1] < energies[0]).all()
    assert (energies[-1] < energies[1]).all()
    # The first step goes along the force.
    step, force = path.positions[1] - path.positions[0], evaluate_frames(model, frames, forces=True).forces
    cos = (step * force).sum(axis=(1, 2)) / np.linalg.norm(step, axis=(1, 2)) / np.linalg.norm(force, axis=(1, 2))
    assert cos == pytest.approx(np.ones(12), abs=1e-6)
    lenient = relax(model.potential, frames, steps=3, force_limit=1e6)
    assert lenient.converged.all()
    assert (lenient.positions == lenient.positions[0]).all()
    with pytest.raises(UqbiasError, match="force limit of relaxation nan eV/Å"):
        relax(model.potential, frames, force_limit=float("nan"))


def test_relaxations_that_break_off_are_counted(model, frames, monkeypatch):
    """Forces that are not finite stop their own frame, which stays where it was."""
    forces, calls = relaxation._forces, []

    def spoilt(potential, x, cells):
        found = forces(potential, x, cells)
        calls.append(len(x))
        if len(calls) == 3:
            found[4] = np.nan
        return found

    monkeypatch.setattr(relaxation, "_forces", spoilt)
    options = DirectionOptions(epsilons=(0.1,), n_random=2, relax_steps=6, relax_every=2)
    found = directions(model, frames, Springs(), options)
    assert found.relaxation.failed.tolist() == [n == 4 for n in range(12)]
    assert calls == [12, 12, 12, 11, 11, 11]
    assert summary(found)["relaxation"]["failed"] == 1
    path = found.relaxation.positions
    distance = np.linalg.norm(path - path[0], axis=(2, 3)).T
    assert distance[4, 2] == distance[4, -1] > 0
    assert (np.delete(distance, 4, axis=0)[:, -1] > np.delete(distance, 4, axis=0)[:, 2]).all()
    assert np.isfinite(found.relaxed).all()


def test_first_step_follows_cos_theta(model, frames, result):
    cos, change = first_step(result)
    assert len(cos) == 12
    size = np.abs(result.relaxed)
    assert change == pytest.approx((size[:, 1] - size[:, 0]) / EV * 1e3)
    clear = np.abs(cos) > 0.3
    assert clear.sum() >= 3
    assert (np.sign(cos) == np.sign(change))[clear].mean() >= 0.75
    assert result.relaxed[:, 0] == pytest.approx(result.start[0])
    last = error(model, Springs(), relax(model.potential, frames, steps=12).positions[-1, 5])
    assert result.relaxed[5, -1] == pytest.approx(last - result.zero, abs=1e-8)


def test_seed_and_index_choose_the_random_directions(model, frames, result):
    options = DirectionOptions(epsilons=QUICK.epsilons, n_random=5, ascents=(), relax_steps=0, zero=result.zero / EV)
    some = directions(model, frames[[7, 2]], Springs(), options, indices=[7, 2])
    assert some.displaced[0][:, :6] == pytest.approx(result.displaced[0][[7, 2], :6])
    other = directions(model, frames[[7, 2]], Springs(), options, indices=[7, 2], seed=1)
    assert not np.allclose(other.displaced[0][:, 1:6], some.displaced[0][:, 1:6])


def test_summary_and_tables(result, tmp_path):
    facts = summary(result)
    sizes = np.abs(result.displaced[0][:, 1:6]).mean(axis=1) / EV * 1e3
    random = facts["energy_error_meV"]["random"]
    assert random["mean"][1:] == pytest.approx(sizes.mean(axis=0))
    assert random["standard_error"][1:] == pytest.approx(sizes.std(axis=0, ddof=1) / np.sqrt(12))
    adversarial = facts["energy_error_meV"]["adversarial"]["mean"]
    assert facts["ratio"]["adversarial"] == pytest.approx(np.array(adversarial) / random["mean"])
    assert facts["cos_theta"]["std_of_chance"] == pytest.approx(1 / np.sqrt(6))
    lines = lines_of(facts)
    head = next(place for place, line in enumerate(lines) if line.startswith("  ε (Å²)"))
    assert [line.split()[0] for line in lines[head + 1 : head + 5]] == ["0", "1e-06", "0.01", "0.1"]
    assert lines[head + 5] == ""
    files = write_tables(result, tmp_path)
    assert [file.name for file in files] == ["directions.csv", "frames.csv", "relaxation.csv"]
    with files[0].open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 12 * 8 * 3
    row = rows[(5 * 8 + 2) * 3 + 1]
    assert (row["frame"], row["direction"], row["number"], row["epsilon_A2"]) == ("5", "random", "1", "0.01")
    assert float(row["displacement_A"]) == pytest.approx(0.1)
    assert float(row["energy_error_eV"]) * EV == pytest.approx(result.displaced[0][5, 2, 1], rel=1e-5)
    json.dumps(facts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilons": (0.1, -0.1)}, r"directions with epsilons \(0.1, -0.1\); input should be greater than 0"),
        ({"epsilons": ()}, r"epsilons \(\); list should have at least 1 item"),
        ({"n_random": 0}, "n_random 0; input should be greater than or equal to 1"),
        ({"ascents": ("drver",)}, "input should be 'judge' or 'driver'; did you mean 'driver'"),
        ({"relax_steps": -1}, "relax_steps -1; input should be greater than or equal to 0"),
        ({"relax_every": 0}, "relax_every 0; input should be greater than or equal to 1"),
        ({"zero": "mean"}, "zero 'mean'; choose frames, none, or a finite difference in eV"),
        ({"zero": float("nan")}, "zero nan; choose frames, none, or a finite difference in eV"),
        ({"zero": float("-inf")}, "zero -inf; choose"),
        ({"zero": 1e308}, r"zero 1e\+308; choose"),
        ({"relax_force": float("nan")}, "relax_force nan; input should be a finite number"),
        ({"relax_force": 0.0}, "relax_force 0.0; input should be greater than 0"),
    ],
)
def test_bad_options(model, frames, options, message):
    oracle = Springs()
    with pytest.raises(UqbiasError, match=message):
        directions(model, frames, oracle, DirectionOptions(**options))
    assert oracle.calls == 0


def test_oracle_of_another_molecule(model, frames):
    other = Springs()
    other.numbers = PEROXIDE.numbers
    with pytest.raises(UqbiasError, match="the springs oracle is for atoms"):
        directions(model, frames, other)
