"""Record of the geometries that a part of a model was made from, so that it is never calibrated on them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Powers k of the invariants Σ r^k over all pairs of atoms.
POWERS = (-2, -1, 1, 2, 3, 4)
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

    def record_seen(self, positions: NDArray[Any]) -> None:
        """Remember frames [n, N, 3] nm."""
        self.seen = join(self.seen, invariants(positions))


def invariants(positions: NDArray[Any]) -> Array:
    """Ln Σ_{i<j} r_ij^k for k in `POWERS`, [n, K]: the same however a geometry [n, N, 3] nm is moved or turned.

    A lone atom has no pairs: only a field that is fixed in space tells its places apart, so they are what is kept.
    """
    x = np.asarray(positions, dtype=np.float64)
    if x.shape[1] == 1:
        return np.pad(x[:, 0], ((0, 0), (0, len(POWERS) - 3)))
    i, j = np.triu_indices(x.shape[1], 1)
    rows = []
    for frame in x:
        apart = np.maximum(np.linalg.norm(frame[i] - frame[j], axis=1), 1e-6)
        rows.append([np.log((apart**power).sum()) for power in POWERS])
    return np.array(rows).reshape(len(x), len(POWERS))


def join(first: Array, second: Array) -> Array:
    """Both records, each frame once."""
    union: Array = np.unique(np.concatenate([first, second]), axis=0)
    return union


def is_in(record: Array, positions: NDArray[Any]) -> NDArray[np.bool_]:
    """Mask [n] of the frames [n, N, 3] nm that are in a record."""
    from scipy.spatial import cKDTree

    if not len(record) or not len(positions):
        return np.zeros(len(positions), dtype=bool)
    distance, _ = cKDTree(record).query(invariants(positions), p=np.inf, distance_upper_bound=TOLERANCE)
    known: NDArray[np.bool_] = np.isfinite(distance)
    return known
