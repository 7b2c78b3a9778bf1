"""Figures that are not maps: learning curve, calibration, walkers in time, harvest, cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from uqbias.model.metrics import spearman
from uqbias.report.map_axes import Array
from uqbias.report.maps import Curve, curves, plain_log_ticks
from uqbias.report.run_data import Round, RunData, is_number, section
from uqbias.report.style import (
    BLACK,
    BLUE,
    BROWN,
    CYCLE,
    FAINT,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    WIDTH,
    grid,
    panels,
    quarter_turns,
    spread,
    styled,
)
from uqbias.units import EV_PER_ANGSTROM

#: meV/Å per kJ/mol/nm.
MEV_PER_ANGSTROM = 1000.0 / EV_PER_ANGSTROM
#: Most walkers drawn with a colour of their own.
COLOURED_WALKERS = 8


@styled
def learning_curve(run: RunData) -> Figure | None:
    """Force and energy error against the number of labels, and coverage; None before the first score."""
    panels_of = (
        ("force MAE (meV/Å)", curves(run, "force_mae", "meV_per_A")),
        ("energy MAE (meV/atom)", curves(run, "energy_mae", "meV_per_atom")),
        ("coverage (% of accessible bins)", [Curve("coverage", "", GREEN, "o-")]),
    )
    drawn = [(label, [curve for curve in every if run.learned(curve.key)[0].size]) for label, every in panels_of]
    drawn = [(label, shown) for label, shown in drawn if shown]
    if not drawn:
        return None
    figure, axes = panels(1, len(drawn), 3.3, width=min(WIDTH, 3.6 * len(drawn) + 0.4))
    for ax, (label, shown) in zip(axes[0], drawn, strict=True):
        share = shown[0].key == "coverage"
        for curve in shown:
            labels, values = run.learned(curve.key)
            values = 100.0 * values if share else values
            ax.plot(labels, values, curve.style, color=curve.colour, label=curve.label or curve.key)
            below = curve is shown[0] and len(shown) > 1
            ax.annotate(
                f"{values[-1]:.3g}",
                (labels[-1], values[-1]),
                xytext=(0, -16 if below else 7),
                textcoords="offset points",
                ha="center",
                fontsize=9,
            )
        ax.set_xticks(spread(sorted(set(run.learned(shown[0].key)[0].tolist())), 6))
        ax.set_xlabel("labelled frames")
        ax.set_ylabel(label)
        ax.set_ylim(0.0, 100.0 if share else 1.12 * ax.get_ylim()[1])
        ax.margins(x=0.08)
        grid(ax)
        if len(shown) > 1:
            ax.legend(loc="best")
    return figure


@styled
def uncertainty_against_error(run: RunData) -> Figure | None:
    """Calibrated uncertainty against true force error per test frame, first and last scored round, log axes."""
    scored = [
        entry for entry, values in run.scored("force_mae_frame") if len(entry.scores.get("judge", ())) == len(values)
    ]
    shown = scored[:1] + scored[1:][-1:]
    if not shown:
        return None
    data = [_judged(entry) for entry in shown]
    u_all, error_all = (np.concatenate(parts) for parts in zip(*data, strict=True))
    floor = max(0.3 * _smallest(error_all), 1e-3 * float(u_all.max(initial=1.0)), 1e-6)
    figure, axes = panels(1, len(shown), 4.5, width=4.6 * len(shown) + 0.4, sharex=True, sharey=True)
    for ax, entry, (u, error) in zip(axes[0], shown, data, strict=True):
        ax.set(xscale="log", yscale="log")
        at_floor = np.maximum(u, floor)
        ax.scatter(at_floor, error, s=9, color=BLUE, alpha=0.5, linewidths=0, rasterized=True, label="test frame")
        _running_median(ax, at_floor, error)
        ends = np.array([floor, max(float(u_all.max(initial=0.0)), float(error_all.max(initial=0.0)), 2 * floor)])
        ax.plot(ends, ends, "--", color=GREY, linewidth=1.0, label="error = uncertainty")
        rho, below = spearman(u, error) if len(u) > 1 else np.nan, float((error <= u).mean())
        ax.set_title(f"round {entry.index}: Spearman ρ = {rho:.2f}; {100 * below:.0f} % below the line", fontsize=10)
        ax.set_xlabel("calibrated uncertainty (meV/Å)")
        grid(ax)
    axes[0, 0].set_xlim(0.7 * max(floor, _smallest(u_all)), 1.5 * max(float(u_all.max(initial=0.0)), 2 * floor))
    axes[0, 0].set_ylim(0.5 * _smallest(error_all), 2.0 * float(error_all.max(initial=1.0)))
    for ax in axes[0]:
        plain_log_ticks(ax.xaxis, LogNorm(*ax.get_xlim()))
        plain_log_ticks(ax.yaxis, LogNorm(*ax.get_ylim()))
    axes[0, 0].set_ylabel("true force MAE of the frame (meV/Å)")
    axes[0, 0].legend(loc="lower right")
    return figure


@styled
def walkers_in_time(run: RunData) -> Figure | None:
    """CV, bias and first coordinate of each walker against time, one column a round (four at most)."""
    shown = spread([entry for entry in run.rounds if entry.observations is not None], 4)
    if not shown:
        return None
    biased = any(entry.observations is not None and np.any(entry.observations.bias) for entry in shown)
    labels = ["driver u"] + (["bias V (kJ/mol)"] if biased else [])
    if run.coordinates is not None:
        labels.append(run.coordinates.labels[0])
    rows = len(labels)
    figure, axes = panels(rows, len(shown), 0.7 + 1.95 * rows, width=WIDTH, sharex="col", sharey="row")
    timestep = float(section(run.config, "md").get("timestep_fs", 0.5)) / 1000.0
    cap = section(run.config, "guards").get("driver_cap")
    cap = run.rounds[0].training.get("driver_wall") if cap == "wall" else cap
    for column, entry in enumerate(shown):
        seen = entry.observations
        assert seen is not None
        time = seen.step * timestep
        _per_walker(axes[0, column], time, seen.driver, line=True)
        _guard_marks(axes[0, column], entry, seen.driver, seen.step, timestep)
        if is_number(cap):
            axes[0, column].axhline(cap, color=GREY, linestyle=":", linewidth=1.0)
        if biased:
            _per_walker(axes[1, column], time, seen.bias, line=True)
        points = run.visited_points(entry)
        if points is not None and run.coordinates is not None:
            _per_walker(axes[-1, column], time, points[..., 0], line=False)
            axes[-1, column].set_ylim(*run.coordinates.limits[0])
            for low, high in (piece for region in run.regions for piece in region.shaded):
                axes[-1, column].axhspan(low, high, color="#F0F0F0", zorder=0)
            if run.coordinates.periodic:
                quarter_turns(axes[-1, column].yaxis)
        axes[0, column].set_title(f"round {entry.index}")
        axes[-1, column].set_xlabel("time per walker (ps)")
        axes[-1, column].margins(x=0.02)
    for row, label in enumerate(labels):
        axes[row, 0].set_ylabel(label)
    for ax in axes.flat:
        grid(ax, "y")
    return figure


@styled
def harvest_reasons(run: RunData) -> Figure | None:
    """Stacked bars, one a round: candidates taken, and refused by reason; and the taken ones in (u, energy)."""
    harvested = [entry for entry in run.rounds if entry.harvest.get("counts")]
    if not harvested:
        return None
    counts = [Counter[str](entry.harvest["counts"]) for entry in harvested]
    totals = Counter[str]()
    for count in counts:
        totals.update(count)
    reasons = sorted(totals, key=lambda reason: (_fate(reason), -totals[reason]))
    refused = [reason for reason in reasons if _fate(reason) == 2]
    colours = {reason: BLUE if _fate(reason) == 0 else FAINT for reason in reasons}
    colours |= dict(zip(refused, (ORANGE, SKY, PURPLE, GREEN, GREY, RED, BROWN, BLACK), strict=False))
    candidates = [
        candidate
        for candidate in harvested[-1].harvest.get("candidates", [])
        if is_number(candidate.get("driver")) and is_number(candidate.get("energy"))
    ]
    figure, axes = panels(1, 2 if candidates else 1, 3.6, width=WIDTH if candidates else 6.0)
    rounds = [str(entry.index) for entry in harvested]
    bottom = np.zeros(len(harvested))
    for reason in reasons:
        heights = np.array([float(count[reason]) for count in counts])
        label = f"{reason.replace('_', ' ')} ({totals[reason]})"
        axes[0, 0].bar(rounds, heights, 0.62, bottom=bottom, color=colours.get(reason, FAINT), label=label)
        bottom += heights
    axes[0, 0].set(xlabel="round", ylabel="candidate frames", title="what became of each candidate")
    axes[0, 0].set_ylim(0.0, 1.05 * float(bottom.max()))
    axes[0, 0].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), title="all rounds")
    grid(axes[0, 0], "y")
    if candidates:
        _candidates(axes[0, 1], candidates, harvested[-1].index)
    return figure


@styled
def cost(run: RunData) -> Figure | None:
    """Wall time by phase for each round as stacked horizontal bars."""
    times = phase_times(run)
    if not times:
        return None
    phases = list(dict.fromkeys(phase for entry in times.values() for phase in entry))
    order = [phase for phase in PHASES if phase in phases] + [phase for phase in phases if phase not in PHASES]
    figure, axes = panels(1, 1, 1.5 + 0.36 * len(times), width=8.0)
    ax = axes[0, 0]
    names = [f"round {index}" for index in times]
    left = np.zeros(len(times))
    for colour, phase in zip((BLUE, ORANGE, GREEN, PURPLE, SKY, RED, GREY, BLACK) * 3, order, strict=False):
        seconds = np.array([entry.get(phase, 0.0) for entry in times.values()])
        ax.barh(names, seconds, 0.62, left=left, color=colour, label=f"{phase} ({seconds.sum():.0f} s)")
        left += seconds
    for name, total in zip(names, left, strict=True):
        ax.text(total, name, f" {total:.0f} s", va="center", fontsize=9)
    ax.invert_yaxis()
    ax.set_xlabel("wall time (s)")
    ax.margins(x=0.08)
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    grid(ax, "x")
    return figure


#: Phases of a round in the order in which they happen; others follow.
PHASES = ("md", "attack", "random", "pool", "harvest", "label", "train", "judge", "calibrate", "score")


def phase_times(run: RunData) -> dict[int, dict[str, float]]:
    """Wall seconds of each phase of each round, from the phase events of the ledger."""
    times: dict[int, dict[str, float]] = {}
    for event in run.events:
        name, seconds = event.get("phase"), event.get("wall_s")
        if event.get("event") == "phase" and isinstance(name, str) and is_number(seconds):
            name = run.proposing or name if name == "md" else name
            phases = times.setdefault(int(event.get("round", 0)), {})
            phases[name] = phases.get(name, 0.0) + seconds
    return dict(sorted(times.items()))


def _judged(entry: Round) -> tuple[Array, Array]:
    """Uncertainty and error of the test frames, both in meV/Å, finite pairs only."""
    u, error = entry.scores["judge"] * MEV_PER_ANGSTROM, entry.scores["force_mae_frame"]
    keep = np.isfinite(u) & np.isfinite(error) & (error > 0)
    return u[keep], error[keep]


def _smallest(values: Array) -> float:
    return float(values.min()) if values.size else 1.0


def _running_median(ax: Axes, u: Array, error: Array) -> None:
    """Median error in ten equal-count bins of u."""
    if len(u) < 50:
        return
    parts = np.array_split(np.argsort(u), 10)
    x, y = ([float(np.median(values[part])) for part in parts] for values in (u, error))
    ax.plot(x, y, "o-", color=ORANGE, markersize=4.5, markeredgecolor="white", label="median of ten equal groups")


def _per_walker(ax: Axes, time: Array, values: Array, *, line: bool) -> None:
    """One line or cloud of dots a walker; beyond `COLOURED_WALKERS` all are grey-blue."""
    many = values.shape[1] > COLOURED_WALKERS
    for walker in range(values.shape[1]):
        colour = BLUE if many else CYCLE[walker % len(CYCLE)]
        style: dict[str, Any] = {"linewidth": 0.7} if line else {"linestyle": "", "marker": ".", "markersize": 1.6}
        alpha = 0.25 if many else 0.85
        ax.plot(time, values[:, walker], color=colour, alpha=alpha, rasterized=True, label=f"walker {walker}", **style)


def _guard_marks(ax: Axes, entry: Round, driver: Array, steps: Array, timestep: float) -> None:
    """A cross where a guard stopped a walker."""
    marks = [
        (
            event["step"] * timestep,
            float(driver[min(int(np.searchsorted(steps, event["step"])), len(steps) - 1), walker]),
        )
        for event in entry.guard_events
        if is_number(event.get("step")) and isinstance(walker := event.get("walker"), int) and walker < driver.shape[1]
    ]
    if marks and len(steps):
        style: dict[str, Any] = {"color": BLACK, "markersize": 7, "markeredgewidth": 1.8, "zorder": 10}
        ax.plot(*np.array(marks).T, "x", label="stopped by a guard", **style)


def _fate(reason: str) -> int:
    """0 for frames taken, 1 for fit frames beyond the budget, 2 for refused ones."""
    words = reason.replace("_", " ")
    return 0 if words.startswith("taken") else 1 if words.startswith(("not taken", "not selected")) else 2


def _candidates(ax: Axes, candidates: Sequence[dict[str, Any]], index: int) -> None:
    u, energy = np.array([(c["driver"], c["energy"]) for c in candidates], dtype=np.float64).T
    taken = np.array([bool(c.get("taken")) for c in candidates])
    ax.scatter(u[~taken], energy[~taken], s=6, color="#BDBDBD", linewidths=0, rasterized=True, label="refused")
    ax.scatter(u[taken], energy[taken], s=16, color=BLUE, edgecolors="white", linewidths=0.4, label="taken", zorder=3)
    # An exploded geometry may lie thousands of kJ/mol away: the axis is that of the frames that could be taken.
    fit = np.array([_fate(str(c.get("reason", ""))) < 2 for c in candidates])
    low, high = np.percentile(energy[fit if fit.any() else slice(None)], [0.5, 99.5])
    ax.set_ylim(low - 0.1 * (high - low) - 1.0, high + 0.25 * (high - low) + 1.0)
    hidden = int(((energy < ax.get_ylim()[0]) | (energy > ax.get_ylim()[1])).sum())
    title = f"round {index}" + (f" ({hidden} outside the axes)" if hidden else "")
    ax.set(xlabel="driver u", ylabel="model energy (kJ/mol)", title=title)
    ax.yaxis.set_major_locator(MaxNLocator(6))
    ax.legend(loc="upper left")
    grid(ax)
