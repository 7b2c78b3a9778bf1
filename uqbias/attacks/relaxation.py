"""Relaxation of many geometries at once on a model's energy, with the path kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class RelaxationPath:
    """Geometries along the way of n relaxations, at K steps.

    Attributes
    ----------
    steps : [K] number of the step; 0 is the start.
    positions : [K, n, N, 3] nm; a frame that has converged or failed stays where it was.
    moved : [K, n] whether the frame has moved since the entry before.
    converged : [n] whether the largest force on an atom fell below the limit.
    failed : [n] whether the model's forces became something that is not a number.
    """

    steps: NDArray[np.int64]
    positions: Array
    moved: NDArray[np.bool_]
    converged: NDArray[np.bool_]
    failed: NDArray[np.bool_]


def recorded_steps(steps: int, every: int) -> list[int]:
    """Steps of `relax` that are kept: 0, 1, each multiple of ``every``, the last."""
    return sorted({0, min(1, steps), *range(0, steps + 1, every), steps})


def relax(
    potential: Potential,
    positions: NDArray[Any],
    *,
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
    n = len(x)
    v, dt, mixing, downhill_steps = np.zeros_like(x), np.full(n, FIRST_STEP), np.full(n, MIXING), np.zeros(n)
    converged, failed, moved = np.zeros((3, n), dtype=bool)
    kept = recorded_steps(steps, every)
    path, has_moved = [x * ANGSTROM], [moved.copy()]
    for step in range(1, steps + 1):
        active = np.flatnonzero(~(converged | failed))
        if len(active):
            f = _forces(potential, x[active])
            failed[active] = ~np.isfinite(f).all(axis=(1, 2))
            converged[active] = np.linalg.norm(f, axis=2).max(axis=1) < force_limit
            going = ~(converged | failed)[active]
            active, f = active[going], f[going]
            v[active], dt[active], mixing[active], downhill_steps[active] = _accelerated(
                f, v[active], dt[active], mixing[active], downhill_steps[active]
            )
            shift = dt[active, None, None] * v[active]
            length = np.linalg.norm(shift, axis=(1, 2), keepdims=True)
            x[active] += shift * np.minimum(1.0, FARTHEST / np.maximum(length, 1e-12))
            moved[active] = True
        if step in kept:
            path.append(x * ANGSTROM)
            has_moved.append(moved.copy())
            moved[:] = False
        advance()
    return RelaxationPath(np.array(kept), np.array(path), np.array(has_moved), converged, failed)


def _forces(potential: Potential, x: Array) -> Array:
    """Forces [n, N, 3] in eV/Å at ``x`` in Å."""
    forces = predict(potential, x * ANGSTROM, 128).forces
    assert forces is not None
    return np.asarray(forces.double().cpu().numpy()) / EV_PER_ANGSTROM


def _accelerated(
    f: Array, v: Array, dt: Array, mixing: Array, downhill_steps: Array
) -> tuple[Array, Array, Array, Array]:
    """Velocity, time step, mixing and number of steps since the last one uphill, after one step of FIRE."""
    downhill = (f * v).sum(axis=(1, 2)) > 0
    size_v, size_f = (np.linalg.norm(part, axis=(1, 2)) for part in (v, f))
    along = (mixing * size_v / np.maximum(size_f, 1e-12))[:, None, None] * f
    v = np.where(downhill[:, None, None], (1 - mixing)[:, None, None] * v + along, 0.0)
    grown = downhill & (downhill_steps > WAIT)
    # At rest there is no uphill: the first step keeps its length.
    stopped = ~downhill & (size_v > 0)
    dt = np.where(grown, np.minimum(dt * GROW, LONGEST_STEP), np.where(stopped, dt * SHRINK, dt))
    mixing = np.where(grown, mixing * MIXING_DECAY, np.where(downhill, mixing, MIXING))
    return v + dt[:, None, None] * f, dt, mixing, np.where(downhill, downhill_steps + 1, 0)
