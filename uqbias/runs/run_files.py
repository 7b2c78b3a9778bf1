"""HILLS and COLVAR of one run, in a folder of its own or in the user's Simulation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from uqbias.bias.base import Array, Bias
from uqbias.bias.metad import MetaD, metadynamics_parts
from uqbias.errors import UqbiasError
from uqbias.files import write_text
from uqbias.runs.hills import HillsFile, hills_header, hills_lines, read_hills
from uqbias.runs.observation import Observation
from uqbias.runs.plumed_files import check_columns, read_text
from uqbias.runs.series import ColvarFiles, Files, colvar_paths, is_late, last_time, rows_until

#: Times in a HILLS file are read in this step (fs) until the simulation's own is known.
FINE_STEP = 1e-6
#: Last digit of a time in the files, ps.
TIME_DIGIT = 1e-6


def hill_files(path: str | Path | None, biases: Sequence[Bias | None]) -> list[tuple[Path, MetaD]]:
    """HILLS file of each metadynamics among the biases, that of a WTM-eABF included.

    One has the path given; of several each has its variables in the name: ``HILLS.driver``, ``HILLS.phi-psi``.
    """
    if path is None:
        return []
    parts, path = metadynamics_parts(biases), Path(path)
    if len(parts) == 1:
        return [(path, parts[0])]
    files: dict[Path, MetaD] = {}
    for part in parts:
        name = f"{path.stem}.{'-'.join(part.variables)}"
        file = path.with_name(name + path.suffix)
        files[file if file not in files else path.with_name(f"{name}.{len(files)}{path.suffix}")] = part
    return list(files.items())


class RunFiles(Files):
    """The HILLS and COLVAR files of a run; an observer of its steps once they are open.

    Parameters
    ----------
    hills : path of the HILLS file, see `hill_files`; None to write none.
    colvar : path of COLVAR, see `ColvarFiles`; None to write none.
    biases : biases of the run.
    names : names of their variables.
    n_walkers : W.
    stride : steps between rows of COLVAR.

    Attributes
    ----------
    hills : each HILLS file and the bias whose hills are in it.
    paths : all files.
    opened : whether `open` was called.
    """

    def __init__(
        self,
        hills: str | Path | None,
        colvar: str | Path | None,
        biases: Sequence[Bias | None],
        names: Sequence[str],
        *,
        n_walkers: int = 1,
        stride: int = 1,
    ) -> None:
        super().__init__()
        self.hills, self.colvar = hill_files(hills, biases), None if colvar is None else Path(colvar)
        self.paths = [] if colvar is None else colvar_paths(colvar, n_walkers)
        self.paths += [path for path, _ in self.hills]
        self.opened = False
        self._names, self._n_walkers, self._stride = tuple(names), n_walkers, stride
        self._writers: list[HillsFile | ColvarFiles] = []
        self._in_fine_steps = False
        self._rows: str | None = None
        self._until = math.inf

    def load_hills(self) -> None:
        """Let the biases begin with the hills in the files.

        Raises
        ------
        UqbiasError
            If a file is missing, bad, of another bias, or not fit to be continued.
        """
        read = [read_hills(path, FINE_STEP, bias=bias) for path, bias in self.hills]
        for path, bias in self.hills:
            check_columns(read_text(path), path, hills_header(bias))
        for (path, bias), hills in zip(self.hills, read, strict=True):
            try:
                bias.load_hills(hills)
            except UqbiasError as error:
                raise UqbiasError(f"{path}: {error.what}", error.cure) from error
        self._in_fine_steps = True

    def go_on_at(self, time_ps: float, timestep_fs: float, *, cut: bool) -> None:
        """Look for what `load_hills` took over and COLVAR has from later than the time at which a run goes on.

        It would be there twice. A trajectory that begins at time 0 has no earlier self; in files of several, one after
        the other, the last is compared.

        Parameters
        ----------
        cut : take it out of biases and files, which are kept whole under the names of `back_up`.

        Raises
        ------
        UqbiasError
            If there is any, and it is not to be taken out; if COLVAR is bad.
        """
        if not time_ps:
            return
        self._until = time_ps + max(0.5e-3 * timestep_fs, TIME_DIGIT)
        late = {path: is_late(_fine_times(bias), self._until) for path, bias in self.hills}
        later = [f"{path} has {hills.sum()} hills" for path, hills in late.items() if hills.any()]
        rows = self.colvar is not None and self.colvar.is_file() and last_time(self.colvar) > self._until
        if (later or rows) and not cut:
            raise UqbiasError(
                f"{later[0] if later else f'{self.colvar} has rows'} later than this state ({time_ps:.6g} ps), that of "
                "an older checkpoint: they would count twice",
                "restart='cut' takes them out; another trajectory, which begins with all hills, begins at time 0",
            )
        if rows:
            self.look_back(time_ps, timestep_fs)
        for path, bias in self.hills:
            if late[path].any():
                hills = bias.hills[~late[path]].copy()
                bias.reset()
                bias.load_hills(hills)
                back_up(path)
                write_text(path, hills_header(bias) + hills_lines(hills, _fine_times(bias)))
        if rows and self._rows is not None and self.colvar is not None:
            back_up(self.colvar)
            write_text(self.colvar, self._rows)

    def open(self, timestep_fs: float, *, append: bool) -> None:
        """Open the files; with ``append`` continue them: the hills that the biases have are in them.

        Raises
        ------
        UqbiasError
            If a file to be continued has other columns, or hills of another kind.
        """
        if self._in_fine_steps:
            for _, bias in self.hills:
                bias.hills["step"] = np.rint(bias.hills["step"] * (FINE_STEP / timestep_fs))
            self._in_fine_steps = False
        self._streams = self._writers = [HillsFile(path, bias, timestep_fs, append=append) for path, bias in self.hills]
        if self.colvar is not None:
            self._writers.append(
                ColvarFiles(self.colvar, self._n_walkers, names=self._names, stride=self._stride, append=append)
            )
        self.opened = True

    def __call__(self, observation: Observation) -> None:
        """Write the hills that came, and every ``stride`` steps a row of COLVAR."""
        for writer in self._writers:
            writer(observation)

    def back_up(self) -> None:
        """Keep the files of an earlier run under PLUMED's names for them, ``bck.0.HILLS``, ..."""
        for path in self.paths:
            back_up(path)

    def look_back(self, time_ps: float, timestep_fs: float) -> None:
        """Read what `rewind` will keep of the COLVAR of one walker: the rows up to a time.

        Raises
        ------
        UqbiasError
            If it is bad, or has other columns.
        """
        self._rows, self._until = None, time_ps + max(0.5e-3 * timestep_fs, TIME_DIGIT)
        if self.colvar is not None and self.colvar.is_file():
            self._rows = rows_until(self.colvar, self._names, self._until)

    def rewind(self, timestep_fs: float) -> None:
        """Put the files back to a snapshot's time and open them: HILLS as the biases have them, COLVAR as read.

        A HILLS file with other hills up to that time, or of another kind, is kept as by `back_up`.
        """
        self.close()
        for path, bias in self.hills:
            times = bias.hills["step"] * timestep_fs * 1e-3
            if path.is_file():
                recorded = _times_of_this_run(path, bias, self._until)
                if recorded is None:
                    back_up(path)
                else:
                    times[: len(recorded)] = recorded
            write_text(path, hills_header(bias) + hills_lines(bias.hills, times))
        if self.colvar is not None and self._rows is not None:
            write_text(self.colvar, self._rows)
        self._in_fine_steps = False
        self.open(timestep_fs, append=True)


def _times_of_this_run(path: Path, bias: MetaD, time_ps: float) -> Array | None:
    """Times (ps) in a HILLS file of the hills that the bias has; None if it has other hills before a time."""
    try:
        recorded = read_hills(path, FINE_STEP, bias=bias)
    except UqbiasError:
        # Not even its header was written, before a kill.
        return None if path.stat().st_size else np.empty(0)
    times = recorded["step"] * FINE_STEP * 1e-3
    count = min(len(recorded), len(bias.hills))
    same = not (times[count:] < time_ps).any()
    for name in ("centre", "sigma", "height"):
        # A file names γ, and through it the height that was added, in six digits.
        same &= np.allclose(recorded[name][:count], bias.hills[name][:count], rtol=1e-4, atol=1e-12)
    return times[:count] if same else None


def _fine_times(bias: MetaD) -> Array:
    """Times (ps) of hills that were read from a file, [H]."""
    return np.asarray(bias.hills["step"] * FINE_STEP * 1e-3, dtype=np.float64)


def back_up(path: Path) -> None:
    """Rename a file that is in the way to ``bck.N.NAME`` with the first free N."""
    if not path.is_file():
        return
    place = 0
    while (target := path.with_name(f"bck.{place}.{path.name}")).exists():
        place += 1
    path.rename(target)
