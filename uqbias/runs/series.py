"""Time series of a run: PLUMED's COLVAR, and the observations themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Self, TextIO

import numpy as np
from numpy.typing import NDArray

from uqbias.errors import UqbiasError
from uqbias.runs.observation import Observation
from uqbias.runs.plumed_files import check_columns, parse_plumed, read_text
from uqbias.variables.names import OF_MODEL


class Files:
    """Open streams that close with the block, on `close`, or when the object goes."""

    _streams: Sequence[IO[Any] | Files] = ()

    def close(self) -> None:
        """Close the files."""
        for stream in self._streams:
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
    walker, or before it jumps.

    Parameters
    ----------
    path : name for a single walker.
    n_walkers : W.
    names : names of the variables of the bias.
    stride : steps between rows.
    append : continue the files.

    Raises
    ------
    UqbiasError
        If a file to be continued has other columns.
    """

    def __init__(
        self, path: str | Path, n_walkers: int, *, names: Sequence[str] = (), stride: int = 1, append: bool = False
    ) -> None:
        self._stride, self._further = stride, [place for place, name in enumerate(names) if name not in OF_MODEL]
        header = colvar_header(names)
        self._rows = [open_lines(name, header, append) for name in colvar_paths(path, n_walkers)]
        self._streams = self._rows

    def __call__(self, observation: Observation) -> None:
        """Write one row a walker, at multiples of the stride; the files are line-buffered."""
        o = observation
        if o.step % self._stride:
            return
        columns = np.stack([o.driver, o.energy, o.judge, o.bias], axis=1).tolist()
        for walker, (stream, values) in enumerate(zip(self._rows, columns, strict=True)):
            numbers = " ".join(_written(value) for value in values)
            more = "".join(f" {_written(o.variables[walker][place])}" for place in self._further)
            stream.write(f"{o.time_ps:14.6f} {numbers} {o.restarted[walker]:d}{more}\n")


def _written(value: float) -> str:
    """Nine digits, or four decimals of what would lose them: total energies."""
    return f"{value:16.4f}" if 1e5 <= abs(value) < 1e12 else f"{value:16.9g}"


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
    with Path(path).open("rb") as stream:
        fields, rows, _ = parse_plumed(stream, Path(path))
    return {name: rows[:, column] for column, name in enumerate(fields)}


def last_time(path: Path) -> float:
    """Time of the last whole row of a COLVAR file, whatever its length; -inf without rows.

    Raises
    ------
    UqbiasError
        If that row does not begin with a time.
    """
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - 65536))
        lines = stream.read().split(b"\n")[:-1]
    rows = [line for line in lines if line.strip() and not line.startswith(b"#")]
    word = rows[-1].split()[0] if rows else b"-inf"
    with suppress(ValueError):
        if not math.isnan(time := float(word)):
            return time
    with path.open("rb") as stream:
        number = max(number for number, line in enumerate(stream, start=1) if line.rstrip(b"\n") == rows[-1])
    raise UqbiasError(f"{path}, line {number}: {word!r} is not a time", "remove or repair that line")


def is_late(times: NDArray[np.float64], until: float) -> NDArray[np.bool_]:
    """Which of the times, [n], that files of one trajectory after another have, the last one has after a time."""
    late = ~(times <= until)
    back = np.flatnonzero(np.diff(times) < 0)
    late[: back[-1] + 1 if len(back) else 0] = False
    return late


def rows_until(path: str | Path, names: Sequence[str], time_ps: float) -> str:
    """Content of a COLVAR file of a bias on these variables, up to a time in its last trajectory; whole lines only.

    Raises
    ------
    UqbiasError
        If it is not such a file, or a line is bad.
    """
    text = read_text(path)
    check_columns(text, path, colvar_header(names))
    if "\n" not in text:
        return ""
    _, rows, numbers = parse_plumed(BytesIO(text.encode()), Path(path))
    late = set(numbers[is_late(rows[:, 0], time_ps)].tolist())
    lines = enumerate(text.splitlines(keepends=True), start=1)
    return "".join(line for number, line in lines if number not in late and line.endswith("\n"))


def stacked(observations: Sequence[Observation]) -> dict[str, NDArray[Any]]:
    """The arrays of ``observations.npz``.

    step [T], time [T] ps, positions [T, W, N, 3] nm (float32), energy, driver, judge, bias [T, W], restarted [T, W],
    variables [T, W, C] and their names variable_names [C]; of walkers in cells boxes [T, W, 3, 3] nm.
    """
    boxes = () if observations[0].boxes is None else ("boxes",)
    columns = ("step", "time_ps", "positions", "energy", "driver", "judge", "bias", "restarted", "variables", *boxes)
    arrays = {name: np.stack([getattr(observation, name) for observation in observations]) for name in columns}
    arrays["time"], arrays["positions"] = arrays.pop("time_ps"), arrays["positions"].astype(np.float32)
    return {**arrays, "variable_names": np.array(observations[0].names, dtype=np.str_)}


def open_lines(path: Path, header: str, append: bool) -> TextIO:
    """Open for line-buffered writing; the header is written to a new file only, and else compared."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = True
    if append and path.is_file():
        if header:
            check_columns(read_text(path), path, header)
        drop_cut_line(path)
        fresh = not path.stat().st_size
    stream = path.open("w" if fresh else "a", buffering=1, encoding="utf-8")
    if fresh:
        stream.write(header)
    return stream


def drop_cut_line(path: Path) -> None:
    """Remove a last line without its end, so that appending does not run into it."""
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as stream:
            stream.truncate(len(whole))
