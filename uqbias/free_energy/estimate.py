"""Free energies from run folders: the estimator that fits the biases of a run, with its error bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from uqbias.errors import UqbiasError, did_you_mean
from uqbias.free_energy.estimate_options import BINS, METHODS, FreeEnergyOptions
from uqbias.free_energy.estimators import (
    ENOUGH,
    Coupled,
    Estimator,
    across_runs,
    by_cumulants,
    by_czar,
    over_windows,
    weighted,
)
from uqbias.free_energy.from_bias import free_energy_from_bias
from uqbias.free_energy.result import Axis, FreeEnergy
from uqbias.free_energy.reweighting import free_energy_of, jackknife_error, kish
from uqbias.free_energy.weighted_frames import (
    Pool,
    WeightedFrames,
    about_run,
    biasfactor_text,
    tempered,
    tiwary_parrinello_offset,
)
from uqbias.runs.reader import RunFolder, join

Array = NDArray[np.float64]

WINDOWS = (
    "mbar over the windows of λ, w = 1/Σ N_k exp(f_k - k(ξ-λ_k)²/2kT), "
    "Hulm, Dietschreit and Ochsenfeld, J. Chem. Phys. 157, 024110 (2022)"
)
#: Bins in all beyond which memory may not suffice.
MOST = 250_000


def free_energy(
    paths: Sequence[str | Path], variables: Sequence[str], options: FreeEnergyOptions | None = None
) -> FreeEnergy:
    """Free energy along one or two variables from one or more runs.

    Walls and restraints belong to V: with their weight taken off, F is that of the molecule without them, as far as
    they let it be sampled.

    Parameters
    ----------
    paths : run folders with the same molecule, model and temperature; walkers are pooled.
    variables : one or two names, see `RunFolder.column`.

    Raises
    ------
    UqbiasError
        If a folder or a variable is bad, or the method does not fit the biases.
    """
    options = options or FreeEnergyOptions()
    if not paths:
        raise UqbiasError("no run folder", "give at least one")
    if len({Path(path).resolve() for path in paths}) < len(paths):
        raise UqbiasError(f"a run folder twice: {', '.join(map(str, paths))}", "its frames would count twice")
    if not 1 <= len(variables) <= 2 or len(set(variables)) < len(variables):
        raise UqbiasError(f"variables {list(variables)}", "name one or two different ones")
    runs = [RunFolder(path) for path in paths]
    for run in runs:
        if run.jumping:
            raise UqbiasError(
                f"{run.path}: {len(run.jumping)} of its walkers were placed on turned frames again and again, which is "
                "no sampling of an ensemble",
                "take a run without jumps, of uqbias md or under md.jumps: {share: 0}",
            )
    if options.temperature not in (None, runs[0].temperature):
        raise UqbiasError(
            f"temperature {options.temperature:g} K, {runs[0].path} is of {runs[0].temperature:g} K",
            "F is that of the run's temperature",
        )
    join(runs)
    frames = [WeightedFrames(run, options.discard, options.blocks) for run in runs]
    _refuse_extended(frames, variables)
    axes, values = _axes(frames, variables, options)
    _refuse_adapted(frames)
    pool = Pool(frames, axes, values)
    chosen = _automatic(frames, variables) if options.method == "auto" else options.method
    if chosen not in METHODS:
        raise UqbiasError(f"a bias of {runs[0].path} names the method '{chosen}'", did_you_mean(chosen, METHODS))
    _refuse_unknown(frames, chosen)
    if chosen == "bias":
        return free_energy_from_bias(pool, axes, f"bias: {METHODS['bias']}", _notes(frames, options.discard))
    estimator, description, said = _estimator(pool, chosen, axes, options.order)
    log_density, log_weights = estimator(np.ones(len(pool.bins), dtype=bool))
    F = free_energy_of(log_density, pool.kt)
    left_out = [estimator(pool.block != block)[0] for block in range(options.blocks)]
    replicates = np.array([free_energy_of(density, pool.kt) for density in left_out])
    notes = _notes(frames, options.discard)
    notes["error"] = f"one standard error of -kT ln P, P normalised; jackknife over {options.blocks} blocks in time"
    effective = kish(log_weights)
    if effective < ENOUGH:
        notes["warning"] = (
            f"by their weights {sum(map(len, frames))} frames are worth {effective:.0f}: do not trust F and its error"
        )
    notes |= said
    shape = tuple(axis.bins for axis in axes)
    return FreeEnergy(
        axes,
        (F - F.min()).reshape(shape),
        jackknife_error(replicates).reshape(shape),
        pool.counts().reshape(shape),
        runs[0].temperature,
        description,
        effective,
        notes,
        replicates.reshape(options.blocks, *shape),
    )


def _refuse_adapted(frames: Sequence[WeightedFrames]) -> None:
    """Let each bias that changed say whether that left an equilibrium to be reweighted."""
    for one in frames:
        for index in one.changing:
            with about_run(one.run):
                one.run.parts[index].equilibrium_from()


def _refuse_unknown(frames: Sequence[WeightedFrames], method: str) -> None:
    """Of PLUMED's biases only the values are known that they had."""
    for one in frames:
        if one.run.under_plumed and method != "quasi-static":
            raise UqbiasError(f"{one.run.path}: {method} takes the bias itself, which PLUMED holds", "use quasi-static")


def _refuse_extended(frames: Sequence[WeightedFrames], variables: Sequence[str]) -> None:
    """No weight of a frame makes the distribution of an extended variable that of the molecule."""
    for one in frames:
        for name in variables:
            if name in one.run.extended:
                followed = next(x.of for part in one.run.parts for x in part.extended if x.name == name)
                raise UqbiasError(
                    f"a free energy along '{name}', an extended variable of {one.run.path}", f"ask for '{followed}'"
                )


def _axes(
    frames: Sequence[WeightedFrames], variables: Sequence[str], options: FreeEnergyOptions
) -> tuple[tuple[Axis, ...], list[Array]]:
    """Bins of each variable, and its values [n] in all runs; angles in degrees."""
    count = len(variables)
    numbers = list(options.bins) * (count if len(options.bins) == 1 else 1) or [BINS[count - 1]] * count
    spans = list(options.ranges) or [None] * count
    for name, given in (("bins", numbers), ("ranges", spans)):
        if len(given) != count:
            raise UqbiasError(f"{len(given)} {name} for {count} variable(s)", "give one each")
    if math.prod(numbers) > MOST:
        raise UqbiasError(f"{math.prod(numbers)} bins in all", f"give at most {MOST}")
    axes, columns = [], []
    for name, number, span in zip(variables, numbers, spans, strict=True):
        whole = frames[0].run.column(name).in_degrees()
        values = np.concatenate([one.column(name, degrees=True) for one in frames])
        low, high = float(values.min()), float(values.max())
        if whole.period is not None:
            if span is not None:
                raise UqbiasError(f"a range for '{name}', which is periodic", "leave it out: all of it is binned")
            low, high = -whole.period / 2, whole.period / 2
        elif span is not None:
            low, high = map(float, span)
        if not (low < high and np.isfinite(high - low)):
            raise UqbiasError(f"'{name}' from {low:g} to {high:g}", "give a finite --range, its end above its start")
        axes.append(Axis(name, whole.unit, low, high, number, whole.period))
        columns.append(values)
    return tuple(axes), columns


def _automatic(frames: Sequence[WeightedFrames], variables: Sequence[str]) -> str:
    """The method that fits the biases."""
    first = frames[0]
    if first.run.under_plumed:
        return "quasi-static"
    if len(frames) > 1 and not first.extended:
        return "mbar"
    return "cumulant" if first.boosts else _for_the_rest(first, variables)


def _for_the_rest(frames: WeightedFrames, variables: Sequence[str]) -> str:
    """The method that fits the biases other than a boost: what a bias names that alone changed."""
    if frames.extended:
        return "czar" if tuple(variables) == frames.extended[0].variables[:1] else "mbar"
    parts = [frames.run.parts[index] for index in frames.changing]
    if not parts:
        return "last-bias"
    if len(parts) == 1:
        return parts[0].estimator
    return "quasi-static" if all(part.estimator == "quasi-static" for part in parts) else "last-bias"


def _estimator(pool: Pool, method: str, axes: Sequence[Axis], order: int) -> tuple[Estimator, str, dict[str, str]]:
    """The estimator of a method, what the header says of the method, and notes of the estimator."""
    if method != "cumulant":
        return _weighted(pool, method, axes, boost=False)
    if not all(one.boosts for one in pool.frames):
        raise UqbiasError("cumulant takes runs with gamd", f"choose another method: {', '.join(METHODS)}")
    if len(pool.frames) > 1:
        raise UqbiasError(f"cumulant over {len(pool.frames)} runs, whose boosts differ", "one by one, or mbar")
    one = pool.frames[0]
    rest, described, _ = _weighted(pool, _for_the_rest(one, [axis.name for axis in axes]), axes, boost=True)
    boost = one.last_bias([index for index in one.on_molecule if index not in one.boosts])
    estimator, notes = by_cumulants(pool, rest, boost, order)
    return estimator, f"cumulant of order {order}: {METHODS['cumulant']}; {described}", notes


def _weighted(pool: Pool, method: str, axes: Sequence[Axis], *, boost: bool) -> tuple[Estimator, str, dict[str, str]]:
    """Estimator for all biases, or with ``boost`` for all but the boosts."""
    extended = any(one.extended for one in pool.frames)
    described = f"{method}: {METHODS[method]}"

    def acted() -> Array:
        return pool.of(lambda one: one.acted_bias(one.boosts if boost else ()))

    if method == "czar" or (method == "mbar" and extended):
        part = _one_extended(pool)
        if method == "mbar":
            return over_windows(pool, part, acted()), WINDOWS, {}
        if tuple(axis.name for axis in axes) != part.variables[:1]:
            raise UqbiasError(
                f"czar gives F along '{part.variables[0]}' only", "use --method mbar, over the windows of λ"
            )
        return by_czar(pool, part, acted(), axes[0]), described, {}
    if extended:
        raise UqbiasError(f"{method} for a run with an extended variable", "use --method czar or mbar")
    if method == "mbar":
        estimator, notes = across_runs(pool)
        return estimator, described, notes
    if method == "last-bias":
        bias = pool.of(lambda one: one.last_bias(one.boosts if boost else ()))
    else:
        bias = acted() - pool.of(tiwary_parrinello_offset) if method == "tiwary-parrinello" else acted()
    return weighted(pool, bias), described, {}


def _one_extended(pool: Pool) -> Coupled:
    """The one extended variable, the same in all runs.

    Raises
    ------
    UqbiasError
        If there is none, or more than one, or runs whose other biases differ.
    """
    for one in pool.frames:
        if len(one.extended) != 1:
            raise UqbiasError(
                f"{one.run.path} has {len(one.extended)} extended variables", "czar and its windows take exactly one"
            )
    first = cast(Coupled, pool.frames[0].extended[0])
    for one in pool.frames[1:]:
        other = cast(Coupled, one.extended[0])
        if (other.variables, other.sigma, other.period) != (first.variables, first.sigma, first.period):
            raise UqbiasError(f"{one.run.path} couples its extended variable in another way", "one run at a time")
        beside = [[run.run.facts["biases"][index] for index in run.on_molecule] for run in (pool.frames[0], one)]
        if one.changing or one.boosts or beside[0] != beside[1]:
            raise UqbiasError(f"the biases beside eabf of {one.run.path} act on the molecule differently", "one by one")
    return first


def _notes(frames: Sequence[WeightedFrames], discard: float) -> dict[str, str]:
    """What the header says of the runs."""
    total = sum(one.kept.size for one in frames)
    restarts = sum(int(one.run.restarted.sum()) for one in frames)
    walkers = "+".join(str(one.kept.shape[1]) for one in frames)
    settling = ", the stages of gamd before production" if any(one.boosts for one in frames) else ""
    notes = {
        "runs": f"{len(frames)}, walkers {walkers}, frames {total}, of which {sum(map(len, frames))} are left"
        f" (the first {100 * discard:g} %{settling} and frames at which a walker was stopped are not)",
        "biases": "; ".join(sorted({", ".join(one.run.kinds) or "none" for one in frames})),
    }
    if restarts:
        notes["restarts"] = f"{restarts}; the frames that follow one are not from equilibrium"
    factors: dict[str, list[str]] = {}
    for one in frames:
        for part in tempered(one.run.parts):
            where = f"{part.kind} on {', '.join(part.variables)} of {one.run.path}"
            factors.setdefault(biasfactor_text(part, one.run.extended), []).append(where)
    for text, owners in factors.items():
        said = text if len(factors) == 1 and len(owners) >= len(frames) else f"{', '.join(owners)}: {text}"
        notes["biasfactor"] = f"{notes['biasfactor']}; {said}" if "biasfactor" in notes else said
    notes["read"] = ", ".join(file for one in frames for file in one.run.files)
    return notes
