"""The frames of runs and the estimators of their free energy, each a function of which frames are taken."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from uqbias.bias.base import Bias
from uqbias.bias.czar import czar
from uqbias.bias.eabf import ExtendedABF
from uqbias.bias.gamd import GaMD
from uqbias.bias.metad import MetaD, metadynamics_parts
from uqbias.bias.opes import OPES
from uqbias.errors import UqbiasError
from uqbias.free_energy.multistate import mbar, minimum_image, overlap, window_log_weights
from uqbias.free_energy.result import Axis
from uqbias.free_energy.reweighting import HillHistory, cumulant_log_factors, log_density, reweighting_offset
from uqbias.runs.reader import Column, RunFolder
from uqbias.units import kt

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]

#: Runs that overlap less than this are two groups, whose relative free energy rests on next to nothing.
LEAST_OVERLAP = 1e-3


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
        settled = max([_production_from(run, part) for part in run.parts if isinstance(part, GaMD)], default=-1)
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

    def energy_of(self, index: int) -> Array:
        """[n] bias ``index`` of the run as it was at the end, kJ/mol."""
        return self.run.energy_of(index, self.column)

    @property
    def extended(self) -> list[ExtendedABF]:
        """Biases with an extended variable."""
        return [part for part in self.run.parts if isinstance(part, ExtendedABF)]

    @cached_property
    def boosts(self) -> list[int]:
        """Places of the GaMD boosts."""
        return [index for index, part in enumerate(self.run.parts) if isinstance(part, GaMD)]

    @cached_property
    def on_molecule(self) -> list[int]:
        """Places of the biases that act on the molecule itself, not on an extended variable alone."""
        extended = self.run.extended
        found = []
        for index, part in enumerate(self.run.parts):
            names = set(part.variables)
            if isinstance(part, ExtendedABF) or names <= extended:
                continue
            if names & extended:
                raise UqbiasError(
                    f"{self.run.path}: '{part.kind}' acts on {sorted(names)}, an extended variable among others",
                    "such a run cannot be reweighted",
                )
            found.append(index)
        return found

    @property
    def changing(self) -> list[int]:
        """Places of biases on the molecule, other than GaMD, that changed during the run."""
        return [
            index
            for index in self.on_molecule
            if self.run.parts[index].pace is not None and index not in self.boosts and not self.run.parts[index].frozen
        ]


def _count(values: Array) -> int:
    return int((~np.isfinite(values)).sum())


def _production_from(run: RunFolder, part: GaMD) -> int:
    if part.stage != "production":
        raise UqbiasError(
            f"{run.path}: gamd has not got beyond its {part.stage} stage",
            f"run more than {part.production_from} steps: only production, after them, can be used",
        )
    return part.production_from


def rest_bias(frames: WeightedFrames, without: Sequence[int] = ()) -> Array:
    """[n] kJ/mol: the biases on the molecule as they acted on each frame, but for the places in ``without``.

    Beside an extended variable, whose coupling is part of the recorded total, each is taken as it was at the end.
    """
    if frames.extended:
        return _sum(frames, [index for index in frames.on_molecule if index not in without])
    return np.asarray(frames.bias - _sum(frames, without))


def _sum(frames: WeightedFrames, places: Sequence[int]) -> Array:
    total = np.zeros(len(frames))
    for index in places:
        total = total + frames.energy_of(index)
    return total


def last_bias(frames: WeightedFrames, without: Sequence[int] = ()) -> Array:
    """[n] kJ/mol: all biases on the molecule as they were at the end, but for the places in ``without``."""
    return _sum(frames, [index for index in frames.on_molecule if index not in without])


def tiwary_parrinello_offset(frames: WeightedFrames) -> Array:
    """[n] kJ/mol: c(t) at each frame.

    Raises
    ------
    UqbiasError
        If the bias that changed is not one metadynamics.
    """
    parts = [frames.run.parts[index] for index in frames.changing]
    if len(parts) != 1 or not isinstance(parts[0], MetaD):
        kinds = [part.kind for part in parts] or "none"
        raise UqbiasError(
            f"{frames.run.path}: tiwary-parrinello takes one metadynamics, the biases that changed are {kinds}",
            "use --method last-bias",
        )
    part = parts[0]
    hills, step = part.hills, deposition_steps(part)
    if _was_fixed(frames, step):
        return np.zeros(len(frames))
    steps, c = reweighting_offset(
        HillHistory(
            step, hills["centre"], hills["sigma"], hills["height"], part.biasfactor, part.periods, part.reflect_at
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


def _was_fixed(frames: WeightedFrames, step: Indices) -> bool:
    """Whether the bias at the end is the one that acted all along: hills of an earlier run, used without update."""
    if not len(step) or step[-1] < frames.step[0]:
        return True
    tolerance = 1e-3 * max(1.0, float(np.abs(frames.bias).max()))
    return bool(np.abs(last_bias(frames) - frames.bias).max() < tolerance)


class Estimate(NamedTuple):
    """Estimate from the frames taken.

    Attributes
    ----------
    log_density : [bins] ln P, without a norm.
    log_weights : [n] of the frames taken; of no meaning beyond ratios.
    """

    log_density: Array
    log_weights: Array


class Estimator(Protocol):
    """An estimate from the frames that ``taken`` [n] marks, of all runs one after the other."""

    def __call__(self, taken: Mask) -> Estimate: ...


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

    def of(self, part: Any) -> Array:
        """[n] what ``part`` gives for each run's frames."""
        return np.concatenate([part(one) for one in self.frames])

    def column(self, name: str) -> Array:
        """[n] values of a variable."""
        return self.of(lambda one: one.column(name))


class Weighted:
    """Weights that are known once and for all, of mean one in each run."""

    def __init__(self, pool: Pool, bias: Array) -> None:
        self.pool, self.log_weights = pool, bias / pool.kt

    def __call__(self, taken: Mask) -> Estimate:
        chosen, run = self.log_weights[taken].copy(), self.pool.run[taken]
        for index in np.unique(run):
            mine = run == index
            chosen[mine] -= logsumexp(chosen[mine]) - np.log(mine.sum())
        return Estimate(log_density(self.pool.bins[taken], self.pool.n_bins, chosen), chosen)


class AcrossRuns:
    """MBAR: every frame under the last bias of every run."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.reduced = np.stack([self._under(run) for run in (one.run for one in pool.frames)]) / pool.kt
        counts = np.bincount(pool.run)
        log_weights, self._f = mbar(self.reduced, counts)
        self.overlap = overlap(self.reduced, counts, self._f, log_weights) if len(counts) > 1 else 1.0
        if self.overlap < LEAST_OVERLAP:
            raise UqbiasError(
                f"the runs {', '.join(str(one.run.path) for one in pool.frames)} do not overlap ({self.overlap:.1g}): "
                "nothing says how the free energies of their parts compare",
                "add a run between them, or analyse them one by one",
            )

    def _under(self, run: RunFolder) -> Array:
        return self.pool.of(
            lambda one: sum((run.energy_of(index, one.column) for index in range(len(run.parts))), np.zeros(len(one)))
        )

    def __call__(self, taken: Mask) -> Estimate:
        counts = np.bincount(self.pool.run[taken], minlength=len(self.pool.frames))
        log_weights, _ = mbar(self.reduced[:, taken], counts, self._f)
        return Estimate(log_density(self.pool.bins[taken], self.pool.n_bins, log_weights), log_weights)


class OverWindows:
    """MBAR over the windows of an extended variable, for any quantity."""

    def __init__(self, pool: Pool, part: ExtendedABF, bias: Array) -> None:
        self.pool, self.part, self.log_weights = pool, part, bias / pool.kt
        self.xi, self.lam = (pool.column(name) for name in part.variables)

    def __call__(self, taken: Mask) -> Estimate:
        windows = window_log_weights(self.xi[taken], self.lam[taken], self.part.sigma, self.part.period)
        log_weights = windows + self.log_weights[taken]
        return Estimate(log_density(self.pool.bins[taken], self.pool.n_bins, log_weights), log_weights)


class Czar:
    """CZAR along the variable that the extended one follows, frames weighted for the other biases."""

    def __init__(self, pool: Pool, part: ExtendedABF, bias: Array, axis: Axis) -> None:
        self.pool, self.part, self.axis, self.log_weights = pool, part, axis, bias / pool.kt
        self.xi, lam = (pool.column(name) for name in part.variables)
        self.deviation = minimum_image(lam - self.xi, part.period)

    def __call__(self, taken: Mask) -> Estimate:
        log_weights = self.log_weights[taken]
        bins = self.pool.bins[taken]
        inside = bins >= 0
        w = np.exp(log_weights[inside] - log_weights[inside].max())
        weights, sums = (
            np.bincount(bins[inside], values, minlength=self.pool.n_bins).astype(np.float64)
            for values in (w, w * self.deviation[taken][inside])
        )
        mean = sums / np.where(weights > 0, weights, 1.0)
        # The bins are in degrees for an angle, the coupling is not.
        scale = np.pi / 180.0 if self.axis.unit == "°" else 1.0
        part = self.part
        F = czar(self.axis.centres * scale, weights, mean, part.coupling, self.pool.kt, part.period)[1]
        return Estimate(-F / self.pool.kt, log_weights)


class Cumulant:
    """Another estimator's density times the cumulant expansion of ⟨exp(ΔV/kT)⟩ in each bin."""

    def __init__(self, pool: Pool, rest: Estimator, boost: Array, order: int) -> None:
        self.pool, self.rest, self.boost, self.order = pool, rest, boost, order

    def __call__(self, taken: Mask) -> Estimate:
        rest = self.rest(taken)
        factors, _ = self.moments(taken, rest.log_weights)
        bins = self.pool.bins[taken]
        return Estimate(rest.log_density + factors, rest.log_weights + np.where(bins >= 0, factors[bins], 0.0))

    def moments(self, taken: Mask, log_weights: Array) -> tuple[Array, Array]:
        """Factors and skewness, see `cumulant_log_factors`."""
        pool = self.pool
        bins, boost = pool.bins[taken], self.boost[taken]
        return cumulant_log_factors(bins, pool.n_bins, boost, pool.kt, log_weights, self.order)


def well_tempered_factor(part: MetaD | OPES) -> float:
    """γ/(γ-1); 1 for untempered."""
    gamma = part.biasfactor
    return 1.0 if gamma is None or math.isinf(gamma) else gamma / (gamma - 1.0)


def tempered(parts: Sequence[Bias]) -> list[MetaD | OPES]:
    """The biases with a bias factor, the hills of WTM-eABF among them."""
    return [*metadynamics_parts(parts), *(part for part in parts if isinstance(part, OPES))]


def biasfactor_text(part: MetaD | OPES, extended: Collection[str]) -> str:
    """What the bias factor makes of F and V, and of HILLS; nothing of F for one on an ``extended`` variable."""
    gamma = part.biasfactor
    text = "none (untempered)" if gamma is None else f"γ = {gamma:g}"
    if set(extended) & set(part.variables):
        text += f" on {', '.join(part.variables)}"
    else:
        text += ", F = -V" if gamma is None else f", F = -γ/(γ-1) V = -{well_tempered_factor(part):.6g} V"
    hills = gamma is not None and isinstance(part, MetaD)
    return text + (", heights in HILLS are those of the bias times γ/(γ-1)" if hills else "")
