"""Files of a run: PLUMED's HILLS and COLVAR, trajectories, and the observations themselves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, TextIO

import numpy as np
from numpy.typing import NDArray

from uqbias.bias.metadynamics import Metadynamics, hill_type
from uqbias.errors import UqbiasError
from uqbias.files import atomic_path, write_arrays
from uqbias.md.guards import GuardEvent
from uqbias.md.observation import Observation
from uqbias.md.plumed_files import check_columns, check_stated, check_tempering, parse_plumed, read_text
from uqbias.topology import Topology
from uqbias.units import ANGSTROM
from uqbias.variables.names import OF_MODEL

#: Steps are kept in 64 bits.
LAST_STEP = 2.0**62
#: Grid points are counted in 64 bits too.
FARTHEST = 1e15


class _Files:
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


class HillsFile(_Files):
    """Hills in PLUMED's HILLS format, one file for all walkers, as METAD with WALKERS_MPI writes it.

    Columns ``time u sigma_u height biasf``, with more variables ``time u phi sigma_u sigma_phi ...``: time in ps,
    height in kJ/mol. PLUMED's convention for the height holds (MetaD.cpp, writeGaussian): of a well-tempered run the
    file holds h·γ/(γ-1), where h was added to the bias, so that the sum of the hills in the file is -F; of an
    untempered run it holds h, and biasf is -1. The kernel is that of the bias. PLUMED sums a ``gaussian`` up to 3.5
    sigma, stretched; a bias with ``stretched-gaussian`` does so too.

    Parameters
    ----------
    path : the file, written anew unless ``append``.
    bias : whose hills are written.
    timestep_fs : to convert steps to time.
    append : continue a file; hills already in the bias count as written.

    Raises
    ------
    UqbiasError
        If the file to be continued has other columns, or states another kernel or period.
    """

    def __init__(self, path: str | Path, bias: Metadynamics, timestep_fs: float, *, append: bool = False) -> None:
        if append and Path(path).is_file():
            check_stated(read_text(path), path, bias)
        self.bias, self.timestep_ps = bias, timestep_fs * 1e-3
        self._written = len(bias.hills) if append else 0
        self._streams = [_open(Path(path), hills_header(bias), append)]

    def __call__(self, observation: Observation | None = None) -> None:
        """Write the hills that came since the last call, and flush."""
        hills = self.bias.hills
        if len(hills) < self._written:  # the bias was reset
            self._written = 0
        self._streams[0].write(hills_lines(hills[self._written :], self.timestep_ps))
        if len(hills) > self._written:
            self._written = len(hills)
            self._streams[0].flush()


def hills_header(bias: Metadynamics) -> str:
    """First lines of a HILLS file of ``bias``."""
    names = [*bias.variables, *(f"sigma_{name}" for name in bias.variables)]
    header = f"#! FIELDS time {' '.join(names)} height biasf\n"
    header += f"#! SET multivariate false\n#! SET kerneltype {bias.kernel}\n"
    for name, period in zip(bias.variables, bias.periods, strict=True):
        if period is not None:
            header += f"#! SET min_{name} {-period / 2:.17g}\n#! SET max_{name} {period / 2:.17g}\n"
    return header


def hills_lines(hills: NDArray[Any], timestep_ps: float) -> str:
    """Lines of a HILLS file, heights in PLUMED's convention; see `HillsFile`."""
    lines = []
    for step, centre, sigma, height, gamma in hills.tolist():
        stated, biasf = (height * gamma / (gamma - 1), gamma) if gamma > 1 else (height, -1.0)
        values = " ".join(f"{value:24.17g}" for value in (*centre, *sigma, stated))
        lines.append(f"{step * timestep_ps:14.6f} {values} {biasf:10.6g}\n")
    return "".join(lines)


def read_hills(
    path: str | Path,
    timestep_fs: float,
    variables: Sequence[str] | None = None,
    *,
    bias: Metadynamics | None = None,
) -> NDArray[Any]:
    """Read a HILLS file; heights come back as they were added to the bias.

    Parameters
    ----------
    timestep_fs : to convert time to steps.
    variables : the file must be about these; any if None.
    bias : that the hills are for: the file must be about its variables, have its bias factor and, where it states
        them, its kernel and periods.

    Returns
    -------
    Record array of `uqbias.bias.metadynamics.hill_type`, fit for `Metadynamics.load_hills`.

    Raises
    ------
    UqbiasError
        If the file is missing, for another bias, or a line other than a last one cut short is bad; the message names
        the line.
    """
    if not Path(path).is_file():
        raise UqbiasError(f"no such file: {path}", "give a HILLS file")
    text = read_text(path)
    if bias is None:
        return parse_hills(text, path, timestep_fs, variables)
    hills = parse_hills(text, path, timestep_fs, bias.variables)
    check_stated(text, path, bias)
    check_tempering(hills, path, bias)
    return hills


def parse_hills(
    text: str, path: str | Path, timestep_fs: float, variables: Sequence[str] | None = None, *, before: int = 0
) -> NDArray[Any]:
    """`read_hills` of a file's content, or of a part with ``before`` lines before it; ``path`` is for messages."""
    fields, rows, lines = parse_plumed(text, Path(path), before=before)
    if "biasf" in fields:  # PLUMED may add the wall-clock time
        kept = fields.index("biasf") + 1
        fields, rows = fields[:kept], rows[:, :kept]
    names = hill_variables(fields)
    if not names:
        raise UqbiasError(
            f"{path}, line 1: fields {' '.join(fields)}",
            "a HILLS file has time, the variables, sigma_ of each, height, biasf",
        )
    if variables is not None and list(variables) != names:
        raise UqbiasError(
            f"{path} holds hills on {', '.join(names)}, not on {', '.join(variables)}", "give the HILLS of this bias"
        )
    count = len(names)
    steps = np.rint(rows[:, 0] / (timestep_fs * 1e-3))
    sound = np.isfinite(rows).all(axis=1) & (rows[:, 1 + count : 1 + 2 * count] > 0).all(axis=1)
    sound &= (np.abs(steps) < LAST_STEP) & (np.abs(rows[:, 1 : 1 + count]) < FARTHEST).all(axis=1)
    if not sound.all():
        raise UqbiasError(
            f"{path}, line {lines[int(np.argmin(sound))]}: a hill with a number that is not finite or too large, or a "
            "sigma that is not above 0",
            "remove or repair that line",
        )
    hills = np.empty(len(rows), dtype=hill_type(count))
    gamma = rows[:, -1]
    tempered = gamma > 1
    hills["step"] = steps
    hills["centre"], hills["sigma"] = rows[:, 1 : 1 + count], rows[:, 1 + count : 1 + 2 * count]
    hills["height"] = rows[:, -2] * np.where(tempered, (gamma - 1) / np.where(tempered, gamma, 1.0), 1.0)
    hills["biasfactor"] = np.where(tempered, gamma, 1.0)
    return hills


def hill_variables(fields: Sequence[str]) -> list[str]:
    """Names of the variables of a HILLS file with these fields; none if it is not such a file."""
    count = (len(fields) - 3) // 2
    names = list(fields[1 : 1 + count])
    expected = ["time", *names, *(f"sigma_{name}" for name in names), "height", "biasf"]
    return names if count and list(fields) == expected else []


class ColvarFiles(_Files):
    """Time series in PLUMED's COLVAR format: ``time u energy uncertainty bias restarted``; ps, kJ/mol, kJ/mol/nm.

    Further variables of the bias follow in columns of their own.

    One file a walker, named as PLUMED names those of replicas: ``COLVAR.0``, ``COLVAR.1``, ... and, with a suffix,
    ``colvar.0.dat``; plain ``COLVAR`` for a single walker. A row with ``restarted`` 1 is where the guard stopped the
    walker.

    Parameters
    ----------
    path : name for a single walker.
    n_walkers : W.
    names : of the variables of the bias.
    append : continue the files.

    Raises
    ------
    UqbiasError
        If a file to be continued has other columns.
    """

    def __init__(self, path: str | Path, n_walkers: int, *, names: Sequence[str] = (), append: bool = False) -> None:
        self._further = [column for column, name in enumerate(names) if name not in OF_MODEL]
        header = colvar_header(names)
        self._streams = [_open(name, header, append) for name in colvar_paths(path, n_walkers)]

    def __call__(self, observation: Observation) -> None:
        """Write one row a walker; the files are line-buffered."""
        o = observation
        columns = np.stack([o.cv, o.energy, o.uncertainty, o.bias], axis=1).tolist()
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
    return f"#! FIELDS time u energy uncertainty bias restarted{more}\n"


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


class Trajectories:
    """One XTC file a walker, ``walker_0.xtc``, ..., and ``topology.pdb``: ``mdtraj.load(xtc, top=pdb)`` reads them.

    Parameters
    ----------
    directory : for the files; made if missing.
    topology : of the molecule.
    n_walkers : W.
    stride : write every so many observations.
    """

    def __init__(self, directory: str | Path, topology: Topology, n_walkers: int, *, stride: int = 1) -> None:
        from mdtraj.formats import XTCTrajectoryFile

        self.directory, self.stride, self._topology = Path(directory), stride, topology
        self.directory.mkdir(parents=True, exist_ok=True)
        self.paths = [self.directory / f"walker_{walker}.xtc" for walker in range(n_walkers)]
        self._files = [XTCTrajectoryFile(str(path), "w") for path in self.paths]
        self._seen = 0

    def __call__(self, observation: Observation) -> None:
        """Append the positions; a walker that is not finite or far out of the format's range is left out."""
        if self._seen == 0:
            self._write_topology(observation.positions[0])
        if self._seen % self.stride == 0:
            time = np.array([observation.time_ps], dtype=np.float32)
            step = np.array([observation.step], dtype=np.int32)
            for file, x in zip(self._files, observation.positions, strict=True):
                # XTC holds 0.001 nm in 32-bit integers.
                if np.isfinite(x).all() and np.abs(x).max() < 1e6:
                    file.write(x[None].astype(np.float32), time=time, step=step)
                    file.flush()
        self._seen += 1

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_topology(self, positions: NDArray[Any]) -> None:
        from openmm import app

        x = np.nan_to_num(positions) / ANGSTROM
        with atomic_path(self.directory / "topology.pdb") as temporary, temporary.open("w") as stream:
            app.PDBFile.writeFile(self._topology.to_openmm(), x, stream, keepIds=True)


class ObservationRecorder(_Files):
    """Keeps observations in memory and writes them to one file; guard events go to a file at once.

    ``observations.npz``: step [T], time [T] ps, positions [T, W, N, 3] nm (float32), energy, cv, uncertainty, bias
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
        self._streams = [] if self.directory is None else [_open(self.directory / "events.jsonl", "", append=False)]

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
            **{name: stacked(name) for name in ("energy", "cv", "uncertainty", "bias", "restarted", "variables")},
            "variable_names": np.array(self._kept[0].names, dtype=np.str_),
        }

    def save(self, path: str | Path | None = None) -> Path:
        """Write ``observations.npz`` (or ``path``) atomically and return its path."""
        if path is None and self.directory is None:
            raise UqbiasError("a recorder without a directory has nowhere to save", "give a path")
        target = Path(path) if path is not None else Path(self.directory or ".") / "observations.npz"
        write_arrays(target, self.arrays(), compressed=True)
        return target


def _open(path: Path, header: str, append: bool) -> TextIO:
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
