"""Scoring a round against reference data that the campaign never trains on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.campaign.labelling import failure_reasons
from uqbias.campaign.work import Work, read_test_set
from uqbias.errors import UqbiasError
from uqbias.files import write_arrays, write_text
from uqbias.model.inference import evaluate_frames
from uqbias.model.model import UncertaintyModel
from uqbias.molecule.frames import Frames
from uqbias.molecule.measures import dihedral_angles
from uqbias.molecule.surface import ReferenceSurface, in_box, reached
from uqbias.registry import SAMPLERS
from uqbias.settings.schema import Score
from uqbias.units import EV, EV_PER_ANGSTROM

Array = NDArray[np.float64]


def angles_of(positions: NDArray[Any], coordinates: Mapping[str, Sequence[int]]) -> dict[str, Array]:
    """Named dihedral angles of ``positions`` [n, N, 3]: name to [n] degrees."""
    columns = np.degrees(dihedral_angles(positions, list(coordinates.values()))).T
    return dict(zip(coordinates, columns, strict=True))


def force_errors(test: Frames, model: UncertaintyModel) -> dict[str, Array]:
    """Errors of a model on labelled frames.

    Returns
    -------
    dict
        ``force_mae_frame`` [n] meV/Å (mean over components), ``energy_error_frame`` [n] meV/atom (absolute),
        ``driver`` [n], ``judge`` [n] kJ/mol/nm.
    """
    energies, forces = test.labels()
    predicted = evaluate_frames(model, test, forces=True)
    assert predicted.forces is not None
    return {
        "force_mae_frame": np.abs(predicted.forces - forces).mean(axis=(1, 2)) / EV_PER_ANGSTROM * 1000.0,
        "energy_error_frame": np.abs(predicted.energy - energies) / len(test.numbers) / EV * 1000.0,
        "driver": predicted.driver,
        "judge": predicted.judge,
    }


def score_phase(work: Work, round_index: int) -> dict[str, Any]:
    """Compute the round's entry of the summary; writes ``round_XX/scores.npz`` where there is a test set."""
    score = work.campaign.score
    work.progress.phase(f"round {round_index}: score", 1)
    entry = _counts(work, round_index)
    if score is not None:
        entry |= _reached(work, round_index, score)
        if score.test_set is not None:
            entry |= _errors(work, round_index, score)
    work.progress.advance(1)
    return entry


def _counts(work: Work, round_index: int) -> dict[str, Any]:
    """What it cost up to this round, and what this round rejected."""
    events = [event for event in work.ledger.events() if event.get("round", round_index + 1) <= round_index]
    frames, verdicts = work.labels(round_index)
    phases = [event for event in events if event["event"] == "phase"]
    paid = [event for event in events if event["event"] == "label" and event["info"].get("source") != "start file"]
    failures = [event for event in events if event["event"] == "failure"]
    entry = {
        "round": round_index,
        "labels": len(frames),
        "accepted": sum(not verdict for verdict in verdicts),
        "oracle_calls": len(paid) + len(failures),
        "failures": len(failures),
        "md_steps": sum(event.get("md_steps", 0) for event in phases),
        "rejected": sum(
            bool(verdict) for info, verdict in zip(frames.info, verdicts, strict=True) if info["round"] == round_index
        ),
        "wall_s": round(sum(event["wall_s"] for event in phases if event["round"] == round_index), 3),
    }
    for event in phases:
        if event["round"] == round_index and "passed" in (jumps := event.get("jumps", {})):
            entry |= {f"jumps_{name}": jumps[name] for name in ("proposed", "passed")}
    if SAMPLERS.get(work.campaign.sampling.kind).may_fail:
        entry["proposed"] = sum(event.get("proposed", 0) for event in phases)
        entry["failed"] = sum(event.get("stopped", 0) for event in phases)
    return entry


def _reached(work: Work, round_index: int, score: Score) -> dict[str, Any]:
    """Which bins of the reference surface, basins and regions the accepted labels hold."""
    if not score.coordinates:
        return {}
    angles = angles_of(work.accepted(round_index).positions, score.coordinates)
    entry: dict[str, Any] = {}
    if score.surface is not None:
        if len(angles) < 2:
            raise UqbiasError("score.surface needs two score.coordinates", "name the two dihedrals of the surface")
        surface = ReferenceSurface.load(work.file.path("score", "surface"))
        first, second = list(angles.values())[:2]
        entry["coverage"] = surface.coverage(first, second)
        entry["bins"] = int((surface.occupied(first, second) & surface.accessible()).sum())
    if score.basins:
        entry["basins"] = reached(angles, score.basins)
    return entry | {f"labels_{name}": int(in_box(angles, box).sum()) for name, box in score.regions.items()}


def _errors(work: Work, round_index: int, score: Score) -> dict[str, Any]:
    test = read_test_set(work.file, work.topology)
    assert test is not None
    errors = force_errors(test, UncertaintyModel.load(work.model_path(round_index)))
    write_arrays(work.folder(round_index) / "scores.npz", errors)
    angles = angles_of(test.positions, score.coordinates) if score.regions else {}
    parts = {"": np.ones(len(test), dtype=bool)}
    parts |= {f"{name}_": in_box(angles, box) for name, box in score.regions.items()}
    entry = {}
    for name, inside in parts.items():
        if inside.any():
            entry[f"force_mae_{name}meV_per_A"] = float(errors["force_mae_frame"][inside].mean())
            entry[f"energy_mae_{name}meV_per_atom"] = float(errors["energy_error_frame"][inside].mean())
    return entry


def write_summary(work: Work, **facts: Any) -> dict[str, Any]:
    """Write ``summary.json`` from the score events of the ledger, and return it."""
    latest: dict[int, dict[str, Any]] = {}
    unhealthy = []
    for event in work.ledger.events("phase"):
        if fault := event.get("fault"):
            unhealthy.append(f"round {event['round']}: {fault[0]}")
        if event["phase"] == "score":
            latest[event["round"]] = event["entry"]
    summary = {
        "name": work.campaign.name,
        "seed": work.campaign.seed,
        **facts,
        **({"unhealthy": unhealthy} if unhealthy else {}),
        "failure_reasons": failure_reasons(work.ledger),
        "rounds": [latest[index] for index in sorted(latest)],
    }
    write_text(work.directory / "summary.json", json.dumps(summary, indent=1) + "\n")
    return summary
