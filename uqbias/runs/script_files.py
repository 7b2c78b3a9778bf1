"""HILLS and COLVAR of a run in the user's Simulation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from uqbias.bias.base import Bias
from uqbias.bias.metad import MetaD, metadynamics_parts
from uqbias.errors import UqbiasError
from uqbias.files import write_text
from uqbias.runs.hills import HillsFile, hills_header, hills_lines, read_hills
from uqbias.runs.observation import Observation
from uqbias.runs.plumed_files import check_columns, read_text
from uqbias.runs.series import ColvarFiles, rows_until

#: Times in a HILLS file are read in this step (fs) until the simulation's own is known.
FINE_STEP = 1e-6


def hill_files(path: str | Path | None, biases: Sequence[Bias | None]) -> list[tuple[Path, MetaD]]:
    """HILLS file of each metadynamics among the biases, that of a WTM-eABF included.

    One has the path given; of several each has its variables in the name: ``HILLS.u``, ``HILLS.phi-psi``.
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


def load_hill_files(files: Sequence[tuple[Path, MetaD]]) -> None:
    """Begin with the hills in the files; their steps are in units of `FINE_STEP` until `set_timestep`.

    Raises
    ------
    UqbiasError
        If a file is missing, bad, of another bias, or not fit to be continued.
    """
    read = [read_hills(path, FINE_STEP, bias=bias) for path, bias in files]
    for path, bias in files:
        check_columns(read_text(path), path, hills_header(bias))
    for (path, bias), hills in zip(files, read, strict=True):
        try:
            bias.load_hills(hills)
        except UqbiasError as error:
            raise UqbiasError(f"{path}: {error.what}", error.cure) from error


def set_timestep(files: Sequence[tuple[Path, MetaD]], timestep_fs: float) -> None:
    """Count the steps of loaded hills in the simulation's own timestep."""
    for _, bias in files:
        hills = bias.hills
        hills["step"] = np.rint(hills["step"] * (FINE_STEP / timestep_fs))


class Output:
    """The files of a run, open.

    Files of an earlier run that is not continued are kept under PLUMED's names for them, ``bck.0.HILLS``, ...

    Parameters
    ----------
    hills : as of `hill_files`.
    colvar : None to write none.
    names : names of the variables of the bias.
    timestep_fs : to convert steps to time.
    stride : steps between rows of COLVAR.
    append : continue the files: the hills that the biases have are in them.
    """

    def __init__(
        self,
        hills: Sequence[tuple[Path, MetaD]],
        colvar: str | Path | None,
        names: Sequence[str],
        timestep_fs: float,
        *,
        stride: int,
        append: bool,
    ) -> None:
        if not append:
            for path in [*(path for path, _ in hills), *([] if colvar is None else [Path(colvar)])]:
                back_up(path)
        self._stride = stride
        self._hills = [HillsFile(path, bias, timestep_fs, append=append) for path, bias in hills]
        self._colvar = None if colvar is None else ColvarFiles(colvar, 1, names=names, append=append)

    def __call__(self, observation: Observation) -> None:
        """Write the hills that came, and every ``stride`` steps a row of COLVAR."""
        for file in self._hills:
            file()
        if self._colvar is not None and observation.step % self._stride == 0:
            self._colvar(observation)

    def close(self) -> None:
        """Close the files."""
        for file in [*self._hills, *([] if self._colvar is None else [self._colvar])]:
            file.close()


def kept_rows(colvar: str | Path | None, names: Sequence[str], timestep_fs: float, time_ps: float) -> str | None:
    """Content of COLVAR without the rows after ``time_ps``; None where there is no such file.

    Raises
    ------
    UqbiasError
        If it is bad, or has other columns than for the variables in ``names``.
    """
    if colvar is None or not Path(colvar).is_file():
        return None
    return rows_until(colvar, names, time_ps + 0.5e-3 * timestep_fs)


def rewind(
    hills: Sequence[tuple[Path, MetaD]],
    colvar: str | Path | None,
    rows: str | None,
    timestep_fs: float,
    step: int,
) -> None:
    """Put the files back to a snapshot at ``step``: HILLS as the biases have them, COLVAR as of `kept_rows`.

    A HILLS file with other hills up to that step, or of another kind, is kept as of `back_up`.
    """
    for path, bias in hills:
        if path.is_file() and not _is_of_this_run(path, bias, timestep_fs, step):
            back_up(path)
        write_text(path, hills_header(bias) + hills_lines(bias.hills, timestep_fs * 1e-3))
    if colvar is not None and rows is not None:
        write_text(colvar, rows)


def _is_of_this_run(path: Path, bias: MetaD, timestep_fs: float, step: int) -> bool:
    try:
        recorded = read_hills(path, timestep_fs, bias=bias)
    except UqbiasError:
        # Not even its header was written, before a kill.
        return not path.stat().st_size
    count = min(len(recorded), len(bias.hills))
    same = np.allclose(recorded["step"][:count], bias.hills["step"][:count], rtol=0, atol=1)
    for name in ("centre", "sigma", "height"):
        # A file names γ, and through it the height that was added, in six digits.
        same &= np.allclose(recorded[name][:count], bias.hills[name][:count], rtol=1e-4, atol=1e-12)
    return bool(same and not (recorded["step"][count:] < step).any())


def back_up(path: Path) -> None:
    """Rename a file that is in the way to ``bck.N.NAME`` with the first free N."""
    if not path.is_file():
        return
    place = 0
    while (target := path.with_name(f"bck.{place}.{path.name}")).exists():
        place += 1
    path.rename(target)
