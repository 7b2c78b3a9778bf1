"""Which collective variable, under which bias, pushes alanine dipeptide over its barrier, and which only heats it.

One model per CV and seed, trained on the 100 start frames (φ < 0, 300 K), then one exploration of 8 walkers with equal
steps for every pair of CV and bias. Widths of the biases are in units of the spread of the CV in an unbiased run of
the same model (half its 68 % range), since each CV has a unit of its own; that run is the control, too.

Each frame (every 100 steps) goes through the campaign's physical filter and is labelled by the force field.
crossings   times that a walker enters 15° < φ < 135° with a physical frame within 150 kJ/mol of the start frames
garbage     share of frames that the filter refuses, or more than 300 kJ/mol above the start frames
T           median kinetic temperature of the second half, 300 K at the thermostat
heat        mean force-field energy of the frames that are not garbage, above the unbiased run's, kJ/mol
cost        time per walker-step, over that of the unbiased run of the same potential without a committee

    python tests/benchmarks/cv_and_bias.py [--quick] [--seeds 0 1 2] [--json PATH] [--figure PATH]

With --json an interrupted run continues.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch  # isort: skip  (before OpenMM, whose plugin for torch links its libraries)

import numpy as np

from uqbias.bias.base import BiasSum
from uqbias.bias.eabf import ExtendedABF, WellTemperedExtendedABF
from uqbias.bias.gamd import GaMD
from uqbias.bias.linear import Linear
from uqbias.bias.metad import MetaD
from uqbias.bias.opes import OPES
from uqbias.compile.fused import FusedEvaluator
from uqbias.files import write_text
from uqbias.md.guards import Guard
from uqbias.md.walkers import Walkers
from uqbias.model.fit import fit_model
from uqbias.molecule.frames import read_frames
from uqbias.molecule.measures import StiffTorsions, dihedral_angles
from uqbias.molecule.physical import PHYSICAL, PhysicalFilter
from uqbias.molecule.surface import in_box
from uqbias.molecule.topology import Topology
from uqbias.oracles.openmm import OpenMMOracle

SYSTEM = Path(__file__).parents[2] / "systems" / "alanine_dipeptide"
PHI, OMEGAS = ((4, 6, 8, 14),), ((1, 4, 6, 8), (8, 14, 16, 18))
TEMPERATURE, TIMESTEP_FS, WALKERS, PACE, LOOK = 300.0, 0.5, 8, 10, 100
CVS = {
    "latents": {"kind": "gmm", "n_components": 15},
    "pair_distances": {"kind": "gmm", "features": {"kind": "pair_distances"}, "reg_covar": 1e-2},
    "torsions": {"kind": "gmm", "features": {"kind": "torsions"}, "reg_covar": 1e-2},
    "default (torsion density)": {"kind": "kernel_density"},
    "committee energy": {"kind": "committee", "quantity": "energy"},
    "committee forces": {"kind": "committee", "quantity": "forces"},
}
#: kJ/mol above the start frames: what counts as a crossing, and what is garbage.
CROSSED, GARBAGE = 150.0, 300.0
#: Spreads of the CV above its median at which a walker is stopped, as a campaign's cap does.
CAP = 60.0


def biases(unit):
    """Name to the parts of the bias; ``unit`` is the spread of the CV."""
    shared = {"temperature": TEMPERATURE}
    # Mass: that of the published method, 0.5 dalton nm² for a CV whose spread is about 1.
    extended = {"sigma": 0.5 * unit, "mass": 0.5 / unit**2, "bin_width": 0.1 * unit, "full_samples": 100, **shared}
    hills = {"height": 1.0, "hill_sigma": 0.5 * unit, "biasfactor": 20.0, "hill_pace": 50}
    boost = {"preparation_steps": 100, "conventional_steps": 1000, "equilibration_steps": 100_000, "pace": PACE}
    return {
        "none": [Linear(pace=PACE)],
        "metadynamics": [MetaD(height=1.0, sigma=unit, biasfactor=20.0, pace=50, **shared)],
        "OPES": [OPES(barrier=60.0, sigma=unit, pace=50, **shared)],
        "eABF": [ExtendedABF(pace=PACE, **extended)],
        "WTM-eABF + GaMD": [
            WellTemperedExtendedABF(pace=PACE, **extended, **hills),
            GaMD(threshold="lower", sigma0=2.0 * 2.494, **boost, **shared),
        ],
        "linear": [Linear(relative=0.2, pace=PACE)],
    }


class Bench:
    """What all runs share."""

    def __init__(self, options):
        self.options = options
        self.topology = Topology.from_pdb(SYSTEM / "structure.pdb")
        self.start = read_frames(SYSTEM / "start.xyz")
        self.oracle = OpenMMOracle(SYSTEM / "structure.pdb")
        energies = self.start.labels()[0]
        self.start_energy = float(energies.mean())
        self.filter = PhysicalFilter(self.topology, self.start.positions)
        self.turned = StiffTorsions(OMEGAS, self.start.positions[0])

    def model(self, driver, seed):
        settings = {"driver": CVS[driver], "seed": seed, "training": {"steps": self.options.training}}
        return fit_model(self.start, self.topology, settings)[0]

    def run(self, model, parts, seed, *, cap=None, frozen=False):
        """One exploration; its row of the table. ``cap`` on the CV stops a walker."""
        bias = BiasSum(parts)
        bias.frozen = frozen
        evaluator = FusedEvaluator(model, bias, WALKERS, runner=self.options.runner)
        guard = Guard(
            self.topology,
            self.start.positions[0],
            turned=self.turned,
            driver_cap=cap,
        )
        walkers = Walkers(
            self.topology,
            evaluator,
            self.start.positions[::12],
            temperature=TEMPERATURE,
            timestep_fs=TIMESTEP_FS,
            guard=guard,
            safe_frames=self.start.positions,
            seed=seed,
        )
        frames, driver, temperatures, seconds = [], [], [], 0.0

        def look(o):
            if o.step % LOOK == 0 and o.step:
                frames.append(np.where(o.restarted[:, None, None], np.nan, o.positions))
                driver.append(np.where(o.restarted, np.nan, o.driver))
                temperatures.append(walkers.kinetic_temperatures())

        for _ in range(self.options.steps // 1000):
            begin = time.perf_counter()
            walkers.run(1000, pace=PACE, observers=[look])
            seconds += time.perf_counter() - begin
        row = self.judge(np.array(frames))
        half = len(temperatures) // 2
        return row | {
            "temperature": float(np.median(temperatures[half:])),
            "stopped": len(walkers.events),
            # Half the range of the middle 68 %: a walker that breaks takes u to 1e4 before it is stopped.
            "cv_spread": float(np.ptp(np.nanquantile(driver[len(driver) // 4 :], [0.16, 0.84])) / 2),
            "cv_median": float(np.nanmedian(driver[len(driver) // 4 :])),
            "seconds_per_walker_step": seconds / self.options.steps / WALKERS,
        }

    def judge(self, frames):
        """Crossings, garbage and energies of frames [T, W, N, 3]; NaN where a walker was stopped."""
        flat = frames.reshape(-1, *frames.shape[2:])
        there = np.isfinite(flat).all(axis=(1, 2))
        energy = np.full(len(flat), np.inf)
        for index in np.flatnonzero(there):
            energy[index] = self.oracle._evaluate(flat[index])[0] - self.start_energy
        physical = np.zeros(len(flat), dtype=bool)
        kept = np.flatnonzero(there)
        energies = energy[kept] + self.start_energy
        physical[kept] = np.array(self.filter.verdicts(flat[kept], energies, self.turned(flat[kept]))) == PHYSICAL
        garbage = ~physical | (energy > GARBAGE)
        beyond = np.zeros(len(flat), dtype=bool)
        beyond[kept] = in_box({"phi": np.degrees(dihedral_angles(flat[kept], PHI))[:, 0]}, {"phi": [15, 135]})
        crossed = (beyond & ~garbage & (energy < CROSSED)).reshape(frames.shape[:2])
        entered = crossed & ~np.concatenate([np.zeros_like(crossed[:1]), crossed[:-1]])
        return {
            "crossings": int(entered.sum()),
            "frames_beyond": int(crossed.sum()),
            "garbage": float(garbage.mean()),
            "energy": float(energy[~garbage].mean()) if (~garbage).any() else float("nan"),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1000 steps, one seed, barely trained")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cvs", nargs="+", default=list(CVS), choices=list(CVS))
    parser.add_argument("--steps", type=int, default=8000, help="of each walker")
    parser.add_argument("--training", type=int, default=4000, help="optimiser steps")
    parser.add_argument("--runner", default="auto", help="auto, aoti, torchscript or eager")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.quick:
        options.steps, options.seeds, options.training = 1000, options.seeds[:1], 100
    bench = Bench(options)
    rows = json.loads(options.json.read_text()) if options.json and options.json.is_file() else []
    done = {(row["driver"], row["bias"], row["seed"]) for row in rows}
    for seed in options.seeds:
        for driver in options.cvs:
            if all((driver, bias, seed) in done for bias in biases(1.0)):
                continue
            model = bench.model(driver, seed)
            control = next(
                (row for row in rows if (row["driver"], row["bias"], row["seed"]) == (driver, "none", seed)), None
            )
            for name in biases(1.0):
                if (driver, name, seed) in done:
                    continue
                if control is None:
                    row = bench.run(model, biases(1.0)["none"], seed, frozen=True)
                else:
                    unit = control["cv_spread"]
                    cap = control["cv_median"] + CAP * unit
                    row = bench.run(model, biases(unit)[name], seed, cap=cap)
                row = {"driver": driver, "bias": name, "seed": seed, **row}
                control = control or row
                rows.append(row)
                print(json.dumps(row), flush=True)
                if options.json:
                    write_text(options.json, json.dumps(rows))
    report(rows)
    if options.figure:
        draw(rows, options.figure)


def summary(rows):
    """(cv, bias) to the means over seeds, energies against the unbiased run of the same seed."""
    control = {(row["driver"], row["seed"]): row for row in rows if row["bias"] == "none"}
    cost = np.median([row["seconds_per_walker_step"] for row in control.values() if "committee" not in row["driver"]])
    found = {}
    for driver, bias in dict.fromkeys((row["driver"], row["bias"]) for row in rows):
        mine = [row for row in rows if (row["driver"], row["bias"]) == (driver, bias)]
        found[driver, bias] = {
            "crossings": [row["crossings"] for row in mine],
            "garbage": float(np.mean([row["garbage"] for row in mine])),
            "temperature": float(np.mean([row["temperature"] for row in mine])),
            "heat": float(np.mean([row["energy"] - control[driver, row["seed"]]["energy"] for row in mine])),
            "cost": float(np.median([row["seconds_per_walker_step"] for row in mine]) / cost),
        }
    return found


def report(rows):
    print("\nCV                         bias              crossings (seeds)   garbage      T/K  heat/(kJ/mol)   cost")
    for (driver, bias), one in summary(rows).items():
        crossings = " ".join(f"{value:3d}" for value in one["crossings"])
        print(
            f"{driver:26} {bias:16} {crossings:>18}  {one['garbage']:8.1%}  {one['temperature']:7.0f}"
            f"  {one['heat']:13.1f}  {one['cost']:5.1f}"
        )


def draw(rows, path):
    import matplotlib.pyplot as plt

    found = summary(rows)
    cvs, names = (list(dict.fromkeys(key[place] for key in found)) for place in (0, 1))
    panels = (
        (
            "crossings",
            "crossings (mean over seeds)",
            "Greens",
            lambda one: np.mean(one["crossings"]),
            "{:.0f}",
        ),
        ("garbage", "garbage (% of frames)", "Reds", lambda one: 100 * one["garbage"], "{:.0f}"),
        ("temperature", "kinetic temperature (K)", "Oranges", lambda one: one["temperature"], "{:.0f}"),
        ("heat", "potential heating (kJ/mol)", "Oranges", lambda one: one["heat"], "{:.0f}"),
    )
    figure, axes = plt.subplots(2, 2, figsize=(12, 7.6), layout="constrained")
    for panel, (_, title, colours, value, text) in zip(axes.ravel(), panels, strict=True):
        table = np.array(
            [[value(found[driver, name]) if (driver, name) in found else np.nan for name in names] for driver in cvs]
        )
        panel.imshow(table, cmap=colours, aspect="auto")
        panel.set_xticks(range(len(names)), names, rotation=20, ha="right")
        panel.set_yticks(range(len(cvs)), cvs)
        panel.set_title(title)
        middle = (np.nanmax(table) + np.nanmin(table)) / 2
        for (row, column), number in np.ndenumerate(table):
            if np.isfinite(number):
                colour = "white" if number > middle else "black"
                panel.text(column, row, text.format(number), ha="center", va="center", color=colour)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
