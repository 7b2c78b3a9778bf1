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

#: Colour and legend of each direction.
LOOKS = {
    "adversarial": (RED, "adversarial"),
    "random": (GREY, "random"),
    "judge": (BLUE, "ascent of the judge"),
    "driver": (GREEN, "ascent of the driver"),
}
#: Colours of several models.
MODELS = (BLUE, ORANGE, PURPLE, BLACK)
#: An error that grows by more than this in relaxation is drawn on a logarithmic scale.
HUGE = 20.0
TEXT: Any = {"xycoords": "axes fraction", "va": "top", "fontsize": 9}
POINTS: Any = {"marker": "o", "markersize": 4}


@styled
def direction_figure(results: Mapping[str, DirectionResult]) -> Figure:
    """The histogram of cos θ, error against ε, error under relaxation, and change in the first step against cos θ.

    Parameters
    ----------
    results : by the name of the model; a row each.
    """
    rows = len(results)
    figure, axes = panels(rows, 4, 3.3 * rows + 0.2, width=13.0)
    for row, (name, result) in enumerate(results.items()):
        facts, colour = summary(result), MODELS[row % len(MODELS)]
        _cos_panel(axes[row, 0], result, facts["cos_theta"], colour)
        _error_panel(axes[row, 1], facts)
        if result.relaxation is None:
            axes[row, 2].set_axis_off()
            axes[row, 3].set_axis_off()
        else:
            _relaxation_panel(axes[row, 2], facts["relaxation"])
            _first_step_panel(axes[row, 3], result, facts["first_step"], colour)
        if rows > 1:
            axes[row, 0].set_title(name)
    for column in (0, 1):
        limits = np.array([ax.get_ylim() for ax in axes[:, column]])
        for ax in axes[:, column]:
            ax.set_ylim(limits[:, 0].min(), limits[:, 1].max())
    return figure


def save_direction_figure(results: Mapping[str, DirectionResult], path: str | Path) -> None:
    """Write `direction_figure` atomically; the suffix of ``path`` gives the format."""
    with atomic_path(path) as temporary:
        direction_figure(results).savefig(temporary, dpi=150)


def _cos_panel(ax: Axes, result: DirectionResult, facts: Mapping[str, float], colour: str) -> None:
    ax.hist(result.cos_theta[np.isfinite(result.cos_theta)], np.linspace(-1, 1, 31).tolist(), color=colour, alpha=0.75)
    text = f"{facts['mean']:+.2f} ± {facts['std']:.2f}\n{100 * np.nan_to_num(facts['positive']):.0f} % above 0"
    ax.annotate(text, (0.97, 0.95), ha="right", **TEXT)
    ax.axvline(0.0, color=BLACK, linewidth=0.8)
    ax.set(xlabel="cos θ of adversarial direction and force", ylabel="frames", xlim=(-1, 1))
    ax.set_ylim(0.0, 1.25 * ax.get_ylim()[1])


def _error_panel(ax: Axes, facts: Mapping[str, Any]) -> None:
    length = np.sqrt(np.array(facts["epsilon_A2"]))
    for kind, part in facts["energy_error_meV"].items():
        colour, label = LOOKS[kind]
        ax.errorbar(length, part["mean"], part["standard_error"], color=colour, label=label, **POINTS)
    ax.set(xlabel="‖δ‖ = √ε of the molecule (Å)", ylabel="mean |energy error| (meV)", yscale="log")
    # Room for the legend, above curves that rise to the right.
    bottom, top = ax.get_ylim()
    ax.set_ylim(bottom, 30.0 * top)
    ax.legend(loc="upper left")
    grid(ax)


def _relaxation_panel(ax: Axes, facts: Mapping[str, Any]) -> None:
    steps, part = facts["steps"], facts["energy_error_meV"]
    ax.errorbar(steps, part["mean"], part["standard_error"], color=PURPLE, label="mean", **POINTS)
    ax.plot(steps, part["median"], "s--", markersize=4, color=GREY, label="median")
    ax.set(xlabel="steps of relaxation on the model", ylabel="|energy error| (meV)")
    if max(part["mean"]) > HUGE * max(part["mean"][0], 1e-6):
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0.0)
    ax.legend(loc="best")
    grid(ax)


def _first_step_panel(ax: Axes, result: DirectionResult, facts: Mapping[str, float], colour: str) -> None:
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
    text = f"ρ = {facts['spearman']:.2f}\n{100 * facts['agreement']:.0f} % with one sign"
    ax.annotate(text, (0.04, 0.95), **TEXT)
    ax.set(xlabel="cos θ", ylabel="change of |energy error|\nin the first step (meV)")
    grid(ax)
