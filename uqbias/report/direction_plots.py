"""Figures of adversarial directions: cos θ, error against ε, relaxation, first step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from uqbias.attacks.direction_tables import first_step, summary
from uqbias.attacks.directions import DirectionResult
from uqbias.files import atomic_path
from uqbias.report.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, RED, grid, panels, styled

COLOURS = {"adversarial": RED, "random": GREY, "judge": BLUE, "driver": GREEN}
NAMES = {
    "adversarial": "adversarial",
    "random": "random",
    "judge": "ascent of the judge",
    "driver": "ascent of the driver",
}
#: Colours of several models in one panel.
MODELS = (BLUE, ORANGE, PURPLE, BLACK)
#: An error that grows by more than this in relaxation is drawn on a logarithmic scale.
HUGE = 20.0
BINS = np.linspace(-1.0, 1.0, 31)


@styled
def direction_figure(results: Mapping[str, DirectionResult]) -> Figure:
    """The histogram of cos θ, error against ε, error under relaxation, and change in the first step against cos θ.

    Parameters
    ----------
    results : by the name of the model; a row each.
    """
    rows = len(results)
    figure, axes = panels(rows, 4, 3.3 * rows + 0.2, width=13.0)
    colours = dict(zip(results, MODELS * rows, strict=False))
    for row, (name, result) in enumerate(results.items()):
        facts = summary(result)
        cos_panel(axes[row, 0], {name: result}, colours)
        error_panel(axes[row, 1], facts)
        relaxation_panel(axes[row, 2], facts)
        first_step_panel(axes[row, 3], result, facts, colours[name])
        if rows > 1:
            axes[row, 0].set_title(name)
    if rows > 1:
        _share_limits(axes[:, 0])
        _share_limits(axes[:, 1])
    return figure


def save_direction_figure(results: Mapping[str, DirectionResult], path: str | Path) -> None:
    """Write `direction_figure` atomically; the suffix of ``path`` gives the format."""
    with atomic_path(path) as temporary:
        direction_figure(results).savefig(temporary, dpi=150)


def cos_panel(ax: Axes, results: Mapping[str, DirectionResult], colours: Mapping[str, str]) -> None:
    """Histogram of cos θ between the adversarial direction and the model's force."""
    for name, result in results.items():
        cos = result.cos_theta[np.isfinite(result.cos_theta)]
        ax.hist(cos, bins=BINS.tolist(), color=colours[name], alpha=0.75)
        mean, spread = (float(cos.mean()), float(cos.std())) if cos.size else (np.nan, np.nan)
        text = f"{mean:+.2f} ± {spread:.2f}\n{100 * float((cos > 0).mean()) if cos.size else 0:.0f} % above 0"
        ax.annotate(text, (0.97, 0.95), xycoords="axes fraction", ha="right", va="top", fontsize=9)
    ax.axvline(0.0, color=BLACK, linewidth=0.8)
    ax.set(xlabel="cos θ of adversarial direction and force", ylabel="frames", xlim=(-1, 1))
    ax.set_ylim(0.0, 1.25 * ax.get_ylim()[1])


def error_panel(ax: Axes, facts: Mapping[str, Any]) -> None:
    """Mean size of the energy error against the length of the displacement, with standard errors."""
    length = np.sqrt(np.array(facts["epsilon_A2"]))
    for kind, part in facts["energy_error_meV"].items():
        mean, error = np.array(part["mean"]), np.array(part["standard_error"])
        ax.errorbar(
            length, mean, error, marker="o", markersize=4, color=COLOURS.get(kind, BLACK), label=NAMES.get(kind, kind)
        )
    ax.set(xlabel="‖δ‖ = √ε of the molecule (Å)", ylabel="mean |energy error| (meV)", yscale="log")
    # Room for the legend, above curves that rise to the right.
    bottom, top = ax.get_ylim()
    ax.set_ylim(bottom, 30.0 * top)
    ax.legend(loc="upper left")
    grid(ax)


def relaxation_panel(ax: Axes, facts: Mapping[str, Any]) -> None:
    """Mean and median size of the energy error along the relaxation."""
    if "relaxation" not in facts:
        ax.set_axis_off()
        return
    steps, part = facts["relaxation"]["steps"], facts["relaxation"]["energy_error_meV"]
    ax.errorbar(steps, part["mean"], part["standard_error"], marker="o", markersize=4, color=PURPLE, label="mean")
    ax.plot(steps, part["median"], "s--", markersize=4, color=GREY, label="median")
    ax.set(xlabel="steps of relaxation on the model", ylabel="|energy error| (meV)")
    if max(part["mean"]) > HUGE * max(part["mean"][0], 1e-6):
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0.0)
    ax.legend(loc="best")
    grid(ax)


def first_step_panel(ax: Axes, result: DirectionResult, facts: Mapping[str, Any], colour: str) -> None:
    """Change of the energy error's size in the first step of the relaxation against cos θ."""
    if result.relaxation is None:
        ax.set_axis_off()
        return
    cos, change = first_step(result)
    # A few frames with a huge change would hide the others: they are drawn at the edge.
    limit = 2.0 * max(float(np.percentile(np.abs(change), 80)), 1e-6) if change.size else 1.0
    inside = np.abs(change) <= limit
    ax.scatter(cos[inside], change[inside], s=14, color=colour, alpha=0.6, linewidths=0)
    for sign, marker in ((1, "^"), (-1, "v")):
        beyond = ~inside & (np.sign(change) == sign)
        ax.scatter(cos[beyond], np.full(beyond.sum(), sign * limit), s=26, color=colour, marker=marker, linewidths=0)
    ax.set_ylim(-1.1 * limit, 1.6 * limit)
    ax.axhline(0.0, color=BLACK, linewidth=0.8)
    ax.axvline(0.0, color=BLACK, linewidth=0.8)
    found = facts["first_step"]
    ax.annotate(
        f"ρ = {found['spearman']:.2f}\n{100 * found['agreement']:.0f} % with one sign",
        (0.04, 0.95),
        xycoords="axes fraction",
        va="top",
        fontsize=9,
    )
    ax.set(xlabel="cos θ", ylabel="change of |energy error|\nin the first step (meV)")
    grid(ax)


def _share_limits(axes: Any) -> None:
    limits = np.array([ax.get_ylim() for ax in axes])
    for ax in axes:
        ax.set_ylim(limits[:, 0].min(), limits[:, 1].max())
