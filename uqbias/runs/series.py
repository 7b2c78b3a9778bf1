"""Files of a run: PLUMED's HILLS and COLVAR, trajectories, and the observations themselves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, TextIO

import numpy as np
from numpy.typing import NDArray

from uqbias.errors import UqbiasError
from uqbias.files import write_arrays
from uqbias.runs.observation import GuardEvent, Observation
from uqbias.runs.plumed_files import check_columns, parse_plumed, read_text
from uqbias.variables.names import OF_MODEL


class Files:
    """Open streams that close with the block, on `close`, or when the object goes."""

    def __init__(self) -> None:
        self._streams: list[TextIO] = []

    def close(self) -> None:
        """Close the files."""
        for stream in getattr(self, "_streams", ()):
            stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class ColvarFiles(Files):
    """Time series in PLUMED's COLVAR format: ``time driver energy judge bias restarted``; ps, kJ/mol, kJ/mol/nm.

    Further variables of the bias follow in columns of their own.

    One file a walker, named as PLUMED names those of replicas: ``COLVAR.0``, ``COLVAR.1``, ... and, with a suffix,
    ``colvar.0.dat``; plain ``COLVAR`` for a single walker. A row with ``restarted`` 1 is where the guard stopped the
    walker.

    Parameters
    ----------
    path : name for a single walker.
    n_walkers : W.
    names : names of the variables of the bias.
    append : continue the files.

    Raises
    ------
    UqbiasError
        If a file to be continued has other columns.
    """

    def __init__(self, path: str | Path, n_walkers: int, *, names: Sequence[str] = (), append: bool = False) -> None:
        self._further = [column for column, name in enumerate(names) if name not in OF_MODEL]
        header = colvar_header(names)
        self._streams = [open_lines(name, header, append) for name in colvar_paths(path, n_walkers)]

    def __call__(self, observation: Observation) -> None:
        """Write one row a walker; the files are line-buffered."""
        o = observation
        columns = np.stack([o.driver, o.energy, o.judge, o.bias], axis=1).tolist()
        for walker, values in enumerate(columns):
            more = o.variables[walker] if self._further else ()
            self.row(walker, o.time_ps, values, more, restarted=bool(o.restarted[walker]))

    def row(
        self, walker: int, time_ps: float, values: Sequence[float], variables: Sequence[float], *, restarted: bool
    ) -> None:
        """Write u, energy, uncertainty, bias of one walker, and what ``names`` has beside."""
        numbers = " ".join(f"{value:16.9g}" for value in values)
        more = "".join(f" {variables[column]:16.9g}" for column in self._further)
        self._streams[walker].write(f"{time_ps:14.6f} {numbers} {restarted:d}{more}\n")


def colvar_header(names: Sequence[str]) -> str:
    """First line of a COLVAR file of a bias on these variables."""
    more = "".join(f" {name}" for name in names if name not in OF_MODEL)
    return f"#! FIELDS time driver energy judge bias restarted{more}\n"


def colvar_paths(path: str | Path, n_walkers: int) -> list[Path]:
    """Names of the COLVAR files of W walkers."""
    path = Path(path)
    if n_walkers == 1:
        return [path]
    return [path.with_name(f"{path.stem}.{walker}{path.suffix}") for walker in range(n_walkers)]


def read_colvar(path: str | Path) -> dict[str, NDArray[np.float64]]:
    """Read one COLVAR file into arrays [T] by field name.

    Raises
    ------
    UqbiasError
        If the file is missing or a line other than a last one cut short is bad; the message names the line.
    """
    if not Path(path).is_file():
        raise UqbiasError(f"no such file: {path}", "give a COLVAR file")
    fields, rows, _ = parse_plumed(read_text(path), Path(path))
    return {name: rows[:, column] for column, name in enumerate(fields)}


def rows_until(path: str | Path, names: Sequence[str], time_ps: float) -> str:
    """Content of a COLVAR file of a bias on these variables, without the rows after a time and a last one cut short.

    Raises
    ------
    UqbiasError
        If it is not such a file, or a line is bad.
    """
    text = read_text(path)
    check_columns(text, path, colvar_header(names))
    if "\n" not in text:
        return ""
    _, rows, numbers = parse_plumed(text, Path(path))
    late = {number for number, row in zip(numbers, rows, strict=True) if not row[0] <= time_ps}
    lines = enumerate(text.splitlines(keepends=True), start=1)
    return "".join(line for number, line in lines if number not in late and line.endswith("\n"))


class ObservationRecorder(Files):
    """Keeps observations in memory and writes them to one file; guard events go to a file at once.

    ``observations.npz``: step [T], time [T] ps, positions [T, W, N, 3] nm (float32), energy, driver, judge, bias
    [T, W], restarted [T, W], variables [T, W, C] and their names variable_names [C]. ``events.jsonl``: one JSON object
    per stopped walker, as `GuardEvent`.

    Parameters
    ----------
    directory : for the files; None keeps everything in memory only.
    stride : keep every so many observations; events are all kept.
    """

    def __init__(self, directory: str | Path | None = None, *, stride: int = 1) -> None:
        self.directory, self.stride = None if directory is None else Path(directory), stride
        self.events: list[GuardEvent] = []
        self._kept: list[Observation] = []
        self._seen = 0
        self._streams = (
            [] if self.directory is None else [open_lines(self.directory / "events.jsonl", "", append=False)]
        )

    def __call__(self, observation: Observation) -> None:
        """Keep the observation."""
        if self._seen % self.stride == 0:
            self._kept.append(observation)
        self._seen += 1
        for event in observation.events:
            self.events.append(event)
            for stream in self._streams:
                stream.write(json.dumps(event.to_dict()) + "\n")

    def __len__(self) -> int:
        return len(self._kept)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The observations kept so far, as in the file."""
        if not self._kept:
            raise UqbiasError("no observations to write", "run with this recorder among the observers first")

        def stacked(name: str) -> NDArray[Any]:
            return np.stack([getattr(observation, name) for observation in self._kept])

        return {
            "step": stacked("step"),
            "time": stacked("time_ps"),
            "positions": stacked("positions").astype(np.float32),
            **{name: stacked(name) for name in ("energy", "driver", "judge", "bias", "restarted", "variables")},
            "variable_names": np.array(self._kept[0].names, dtype=np.str_),
        }

    def save(self, path: str | Path | None = None) -> Path:
        """Write ``observations.npz`` (or ``path``) atomically and return its path."""
        if path is None and self.directory is None:
            raise UqbiasError("a recorder without a directory has nowhere to save", "give a path")
        target = Path(path) if path is not None else Path(self.directory or ".") / "observations.npz"
        write_arrays(target, self.arrays(), compressed=True)
        return target


def open_lines(path: Path, header: str, append: bool) -> TextIO:
    """Open for line-buffered writing; the header is written to a new file only, and else compared."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = True
    if append and path.is_file():
        if header:
            check_columns(read_text(path), path, header)
        _drop_cut_line(path)
        fresh = not path.stat().st_size
    stream = path.open("w" if fresh else "a", buffering=1, encoding="utf-8")
    if fresh:
        stream.write(header)
    return stream


def _drop_cut_line(path: Path) -> None:
    """Remove a last line without its end, so that appending does not run into it."""
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as stream:
            stream.truncate(len(whole))
