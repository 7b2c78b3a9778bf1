"""Record of the geometries that a part of a model was made from, so that it is never calibrated on them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.molecule.frames import Frames

Array = NDArray[np.float64]

#: Powers k of the invariants Σ r^k over all pairs of atoms.
POWERS = (-2, -1, 1, 2, 3, 4)
#: Waves of structure factors, one less than powers, and what a cell's vectors are multiplied by.
WAVES = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, -1]])
SHAPE = np.array([[1.0, 0.3, 0.0], [0.0, 1.1, 0.2], [0.4, 0.0, 1.3]])
#: Two geometries are the same if no Σ r^k differs by more than this share: rounding to single precision changes it by
#: 1e-6, a move of one atom by 1e-4 nm by more.
TOLERANCE = 3e-6
NOTHING: Array = np.empty((0, len(POWERS)))


class Memory:
    """A part of a model that remembers the frames it was made from.

    Attributes
    ----------
    seen : [n, K] invariants of those frames; see `invariants`.
    """

    seen: Array = NOTHING

    def record_seen(self, frames: Frames | NDArray[Any]) -> None:
        """Remember frames, or positions [n, N, 3] nm in vacuum."""
        self.seen = join(self.seen, invariants(frames))


def invariants(frames: Frames | NDArray[Any]) -> Array:
    """Ln Σ_{i<j} r_ij^k for k in `POWERS`, [n, K]: the same however a geometry [n, N, 3] nm is moved or turned.

    In a cell |Σ_i w_i exp(2πi h·s_i)| for h in `WAVES`, s_i in lattice vectors, and a number for the cell: the same
    whichever images atoms are at. A lone atom in vacuum has no pairs: only a field that is fixed in space tells its
    places apart, so they are what is kept.
    """
    if isinstance(frames, Frames) and frames.cells is not None:
        return _in_cells(frames, frames.cells)
    x = np.asarray(frames.positions if isinstance(frames, Frames) else frames, dtype=np.float64)
    if x.shape[1] == 1:
        return np.pad(x[:, 0], ((0, 0), (0, len(POWERS) - 3)))
    i, j = np.triu_indices(x.shape[1], 1)
    rows = []
    for frame in x:
        apart = np.maximum(np.linalg.norm(frame[i] - frame[j], axis=1), 1e-6)
        rows.append([np.log((apart**power).sum()) for power in POWERS])
    return np.array(rows).reshape(len(x), len(POWERS))


def _in_cells(frames: Frames, cells: Array) -> Array:
    # Along a vector that does not repeat nothing wraps: its length is free, and 1 nm keeps rounding errors small.
    unit = cells / np.linalg.norm(cells, axis=2, keepdims=True)
    places = frames.positions @ np.linalg.inv(np.where(np.array(frames.periodic)[:, None], cells, unit))
    # Atoms count differently, so that none is like another.
    weights = 0.5 + np.outer(np.arange(1, len(frames.numbers) + 1), np.sqrt([2, 3, 5, 7, 11])) % 1
    sums = np.abs((weights * np.exp(2j * np.pi * (places @ WAVES.T))).sum(axis=1)) / np.sqrt(len(frames.numbers))
    shape = np.log(np.square(SHAPE @ cells).sum(axis=(1, 2)))
    return np.column_stack([sums, shape])


def join(first: Array, second: Array) -> Array:
    """Both records, each frame once."""
    union: Array = np.unique(np.concatenate([first, second]), axis=0)
    return union


def is_in(record: Array, frames: Frames | NDArray[Any]) -> NDArray[np.bool_]:
    """Mask [n] of the frames, or positions [n, N, 3] nm in vacuum, that are in a record."""
    from scipy.spatial import cKDTree

    if not len(record) or not len(frames):
        return np.zeros(len(frames), dtype=bool)
    distance, _ = cKDTree(record).query(invariants(frames), p=np.inf, distance_upper_bound=TOLERANCE)
    known: NDArray[np.bool_] = np.isfinite(distance)
    return known
