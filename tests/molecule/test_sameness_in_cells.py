"""Periodic frames are the same whichever images atoms are at: in the record of seen frames, and as duplicates."""

import dataclasses

import numpy as np
import pytest

from uqbias.molecule.frames import Frames
from uqbias.molecule.sameness import NearInCells
from uqbias.molecule.seen import TOLERANCE, Memory, invariants, is_in

CELL = np.array([[1.2, 0.0, 0.0], [-0.6, 1.1, 0.0], [0.1, 0.2, 1.3]])


@pytest.fixture
def frames():
    random = np.random.default_rng(0)
    ideal = np.stack(np.meshgrid(*[np.arange(4) / 4] * 3), axis=-1).reshape(-1, 3) @ CELL
    x = ideal + random.normal(scale=0.01, size=(5, 64, 3))
    return Frames(np.full(64, 14), x, cells=np.tile(CELL, (5, 1, 1)))


def wrapped(frames):
    shifts = np.random.default_rng(1).integers(-3, 4, size=frames.positions.shape)
    return dataclasses.replace(frames, positions=frames.positions + shifts @ frames.cells + 0.3)


def test_the_record_knows_wrapped_frames(frames):
    memory = Memory()
    memory.record_seen(frames[:3])
    assert is_in(memory.seen, wrapped(frames)).tolist() == [True] * 3 + [False] * 2
    single = dataclasses.replace(frames, positions=frames.positions.astype(np.float32).astype(np.float64))
    assert is_in(memory.seen, single).tolist() == [True] * 3 + [False] * 2
    other = frames.positions.copy()
    other[:, 5, 0] += 1e-4
    assert not is_in(memory.seen, dataclasses.replace(frames, positions=other)).any()
    assert not is_in(memory.seen, dataclasses.replace(frames, cells=frames.cells * 1.0001)).any()


def test_each_move_of_one_atom_of_many_is_seen():
    random = np.random.default_rng(0)
    n = 600
    x = random.random((1, n, 3)) @ (2 * CELL) + np.zeros((50, 1, 1))
    place = random.integers(n, size=50)
    step = random.normal(size=(50, 3))
    x[np.arange(50), place] += 2e-4 * step / np.linalg.norm(step, axis=1, keepdims=True)
    slab = (True, True, False)
    for periodic in ((True, True, True), slab):
        moved = Frames(np.full(n, 14), x, cells=np.tile(2 * CELL, (50, 1, 1)), periodic=periodic)
        first = dataclasses.replace(moved[:1], positions=x[:1].copy())
        first.positions[0, place[0]] -= x[0, place[0]] - x[1, place[0]]
        apart = np.abs(invariants(moved) - invariants(first)).max(axis=1)
        assert (apart > 1.2 * TOLERANCE).mean() > 0.9


def test_duplicates(frames):
    near = frames.positions + np.random.default_rng(2).normal(scale=0.0005, size=frames.positions.shape)
    candidates = wrapped(dataclasses.replace(frames, positions=near))
    same = NearInCells(candidates, frames[:2], 0.002)
    assert same.as_known().tolist() == [True, True, False, False, False]
    assert same.as_candidate(3).tolist() == [False, False, False, True, False]
    strained = dataclasses.replace(candidates, positions=candidates.positions * 1.01, cells=candidates.cells * 1.01)
    assert not NearInCells(strained, frames, 0.002).as_known().any()
    assert NearInCells(strained, frames, 0.02).as_known().all()
