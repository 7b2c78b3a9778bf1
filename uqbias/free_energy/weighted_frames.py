"""The frames of runs that count for a free energy, in one array each, and the biases that acted on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from uqbias.bias.base import Bias
from uqbias.bias.metad import MetaD, metadynamics_parts
from uqbias.errors import UqbiasError
from uqbias.free_energy.result import Axis
from uqbias.free_energy.reweighting import HillHistory, log_density, reweighting_offset
from uqbias.runs.reader import Column, RunFolder
from uqbias.units import kt

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


class WeightedFrames:
    """The frames of one run that count: not those at the start, not those of a stopped walker.

    Parameters
    ----------
    run : the folder.
    discard : fraction of the observations at the start that is left out; the stages of GaMD in which the boost still
        changes are left out in any case.
    blocks : number of time slices of equal length, with all walkers of that time in each.

    Attributes
    ----------
    step : [n] MD step.
    block : [n] time slice.
    bias : [n] kJ/mol, total bias that acted.

    Raises
    ------
    UqbiasError
        If nothing is left, or less than a frame a block.
    """

    def __init__(self, run: RunFolder, discard: float, blocks: int) -> None:
        self.run, self.kt = run, kt(run.temperature)
        steps = run.step
        first = math.floor(discard * len(steps))
        with about_run(run):
            settled = max([run.parts[index].equilibrium_from() for index in self.boosts], default=-1)
        # At the step of its last update the boost before that update acted.
        first = max(first, int(np.searchsorted(steps, settled, side="right")))
        if first >= len(steps):
            raise UqbiasError(
                f"{run.path}: nothing is left of {len(steps)} observations"
                + (f" up to step {settled}, where the boost of gamd settles" if settled >= 0 else ""),
                "discard less, or run longer",
            )
        self.kept = ~run.restarted
        self.kept[:first] = False
        if len(steps) - first < blocks:
            raise UqbiasError(
                f"{run.path}: {blocks} blocks for {len(steps) - first} observations", "ask for fewer --blocks"
            )
        if not self.kept.any():
            raise UqbiasError(f"{run.path}: a walker was stopped at every observation", "run with other guards")
        time = np.broadcast_to(np.arange(len(steps))[:, None], self.kept.shape)[self.kept]
        self.step = steps[time]
        self.block = (time - first) * blocks // (len(steps) - first)
        self.bias = run.bias[self.kept]
        if not np.isfinite(self.bias).all():
            raise UqbiasError(f"{run.path}: the bias is not finite in {_count(self.bias)} frames", "check the run")
        self._columns: dict[str, Column] = {}

    def __len__(self) -> int:
        return len(self.step)

    def column(self, name: str, *, degrees: bool = False) -> Array:
        """[n] values of a variable, see `RunFolder.column`.

        Raises
        ------
        UqbiasError
            If one is not finite.
        """
        if name not in self._columns:
            whole = self.run.column(name)
            values = whole.values[self.kept]
            if not np.isfinite(values).all():
                step = int(self.step[~np.isfinite(values)][0])
                raise UqbiasError(
                    f"{self.run.path}: '{name}' is not finite in {_count(values)} of {len(values)} frames, first at "
                    f"step {step}",
                    "discard more, or choose another variable",
                )
            self._columns[name] = Column(values, whole.unit, whole.period)
        column = self._columns[name]
        return column.in_degrees().values if degrees else column.values

    @property
    def extended(self) -> list[Bias]:
        """Biases with an extended variable."""
        return [part for part in self.run.parts if part.extended]

    @cached_property
    def boosts(self) -> list[int]:
        """Places of the boosts whose weight is expanded in cumulants."""
        return [index for index, part in enumerate(self.run.parts) if part.estimator == "cumulant"]

    @cached_property
    def on_molecule(self) -> list[int]:
        """Places of the biases that act on the molecule itself, not on an extended variable alone."""
        extended = self.run.extended
        places = []
        for index, part in enumerate(self.run.parts):
            names = set(part.variables)
            if part.extended or names <= extended:
                continue
            if names & extended:
                raise UqbiasError(
                    f"{self.run.path}: '{part.kind}' acts on {sorted(names)}, an extended variable among others",
                    "such a run cannot be reweighted",
                )
            places.append(index)
        return places

    @property
    def changing(self) -> list[int]:
        """Places of biases on the molecule, other than GaMD, that changed during the run."""
        return [
            index
            for index in self.on_molecule
            if self.run.parts[index].pace is not None and index not in self.boosts and not self.run.parts[index].frozen
        ]

    def under(self, run: RunFolder, places: Sequence[int] | None = None) -> Array:
        """[n] kJ/mol: the biases of a run as they were at the end, all of them or those at ``places``."""
        places = range(len(run.parts)) if places is None else places
        return sum((run.energy_of(index, self.column) for index in places), np.zeros(len(self)))

    def last_bias(self, without: Sequence[int] = ()) -> Array:
        """[n] kJ/mol: all biases on the molecule as they were at the end, but for the places in ``without``."""
        return self.under(self.run, [index for index in self.on_molecule if index not in without])

    def acted_bias(self, without: Sequence[int] = ()) -> Array:
        """[n] kJ/mol: the biases on the molecule as they acted on each frame, but for the places in ``without``.

        Beside an extended variable, whose coupling is part of the recorded total, each is taken as it was at the end.
        """
        return self.last_bias(without) if self.extended else np.asarray(self.bias - self.under(self.run, without))


def _count(values: Array) -> int:
    return int((~np.isfinite(values)).sum())


@contextmanager
def about_run(run: RunFolder) -> Iterator[None]:
    """Name the run in what a bias says is wrong."""
    try:
        yield
    except UqbiasError as error:
        raise UqbiasError(f"{run.path}: {error.what}", error.cure) from error


def tiwary_parrinello_offset(frames: WeightedFrames) -> Array:
    """[n] kJ/mol: c(t) at each frame.

    Raises
    ------
    UqbiasError
        If the bias that changed is not one metadynamics.
    """
    parts = [frames.run.parts[index] for index in frames.changing]
    if len(parts) != 1 or parts[0].estimator != "tiwary-parrinello":
        kinds = [part.kind for part in parts] or "none"
        raise UqbiasError(
            f"{frames.run.path}: tiwary-parrinello takes one metadynamics, the biases that changed are {kinds}",
            "use --method last-bias",
        )
    hills = metadynamics_parts(parts)
    if _was_fixed(frames, [deposition_steps(part) for part in hills]):
        return np.zeros(len(frames))
    offsets = [_offset_of(part, frames) for part in hills]
    # Several are joined as the biases are, see `uqbias.bias.parallel.ParallelMetaD`.
    return offsets[0] if len(offsets) == 1 else -frames.kt * _log_mean_exp(-np.stack(offsets) / frames.kt)


def _log_mean_exp(exponents: Array) -> Array:
    return np.asarray(logsumexp(exponents, axis=0) - math.log(len(exponents)))


def _offset_of(part: MetaD, frames: WeightedFrames) -> Array:
    """[n] kJ/mol: c(t) of one metadynamics at each frame."""
    hills = part.hills
    steps, c = reweighting_offset(
        HillHistory(
            deposition_steps(part),
            hills["centre"],
            hills["sigma"],
            hills["height"],
            part.biasfactor,
            part.periods,
            part.reflect_at,
        ),
        frames.kt,
    )
    return np.asarray(c[np.searchsorted(steps, frames.step)])


def deposition_steps(part: MetaD) -> Indices:
    """[n] MD step of each hill, -1 for those that an earlier run left: they come first, counted by its own clock."""
    step = part.hills["step"].astype(np.int64)
    back = np.flatnonzero(np.diff(step) < 0)
    if len(back):
        step[: back[-1] + 1] = -1
    return np.asarray(step)


def _was_fixed(frames: WeightedFrames, steps: Sequence[Indices]) -> bool:
    """Whether the bias at the end is the one that acted all along: hills of an earlier run, used without update."""
    if all(not len(step) or step[-1] < frames.step[0] for step in steps):
        return True
    tolerance = 1e-3 * max(1.0, float(np.abs(frames.bias).max()))
    return bool(np.abs(frames.last_bias() - frames.bias).max() < tolerance)


class Pool:
    """Frames of all runs in one array each.

    Attributes
    ----------
    bins : [n] bin of each frame in the flattened grid, -1 outside.
    n_bins : number of bins.
    run : [n] which run.
    block : [n] time slice.
    """

    def __init__(self, frames: Sequence[WeightedFrames], axes: Sequence[Axis], values: Sequence[Array]) -> None:
        self.frames = list(frames)
        shape = tuple(axis.bins for axis in axes)
        places = np.stack([axis.indices(column) for axis, column in zip(axes, values, strict=True)])
        inside = (places >= 0).all(axis=0)
        flat = np.ravel_multi_index([np.where(inside, place, 0) for place in places], shape)
        self.bins: Indices = np.where(inside, flat, -1).astype(np.int64)
        self.n_bins = int(np.prod(shape))
        self.run = np.repeat(np.arange(len(frames)), [len(one) for one in frames])
        self.block = np.concatenate([one.block for one in frames])
        self.kt = frames[0].kt
        if not inside.any():
            raise UqbiasError("no frame lies in the range of the bins", "give another --range")

    def of(self, part: Callable[[WeightedFrames], Array]) -> Array:
        """[n] what ``part`` gives for each run's frames."""
        return np.concatenate([part(one) for one in self.frames])

    def counts(self) -> Indices:
        """[n_bins] frames in each bin."""
        return np.bincount(self.bins[self.bins >= 0], minlength=self.n_bins)

    def column(self, name: str) -> Array:
        """[n] values of a variable."""
        return self.of(lambda one: one.column(name))

    def log_density(self, taken: NDArray[np.bool_], log_weights: Array) -> Array:
        """[n_bins] ln P, without a norm, from the frames ``taken`` [n] and their weights."""
        return log_density(self.bins[taken], self.n_bins, log_weights)


def tempered(parts: Sequence[Bias]) -> list[Bias]:
    """The biases from which F can be read, the hills of WTM-eABF among them."""
    hills = metadynamics_parts(parts)
    return [*hills, *(part for part in parts if part.free_energy_factor is not None and part not in hills)]


def biasfactor_text(part: Bias, extended: Collection[str]) -> str:
    """Words on the bias factor in F, V and HILLS; nothing of F for one on an ``extended`` variable."""
    gamma = getattr(part, "biasfactor", None)
    text = "none (untempered)" if gamma is None else f"γ = {gamma:g}"
    if set(extended) & set(part.variables):
        text += f" on {', '.join(part.variables)}"
    else:
        text += ", F = -V" if gamma is None else f", F = -γ/(γ-1) V = -{part.free_energy_factor:.6g} V"
    hills = gamma is not None and part.estimator == "tiwary-parrinello"
    return text + (", heights in HILLS are those of the bias times γ/(γ-1)" if hills else "")
