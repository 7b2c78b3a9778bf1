"""One look for every figure: colour-blind-safe colours, sizes that stay readable at page width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from uqbias.files import atomic_path

P = ParamSpec("P")
T = TypeVar("T")

# Okabe and Ito, 2008; the yellow is left out (too faint for lines on white), black too (on dark pages).
CYCLE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#7A7A7A", "#8C6D31")
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, _, BROWN = CYCLE
#: Ink, which turns light on a dark page, and the black that stays on coloured maps.
BLACK, ON_MAP = "#222222", "#1A1A1A"
GREY, FAINT = "#8A8A8A", "#D9D9D9"
UNVISITED = "#F4F4F4"
#: Page width in inches of every figure but the hero.
WIDTH = 10.0

RC: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=CYCLE),
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.labelcolor": "#222222",
    "ytick.labelcolor": "#222222",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "text.color": "#222222",
    "axes.labelcolor": "#222222",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.7,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "uqbias",  # the same data gives the same file
}


def styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Run ``draw`` under the common style without touching matplotlib's global settings."""

    @wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        with mpl.rc_context(RC):
            return draw(*args, **kwargs)

    return wrapper


def panels(rows: int, columns: int, height: float, *, width: float = WIDTH, **options: Any) -> tuple[Figure, Any]:
    """A figure without global state and its [rows, columns] axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def save(figure: Figure, path: str | Path, dpi: int = 150) -> None:
    """Write a figure atomically; the suffix of ``path`` gives the format."""
    with atomic_path(path) as temporary, mpl.rc_context(RC):
        figure.savefig(temporary, dpi=dpi)


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most ``most`` of ``items``, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, most).round().astype(int))]


def quarter_turns(*axes: Axis) -> None:
    """Ticks of axes on which an angle runs from -180 to 180 degrees."""
    for axis in axes:
        axis.set_ticks([-180, -90, 0, 90, 180])


def grid(axes: Axes, axis: Any = "both") -> None:
    """Faint grid lines."""
    axes.grid(True, axis=axis)


def robust_limits(values: Any, low: float = 2.0, high: float = 98.0) -> tuple[float, float]:
    """Percentiles of the finite ``values`` for a colour scale; never an empty range."""
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    if finite.size == 0:
        return 0.0, 1.0
    bottom, top = (float(value) for value in np.percentile(finite, [low, high]))
    return (bottom, top) if top > bottom else (bottom, bottom + max(abs(bottom), 1.0) * 1e-3)
