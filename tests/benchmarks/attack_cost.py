"""Wall time of adversarial attacks on alanine dipeptide: 500 attacks of 100 iterations each, on one thread.

Each row is a judge of its own, on a potential trained for a short time (its quality does not matter here). The columns:
first     s before the first iteration of the first run: tracing and compiling the graph
load      s before the first iteration of a later run: tracing, and reading the machine code from the cache
ascent    s of all iterations of all attacks; early stop is off
rate      attack-iterations per second of the ascent
u, E      median of u over the attacks relative to that of their start frames, and of E - E_start in kJ/mol

    python tests/benchmarks/attack_cost.py [--attacks 500] [--iterations 100] [--judges gmm ...] [--batch 32]
        [--space cartesian] [--json PATH]

The goal for the default judge: load and ascent in 60 s on two cores.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from uqbias.attacks import AttackOptions, attack
from uqbias.files import write_text
from uqbias.model.fit import fit_model
from uqbias.model.inference import evaluate_frames
from uqbias.molecule.frames import read_frames
from uqbias.molecule.topology import Topology

SYSTEM = Path(__file__).parents[2] / "systems" / "alanine_dipeptide"
JUDGES = {
    "gmm": {"kind": "gmm"},
    "committee energy": {"kind": "committee", "quantity": "energy"},
    "committee forces": {"kind": "committee", "quantity": "forces"},
}


def measure(model, positions, options, cache):
    """One row of the table."""
    times = {}
    for name, iterations in (("first", 1), ("load", options.iterations)):
        called, begun = time.perf_counter(), []
        chosen = AttackOptions(**{**vars(options), "iterations": iterations})
        found = attack(
            model, positions, chosen, cache_dir=cache, advance=lambda *_, at=begun: at.append(time.perf_counter())
        )
        # The first call comes after the first evaluation of a batch, which is counted with the setup.
        times[name] = begun[0] - called
        times["ascent"] = time.perf_counter() - begun[0]
    start = evaluate_frames(model, positions)
    return times | {
        "rate": float(found.iterations.sum() / times["ascent"]),
        "driver": float(np.median(found.judge) / np.median(start.judge)),
        "E": float(np.median(found.energy - start.energy)),
        "failed": int(found.failed.sum()),
        "runner": found.runner,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attacks", type=int, default=500)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--batch", type=int, default=AttackOptions().batch)
    parser.add_argument("--space", default="cartesian")
    parser.add_argument("--judges", nargs="+", choices=JUDGES, default=list(JUDGES))
    parser.add_argument("--training", type=int, default=500, help="optimiser steps of each model")
    parser.add_argument("--runner", default="aoti")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    start = read_frames(SYSTEM / "start.xyz")
    topology = Topology.from_pdb(SYSTEM / "structure.pdb")
    positions = start.positions[np.arange(given.attacks) % len(start)]
    options = AttackOptions(
        space={"kind": given.space},
        iterations=given.iterations,
        patience=given.iterations + 1,
        batch=given.batch,
        runner=given.runner,
        keep_every=10,
    )
    rows = {}
    print(f"{given.attacks} attacks, {given.iterations} iterations, {given.space}, batch {given.batch}")
    print(f"{'judge':<20}{'first':>8}{'load':>8}{'ascent':>8}{'rate':>8}{'driver':>8}{'E':>8}{'failed':>8}")
    with tempfile.TemporaryDirectory() as cache:
        for name in given.judges:
            settings = {"judge": JUDGES[name], "training": {"steps": given.training}, "seed": 0}
            model, _ = fit_model(start, topology, settings)
            rows[name] = row = measure(model, positions, options, Path(cache))
            print(
                f"{name:<20}{row['first']:8.1f}{row['load']:8.1f}{row['ascent']:8.1f}{row['rate']:8.0f}"
                f"{row['driver']:8.2f}{row['E']:8.1f}{row['failed']:8d}",
                flush=True,
            )
    default = next(iter(rows.values()))
    print(f"goal 60 s; {next(iter(rows))}: {default['load'] + default['ascent']:.1f} s")
    if given.json:
        write_text(given.json, json.dumps({"options": {**vars(given), "json": None}, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
