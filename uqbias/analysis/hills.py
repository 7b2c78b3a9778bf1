"""The hills of a run as its report shows them: any HILLS file, PLUMED's own too."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uqbias.md.reporters import hill_variables, parse_hills

Array = NDArray[np.float64]

#: A multiple or fraction of pi, as PLUMED writes the bounds of angles: -pi, 2*pi, pi/2.
_OF_PI = re.compile(r"([+-]?)(?:(\d*\.?\d+)\*)?pi(?:/(\d*\.?\d+))?")


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
    text = path.read_text(encoding="utf-8")
    rows = parse_hills(text, path, timestep_fs)
    if not len(rows):
        return None
    names: list[str] = []
    found: dict[str, float] = {}
    for line in text.splitlines():
        if not line.lstrip().startswith("#!"):
            continue
        match line.split()[1:]:
            case ["FIELDS", *fields]:
                names = hill_variables(fields[: fields.index("biasf") + 1])
            case ["SET", key, value] if key.startswith(("min_", "max_")):
                found[key] = _bound(value)
    pairs = [(found.get(f"min_{name}", math.nan), found.get(f"max_{name}", math.nan)) for name in names]
    bounds = tuple((low, high) if 0 < high - low < math.inf else None for low, high in pairs)
    return Hills(tuple(names), bounds, rows["centre"], rows["sigma"], rows["height"])


def _bound(text: str) -> float:
    """A number or a multiple of pi; NaN for what is neither."""
    try:
        if of_pi := _OF_PI.fullmatch(text):
            sign, times, over = of_pi.groups()
            return float(f"{sign}{times or 1}") * math.pi / float(over or 1)
        return float(text)
    except (ValueError, ZeroDivisionError):
        return math.nan
