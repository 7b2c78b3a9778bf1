"""Cells of periodic systems: what is none, their heights, and the form in which OpenMM takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.errors import UqbiasError
from uqbias.units import ANGSTROM

Array = NDArray[np.float64]
#: Whether a system repeats along each lattice vector.
Periodic = tuple[bool, bool, bool]
ISOLATED: Periodic = (False, False, False)
EVERYWHERE: Periodic = (True, True, True)
#: nm; an atom that near its own image is none: the shortest distance of two atoms, H2's, is 0.074.
LOWEST = 0.07


def heights(cells: NDArray[Any]) -> Array:
    """Heights [..., 3] of cells [..., 3, 3], the distances of opposite faces, in the same unit."""
    a, b, c = np.moveaxis(np.asarray(cells, dtype=np.float64), -2, 0)
    areas = np.stack([np.linalg.norm(np.cross(*two), axis=-1) for two in ((b, c), (c, a), (a, b))], axis=-1)
    volume = np.abs(np.einsum("...x,...x->...", a, np.cross(b, c)))
    return np.asarray(volume[..., None] / np.maximum(areas, 1e-300))


def check_cell(cell: NDArray[Any], periodic: Periodic, owner: str) -> Array:
    """A cell [3, 3] in nm, with vectors of 1 Å where it has none along a direction that does not repeat.

    Parameters
    ----------
    owner : file and frame, for messages.

    Raises
    ------
    UqbiasError
        For a cell that is not there, is flat, or so small that atoms lie on their images.
    """
    from ase.geometry import complete_cell, minkowski_reduce

    vectors = np.asarray(cell, dtype=np.float64)
    absent = [axis for axis, repeats in enumerate(periodic) if repeats and not vectors[axis].any()]
    if absent or not np.isfinite(vectors).all():
        what = "is not finite" if not np.isfinite(vectors).all() else f"has no vector {'abc'[absent[0]]}"
        raise UqbiasError(
            f"{owner} is periodic (pbc {list(periodic)}) and its cell {what}",
            'give the cell (Lattice="..." in Å), or pbc="F F F" for a molecule in vacuum',
        )
    whole = vectors
    if not vectors.any(axis=1).all():
        whole = np.asarray(complete_cell(vectors / ANGSTROM), dtype=np.float64) * ANGSTROM
    low, size = heights(whole)[list(periodic)], float(volume(whole))
    if float(low.min(initial=np.inf)) < LOWEST:  # flat, or only skewed
        nearest = float(low.min())
        if size > LOWEST**3:
            shortest = np.linalg.norm(minkowski_reduce(whole, periodic)[0][list(periodic)], axis=1)
            nearest = float(shortest.min())
        if nearest < LOWEST:
            raise UqbiasError(
                f"{owner}: its cell is degenerate, with a volume of {size / ANGSTROM**3:.3g} Å³ and images "
                f"{nearest / ANGSTROM:.3g} Å apart",
                "give lattice vectors in Å that span a volume",
            )
    return whole


def volume(cells: NDArray[Any]) -> Array:
    """Volumes [...] of cells [..., 3, 3], in the cube of their unit."""
    return np.asarray(np.abs(np.linalg.det(np.asarray(cells, dtype=np.float64))))


def moves(places: NDArray[Any], reference: NDArray[Any], periodic: Periodic) -> Array:
    """Shortest moves from ``reference`` to ``places`` [n, N, 3], both in lattice vectors, of which the mean is zero."""
    apart = np.asarray(places, dtype=np.float64) - reference
    drift = np.angle(np.exp(2j * np.pi * apart).mean(axis=-2, keepdims=True)) / (2 * np.pi)
    apart = apart - np.where(periodic, drift, 0.0)
    apart = apart - np.where(periodic, np.round(apart), 0.0)
    return np.asarray(apart - apart.mean(axis=-2, keepdims=True))


def lower_triangular(cell: NDArray[Any]) -> tuple[Array, Array]:
    """The same lattice in OpenMM's reduced form, and the turn into it.

    Of the box ``(ax, 0, 0), (bx, by, 0), (cx, cy, cz)`` the diagonal is positive, and no other component is more than
    half of that above it.

    Parameters
    ----------
    cell : [3, 3] nm, rows are lattice vectors; left-handed ones, too.

    Returns
    -------
    box : [3, 3] nm.
    turn : [3, 3], a proper rotation: positions [N, 3] of the cell are at ``positions @ turn`` in the box.
    """
    vectors = np.asarray(cell, dtype=np.float64)
    if np.linalg.det(vectors) < 0:
        vectors = -vectors  # the same lattice: no molecule may be mirrored
    q, r = np.linalg.qr(vectors.T)
    signs = np.sign(np.diag(r))
    box, turn = (r.T * signs), q * signs
    for row, column in ((2, 1), (2, 0), (1, 0)):
        # A hair off the half, so that rounding errors never choose between the two forms of a hexagonal cell.
        box[row] -= box[column] * np.round(box[row, column] / box[column, column] - 1e-9)
        half = box[column, column] / 2
        box[row, column] = np.clip(box[row, column], -half, half)
    return np.tril(box), turn
