"""The append-only record of a campaign: a label once paid is on disk before it is used."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import numpy as np
from annotated_types import Len
from numpy.typing import NDArray
from pydantic import FiniteFloat, NonNegativeInt
from typing_extensions import TypedDict

from uqbias.errors import UqbiasError
from uqbias.files import check_json, parse_json, sync_directory
from uqbias.molecule.frames import Frames

NAME = "ledger.jsonl"
LOCK = "ledger.lock"
Vector = Annotated[list[FiniteFloat], Len(3, 3)]


class _Event(TypedDict):
    event: str


class _Campaign(TypedDict):
    identity: dict[str, Any]


class _Outcome(TypedDict, total=False):
    entry: dict[str, Any]
    proposed: int
    stopped: int


class _Phase(_Outcome):
    round: NonNegativeInt
    phase: str
    wall_s: FiniteFloat


class _Failure(TypedDict):
    round: NonNegativeInt
    index: int
    key: str
    reason: str


class _Label(TypedDict):
    round: NonNegativeInt
    index: int
    key: str
    positions: list[Vector]
    energy: FiniteFloat
    forces: list[Vector]
    info: dict[str, Any]


#: Schema of each kind of event; further kinds and keys may stand in a ledger.
SCHEMAS: dict[str, Any] = {"campaign": _Campaign, "phase": _Phase, "label": _Label, "failure": _Failure}


def label_key(positions: NDArray[Any], oracle: str) -> str:
    """Identify a label by what it was computed from.

    Parameters
    ----------
    positions : [N, 3] nm; the bytes of its float64 form count.
    oracle : text that identifies the oracle and its options.

    Returns
    -------
    str
        32 hexadecimal digits.
    """
    content = hashlib.sha256(oracle.encode())
    content.update(np.ascontiguousarray(positions, dtype=np.float64).tobytes())
    return content.hexdigest()[:32]


class Ledger:
    """Events of one campaign, one JSON line each, written through to the disk.

    Use `open_ledger`; close it, or use it as a context manager, to release the lock on the directory.

    Attributes
    ----------
    path : the file.
    numbers : [N] atomic numbers of the molecule.
    """

    def __init__(self, directory: Path, numbers: NDArray[np.int64]) -> None:
        self.path = directory / NAME
        self.numbers = numbers
        self._lock: int | None = _lock(directory / LOCK)
        self._file: int | None = None
        self._events: list[dict[str, Any]] = []
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            sync_directory(directory)
            self._events = self._read()
        except BaseException:
            self.close()
            raise
        self._labels = {str(event["key"]): event for event in self._events if event["event"] == "label"}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the directory."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def append(self, event: str, **values: Any) -> None:
        """Write one event and wait until the disk has it.

        Parameters
        ----------
        event : kind of event.
        values : JSON-able content; arrays become nested lists (float64 survives exactly).
        """
        if self._file is None:
            raise UqbiasError(f"{self.path} is closed", "open it again")
        record = {"event": event, **{name: _plain(value) for name, value in values.items()}}
        missing: set[str] = getattr(SCHEMAS.get(event), "__required_keys__", set()) - set(record)
        if missing:
            raise ValueError(f"event '{event}' without {', '.join(sorted(missing))}")
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        while line:
            line = line[os.write(self._file, line) :]
        os.fsync(self._file)
        self._events.append(record)
        if event == "label":
            self._labels[record["key"]] = record

    def events(self, event: str | None = None) -> list[dict[str, Any]]:
        """Events in the order they were written, of one kind or of all."""
        return [entry for entry in self._events if event is None or entry["event"] == event]

    def has_label(self, key: str) -> bool:
        """Whether a label for this key was paid."""
        return key in self._labels

    def phase_done(self, round_index: int, phase: str) -> bool:
        """Whether a phase of a round was finished."""
        return any(entry["round"] == round_index and entry["phase"] == phase for entry in self.events("phase"))

    def failed(self, round_index: int) -> set[str]:
        """Keys that the oracle failed on in this round."""
        return {str(entry["key"]) for entry in self.events("failure") if entry["round"] == round_index}

    def labels(self, last_round: int | None = None) -> Frames:
        """Labelled frames of all rounds up to ``last_round``, in the order (round, index), whatever order they came in.

        Each frame's ``info`` holds ``round``, ``index`` and what was noted when it was chosen.
        """
        entries = sorted(
            (entry for entry in self._labels.values() if last_round is None or entry["round"] <= last_round),
            key=lambda entry: (entry["round"], entry["index"]),
        )
        shape = (len(entries), len(self.numbers), 3)
        return Frames(
            numbers=self.numbers,
            positions=np.array([entry["positions"] for entry in entries], dtype=np.float64).reshape(shape),
            energies=np.array([entry["energy"] for entry in entries], dtype=np.float64),
            forces=np.array([entry["forces"] for entry in entries], dtype=np.float64).reshape(shape),
            info=[{"round": entry["round"], "index": entry["index"], **entry["info"]} for entry in entries],
        )

    def _read(self) -> list[dict[str, Any]]:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content) and self._file is not None:
            # A crash in the middle of a write: that event never happened.
            os.ftruncate(self._file, whole)
            os.fsync(self._file)
        events: list[dict[str, Any]] = []
        cure = "restore the file from a copy; it was edited or damaged"
        for number, line in enumerate(content[:whole].split(b"\n")[:-1], start=1):
            where = f"{self.path}: line {number} is not a ledger event"
            event = parse_json(line, _Event, where, cure)
            check_json(event, SCHEMAS.get(event["event"], dict), where, cure)
            if event["event"] == "label" and not len(event["positions"]) == len(event["forces"]) == len(self.numbers):
                raise UqbiasError(f"{where}: a label of another molecule", cure)
            events.append(event)
        return events


def open_ledger(
    directory: str | Path, identity: dict[str, Any], numbers: NDArray[np.int64], facts: dict[str, Any]
) -> Ledger:
    """Open the ledger of a run directory, or begin one.

    Parameters
    ----------
    directory : run directory; made if it is not there.
    identity : flat settings that may not change between two runs in one directory.
    numbers : [N] atomic numbers.
    facts : seed, versions and whatever else the first event is to hold.

    Raises
    ------
    UqbiasError
        If another process holds the directory, another campaign ran in it, or the file is damaged.
    """
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UqbiasError(
            f"cannot make the run directory {directory} ({error.strerror})", "choose another one"
        ) from None
    identity = _plain(identity)
    ledger = Ledger(directory, numbers)
    try:
        if ledger.events():
            _compare(ledger, identity)
        else:
            ledger.append("campaign", identity=identity, **facts)
    except BaseException:
        ledger.close()
        raise
    return ledger


def _compare(ledger: Ledger, new: dict[str, Any]) -> None:
    begun = ledger.events()[0]
    if begun["event"] != "campaign":
        raise UqbiasError(f"{ledger.path}: line 1 does not begin a campaign", "restore the file from a copy")
    old = begun["identity"]
    differing = [key for key in sorted({*old, *new}) if old.get(key, ...) != new.get(key, ...)]
    if not differing:
        return
    shown = [f"{key} ({_brief(old.get(key))} there, {_brief(new.get(key))} here)" for key in differing[:3]]
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    raise UqbiasError(
        f"{ledger.path.parent} holds another campaign: {', '.join(shown)}{more} differ",
        "give another directory, or the settings it was begun with (only stop, executor, score and name may change)",
    )


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 24 else text[:20] + "..."


def _lock(path: Path) -> int:
    """Hold an exclusive lock that the kernel releases when the process ends, however it ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.read(descriptor, 64).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise UqbiasError(
            f"{path.parent} is in use by the process with pid {holder}", "wait for it, or end it first"
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def _plain(value: Any) -> Any:
    """JSON-able copy: arrays to lists, numpy numbers to Python's."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value
