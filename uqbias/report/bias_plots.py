"""Figure of the hills of a run, and of where they took the walkers."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from uqbias.report.run_data import Round, RunData
from uqbias.report.style import CYCLE, grid, panels, spread, styled
from uqbias.runs.hills import Array, Hills

#: Names of the driver in HILLS files of ours and of PLUMED inputs.
DRIVER = ("driver", "u")
POINTS_1D, POINTS_2D, BINS_1D, BINS_2D = 400, 80, 40, 40
HEIGHT = 3.3


@styled
def final_bias(run: RunData) -> Figure | None:
    """Sum of hills over each variable, or pair of them, and what was visited; None without such hills.

    On one variable every group of walkers is a line, in the colour of its round; on two the last round is a map, of the
    mean over its groups. More are not drawn.
    """
    shown = spread([entry for entry in run.rounds if entry.hills], len(CYCLE))
    drawn = dict.fromkeys(hills.variables for entry in shown for hills in entry.hills if len(hills.variables) in (1, 2))
    if not drawn:
        return None
    figure, axes = panels(len(drawn), 2, HEIGHT * len(drawn))
    for row, variables in zip(axes, drawn, strict=True):
        rounds = {colour: entry for colour, entry in zip(CYCLE, shown, strict=False) if _on(entry, variables)}
        if len(variables) == 1:
            _lines(row, rounds, variables)
        else:
            _maps(row, [*rounds.values()][-1], variables)
    return figure


def _lines(row: list[Axes], rounds: dict[str, Round], variables: tuple[str, ...]) -> None:
    (name,) = variables
    every = [hills for entry in rounds.values() for hills in _on(entry, variables)]
    ((low, high),) = _limits(every)
    points = np.linspace(low, high, POINTS_1D)
    for colour, entry in rounds.items():
        for group, hills in enumerate(_on(entry, variables)):
            label = ("_" if group else "") + f"round {entry.index}"
            row[0].plot(points, hills.potential(points[:, None]), color=colour, label=label)
        values = _visited(entry, name)
        if values is not None:
            edges = np.linspace(low, high, BINS_1D + 1).tolist()
            good = every[0].wrapped(values[np.isfinite(values)], 0)
            style: dict[str, Any] = {"histtype": "step", "density": True, "linewidth": 1.4, "color": colour}
            row[1].hist(good, bins=edges, label=f"round {entry.index}", **style)
    label = _label(name, every[0].periods[0])
    row[0].set(
        xlabel=label,
        ylabel=f"bias V({'u' if name in DRIVER else name}) at the end (kJ/mol)",
        title="bias that was built",
    )
    row[1].set(xlabel=label, ylabel="density of visited frames", title="where it took the walkers")
    row[0].legend(loc="best")
    for ax in row:
        grid(ax)


def _maps(row: list[Axes], entry: Round, variables: tuple[str, ...]) -> None:
    """The frames are those of all groups, so the bias is the mean of theirs: each group has its own."""
    every = _on(entry, variables)
    (x_low, x_high), (y_low, y_high) = limits = _limits(every)
    x, y = np.linspace(x_low, x_high, POINTS_2D), np.linspace(y_low, y_high, POINTS_2D)
    mesh = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1).reshape(-1, 2)
    mean = np.mean([hills.potential(mesh) for hills in every], axis=0).reshape(len(x), len(y))
    figure = row[0].figure
    image = row[0].pcolormesh(x, y, mean.T, cmap="viridis", rasterized=True, label="bias")
    figure.colorbar(image, ax=row[0], label="V (kJ/mol)")
    x_seen, y_seen = (_visited(entry, name) for name in variables)
    if x_seen is not None and y_seen is not None:
        good = np.isfinite(x_seen) & np.isfinite(y_seen)
        x_seen, y_seen = every[0].wrapped(x_seen[good], 0), every[0].wrapped(y_seen[good], 1)
        counts, x_edges, y_edges = np.histogram2d(x_seen, y_seen, bins=BINS_2D, range=limits)
        shown = np.where(counts > 0, counts, np.nan)
        image = row[1].pcolormesh(x_edges, y_edges, shown.T, cmap="viridis_r", rasterized=True, label="visited")
        figure.colorbar(image, ax=row[1], label="visited frames")
    built = "bias that was built" if len(every) == 1 else f"mean bias of {len(every)} groups"
    for ax, title in zip(row, (built, "where it took the walkers"), strict=True):
        x_label, y_label = (_label(*pair) for pair in zip(variables, every[0].periods, strict=True))
        ax.set(xlabel=x_label, ylabel=y_label, title=f"{title}, round {entry.index}")


def _limits(every: list[Hills]) -> list[tuple[float, float]]:
    """Low and high of each variable that hold all the hills."""
    each = zip(*(hills.ranges() for hills in every), strict=True)
    return [(min(low for low, _ in limits), max(high for _, high in limits)) for limits in each]


def _on(entry: Round, variables: tuple[str, ...]) -> list[Hills]:
    return [hills for hills in entry.hills if hills.variables == variables]


def _visited(entry: Round, name: str) -> Array | None:
    """Values of a variable at all observations of the round, flat."""
    seen = entry.observations
    if seen is None:
        return None
    if name in DRIVER:
        return seen.driver.ravel()
    return seen.variables[name].ravel() if name in seen.variables else None


def _label(name: str, period: float | None) -> str:
    return "driver u" if name in DRIVER else name + (" (rad)" if period else "")
