"""Files as PLUMED writes them: their columns and rows, and what their ``#! SET`` lines state."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.bias.metad import MetaD
from uqbias.errors import UqbiasError

#: A multiple or fraction of pi: -pi, 2pi, 2*pi, pi/2.
_OF_PI = re.compile(r"([+-]?)(?:(\d*\.?\d+)\*?)?pi(?:/(\d*\.?\d+))?")


def read_text(path: str | Path) -> str:
    """Content of a file of PLUMED's kind.

    Raises
    ------
    UqbiasError
        If it is not text.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UqbiasError(f"{path} is not a text file ({error})", "give a HILLS or COLVAR file") from error


def check_columns(text: str, path: str | Path, header: str) -> None:
    """Raise UqbiasError unless a file has the columns that a header names, or was cut short in that header."""
    expected = header.partition("\n")[0]
    lines = text.splitlines() or [""]
    columns_line = next((line for line in lines if line.startswith("#! FIELDS")), lines[0])
    if columns_line.split() != expected.split() and not expected.startswith(text):
        raise UqbiasError(
            f"{path} has other columns: '{columns_line[:80]}', not '{expected}'", "move it away, or choose another name"
        )


def parse_plumed(text: str, path: Path, *, before: int = 0) -> tuple[list[str], NDArray[np.float64], list[int]]:
    """Field names, rows [T, fields] and their lines [T] of a PLUMED file; a last line without its end is left out.

    Lines count from ``before``.
    """
    fields: list[str] = []
    rows: list[Sequence[float]] = []
    lines: list[int] = []
    for number, line in enumerate(text.splitlines(keepends=True), start=1 + before):
        if not line.endswith("\n"):
            break
        words = line.split()
        if words[:2] == ["#!", "FIELDS"]:
            if fields and words[2:] != fields:
                raise UqbiasError(f"{path}, line {number}: other fields than before", "keep one run per file")
            fields = words[2:]
        elif not words or words[0].startswith("#"):
            continue
        else:
            try:
                row = [float(word) for word in words]
            except ValueError as error:
                raise UqbiasError(f"{path}, line {number}: {error}", "remove or repair that line") from error
            if len(row) != len(fields):
                raise UqbiasError(
                    f"{path}, line {number}: {len(row)} numbers for {len(fields)} fields", "remove or repair that line"
                )
            rows.append(row)
            lines.append(number)
    if not fields:
        raise UqbiasError(f"{path}, line 1: no '#! FIELDS' line", "give a HILLS or COLVAR file as PLUMED writes it")
    return fields, np.array(rows, dtype=np.float64).reshape(len(rows), len(fields)), lines


def check_stated(text: str, path: str | Path, bias: MetaD) -> None:
    """Compare kernel and periods with a HILLS file's ``#! SET`` lines; older PLUMED states no kernel."""
    stated = stated_values(text)
    if (kernel := stated.get("kerneltype", bias.kernel)) != bias.kernel:
        raise UqbiasError(f"{path} holds hills of the kernel {kernel}, this bias has {bias.kernel}", "use the same")
    for name, period in zip(bias.variables, bias.periods, strict=True):
        if (bounds := bounds_of(stated, name)) is None:
            continue
        there = bounds[1] - bounds[0]
        if period is None or not math.isclose(there, period, rel_tol=1e-6):
            raise UqbiasError(
                f"{path} holds hills on {name} with period {there:.6g}, in this bias its period is {period}",
                "give the HILLS of this bias",
            )


def check_tempering(hills: NDArray[Any], path: str | Path, bias: MetaD) -> None:
    """Raise UqbiasError if a hill was made with another bias factor, on which F = -γ/(γ-1) V depends."""
    factor_here = bias.biasfactor or 1.0
    # Files name it in six digits.
    other = hills["biasfactor"][~np.isclose(hills["biasfactor"], factor_here, rtol=1e-5)]
    if len(other):
        shown = ["none" if factor == 1.0 else f"{factor:g}" for factor in (float(other[0]), factor_here)]
        raise UqbiasError(
            f"{path} holds hills with the bias factor {shown[0]}, this bias has {shown[1]}", "use the same bias factor"
        )


def stated_values(text: str) -> dict[str, str]:
    """What the ``#! SET`` lines of a file state."""
    lines = [line.split() for line in text.splitlines() if line.lstrip().startswith("#!")]
    return {words[2]: words[3] for words in lines if words[1:2] == ["SET"] and len(words) == 4}


def bounds_of(stated: Mapping[str, str], name: str) -> tuple[float, float] | None:
    """Minimum and maximum of a variable with a period; None where none, or no finite range, is stated."""
    low, high = (_number(stated.get(f"{end}_{name}", "")) for end in ("min", "max"))
    return (low, high) if 0 < high - low < math.inf else None


def _number(word: str) -> float:
    """A number or a multiple of pi as PLUMED takes it; NaN if it is neither."""
    try:
        if of_pi := _OF_PI.fullmatch(word):
            sign, times, over = of_pi.groups()
            return float(f"{sign}{times or 1}") * math.pi / float(over or 1)
        return float(word)
    except (ValueError, ZeroDivisionError):
        return math.nan
