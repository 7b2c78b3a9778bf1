"""Writing the folder of a run so that a run that was killed can go on where it was."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt, StringConstraints
from typing_extensions import TypedDict

from uqbias.bias.base import Bias, parts_of
from uqbias.errors import UqbiasError
from uqbias.files import check_json, parse_json, read_arrays, write_arrays, write_text
from uqbias.molecule.topology import Topology
from uqbias.runs.observation import GuardEvent, Observation
from uqbias.runs.run_files import RunFiles
from uqbias.runs.series import Files, stacked
from uqbias.runs.trajectories import Trajectories

FORMAT, VERSION = "uqbias-run", 1
DESCRIPTION, SNAPSHOT, OBSERVATIONS, BIAS, PARTS = (
    "run.json",
    "snapshot.npz",
    "observations.npz",
    "bias.npz",
    "parts",
)
#: Among the parts: there is a snapshot, or was.
SAVED = "saved"
#: Settings that are kept by their hash, and what to say of another.
HASHED = {"model": "another model", "start frames": "other start frames", "earlier bias": "another earlier bias"}


class Writable(Protocol):
    """Walkers as the writer of their run sees them, such as a `uqbias.md.loop.StepLoop`."""

    topology: Topology
    n_walkers: int
    timestep_fs: float
    step: int
    bias: Bias | None
    events: list[GuardEvent]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the variables of the bias."""

    @property
    def runner(self) -> str:
        """How the model is evaluated."""

    @property
    def n_evaluations(self) -> int:
        """Evaluations of the model so far."""

    def save(self, path: str | Path) -> None:
        """Write a snapshot."""

    def load(self, path: str | Path) -> None:
        """Go on from a snapshot."""


class RunWriter(Files):
    """All files of one run, also of one that is interrupted and goes on.

    ``run.json`` says what the run is, from its beginning. While it runs, ``HILLS``, ``COLVAR``, ``events.jsonl`` and
    the trajectories grow. At a snapshot the observations since the last one become a file of their own under
    ``parts``, which also holds the lengths of the growing files; then ``snapshot.npz`` follows. So a kill at any moment
    leaves a snapshot with its part, and lines after it, which are cut off. ``finish`` joins the parts.

    A run that cannot go on is refused before any file is touched.

    Parameters
    ----------
    folder : made if missing.
    facts : content of ``run.json`` beside format and version; ``settings``, a flat mapping, is what a run that goes on
        must have in common with what is there, and ``steps`` how far it is to go.
    resume : go on with the run in the folder, if there is one; else the files of an earlier run are written anew.

    Attributes
    ----------
    finished : what `finish` kept of a run that is over, or None.

    Raises
    ------
    UqbiasError
        If the folder holds a run with other settings, one without its snapshot, or something else.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], *, resume: bool = False) -> None:
        self.folder = folder
        self.facts = json.loads(json.dumps({"format": FORMAT, "version": VERSION, **facts}))
        self.finished: dict[str, Any] | None = None
        self._seen: list[Observation] = []
        self._growing: list[Path] = []
        self._walkers: Writable | None = None
        self._stopped = self._evaluations = 0
        self._before = self._read_description() if resume else None
        self._goes_on = False
        if self._before is not None:
            self._check_same(self._before)
            self.finished = self._before.get("finished")
            if self.finished is not None and self._before["steps"] < self.facts["steps"]:
                self.finished = None
            self._goes_on = self.finished is None and self._has_snapshot(self._before)

    def _describe(self) -> None:
        write_text(self.folder / DESCRIPTION, json.dumps(self.facts, indent=1))

    def _read_description(self) -> dict[str, Any] | None:
        """``run.json`` of the run to go on with; None where the folder is empty."""
        path = self.folder / DESCRIPTION
        if not path.is_file():
            if self.folder.exists() and any(not entry.name.startswith(".") for entry in self.folder.iterdir()):
                raise UqbiasError(f"{self.folder} holds no run: {path} is not there", "choose another folder")
            return None
        return read_description(path, _Begun, "choose another folder")

    def _check_same(self, before: Mapping[str, Any]) -> None:
        old, new = before["settings"], self.facts["settings"]
        different = [key for key in dict.fromkeys((*new, *old)) if old.get(key) != new.get(key)]
        if different:
            if hashed := [HASHED[key] for key in different if key in HASHED]:
                # The cause of others, such as the driver's lowest value.
                raise UqbiasError(f"the run in {self.folder} has {hashed[0]}", "give the same, or another folder")
            key, more = different[0], f" (and {len(different) - 1} more)" if len(different) > 1 else ""
            raise UqbiasError(
                f"the run in {self.folder} has {key} = {old.get(key)}, this one {new.get(key)}{more}",
                "give the same options, or another folder",
            )
        if before.get("finished") is not None and self.facts["steps"] < before["steps"]:
            raise UqbiasError(
                f"the run in {self.folder} has {before['steps']} steps already, more than {self.facts['steps']}",
                "give as many or more",
            )

    def _has_snapshot(self, before: Mapping[str, Any]) -> bool:
        """Whether there is a snapshot to go on from; False for a run that was killed before its first one.

        Raises
        ------
        UqbiasError
            If there must have been one: what it made safe would be lost by beginning anew.
        """
        path = self.folder / SNAPSHOT
        if path.is_file():
            return True
        # The first part is written before the first snapshot.
        saved = (self.folder / PARTS / SAVED).exists() or len(self._parts()) > 1
        if saved or before.get("finished") is not None:
            raise UqbiasError(f"the run in {self.folder} cannot go on: {path} is not there", "choose another folder")
        return False

    def start(self, walkers: Writable, observe_every: int, trajectory_every: int) -> None:
        """Open the files; put the walkers, with their bias, where the last snapshot has them, if there is one.

        Parameters
        ----------
        observe_every, trajectory_every : steps between frames kept.

        Raises
        ------
        UqbiasError
            If the snapshot, or a file that was growing with it, is damaged or does not fit.
        """
        self._walkers, self._observe_every, self._trajectory_every = walkers, observe_every, trajectory_every
        if self._goes_on:
            walkers.load(self.folder / SNAPSHOT)
            self._go_on()
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self.folder / PARTS, ignore_errors=True)
            (self.folder / SNAPSHOT).unlink(missing_ok=True)
            self._begin()
        self._open(append=self._goes_on)

    def _begin(self) -> None:
        """Say that the run is under way."""
        self._describe()
        for name in (OBSERVATIONS, BIAS):
            (self.folder / name).unlink(missing_ok=True)
        # What a kill in the middle of a write has left.
        for name in (DESCRIPTION, SNAPSHOT, OBSERVATIONS, BIAS):
            for torn in self.folder.glob(f".{Path(name).stem}.*{Path(name).suffix}"):
                torn.unlink()

    def _open(self, *, append: bool) -> None:
        assert self._walkers is not None
        walkers, folder, events = self._walkers, self.folder, self.folder / "events.jsonl"
        self._trajectories = Trajectories(folder, walkers.topology, walkers.n_walkers, append=append)
        paths, biases = (folder / "HILLS", folder / "COLVAR"), parts_of(walkers.bias)
        self._output = RunFiles(*paths, biases, walkers.names, n_walkers=walkers.n_walkers)
        self._streams = (self._trajectories, self._output)
        self._output.open(walkers.timestep_fs, append=append)
        self._events = events.open("a" if append else "w", buffering=1, encoding="utf-8")
        self._streams = (*self._streams, self._events)
        self._growing = [*self._output.paths, events, *self._trajectories.paths]

    def _go_on(self) -> None:
        """Take away what was written after the snapshot.

        All is checked first. After a kill between the steps that follow, the run still goes on from this snapshot.
        """
        assert self._walkers is not None
        assert self._before is not None
        step, snapshot, finished = self._walkers.step, self.folder / SNAPSHOT, self._before.get("finished")
        if step > self.facts["steps"]:
            raise UqbiasError(
                f"{snapshot} is at step {step}, beyond the {self.facts['steps']} asked for",
                "give as many steps or more",
            )
        if finished is None:
            path = self._part(step)
            if not path.is_file():
                raise UqbiasError(f"{snapshot} is at step {step}, but {path} is not there", "begin anew")
            _, manifest = _read_part(path)
        elif step != self._before["steps"]:
            raise UqbiasError(
                f"{snapshot} is at step {step}, the finished run at {self._before['steps']}", "choose another folder"
            )
        else:
            path, manifest = self.folder / OBSERVATIONS, finished
            if not path.is_file():
                raise UqbiasError(f"the run in {self.folder} cannot go on: {path} is not there", "put it back")
            observed = read_arrays(path, "file of observations", "choose another folder")
        for name, size in manifest["sizes"].items():
            file = self.folder / name
            if not file.is_file() or file.stat().st_size < size:
                raise UqbiasError(
                    f"{file} is shorter than it was at the snapshot of step {step}", "put it back, or begin anew"
                )
        if finished is not None:
            # As if it had been interrupted at its last step.
            shutil.rmtree(self.folder / PARTS, ignore_errors=True)
            self._write_part(step, observed, finished)
            self._mark_saved()
        for later in self._parts():
            if int(later.stem) > step:
                later.unlink()
        for name, size in manifest["sizes"].items():
            os.truncate(self.folder / name, size)
        self._begin()
        # Placing the walkers anew has cost evaluations that the run without interruption did not have.
        self._stopped = manifest["stopped"]
        self._evaluations = manifest["evaluations"] - self._walkers.n_evaluations

    def __call__(self, observation: Observation) -> None:
        """Write one observation; an observer of `StepLoop.run`."""
        if observation.step % self._observe_every == 0:
            self._seen.append(observation)
        if observation.step % self._trajectory_every == 0:
            self._trajectories(observation)
        self._output(observation)
        for event in observation.events:
            self._events.write(json.dumps(event.to_dict()) + "\n")

    @property
    def totals(self) -> dict[str, Any]:
        """How often walkers were stopped, and evaluations, since the run began."""
        assert self._walkers is not None
        return {
            "stopped": self._stopped + len(self._walkers.events),
            "runner": self._walkers.runner,
            "evaluations": self._evaluations + self._walkers.n_evaluations,
        }

    def snapshot(self) -> None:
        """Make all that was observed so far safe, and the state that the run can go on from."""
        assert self._walkers is not None
        for path in self._growing:
            _sync(path)
        self._write_part(self._walkers.step, stacked(self._seen) if self._seen else {}, self._manifest())
        self._walkers.save(self.folder / SNAPSHOT)
        self._mark_saved()
        self._seen = []

    def _manifest(self) -> dict[str, Any]:
        return {**self.totals, "sizes": {path.name: path.stat().st_size for path in self._growing}}

    def _part(self, step: int) -> Path:
        return self.folder / PARTS / f"{step:012d}.npz"

    def _parts(self) -> list[Path]:
        return sorted((self.folder / PARTS).glob("[0-9]*.npz"))

    def _mark_saved(self) -> None:
        (self.folder / PARTS / SAVED).touch()

    def _write_part(self, step: int, arrays: Mapping[str, NDArray[Any]], manifest: Mapping[str, Any]) -> None:
        write_arrays(self._part(step), {**arrays, "manifest": np.array(json.dumps(dict(manifest)))})

    def finish(self, fault: tuple[str, str] | None = None) -> None:
        """Join the observations, write the bias as it is at the end, and say that the run is over.

        Parameters
        ----------
        fault : what is wrong with the run as a whole, and the cure.
        """
        assert self._walkers is not None
        parts = [_read_part(path)[0] for path in self._parts()]
        if self._seen:
            parts.append(stacked(self._seen))
        parts = [part for part in parts if part]
        joined = {
            name: parts[0][name] if name == "variable_names" else np.concatenate([part[name] for part in parts])
            for name in parts[0]
        }
        write_arrays(self.folder / OBSERVATIONS, joined, compressed=True)
        if self._walkers.bias is not None:
            write_arrays(self.folder / BIAS, self._walkers.bias.checkpoint())
        self.facts["finished"] = self._manifest() | ({} if fault is None else {"fault": fault})
        self._describe()
        shutil.rmtree(self.folder / PARTS, ignore_errors=True)


class _Totals(TypedDict):
    sizes: dict[Annotated[str, StringConstraints(pattern=r"^[^/\\]+$")], NonNegativeInt]
    stopped: NonNegativeInt
    evaluations: NonNegativeInt


class _Begun(TypedDict):
    settings: dict[str, Any]
    steps: NonNegativeInt
    finished: NotRequired[_Totals | None]


def read_description(path: Path, schema: Any, cure: str) -> dict[str, Any]:
    """Content of a ``run.json``.

    Parameters
    ----------
    schema : of what is needed, a `TypedDict`.

    Raises
    ------
    UqbiasError
        If it does not describe a run so; with the cure given.
    """
    fault = f"{path} does not describe a run"
    facts: dict[str, Any] = parse_json(path.read_bytes(), dict[str, Any], fault, cure)
    kind = (facts.get("format"), facts.get("version"))
    if kind[0] == "uqbias-proposals":
        raise UqbiasError(f"{path.parent} holds proposed geometries and no MD", "give the folder of an MD run")
    if kind[0] == FORMAT:
        check_json(facts, schema, fault, cure)
    if kind != (FORMAT, VERSION):
        raise UqbiasError(f"{path} is of format {kind[0]} {kind[1]}", "update uqbias")
    return facts


def _read_part(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Observations, and what `RunWriter.snapshot` noted with them."""
    arrays = read_arrays(path, "part of a run", "begin anew")
    fault = f"{path} is not a part of a run"
    return arrays, parse_json(str(arrays.pop("manifest", "")), _Totals, fault, "begin anew")


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
