"""The hills of a run as its report shows them: any HILLS file, PLUMED's own too."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uqbias.md.reporters import hill_variables, parse_hills

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Hills:
    """Gaussians that were added to the bias.

    Attributes
    ----------
    variables : their names, D of them.
    periods : of each variable, None where it has none.
    centre, sigma : [H, D].
    height : [H] kJ/mol.
    """

    variables: tuple[str, ...]
    periods: tuple[float | None, ...]
    centre: Array
    sigma: Array
    height: Array

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
        """Low and high of each variable: three sigma around the hills, or a period."""
        found = []
        for axis, period in enumerate(self.periods):
            reach = 3 * self.sigma[:, axis]
            low, high = (self.centre[:, axis] - reach).min(), (self.centre[:, axis] + reach).max()
            found.append((float(low), float(high)) if period is None else (-period / 2, period / 2))
        return found


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
    bounds: dict[str, float] = {}
    for line in text.splitlines():
        if not line.startswith("#!"):
            break
        match line.split()[1:]:
            case ["FIELDS", *fields]:
                names = hill_variables(fields[: fields.index("biasf") + 1])
            case ["SET", key, value] if key.startswith(("min_", "max_")):
                bounds[key] = math.copysign(math.pi, -1 if "-" in value else 1) if "pi" in value else float(value)
    periods = [
        bounds[f"max_{name}"] - bounds[f"min_{name}"] if {f"min_{name}", f"max_{name}"} <= bounds.keys() else None
        for name in names
    ]
    return Hills(tuple(names), tuple(periods), rows["centre"], rows["sigma"], rows["height"])
