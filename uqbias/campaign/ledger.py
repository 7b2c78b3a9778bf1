"""The append-only record of a campaign: a label once paid is on disk before it is used."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from uqbias.campaign.label_requests import LabelRequest
from uqbias.errors import UqbiasError
from uqbias.files import clear_temporaries, sync_directory
from uqbias.molecule.cells import ISOLATED
from uqbias.molecule.frames import Frames
from uqbias.oracles.base import Label
from uqbias.runs.ledger_lines import CURE, HEAD, NAME, SCHEMAS, Content, read_ledger, to_head, to_line

LOCK = "ledger.lock"
#: A drive's answers to a lock that another process holds.
HELD = (errno.EAGAIN, errno.EACCES)


class Record:
    """Events of one campaign in memory.

    Parameters
    ----------
    numbers : [N] atomic numbers of the molecule.
    events : what happened, in order.
    """

    def __init__(self, numbers: NDArray[np.int64], events: Iterable[dict[str, Any]] = ()) -> None:
        self.numbers = numbers
        self._events: list[dict[str, Any]] = []
        self._labels: dict[str, dict[str, Any]] = {}
        for event in events:
            self.add(event)

    def add(self, event: dict[str, Any]) -> None:
        """Note one event."""
        self._events.append(event)
        if event["event"] == "label":
            self._labels[event["key"]] = event

    def append(self, event: str, **values: Any) -> None:
        """Note one event.

        Parameters
        ----------
        event : kind of event.
        values : JSON-able content; arrays become nested lists (float64 survives exactly).
        """
        record = {"event": event, **{name: _plain(value) for name, value in values.items()}}
        missing: set[str] = getattr(SCHEMAS.get(event), "__required_keys__", set()) - set(record)
        if missing:
            raise ValueError(f"event '{event}' without {', '.join(sorted(missing))}")
        self._store(record)
        self.add(record)

    def append_label(
        self, round_index: int, request: LabelRequest, label: Label, info: Mapping[str, Any] | None = None
    ) -> None:
        """Note a label, with the cell of its frame; ``info`` instead of that of the request."""
        values: dict[str, Any] = {"index": request.index, "key": request.key, "positions": request.positions}
        values |= {"energy": label.energy, "forces": label.forces, "info": request.info if info is None else info}
        if request.cell is not None:
            values |= {"cell": request.cell, "stress": label.stress, "pbc": request.periodic}
        self.append("label", round=round_index, **values)

    def check(self) -> None:
        """See that what is noted is kept: before something is paid."""

    def _store(self, record: dict[str, Any]) -> None:
        """Keep an event; memory alone does nothing more."""

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
        """Keys that the oracle failed on in this round, and that got no label later."""
        failures = {str(entry["key"]) for entry in self.events("failure") if entry["round"] == round_index}
        return failures - self._labels.keys()

    def labels(self, last_round: int | None = None) -> Frames:
        """Labelled frames of all rounds up to ``last_round``, in the order (round, index), whatever order they came in.

        Each frame's ``info`` holds ``round``, ``index`` and what was noted when it was chosen.
        """
        entries = sorted(
            (entry for entry in self._labels.values() if last_round is None or entry["round"] <= last_round),
            key=lambda entry: (entry["round"], entry["index"]),
        )
        shape = (len(entries), len(self.numbers), 3)
        cells, stresses = (
            np.array(values, dtype=np.float64) if values and None not in values else None
            for values in ([entry.get(name) for entry in entries] for name in ("cell", "stress"))
        )
        return Frames(
            numbers=self.numbers,
            positions=np.array([entry["positions"] for entry in entries], dtype=np.float64).reshape(shape),
            energies=np.array([entry["energy"] for entry in entries], dtype=np.float64),
            forces=np.array([entry["forces"] for entry in entries], dtype=np.float64).reshape(shape),
            info=[{"round": entry["round"], "index": entry["index"], **entry["info"]} for entry in entries],
            cells=cells,
            stresses=stresses,
            periodic=ISOLATED if cells is None else tuple(entries[0]["pbc"]),
        )


class Ledger(Record):
    """Events of one campaign, one JSON line each, written through to the disk.

    Use `open_ledger`; close it, or use it as a context manager, to release the lock on the directory.

    Attributes
    ----------
    path : the file.
    numbers : [N] atomic numbers of the molecule.
    torn : whether its last line was torn, and so never happened.
    """

    def __init__(self, directory: Path, numbers: NDArray[np.int64]) -> None:
        self.path = directory / NAME
        self._descriptors = [lock_directory(directory)]
        try:
            clear_temporaries(directory.glob(".*"), directory.glob("round_*/**/.*"))
            content = read_ledger(directory, len(numbers))
            super().__init__(numbers, content.events)
            self.torn, self._sums, self._size = content.torn, content.sums, content.size
            refuse(self.path, content)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._descriptors += [os.open(directory / name, flags, 0o666) for name in (NAME, HEAD)]
            sync_directory(directory)
            if os.fstat(self._descriptors[1]).st_size < self._size:
                os.pwrite(self._descriptors[1], b"\n", self._size - 1)  # all that the last line lacks
            if content.torn:
                # A crash in the middle of a write: that event never happened.
                os.ftruncate(self._descriptors[1], self._size)
                os.fsync(self._descriptors[1])
            if self._sums:
                os.pwrite(self._descriptors[2], to_head(self._sums), 0)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the directory."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def check(self) -> None:
        """See that the file is still there and as it was written: before something is paid that it is to keep.

        Raises
        ------
        UqbiasError
            If it was removed, replaced or written to by another program.
        """
        if not self._descriptors:
            raise UqbiasError(f"{self.path} is closed", "open it again")
        here = os.fstat(self._descriptors[1])
        try:
            there = self.path.stat()
        except OSError:
            there = None
        if there is None or not os.path.samestat(here, there) or there.st_size != self._size:
            state = "removed" if there is None else "replaced or changed"
            raise UqbiasError(f"{self.path} was {state} while the campaign runs; nothing more is paid", CURE)

    def _store(self, record: dict[str, Any]) -> None:
        """Write one event and wait until the disk has it.

        Raises
        ------
        UqbiasError
            If the file is not the one that was opened.
        """
        self.check()
        line, checksum = to_line(record, self._sums[-1] if self._sums else "")
        _, file, head = self._descriptors
        try:
            written = 0
            while written < len(line):
                written += os.pwrite(file, line[written:], self._size + written)
            os.fsync(file)
        except BaseException:
            os.ftruncate(file, self._size)  # no half of a line before the next
            raise
        self._size += len(line)
        self._sums.append(checksum)
        os.pwrite(head, to_head(self._sums), 0)


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
    old = begun["identity"]
    differing = differing_keys(old, new)
    if not differing:
        return
    shown = [f"{key} ({_brief(old.get(key))} there, {_brief(new.get(key))} here)" for key in differing[:3]]
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    raise UqbiasError(
        f"{ledger.path.parent} holds another campaign: {', '.join(shown)}{more} differ",
        "give another directory, or the settings it was begun with (only stop, executors, score and name may change)",
    )


def differing_keys(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Keys that two flat mappings do not have in common with the same value; None is as good as absent."""
    return [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 24 else text[:20] + "..."


def refuse(path: Path, content: Content) -> None:
    """Raise UqbiasError for a ledger with a fault, or without a line beside what a campaign left."""
    if fault := unwritten(path.parent, content):
        raise UqbiasError(f"{path} {fault}", CURE)
    if content.faults:
        raise UqbiasError(f"{path}: {content.faults[0]}", CURE)


def unwritten(directory: Path, content: Content) -> str:
    """Why a ledger without a line is at fault, beside what a campaign left; empty where it is not."""
    if content.sums or not (left := remains(directory)):
        return ""
    return f"is {'empty' if (directory / NAME).is_file() else 'missing'} beside {', '.join(left)}"


def remains(directory: Path) -> list[str]:
    """Names of what a campaign left in a directory beside its ledger."""
    folders = [path for path in sorted(directory.glob("round_*")) if path.is_dir() and any(path.iterdir())]
    files = [path for name in ("dataset.xyz", "summary.json") if (path := directory / name).exists()]
    return [path.name for path in (*folders, *files)]


def lock_directory(directory: Path) -> int:
    """Hold an exclusive lock that the kernel releases when the process ends, however it ends; its descriptor.

    Raises
    ------
    UqbiasError
        If another process holds it, or the drive does not support locks.
    """
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(descriptor, 64).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        if error.errno not in HELD:
            raise UqbiasError(
                f"{directory} lies on a drive that does not support file locks ({error.strerror})",
                "run in a directory on a local drive, or have the drive mounted with locks",
            ) from None
        raise UqbiasError(
            f"{directory} is in use by the process with pid {holder}", "wait for it, or end it first"
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
