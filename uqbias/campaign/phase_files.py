"""Files that the phases of a campaign leave, and the hashes by which a ledger knows them again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from uqbias.errors import UqbiasError
from uqbias.files import sha256
from uqbias.runs.ledger_lines import CURE

DATASET = "dataset.xyz"
#: Phases in their order, and the files of each in the folder of its round.
PATTERNS = {
    "md": ("md/**/*",),
    "harvest": ("harvest.npz", "harvest.json"),
    "label": (),
    "train": ("model.uqb", "training.json", "training/*"),
    "score": ("scores.npz",),
}


def folder_name(round_index: int) -> str:
    """Name of the folder of a round."""
    return f"round_{round_index:02d}"


def hashes(directory: Path, round_index: int, phase: str) -> dict[str, str]:
    """SHA-256 of each file that a phase has left, by its path below the run directory."""
    folder = directory / folder_name(round_index)
    if phase == "label":
        paths = [directory / DATASET]
    else:
        paths = sorted(path for pattern in PATTERNS[phase] for path in folder.glob(pattern))
    return {path.relative_to(directory).as_posix(): sha256(path) for path in paths if path.is_file()}


def recorded(events: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Files that a ledger knows, with their SHA-256; the data set only while no later label is noted."""
    files: dict[str, str] = {}
    for event in events:
        if event["event"] == "phase":
            files |= event.get("files", {})
        elif event["event"] in ("label", "failure"):
            files.pop(DATASET, None)
    return files


def is_used_again(name: str) -> bool:
    """Whether a campaign reads a file again: of what explorations leave only arrays and descriptions."""
    return "/md/" not in name or name.endswith((".npz", ".json"))


def changed(directory: Path, files: dict[str, str], others: dict[str, str] | None = None) -> list[str]:
    """Which files are not as the ledger knows them, one entry a file; among ``others`` a replaced one may be found."""
    faults = []
    for name, known in files.items():
        path = directory / name
        if not path.is_file():
            faults.append(f"{name} is gone")
        elif (now := sha256(path)) != known:
            other = next((entry for entry, digest in (others or files).items() if digest == now), None)
            faults.append(f"{name} is not what its phase left" + (f": it is {other}" if other else ""))
    return faults


def refuse_changed(directory: Path, events: Iterable[dict[str, Any]], rounds: Iterable[int] | None = None) -> None:
    """See that the files which a campaign reads again are as its phases left them.

    Parameters
    ----------
    rounds : only those of these rounds; None: all.

    Raises
    ------
    UqbiasError
        With the first file that was changed, replaced or removed.
    """
    folders = None if rounds is None else {folder_name(index) for index in rounds}
    known = recorded(events := list(events))
    # Observations that were harvested are not read again, and may be removed to save space.
    harvested = {f"{folder_name(event['round'])}/md/" for event in events if event.get("phase") == "harvest"}
    spare = {
        name
        for name in known
        if name.endswith("/observations.npz") and name.startswith(tuple(harvested)) and not (directory / name).exists()
    }
    files = {
        name: digest
        for name, digest in known.items()
        if is_used_again(name) and name not in spare and (folders is None or name.split("/")[0] in folders)
    }
    if faults := changed(directory, files, known):
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise UqbiasError(f"{directory}/{faults[0]}{more}", CURE)
