"""The exploration phase: the sampler of a campaign goes on from labelled frames with the model of the last round."""

from __future__ import annotations

import shutil
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from uqbias.campaign.budget import multiple_of_steps
from uqbias.campaign.executors.base import results_of
from uqbias.campaign.home import Home
from uqbias.campaign.label_requests import requests_from
from uqbias.campaign.phases import Array, harvested, physical_filter
from uqbias.campaign.progress import Announced
from uqbias.campaign.samplers.base import Advance, Exploration, Sampler
from uqbias.campaign.work import Work
from uqbias.errors import UqbiasError
from uqbias.files import read_arrays
from uqbias.model.inference import evaluate_frames, stiff_deviations
from uqbias.model.model import UncertaintyModel
from uqbias.molecule.frames import Frames
from uqbias.molecule.physical import PHYSICAL
from uqbias.registry import SAMPLERS
from uqbias.runs.ledger_lines import CURE
from uqbias.runs.writer import BIAS, DESCRIPTION, SNAPSHOT
from uqbias.settings.md_sections import MD
from uqbias.uncertainty.base import WALL, at_wall

#: Steps between snapshots of an exploration, at most.
SNAPSHOT_EVERY = 2000


def explore_phase(work: Work, round_index: int) -> dict[str, Any]:
    """Let the sampler explore with the model of the last round; writes ``round_XX/md``, which appears when it is whole.

    The folder has this name whatever the sampler is.
    """
    folder, sampler = work.folder(round_index), SAMPLERS.build(work.campaign.sampling)
    multiple = multiple_of_steps(work, round_index) if sampler.walks else 1
    campaign = work.campaign.model_copy(update={"md": work.campaign.md.in_campaign(multiple)})
    final, partial = folder / "md", folder / "md.partial"
    for leftover in (final, *([] if sampler.resumes else [partial])):
        if leftover.exists():
            shutil.rmtree(leftover)
    groups = campaign.md.groups if sampler.walks else 1
    jobs = [_exploration(work, campaign.md, sampler, round_index, group, groups) for group in range(groups)]
    name, total = f"round {round_index}: {sampler.title}", sampler.units(campaign)
    # The first call of a new architecture compiles it, which takes longer than an ordinary user expects of "MD".
    work.progress.phase(f"round {round_index}: load or compile the model", None)
    executor = work.executor("explore")
    if len(jobs) == 1 and executor.near:
        results = [_explored(sampler, jobs[0], Announced(work.progress, name, total))]
    else:
        work.progress.phase(name, campaign.md.steps * groups)
        results = []
        calls = [(work.home, sampler, job) for job in jobs]
        for result in results_of(executor, _explore, calls, work.progress.advance):
            results.append(result)
            work.progress.advance(campaign.md.steps, f"{len(results)} of {len(jobs)} groups")
    for snapshot in partial.rglob(SNAPSHOT):
        snapshot.unlink()  # it has served
    partial.rename(final)
    facts = {
        "md_steps": sum(result["steps"] for result in results),
        "stopped": sum(result["stopped"] for result in results),
        "runner": results[0]["runner"],
    }
    if multiple > 1:
        facts["multiple"] = multiple
        text = f"{multiple} times md.steps, since labels cost more than MD"
        work.progress.message(f"round {round_index}: {text} (md.seconds_per_label)")
    if faults := [result["fault"] for result in results if result.get("fault")]:
        # The candidates that pass the filters are geometries like others: their labels may be what the model lacks.
        facts["fault"] = faults[0]
        work.progress.message(f"round {round_index}: {faults[0][0]}; its sound frames are used, the campaign goes on")
    if jumps := [result["jumps"] for result in results if "jumps" in result]:
        facts["jumps"] = _jumped(work, round_index, jumps)
    return facts | ({} if sampler.walks else {"proposed": sum(result["proposed"] for result in results)})


def _explore(home: Home, sampler: Sampler, job: Exploration) -> dict[str, Any]:
    """One exploration in the process of a worker."""
    with home.claim(str(job.folder)):
        return _explored(sampler, job)


def _explored(sampler: Sampler, job: Exploration, advance: Advance | None = None) -> dict[str, Any]:
    """One exploration, from the last snapshot of one that was ended, or else from its beginning."""
    if sampler.resumes and (job.folder / DESCRIPTION).is_file():
        with suppress(UqbiasError):  # other packages by now, or a damaged file
            return sampler.explore(replace(job, resume=True), advance)
    if job.folder.exists():
        shutil.rmtree(job.folder)
    return sampler.explore(job, advance)


def _jumped(work: Work, round_index: int, groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Facts of the jumps of all groups of walkers, and a line about them."""
    if "none" in groups[0]:
        if round_index == 1:
            work.progress.message(f"no jumps: {groups[0]['none']}")
        return {"none": groups[0]["none"]}
    facts = {name: sum(group[name] for group in groups) for name in ("proposed", "relaxed", "passed")}
    refused: Counter[str] = sum((Counter(group["refused"]) for group in groups), Counter())
    reasons = ", ".join(f"{reason} {count}" for reason, count in refused.most_common()) or "none"
    rest = "" if facts["passed"] else "; all walkers go on from labelled frames"
    text = "{proposed} jumps tried, {relaxed} relaxed, {passed} passed".format(**facts)
    work.progress.message(f"round {round_index}: {text} (refused: {reasons}){rest}")
    return {**facts, "refused": dict(refused.most_common())}


def _exploration(work: Work, md: MD, sampler: Sampler, round_index: int, group: int, groups: int) -> Exploration:
    campaign = work.campaign
    partial = work.folder(round_index) / "md.partial"
    several = groups > 1
    accepted = frames = work.accepted(round_index - 1)
    model = UncertaintyModel.load(work.model_path(round_index - 1))
    physical = physical_filter(work).verdicts(frames, frames.labels()[0], stiff_deviations(model, frames))
    safe = np.array([verdict == PHYSICAL for verdict in physical], dtype=bool)
    if not safe.any():
        raise UqbiasError("no labelled frame passes the physical filters", "widen the tolerances under harvest")
    frames = frames[safe]
    if campaign.md.start_from == "start":
        frames = frames[np.array([entry["round"] == 0 for entry in frames.info], dtype=bool)]
    weights = np.ones(len(frames))
    if campaign.md.start_from == "sparse":
        weights = _sparseness(model, evaluate_frames(model, frames).driver)
    earlier, sharing = None, campaign.md.share_hills_every
    if campaign.old_bias == "keep" and round_index > 1 and sampler.biased:
        before = work.folder(round_index - 1) / "md"
        earlier = before / (f"group_{group}" if several else "") / BIAS
        if sharing is not None:  # the last one to exchange has the hills of all
            earlier = max(sorted(before.glob(f"group_*/{BIAS}")), key=_hills_in)
    biases = campaign.bias if sampler.biased else []
    start = work.ledger.labels(0)
    return Exploration(
        model=work.model_path(round_index - 1),
        folder=partial / f"group_{group}" if several else partial,
        biases=tuple((section.kind, section.arguments()) for section in biases),
        md=md,
        guards=campaign.guards,
        safe_frames=frames.positions,
        safe_boxes=frames.cells,
        periodic=frames.periodic,
        safe_weights=weights / weights.sum(),
        reference=start.positions[int(start.labels()[0].argmin())],
        seed=work.seed(round_index, f"md/{group}"),
        earlier_bias=earlier,
        variables={name: {"kind": section.kind, **section.arguments()} for name, section in campaign.variables.items()},
        energies=accepted.labels()[0],
        names=tuple(f"{entry['round']}/{entry['index']}" for entry in frames.info),
        known=_asked(work, round_index),
        physical=physical_filter(work),
        snapshot_every=(sharing or min(SNAPSHOT_EVERY, -(-md.steps // 10))) if sampler.resumes else None,
        hills=None if sharing is None else partial / "hills",
    )


def _hills_in(path: Path) -> int:
    """Number of hills in the file of a bias."""
    arrays = read_arrays(path, "bias of the round before", CURE)
    return sum(len(array) for name, array in arrays.items() if name.endswith("hill_step"))


def _sparseness(model: UncertaintyModel, driver: Array) -> Array:
    """Weights [n] of frames by their driver: one over the density where it is the logarithm of one."""
    if model.driver.unit == "nats":
        # As for two torsions: with more, the range of u is larger and one frame would be all.
        range_of_u = at_wall("wall", model.driver) / WALL
        return np.asarray(np.exp(np.minimum(driver - driver.max(), 0.0) / range_of_u))
    # Of another driver only the order is known to mean something: twice as often at the top as in the middle.
    ranks = np.argsort(np.argsort(driver, kind="stable"), kind="stable")
    return np.asarray((1.0 + ranks) / len(driver))


def _asked(work: Work, round_index: int) -> Frames:
    """Geometries that the oracle was asked for before this round: labelled, or failed on."""
    parts = [work.ledger.labels(round_index - 1)]
    for index in range(1, round_index):
        if failed := work.ledger.failed(index):
            frames = harvested(work, index)
            keys = [request.key for request in requests_from(frames, work.oracle_identity)]
            parts.append(frames[[place for place, key in enumerate(keys) if key in failed]])
    return Frames.concatenate(parts)
