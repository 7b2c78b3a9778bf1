"""Proof of a run directory: whether its ledger, its labels and its files are what the campaign wrote."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.campaign.ledger import differing_keys, remains, unwritten
from uqbias.campaign.phase_files import DATASET, changed, recorded
from uqbias.errors import UqbiasError
from uqbias.molecule.frames import Frames, read_frames
from uqbias.runs.ledger_lines import HEAD, NAME, Content, read_ledger
from uqbias.units import ANGSTROM, EV, EV_PER_ANGSTROM

#: Digits of the data set: largest differences in nm, relative of energies, and in kJ/mol/nm.
POSITION, ENERGY, FORCE = 1e-8 * ANGSTROM, 1e-9, 1e-8 * EV_PER_ANGSTROM
RUN_CURE = "give the directory that `uqbias run` wrote"


@dataclass
class Verification:
    """What was looked at in a run directory.

    Attributes
    ----------
    checked : name of what was checked, and how much of it.
    faults : one line each.
    notes : what could not be checked, or is no fault.
    """

    checked: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify(directory: str | Path) -> Verification:
    """Check a run directory against its ledger, and the ledger against itself; nothing is changed.

    Raises
    ------
    UqbiasError
        If there is no such run directory.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UqbiasError(f"no such run directory: {directory}", RUN_CURE)
    if not remains(directory) and not (directory / NAME).exists():
        raise UqbiasError(f"{directory} holds no run", RUN_CURE)
    result = Verification()
    content = read_ledger(directory)
    if fault := unwritten(directory, content):
        result.faults = [f"{NAME} {fault}"]
    else:
        result.faults += [f"{NAME}: {fault}" for fault in content.faults]
        if not content.sums:
            result.notes.append("no round was begun")
    if content.torn and not content.faults:
        result.notes.append(f"{NAME}: the last line is torn, as after a kill: it never happened")
    if content.sums and not (directory / HEAD).is_file():
        result.notes.append(f"no {HEAD}: nothing says whether the last lines of the ledger are there")
    result.checked[f"lines of {NAME}"] = len(content.sums)
    files = recorded(content.events)
    result.faults += changed(directory, files)
    result.checked["files of phases"] = len(files)
    _check_labels(directory, content, result)
    _check_campaign(directory, content, result)
    _check_summary(directory, content, result)
    _check_rounds(directory, content, result)
    return result


def _check_labels(directory: Path, content: Content, result: Verification) -> None:
    """No label is there twice, and each is in the data set as it is in the ledger."""
    labels = [event for event in content.events if event["event"] == "label"]
    result.checked["labels"] = len(labels)
    if twice := len(labels) - len({event["key"] for event in labels}):
        result.faults.append(f"{NAME}: {twice} labels of geometries that had one")
    if not (directory / DATASET).is_file():
        return
    try:
        frames = by_place(directory)
    except UqbiasError as error:
        result.faults.append(error.what)
        return
    result.checked[f"frames of {DATASET}"] = len(frames)
    known = {(event["round"], event["index"]): event for event in labels}
    for place, frame in frames.items():
        name = f"{DATASET}: the frame of round {place[0]}, index {place[1]}"
        if place not in known and not content.faults:
            result.faults.append(f"{name} is not in the ledger")
        elif place in known and not is_same(known[place], frame):
            result.faults.append(f"{name} is not as in the ledger")


def by_place(directory: Path) -> dict[tuple[int, int], Frames]:
    """Frames of the data set by round and index.

    Raises
    ------
    UqbiasError
        If it is no data set of a campaign.
    """
    path = directory / DATASET
    frames = read_frames(path, periodic=True)
    try:
        places = [(int(entry["round"]), int(entry["index"])) for entry in frames.info]
    except (KeyError, TypeError, ValueError) as error:
        raise UqbiasError(f"{path}: a frame without round and index ({error})") from None
    return {place: frames[[index]] for index, place in enumerate(places)}


def is_same(label: dict[str, Any], frame: Frames) -> bool:
    """Whether a label of the ledger is that of one frame of the data set, to its digits."""
    energies, forces = frame.labels()
    here, pull = np.array(label["positions"]), np.array(label["forces"])
    return bool(
        here.shape == pull.shape
        and is_at(frame, here, label.get("cell"))
        and np.abs(pull - forces[0]).max() <= FORCE * (1 + np.abs(pull).max())
        and abs(label["energy"] - energies[0]) <= ENERGY * max(abs(label["energy"]), EV)
    )


def is_at(frame: Frames, positions: NDArray[Any], cell: Any) -> bool:
    """Whether one frame of the data set has these positions [N, 3] and this cell [3, 3], nm, to its digits."""
    pairs = [(frame.positions[0], positions)]
    if frame.cells is not None and cell is not None:
        pairs.append((frame.cells[0], np.asarray(cell)))
    elif frame.cells is not None or cell is not None:
        return False
    return all(a.shape == b.shape and np.abs(a - b).max() <= POSITION for a, b in pairs)


def _check_campaign(directory: Path, content: Content, result: Verification) -> None:
    """campaign.yaml is the campaign of the ledger, where the files that it names are still there."""
    from uqbias.settings.file import load_campaign

    begun = next((event for event in content.events if event["event"] == "campaign"), None)
    path = directory / "campaign.yaml"
    if begun is None:
        return
    try:
        identity = json.loads(json.dumps(load_campaign(path).identity()))
    except UqbiasError as error:
        kind = result.notes if "no such" in error.what else result.faults
        kind.append(f"campaign.yaml: {error.what}")
        return
    if other := differing_keys(begun["identity"], identity):
        result.faults.append(f"campaign.yaml is another campaign than the ledger's: {', '.join(other[:3])}")
    result.checked["keys of campaign.yaml"] = len(identity)


def _check_summary(directory: Path, content: Content, result: Verification) -> None:
    path = directory / "summary.json"
    if not path.is_file():
        return
    phases = [event for event in content.events if event["event"] == "phase"]
    scores = [event["entry"] for event in phases if event["phase"] == "score" and "entry" in event]
    try:
        rounds = json.loads(path.read_text(encoding="utf-8"))["rounds"]
    except (ValueError, KeyError, TypeError, RecursionError):
        rounds = None
    if not isinstance(rounds, list):
        result.faults.append("summary.json is damaged")
    elif not content.faults and rounds[: len(scores)] != scores[: len(rounds)]:
        result.faults.append("summary.json is not what the ledger says")
    else:
        result.checked["rounds of summary.json"] = len(rounds)


def _check_rounds(directory: Path, content: Content, result: Verification) -> None:
    """No round is there that the ledger knows nothing of."""
    done = [event["round"] for event in content.events if event["event"] in ("phase", "label", "failure")]
    last = max(done, default=-1) + 1
    for path in sorted(directory.glob("round_*")):
        number = path.name.removeprefix("round_")
        if number.isdigit() and int(number) > last and content.sums and not content.faults:
            result.faults.append(f"{path.name} is not in the ledger")
    result.checked["rounds"] = len({*done})
