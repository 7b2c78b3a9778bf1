"""Molecules that periodic boundaries have split, made whole again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, connected_components

Array = NDArray[np.float64]


class Whole:
    """Moves atoms by box vectors until bonded ones are next to each other, and fragments near the first.

    What OpenMM hands to a force is not always a whole molecule. On the Reference and CPU platforms positions are as
    they were set, so a molecule that was split in the start file stays so. On GPU platforms a force that says that it
    is periodic gets each molecule moved into the box, where a molecule is what bonded forces and constraints hold
    together: the atoms of a solute without any are moved one by one.

    Every atom is put at the image nearest to the atom before it in a walk along the bonds, the first atom of each
    further fragment at that nearest to the first atom of all. Atoms of a whole molecule keep their positions bit for
    bit. Forces need no correction, since a box vector is a constant.

    Parameters
    ----------
    n_atoms : N.
    bonds : pairs of atoms; None where they are not known, then all atoms are put nearest to the first one.
    gather : False to leave fragments where they are, each whole, for a model that sees all images.
    """

    def __init__(self, n_atoms: int, bonds: Sequence[tuple[int, int]] | None, *, gather: bool = True) -> None:
        pairs = np.array([*(bonds or ())], dtype=np.int64).reshape(-1, 2)
        joints: set[int] = set()
        if n_atoms:
            _, fragments = connected_components(_graph(pairs, n_atoms), directed=False)
            first = np.unique(fragments, return_index=True)[1]
            pairs = np.concatenate([pairs, np.stack([np.zeros_like(first), first], axis=1)[first > 0]])
            joints = set() if gather else set(first.tolist())
        walk, before = breadth_first_order(_graph(pairs, n_atoms), 0, directed=False) if n_atoms else ((), ())
        #: (atom, the one it is put next to), each after the one for the latter.
        self.links = [(int(atom), int(before[atom])) for atom in walk[1:] if int(atom) not in joints]
        self._atoms = np.array([atom for atom, _ in self.links], dtype=np.int64)
        self._before = np.array([before for _, before in self.links], dtype=np.int64)

    def __call__(self, positions: NDArray[Any], box: NDArray[Any]) -> Array:
        """The molecule in one piece.

        Parameters
        ----------
        positions : [N, 3] nm.
        box : [3, 3] nm, rows are the box vectors in OpenMM's reduced form.

        Returns
        -------
        [N, 3] nm; ``positions`` itself if nothing was split.
        """
        x = np.asarray(positions, dtype=np.float64)
        if not self.links:
            return x
        away = x[self._atoms] - x[self._before]
        counts = np.zeros_like(away)
        for d in (2, 1, 0):  # of a triclinic box the third vector has all components, the first only x
            counts[:, d] = np.round(away[:, d] / box[d, d])
            away -= counts[:, d : d + 1] * box[d]
        if not counts.any():
            return x
        total = np.zeros_like(x)
        for (atom, before), count in zip(self.links, counts, strict=True):
            total[atom] = total[before] - count
        return np.asarray(x + total @ box, dtype=np.float64)


def _graph(pairs: NDArray[np.int64], n_atoms: int) -> Any:
    return coo_array((np.ones(len(pairs)), tuple(pairs.T)), shape=(n_atoms, n_atoms)).tocsr()
