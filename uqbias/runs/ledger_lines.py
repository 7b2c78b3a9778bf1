"""Lines of a ledger: what may stand in one, and the checksums that chain each to the line before it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Len
from pydantic import FiniteFloat, NonNegativeInt
from typing_extensions import TypedDict

from uqbias.errors import UqbiasError
from uqbias.files import check_json, parse_json

#: Files of a run directory: the ledger, and how many lines it has had, with the checksum of the last.
NAME, HEAD = "ledger.jsonl", "ledger.head"
#: File of the run of several systems: its name and theirs; each has a run directory of its name below.
SYSTEMS = "systems.json"
CURE = "put it back from a copy, or `uqbias verify RUN --rebuild` writes it anew from what is there"
#: At the end of a line: checksum of the line before it, and its own.
SUM = re.compile(rb', "sum": "([0-9a-f]{32}|):([0-9a-f]{32})"\}\Z')
Vector = Annotated[list[FiniteFloat], Len(3, 3)]
Matrix = Annotated[list[Vector], Len(3, 3)]


class _Systems(TypedDict):
    name: str
    systems: list[str]


def runs_of(directory: Path) -> dict[str, Path]:
    """Run directories by name of the system; of one system this one, without a name.

    Raises
    ------
    UqbiasError
        If the list of systems is damaged.
    """
    path = directory / SYSTEMS
    if not path.is_file():
        return {"": directory}
    names = parse_json(path.read_bytes(), _Systems, str(path), CURE)["systems"]
    return {name: directory / Path(name).name for name in names}


class _Event(TypedDict):
    event: str


class _Versions(TypedDict, total=False):
    versions: dict[str, str]


class _Campaign(_Versions):
    identity: dict[str, Any]


class _Outcome(TypedDict, total=False):
    entry: dict[str, Any]
    proposed: int
    stopped: int
    files: dict[str, str]


class _Phase(_Outcome):
    round: NonNegativeInt
    phase: str
    wall_s: FiniteFloat


class _Failure(TypedDict):
    round: NonNegativeInt
    index: int
    key: str
    reason: str


class InCell(TypedDict, total=False):
    """Schema of what the label of a periodic system holds beside that of a molecule."""

    cell: Matrix
    stress: Matrix | None
    pbc: Annotated[list[bool], Len(3, 3)]


class _Label(InCell):
    round: NonNegativeInt
    index: int
    key: str
    positions: list[Vector]
    energy: FiniteFloat
    forces: list[Vector]
    info: dict[str, Any]


#: Schema of each kind of event; further kinds and keys may stand in a ledger.
SCHEMAS: dict[str, Any] = {
    "campaign": _Campaign,
    "phase": _Phase,
    "label": _Label,
    "failure": _Failure,
    "versions": _Versions,
}


@dataclass
class Content:
    """What a ledger's file holds.

    Attributes
    ----------
    events : those of the sound lines.
    doubtful : events of lines that are whole but do not fit their checksum.
    misplaced : events of lines that do, but do not follow the line before them.
    faults : what is wrong, one entry a line.
    sums : checksum that each line states.
    size : bytes of the whole lines.
    torn : whether a line without its end follows them.
    """

    events: list[dict[str, Any]] = field(default_factory=list)
    doubtful: list[dict[str, Any]] = field(default_factory=list)
    misplaced: list[dict[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    sums: list[str] = field(default_factory=list)
    size: int = 0
    torn: bool = False


def to_line(event: dict[str, Any], before: str) -> tuple[bytes, str]:
    """The line of an event, and its checksum, which covers ``before``, that of the line before it."""
    body = json.dumps(event, allow_nan=False)[:-1].encode()
    checksum = _sum(before, body)
    return body + f', "sum": "{before}:{checksum}"}}\n'.encode(), checksum


def to_head(sums: Sequence[str]) -> bytes:
    """Content of the file `HEAD`, always as long."""
    return f"{len(sums):10d} {sums[-1]}\n".encode()


def read_ledger(directory: Path, atoms: int | None = None) -> Content:
    """Read a ledger as far as it can be read.

    Parameters
    ----------
    atoms : number of atoms of a label; None: any.
    """
    content = Content()
    path, head = directory / NAME, _head(directory / HEAD)  # first, since a campaign may be writing both
    text = path.read_bytes() if path.is_file() else b""
    if head[1] and (last := SUM.search(text)) and last[2].decode() == head[1]:
        text += b"\n"
    content.size = text.rfind(b"\n") + 1
    content.torn = content.size < len(text)
    lines = text[: content.size].split(b"\n")[:-1]
    for number, line in enumerate(lines, start=1):
        before = content.sums[-1] if content.sums else ""
        stated = SUM.search(line)
        content.sums.append(stated[2].decode() if stated else "")
        try:
            event = parse_line(line, f"line {number}", atoms)
        except UqbiasError as error:
            content.faults.append(error.what)
            continue
        event.pop("sum", None)
        if number == 1 and event["event"] != "campaign":
            content.faults.append("line 1 does not begin a campaign")
        elif stated is None:
            content.faults.append(f"line {number} has no checksum: of an earlier version, or edited")
        elif _sum(stated[1].decode(), line[: stated.start()]) != content.sums[-1]:
            content.faults.append(f"line {number} does not fit its checksum: it was changed")
        elif stated[1].decode() != before:
            content.faults.append(
                f"line {number} does not follow the line before it: a line was changed, lost or moved"
            )
            content.misplaced.append(event)
            continue
        else:
            content.events.append(event)
            continue
        content.doubtful.append(event)
    if lines and not any(content.sums) and not content.events:
        content.faults = content.faults[:1] if len(content.doubtful) < len(lines) else ["no line has a checksum"]
    if not content.faults and (fault := _lost(head, content)):
        content.faults.append(fault)
    return content


def _head(path: Path) -> tuple[int, str]:
    """How many lines were written, and the checksum of the last; 0 where nothing is known of that."""
    try:
        count, checksum = path.read_text(encoding="ascii").split()
        return int(count), checksum
    except (OSError, ValueError):
        return 0, ""


def _lost(head: tuple[int, str], content: Content) -> str:
    """Why the ledger is not the one that was written here last; empty where it is."""
    number, checksum = head
    lines = len(content.sums)
    if number > lines:  # the head is written when the disk has the line
        return f"it has {lines} whole lines of {number} that were written: emptied, cut, or an older copy"
    if 0 < number <= lines and content.sums[number - 1] != checksum:
        return f"its line {number} is not the one that was written: the ledger of another run, or another copy"
    return ""


def parse_line(line: bytes, name: str, atoms: int | None) -> dict[str, Any]:
    """The event of a line, checked against its schema."""
    where = f"{name} is not a ledger event"
    event: dict[str, Any] = parse_json(line, _Event, where, CURE)
    check_json(event, SCHEMAS.get(event["event"], dict), where, CURE)
    if event["event"] == "label" and not len(event["positions"]) == len(event["forces"]) == (
        atoms or len(event["forces"])
    ):
        raise UqbiasError(f"{where}: a label of another molecule", CURE)
    return event


def _sum(before: str, body: bytes) -> str:
    return hashlib.sha256(before.encode() + body).hexdigest()[:32]
