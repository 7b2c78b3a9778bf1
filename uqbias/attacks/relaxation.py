"""Relaxation of many geometries at once on a model's energy, with the path kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from uqbias.errors import UqbiasError
from uqbias.potentials.base import Potential
from uqbias.potentials.prediction import predict
from uqbias.units import ANGSTROM, EV_PER_ANGSTROM

Array = NDArray[np.float64]

# FIRE as Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006), with unit masses, eV and Å; lengths of step as in ASE.
FIRST_STEP, LONGEST_STEP, FARTHEST = 0.1, 1.0, 0.2
WAIT, GROW, SHRINK, MIXING, MIXING_DECAY = 5, 1.1, 0.5, 0.1, 0.99


class RelaxationPath(NamedTuple):
    """Geometries along the way of n relaxations, at K steps."""

    #: [K] number of the step; 0 is the start.
    steps: NDArray[np.int64]
    #: [K, n, N, 3] nm; a frame that has converged or failed stays where it was.
    positions: Array
    #: [n] whether the largest force on an atom fell below the limit.
    converged: NDArray[np.bool_]
    #: [n] whether the model's forces became something that is not a number.
    failed: NDArray[np.bool_]


def recorded_steps(steps: int, every: int) -> list[int]:
    """Steps of `relax` that are kept: 0, 1, each multiple of ``every``, the last."""
    return sorted({0, min(1, steps), *range(0, steps + 1, every), steps})


def relax(
    potential: Potential,
    positions: NDArray[Any],
    *,
    cells: Array | None = None,
    steps: int = 100,
    every: int = 10,
    force_limit: float = 0.05,
    advance: Callable[[], None] = lambda: None,
) -> RelaxationPath:
    """Minimise the energy of each geometry by FIRE, all in one batch.

    Every geometry has a time step and a velocity of its own. The velocity begins at zero, so that the first step
    follows the model's force.

    Parameters
    ----------
    positions : [n, N, 3] nm.
    cells : [n, 3, 3] nm, which stay as they are; None in vacuum.
    steps : most steps.
    every : see `recorded_steps`.
    force_limit : a geometry has converged when no atom feels more, eV/Å; above 0.
    advance : called after each step.

    Raises
    ------
    UqbiasError
        If the force limit is not valid.
    """
    if not (np.isfinite(force_limit) and force_limit > 0):
        raise UqbiasError(f"force limit of relaxation {force_limit} eV/Å", "give a finite number above 0")
    x = np.array(positions, dtype=np.float64) / ANGSTROM
    going = np.arange(len(x))
    each = np.ones((len(x), 1, 1))
    state = [np.zeros_like(x), FIRST_STEP * each, MIXING * each, 0 * each]
    converged, failed = np.zeros((2, len(x)), dtype=bool)
    kept, path = recorded_steps(steps, every), [x * ANGSTROM]
    for step in range(1, steps + 1):
        if len(going):
            f = _forces(potential, x[going], None if cells is None else cells[going])
            failed[going] = ~np.isfinite(f).all(axis=(1, 2))
            converged[going] = np.linalg.norm(f, axis=2).max(axis=1) < force_limit
            left = ~(converged | failed)[going]
            going = going[left]
            state = _accelerated(f[left], *(part[left] for part in state))
            shift = state[1] * state[0]
            x[going] += shift * np.minimum(1.0, FARTHEST / np.maximum(_size(shift), 1e-12))
        if step in kept:
            path.append(x * ANGSTROM)
        advance()
    return RelaxationPath(np.array(kept), np.array(path), converged, failed)


def _forces(potential: Potential, x: Array, cells: Array | None) -> Array:
    """Forces [n, N, 3] in eV/Å at ``x`` in Å, ``cells`` in nm."""
    forces = predict(potential, x * ANGSTROM, 128, cells=cells).forces
    assert forces is not None
    return np.asarray(forces.double().cpu().numpy()) / EV_PER_ANGSTROM


def _size(vectors: Array) -> Array:
    return np.asarray(np.linalg.norm(vectors, axis=(1, 2), keepdims=True))


def _accelerated(f: Array, v: Array, dt: Array, mixing: Array, count: Array) -> list[Array]:
    """Velocity, time step, mixing and number of steps since the last one uphill, after one step of FIRE."""
    downhill, grown = (f * v).sum(axis=(1, 2), keepdims=True) > 0, count > WAIT
    mixed = (1 - mixing) * v + mixing * _size(v) / np.maximum(_size(f), 1e-12) * f
    # At rest there is no uphill: the first step keeps its length.
    slower = np.where(_size(v) > 0, dt * SHRINK, dt)
    dt = np.where(downhill, np.where(grown, np.minimum(dt * GROW, LONGEST_STEP), dt), slower)
    mixing = np.where(downhill, np.where(grown, mixing * MIXING_DECAY, mixing), MIXING)
    return [np.where(downhill, mixed, 0.0) + dt * f, dt, mixing, np.where(downhill, count + 1, 0)]
