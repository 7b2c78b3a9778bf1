"""Figure of a free energy: a curve with its error band, or a map with the map of its errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from uqbias.free_energy.result import Axis, FreeEnergy
from uqbias.report.map_axes import GREEK
from uqbias.report.style import BLUE, UNVISITED, grid, panels, quarter_turns, robust_limits, save, styled
from uqbias.units import kt

#: kT up to which a map tells free energies apart, and kT between its contour lines.
HIGHEST, STEP = 14.0, 2.0


@styled
def free_energy_figure(result: FreeEnergy, unit: str = "kJ/mol") -> Figure:
    """F with its standard error, in ``unit``."""
    return _curve(result, unit) if len(result.axes) == 1 else _maps(result, unit)


def save_figure(result: FreeEnergy, path: str | Path, unit: str = "kJ/mol") -> None:
    """Draw and write a PNG atomically."""
    save(free_energy_figure(result, unit), path)


def _curve(result: FreeEnergy, unit: str) -> Figure:
    factor, axis = result.factor(unit), result.axes[0]
    figure, axes = panels(1, 1, 3.6, width=6.0)
    ax = axes[0, 0]
    F = np.where(np.isfinite(result.values), result.values, np.nan) * factor
    error = np.nan_to_num(result.error) * factor
    ax.fill_between(axis.centres, F - error, F + error, color=BLUE, alpha=0.25, linewidth=0, label="± 1 standard error")
    ax.plot(axis.centres, F, color=BLUE, label=result.method.split(":")[0])
    ax.set(xlabel=_label(axis), ylabel=f"F ({unit})")
    ax.set_xlim(axis.low, axis.high)
    _ticks(ax, result)
    grid(ax)
    ax.legend(loc="best")
    return figure


def _maps(result: FreeEnergy, unit: str) -> Figure:
    factor, thermal = result.factor(unit), kt(result.temperature) * result.factor(unit)
    figure, axes = panels(1, 2, 4.0, width=9.6, sharex=True, sharey=True)
    x, y = result.axes
    F = np.ma.masked_invalid(result.values * factor)
    top = min(HIGHEST * thermal, float(F.max()))
    error = np.ma.masked_invalid(result.error * factor)
    shown = (
        (axes[0, 0], F, (0.0, top), "cividis", f"F ({unit})"),
        (axes[0, 1], error, (0.0, robust_limits(error.compressed())[1]), "magma_r", f"one standard error ({unit})"),
    )
    for ax, values, (low, high), cmap, label in shown:
        ax.set_facecolor(UNVISITED)
        mesh = ax.pcolormesh(x.edges, y.edges, values.T, vmin=low, vmax=high, cmap=cmap, rasterized=True)
        beyond = "max" if values.count() and float(values.max()) > high else "neither"
        bar = figure.colorbar(mesh, ax=ax, pad=0.02, fraction=0.05, extend=beyond)
        bar.set_label(label)
        ax.set_xlabel(_label(x))
        _ticks(ax, result)
    levels = np.arange(STEP * thermal, top + 1e-9, STEP * thermal)
    if len(levels):
        axes[0, 0].contour(x.centres, y.centres, F.T, levels=levels, colors="white", linewidths=0.6, alpha=0.8)
    axes[0, 0].set_ylabel(_label(y))
    axes[0, 0].set_title(f"{result.method.split(':')[0]}; a line every {STEP:g} kT")
    unknown = bool(np.ma.getmaskarray(error).any())
    axes[0, 1].set_title("standard error" + ("; grey: no frame, or not known" if unknown else ""))
    return figure


def _label(axis: Axis) -> str:
    return replace(axis, name=GREEK.get(axis.name, axis.name)).label


def _ticks(ax: Axes, result: FreeEnergy) -> None:
    """Quarter turns on axes of angles."""
    quarter_turns(
        *(line for line, axis in zip((ax.xaxis, ax.yaxis), result.axes, strict=False) if axis.period == 360.0)
    )
