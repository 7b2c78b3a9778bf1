"""Tests of sameness: frames nearer than a distance in feature space, or by RMSD, are one frame."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.molecule.cells import moves
from uqbias.molecule.frames import Frames

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

#: Pairs of geometries superposed at a time, so that memory stays small.
BLOCK = 65536


class Sameness(ABC):
    """Test of which of n candidates are the same as a labelled frame, or as one of themselves."""

    @abstractmethod
    def as_known(self) -> Mask:
        """Mask [n] of the candidates that are the same as a labelled frame."""

    @abstractmethod
    def as_candidate(self, index: int) -> Mask:
        """Mask [n] of the candidates that are the same as candidate ``index``, itself among them."""


class NoSameness(Sameness):
    """The test that takes every candidate for a frame of its own.

    Parameters
    ----------
    count : number of candidates, n.
    """

    def __init__(self, count: int) -> None:
        self._count = count

    def as_known(self) -> Mask:
        return np.zeros(self._count, dtype=bool)

    def as_candidate(self, index: int) -> Mask:
        same: Mask = np.arange(self._count) == index
        return same


class NearFeatures(Sameness):
    """Sameness of frames no farther apart than a distance in feature space.

    Parameters
    ----------
    features : [n, D] of the candidates.
    known : [m, D] of the labelled frames.
    minimum : largest distance of two that are the same.
    """

    def __init__(self, features: Array, known: Array, minimum: float) -> None:
        self._features, self._known, self._minimum = features, known, minimum

    def as_known(self) -> Mask:
        known: Mask = nearest(self._features, self._known) <= self._minimum
        return known

    def as_candidate(self, index: int) -> Mask:
        same: Mask = np.linalg.norm(self._features - self._features[index], axis=1) <= self._minimum
        same[index] = True
        return same


class NearInCells(Sameness):
    """Sameness of periodic frames with an RMSD no larger than a length, whichever images atoms are at.

    A frame that is moved as a whole is the same. To the squared deviations of atoms, which are those of their places
    in the cell, a twelfth of the squared difference of the cells is added: what it would be for atoms everywhere.

    Parameters
    ----------
    frames : the candidates.
    known : labelled frames.
    minimum : nm, largest RMSD of two that are the same.
    """

    def __init__(self, frames: Frames, known: Frames, minimum: float) -> None:
        self._minimum, self._periodic = minimum, frames.periodic
        self._cells, self._places = _in_cells(frames)
        self._known_cells, self._known = _in_cells(known)

    def as_known(self) -> Mask:
        known = np.zeros(len(self._places), dtype=bool)
        for places, cell in zip(self._known, self._known_cells, strict=True):
            known[~known] = self._near(places, cell, ~known)
        return known

    def as_candidate(self, index: int) -> Mask:
        return self._near(self._places[index], self._cells[index], np.ones(len(self._places), dtype=bool))

    def _near(self, places: Array, cell: Array, asked: Mask) -> Mask:
        """Which of the candidates asked for [n] are the same as one frame, [m]."""
        apart = moves(self._places[asked], places, self._periodic) @ ((self._cells[asked] + cell) / 2)
        cells = np.square(self._cells[asked] - cell).sum(axis=(1, 2)) / 12
        near: Mask = np.square(apart).sum(axis=2).mean(axis=1) + cells <= self._minimum**2
        return near


def _in_cells(frames: Frames) -> tuple[Array, Array]:
    """Cells [n, 3, 3] nm, and positions [n, N, 3] in lattice vectors."""
    assert frames.cells is not None
    return frames.cells, frames.positions @ np.linalg.inv(frames.cells)


class NearGeometry(Sameness):
    """Sameness of frames with an RMSD no larger than a length.

    Parameters
    ----------
    positions : [n, N, 3] nm of the candidates.
    known : [m, N, 3] nm of the labelled frames.
    minimum : nm, largest RMSD of two that are the same.
    superpose : moved and turned frames are the same; False for particles in a field that is fixed in space.
    """

    def __init__(self, positions: NDArray[Any], known: NDArray[Any], minimum: float, *, superpose: bool = True) -> None:
        self._minimum, self._superpose = minimum, superpose
        self._positions = np.asarray(positions, dtype=np.float64)
        self._known = np.asarray(known, dtype=np.float64)
        if superpose:
            self._positions, self._known = _centred(self._positions), _centred(self._known)
        self._size, self._known_size = _size(self._positions), _size(self._known)

    def as_known(self) -> Mask:
        known = np.zeros(len(self._positions), dtype=bool)
        for geometry, size in zip(self._known, self._known_size, strict=True):
            known |= self._near(geometry, size, ~known)
        return known

    def as_candidate(self, index: int) -> Mask:
        same = self._near(self._positions[index], self._size[index], np.ones(len(self._positions), dtype=bool))
        same[index] = True
        return same

    def _near(self, geometry: Array, size: float, asked: Mask) -> Mask:
        """Which of the candidates asked for [n] are the same as ``geometry`` [N, 3]."""
        # Two geometries about one origin differ by their radii of gyration at least, however they are turned.
        close = np.flatnonzero(asked & (np.abs(self._size - size) <= self._minimum))
        result = np.zeros(len(self._positions), dtype=bool)
        result[close] = _rmsd(self._positions[close], geometry, turn=self._superpose) <= self._minimum
        return result


def by_rmsd(
    candidates: Frames | NDArray[Any], known: Frames | NDArray[Any], minimum: float, *, superpose: bool = True
) -> Sameness:
    """The test by RMSD of frames, in cells or in vacuum, or of positions [n, N, 3] nm in vacuum."""
    if isinstance(candidates, Frames) and isinstance(known, Frames) and candidates.cells is not None:
        return NearInCells(candidates, known, minimum)
    x, y = (each.positions if isinstance(each, Frames) else each for each in (candidates, known))
    return NearGeometry(x, y, minimum, superpose=superpose)


def rmsd(positions: NDArray[Any], reference: NDArray[Any]) -> Array:
    """Root mean square deviation after optimal superposition; all atoms count alike, none are exchanged.

    The rotation is proper, so that mirror images differ (Kabsch, Acta Cryst. A 34, 827, 1978).

    Parameters
    ----------
    positions : [n, N, 3] nm.
    reference : [N, 3] nm.

    Returns
    -------
    [n] nm.
    """
    x = np.asarray(positions, dtype=np.float64)
    return _rmsd(_centred(x), _centred(np.asarray(reference, dtype=np.float64)[None])[0], turn=True)


def nearest(features: Array, known: Array) -> Array:
    """Distance [n] of ``features`` [n, D] to the nearest of ``known`` [m, D]; infinite where there are none."""
    if not len(known):
        return np.full(len(features), np.inf)
    blocks = [
        np.linalg.norm(features[start : start + 256, None] - known[None], axis=-1).min(axis=1)
        for start in range(0, len(features), 256)
    ]
    return np.concatenate(blocks) if blocks else np.empty(0)


def _centred(x: Array) -> Array:
    centred: Array = x - x.mean(axis=1, keepdims=True)
    return centred


def _size(x: Array) -> Array:
    """Root mean square distance of the atoms from the origin, [n]."""
    size: Array = np.sqrt(np.square(x).sum(axis=2).mean(axis=1))
    return size


def _rmsd(x: Array, reference: Array, *, turn: bool) -> Array:
    """RMSD [n] of ``x`` [n, N, 3] to ``reference`` [N, 3], both about one origin."""
    if not turn:
        return _size(x - reference)
    result = [np.empty(0)]
    for start in range(0, len(x), BLOCK):
        block = x[start : start + BLOCK]
        u, _, vt = np.linalg.svd(np.einsum("nai,aj->nij", block, reference))
        # Where the best orthogonal matrix is a reflection, the axis of least weight is turned back.
        u[:, :, 2] *= np.where(np.linalg.det(u) * np.linalg.det(vt) < 0, -1.0, 1.0)[:, None]
        # The deviations themselves: from the singular values alone a small RMSD would drown in rounding errors.
        result.append(_size(block @ (u @ vt) - reference))
    return np.concatenate(result)
