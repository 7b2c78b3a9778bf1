"""A function of one variable kept on an equidistant grid that grows, for a bias built of local kernels.

The grid holds values and derivatives. Between the points the function is the cubic Hermite interpolant, and its
derivative is that interpolant's own, so that forces belong to the energy exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uqbias.errors import UqbiasError

Array = NDArray[np.float64]

#: Points added beyond what is needed when the grid grows, so that it seldom does.
MARGIN = 64
#: More points than this mean that the variable has run away.
MAX_POINTS = 1_000_000


def hermite(x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """Interpolate in a compiled graph; differentiable in ``x``. Beyond the grid the edge value holds, slope 0.

    Parameters
    ----------
    x : [W].
    state : ``table`` [G, 2] values and derivatives, ``origin`` [1], ``spacing`` [1], ``points`` [1] = G.

    Returns
    -------
    [W].
    """
    table, spacing = state["table"], state["spacing"]
    scaled = (x - state["origin"]) / spacing
    last = (state["points"] - 2).to(x.dtype)
    # Clamping before the conversion to integers keeps infinite x inside the table; the floor has no gradient.
    left = torch.minimum(torch.floor(scaled).clamp(min=0.0), last)
    index = torch.nan_to_num(left).to(torch.int64)
    t = (scaled - left).clamp(0.0, 1.0)
    first, second = table.index_select(0, index), table.index_select(0, index + 1)
    rise = second[:, 0] - first[:, 0]
    slope0, slope1 = first[:, 1] * spacing, second[:, 1] * spacing
    return first[:, 0] + t * (slope0 + t * (3 * rise - 2 * slope0 - slope1 + t * (slope0 + slope1 - 2 * rise)))


class GrowingGrid:
    """Host copy in float64 of a function on a grid, mirrored into the tensors of a bias state.

    Parameters
    ----------
    spacing : distance of the points.
    state : dict in which the tensors ``table``, ``origin``, ``spacing`` and ``points`` are kept. Additions change
        ``table`` in place; growth re-binds ``table``, ``origin`` and ``points``.

    Attributes
    ----------
    table : [G, 2] float64, values and derivatives.
    origin : position of the first point.
    """

    def __init__(self, spacing: float, state: dict[str, Tensor]) -> None:
        self.spacing = float(spacing)
        self.state = state
        self._dtype = torch.float32
        self._device = torch.device("cpu")
        self.clear()

    @property
    def points(self) -> Array:
        """[G] positions of the grid points."""
        return np.asarray(self.origin + self.spacing * np.arange(len(self.table)), dtype=np.float64)

    def clear(self) -> None:
        """Back to a short grid of zeros."""
        self.load(0.0, np.zeros((MARGIN, 2)))

    def load(self, origin: float, table: NDArray[Any]) -> None:
        """Replace the content."""
        self.origin = float(origin)
        self.table = np.array(table, dtype=np.float64)
        self._bind()

    def to(self, dtype: torch.dtype, device: torch.device | str) -> None:
        """Choose dtype and device of the tensors; they are made anew from the float64 copy."""
        self._dtype, self._device = dtype, torch.device(device)
        self._bind()

    def _bind(self) -> None:
        values = (("table", self.table), ("origin", [self.origin]), ("spacing", [self.spacing]))
        for name, value in values:
            self.state[name] = torch.tensor(value, dtype=self._dtype, device=self._device)
        self.state["points"] = torch.tensor([len(self.table)], dtype=torch.int64, device=self._device)

    def cover(self, low: float, high: float) -> None:
        """Grow until the grid spans ``low`` to ``high``; new points are zero, old ones keep their place.

        Raises
        ------
        UqbiasError
            If that takes more than a million points.
        """
        before = max(0, int(np.ceil((self.origin - low) / self.spacing)))
        after = max(0, int(np.ceil((high - self.origin) / self.spacing)) - (len(self.table) - 1))
        if not before and not after:
            return
        if before + after + len(self.table) > MAX_POINTS:
            raise UqbiasError(
                f"a bias on [{low:.6g}, {high:.6g}] with grid spacing {self.spacing:.3g} takes more than {MAX_POINTS} "
                "points",
                "the collective variable has run away: put a cap on it, or widen sigma",
            )
        before += MARGIN if before else 0
        after += MARGIN if after else 0
        self.origin -= before * self.spacing
        self.table = np.concatenate([np.zeros((before, 2)), self.table, np.zeros((after, 2))])
        self._bind()

    def add(self, kernel: tuple[Array, Array], start: int) -> None:
        """Add values and derivatives [n] at the points from ``start`` on, on the host only; see `push`."""
        values, derivatives = kernel
        block = self.table[start : start + len(values)]
        block[:, 0] += values
        block[:, 1] += derivatives

    def push(self, start: int, stop: int) -> None:
        """Copy the points ``start`` to ``stop`` into the tensor, in place."""
        self.state["table"][start:stop].copy_(torch.from_numpy(self.table[start:stop]))

    def value(self, x: NDArray[Any]) -> Array:
        """Interpolated values on the host in float64; ``x`` [n]."""
        state = {
            "table": torch.from_numpy(self.table),
            "origin": torch.tensor([self.origin], dtype=torch.float64),
            "spacing": torch.tensor([self.spacing], dtype=torch.float64),
            "points": torch.tensor([len(self.table)]),
        }
        result: Array = hermite(torch.as_tensor(x, dtype=torch.float64), state).numpy()
        return result
