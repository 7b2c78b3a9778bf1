"""Reference free-energy surface over two dihedral angles: which bins are accessible, which have been reached."""

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
#: Name to {"phi": [low, high], "psi": [low, high]} in degrees; low > high goes through ±180°.
Boxes = Mapping[str, Mapping[str, Sequence[float]]]

#: Basins of a blocked alanine residue in vacuum.
ALANINE_BASINS: dict[str, dict[str, tuple[float, float]]] = {
    "C7eq": {"phi": (-115.0, -45.0), "psi": (20.0, 110.0)},
    "C5": {"phi": (170.0, -120.0), "psi": (120.0, -160.0)},
    "C7ax": {"phi": (40.0, 100.0), "psi": (-90.0, 0.0)},
    "alphaR": {"phi": (-100.0, -40.0), "psi": (-70.0, -10.0)},
    "alphaL": {"phi": (35.0, 85.0), "psi": (10.0, 70.0)},
}


@dataclass(frozen=True)
class ReferenceSurface:
    """Free energy on a periodic square grid of two dihedral angles.

    Attributes
    ----------
    free_energy : [B, B] kT above the minimum, first index φ, bins from -180° up; inf where never visited.
    """

    free_energy: Array

    def __post_init__(self) -> None:
        if self.free_energy.ndim != 2 or self.free_energy.shape[0] != self.free_energy.shape[1]:
            raise UqbiasError(f"surface of shape {self.free_energy.shape}", "give a square grid")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read ``phi,psi,F`` (bin centres in degrees, kT); lines that start with # are comments.

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
            phi, psi, values = np.array([[float(value) for value in line.split(",")] for line in lines[1:]]).T
        except ValueError as error:
            raise UqbiasError(f"{path} is not a table phi,psi,F ({error})", "make it with reference.py") from error
        n = round(len(values) ** 0.5)
        grid = np.full((n, n), np.nan)
        width = 360.0 / n
        grid[np.floor((phi + 180) / width).astype(int) % n, np.floor((psi + 180) / width).astype(int) % n] = values
        if np.isnan(grid).any():
            raise UqbiasError(f"{path}: {int(np.isnan(grid).sum())} of {n}x{n} bins have no value", "make it again")
        return cls(grid)

    def save(self, path: str | Path, comments: Sequence[str] = ()) -> None:
        """Write what `load` reads, with ``comments`` at the top."""
        lines = [f"# {comment}" for comment in comments] + ["phi,psi,F"]
        for row, phi in enumerate(self.centres):
            lines += [f"{phi:g},{psi:g},{self.free_energy[row, i]:.4f}" for i, psi in enumerate(self.centres)]
        write_text(path, "\n".join(lines) + "\n")

    @property
    def n_bins(self) -> int:
        """Bins along each angle."""
        return len(self.free_energy)

    @cached_property
    def centres(self) -> Array:
        """[B] bin centres in degrees."""
        return (np.arange(self.n_bins) + 0.5) * 360.0 / self.n_bins - 180.0

    def bins(self, phi: Any, psi: Any) -> NDArray[np.int64]:
        """[n, 2] bin of each point.

        Parameters
        ----------
        phi, psi : [n] degrees.
        """
        angles = np.stack([np.atleast_1d(phi), np.atleast_1d(psi)], axis=-1).astype(float)
        return np.floor((angles + 180.0) * self.n_bins / 360.0).astype(np.int64) % self.n_bins

    def accessible(self, max_kt: float = 10.0) -> NDArray[np.bool_]:
        """[B, B] whether the bin's free energy is at most ``max_kt``."""
        return self.free_energy <= max_kt

    def occupied(self, phi: Any, psi: Any) -> NDArray[np.bool_]:
        """[B, B] whether the bin holds a point."""
        found = np.zeros_like(self.free_energy, dtype=bool)
        found[tuple(self.bins(phi, psi).T)] = True
        return found

    def coverage(self, phi: Any, psi: Any, max_kt: float = 10.0) -> float:
        """Share of the accessible bins that hold at least one point (degrees)."""
        accessible = self.accessible(max_kt)
        return float((self.occupied(phi, psi) & accessible).sum() / max(1, accessible.sum()))

    def at(self, phi: Any, psi: Any) -> Array:
        """[n] free energy in kT of the bin of each point (degrees)."""
        values: Array = self.free_energy[tuple(self.bins(phi, psi).T)]
        return values


def in_box(phi: Any, psi: Any, box: Mapping[str, Sequence[float]]) -> NDArray[np.bool_]:
    """[n] whether each point (degrees) lies in ``box``; an interval with low > high goes through ±180°."""
    inside = np.ones(np.atleast_1d(phi).shape, dtype=bool)
    for angle, (low, high) in ((np.atleast_1d(phi), box["phi"]), (np.atleast_1d(psi), box["psi"])):
        span = (high - low) % 360.0 or 360.0
        inside &= (angle - low) % 360.0 <= span
    return inside


def basins(phi: Any, psi: Any, boxes: Boxes = ALANINE_BASINS) -> set[str]:
    """Names of the boxes that hold at least one point.

    Parameters
    ----------
    phi, psi : [n] degrees.
    boxes : name to {"phi": [low, high], "psi": [low, high]} in degrees.
    """
    return {name for name, box in boxes.items() if bool(in_box(phi, psi, box).any())}


def phi_positive(phi: Any) -> NDArray[np.bool_]:
    """[n] whether 15° < φ < 135°: the side of the map behind the φ barrier, without the wrap-around near ±180°."""
    angle = np.atleast_1d(np.asarray(phi, dtype=float))
    return (angle > 15.0) & (angle < 135.0)
