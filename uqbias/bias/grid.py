"""A function of one to three variables kept on a regular grid that grows, for a bias built of local kernels.

The grid holds values and mixed first derivatives. Between the points the function is the tensor product of cubic
Hermite interpolants, and its gradient is that interpolant's own, so that forces belong to the energy exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uqbias.errors import UqbiasError

Array = NDArray[np.float64]
Periods = Sequence[float | None]

#: Points added beyond what is needed when the grid grows in one, two, three dimensions, so that it seldom does.
MARGINS = (64, 16, 8)
#: More points than this mean that a variable has run away.
MAX_POINTS = 4_000_000
MAX_DIMENSIONS = 3


def hermite(x: Tensor, state: Mapping[str, Tensor], periods: Periods = (None,)) -> Tensor:
    """Interpolate in a compiled graph; differentiable in ``x``. Beyond the grid the edge value holds, slope 0.

    Parameters
    ----------
    x : [W, D], or [W, K, D] for K grids of a `joined` state.
    state : ``table`` [G, 2^D] values and derivatives (bit d of the column: derivative along d), G = Π shape, last
        dimension fastest; ``origin`` [D]; ``spacing`` [D]; ``shape`` [D].
    periods : [D] period of each variable, None where it has none.

    Returns
    -------
    [W], or [W, K].
    """
    table, shape = state["table"], state["shape"]
    # Rows of the 2^D corners of each walker's cell, and the 2^D weights of each corner's columns.
    rows: list[Tensor] = [torch.zeros_like(x[..., :1], dtype=torch.int64)]
    weights: list[list[Tensor]] = [[torch.ones_like(x[..., :1])]]
    for d, period in enumerate(periods):
        spacing, count = state["spacing"][..., d : d + 1], shape[..., d : d + 1]
        scaled = (x[..., d : d + 1] - state["origin"][..., d : d + 1]) / spacing
        if period is None:
            # Clamping before the conversion to integers keeps infinite x inside the table; the floor has no gradient.
            left = torch.minimum(torch.floor(scaled).clamp(min=0.0), (count - 2).to(x.dtype))
            index = torch.nan_to_num(left).to(torch.int64)
            following = index + 1
        else:
            left = torch.floor(scaled)
            index = torch.remainder(torch.nan_to_num(left).to(torch.int64), count)
            following = torch.remainder(index + 1, count)
        t = (scaled - left).clamp(0.0, 1.0)
        rest = 1.0 - t
        value = (t * t * (3.0 - 2.0 * t), t * t * (t - 1.0) * spacing)
        bases = ((1.0 - value[0], t * rest * rest * spacing), value)
        rows = [row * count + place for row in rows for place in (index, following)]
        weights = [[old * base for base in corner for old in columns] for columns in weights for corner in bases]
    total = torch.zeros_like(x[..., 0])
    for row, columns in zip(rows, weights, strict=True):
        places = row + state["first"] if "first" in state else row
        entries = table.index_select(0, places.reshape(-1)).reshape(*total.shape, -1)
        for column, weight in enumerate(columns):
            total = total + weight[..., 0] * entries[..., column]
    return total


def joined(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """States of K grids as one, for one evaluation of all by `hermite`: all are periodic, or none is."""
    state = {name: torch.stack([one[name] for one in states]) for name in ("origin", "spacing", "shape")}
    sizes = state["shape"].prod(dim=1, keepdim=True)
    tables = torch.cat([one["table"] for one in states])
    return state | {"table": tables, "first": sizes.cumsum(0) - sizes}


def fitting_width(width: float, period: float | None) -> float:
    """Width of a bin or a cell; for a periodic variable a little less than ``width``, so that it divides the period."""
    return float(width) if period is None else period / max(2, int(np.ceil(period / width - 1e-9)))


class GrowingGrid:
    """Host copy in float64 of a function on a grid, mirrored into the tensors of a bias state.

    Parameters
    ----------
    spacing : [D] distance of the points; of a periodic variable made a little smaller, so that it divides the period.
    state : dict in which the tensors ``table``, ``origin``, ``spacing`` and ``shape`` are kept. Additions change
        ``table`` in place; growth re-binds all but ``spacing``.
    periods : [D] period or None; a periodic dimension spans [-period/2, period/2) and never grows.
    ranges : [D] (low, high) that the grid covers from the beginning, or None.
    names : [D] names of the variables; the grid of a total energy begins where that is first, others at 0.

    Attributes
    ----------
    table : [G_1, ..., G_D, 2^D] float64, values and derivatives.
    origin : [D] position of the first point.

    Raises
    ------
    UqbiasError
        If there are more than three dimensions, a range is empty, or the grid would have more than four million points.
    """

    def __init__(
        self,
        spacing: Sequence[float],
        state: dict[str, Tensor],
        periods: Periods | None = None,
        ranges: Sequence[Sequence[float] | None] | None = None,
        names: Sequence[str] = (),
    ) -> None:
        d = len(spacing)
        self._far = [place for place, name in enumerate(names) if name == "energy"]
        self.periods: tuple[float | None, ...] = tuple(periods) if periods is not None else (None,) * d
        if not 1 <= d <= MAX_DIMENSIONS:
            raise UqbiasError(f"a bias on {d} variables", f"choose 1 to {MAX_DIMENSIONS}")
        if len(self.periods) != d:
            raise UqbiasError(
                f"{len(self.periods)} periods for {d} variables", "give one each, None where there is none"
            )
        fitting = [fitting_width(width, period) for width, period in zip(spacing, self.periods, strict=True)]
        self.spacing = np.array(fitting, dtype=np.float64)
        self.ranges = tuple(ranges) if ranges is not None else (None,) * d
        for span in self.ranges:
            if span is not None and not span[0] < span[1]:
                raise UqbiasError(f"a grid from {span[0]} to {span[1]}", "give a maximum above the minimum")
        self.state = state
        self._dtype = torch.float32
        self._device = torch.device("cpu")
        self.clear()

    @property
    def dimensions(self) -> int:
        """D."""
        return len(self.spacing)

    @property
    def shape(self) -> tuple[int, ...]:
        """[D] number of points."""
        return self.table.shape[:-1]

    def points(self, d: int = 0) -> Array:
        """[G_d] positions of the grid points along dimension ``d``."""
        return np.asarray(self.origin[d] + self.spacing[d] * np.arange(self.shape[d]), dtype=np.float64)

    def points_among(self, centres: Array) -> Array:
        """[G_1, ..., G_D, D] grid points between the outermost ``centres`` [n, D]; of a periodic dimension all."""
        axes = []
        for d, period in enumerate(self.periods):
            points = self.points(d)
            inside = (points >= centres[:, d].min()) & (points <= centres[:, d].max())
            axes.append(points if period is not None else points[inside])
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)

    def clear(self) -> None:
        """Back to a small grid of zeros."""
        origin, shape = np.zeros(self.dimensions), []
        for d, (period, span) in enumerate(zip(self.periods, self.ranges, strict=True)):
            if period is not None:
                origin[d] = -period / 2
                shape.append(round(period / self.spacing[d]))
            elif span is not None:
                origin[d] = span[0]
                shape.append(max(2, int(np.ceil((span[1] - span[0]) / self.spacing[d])) + 1))
            else:
                shape.append(MARGINS[self.dimensions - 1])
        self._check(float(np.prod(np.array(shape, dtype=np.float64))), f"of {shape} points")
        self.load(origin, np.zeros((*shape, 2**self.dimensions)))

    def load(self, origin: NDArray[Any], table: NDArray[Any]) -> None:
        """Replace the content; ``origin`` [D], ``table`` [G_1, ..., G_D, 2^D]."""
        self.origin = np.array(origin, dtype=np.float64).reshape(self.dimensions)
        self.table = np.array(table, dtype=np.float64)
        self._bind()

    def to(self, dtype: torch.dtype, device: torch.device | str) -> None:
        """Choose dtype and device of the tensors; they are made anew from the float64 copy."""
        self._dtype, self._device = dtype, torch.device(device)
        self._bind()

    def _views(self) -> dict[str, Tensor]:
        """The grid as `hermite` takes it, in float64 and without a copy."""
        arrays = {"table": self.table.reshape(-1, self.table.shape[-1]), "origin": self.origin, "spacing": self.spacing}
        return {name: torch.from_numpy(array) for name, array in arrays.items()} | {"shape": torch.tensor(self.shape)}

    def _bind(self) -> None:
        for name, view in self._views().items():
            dtype = self._dtype if view.is_floating_point() else view.dtype
            self.state[name] = view.to(self._device, dtype, copy=True)

    def cover(self, low: NDArray[Any], high: NDArray[Any]) -> None:
        """Grow until the grid spans ``low`` to ``high`` [D]; new points are zero, old ones keep their place.

        Raises
        ------
        UqbiasError
            If a bound is not finite, or that takes more than four million points.
        """
        lows, highs = np.atleast_1d(low).astype(float), np.atleast_1d(high).astype(float)
        if not (np.isfinite(lows).all() and np.isfinite(highs).all()):
            raise UqbiasError(f"a bias on [{lows.tolist()}, {highs.tolist()}]", "the collective variable is not finite")
        for d in self._far:
            if self.ranges[d] is None and highs[d] < self.origin[d] and not self.table.any():
                self.origin[d] = self.spacing[d] * np.floor(lows[d] / self.spacing[d])
                self._bind()
        padding, points, grows = [], 1.0, False
        for d, period in enumerate(self.periods):
            before = max(0.0, np.ceil((self.origin[d] - lows[d]) / self.spacing[d]))
            after = max(0.0, np.ceil((highs[d] - self.origin[d]) / self.spacing[d]) - (self.shape[d] - 1))
            if period is not None:
                before = after = 0.0
            margin = MARGINS[self.dimensions - 1]
            before, after = before + margin * (before > 0), after + margin * (after > 0)
            grows = grows or before + after > 0
            points *= before + after + self.shape[d]
            padding.append((before, after))
        if not grows:
            return
        self._check(points, f"from {lows.tolist()} to {highs.tolist()}")
        counts = [(int(before), int(after)) for before, after in padding]
        self.origin = self.origin - np.array([before for before, _ in counts]) * self.spacing
        self.table = np.pad(self.table, [*counts, (0, 0)])
        self._bind()

    def _check(self, points: float, where: str) -> None:
        if points > MAX_POINTS:
            raise UqbiasError(
                f"a bias {where} with grid spacing {self.spacing.round(6).tolist()} has over {MAX_POINTS} points",
                "a collective variable has run away: put a cap or a wall on it; or widen sigma",
            )

    def window(self, centre: NDArray[Any], reach: NDArray[Any]) -> list[tuple[NDArray[np.int64], Array]]:
        """Points within ``reach`` [D] of ``centre`` [D], per dimension: indices [n_d], and positions minus centre.

        Around a periodic dimension indices wrap; each point appears at most once.
        """
        window = []
        for d, period in enumerate(self.periods):
            first = int(np.ceil((centre[d] - reach[d] - self.origin[d]) / self.spacing[d]))
            last = int(np.floor((centre[d] + reach[d] - self.origin[d]) / self.spacing[d]))
            if period is None:
                first, last = max(first, 0), min(last, self.shape[d] - 1)
            elif last - first >= self.shape[d]:
                first = int(np.ceil((centre[d] - period / 2 - self.origin[d]) / self.spacing[d]))
                last = first + self.shape[d] - 1
            index = np.arange(first, last + 1)
            offset = self.origin[d] + self.spacing[d] * index - centre[d]
            window.append((index % self.shape[d] if period is not None else index, offset))
        return window

    def push(self, windows: Sequence[Sequence[tuple[NDArray[np.int64], Array]]] | None = None) -> None:
        """Copy the points of ``windows`` (all, if None) into the tensor, in place."""
        target = self.state["table"]
        flat = self.table.reshape(-1, self.table.shape[-1])
        if windows is None:
            target.copy_(torch.from_numpy(flat))
            return
        if self.dimensions == 1 and self.periods[0] is None:
            low = min(int(window[0][0][0]) for window in windows if len(window[0][0]))
            high = max(int(window[0][0][-1]) for window in windows if len(window[0][0])) + 1
            target[low:high].copy_(torch.from_numpy(flat[low:high]))
            return
        # Whole slabs of the first dimension: contiguous in memory, and few for local kernels.
        rows = np.unique(np.concatenate([window[0][0] for window in windows]))
        size = len(flat) // self.shape[0]
        for run in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1):
            if len(run):
                part = slice(int(run[0]) * size, (int(run[-1]) + 1) * size)
                target[part].copy_(torch.from_numpy(flat[part]))

    def deposit(
        self,
        centres: Array,
        sigmas: Array,
        heights: Array,
        support: float,
        end: float | None = None,
        scale: float = 1.0,
    ) -> None:
        """Add Gaussians, one after the other; the grid grows first, or raises as `cover` does with nothing changed.

        Parameters
        ----------
        centres, sigmas : [n, D] in units of the variables.
        heights : [n].
        support : distance, in units of sigma, up to which they are added.
        end : squared distance, in the same units, where they end, shifted to be zero there; None: not shifted.
        scale : factor of those that end.
        """
        self.cover((centres - support * sigmas).min(axis=0), (centres + support * sigmas).max(axis=0))
        windows = []
        for centre, sigma, height in zip(centres, sigmas, heights, strict=True):
            windows.append(self.window(centre, support * sigma))
            block, scaled = gaussian_block(windows[-1], sigma, height)
            if end is not None:
                inside = np.asarray(sum(np.square(z) for z in np.ix_(*scaled))) < end
                block[..., 0] -= height * math.exp(-0.5 * end)
                block *= scale * inside[..., None]
            self.table[np.ix_(*(index for index, _ in windows[-1]))] += block
        self.push(windows)

    def value(self, x: NDArray[Any]) -> Array:
        """Interpolated values [n] on the host in float64; ``x`` [n, D]."""
        points = torch.as_tensor(np.asarray(x, dtype=np.float64).reshape(-1, self.dimensions))
        result: Array = hermite(points, self._views(), self.periods).numpy()
        return result


def gaussian_block(
    window: Sequence[tuple[NDArray[np.int64], Array]], sigma: Array, height: float
) -> tuple[Array, list[Array]]:
    """Values and mixed derivatives of a Gaussian on its window.

    Parameters
    ----------
    window : see `GrowingGrid.window`.
    sigma : [D] in units of the variables.
    height : value at the centre.

    Returns
    -------
    block : [n_1, ..., n_D, 2^D], as a part of `GrowingGrid.table`.
    scaled : [n_d] of each dimension, distance from the centre in units of sigma.
    """
    scaled = [offset / width for (_, offset), width in zip(window, sigma, strict=True)]
    block = np.ones((*(1 for _ in scaled), 1))
    for d, (z, width) in enumerate(zip(scaled, sigma, strict=True)):
        values = np.exp(-0.5 * z * z)
        slopes = -values * z / width
        shape = [1] * (len(scaled) + 1)
        shape[d] = len(values)
        # Bit d of the column is the derivative along d: the older columns first with the value, then with the slope.
        block = np.concatenate([block * values.reshape(shape), block * slopes.reshape(shape)], axis=-1)
    return np.asarray(height * block, dtype=np.float64), scaled
