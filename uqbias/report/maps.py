"""Figures on the plane of two coordinates: walkers, labelled frames, errors of the model."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from scipy.stats import binned_statistic_2d

from uqbias.errors import UqbiasError
from uqbias.molecule.surface import ReferenceSurface
from uqbias.report.map_axes import Array, MapAxes, display_name
from uqbias.report.run_data import Round, RunData, section
from uqbias.report.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ON_MAP,
    ORANGE,
    PURPLE,
    RED,
    UNVISITED,
    WIDTH,
    grid,
    panels,
    quarter_turns,
    robust_limits,
    spread,
    styled,
)

#: Energy above the minimum, in kT, up to which a bin counts as accessible.
ACCESSIBLE = 10.0
#: Pale where the model is right, red where it errs; cut before the darkest red so that dark contours stay visible.
ERROR = LinearSegmentedColormap.from_list("error", ["#FFFFE5", "#FEE08B", "#FDAE61", "#F46D43", "#D7301F", "#B30000"])
VISITED = LinearSegmentedColormap.from_list("visited", ["#DDEAF5", "#9DC3E2", "#5C9ACB"])
#: Bin width of the error maps in degrees.
BIN = 15.0


@styled
def ramachandran(run: RunData) -> Figure | None:
    """Small multiples, one map a round: reference contours, walkers' density, labels before and in the round.

    Returns None while nothing is labelled or observed.
    """
    shown = spread([entry for entry in run.rounds if _has_map(run, entry)], 8)
    if run.coordinates is None or not shown:
        return None
    columns = len(shown) if len(shown) <= 5 else -(-len(shown) // 2)
    rows = -(-len(shown) // columns)
    cell = WIDTH / columns if columns > 2 else 3.2
    width = WIDTH if columns > 2 else cell * columns + 3.2
    figure, axes = panels(rows, columns, 0.65 + rows * cell, width=width, sharex=True, sharey=True)
    for ax, entry in zip(axes.flat, shown, strict=False):
        _reference(ax, run.surface)
        if entry is shown[0]:
            _basin_names(ax, run)
        _visited(ax, run, entry)
        earlier, new, rejected = label_points(run, entry.index)
        ax.scatter(*earlier.T, s=5, color="#6B6B6B", linewidths=0, zorder=3, label="labelled before")
        ax.scatter(*new.T, s=9, color=RED, linewidths=0, zorder=4, label="labelled in this round")
        ax.plot(*rejected.T, "x", color=BLACK, markersize=3.5, zorder=5, label="label rejected")
        count = f"{len(earlier)} + {len(new)}" if entry.index else f"{len(new)}"
        ax.set_title(f"round {entry.index}: {count}" + (" labels" if columns < 5 else ""))
        frame_axes(ax, run.coordinates)
    for index, ax in enumerate(axes.flat):
        ax.set_visible(index < len(shown))
        if index % columns == 0:
            ax.set_ylabel(run.coordinates.labels[1])
        if index + columns >= len(shown):
            ax.set_xlabel(run.coordinates.labels[0])
    handles: list[Any] = [
        _marker(RED, "labelled in this round"),
        _marker("#6B6B6B", "labelled before"),
        Patch(color="#9DC3E2", label="proposed by the sampler" if run.proposing else "visited by the walkers"),
    ]
    if run.surface is not None:
        handles.append(Line2D([], [], color=GREY, linewidth=0.8, label="reference F, every 2 kT to 10 kT"))
    if any(len(label_points(run, entry.index)[2]) for entry in shown):
        handles.insert(1, _marker(BLACK, "label rejected", "x", 4.0))
    if columns > 2:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), columnspacing=1.2)
    else:
        figure.legend(handles=handles, loc="outside right center", ncols=1)
    return figure


@styled
def error_maps(run: RunData) -> Figure | None:
    """Driver, judge and true force error of the test set, averaged in bins; one column a round.

    Returns None while no round is scored on a test set whose place on the map is known.
    """
    points, shown = run.test_points, spread(run.scored_on_map(), 5)
    if run.coordinates is None or points is None or not shown:
        return None
    # A kernel density counts nats, other kinds have scales of their own.
    unit = " (nats)" if section(run.config, "driver").get("kind") == "kernel_density" else ""
    quantities: list[tuple[str, str, bool, Any]] = [
        ("driver", f"driver u{unit}", False, "cividis"),
        ("judge", "judge (kJ/mol/nm)", True, "cividis"),
        ("force_mae_frame", "force MAE (meV/Å)", True, ERROR),
    ]
    quantities = [one for one in quantities if all(one[0] in entry.scores for entry in shown)]
    columns = len(shown)
    cell = min(2.6, (WIDTH - 1.2) / columns)
    size = (len(quantities), columns, 0.5 + len(quantities) * cell * 1.02, cell * columns + 1.4)
    if columns == 1:  # one row of quantities instead of one column
        size = (1, len(quantities), cell + 0.6, len(quantities) * (cell + 0.9))
    figure, axes = panels(*size[:3], width=size[3], sharex=True, sharey=True)
    axes = axes if columns > 1 else axes.T
    for row, (key, label, wants_log, cmap) in enumerate(quantities):
        binned = [bin_mean(points, entry.scores[key], run.coordinates) for entry in shown]
        low, high = robust_limits(np.stack(binned))
        logarithmic = wants_log and high > 0
        low = max(low, 1e-2 * high) if logarithmic else low
        norm = LogNorm(low, high) if logarithmic else Normalize(low, high)
        for column, (entry, values) in enumerate(zip(shown, binned, strict=True)):
            ax = axes[row, column]
            # A calibrated uncertainty may be 0, which a logarithmic scale would leave blank.
            mesh = draw_bins(ax, np.maximum(values, low) if logarithmic else values, run.coordinates, norm, cmap)
            mesh.set_label(label)
            _reference(ax, run.surface, fill=False, colour=ON_MAP if cmap is ERROR else "white")
            frame_axes(ax, run.coordinates)
            if row == 0 or columns == 1:
                ax.set_title(f"round {entry.index}")
            if row == len(quantities) - 1 or columns == 1:
                ax.set_xlabel(run.coordinates.labels[0])
            if column == 0 and (row == 0 or columns > 1):
                ax.set_ylabel(run.coordinates.labels[1])
        _colour_bar(mesh, axes[row], label, pad=0.015, aspect=18)
    return figure


@styled
def hero_figure(run: RunData) -> Figure:
    """Wide figure of a finished run: the map at the first and the last round, and the error between them.

    Raises
    ------
    UqbiasError
        If no frame is labelled yet.
    """
    if run.label_points is None or run.coordinates is None or not any(_has_map(run, e) for e in run.rounds):
        raise UqbiasError(
            f"{run.directory} holds no labelled frames to draw", "let 'uqbias run' finish its first round"
        )
    curve = bool(run.values("force_mae_meV_per_A"))
    figure = Figure(figsize=(13.0 if curve else 8.6, 3.9), layout="constrained")
    maps = figure.subplots(1, 3, width_ratios=(1.0, 1.0, 1.05)) if curve else figure.subplots(1, 2)
    points, scored = run.test_points, run.scored_on_map()
    drawn = scored if len(scored) > 1 else [entry for entry in run.rounds if _has_map(run, entry)]
    ends = [drawn[0], drawn[-1]]
    mesh = None
    if len(scored) > 1 and points is not None:
        x, y = (np.linspace(*limits, 181) for limits in run.coordinates.limits)
        smooth = [kernel_mean(points, entry.scores["force_mae_frame"], x, y, run.coordinates) for entry in ends]
        low, high = robust_limits(np.stack(smooth), 1.0, 99.0)
        norm = LogNorm(max(low, 1e-3 * high), high)
        for ax, values in zip(maps, smooth, strict=False):
            shown = np.ma.masked_invalid(values.T)
            mesh = ax.pcolormesh(x, y, shown, norm=norm, cmap=ERROR, shading="nearest", rasterized=True)
    for ax, entry in zip(maps, ends, strict=False):
        if mesh is None:
            _visited(ax, run, entry)
        _reference(ax, run.surface, fill=False, colour=BLACK)
        _basin_names(ax, run)
        labelled = np.concatenate(label_points(run, entry.index)[:2])
        ax.scatter(*labelled.T, s=14, color=BLUE, edgecolors="white", linewidths=0.5, zorder=4)
        ax.set_title(f"round {entry.index}: {len(labelled)} labels")
        ax.set_xlabel(run.coordinates.labels[0])
        frame_axes(ax, run.coordinates)
    maps[0].set_ylabel(run.coordinates.labels[1])
    if mesh is not None:
        _colour_bar(mesh, maps[:2], "force MAE (meV/Å)", pad=0.01, aspect=22)
    if curve:
        _hero_curve(maps[2], run)
    return figure


def _hero_curve(ax: Axes, run: RunData) -> None:
    for curve in reversed(curves(run, "force_mae", "meV_per_A")):
        labels, values = run.learned(curve.key)
        if len(labels):
            ax.plot(labels, values, "o-", color=curve.colour, label=curve.label)
            ax.set_xticks(spread(labels.tolist(), 6))
    ax.set_ylim(bottom=0.0)
    ax.set_xlabel("labelled frames")
    ax.set_ylabel("force MAE (meV/Å)")
    ax.set_title("error on the test set")
    grid(ax)
    if ax.lines:
        ax.legend(loc="best")


class Curve(NamedTuple):
    """Style of an error against the number of labels; ``key`` in summary.json."""

    key: str
    label: str
    colour: str
    style: str


def curves(run: RunData, error: str, unit: str) -> list[Curve]:
    """The error of the whole map and those of the regions."""
    colours = (RED, ORANGE, PURPLE, GREEN, BLACK)
    return [Curve(f"{error}_{unit}", "whole map", BLUE, "o-")] + [
        Curve(f"{error}_{region.name}_{unit}", region.text, colours[index % len(colours)], "s-")
        for index, region in enumerate(run.regions)
    ]


def label_points(run: RunData, index: int) -> tuple[Array, Array, Array]:
    """Labelled frames [n, 2] on the map: accepted ones of earlier rounds and of round ``index``, its rejected ones."""
    if run.labels is None or run.label_points is None:
        return (np.empty((0, 2)),) * 3
    points, kept, now = run.label_points, run.labels.accepted, run.labels.round == index
    return points[kept & (run.labels.round < index)], points[kept & now], points[~kept & now]


def bin_edges(coordinates: MapAxes) -> tuple[Array, Array]:
    """Edges of the error maps' bins along both axes."""
    if coordinates.periodic:
        edges = np.arange(-180.0, 180.0 + BIN / 2, BIN)
        return edges, edges
    return np.linspace(*coordinates.limits[0], 25), np.linspace(*coordinates.limits[1], 25)


def bin_mean(points: Array, values: Array, coordinates: MapAxes) -> Array:
    """Mean of ``values`` [n] in each bin [x, y]; NaN where a bin holds none."""
    finite = np.isfinite(values)
    mean = binned_statistic_2d(*points[finite].T, values[finite], "mean", bins=list(bin_edges(coordinates)))
    return np.asarray(mean.statistic)


def kernel_mean(points: Array, values: Array, x: Array, y: Array, coordinates: MapAxes) -> Array:
    """Mean of ``values`` [n] at the grid points [x, y], weighted by a Gaussian of 1/30 of the axis (12° for angles).

    NaN where no point is within about 1.5 widths.
    """
    weight = []
    for axis, ticks in enumerate((x, y)):
        span = coordinates.limits[axis][1] - coordinates.limits[axis][0]
        apart = ticks[:, None] - points[None, :, axis]
        if coordinates.periodic:
            apart = (apart + 180.0) % 360.0 - 180.0
        weight.append(np.exp(-0.5 * (apart / (span / 30.0)) ** 2))
    total, near = weight[0] @ (weight[1] * values).T, weight[0] @ weight[1].T
    return np.where(near > 0.3, total / np.maximum(near, 1e-30), np.nan)


def draw_bins(ax: Axes, values: Array, coordinates: MapAxes, norm: Normalize, cmap: Any) -> Any:
    """Coloured bins [x, y]; empty ones stay light grey."""
    ax.set_facecolor(UNVISITED)
    x, y = bin_edges(coordinates)
    return ax.pcolormesh(x, y, np.ma.masked_invalid(values.T), norm=norm, cmap=cmap, rasterized=True)


def _colour_bar(mesh: Any, axes: Any, label: str, **size: Any) -> None:
    """A colour bar beside ``axes``, with plain numbers where the colours are logarithmic."""
    bar = axes[0].figure.colorbar(mesh, ax=list(axes), extend="both", fraction=0.03, **size)
    bar.set_label(label)
    if isinstance(mesh.norm, LogNorm):
        plain_log_ticks(bar.ax.yaxis, mesh.norm)


def frame_axes(ax: Axes, coordinates: MapAxes) -> None:
    """Limits and ticks of a map, all four spines."""
    ax.set_xlim(*coordinates.limits[0])
    ax.set_ylim(*coordinates.limits[1])
    for spine in ax.spines.values():
        spine.set_visible(True)
    if coordinates.periodic:
        ax.set_aspect("equal")
        quarter_turns(ax.xaxis, ax.yaxis)
    else:
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.yaxis.set_major_locator(MaxNLocator(5))


def plain_log_ticks(axis: Any, norm: Normalize) -> None:
    """Ticks 1, 2, 5 × 10ⁿ written as plain numbers."""
    low, high = float(norm.vmin or 1e-3), float(norm.vmax or 1.0)
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = [m * 10.0**d for d in decades for m in (1, 2, 5) if low <= m * 10.0**d <= high]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _has_map(run: RunData, entry: Round) -> bool:
    labelled = run.labels is not None and bool((run.labels.round == entry.index).any())
    return labelled or entry.observations is not None


def _reference(ax: Axes, surface: ReferenceSurface | None, *, fill: bool = True, colour: str = "#9A9A9A") -> None:
    """Contours of the reference every 2 kT; the accessible area is shaded where ``fill``."""
    if surface is None:
        return
    x = y = np.concatenate([[surface.centres[-1] - 360.0], surface.centres, [surface.centres[0] + 360.0]])
    values = np.pad(surface.free_energy, 1, mode="wrap")
    values = np.where(np.isfinite(values), np.minimum(values, 4 * ACCESSIBLE), 4 * ACCESSIBLE).T
    if fill:
        ax.contourf(x, y, values, levels=[-1e9, ACCESSIBLE], colors=["#F0F0F0"], zorder=0)
    levels = np.arange(2.0, ACCESSIBLE + 1e-9, 2.0)
    ax.contour(x, y, values, levels=levels, colors=colour, linewidths=0.6, zorder=2, alpha=0.9)


def _basin_names(ax: Axes, run: RunData) -> None:
    """Names of the configured basins at the right edges of their boxes, clear of the dots inside."""
    boxes, names = section(run.score, "basins"), [*section(run.score, "coordinates")][:2]
    if len(names) < 2:
        return
    box_style = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6}
    for name, box in boxes.items():
        if any(coordinate not in box for coordinate in names):
            continue
        right = (box[names[0]][1] + 180.0) % 360.0 - 180.0
        low, high = box[names[1]]
        middle = (low + ((high - low) % 360.0) / 2.0 + 180.0) % 360.0 - 180.0
        text = display_name(run.score, name)
        ax.text(right, middle, text, ha="left", va="center", fontsize=8, bbox=box_style, zorder=5, clip_on=True)


def _visited(ax: Axes, run: RunData, entry: Round) -> None:
    """Logarithmic density of the walkers' frames in fine bins."""
    points = run.visited_points(entry)
    if points is None or run.coordinates is None:
        return
    flat = points.reshape(-1, 2)
    flat = flat[np.isfinite(flat).all(axis=1)]
    x, y = (np.linspace(*limits, 61) for limits in run.coordinates.limits)
    count, _, _ = np.histogram2d(flat[:, 0], flat[:, 1], bins=[x, y])
    if not count.any():
        return
    norm = LogNorm(1.0, max(2.0, float(count.max())))
    shown = np.ma.masked_equal(count.T, 0)
    ax.pcolormesh(x, y, shown, cmap=VISITED, norm=norm, rasterized=True, zorder=1, label="visited")


def _marker(colour: str, label: str, marker: str = "o", size: float = 4.5) -> Line2D:
    return Line2D([], [], marker=marker, linestyle="", markersize=size, color=colour, label=label)
