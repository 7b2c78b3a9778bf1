"""The phases of a round that choose and buy labels: harvest and label."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

from uqbias.campaign.handed_over import take_handed_over
from uqbias.campaign.label_requests import LabelRequest, label_in, requests_from
from uqbias.campaign.labelling import label_all
from uqbias.campaign.phase_files import DATASET
from uqbias.campaign.samplers.jumps import settled
from uqbias.campaign.selection import Candidates, select
from uqbias.campaign.work import Work
from uqbias.errors import UqbiasError
from uqbias.files import content_of, read_arrays, read_json, write_arrays, write_text
from uqbias.model.inference import conformers, evaluate_frames, selection_features, stiff_deviations
from uqbias.model.model import UncertaintyModel
from uqbias.molecule.frames import Frames, write_frames
from uqbias.molecule.physical import PHYSICAL, PhysicalFilter
from uqbias.registry import ORACLES
from uqbias.runs.ledger_lines import CURE
from uqbias.runs.reader import check_observations
from uqbias.uncertainty.base import at_wall

Array = NDArray[np.float64]

#: What observations hold of every frame.
OBSERVED = ("positions", "energy", "driver", "judge")
#: The geometry itself, with the cells of a periodic system.
GEOMETRY = ("positions", "boxes")
#: And where a proposed geometry comes from; see `uqbias.campaign.samplers.distorting`.
PROPOSED = ("attack", "source", "status", "log_likelihood", "norm", "iterations")


class _Candidate(TypedDict):
    energy: float | None


class _Harvest(TypedDict):
    candidates: list[_Candidate]


def physical_filter(work: Work) -> PhysicalFilter:
    """The filter of physical frames, about the start frames."""
    return PhysicalFilter(work.topology, work.ledger.labels(0), work.reference_energy, work.campaign.harvest)


def harvest_phase(work: Work, round_index: int) -> dict[str, Any]:
    """Choose the frames to label; writes ``harvest.json`` (every candidate) and ``harvest.npz`` (the taken ones)."""
    folder = work.folder(round_index)
    seen = observed(work, round_index)
    work.progress.phase(f"round {round_index}: harvest", len(seen["driver"]))
    verdicts, picks, reasons = _chosen(work, round_index, seen)
    work.progress.advance(len(reasons), f"{len(picks)} taken")
    physical = np.array([verdict == PHYSICAL for verdict in verdicts], dtype=bool)
    facts = {
        "candidates": len(reasons),
        "physical": int(physical.sum()),
        "taken": len(picks),
        "visited_judge": float(np.quantile(seen["judge"][physical], 0.95)) if physical.any() else None,
    }
    taken = set(picks.tolist())
    candidates = [
        {name: _plain(values[i]) for name, values in seen.items() if name not in GEOMETRY}
        | {"taken": i in taken, "reason": reasons[i]}
        for i in range(len(reasons))
    ]
    counts = dict(Counter(category(reason) for reason in reasons))
    geometries = {name: seen[name][picks] for name in GEOMETRY if name in seen}
    write_arrays(folder / "harvest.npz", {**geometries, "candidate": picks})
    write_text(folder / "harvest.json", json.dumps({**facts, "counts": counts, "candidates": candidates}, indent=0))
    return facts


def _chosen(
    work: Work, round_index: int, seen: dict[str, NDArray[Any]]
) -> tuple[list[str], NDArray[np.int64], list[str]]:
    """Verdict of the physical filter on each candidate, which are taken, and why or why not."""
    options = work.campaign.harvest
    model = UncertaintyModel.load(work.model_path(round_index - 1))
    finite = np.isfinite(seen["positions"]).all(axis=(1, 2))
    if not finite.any():
        verdicts = ["not finite"] * len(finite)
        return verdicts, np.empty(0, dtype=np.int64), [f"refused: {verdict}" for verdict in verdicts]
    positions = np.where(finite[:, None, None], seen["positions"], seen["positions"][np.argmax(finite)])
    frames = Frames(work.ledger.numbers, positions, cells=seen.get("boxes"), periodic=work.start.periodic)
    forces = None if options.largest_force is None else evaluate_frames(model, frames, forces=True).forces
    visited = replace(frames, positions=seen["positions"])
    verdicts = physical_filter(work).verdicts(visited, seen["energy"], stiff_deviations(model, frames), forces)
    known = work.ledger.labels(round_index - 1)
    space = options.selection.space
    picks, reasons = select(
        Candidates(
            seen["driver"],
            seen["judge"],
            seen["energy"],
            selection_features(model, frames, space),
            verdicts,
            frames,
            conformers(model, frames),
            len(work.topology),
        ),
        selection_features(model, known, space),
        work.budget(round_index),
        options.selection,
        work.seed(round_index, "harvest"),
        driver_window=[at_wall(value, model.driver) for value in options.driver_window],
        judge_window=options.judge_window,
        known_positions=known,
        known_conformers=conformers(model, known),
        superpose=model.potential.invariant,
    )
    return verdicts, picks, reasons


def _plain(value: Any) -> Any:
    """JSON-able: a number that is not finite becomes None."""
    plain = value.item()
    return None if isinstance(plain, float) and not np.isfinite(plain) else plain


def observed(work: Work, round_index: int) -> dict[str, NDArray[Any]]:
    """Recorded frames of all groups as flat columns, without where walkers began and what follows a jump at once.

    Beside positions, energy, driver and judge they hold where each comes from: ``group``, ``walker`` and ``step`` of
    MD, or the columns of a sampler that proposes geometries, such as ``source``.
    """
    folder = work.folder(round_index) / "md"
    columns: dict[str, list[NDArray[Any]]] = {}
    for path in sorted(folder.rglob("observations.npz")):
        group = int(path.parent.name.removeprefix("group_")) if path.parent != folder else 0
        arrays = read_arrays(path, "file of observations", CURE)
        boxes = [] if work.start.cells is None else ["boxes"]
        proposed = [name for name in PROPOSED if name in arrays]
        check_observations(path, arrays, (*OBSERVED, *proposed, *boxes), len(work.topology), CURE)
        later = arrays["step"] > 0
        step = arrays["step"][later]
        data = {name: arrays[name][later] for name in (*OBSERVED, *proposed, *boxes)}
        walkers = data["driver"].shape[1]
        if not proposed:
            data["step"] = np.repeat(step[:, None], walkers, axis=1)
            data["walker"] = np.tile(np.arange(walkers), (len(step), 1))
            data["group"] = np.full((len(step), walkers), group)
        kept = np.ones((len(step), walkers), dtype=bool)
        if not proposed:
            kept = settled(path.with_name("run.json"), work.campaign.md.timestep_fs, data["step"], data["walker"])
        for name, values in data.items():
            columns.setdefault(name, []).append(values[kept])
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def category(reason: str) -> str:
    """Short name of a harvest reason, for counting: ``taken``, ``bond``, ``driver window``, ``budget``, ..."""
    verdict, _, detail = reason.partition(": ")
    if verdict == "taken":
        return "taken"
    if verdict == "not taken":
        return "not selected"
    for name in ("driver", "judge"):
        if detail.startswith(name):
            return f"{name} window"
    for name in ("bond", "angle", "clash", "chirality", "coordination", "stiff torsion", "energy", "force", "same"):
        if detail.startswith(name):
            return "duplicate" if name == "same" else name
    return detail or "other"


def label_phase(work: Work, round_index: int) -> dict[str, Any]:
    """Label the frames taken (round 0: the start frames); each label is in the ledger as soon as it arrives."""
    requests = requests_of(work, round_index)
    work.progress.phase(f"round {round_index}: label", len(requests))
    if round_index == 0 and work.start.labelled:
        _adopt(work, requests)
    elif ORACLES.get(work.oracle.kind).elsewhere:
        earlier = [requests_of(work, index) for index in range(round_index)]
        take_handed_over(work, round_index, [*earlier, requests])
    else:
        label_all(
            work.executor("label"),
            replace(work.oracle, home=work.home, folder=work.directory / "labels" / work.folder(round_index).name),
            requests,
            work.ledger,
            round_index,
            progress=work.progress.advance,
        )
    dataset, facts = judged(work, round_index)
    write_frames(work.directory / DATASET, dataset)
    if failed := [event["reason"] for event in work.ledger.events("failure") if event["round"] == round_index]:
        work.progress.message(f"round {round_index}: {len(failed)} of {len(requests)} labels failed ({failed[-1]})")
    return facts


def judged(work: Work, round_index: int) -> tuple[Frames, dict[str, Any]]:
    """All labels up to a round with the verdict on each, as ``dataset.xyz`` holds them, and counts of the round's."""
    frames, verdicts = work.labels(round_index)
    kept = [{**entry, "verdict": verdict or "accepted"} for entry, verdict in zip(frames.info, verdicts, strict=True)]
    new = [verdict for entry, verdict in zip(frames.info, verdicts, strict=True) if entry["round"] == round_index]
    return replace(frames, info=kept), {
        "labelled": len(new),
        "rejected": sum(bool(verdict) for verdict in new),
        "failures": len(work.ledger.failed(round_index)),
    }


def requests_of(work: Work, round_index: int) -> list[LabelRequest]:
    """Frames that a round has labelled: those of its harvest, in round 0 the start frames."""
    if round_index == 0:
        frames = replace(work.start, info=[{"reason": "start", **work.oracle_facts}] * len(work.start))
    else:
        frames = harvested(work, round_index)
    return requests_from(frames, work.oracle_identity)


def _adopt(work: Work, requests: list[LabelRequest]) -> None:
    """Take the labels of the start file into the ledger."""
    for request in requests:
        if not work.ledger.has_label(request.key):
            label = label_in(work.start, request.index)
            work.ledger.append_label(0, request, label, {"reason": "start", "source": "start file"})
        work.progress.advance(1, "labels of the start file")


def harvested(work: Work, round_index: int) -> Frames:
    """The frames that the harvest of a round took, with what it says of them."""
    folder = work.folder(round_index)
    file = folder / "harvest.npz"
    candidates = read_json(folder / "harvest.json", _Harvest, "list of candidates", CURE)["candidates"]
    arrays = read_arrays(file, "file of a harvest", CURE)
    with content_of(file, CURE, "is not a file of a harvest"):
        positions, chosen = arrays["positions"], arrays["candidate"]
        boxes = None if work.start.cells is None else arrays["boxes"]
        shape, places = (len(chosen), len(work.topology), 3), {*range(len(candidates))}
        fitting = positions.shape == shape and (positions.dtype.kind, chosen.dtype.kind) == ("f", "i")
        fitting &= boxes is None or (boxes.shape == (len(chosen), 3, 3) and bool(np.isfinite(boxes).all()))
        if not (fitting and np.isfinite(positions).all() and {*chosen.tolist()} <= places):
            raise UqbiasError(f"{positions.shape} positions of {len(candidates)} candidates", CURE)
    info = []
    for candidate in chosen.tolist():
        entry: dict[str, Any] = {**candidates[candidate]}
        facts = {name: value for name, value in entry.items() if name not in ("energy", "taken")}
        info.append({**facts, **work.oracle_facts, "model_energy": entry["energy"]})
    return Frames(work.ledger.numbers, positions, info=info, cells=boxes, periodic=work.start.periodic)
