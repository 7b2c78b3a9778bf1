"""Several processes, on one machine or many, that fill one metadynamics bias through files in a common folder."""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.bias.base import Bias, BiasSum, Probe
from uqbias.bias.metad import MetaD
from uqbias.bias.parallel import ParallelMetaD
from uqbias.errors import UqbiasError
from uqbias.runs.hills import hill_times, hills_header, hills_lines, parse_hills
from uqbias.runs.plumed_files import check_tempering
from uqbias.runs.run_files import hill_files
from uqbias.runs.series import drop_cut_line

#: Where a checkpoint of `SharedSum` holds what was exchanged.
EXCHANGED = "exchanged"


class SharedHills:
    """Exchanges hills with the other processes that use the same folder.

    Each process appends its hills to a file of its own, ``HILLS.<name>`` in PLUMED's format, and reads what came since
    the last time in those of the others; a line that is still being written waits. The folder is the whole truth: a
    process that begins, or begins again after a crash, starts from all hills in it, its own earlier ones included, so
    none is lost and none counts twice.

    Parameters
    ----------
    folder : common to all processes; made if missing.
    bias : the bias of this process.
    timestep_fs : time step of the MD, for the times in the files.
    name : name of this process; unique by itself if None.
    fill : empty the bias and fill it from the folder; else it is as a snapshot has it, see `exchange`.

    Raises
    ------
    UqbiasError
        If a file there is about other variables, another kernel or another bias factor, or a line is bad.
    """

    def __init__(
        self, folder: str | Path, bias: MetaD, timestep_fs: float, *, name: str | None = None, fill: bool = True
    ) -> None:
        self.folder, self.bias, self.timestep_fs = Path(folder), bias, float(timestep_fs)
        self.folder.mkdir(parents=True, exist_ok=True)
        name = name or f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self.path = self.folder / f"HILLS.{name}"
        self._header = hills_header(bias)
        # Bytes and lines of each file that were read.
        self._read: dict[Path, tuple[int, int]] = {}
        if fill:
            bias.reset()
            for path in sorted(self.folder.glob("HILLS.*")):
                self._deposit(path)
        if self.path.is_file():
            drop_cut_line(self.path)
        if not self.path.is_file() or not self.path.stat().st_size:
            self._append(self._header)
        self._own = len(bias.hills)

    def write(self, now: tuple[int, float] | None = None) -> None:
        """Append this process's new hills to its file: a kill loses none of them, a power cut those since `sync`.

        ``now`` is the present step and its time in ps.
        """
        hills = self.bias.hills[self._own :]
        if len(hills):
            self._append(hills_lines(hills, hill_times(hills, self.timestep_fs * 1e-3, now)))
            self._own += len(hills)

    def sync(self, now: tuple[int, float] | None = None) -> int:
        """`write`, and take over the hills of the others; returns how many came.

        Call it between steps, right after the bias's own update.
        """
        self.write(now)
        with self.path.open("rb") as stream:
            os.fsync(stream)
        before = len(self.bias.hills)
        for path in sorted(self.folder.glob("HILLS.*")):
            if path != self.path:
                self._deposit(path)
        self._own = len(self.bias.hills)
        return self._own - before

    def exchange(self, step: int) -> None:
        """Add own hills to the file of this process, and those that came in the others' to the bias, as of ``step``.

        Where a process goes on from a snapshot that is older than the last exchange, it makes the same hills again:
        those are in its file already, and are not added to it. What an earlier life left there beside them, on a
        platform that does not repeat itself, is taken over like another's.
        """
        hills = self.bias.hills[self._own :]
        lines = hills_lines(hills, hill_times(hills, self.timestep_fs * 1e-3)).splitlines(keepends=True)
        start, _ = self._read.setdefault(self.path, (len(self._header), self._header.count("\n")))
        left = self.path.read_bytes()[start:].decode().splitlines(keepends=True)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(lines, left, strict=False)))
        self._pass(self.path, "".join(lines[:same]))
        if same < len(lines):
            self._deposit(self.path, step)
            self._append("".join(lines[same:]))
            self._pass(self.path, "".join(lines[same:]))
        for path in sorted(self.folder.glob("HILLS.*")):
            if path != self.path:
                self._deposit(path, step)
        self._own = len(self.bias.hills)

    def state(self) -> dict[str, Any]:
        """What was exchanged so far, as JSON has it: own hills, and what was read of each file."""
        return {"own": self._own, "read": {path.name: [*place] for path, place in self._read.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state` that is as old as the bias."""
        self._own = state["own"]
        self._read = {self.folder / name: (size, lines) for name, (size, lines) in state["read"].items()}

    def _pass(self, path: Path, text: str) -> None:
        """Count text of a file as read."""
        start, lines = self._read[path]
        self._read[path] = (start + len(text.encode()), lines + text.count("\n"))

    def _append(self, text: str) -> None:
        # One write of whole lines, which the others may read at any time.
        with self.path.open("ab", buffering=0) as stream:
            stream.write(text.encode())

    def _deposit(self, path: Path, step: int | None = None) -> None:
        """Add the hills that came to a file since it was last read, as of ``step`` or else as of their own."""
        if not path.is_file():
            return
        known = path in self._read
        start, lines = self._read.get(path, (0, 0))
        with path.open("rb") as stream:
            stream.seek(start)
            content = stream.read()
        whole = content[: content.rfind(b"\n") + 1]
        text = whole.decode("utf-8", errors="replace")
        if known and whole:
            text = self._header + text
            lines -= self._header.count("\n")
        header = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
        if not header:
            return
        if not known and header != self._header:
            raise UqbiasError(
                f"{path} holds hills of another bias: '{header.splitlines()[0]}', this one writes "
                f"'{self._header.splitlines()[0]}' with kernel {self.bias.kernel}",
                "give each bias a folder of its own",
            )
        _, hills = parse_hills(text, path, self.timestep_fs, before=lines)
        check_tempering(hills, path, self.bias)
        if step is not None:
            hills["step"] = step
        self.bias.load_hills(hills)
        self._read[path] = (start + len(whole), lines + text.count("\n"))


class SharedSum(BiasSum):
    """The biases of one of several groups of walkers, which have their hills in common (Raiteri, Laio, Gervasio,
    Micheletti and Parrinello, J. Phys. Chem. B 110, 3533, 2006; as PLUMED's WALKERS_DIR).

    At every exchange a group adds its new hills to a file of its own and takes over the others': its bias is the sum of
    the hills that it made and read, each once, and acts like that of more walkers, some of whose hills come late. A
    checkpoint that is written at each exchange says what was exchanged, so that a group which goes on from it loses no
    hill and counts none twice.

    Parameters
    ----------
    biases : metadynamics and parallel metadynamics, and biases that never change.
    folder : for the files; of several metadynamics each has its variables in the name of its own.
    name : name of this group.
    timestep_fs : time step of the MD, for the times in the files.
    every : steps between exchanges; the first one is at the beginning.

    Raises
    ------
    UqbiasError
        If a bias changes and is no sum of hills, or none is one.
    """

    def __init__(self, biases: Sequence[Bias], folder: Path, name: str, timestep_fs: float, every: int) -> None:
        super().__init__(biases)
        check_shareable(biases)
        self.every = every
        self._shared = [
            SharedHills(place, part, timestep_fs, name=name, fill=False) for place, part in hill_files(folder, biases)
        ]

    def update(self, step: int, x: NDArray[Any], probe: Probe | None = None) -> None:
        super().update(step, x, probe)
        if step % self.every == 0:
            for shared in self._shared:
                shared.exchange(step)

    def checkpoint(self) -> dict[str, NDArray[Any]]:
        return super().checkpoint() | {EXCHANGED: np.array(json.dumps([shared.state() for shared in self._shared]))}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Continue from a `checkpoint`; the hills of one without exchanges, as of an earlier round, are all known."""
        super().restore(arrays)
        unknown = [{"own": len(shared.bias.hills), "read": {}} for shared in self._shared]
        states = json.loads(str(arrays[EXCHANGED])) if EXCHANGED in arrays else unknown
        for shared, state in zip(self._shared, states, strict=True):
            shared.restore(state)


def check_shareable(biases: Sequence[Bias]) -> None:
    """See that groups of walkers can share biases.

    Raises
    ------
    UqbiasError
        If one changes and is no sum of hills, or none is one.
    """
    hills = [bias for bias in biases if isinstance(bias, MetaD | ParallelMetaD)]
    other = [bias.kind for bias in biases if bias.pace and bias not in hills]
    if other or not hills:
        raise UqbiasError(
            f"md.share_hills_every with the bias {other[0] if other else 'of no hills'}, which is no sum of hills",
            "take metadynamics or parallel_metadynamics, or leave share_hills_every out: a bias of its own for each "
            "group",
        )
