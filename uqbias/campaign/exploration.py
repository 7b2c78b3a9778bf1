"""The MD phase: groups of walkers explore with the last round's model; one group is one picklable task."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from uqbias.errors import UqbiasError
from uqbias.files import atomic_path
from uqbias.registry import BIASES

if TYPE_CHECKING:
    from uqbias.md.observation import ExternalBias

Array = NDArray[np.float64]
#: (kind, options) of each part of a bias.
BiasParts = tuple[tuple[str, dict[str, Any]], ...]


@dataclass(frozen=True)
class Exploration:
    """One group of walkers.

    Attributes
    ----------
    model : model file.
    folder : where its output goes; made by the task.
    biases : (kind, options) of each part of the bias; empty for unbiased MD.
    md : the ``md`` section as a dict.
    guards : the ``guards`` section as a dict.
    safe_frames : [n, N, 3] nm, where walkers begin and begin again.
    safe_weights : [n] probability of each safe frame.
    reference : [N, 3] nm, geometry that gives bond lengths and chirality.
    seed : of everything random here.
    earlier_bias : checkpoint to go on from, or None.
    """

    model: Path
    folder: Path
    biases: BiasParts
    md: dict[str, Any]
    guards: dict[str, Any]
    safe_frames: Array
    safe_weights: Array
    reference: Array
    seed: int
    earlier_bias: Path | None = None


def build_bias(parts: BiasParts, temperature: float) -> Any:
    """Sum of the biases named; a class that takes ``temperature`` gets that of the MD.

    Raises
    ------
    UqbiasError
        If a kind or an option is not known.
    """
    from uqbias.bias.base import BiasSum

    built = []
    for kind, options in parts:
        cls = BIASES.get(kind)
        arguments = dict(options)
        if "temperature" in inspect.signature(cls).parameters:
            arguments.setdefault("temperature", temperature)
        try:
            built.append(cls(**arguments))
        except TypeError as error:
            raise UqbiasError(f"bias '{kind}' with {options}: {error}", "check its options") from None
    return BiasSum(built)


def _bounded(parts: BiasParts, lowest: float) -> BiasParts:
    """The parts with ``reflect_at: lowest`` turned into the lowest CV of the labelled frames."""
    return tuple(
        (kind, {key: lowest if (key, value) == ("reflect_at", "lowest") else value for key, value in options.items()})
        for kind, options in parts
    )


def make_guard(job: Exploration, model: Any) -> Any:
    """The guard of a group of walkers; ``model`` is its `UncertaintyModel`."""
    from uqbias.inference import stiff_deviations
    from uqbias.md.guards import Guard

    guards = job.guards
    return Guard(
        model.topology,
        job.reference,
        bond_range=(guards["bond_low"], guards["bond_high"]),
        cv_cap=guards["cv_cap"],
        uncertainty_cap=guards["uncertainty_cap"],
        turned=lambda positions: stiff_deviations(model, positions),
        max_turn=guards["stiff_torsion"],
        keep_chirality=guards["chirality"],
    )


def starting_points(job: Exploration, guard: Any) -> tuple[Array, Array, NDArray[np.int64]]:
    """Frames [n, N, 3] that the guard accepts, their probabilities [n], and which of them each walker begins at [W].

    Raises
    ------
    UqbiasError
        If the guard accepts none.
    """
    stopped = {violation.walker for violation in guard.check(job.safe_frames)}
    safe = np.array([index for index in range(len(job.safe_frames)) if index not in stopped], dtype=np.int64)
    if not len(safe):
        raise UqbiasError("every labelled frame violates the guards", "widen guards.bond_low, guards.bond_high")
    frames, weights = job.safe_frames[safe], job.safe_weights[safe]
    weights = weights / weights.sum()
    walkers = job.md["walkers"]
    random = np.random.default_rng(job.seed)
    return frames, weights, random.choice(len(frames), walkers, p=weights, replace=len(frames) < walkers)


def explore(
    job: Exploration, advance: Callable[[int, str], None] | None = None, *, external: ExternalBias | None = None
) -> dict[str, Any]:
    """Run one group of walkers and write its folder.

    Writes ``observations.npz``, ``events.jsonl`` (walkers stopped), ``HILLS`` and ``COLVAR``, a trajectory a walker
    with ``topology.pdb``, and ``bias.npz``.

    Parameters
    ----------
    advance : told (steps done, note) while it runs.
    external : further OpenMM forces on the walkers, for a sampler of one's own.

    Returns
    -------
    dict
        ``steps`` (of all walkers), ``stopped`` (how many times a walker was), ``runner``, ``evaluations``.
    """
    import torch

    from uqbias.bias.metadynamics import Metadynamics
    from uqbias.compile.fused import FusedEvaluator
    from uqbias.inference import evaluate_frames
    from uqbias.md.reporters import ColvarFiles, HillsFile, ObservationRecorder, Trajectories
    from uqbias.md.walkers import Walkers
    from uqbias.model import UncertaintyModel

    torch.set_num_threads(1)
    md = job.md
    job.folder.mkdir(parents=True, exist_ok=True)
    model = UncertaintyModel.load(job.model)
    lowest = float(evaluate_frames(model, job.safe_frames).cv.min())
    bias = build_bias(_bounded(job.biases, lowest), md["temperature"]) if job.biases else None
    if bias is not None and job.earlier_bias is not None:
        with np.load(job.earlier_bias) as arrays:
            bias.restore(dict(arrays))
    guard = make_guard(job, model)
    frames, weights, begin = starting_points(job, guard)
    evaluator = FusedEvaluator(
        model, bias, md["walkers"], runner=md["runner"], device="cuda" if md["platform"] == "CUDA" else "cpu"
    )
    walkers = Walkers(
        model.topology,
        evaluator,
        frames[begin],
        temperature=md["temperature"],
        timestep_fs=md["timestep_fs"],
        friction_per_ps=md["friction_per_ps"],
        platform=md["platform"],
        backend=md["backend"],
        constraints=md["constraints"],
        constraint_geometry=job.reference,
        guard=guard,
        safe_frames=frames,
        choose_restart=lambda _walker, places, rng: int(rng.choice(len(places), p=weights)),
        external=external,
        seed=job.seed,
    )
    with ExitStack() as files:
        recorder = files.enter_context(ObservationRecorder(job.folder, stride=md["observe_every"] // md["pace"]))
        trajectories = Trajectories(
            job.folder, model.topology, md["walkers"], stride=md["trajectory_every"] // md["pace"]
        )
        files.callback(trajectories.close)
        observers: list[Any] = [recorder, trajectories]
        observers.append(
            files.enter_context(ColvarFiles(job.folder / "COLVAR", md["walkers"], names=evaluator.names))
        )
        for part in bias.biases if bias is not None else ():
            if isinstance(part, Metadynamics):
                observers.append(files.enter_context(HillsFile(job.folder / "HILLS", part, md["timestep_fs"])))

        def tell(observation: Any) -> None:
            if advance is not None and observation.step:
                highest = np.nanmax(np.where(np.isfinite(observation.cv), observation.cv, np.nan), initial=-np.inf)
                advance(md["pace"], f"u up to {highest:.1f}, {len(walkers.events)} stopped")

        walkers.run(md["steps"], pace=md["pace"], observers=[*observers, tell])
        recorder.save()
    if bias is not None:
        with atomic_path(job.folder / "bias.npz") as temporary, temporary.open("wb") as stream:
            np.savez(stream, **bias.checkpoint())
    return {
        "steps": md["steps"] * md["walkers"],
        "stopped": len(walkers.events),
        "runner": evaluator.runner,
        "evaluations": evaluator.n_evaluations,
    }
