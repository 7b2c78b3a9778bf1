"""A sum of truncated Gaussian kernels that is kept short by merging: the density estimate of OPES."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.bias.base import Array, nearest_image
from uqbias.bias.grid import GrowingGrid


def kernel_type(dimensions: int) -> np.dtype[Any]:
    """A compressed kernel: height (no unit), centre and sigma [D] in units of the variables."""
    vector = ("f8", (dimensions,))
    return np.dtype([("height", "f8"), ("centre", *vector), ("sigma", *vector)])


class CompressedKernels:
    """Sum Σ_k h_k (exp(-r_k²/2) - exp(-c²/2)) over the kernels with r_k < c, where r_k² = Σ_d ((x_d - x_kd)/σ_kd)².

    A kernel added within the threshold of another is merged into it, and the result again with what is near to it, as
    in Invernizzi and Parrinello, J. Phys. Chem. Lett. 11, 2731, 2020, after Sodkomkham et al., Knowl.-Based Syst. 94,
    1, 2016; choice and order as in PLUMED.

    Parameters
    ----------
    periods : [D] period or None; a kernel counts by the nearest image.
    cutoff : c, where kernels end.
    threshold : kernels nearer than this, in units of the sigma of the one that is there, are merged; 0: none.
    reflect_at : [D] bound or None; kernels have mirror images beyond it.

    Attributes
    ----------
    rows : [K, 1+2D] height, centre, sigma.
    sum_at_centres : the sum of kernels, added up over all kernel centres.
    """

    def __init__(
        self,
        periods: Sequence[float | None],
        cutoff: float,
        threshold: float,
        reflect_at: Sequence[float | None],
    ) -> None:
        self.periods, self.cutoff, self.threshold = tuple(periods), cutoff, threshold
        self._bounds = [(d, bound) for d, bound in enumerate(reflect_at) if bound is not None]
        self._at_cutoff = math.exp(-0.5 * cutoff**2)
        self._centre, self._sigma = slice(1, 1 + len(periods)), slice(1 + len(periods), None)
        self.clear()

    def clear(self) -> None:
        """Forget all kernels."""
        self.rows: Array = np.empty((0, 1 + 2 * len(self.periods)))
        self.sum_at_centres = 0.0

    def records(self) -> NDArray[Any]:
        """The kernels as records of `kernel_type`."""
        records = np.empty(len(self.rows), dtype=kernel_type(len(self.periods)))
        records["height"] = self.rows[:, 0]
        records["centre"], records["sigma"] = self.rows[:, self._centre], self.rows[:, self._sigma]
        return records

    def evaluate(self, at: Array) -> Array:
        """The sum [n] at ``at`` [n, D]."""
        return np.asarray(self._values(self.rows, at).sum(axis=1), dtype=np.float64)

    def add(self, new: Array, grid: GrowingGrid) -> None:
        """Add the kernels [W, 1+2D] one after the other, and keep a grid of the sum up to date.

        Raises
        ------
        UqbiasError
            If the grid cannot grow that far; nothing is changed then.
        """
        rows = self.rows
        gone: list[Array] = []
        come: list[Array] = []
        for kernel in new:
            rows, taken, merged = self._absorb(rows, kernel)
            for one in taken:
                match = next((i for i, other in enumerate(come) if np.array_equal(other, one)), None)
                if match is None:
                    gone.append(one)
                else:
                    come.pop(match)
            come.append(merged)
        width = self.rows.shape[1]
        lost, won = np.array(gone).reshape(-1, width), np.array(come).reshape(-1, width)
        self._move_on_grid(grid, lost, won)
        self.sum_at_centres = self._new_sum(rows, lost, won)
        self.rows = rows

    def _move_on_grid(self, grid: GrowingGrid, gone: Array, new: Array) -> None:
        pieces = []
        for sign, kernels in ((-1.0, gone), (1.0, new)):
            for kernel in kernels:
                for image in self._images(kernel[None]):
                    moved = np.abs(image[0, self._centre] - kernel[self._centre])
                    # An image whose centre is further from the bound than it reaches ends beyond the bound.
                    if (moved <= 2 * self.cutoff * kernel[self._sigma]).all():
                        pieces.append((sign * kernel[0], image[0, self._centre], kernel[self._sigma]))
        heights, centres, sigmas = (np.array(column) for column in zip(*pieces, strict=True))
        grid.deposit(centres, sigmas, heights, self.cutoff, self.cutoff**2)

    def _nearest_image(self, difference: Array) -> Array:
        """Bring differences [..., D] of positions to the nearest image, in place."""
        for d, period in enumerate(self.periods):
            difference[..., d] = nearest_image(difference[..., d], period)
        return difference

    def _images(self, kernels: Array) -> Iterator[Array]:
        """The kernels [K, 1+2D] themselves, then their mirror images of one, two, three reflections."""
        for count in range(len(self._bounds) + 1):
            for chosen in itertools.combinations(self._bounds, count):
                images = kernels.copy()
                for d, bound in chosen:
                    images[:, 1 + d] = 2 * bound - images[:, 1 + d]
                yield images

    def _values(self, kernels: Array, at: Array) -> Array:
        """Value [n, K] of each of the kernels [K, 1+2D] with its images, at ``at`` [n, D]."""
        values = np.zeros((len(at), len(kernels)))
        for images in self._images(kernels):
            scaled = self._nearest_image(at[:, None] - images[:, self._centre]) / images[:, self._sigma]
            squared = np.square(scaled).sum(axis=-1)
            inside = squared < self.cutoff**2
            values += np.where(inside, images[:, 0] * (np.exp(-0.5 * squared) - self._at_cutoff), 0.0)
        return values

    def _absorb(self, rows: Array, new: Array) -> tuple[Array, list[Array], Array]:
        """Add a kernel, merged with what it is near to, and that again, and so on.

        Returns
        -------
        rows : [K', 1+2D].
        taken : which of the old ones are in it.
        merged : the new kernel as it is among them.
        """
        place = self._mergeable(rows, new, None)
        if place is None:
            return np.concatenate([rows, new[None]]), [], new
        taken = [rows[place].copy()]
        rows = rows.copy()
        rows[place] = self._merge(rows[place], new)
        while (other := self._mergeable(rows, rows[place], place)) is not None:
            taken.append(rows[other].copy())
            place, last = min(place, other), max(place, other)
            rows[place] = self._merge(rows[place], rows[last])
            rows = np.delete(rows, last, axis=0)
        return rows, taken, rows[place].copy()

    def _mergeable(self, rows: Array, one: Array, itself: int | None) -> int | None:
        """The kernel nearest to ``one`` in units of its own sigma, if within the threshold; ``itself`` is left out."""
        if not len(rows) or self.threshold == 0:
            return None
        scaled = self._nearest_image(rows[:, self._centre] - one[self._centre]) / rows[:, self._sigma]
        squared = np.square(scaled).sum(axis=1)
        if itself is not None:
            squared[itself] = np.inf
        best = int(np.argmin(squared))
        return best if squared[best] < self.threshold**2 else None

    def _merge(self, first: Array, second: Array) -> Array:
        """One kernel with the sum of the heights, the mean and the variance of both."""
        part = second[0] / (first[0] + second[0])
        apart = self._nearest_image(second[self._centre] - first[self._centre])
        centre = self._nearest_image(first[self._centre] + part * apart)
        variance = (1 - part) * first[self._sigma] ** 2 + part * second[self._sigma] ** 2 + part * (1 - part) * apart**2
        return np.array([first[0] + second[0], *centre, *np.sqrt(variance)])

    def _new_sum(self, rows: Array, gone: Array, new: Array) -> float:
        """`sum_at_centres` of the kernels ``rows``: from the old one, where few of many kernels changed.

        Terms with a kernel that is gone leave the double sum, those with a new one come.
        """

        def total(of: Array, at: Array) -> float:
            return float(self._values(of, at[:, self._centre]).sum())

        changes = len(gone) + len(new)
        if len(rows) ** 2 < 3 * len(rows) * changes + 2 * changes**2 + 100:
            return total(rows, rows)
        come = total(rows, new) + total(new, rows) - total(new, new)
        leave = total(rows, gone) + total(gone, rows) - total(new, gone) - total(gone, new) + total(gone, gone)
        return self.sum_at_centres + come - leave
