"""Attacks on batches with broken frames: these set no standard for the others."""

import numpy as np
import pytest
import torch

from uqbias.attacks import AttackOptions, RandomOptions, attack, distort_at_random
from uqbias.attacks.usable_frames import inliers, reference_frames
from uqbias.model.inference import evaluate_frames
from uqbias.molecule.topology import Topology
from uqbias.testing import build_case, molecule

FRAMES = molecule.frames(6, seed=5).positions
QUICK = {"runner": "eager", "iterations": 8, "temperature": 1000.0, "batch": 4}


@pytest.fixture(scope="module")
def model():
    return build_case("gmm", {"n_components": 2}, steps=60).model


def run(model, positions=FRAMES, *, training_energies=None, **options):
    chosen = AttackOptions(**{**QUICK, **options})
    return attack(model, positions, chosen, training_energies=training_energies, dtype=torch.float64)


@pytest.mark.parametrize("factor", [1e3, 1e20, 1e200])
def test_a_start_frame_that_is_blown_up_fails_alone(model, factor):
    blown = np.concatenate([factor * FRAMES[:1], FRAMES])
    found = run(model, blown, noise=0.0)
    assert found.failed.tolist() == [True] + [False] * len(FRAMES)
    assert "the start frame is blown up: an atom " in found.status[0]
    alone = run(model, noise=0.0)
    np.testing.assert_allclose(found.positions[1:], alone.positions, atol=1e-12)
    np.testing.assert_allclose(found.log_likelihood[1:], alone.log_likelihood, atol=1e-9)
    random = distort_at_random(model, blown[:3], RandomOptions(amplitude=1e-3))
    assert random.failed.tolist() == [True, False, False]


def test_a_poisoned_energy_sets_no_limit_to_the_others(model):
    energies, plain = evaluate_frames(model, FRAMES).energy, run(model)
    poisoned = np.array([*energies, -1e30, 1e20, np.nan])
    found = run(model, training_energies=poisoned, learning_rate=5.0, iterations=5)
    assert found.failed.all()
    found = run(model, training_energies=poisoned)
    np.testing.assert_allclose(found.positions, plain.positions, atol=1e-12)
    np.testing.assert_allclose(found.log_likelihood, plain.log_likelihood, atol=1e-9)


@pytest.mark.slow
def test_a_broken_first_frame_does_not_define_the_space(model):
    broken = np.concatenate([FRAMES[:1], FRAMES])
    broken[0, 2] = broken[0, 0] + 1.5 * (broken[0, 0] - broken[0, 1])  # C-O-C is straight: no torsion about C-O
    space = {"kind": "internal"}
    assert run(model, broken, space=space).delta.shape[1] == run(model, space=space).delta.shape[1] == 3


def test_which_frames_are_a_reference():
    many = np.repeat(FRAMES, 2, axis=0)
    many[3, 1] = many[3, 0]
    many[5] *= 1e20
    many[8] *= 1e-20
    good = reference_frames(molecule.topology(), many)
    assert np.flatnonzero(~good).tolist() == [3, 5, 8]
    assert reference_frames(molecule.topology(), many[3:4]).tolist() == [True]
    assert reference_frames(Topology((2, 2), ()), np.zeros((3, 2, 3))).all(), "no bond to judge by"


def test_inliers_are_finite_and_near_the_median():
    values = np.array([1.0, 2.0, np.nan, 1e9, 3.0, -1e30, 2.5, np.inf])
    assert inliers(values, 1.0).tolist() == [1.0, 2.0, 3.0, 2.5]
    assert inliers(np.array([1.0, 1.0, 1.0, 9.0]), 10.0).tolist() == [1.0, 1.0, 1.0, 9.0]
    assert inliers(np.array([np.nan]), 1.0).size == 0
