"""Free energy from the bias itself, once it has filled the wells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from uqbias.bias.base import Bias
from uqbias.bias.metad import MetaD, metadynamics_parts
from uqbias.errors import UqbiasError
from uqbias.free_energy.result import Axis, FreeEnergy
from uqbias.free_energy.reweighting import free_energy_of
from uqbias.free_energy.weighted_frames import Pool, WeightedFrames, deposition_steps, tempered

Array = NDArray[np.float64]

#: Points of the bias beyond which memory may not suffice.
MOST_POINTS = 5_000_000
#: Points along a biased variable that is integrated out.
POINTS = 60


def free_energy_from_bias(pool: Pool, axes: tuple[Axis, ...], description: str, notes: dict[str, str]) -> FreeEnergy:
    """F = -γ/(γ-1) V - W on the bins that were visited, other biased variables integrated out; W: fixed biases.

    Parameters
    ----------
    pool : frames of one run.
    axes : bins of each variable.
    description, notes : method and notes for the header of the result.

    Raises
    ------
    UqbiasError
        Unless exactly one metadynamics or OPES acts on the variables, and nothing beside it that it cannot be freed of.
    """
    if len(pool.frames) > 1:
        raise UqbiasError(f"the bias of {len(pool.frames)} runs", "give one run, or --method mbar")
    one = pool.frames[0]
    names = [axis.name for axis in axes]
    filling = [part for part in tempered(one.run.parts) if set(names) <= set(part.variables)]
    if len(filling) != 1:
        raise UqbiasError(
            f"{len(filling)} biases of {one.run.path} (metadynamics, opes) act on {', '.join(names)}",
            "method bias takes exactly one",
        )
    part = filling[0]
    grids = [_points(one, name, axes[names.index(name)] if name in names else None) for name in part.variables]
    if (points := math.prod(map(len, grids))) > MOST_POINTS:
        raise UqbiasError(f"{points} points of a bias on {len(grids)} variables for these bins", "give fewer --bins")
    beside = _beside(one, part)
    lengths = [len(grid) for grid in grids]
    mesh = np.stack(np.meshgrid(*grids, indexing="ij"), axis=-1).reshape(-1, len(grids))
    columns = dict(zip(part.variables, mesh.T, strict=True))
    fixed = sum((one.run.energy_of(index, columns.__getitem__) for index in beside), np.zeros(len(mesh)))
    factor = filling[0].free_energy_factor or 1.0

    def surface(values: Array) -> Array:
        # V converges to the opposite of all else that acts along its variables.
        exponent = (factor * values + fixed).reshape(lengths) / pool.kt
        others = tuple(d for d, name in enumerate(part.variables) if name not in names)
        reduced = logsumexp(exponent, axis=others) if others else exponent
        kept = [name for name in part.variables if name in names]
        F = free_energy_of(np.transpose(reduced, [kept.index(name) for name in names]).ravel(), pool.kt)
        return np.where(visited, F, np.inf)

    counts = pool.counts()
    visited = counts > 0
    F = surface(one.run.energy_of(part, columns.__getitem__))
    shape = tuple(axis.bins for axis in axes)
    error = np.full(F.shape, np.nan)
    if part.estimator == "tiwary-parrinello" and len(cast(MetaD, part).hills):
        ends = [one.step[one.block == block].max() for block in np.unique(one.block)]
        if len(ends) > 1:
            error[visited] = np.std(
                [surface(values)[visited] for values in _grown(cast(MetaD, part), ends, mesh)], axis=0, ddof=1
            )
            notes["error"] = f"standard deviation of the estimate at the ends of {len(ends)} blocks in time"
    return FreeEnergy(
        axes,
        (F - F.min()).reshape(shape),
        error.reshape(shape),
        counts.reshape(shape),
        one.run.temperature,
        description,
        float("nan"),
        notes,
    )


def _beside(one: WeightedFrames, part: Bias) -> list[int]:
    """Places of the fixed biases along the variables of ``part``.

    Raises
    ------
    UqbiasError
        If another bias acts on the molecule, whose share in ``part`` cannot be told.
    """
    places = []
    for index, other in enumerate(one.run.parts):
        if other is part or part in metadynamics_parts([other]):
            continue
        fixed = index in one.on_molecule and index not in (*one.changing, *one.boosts)
        if not fixed or not set(other.variables) <= set(part.variables):
            raise UqbiasError(
                f"{one.run.path}: {other.kind} on {', '.join(other.variables)} acts beside {part.kind} on "
                f"{', '.join(part.variables)}, whose bias has then filled more than F",
                "use --method auto, which takes the weight of each off",
            )
        places.append(index)
    return places


def _points(one: WeightedFrames, name: str, axis: Axis | None) -> Array:
    """Where the bias is evaluated along one of its variables, in the variable's own unit."""
    column = one.run.column(name)
    if axis is not None:
        return np.radians(axis.centres) if axis.unit == "°" else axis.centres
    values = one.column(name)
    low, high = float(values.min()), float(values.max())
    if column.period is not None:
        low, high = -column.period / 2, column.period / 2
    return np.asarray(low + (high - low) * (np.arange(POINTS) + 0.5) / POINTS)


def _grown(part: MetaD, ends: Sequence[int], mesh: Array) -> list[Array]:
    """V at the points ``mesh`` [n, D] with the hills up to each of the steps ``ends``."""
    hills, steps = part.hills.copy(), deposition_steps(part)
    part.reset()
    done, grown = 0, []
    for end in ends:
        stop = int(np.searchsorted(steps, end, side="right"))
        if stop > done:
            part.deposit(hills[done:stop])
        done = stop
        grown.append(part.value(mesh))
    if done < len(hills):
        part.deposit(hills[done:])
    return grown
