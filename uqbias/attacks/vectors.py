"""Directions in the space of all coordinates of a molecule: uncertain, random."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from uqbias.model.model import UncertaintyModel
from uqbias.potentials.prediction import with_member_forces

Array = NDArray[np.float64]
#: Uncertainties with a gradient to follow.
ASCENTS = ("judge", "driver")
#: Frames whose uncertainty is differentiated together.
BLOCK = 64


def uncertainty_gradient(model: UncertaintyModel, positions: NDArray[Any], of: str = "judge") -> Array:
    """Gradient [n, N, 3] of the raw judge (``judge``) or driver (``driver``); calibration does not turn it."""
    parts = []
    weights = next(model.potential.parameters())
    for block in torch.split(torch.as_tensor(positions).to(weights), BLOCK):
        x = block.clone().requires_grad_()
        terms = with_member_forces(model.potential, x) if model.requires_forces else model.potential(x)
        u = model.judge_and_driver(x, *terms)[ASCENTS.index(of)]
        parts.append(torch.autograd.grad(u.sum(), x)[0])
    return np.asarray(torch.cat(parts).double().cpu().numpy())


def random_directions(positions: Array, count: int, rng: np.random.Generator) -> Array:
    """Directions [count, N, 3] of unit length, isotropic among those that neither move nor turn a molecule as a whole.

    A single atom only has directions that move it, so that none is left out. ``positions`` [N, 3] in any unit.
    """
    directions = rng.normal(size=(count, positions.size))
    if len(positions) > 1:
        modes = rigid_modes(positions)
        directions -= (directions @ modes.T) @ modes
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return directions.reshape(count, *positions.shape)


def rigid_modes(positions: Array) -> Array:
    """Orthonormal translations and infinitesimal rotations, [6, 3N]; one rotation less if the atoms are on a line."""
    centred = positions - positions.mean(axis=0)
    size = np.linalg.norm(centred)
    moves = np.stack([np.tile(axis, len(positions)) / np.sqrt(len(positions)) for axis in np.eye(3)])
    turns = np.stack([np.cross(axis, centred).ravel() / max(size, 1e-12) for axis in np.eye(3)])
    _, sizes, modes = np.linalg.svd(np.concatenate([moves, turns]), full_matrices=False)
    return np.asarray(modes[sizes > 1e-5])


def unit(direction: Array) -> Array:
    """Directions [n, N, 3] scaled to unit length over the whole molecule; NaN where a direction is zero."""
    length = np.linalg.norm(direction, axis=(1, 2), keepdims=True)
    return np.where(length > 0, direction / np.where(length > 0, length, 1.0), np.nan)


def cosine(a: Array, b: Array) -> Array:
    """Cosine [n] between directions [n, N, 3]; NaN where one of them is zero."""
    return np.asarray(np.clip((unit(a) * unit(b)).sum(axis=(1, 2)), -1.0, 1.0))
