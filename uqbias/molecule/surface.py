"""Reference free-energy surface over two dihedral angles, and boxes in dihedral angles that frames have reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from uqbias.errors import UqbiasError
from uqbias.files import write_text

Array = NDArray[np.float64]
#: Named intervals [from, to] of angles in degrees; from > to goes through ±180°.
Box = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class ReferenceSurface:
    """Free energy on a periodic square grid of two dihedral angles.

    Attributes
    ----------
    free_energy : [B, B] kT above the minimum, first angle first, bins from -180° up; inf where never visited.
    """

    free_energy: Array

    def __post_init__(self) -> None:
        if self.free_energy.ndim != 2 or self.free_energy.shape[0] != self.free_energy.shape[1]:
            raise UqbiasError(f"surface of shape {self.free_energy.shape}", "give a square grid")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a table of both angles (bin centres in degrees) and F (kT) below one line of names.

        Lines that start with # are comments.

        Raises
        ------
        UqbiasError
            If the file is missing or does not hold every bin of a square grid.
        """
        path = Path(path)
        if not path.is_file():
            raise UqbiasError(f"no such file: {path}", "make it with the system's reference.py")
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
        try:
            first, second, values = np.array([[float(value) for value in line.split(",")] for line in lines[1:]]).T
        except ValueError as error:
            raise UqbiasError(f"{path} is not a table of two angles and F ({error})", "make it again") from error
        n = round(len(values) ** 0.5)
        grid = np.full((n, n), np.nan)
        width = 360.0 / n
        grid[np.floor((first + 180) / width).astype(int) % n, np.floor((second + 180) / width).astype(int) % n] = values
        if np.isnan(grid).any():
            raise UqbiasError(f"{path}: {int(np.isnan(grid).sum())} of {n}x{n} bins have no value", "make it again")
        return cls(grid)

    def save(self, path: str | Path, names: tuple[str, str], comments: Sequence[str] = ()) -> None:
        """Write what `load` reads.

        Parameters
        ----------
        path : the file.
        names : names of the two angles.
        comments : lines at the top.
        """
        lines = [f"# {comment}" for comment in comments] + [",".join((*names, "F"))]
        for row, first in enumerate(self.centres):
            lines += [f"{first:g},{second:g},{self.free_energy[row, i]:.4f}" for i, second in enumerate(self.centres)]
        write_text(path, "\n".join(lines) + "\n")

    @property
    def n_bins(self) -> int:
        """Bins along each angle."""
        return len(self.free_energy)

    @cached_property
    def centres(self) -> Array:
        """[B] bin centres in degrees."""
        return (np.arange(self.n_bins) + 0.5) * 360.0 / self.n_bins - 180.0

    def bins(self, first: Any, second: Any) -> NDArray[np.int64]:
        """[n, 2] bin of each point.

        Parameters
        ----------
        first, second : [n] degrees.
        """
        angles = np.stack([np.atleast_1d(first), np.atleast_1d(second)], axis=-1).astype(float)
        return np.floor((angles + 180.0) * self.n_bins / 360.0).astype(np.int64) % self.n_bins

    def accessible(self, max_kt: float = 10.0) -> NDArray[np.bool_]:
        """[B, B] whether the bin's free energy is at most ``max_kt``."""
        return self.free_energy <= max_kt

    def occupied(self, first: Any, second: Any) -> NDArray[np.bool_]:
        """[B, B] whether the bin holds a point."""
        occupied = np.zeros_like(self.free_energy, dtype=bool)
        occupied[tuple(self.bins(first, second).T)] = True
        return occupied

    def coverage(self, first: Any, second: Any, max_kt: float = 10.0) -> float:
        """Share of the accessible bins that hold at least one point (degrees)."""
        accessible = self.accessible(max_kt)
        return float((self.occupied(first, second) & accessible).sum() / max(1, accessible.sum()))

    def at(self, first: Any, second: Any) -> Array:
        """[n] free energy in kT of the bin of each point (degrees)."""
        values: Array = self.free_energy[tuple(self.bins(first, second).T)]
        return values


def in_box(angles: Mapping[str, Any], box: Box) -> NDArray[np.bool_]:
    """Whether each point lies in a box, [n].

    Parameters
    ----------
    angles : [n] degrees, by name.
    box : interval of each angle that the box bounds; those that it does not name are free.
    """
    inside = np.ones(np.shape(np.atleast_1d(next(iter(angles.values())))), dtype=bool)
    for name, (low, high) in box.items():
        inside &= (np.atleast_1d(angles[name]) - low) % 360.0 <= ((high - low) % 360.0 or 360.0)
    return inside


def reached(angles: Mapping[str, Any], boxes: Mapping[str, Box]) -> list[str]:
    """Names of the boxes that hold at least one point; ``angles`` [n] degrees, by name."""
    return [name for name, box in boxes.items() if in_box(angles, box).any()]
