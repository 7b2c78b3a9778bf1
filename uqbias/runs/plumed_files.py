"""Files as PLUMED writes them: their columns and rows, and what their ``#! SET`` lines state."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from uqbias.errors import UqbiasError

if TYPE_CHECKING:
    from uqbias.bias.metad import MetaD

#: A multiple or fraction of pi: -pi, 2pi, 2*pi, pi/2.
_OF_PI = re.compile(r"([+-]?)(?:(\d*\.?\d+)\*?)?pi(?:/(\d*\.?\d+))?")
#: Bytes read at a time.
BLOCK = 1 << 22


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


def parse_plumed(
    stream: BinaryIO, path: Path, *, before: int = 0
) -> tuple[list[str], NDArray[np.float64], NDArray[np.int64]]:
    """Field names, rows [T, fields] and their lines [T] of a PLUMED file; a last line without its end is left out.

    Beside the result a few blocks are in memory, however long the file is. Lines count from ``before``.

    Raises
    ------
    UqbiasError
        If a line is bad, the fields change, or it is not text; the message names the line.
    """
    fields: list[str] = []
    rows, lines = np.empty((0, 0)), np.empty(0, dtype=np.int64)
    for number, block in _blocks(stream, 1 + before):
        if block.lstrip().startswith(b"#"):
            words = _words(block, path)
            if words[:2] != ["#!", "FIELDS"]:
                continue
            if fields and words[2:] != fields:
                raise UqbiasError(f"{path}, line {number}: other fields than before", "keep one run per file")
            if not fields:
                fields, rows = words[2:], np.empty((0, len(words) - 2))
            continue
        values, at = _rows_of(block, len(fields), path, number)
        count = len(lines)
        # Lengthened where they are: a second copy of a long series may not fit into memory.
        rows.resize((count + len(at), len(fields)), refcheck=False)
        lines.resize(count + len(at), refcheck=False)
        rows[count:], lines[count:] = values, at
    if not fields:
        raise UqbiasError(f"{path}, line 1: no '#! FIELDS' line", "give a HILLS or COLVAR file as PLUMED writes it")
    return fields, rows, lines


def _blocks(stream: BinaryIO, number: int) -> Iterator[tuple[int, bytes]]:
    """Whole lines and the number of the first: many of numbers, or one with a ``#``."""
    left = b""
    while chunk := stream.read(BLOCK):
        whole, end, left = (left + chunk).rpartition(b"\n")
        whole += end
        while whole:
            mark = whole.find(b"#")
            # Up to the line that has the mark; if that is the first, this line alone.
            cut = len(whole) if mark < 0 else whole.rfind(b"\n", 0, mark) + 1 or whole.find(b"\n") + 1
            yield number, whole[:cut]
            number, whole = number + whole.count(b"\n", 0, cut), whole[cut:]


def _words(line: bytes, path: Path) -> list[str]:
    try:
        return line.decode("utf-8").split()
    except UnicodeDecodeError as error:
        raise UqbiasError(f"{path} is not a text file ({error})", "give a HILLS or COLVAR file") from error


def _rows_of(block: bytes, count: int, path: Path, number: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Rows [n, count] of a block of lines and their numbers [n]; empty lines are none."""
    characters = np.frombuffer(block, dtype=np.uint8)
    gap = characters <= ord(" ")
    begins = ~gap
    begins[1:] &= gap[:-1]
    starts = np.flatnonzero(characters == ord("\n"))[:-1] + 1
    words = np.add.reduceat(begins, np.concatenate([[0], starts]), dtype=np.int64)
    lines = number + np.flatnonzero(words)
    if count and (words[words > 0] == count).all():
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # numpy's word for what is no number
            with suppress(DeprecationWarning, ValueError):
                values = np.fromstring(block, sep=" ")
                if values.size == len(lines) * count:
                    return values.reshape(-1, count), lines
    rows = [_row(words, count, path, line) for line, words in _worded(block, path, number)]
    return np.array(rows, dtype=np.float64).reshape(len(rows), count), lines


def _worded(block: bytes, path: Path, number: int) -> Iterator[tuple[int, list[str]]]:
    words = ((line, _words(text, path)) for line, text in enumerate(block.split(b"\n"), start=number))
    return ((line, each) for line, each in words if each)


def _row(words: Sequence[str], count: int, path: Path, line: int) -> list[float]:
    try:
        row = [float(word) for word in words]
    except ValueError as error:
        raise UqbiasError(f"{path}, line {line}: {error}", "remove or repair that line") from error
    if len(row) != count:
        raise UqbiasError(f"{path}, line {line}: {len(row)} numbers for {count} fields", "remove or repair that line")
    return row


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
