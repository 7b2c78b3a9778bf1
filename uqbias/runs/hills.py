"""HILLS files: written for a bias, read for a bias or for a report, PLUMED's own too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.bias.metad import Kernel, MetaD, hill_type, sum_of_hills
from uqbias.errors import UqbiasError
from uqbias.runs.observation import Observation
from uqbias.runs.plumed_files import bounds_of, check_stated, check_tempering, parse_plumed, read_text, stated_values
from uqbias.runs.series import Files, open_lines

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Hills:
    """Hills that were added to a bias.

    Attributes
    ----------
    variables : their names, D of them.
    bounds : minimum and maximum of each variable with a period, None for one without.
    centre, sigma : [H, D].
    height : [H] kJ/mol.
    kernel : shape of the hills, see `uqbias.bias.metad.MetaD`.
    """

    variables: tuple[str, ...]
    bounds: tuple[tuple[float, float] | None, ...]
    centre: Array
    sigma: Array
    height: Array
    kernel: Kernel = "gaussian"

    @property
    def periods(self) -> tuple[float | None, ...]:
        """Period of each variable, None where it has none."""
        return tuple(None if bounds is None else bounds[1] - bounds[0] for bounds in self.bounds)

    def potential(self, points: Array) -> Array:
        """Bias in kJ/mol [n] at points [n, D]."""
        return sum_of_hills(points, self.centre, self.sigma, self.height, self.periods, self.kernel)

    def ranges(self) -> list[tuple[float, float]]:
        """Low and high of each variable: three sigma around the hills, or the bounds of a period."""
        limits = []
        for axis, bounds in enumerate(self.bounds):
            reach = 3 * self.sigma[:, axis]
            low, high = (self.centre[:, axis] - reach).min(), (self.centre[:, axis] + reach).max()
            limits.append((float(low), float(high)) if bounds is None else bounds)
        return limits

    def wrapped(self, values: Array, axis: int) -> Array:
        """Values of one variable at their images between its bounds; as they are without a period."""
        bounds = self.bounds[axis]
        return values if bounds is None else bounds[0] + np.mod(values - bounds[0], bounds[1] - bounds[0])


def load_hills(path: Path, timestep_fs: float) -> Hills | None:
    """The hills in a file, heights as they were added to the bias; None for a file without hills.

    Raises
    ------
    UqbiasError
        If it is not a HILLS file or a line is bad; the message names the line.
    """
    text = read_text(path)
    names, rows = parse_hills(text, path, timestep_fs)
    if not len(rows):
        return None
    stated = stated_values(text)
    bounds = tuple(bounds_of(stated, name) for name in names)
    kernel: Kernel = "stretched-gaussian" if stated.get("kerneltype") == "stretched-gaussian" else "gaussian"
    return Hills(tuple(names), bounds, rows["centre"], rows["sigma"], rows["height"], kernel)


#: Steps are kept in 64 bits.
LAST_STEP = 2.0**62
#: Grid points are counted in 64 bits too.
FARTHEST = 1e15


class HillsFile(Files):
    """Hills in PLUMED's HILLS format, one file for all walkers, as METAD with WALKERS_MPI writes it.

    Columns ``time driver sigma_driver height biasf``, with more variables ``time driver phi sigma_driver sigma_phi
    ...``: time in ps, height in kJ/mol. PLUMED's convention for the height holds (MetaD.cpp, writeGaussian): of a
    well-tempered run the file holds h·γ/(γ-1), where h was added to the bias, so that the sum of the hills in the
    file is -F; of an untempered run it holds h, and biasf is -1. The kernel is that of the bias. PLUMED sums a
    ``gaussian`` up to 3.5 sigma, stretched; a bias with ``stretched-gaussian`` does so too.

    Parameters
    ----------
    path : the file, written anew unless ``append``.
    bias : whose hills are written.
    timestep_fs : to convert steps to time, where no observation tells it.
    append : continue a file; hills already in the bias count as written.

    Raises
    ------
    UqbiasError
        If the file to be continued has other columns, or states another kernel or period.
    """

    def __init__(self, path: str | Path, bias: MetaD, timestep_fs: float, *, append: bool = False) -> None:
        if append and Path(path).is_file():
            check_stated(read_text(path), path, bias)
        self.bias, self.timestep_ps = bias, timestep_fs * 1e-3
        self._written = len(bias.hills) if append else 0
        self._stream = open_lines(Path(path), hills_header(bias), append)
        self._streams = [self._stream]

    def __call__(self, observation: Observation | None = None) -> None:
        """Write the hills that came since the last call, and flush."""
        hills = self.bias.hills
        if len(hills) < self._written:  # the bias was reset
            self._written = 0
        if len(hills) > self._written:
            new = hills[self._written :]
            now = None if observation is None else (observation.step, observation.time_ps)
            self._stream.write(hills_lines(new, hill_times(new, self.timestep_ps, now)))
            self._written = len(hills)
            self._stream.flush()


def hills_header(bias: MetaD) -> str:
    """First lines of a HILLS file of ``bias``."""
    names = [*bias.variables, *(f"sigma_{name}" for name in bias.variables)]
    header = f"#! FIELDS time {' '.join(names)} height biasf\n"
    header += f"#! SET multivariate false\n#! SET kerneltype {bias.kernel}\n"
    for name, period in zip(bias.variables, bias.periods, strict=True):
        if period is not None:
            header += f"#! SET min_{name} {-period / 2:.17g}\n#! SET max_{name} {period / 2:.17g}\n"
    return header


def hill_times(hills: NDArray[Any], timestep_ps: float, now: tuple[int, float] | None = None) -> Array:
    """Times [H] in ps of hills, by their steps; of those of the present step its time, whatever the steps were."""
    times = np.asarray(hills["step"] * timestep_ps, dtype=np.float64)
    if now is not None:
        times[hills["step"] == now[0]] = now[1]
    return times


def hills_lines(hills: NDArray[Any], times: Array) -> str:
    """Lines of a HILLS file, times [H] in ps, heights in PLUMED's convention; see `HillsFile`."""
    lines = []
    for time, (_, centre, sigma, height, gamma) in zip(times.tolist(), hills.tolist(), strict=True):
        stated, biasf = (height * gamma / (gamma - 1), gamma) if gamma > 1 else (height, -1.0)
        values = " ".join(f"{value:24.17g}" for value in (*centre, *sigma, stated))
        lines.append(f"{time:14.6f} {values} {biasf:10.6g}\n")
    return "".join(lines)


def read_hills(
    path: str | Path,
    timestep_fs: float,
    variables: Sequence[str] | None = None,
    *,
    bias: MetaD | None = None,
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
    Record array of `uqbias.bias.metad.hill_type`, fit for `MetaD.load_hills`.

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
        return parse_hills(text, path, timestep_fs, variables)[1]
    hills = parse_hills(text, path, timestep_fs, bias.variables)[1]
    check_stated(text, path, bias)
    check_tempering(hills, path, bias)
    return hills


def parse_hills(
    text: str, path: str | Path, timestep_fs: float, variables: Sequence[str] | None = None, *, before: int = 0
) -> tuple[list[str], NDArray[Any]]:
    """Variables and hills in a file's content, or in a part with ``before`` lines before it; see `read_hills`.

    ``path`` is for messages.
    """
    fields, rows, lines = parse_plumed(BytesIO(text.encode()), Path(path), before=before)
    if "biasf" in fields:  # PLUMED may add the wall-clock time
        kept = fields.index("biasf") + 1
        fields, rows = fields[:kept], rows[:, :kept]
    count = (len(fields) - 3) // 2
    names = fields[1 : 1 + count]
    if not names or fields != ["time", *names, *(f"sigma_{name}" for name in names), "height", "biasf"]:
        raise UqbiasError(
            f"{path}, line 1: fields {' '.join(fields)}",
            "a HILLS file has time, the variables, sigma_ of each, height, biasf",
        )
    if variables is not None and list(variables) != names:
        raise UqbiasError(
            f"{path} holds hills on {', '.join(names)}, not on {', '.join(variables)}", "give the HILLS of this bias"
        )
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
    return names, hills
