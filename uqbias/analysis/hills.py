"""The hills of a run as its report shows them: any HILLS file, PLUMED's own too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uqbias.md.plumed_files import bounds_of, read_text, stated_values
from uqbias.md.reporters import hill_variables, parse_hills

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Hills:
    """Gaussians that were added to the bias.

    Attributes
    ----------
    variables : their names, D of them.
    bounds : minimum and maximum of each variable with a period, None for one without.
    centre, sigma : [H, D].
    height : [H] kJ/mol.
    """

    variables: tuple[str, ...]
    bounds: tuple[tuple[float, float] | None, ...]
    centre: Array
    sigma: Array
    height: Array

    @property
    def periods(self) -> tuple[float | None, ...]:
        """Of each variable, None where it has none."""
        return tuple(None if bounds is None else bounds[1] - bounds[0] for bounds in self.bounds)

    def potential(self, points: Array) -> Array:
        """Bias in kJ/mol [n] at points [n, D]."""
        value = np.zeros(len(points))
        for start in range(0, len(self.height), 2048):
            part = slice(start, start + 2048)
            squared = np.zeros((len(points), len(self.height[part])))
            for axis, period in enumerate(self.periods):
                apart = points[:, axis, None] - self.centre[None, part, axis]
                if period is not None:
                    apart -= period * np.rint(apart / period)
                squared += (apart / self.sigma[None, part, axis]) ** 2
            value += np.exp(-0.5 * squared) @ self.height[part]
        return value

    def ranges(self) -> list[tuple[float, float]]:
        """Low and high of each variable: three sigma around the hills, or the bounds of a period."""
        found = []
        for axis, bounds in enumerate(self.bounds):
            reach = 3 * self.sigma[:, axis]
            low, high = (self.centre[:, axis] - reach).min(), (self.centre[:, axis] + reach).max()
            found.append((float(low), float(high)) if bounds is None else bounds)
        return found

    def wrapped(self, values: Array, axis: int) -> Array:
        """Values of one variable at their images between its bounds; as they are without a period."""
        bounds = self.bounds[axis]
        return values if bounds is None else bounds[0] + np.mod(values - bounds[0], bounds[1] - bounds[0])


def load_hills(path: Path, timestep_fs: float) -> Hills | None:
    """The hills in a file, heights as they were added to the bias; None for a file without hills.

    Raises
    ------
    UqbiasError
        If it is not a HILLS file or a line is bad; the message names the line.
    """
    text = read_text(path)
    rows = parse_hills(text, path, timestep_fs)
    if not len(rows):
        return None
    fields = next(line.split()[2:] for line in text.splitlines() if line.split()[:2] == ["#!", "FIELDS"])
    names, stated = hill_variables(fields[: fields.index("biasf") + 1]), stated_values(text)
    bounds = tuple(bounds_of(stated, name) for name in names)
    return Hills(tuple(names), bounds, rows["centre"], rows["sigma"], rows["height"])
