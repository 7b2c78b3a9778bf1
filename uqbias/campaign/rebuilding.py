"""A ledger written anew from what a run directory holds: sound lines, folders of labels, data set, files of rounds."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
from pydantic import FiniteFloat
from typing_extensions import TypedDict

from uqbias.campaign.child import LABEL, is_of
from uqbias.campaign.label_requests import LabelRequest, label_in, requests_from, to_label
from uqbias.campaign.ledger import Record, differing_keys, lock_directory
from uqbias.campaign.phase_files import DATASET, changed, hashes, is_used_again
from uqbias.campaign.phases import judged, observed, requests_of
from uqbias.campaign.progress import SilentProgress
from uqbias.campaign.rounds import versions
from uqbias.campaign.verification import Verification, by_place, is_at, is_same
from uqbias.campaign.work import Work, read_molecule
from uqbias.errors import UqbiasError
from uqbias.files import atomic_path, read_json, sha256
from uqbias.model.manifest import read_manifest
from uqbias.molecule.frames import Frames, write_frames
from uqbias.molecule.topology import Topology
from uqbias.oracles.base import Label
from uqbias.registry import SAMPLERS
from uqbias.runs.ledger_lines import HEAD, NAME, InCell, Vector, parse_line, read_ledger, to_head, to_line
from uqbias.settings.file import digest, load_campaign

#: Where a label is from, to its last bit.
FOLDERS = "their folders"


class _Model(TypedDict):
    sha256: str


class _OfModel(TypedDict):
    model: _Model


class _Proposed(TypedDict):
    proposed: int


class _Walked(TypedDict):
    steps: int
    walkers: int
    finished: NotRequired[dict[str, Any]]


class _Harvest(TypedDict):
    candidates: list[dict[str, Any]]
    physical: int
    visited_judge: float | None


class _Entry(TypedDict):
    round: int


class _Summary(TypedDict):
    rounds: list[_Entry]


class _Kept(InCell):
    oracle: str
    positions: list[Vector]
    energy: FiniteFloat
    forces: list[Vector]


def rebuild(directory: str | Path) -> Verification:
    """Write a ledger from what is there; what it replaces stays beside it as ``*.damaged.N``. No label is computed.

    Labels come from sound lines of the ledger, from their folders, and from ``dataset.xyz`` to its digits. Rounds up to
    the last whole model are done; the campaign goes on from there, and pays for no frame that has a label.

    Raises
    ------
    UqbiasError
        If campaign.yaml or the files that it names are gone, or the ledger is another campaign's.
    """
    directory = Path(directory)
    file = load_campaign(directory / "campaign.yaml")
    topology, start = read_molecule(file)
    lock = lock_directory(directory)
    try:
        return _Rebuilding(directory, file, topology, start).run()
    finally:
        os.close(lock)


class _Rebuilding:
    def __init__(self, directory: Path, file: Any, topology: Topology, start: Frames) -> None:
        self.directory, self.result = directory, Verification()
        content = read_ledger(directory, len(topology))
        # A ledger of a version without checksums is taken as it is.
        legacy = not any(content.sums)
        self.sound = content.doubtful if legacy else content.events
        self.outcomes = [event for event in self.sound if event["event"] in ("label", "failure")]
        labels = {event["key"]: event for event in content.misplaced if event["event"] == "label"}
        known = {event["key"] for event in self.outcomes}
        self.outcomes += [event for key, event in labels.items() if key not in known]
        self.doubtful = [] if legacy else [event for event in content.doubtful if event["event"] == "label"]
        identity = json.loads(json.dumps(file.identity()))
        begun = self.sound[:1] if self.sound and self.sound[0]["event"] == "campaign" else []
        if begun and (other := differing_keys(begun[0]["identity"], identity)):
            fault = f"{directory}/campaign.yaml is another campaign than the ledger's: {', '.join(other[:3])} differ"
            raise UqbiasError(fault, "put it, or the files that it names, back from a copy")
        self.record = Record(np.array(topology.numbers, dtype=np.int64), begun)
        if not begun:
            facts = {"digest": digest(identity), "seed": file.campaign.seed, "versions": versions()}
            self.record.append("campaign", identity=identity, **facts)
        for event in self.sound:
            if event["event"] == "versions":
                self.record.add(event)
        self.work = Work(file, directory, self.record, topology, start, SilentProgress())
        self.frames: dict[tuple[int, int], Frames] = {}
        if (directory / DATASET).is_file():
            try:
                self.frames = by_place(directory)
            except UqbiasError as error:
                self.result.notes.append(error.what)

    def run(self) -> Verification:
        rounds = [int(path.name[6:]) for path in self.directory.glob("round_*") if path.name[6:].isdigit()]
        last = max((index for index in rounds if not self._model_faults(index)), default=-1)
        for index in range(last + 1):
            # Retrained without a label, a model would be calibrated on frames that it was trained on.
            if lost := self._lost(index):
                self.result.notes.append(f"round {index}: {lost} labels are lost; it is done again from there")
                last = index - 1
                break
        for index in range(last + 1):
            if index:
                self._phase(index, "md", self._explored)
                self._phase(index, "harvest", self._harvested)
            self._labels(index)
            self._phase(index, "label", lambda index: judged(self.work, index)[1])
            self._phase(index, "train", self._trained)
            if self._entry(index) is not None:
                self._phase(index, "score", lambda index: {"entry": self._entry(index)})
        goes_on = last + 1
        if goes_on and self._is_whole(goes_on, "md", self._explorable):
            self._phase(goes_on, "md", self._explored)
            if self._is_whole(goes_on, "harvest", lambda index: requests_of(self.work, index)):
                self._phase(goes_on, "harvest", self._harvested)
        for index in sorted({*rounds, *(event["round"] for event in self.outcomes)}):
            if index >= goes_on:
                self._labels(index)
        self._data_set_alone()
        self._write(last)
        self.result.checked |= {"labels": len(self.record.events("label")), "rounds done": last + 1}
        return self.result

    # ---- files of phases

    def _event(self, index: int, phase: str) -> dict[str, Any] | None:
        phases = (event for event in self.sound if event["event"] == "phase")
        return next((event for event in phases if (event["round"], event["phase"]) == (index, phase)), None)

    def _faults(self, index: int, phase: str, read: Callable[[int], Any]) -> list[str]:
        """What is wrong with the files of a phase: not what it left or, where that is not known, unreadable."""
        if (event := self._event(index, phase)) is not None and "files" in event:
            used = {name: known for name, known in event["files"].items() if is_used_again(name)}
            return changed(self.directory, used)
        try:
            read(index)
        except (UqbiasError, OSError, ValueError) as error:
            return [str(error)]
        return []

    def _is_whole(self, index: int, phase: str, read: Callable[[int], Any]) -> bool:
        if not self.work.folder(index).is_dir():
            return False
        faults = self._faults(index, phase, read)
        self.result.notes += [f"round {index}, {phase}: to be done again ({fault})" for fault in faults]
        return not faults

    def _model_faults(self, index: int) -> list[str]:
        def read(index: int) -> None:
            trained = read_manifest(self.work.model_path(index))["provenance"].get("round")
            if trained != index:
                raise UqbiasError(f"{self.work.model_path(index)} is the model of round {trained}")

        return self._faults(index, "train", read)

    def _explorable(self, index: int) -> None:
        observed(self.work, index)
        model = sha256(self.work.model_path(index - 1))
        for path in self.work.folder(index).glob("md/**/run.json"):
            if read_json(path, _OfModel, "description of a run", "")["model"]["sha256"] != model:
                raise UqbiasError(f"{path} is of another model")

    def _phase(self, index: int, phase: str, facts: Callable[[int], dict[str, Any]]) -> None:
        """Note that a phase is done, with the files that are there now."""
        event = self._event(index, phase)
        if event is None or phase == "label":
            values = facts(index)
            event = (
                event or {"event": "phase", "round": index, "phase": phase, "wall_s": 0.0, "rebuilt": True}
            ) | values
        faults = [] if phase == "label" else changed(self.directory, event.get("files", {}))
        self.result.notes += [f"{fault}; the campaign goes on without it" for fault in faults]
        bad = {fault.split()[0] for fault in faults}
        files = {} if phase == "label" else hashes(self.directory, index, phase)
        files = {name: now for name, now in files.items() if name not in bad}
        self.record.add({**event, "files": files})

    def _json(self, path: Path, schema: Any) -> Any:
        """Content of a file; None, with a note, where it is not what it should be."""
        try:
            return read_json(path, schema, "file of a run", "")
        except UqbiasError as error:
            self.result.notes.append(error.what)
            return None

    def _explored(self, index: int) -> dict[str, Any]:
        folder, walks = self.work.folder(index) / "md", SAMPLERS.build(self.work.campaign.sampling).walks
        schema = _Walked if walks else _Proposed
        runs = [run for path in folder.glob("**/run.json") if (run := self._json(path, schema)) is not None]
        stopped = sum(path.read_bytes().count(b"\n") for path in folder.glob("**/events.jsonl"))
        facts = {"md_steps": sum(run["steps"] * run["walkers"] for run in runs) if walks else 0, "stopped": stopped}
        if faults := [fault for run in runs if (fault := run.get("finished", {}).get("fault"))]:
            facts["fault"] = faults[0]
        return facts | {"runner": "unknown"} | ({} if walks else {"proposed": sum(run["proposed"] for run in runs)})

    def _harvested(self, index: int) -> dict[str, Any]:
        harvest = self._json(self.work.folder(index) / "harvest.json", _Harvest)
        if harvest is None:  # not nothing, which would end the campaign
            return {"candidates": 1, "physical": 1, "taken": 1, "visited_judge": None}
        taken = sum(bool(entry.get("taken")) for entry in harvest["candidates"])
        facts = {"physical": harvest["physical"], "visited_judge": harvest["visited_judge"]}
        return {"candidates": len(harvest["candidates"]), "taken": taken, **facts}

    def _trained(self, index: int) -> dict[str, Any]:
        path = self.work.model_path(index)
        facts = read_manifest(path)["provenance"] if path.is_file() else {}
        return {name: count for name, count in facts.items() if name.endswith("frames")}

    def _entry(self, index: int) -> dict[str, Any] | None:
        """What the summary says of a round."""
        if (event := self._event(index, "score")) is not None and "entry" in event:
            return dict(event["entry"])
        path = self.directory / "summary.json"
        summary = self._json(path, _Summary) if path.is_file() else None
        return next((entry for entry in (summary or {"rounds": []})["rounds"] if entry["round"] == index), None)

    # ---- labels

    def _lost(self, index: int) -> int:
        """How many frames of a finished round have neither a label nor a failure any more."""
        known = {event["key"] for event in self.outcomes}
        try:
            requests = requests_of(self.work, index)
        except (UqbiasError, OSError):
            return 0
        return sum(request.key not in known and self._kept(index, request) is None for request in requests)

    def _labels(self, index: int) -> None:
        """Note the labels of a round."""
        for event in self.outcomes:
            if event["round"] == index:
                self.record.add(event)
        known = self.record.failed(index)
        try:
            requests = requests_of(self.work, index)
        except (UqbiasError, OSError) as error:
            self.result.notes.append(f"{error}: labels of round {index} are known by the ledger and the data set alone")
            return
        for request in requests:
            if request.key in known or self.record.has_label(request.key):
                continue
            if (kept := self._kept(index, request)) is not None:
                label, source = kept
                info = request.info if source == FOLDERS else {**request.info, "source": source}
                self.record.append_label(index, request, label, info)
                self.result.checked[f"labels from {source}"] = self.result.checked.get(f"labels from {source}", 0) + 1

    def _kept(self, index: int, request: LabelRequest) -> tuple[Label, str] | None:
        """The label, and where it is from, of a frame that the ledger has no sound label of."""
        spec = self.work.oracle
        name = json.dumps([spec.kind, spec.options], sort_keys=True)
        folders = self.directory / "labels" / self.work.folder(index).name
        for path in sorted(folders.glob(f"frame_{request.index:04d}_*/{LABEL}")):
            facts = self._json(path, _Kept)
            if facts and is_of(facts, name, request.positions, request.cell):
                return to_label(facts), FOLDERS
        if index == 0 and self.work.start.labelled:
            return label_in(self.work.start, request.index), "start file"
        frame = self.frames.get((index, request.index))
        if frame is None or not is_at(frame, request.positions, request.cell):
            return None
        for event in self.doubtful:
            if event["key"] == request.key and is_same(event, frame):
                return to_label(event), "lines that agree with dataset.xyz"
        return label_in(frame, 0), "dataset.xyz"

    def _data_set_alone(self) -> None:
        """Keep labels whose frames no file of a round holds any more."""
        known = {(event["round"], event["index"]) for event in self.record.events("label")}
        for (index, place), frame in self.frames.items():
            if (index, place) not in known:
                (request,) = requests_from(frame, self.work.oracle_identity)
                info = {"reason": "unknown", "source": "dataset.xyz"}
                self.record.append_label(index, replace(request, index=place), label_in(frame, 0), info)
                self.result.notes.append(
                    f"round {index}, frame {place}: its label is known to the digits of dataset.xyz"
                )

    # ---- the file

    def _write(self, last: int) -> None:
        """Write the data set of the last round that is done, unless it holds later labels, and the ledger."""
        for name in (NAME, DATASET):
            number = 1
            while (copy := self.directory / f"{name}.damaged.{number}").exists():
                number += 1
            if (self.directory / name).is_file():
                shutil.copy2(self.directory / name, copy)
                self.result.checked[f"{name} before"] = copy.name
        if last >= 0 and not any(event["round"] > last for event in self.record.events("label")):
            write_frames(self.directory / DATASET, judged(self.work, last)[0])
            labelled = [event for event in self.record.events("phase") if event["phase"] == "label"]
            labelled[-1]["files"] = hashes(self.directory, last, "label")
        self.record.append("rebuilt", notes=self.result.notes)
        lines, sums = [], [""]
        for event in self.record.events():
            line, checksum = to_line(event, sums[-1])
            parse_line(line, f"the new line {len(sums)}", len(self.work.topology))
            lines.append(line)
            sums.append(checksum)
        with atomic_path(self.directory / NAME) as temporary:
            temporary.write_bytes(b"".join(lines))
        with atomic_path(self.directory / HEAD) as temporary:
            temporary.write_bytes(to_head(sums[1:]))
