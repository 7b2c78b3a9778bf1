"""Figure of adversarial directions: cos θ, error against ε, error under relaxation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from uqbias.attacks.direction_tables import summary
from uqbias.attacks.directions import DirectionResult
from uqbias.report.style import BLACK, BLUE, GREEN, GREY, PURPLE, RED, grid, panels, save, styled

COLOURS = {"adversarial": RED, "random": GREY, "judge": BLUE, "driver": GREEN}


@styled
def direction_figure(results: Mapping[str, DirectionResult]) -> Figure:
    """Draw a histogram of cos θ, and the mean energy error against √ε and under relaxation; a row for each model."""
    columns = 2 + any(result.relaxation is not None for result in results.values())
    figure, axes = panels(len(results), columns, 3.3 * len(results) + 0.2)
    for (name, result), (left, middle, *rest) in zip(results.items(), axes, strict=True):
        facts, cos = summary(result), result.cosines["theta"]
        left.hist(cos[np.isfinite(cos)], np.linspace(-1, 1, 31), color=BLUE, alpha=0.75)
        left.axvline(0.0, color=BLACK, linewidth=0.8)
        left.set(xlabel="cos θ of adversarial direction and force", ylabel="frames", xlim=(-1, 1))
        left.set_title(name if len(results) > 1 else "")
        length = np.sqrt(facts["epsilon_A2"])
        for kind, part in facts["energy_error_meV"].items():
            middle.errorbar(length, part["mean"], part["standard_error"], marker="o", color=COLOURS[kind], label=kind)
        middle.set(xlabel="‖δ‖ = √ε of the molecule (Å)", ylabel="mean |energy error| (meV)", yscale="log")
        middle.legend()
        grid(middle)
        if result.relaxation is None:
            for empty in rest:
                empty.set_axis_off()
            continue
        (right,) = rest
        steps, part = facts["relaxation"]["steps"], facts["relaxation"]["energy_error_meV"]
        right.errorbar(steps, part["mean"], part["standard_error"], marker="o", color=PURPLE, label="mean")
        right.plot(steps, part["median"], "s--", color=GREY, label="median")
        right.set(xlabel="steps of relaxation on the model", ylabel="|energy error| (meV)", yscale="log")
        right.legend()
        grid(right)
    return figure


def save_direction_figure(results: Mapping[str, DirectionResult], path: str | Path) -> None:
    """Write `direction_figure` atomically; the suffix of ``path`` gives the format."""
    save(direction_figure(results), path)
