"""Free energies of double wells by every bias method, against the exact ones: error against walker-steps.

One particle (hydrogen's mass) in the double wells of Schwalbe-Koda, Tan and Gómez-Bombarelli (Nat. Commun. 12, 5104,
2021), energies in kJ/mol and lengths in nm as published, at the temperature at which the barrier is 10 kT: 79.2 K in
one dimension, 48.9 K in two. Harmonic wells (50 kJ/mol/nm²) hold it along the axes that are not part of the potential.
16 walkers begin in the deeper well and share one bias; LangevinMiddle, 20 fs (a fortieth of the potential's shortest
period), friction 2/ps, observed every 10 steps. One walker-step is one step of one walker.

Every estimate leaves out the first fifth of the run so far, and for GaMD all that precedes its production stage. The
error is the root mean square over all bins with F <= 10 kT of the difference to the exact F of the bin, after the
constant shift that makes it smallest, in kT. Where a bin holds no sample the table gives the part of the bins that do.
Methods that bias x alone are shown for F(x, y) too, but not judged: nothing takes their walkers to 10 kT along y.

    python tests/benchmarks/double_wells.py [--seeds 0 1 2] [--steps N] [--problems NAME ...] [--methods NAME ...]
        [--json PATH] [--figure PATH]
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch  # isort: skip  (before OpenMM, whose plugin for torch links its libraries)

import numpy as np
from double_well_methods import BARRIER, METHODS, PACE, averaged_bias, from_bias

from uqbias.bias.base import BiasSum
from uqbias.bias.fixed import Restraint
from uqbias.bias.gamd import GaMD
from uqbias.compile.fused import FusedEvaluator
from uqbias.files import write_text
from uqbias.free_energy.multistate import mbar
from uqbias.free_energy.reweighting import log_density
from uqbias.md.walkers import Walkers
from uqbias.molecule.topology import Topology
from uqbias.oracles.analytic import DoubleWell
from uqbias.report import style
from uqbias.units import kt
from uqbias.variables.position import Position

WALKERS, TIMESTEP_FS, FRICTION = 16, 20.0, 2.0
DISCARD, HIGHEST, GOAL = 0.2, 10.0, 0.3
#: Part of the bins that must have an estimate.
COVERED = 0.99
CHECKPOINTS = (100_000, 200_000, 500_000, 1_000_000, 2_000_000)
#: Of the unused axes, kJ/mol/nm².
CONFINEMENT = 50.0


@dataclass
class Problem:
    """A potential, the axes of its free energy, and lengths that fit it.

    ``widths``: of the bins. ``sigma``: of hills and kernels, near the fluctuation in a well. ``coupling``: of an
    extended variable, well below the width of the barrier.
    """

    name: str
    dimensions: int
    axes: str
    limits: tuple[tuple[float, float], ...]
    widths: tuple[float, ...]
    sigma: tuple[float, ...]
    coupling: float = 0.05

    @cached_property
    def well(self):
        return DoubleWell(self.dimensions, confinement=CONFINEMENT)

    @cached_property
    def temperature(self):
        return self.well.temperature(BARRIER)

    @property
    def kT(self):  # noqa: N802
        return kt(self.temperature)

    @cached_property
    def centres(self):
        """[bins, D], at multiples of the widths as those of CZAR are."""
        ranges = [
            width * np.arange(round(low / width), round(high / width) + 1)
            for (low, high), width in zip(self.limits, self.widths, strict=True)
        ]
        return np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, len(ranges))

    @cached_property
    def shape(self):
        return tuple(
            round(high / w) - round(low / w) + 1 for (low, high), w in zip(self.limits, self.widths, strict=True)
        )

    def exact(self, *, of_bins):
        at = self.centres[:, 0] if len(self.axes) == 1 else self.centres
        widths = self.widths if of_bins else 0.0
        return self.well.free_energy(at, self.temperature, axes=self.axes, widths=widths) / self.kT

    @cached_property
    def judged(self):
        return self.exact(of_bins=True) <= HIGHEST

    def bins(self, values):
        """Bin of each frame, -1 outside; ``values`` [n, D]."""
        place = np.rint(values / self.widths).astype(int)
        first = np.array([round(low / w) for (low, _), w in zip(self.limits, self.widths, strict=True)])
        place -= first
        inside = ((place >= 0) & (place < self.shape)).all(axis=1)
        flat = np.ravel_multi_index(np.where(inside, place.T, 0), self.shape)
        return np.where(inside, flat, -1)

    def error(self, F, *, of_bins=True):
        """RMSE in kT and the part of the bins that have an estimate."""
        known = self.judged & np.isfinite(F)
        if not known.any():
            return np.nan, 0.0
        difference = (F - self.exact(of_bins=of_bins))[known]
        return float(np.std(difference)), float(known.sum() / self.judged.sum())


PROBLEMS = {
    "1d": Problem("1D, F(x)", 1, "x", ((-1.6, 1.5),), (0.04,), (0.1,)),
    "2d": Problem("2D, F(x)", 2, "x", ((-1.2, 1.2),), (0.03,), (0.07,)),
    "2d-xy": Problem("2D, F(x, y)", 2, "xy", ((-1.2, 1.2), (-1.2, 1.2)), (0.05, 0.1), (0.07, 0.2)),
}


class Run:
    """Walkers of one seed under some biases, and what was observed of them."""

    def __init__(self, problem, biases, seed, runner, start=None):
        self.problem, self.parts, self.bias = problem, biases, BiasSum(biases)
        modules = {axis: Position(axis) for axis in "xy"}
        evaluator = FusedEvaluator(problem.well, self.bias, WALKERS, variables=modules, runner=runner)
        at = np.zeros((1, 1, 3))
        at[0, 0, 0] = problem.well.wells[0] if start is None else start
        self.walkers = Walkers(
            Topology((1,), ()),
            evaluator,
            at,
            temperature=problem.temperature,
            timestep_fs=TIMESTEP_FS,
            friction_per_ps=FRICTION,
            seed=seed,
        )
        self.names = evaluator.names
        self._seen = {name: [] for name in ("step", "position", "energy", "bias", "variables")}

    def advance(self, steps):
        self.walkers.run(steps, pace=PACE, observers=[self._observe])

    def _observe(self, observation):
        for name, value in (
            ("step", np.full(WALKERS, observation.step)),
            ("position", observation.positions[:, 0]),
            ("energy", observation.energy),
            ("bias", observation.bias),
            ("variables", observation.variables),
        ):
            self._seen[name].append(value)

    def frames(self, until=None):
        """The frames that count, of the first ``until`` steps."""
        end = self.walkers.step if until is None else until
        first = DISCARD * end
        for part in self.parts:
            if isinstance(part, GaMD):
                first = max(first, part.conventional_steps + part.equilibration_steps)
        rows = slice(int(np.ceil(first / PACE)) + 1, end // PACE + 1)
        return Frames(self, **{name: np.concatenate(seen[rows]) for name, seen in self._seen.items()})

    def part(self, kind):
        return next(part for part in self.parts if isinstance(part, kind))


@dataclass
class Frames:
    """[n] frames of all walkers; bias and energy in kJ/mol."""

    run: Run
    step: np.ndarray
    position: np.ndarray
    energy: np.ndarray
    bias: np.ndarray
    variables: np.ndarray
    bins: np.ndarray = field(init=False)

    def __post_init__(self):
        problem = self.run.problem
        self.bins = problem.bins(self.position[:, : len(problem.axes)])

    @property
    def boost(self):
        return self.run.part(GaMD).value(self.energy)

    def column(self, name):
        return self.variables[:, self.run.names.index(name)]

    def density(self, log_weights):
        return log_density(self.bins, len(self.run.problem.centres), log_weights)


def checkpoints(steps):
    return [n for n in CHECKPOINTS if n < steps] + [steps]


def run_method(problem, method, seed, steps, runner):
    """Error and coverage of each estimator at each checkpoint, and seconds."""
    begin = time.perf_counter()
    found = {}
    for n, name, F, of_bins in (umbrella if method.biases is None else one_run)(problem, method, seed, steps, runner):
        error, covered = problem.error(F, of_bins=of_bins)
        found.setdefault(name, []).append({"walker_steps": n, "rmse": error, "covered": covered})
    return {"seed": seed, "seconds": time.perf_counter() - begin, "estimates": found}


def one_run(problem, method, seed, steps, runner):
    run = Run(problem, method.biases(problem), seed, runner)
    for n in checkpoints(steps):
        run.advance(n // WALKERS - run.walkers.step)
        for name, estimate in method.estimators.items():
            if (F := estimate(run)) is not None:
                yield n, name, F, estimate not in (from_bias, averaged_bias)


def umbrella(problem, method, seed, steps, runner):
    """As many windows of x as walkers, one after the other, 16 walkers in each; MBAR over all of them."""
    x = problem.centres[problem.judged, 0]
    # The outermost windows lie beyond the edge: F pushes their walkers back in.
    beyond = 0.05 * np.ptp(x)
    places = np.linspace(x.min() - beyond, x.max() + beyond, WALKERS)
    kappa = problem.kT / (0.5 * (places[1] - places[0])) ** 2
    each = WALKERS * len(places) * PACE
    windows = []
    for index, place in enumerate(places):
        restraint = Restraint(at=place, kappa=kappa, variables=["x"])
        windows.append(Run(problem, [restraint], 1000 * seed + index, runner, start=place))
        windows[-1].advance(steps // each * PACE)
    for n in checkpoints(steps):
        seen = [window.frames(until=n // each * PACE) for window in windows]
        x = np.concatenate([frames.position[:, 0] for frames in seen])
        bins = np.concatenate([frames.bins for frames in seen])
        reduced = 0.5 * kappa * np.square(x - places[:, None]) / problem.kT
        log_weights = mbar(reduced, np.array([len(frames.step) for frames in seen]))[0]
        yield n, "MBAR", -log_density(bins, len(problem.centres), log_weights), True


def medians(rows, name):
    """Over seeds: (walker-steps, error, covered) at each checkpoint, and the largest error at the last one."""
    series = [row["estimates"][name] for row in rows]
    steps = [entry["walker_steps"] for entry in series[0]]
    rmse = np.array([[entry["rmse"] for entry in one] for one in series])
    covered = np.array([[entry["covered"] for entry in one] for one in series])
    return steps, np.median(rmse, axis=0), np.median(covered, axis=0), float(rmse[:, -1].max())


def report(problem, found):
    """Table of one problem; says which methods miss the goal."""
    some = next(iter(found.values()))
    steps = [entry["walker_steps"] for entry in next(iter(some[0]["estimates"].values()))]
    T = problem.temperature
    print(
        f"\n{problem.name}: {T:.1f} K, kT = {problem.kT:.4f} kJ/mol, barrier {BARRIER:g} kT; RMSE in kT over "
        f"F <= {HIGHEST:g} kT, medians over {len(some)} seed(s)"
    )
    print(f"{'':27} {'estimate':24}" + "".join(f"{n:>11.0e}" for n in steps) + "  largest  s/run")
    missed, left_out = [], []
    for name, rows in found.items():
        seconds = np.median([row["seconds"] for row in rows])
        for index, estimate in enumerate(rows[0]["estimates"]):
            _, rmse, covered, largest = medians(rows, estimate)
            cells = "".join(
                f"{error:11.3f}" if share >= COVERED else f"{error:6.2f} ({share:2.0%})"
                for error, share in zip(rmse, covered, strict=True)
            )
            print(
                f"{name if index == 0 else '':27} {estimate:24}{cells}{largest:9.3f}"
                + (f"{seconds:7.0f}" if index == 0 else "")
            )
            if index == 0 and not set(problem.axes) <= set(METHODS[name].axes):
                left_out.append(name)
            elif index == 0 and name != "unbiased" and not (largest <= GOAL and covered[-1] >= COVERED):
                missed.append(name)
    print(
        f"goal: first estimate of each method <= {GOAL:g} kT for every seed: "
        + (f"MISSED by {'; '.join(missed)}" if missed else "met")
        + (f" (not judged, bias on x alone: {'; '.join(left_out)})" if left_out else "")
    )


#: Colour and line of each method in the figure.
LINES = {
    "metadynamics": (style.BLUE, "-"),
    "well-tempered metadynamics": (style.BLUE, "--"),
    "OPES": (style.ORANGE, "-"),
    "OPES explore": (style.ORANGE, "--"),
    "umbrella sampling": (style.BLACK, "-"),
    "eABF": (style.GREEN, "-"),
    "WTM-eABF": (style.GREEN, "--"),
    "GaMD, lower": (style.RED, "-"),
    "GaMD, upper": (style.RED, "--"),
    "metadynamics + GaMD": (style.PURPLE, "-"),
    "eABF + GaMD": (style.PURPLE, "--"),
}


@style.styled
def draw(results, path):
    """Error of each method's first estimate against walker-steps, once it covers all bins; medians over seeds."""
    shown = [key for key in PROBLEMS if key in results]
    figure, axes = style.panels(1, len(shown), 3.9, sharey=True)
    for ax, key in zip(axes[0], shown, strict=True):
        for name, (colour, line) in LINES.items():
            if name in results[key]:
                rows = results[key][name]
                steps, rmse, covered, _ = medians(rows, next(iter(rows[0]["estimates"])))
                ax.plot(steps, np.where(covered >= COVERED, rmse, np.nan), line, color=colour, label=name, marker=".")
        ax.axhline(GOAL, color=style.GREY, linewidth=0.8)
        ax.text(0.99, GOAL, "goal", color=style.GREY, ha="right", va="bottom", transform=ax.get_yaxis_transform())
        ax.set(xscale="log", yscale="log", title=PROBLEMS[key].name, xlabel="walker-steps")
        style.grid(ax)
    axes[0, 0].set_ylabel("RMSE of F (kT)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=130)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=2_000_000, help="walker-steps of each run")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--runner", default="auto", help="auto, aoti, torchscript or eager")
    parser.add_argument(
        "--json", type=Path, help="write the numbers here; methods that the file has are kept or replaced"
    )
    parser.add_argument("--figure", type=Path, help="draw all that was measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = earlier(options)
    for key in options.problems:
        for name in options.methods:
            results.setdefault(key, {})[name] = [
                run_method(PROBLEMS[key], METHODS[name], seed, options.steps, options.runner) for seed in options.seeds
            ]
            estimate, entries = next(iter(results[key][name][0]["estimates"].items()))
            print(f"{key} {name}: {estimate} {entries[-1]['rmse']:.3f} kT", flush=True)
            if options.json:
                write_text(
                    options.json, json.dumps({"steps": options.steps, "seeds": options.seeds, "results": results})
                )
    for key, problem in PROBLEMS.items():
        if key in results:
            report(problem, {name: results[key][name] for name in METHODS if name in results[key]})
    if options.figure:
        draw(results, options.figure)


def earlier(options):
    """Results that the file of numbers has of the same steps and seeds."""
    if options.json is None or not options.json.is_file():
        return {}
    found = json.loads(options.json.read_text())
    same = found["steps"] == options.steps and found["seeds"] == options.seeds
    return found["results"] if same else {}


if __name__ == "__main__":
    main()
