"""Figure of the paths of adversarial attacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from uqbias.report.map_axes import Array
from uqbias.report.run_data import RunData
from uqbias.report.style import BLUE, ORANGE, SKY, WIDTH, grid, panels, spread, styled

#: What is drawn of every attack, with its axis label.
ROWS = (
    ("log_likelihood", "gain in ln L"),
    ("judge", "uncertainty (kJ/mol/nm)"),
    ("energy", "energy above\nthe start (kJ/mol)"),
)
#: Most attacks drawn one by one.
LINES = 60


@styled
def attacks_in_time(run: RunData) -> Figure | None:
    """Gain in ln L, uncertainty and energy against iteration, one column a round, at most four; None without paths."""
    shown = spread([entry for entry in run.rounds if "iteration" in entry.attacks], 4)
    if not shown:
        return None
    figure, axes = panels(len(ROWS), len(shown), 0.7 + 1.9 * len(ROWS), width=WIDTH, sharex="col", sharey="row")
    drawn: list[list[Array]] = [[] for _ in ROWS]
    for column, entry in enumerate(shown):
        iteration = entry.attacks["iteration"]
        failed = np.char.startswith(entry.attacks["status"].astype(str), "failed")
        for row, (name, _) in enumerate(ROWS):
            values = entry.attacks[name].astype(np.float64)
            values = values if name == "judge" else values - values[0]
            _ways(axes[row, column], iteration, values[:, ~failed])
            drawn[row].append(values[:, ~failed].ravel())
        axes[0, column].set_title(f"round {entry.index}" + (f", {int(failed.sum())} failed" if failed.any() else ""))
        axes[-1, column].set_xlabel("iteration")
    for row, (_, label) in enumerate(ROWS):
        axes[row, 0].set_ylabel(label)
        values = np.concatenate([part for part in drawn[row] if part.size] or [np.zeros(1)])
        if ROWS[row][0] == "judge" and (values > 0).all():
            axes[row, 0].set_yscale("log")
            axes[row, 0].set_ylim(*_most(np.log10(values), lambda limit: 10.0**limit))
        else:
            axes[row, 0].set_ylim(*_most(values))
    axes[0, 0].legend(loc="best")
    for ax in axes.flat:
        grid(ax, "y")
    return figure


def _ways(ax: Axes, iteration: Array, values: Array) -> None:
    """Some attacks one by one, and of all of them ``values`` [K, n] median and quartiles."""
    if not values.size:
        return
    thin: dict[str, Any] = {"color": SKY, "alpha": 0.35, "linewidth": 0.7, "rasterized": True, "label": "_attack"}
    ax.plot(iteration, values[:, :: max(1, values.shape[1] // LINES)], **thin)
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], axis=1)
    ax.plot(iteration, middle, color=BLUE, label="median")
    ax.plot(iteration, low, "--", color=ORANGE, linewidth=1.1, label="quartiles")
    ax.plot(iteration, high, "--", color=ORANGE, linewidth=1.1, label="_quartiles")


def _most(values: Array, back: Callable[[float], float] = float) -> tuple[float, float]:
    """Axis limits by quartiles: attacks that fall into a hole of the energy surface do not set the scale."""
    low, high = np.quantile(values, [0.25, 0.75])
    reach = 3.0 * (high - low) + 1e-6
    ends = max(float(values.min()), low - reach), min(float(values.max()), high + reach)
    margin = 0.04 * (ends[1] - ends[0]) + 1e-6
    return back(ends[0] - margin), back(ends[1] + margin)
