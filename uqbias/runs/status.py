"""How far a campaign is, from its run directory alone: no model, no array, nothing that takes long to import."""

from __future__ import annotations

import fcntl
import json
import re
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

from uqbias.errors import UqbiasError
from uqbias.runs.ledger_lines import NAME, SYSTEMS, read_ledger, runs_of
from uqbias.settings.yaml_text import read_yaml

#: Files of a run directory that are looked at beside the ledger.
LOCK, TO_LABEL, CAMPAIGN, SUMMARY = "ledger.lock", "to_label.xyz", "campaign.yaml", "summary.json"
#: Phases of a round in their order; the first round explores nothing.
PHASES = ("md", "harvest", "label", "train", "score")
DOING = {
    "md": "the exploration",
    "harvest": "the selection of frames",
    "label": "labels of the oracle",
    "train": "the training",
    "score": "the scores",
}
#: Bytes at the end of a COLVAR file that hold its last line.
TAIL = 4096


def status_of(directory: Path) -> dict[str, dict[str, Any]]:
    """How far each system of a run is, by its name; of one system it has none.

    Parameters
    ----------
    directory : run directory.

    Returns
    -------
    dict
        For each: ``state`` (running, stopped, awaiting labels, finished), ``pid``, ``round``, ``phase``, its ``share``
        that is done, ``waits_for``, ``labels`` (labelled, failed, pending, planned), ``rounds`` with labels, errors and
        seconds, ``used_s`` and ``left_s``; None where something is not known.

    Raises
    ------
    UqbiasError
        If it is no run directory.
    """
    if not any((directory / name).is_file() for name in (NAME, SYSTEMS)):
        what = "is no run directory" if directory.is_dir() else "is not there"
        raise UqbiasError(f"{directory} {what}", "give the directory that 'uqbias run' wrote")
    return {name: _status(folder) for name, folder in runs_of(directory).items()}


def _status(folder: Path) -> dict[str, Any]:
    content = read_ledger(folder)
    settings = _mapping(folder / CAMPAIGN, read_yaml)
    stopped = str(_mapping(folder / SUMMARY, json.loads).get("stopped") or "")
    rounds: dict[int, dict[str, Any]] = {}
    for event in content.events:
        if event["event"] in ("label", "failure", "phase"):
            _count(rounds.setdefault(event["round"], _blank(event["round"])), event)
    pid = _holder(folder / LOCK)
    at = max(rounds, default=0)
    if rounds and "score" in rounds[at]["phases"] and not stopped:
        at += 1
    now = rounds.get(at, _blank(at))
    phase = None if stopped else next(one for one in PHASES[2 * (at == 0) :] if one not in now["phases"])
    planned, budget = _planned(settings, rounds)
    pending = None if "taken" not in now else max(0, now["taken"] - now["labelled"] - now["failed"])
    share = _share(folder / f"round_{at:02d}" / "md") if phase == "md" else None
    if phase == "label" and now.get("taken"):
        share = 1 - (pending or 0) / now["taken"]
    asked = _asked(folder / TO_LABEL)
    state = "finished" if stopped else "running" if pid else "awaiting labels" if asked else "stopped"
    waits = None
    if state == "awaiting labels":
        waits = f"labels of {asked} geometries in {folder / TO_LABEL}"
    elif phase is not None and state == "running":
        waits = f"{DOING[phase]}, round {at}"
    elif state == "stopped":
        waits = "`uqbias run` with its campaign file, which goes on"
    return {
        "name": str(settings.get("name") or folder.resolve().name),
        "state": state,
        "pid": pid,
        "stopped": stopped or None,
        "round": at,
        "rounds_planned": planned,
        "phase": phase,
        "share": share,
        "waits_for": waits,
        "labels": {
            "labelled": sum(one["labelled"] for one in rounds.values()),
            "failed": sum(one["failed"] for one in rounds.values()),
            "pending": pending if phase == "label" else 0 if phase is None else None,
            "planned": budget,
        },
        "rounds": [rounds[index] for index in sorted(rounds)],
        "used_s": round(sum(sum(one["phases"].values()) for one in rounds.values()), 1),
        "left_s": 0.0 if phase is None else _left(rounds, at, phase, share, planned),
        "faults": content.faults,
    }


def _blank(index: int) -> dict[str, Any]:
    return {"round": index, "labelled": 0, "failed": 0, "rejected": 0, "phases": {}}


def _count(entry: dict[str, Any], event: dict[str, Any]) -> None:
    """Note an event of a round."""
    kind = event["event"]
    if kind != "phase":
        entry["labelled" if kind == "label" else "failed"] += 1
        return
    entry["phases"][event["phase"]] = event["wall_s"]
    entry |= {name: event[name] for name in ("taken", "rejected") if name in event}
    scores = event.get("entry", {})
    errors = ("force_mae_meV_per_A", "energy_mae_meV_per_atom", "stress_mae_GPa")
    entry |= {name: scores[name] for name in errors if name in scores}


def _planned(settings: dict[str, Any], rounds: dict[int, dict[str, Any]]) -> tuple[int | None, int | None]:
    """Rounds of exploration and labels in all, at most."""
    stop, harvest = (settings.get(name) or {} for name in ("stop", "harvest"))
    planned, each, most = stop.get("rounds"), harvest.get("labels_per_round"), stop.get("labels")
    if planned is None or each is None or 0 not in rounds or "label" not in rounds[0]["phases"]:
        return planned, most
    first = rounds[0]["labelled"]
    budget = first + planned * each
    return planned, budget if most is None else min(budget, max(most, first))


def _left(
    rounds: dict[int, dict[str, Any]], at: int, phase: str, share: float | None, planned: int | None
) -> float | None:
    """Seconds left, by the mean of what each phase took; None where one was never done. MD may become longer later."""
    if planned is None:
        return None
    later = [one["phases"] for index, one in rounds.items() if index > 0] or [one["phases"] for one in rounds.values()]
    usual = {name: fmean(times) for name in PHASES if (times := [one[name] for one in later if name in one])}
    rest = [*PHASES[PHASES.index(phase) :], *(PHASES * max(0, planned - at))]
    if any(name not in usual for name in rest):
        return None
    return round(sum(usual[name] for name in rest) - (share or 0.0) * usual[phase], 1)


def _share(folder: Path) -> float | None:
    """Share of an exploration that is done, by the time in its COLVAR files."""
    groups = sorted(folder.glob("group_*")) or [folder]
    done = []
    for group in groups:
        facts, files = _mapping(group / "run.json", json.loads), sorted(group.glob("COLVAR.*"))
        with suppress(OSError, ValueError, KeyError, IndexError, TypeError, ZeroDivisionError):
            with files[0].open("rb") as stream:
                stream.seek(max(0, files[0].stat().st_size - TAIL))
                time = float(stream.read().splitlines()[-1].split()[0])
            done.append(1e3 * time / (facts["steps"] * facts["timestep_fs"]))
    return min(1.0, fmean(done)) if len(done) == len(groups) else None


def _holder(lock: Path) -> int | None:
    """Process that runs the campaign on this machine, None if none does."""
    with suppress(OSError, ValueError), lock.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(stream.read(64))
    return None


def _asked(path: Path) -> int:
    """Geometries that wait for labels from elsewhere."""
    with suppress(OSError):
        return len(re.findall(rb"\brequest=", path.read_bytes()))
    return 0


def _mapping(path: Path, read: Any) -> dict[str, Any]:
    """The mapping in a file; empty where there is none, or the file is being written or damaged."""
    with suppress(OSError, ValueError, UqbiasError):
        content = read(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}
