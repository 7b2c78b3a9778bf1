"""Throughput on a GPU: many walkers of a small molecule, few of a crystal, and one training step; one table.

Alanine dipeptide (22 atoms, all pairs) and cristobalite (216 atoms in a cell, tables of neighbours), default potential,
untrained weights, on which the cost does not depend. For each number of walkers, E alone and E + V(u) with a hill every
50 steps: bare evaluations, which are the limit, MD steps under OpenMM's PythonForce and under engine ``torch``, all of
one evaluator. Ratios: engine torch over OpenMM, and E + V over E. One thread on a CPU.

    python tests/gpu/throughput.py [--quick] [--device cuda] [--walkers N ...] [--cells N ...] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import torch  # isort: skip  (before OpenMM, whose plugin for torch links its libraries)

import numpy as np
import openmm

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from neighbours import SKIN, model_of, silica
from step_cost import SYSTEM, demo_model

from uqbias.bias.metad import MetaD
from uqbias.compile.fused import FusedEvaluator
from uqbias.errors import UqbiasError
from uqbias.md.walkers import Walkers
from uqbias.model.training import train
from uqbias.molecule.frames import read_frames
from uqbias.potentials.power_spectrum import PowerSpectrum
from uqbias.settings.schema import TrainingOptions

#: Steps from look to look, at most, and how often everything is timed, in turns.
PACE, TURNS = 50, 3


class Clock:
    """Seconds a unit of work takes: turns of about ``budget`` seconds, medians over them."""

    def __init__(self, device, budget):
        self.device, self.budget = device, budget

    def wait(self):
        if self.device == "cuda":
            torch.cuda.synchronize()

    def once(self, run, count):
        self.wait()
        begin = time.perf_counter()
        run(count)
        self.wait()
        return (time.perf_counter() - begin) / count

    def measure(self, runs):
        """Name to seconds; ``runs`` are functions of a count, which go on from where they were."""
        counts = {}
        for name, run in runs.items():
            run(1)
            counts[name] = int(np.clip(self.budget / self.once(run, 1), 1, PACE))
        times = {name: [] for name in runs}
        for _ in range(TURNS):
            for name, run in runs.items():
                times[name].append(self.once(run, counts[name]))
        return {name: float(np.median(values)) for name, values in times.items()}


def evaluating(evaluator, points):
    def run(count):
        for _ in range(count):
            evaluator.evaluate(points, judged=False)

    return run


def moving(model, evaluator, start, **options):
    """MD of a number of steps and a look; short steps, since untrained weights hold nothing together."""
    walkers = Walkers(model.topology, evaluator, start, temperature=300.0, timestep_fs=0.1, **options)
    return lambda count: walkers.run(count, pace=count)


def rows_of(name, model, positions, n_walkers, clock, options, box=None):
    """Rows of one system and number of walkers."""
    start, rows = positions[np.arange(n_walkers) % len(positions)], []
    for biased in (False, True):
        bias = MetaD(height=1e-3, sigma=1.0, pace=1) if biased else None
        boxes = {} if box is None else {"box": box, "skin": SKIN}
        evaluator = FusedEvaluator(model, bias, n_walkers, energy_only=not biased, **boxes, **options)
        points = torch.tensor(start, dtype=torch.float32, device=options["device"])
        evaluator.evaluate(points)
        platform = "CUDA" if clock.device == "cuda" else "Reference"
        runs = {"evaluation": evaluating(evaluator, points)}
        for engine, settings in (("openmm", {"platform": platform, "backend": "pythonforce"}), ("torch", {})):
            try:
                runs[engine] = moving(model, evaluator, start, engine=engine, **settings)
            except (UqbiasError, openmm.OpenMMException) as error:
                print(f"engine {engine}: {error}", file=sys.stderr)
        seconds = clock.measure(runs)
        rows.append({"system": name, "walkers": n_walkers, "biased": biased, "runner": evaluator.runner, **seconds})
        rows[-1]["memory_mb"] = memory(clock.device)
    return rows


def memory(device):
    """Largest so far, MB: of the GPU, or of the process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def training_step(frames, device, runner, steps):
    """Seconds of a step, or what keeps training from that device."""
    potential = PowerSpectrum(tuple(frames.numbers.tolist())).to(device)
    try:
        result = train(potential, frames, None, TrainingOptions(steps=steps), runner=runner)
    except (RuntimeError, UqbiasError) as error:
        return str(error).splitlines()[0]
    return result.seconds / result.steps


def show(rows):
    columns = ("walkers", "evaluation us", "openmm steps/s", "torch steps/s", "walker-steps/s")
    columns += ("torch/openmm", "E+V/E", "MB")
    print(f"{'':27s}" + "".join(f"{name:>16s}" for name in columns))
    bare = {(row["system"], row["walkers"]): row for row in rows if not row["biased"]}
    for row in rows:
        openmm_rate, rate = (1 / row[engine] if engine in row else np.nan for engine in ("openmm", "torch"))
        of_energy = row["torch"] / bare[row["system"], row["walkers"]]["torch"]
        values = (1e6 * row["evaluation"], openmm_rate, rate, row["walkers"] * rate)
        print(
            f"{row['system'] + (', E + V(u)' if row['biased'] else ', E'):27s}{row['walkers']:16d}"
            + "".join(f"{value:16.0f}" if value >= 100 else f"{value:16.1f}" for value in values)
            + f"{rate / openmm_rate:16.2f}{of_energy:16.2f}{row['memory_mb']:16.0f}",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--walkers", type=int, nargs="*", help="of alanine dipeptide; 1 16 256 1024")
    parser.add_argument("--cells", type=int, nargs="*", help="of 216 atoms; 1 8 64")
    parser.add_argument("--runner", default="torchscript", help="aoti compiles half a minute for each line")
    parser.add_argument("--quick", action="store_true", help="1 and 256 walkers, 1 and 8 cells, shorter turns")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    quick, device = arguments.quick, arguments.device
    clock = Clock(device, 0.2 if quick else 1.0)
    options = {"runner": arguments.runner, "device": device}
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU, one thread"
    print(f"{where}, torch {torch.__version__}, OpenMM {openmm.version.version}, {options['runner']}\n", flush=True)
    begin = time.perf_counter()
    frames = read_frames(SYSTEM / "start.xyz")
    molecule, rows = demo_model(frames), []
    for n_walkers in ([1, 256] if quick else [1, 16, 256, 1024]) if arguments.walkers is None else arguments.walkers:
        rows += rows_of("alanine dipeptide", molecule, frames.positions, n_walkers, clock, options)
    cells = ([1, 8] if quick else [1, 8, 64]) if arguments.cells is None else arguments.cells
    if cells:
        numbers, positions, cell = silica(216)
        crystal = model_of(numbers, positions, cell)
        for n_walkers in cells:
            rows += rows_of("216 atoms in a cell", crystal, positions.numpy(), n_walkers, clock, options, box=cell)
    show(rows)
    step = training_step(frames, device, options["runner"], 20 if quick else 200)
    print(f"\ntraining step, batch of {TrainingOptions().batch_size}: ", end="")
    print(step if isinstance(step, str) else f"{1e3 * step:.2f} ms")
    print(f"{time.perf_counter() - begin:.0f} s in all")
    if arguments.json:
        results = {"where": where, "torch": torch.__version__, "openmm": openmm.version.version}
        arguments.json.write_text(json.dumps(results | {"rows": rows, "training_step_s": step}, indent=1) + "\n")


if __name__ == "__main__":
    main()
