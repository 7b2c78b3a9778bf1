"""Attacks and adversarial directions of crystals, in cells of two sizes; another model is the truth."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from periodic_systems import CELLS, atoms, model

from uqbias.attacks.ascent import attack
from uqbias.attacks.attack_options import AttackOptions, DirectionOptions
from uqbias.attacks.directions import directions, random_directions
from uqbias.model.inference import evaluate_frames
from uqbias.molecule.frames import Frames
from uqbias.oracles.base import Oracle

BOX, PERIODIC = CELLS["triclinic"]


class Twin(Oracle):
    kind: ClassVar[str] = "twin"
    periodic: ClassVar[bool] = True

    def __init__(self, truth):
        self.truth = truth

    def options(self):
        return {}

    def _evaluate(self, positions, cell=None):
        frames = Frames(np.array(self.truth.numbers), positions[None], cells=cell[None])
        said = evaluate_frames(self.truth, frames, forces=True)
        return float(said.energy[0]), said.forces[0]


@pytest.fixture(scope="module")
def crystal():
    numbers, positions = atoms(BOX, PERIODIC, n_walkers=2)
    x = positions.numpy()
    both = [model(numbers, positions, BOX, PERIODIC, n_channels=count) for count in (3, 2)]
    cells = np.array([BOX, 1.02 * BOX])
    return both[0], Twin(both[1]), Frames(np.array(numbers), x * [[[1.0]], [[1.02]]], cells=cells)


def error(model, oracle, frames, x, n):
    there = Frames(frames.numbers, x[None], cells=frames.cells[[n]])
    return float(evaluate_frames(model, there).energy[0]) - oracle.label(x, frames.cells[n]).energy


def test_gradient_against_central_differences_in_each_cell(crystal):
    model, oracle, frames = crystal
    options = DirectionOptions(zero="none", relax_steps=0, epsilons=(1e-4,), n_random=1)
    found = directions(model, frames, oracle, options)
    assert not found.failures
    for n in (0, 1):
        for place in ((0, 0), (5, 2)):
            ends = []
            for sign in (1, -1):
                x = frames.positions[n].copy()
                x[place] += sign * 1e-5
                ends.append(error(model, oracle, frames, x, n) ** 2)
            assert found.gradient[n][place] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-3, abs=1e-3)


def test_images_do_not_matter_and_the_error_grows_uphill(crystal):
    model, oracle, frames = crystal
    options = DirectionOptions(zero="none", relax_steps=2, relax_every=2, epsilons=(1e-3,), n_random=2)
    found = directions(model, frames, oracle, options)
    moved = frames.positions + np.eye(3)[1] @ frames.cells[:, None] * (np.arange(len(frames.numbers)) % 2)[:, None]
    other = directions(model, Frames(frames.numbers, moved, cells=frames.cells), oracle, options)
    np.testing.assert_allclose(other.displaced, found.displaced, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(other.relaxed, found.relaxed, rtol=1e-6, atol=1e-6)
    along = found.errors_along("adversarial")
    assert (along[:, 1] > along[:, 0]).all()


def test_random_directions_may_turn_a_crystal_and_do_not_move_it():
    x = np.random.default_rng(1).normal(size=(6, 3))
    moves = random_directions(x, 400, np.random.default_rng(0), turns=False)
    np.testing.assert_allclose(moves.sum(axis=1), 0.0, atol=1e-12)
    assert (np.linalg.svd(moves.reshape(400, 18), compute_uv=False) > 1).sum() == 15


def test_attacks_climb_in_the_cell_of_each_frame(crystal):
    model, _, frames = crystal
    options = AttackOptions(iterations=8, batch=2, runner="eager", temperature=1e5)
    four = frames[[0, 1, 0, 1]]
    found = attack(model, four, options, seed=1, dtype=torch.float64)
    assert not found.failed.any()
    reached = evaluate_frames(model, Frames(four.numbers, found.positions, cells=four.cells))
    np.testing.assert_allclose(found.judge, reached.judge, rtol=1e-6)
    np.testing.assert_allclose(found.energy, reached.energy, rtol=1e-6)
    assert (found.judge > evaluate_frames(model, four).judge).all()
    moved = Frames(four.numbers, four.positions + 2 * four.cells[:, :1], cells=four.cells)
    again = attack(model, moved, options, seed=1, dtype=torch.float64)
    np.testing.assert_allclose(again.judge, found.judge, rtol=1e-5)
