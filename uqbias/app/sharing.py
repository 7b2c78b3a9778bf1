"""Several processes, on one machine or many, that fill one metadynamics bias through files in a common folder."""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path

from uqbias.bias.metad import MetaD
from uqbias.errors import UqbiasError
from uqbias.runs.hills import hill_times, hills_header, hills_lines, parse_hills
from uqbias.runs.plumed_files import check_tempering
from uqbias.runs.series import drop_cut_line


class SharedHills:
    """Exchanges hills with the other processes that use the same folder.

    Each process appends its hills to a file of its own, ``HILLS.<name>`` in PLUMED's format, and reads what came since
    the last time in those of the others; a line that is still being written waits. The folder is the whole truth: a
    process that begins, or begins again after a crash, starts from all hills in it, its own earlier ones included, so
    none is lost and none counts twice.

    Parameters
    ----------
    folder : common to all processes; made if missing.
    bias : the bias of this process; emptied and filled from the folder.
    timestep_fs : time step of the MD, for the times in the files.
    name : name of this process; unique by itself if None.

    Raises
    ------
    UqbiasError
        If a file there is about other variables, another kernel or another bias factor, or a line is bad.
    """

    def __init__(self, folder: str | Path, bias: MetaD, timestep_fs: float, *, name: str | None = None) -> None:
        self.folder, self.bias, self.timestep_fs = Path(folder), bias, float(timestep_fs)
        self.folder.mkdir(parents=True, exist_ok=True)
        name = name or f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self.path = self.folder / f"HILLS.{name}"
        self._header = hills_header(bias)
        # Bytes and lines of each file that were read.
        self._read: dict[Path, tuple[int, int]] = {}
        bias.reset()
        for path in sorted(self.folder.glob("HILLS.*")):
            self._deposit(path)
        if self.path.is_file():
            drop_cut_line(self.path)
        if self.path not in self._read:
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

    def _append(self, text: str) -> None:
        # One write of whole lines, which the others may read at any time.
        with self.path.open("ab", buffering=0) as stream:
            stream.write(text.encode())

    def _deposit(self, path: Path) -> None:
        """Add the hills that came to a file since it was last read."""
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
        self.bias.load_hills(hills)
        self._read[path] = (start + len(whole), lines + text.count("\n"))
