"""Lists of neighbours: tables of fixed shape, rebuilt on the host when atoms have moved, for any cell or none."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from uqbias.errors import UqbiasError, did_you_mean
from uqbias.molecule.geometry import Geometry, heights

Array = NDArray[np.float64]
#: Share by which a capacity exceeds the largest count when a table is first made, and by which it grows at least.
SPARE, GROWTH = 1.15, 1.25
#: Images of a cell along one of its vectors within reach, beyond which the cell is taken for a mistake.
MOST_IMAGES = 20
#: Widths of the blocks of a table are multiples of this, the width of the vectors that processors work on.
LANES = 16


class Pairs(NamedTuple):
    """Directed pairs of atoms of several walkers; both directions of a pair are there."""

    #: [P] walkers.
    walker: NDArray[np.int64]
    #: [P] atoms i.
    i: NDArray[np.int64]
    #: [P] their neighbours j, at ``x_j - x_i + shifts @ box``.
    j: NDArray[np.int64]
    #: [P, 3] whole numbers of lattice vectors.
    shifts: NDArray[np.int32]


#: Positions [W, N, 3] and boxes [W, 3, 3] nm (None in vacuum), periodic directions and the distance within which atoms
#: are neighbours, nm, to all pairs within that distance.
Provider = Callable[[Array, Array | None, tuple[bool, bool, bool], float], Pairs]


def pairs_by_tree(positions: Array, boxes: Array | None, periodic: tuple[bool, bool, bool], reach: float) -> Pairs:
    """A `Provider` by SciPy's k-d tree, in which the images of atoms that are within reach of the cell stand too."""
    parts = [
        _pairs_of_one(x, None if boxes is None else boxes[walker], np.array(periodic), reach)
        for walker, x in enumerate(positions)
    ]
    walker = np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts])
    i, j = (np.concatenate([part[place] for part in parts]) for place in (0, 1))
    return Pairs(walker, i, j, np.concatenate([part[2] for part in parts]))


PROVIDERS: dict[str, Provider] = {"scipy": pairs_by_tree}


def _pairs_of_one(
    x: Array, box: Array | None, periodic: NDArray[np.bool_], reach: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    if box is None:
        home, images, source, wrapped = x, x, np.arange(len(x)), np.zeros((len(x), 3), dtype=np.int32)
        shift, itself = wrapped, source
    else:
        fractional = x @ np.linalg.inv(box)
        wrapped = np.where(periodic, np.floor(fractional), 0).astype(np.int32)
        inside = fractional - wrapped
        reach_in_cells = np.where(periodic, reach / heights(torch.from_numpy(box)).numpy(), 0)
        copies = np.ceil(reach_in_cells).astype(np.int32)
        cells = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in copies), indexing="ij"), axis=-1).reshape(-1, 1, 3)
        places = inside + cells
        # An image further from the cell than the reach has no neighbour in it; a little more, for rounding.
        margin = reach_in_cells + 1e-9
        near = (((places >= -margin) & (places <= 1 + margin)) | ~periodic).all(-1)
        cell, source = np.nonzero(near)
        home, images, shift = inside @ box, places[near] @ box, cells[cell, 0] - wrapped[source]
        itself = np.where(cells[cell, 0].any(1), -1, source)
    # What is worked out for the images is not worked out again for the pairs, which are ten times as many.
    tree = cKDTree(images, compact_nodes=False, balanced_tree=False)
    pairs = cKDTree(home).sparse_distance_matrix(tree, reach, output_type="ndarray")
    i, image = pairs["i"], pairs["j"]
    other = itself[image] != i
    i, image = i[other], image[other]
    return i, source[image], shift[image] + wrapped[i]


class NeighbourList:
    """Neighbours of the atoms of W walkers, as tables that stay valid until two have moved by the skin together.

    A table has a block of slots for each element of the neighbours, as wide as any atom may need. A block that
    overflows grows by a quarter or more, and never loses a neighbour; the shape of a compiled graph's inputs then
    changes, which `grown` tells.

    Parameters
    ----------
    numbers : atomic numbers of the N atoms.
    elements : atomic numbers of the potential's elements, in the order of the blocks.
    cutoff : nm, distance within which every neighbour stands in the table.
    skin : nm, how much further the table looks.
    periodic : along which of the cell's vectors the system repeats, where it has a cell.
    provider : what finds the pairs: a name in `PROVIDERS`, or ``auto``.

    Attributes
    ----------
    capacities : widths of the blocks.
    grown : whether the last call of `geometry` changed them.
    builds : tables made so far, one a walker.

    Raises
    ------
    UqbiasError
        If cutoff or skin make no sense, an atom is of no element of the potential, or the provider is unknown.
    """

    def __init__(
        self,
        numbers: Sequence[int],
        elements: Sequence[int],
        cutoff: float,
        skin: float,
        periodic: tuple[bool, bool, bool] = (True, True, True),
        provider: str = "auto",
    ) -> None:
        if not (0 < cutoff < math.inf and 0 <= skin < math.inf):
            raise UqbiasError(f"neighbours within {cutoff} nm and a skin of {skin} nm", "give a finite cutoff above 0")
        if strangers := sorted(set(numbers) - set(elements)):
            raise UqbiasError(f"atoms of element {strangers[0]}", f"the potential knows the elements {list(elements)}")
        if provider != "auto" and provider not in PROVIDERS:
            raise UqbiasError(
                f"unknown provider of neighbours '{provider}'", did_you_mean(provider, ["auto", *PROVIDERS])
            )
        self.numbers, self.elements = tuple(numbers), tuple(elements)
        self.cutoff, self.skin, self.periodic = cutoff, skin, periodic
        self.capacities = tuple(LANES if element in self.numbers else 0 for element in self.elements)
        self.grown, self.builds = False, 0
        self._find = PROVIDERS["scipy" if provider == "auto" else provider]
        self._block = np.array([self.elements.index(number) for number in self.numbers], dtype=np.int64)
        self._given: Array | None = None
        self._cells: Array | None = None
        self._tables: Geometry | None = None
        #: Where atoms were when the tables were made, and in which cells, on the device.
        self._there: list[Tensor] | None = None
        self._kind: tuple[torch.dtype, torch.device] | None = None
        self._allocate(0)

    def geometry(self, positions: Tensor, boxes: Tensor | None = None) -> Geometry:
        """Tables for ``positions`` [W, N, 3] nm in ``boxes`` [W, 3, 3] nm or in vacuum, of their dtype and device.

        Atoms may stand at any of their images. Only walkers whose table is no longer valid get a new one; tensors that
        were returned before stay as they are. A walker whose positions are not finite keeps its table.

        Raises
        ------
        UqbiasError
            If a cell is not finite, flat, or so small that its images would fill the table.
        """
        self.grown = False
        if positions.is_cuda and self._tables is not None and self._holds(positions, boxes):
            return self._tables._replace(box=None if boxes is None else boxes.detach().contiguous())
        x, boxes_given = _on_host(positions), None if boxes is None else _on_host(boxes)
        if len(x) != len(self._at) or (boxes_given is None) != (self._given is None):
            self._allocate(len(x))
            self._given = None
        if boxes_given is not None and not np.array_equal(boxes_given, self._given):  # type: ignore[arg-type]
            # A copy: the caller may write another cell into the same tensor.
            self._given = boxes_given.copy()
            self._cells = whole_cells(self._given, self.periodic, self.cutoff + self.skin)
        finite = np.asarray(np.isfinite(x).all((1, 2)))
        if (stale := finite & self._is_stale(x)).any():
            self._rebuild(x, stale, finite)
            self._tables = None
        kind = positions.dtype, positions.device
        if self._tables is None or self._kind != kind:
            table = torch.from_numpy(self._table.copy()).to(positions.device)
            shifts = None if boxes is None else torch.from_numpy(self._shifts).to(positions)
            self._tables, self._kind = Geometry(None, table, shifts, blocks=self.capacities), kind
            self._there = None
            if boxes is None or np.array_equal(self._cells, self._cells_at):  # type: ignore[arg-type]
                known = (self._at, np.zeros((0,)) if self._given is None else self._given)
                self._there = [torch.from_numpy(array.copy()).to(positions.device) for array in known]
        return self._tables._replace(box=None if boxes is None else boxes.detach().to(positions).contiguous())

    def _holds(self, positions: Tensor, boxes: Tensor | None) -> bool:
        """Whether all tables hold, in the cells that they were made in: as `_is_stale`, where the positions are."""
        if self._there is None or self._kind != (positions.dtype, positions.device):
            return False
        at, cells = self._there
        if at.shape != positions.shape or (boxes is not None and not torch.equal(boxes.to(cells), cells)):
            return False
        moves = (positions.to(at) - at).square().sum(-1).sqrt().topk(min(2, at.shape[1])).values.sum(-1)
        return bool((self.cutoff + self.skin - moves >= self.cutoff).all())

    def state(self) -> dict[str, NDArray[Any]]:
        """What the tables were made from, so that a run which goes on with it has the same numbers to the last bit."""
        cells = {} if self._given is None else {"cells": self._cells_at.copy()}
        return {"at": self._at.copy(), "capacities": np.array(self.capacities), **cells}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Make the tables of a `state` again."""
        self.capacities = tuple(int(width) for width in state["capacities"])
        self._allocate(0)
        cells = state.get("cells")
        self.geometry(torch.from_numpy(state["at"]), None if cells is None else torch.from_numpy(cells))

    def _allocate(self, n_walkers: int) -> None:
        """Begin anew, with the capacities that there are."""
        n_atoms = len(self.numbers)
        self._at = np.full((n_walkers, n_atoms, 3), np.nan)
        self._cells_at = np.full((n_walkers, 3, 3), np.nan)
        self._table = np.full((n_walkers, n_atoms, sum(self.capacities)), n_atoms, dtype=np.int64)
        self._shifts = np.zeros((*self._table.shape, 3), dtype=np.int32)
        self._tables, self._there = None, None

    def _is_stale(self, x: Array) -> NDArray[np.bool_]:
        """[W] whether a pair that is not in the table of a walker may be within the cutoff."""
        stretch: Any = 1.0
        moved = x - self._at
        if self._given is not None and not np.array_equal(self._cells, self._cells_at):  # type: ignore[arg-type]
            # Atoms that keep their place in a cell which is deformed by F approach by its smallest stretch at most.
            known = np.isfinite(self._cells_at).all((1, 2), keepdims=True)
            deformed = np.linalg.solve(np.where(known, self._cells_at, np.eye(3)), self._cells)  # type: ignore[arg-type]
            stretch, moved = np.linalg.svd(deformed, compute_uv=False)[..., -1], x - self._at @ deformed
        # No two atoms approach by more than the two largest moves.
        moves = np.sort(np.sqrt(np.square(moved).sum(-1)), axis=-1)[..., -2:].sum(-1)
        # A comparison with NaN is false: a walker without a table is stale.
        valid: NDArray[np.bool_] = stretch * (self.cutoff + self.skin) - moves >= self.cutoff
        return ~valid

    def _rebuild(self, x: Array, stale: NDArray[np.bool_], finite: NDArray[np.bool_]) -> None:
        """New tables of the walkers that are stale, or of all where a block is too narrow."""
        cells = None if self._given is None or self._cells is None else self._cells[stale]
        walkers = np.flatnonzero(stale)
        pairs = self._find(x[stale], cells, self.periodic, self.cutoff + self.skin)
        n_atoms, n_blocks = len(self.numbers), len(self.elements)
        group = (pairs.walker * n_atoms + pairs.i) * n_blocks + self._block[pairs.j]
        counts = np.bincount(group, minlength=len(walkers) * n_atoms * n_blocks)
        largest = counts.reshape(-1, n_blocks).max(0)
        if (largest > self.capacities).any():
            self.capacities = tuple(
                _wider(width, int(most)) for width, most in zip(self.capacities, largest, strict=True)
            )
            self._allocate(len(x))
            self.grown = True
            return self._rebuild(x, finite, finite)
        # In as few bytes as there can be: NumPy sorts small numbers much faster.
        order = np.argsort(group.astype(np.min_scalar_type(len(counts))), kind="stable")
        rank = np.arange(len(group)) - (np.cumsum(counts) - counts)[group[order]]
        first = np.concatenate([[0], np.cumsum(self.capacities)])
        walker, i, j = walkers[pairs.walker[order]], pairs.i[order], pairs.j[order]
        slot = first[self._block[j]] + rank
        self._table[walkers], self._shifts[walkers] = n_atoms, 0
        self._table[walker, i, slot] = j
        self._shifts[walker, i, slot] = pairs.shifts[order]
        self._at[walkers] = x[walkers]
        if cells is not None:
            self._cells_at[walkers] = cells
        self.builds += len(walkers)
        return None


def whole_cells(boxes: Array, periodic: tuple[bool, bool, bool], reach: float) -> Array:
    """Cells [W, 3, 3] nm of which a vector that is zero, where nothing repeats, is put upright on the others.

    Raises
    ------
    UqbiasError
        If a cell is not finite, flat, or would need more than `MOST_IMAGES` of itself within ``reach`` nm.
    """
    from ase.geometry import complete_cell

    if not np.isfinite(boxes).all():
        raise UqbiasError("a cell that is not of finite numbers", "give three vectors in nm")
    vanish = np.asarray((np.abs(boxes) < 1e-12).all(-1))
    if (vanish & np.array(periodic)).any():
        raise UqbiasError("a periodic direction without a vector of the cell", "give the vector, or no period there")
    cells = np.array([complete_cell(box) if gone.any() else box for box, gone in zip(boxes, vanish, strict=True)])
    smallest = float(np.nan_to_num(heights(torch.from_numpy(cells)).numpy()[:, list(periodic)]).min(initial=np.inf))
    if smallest * MOST_IMAGES < reach:
        raise UqbiasError(
            f"a cell {smallest:.3g} nm high, where neighbours are looked for within {reach:.3g} nm",
            "give a cell whose vectors span a volume, in nm",
        )
    return cells


def _wider(width: int, needed: int) -> int:
    """Capacity for ``needed`` neighbours, with room to spare and no less than before; a multiple of `LANES`."""
    wanted = max(width, SPARE * needed, GROWTH * width if needed > width else 0)
    return LANES * math.ceil(wanted / LANES)


def _on_host(tensor: Tensor) -> Array:
    array: Array = tensor.detach().cpu().double().numpy()
    return array
