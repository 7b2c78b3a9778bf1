"""Adversarial directions of two models of alanine dipeptide: trained on energies alone, and on energies and forces.

Both models see the same frames of 500 K MD, made by ``systems/alanine_dipeptide/reference.py``, for the same number of
steps; they are judged by the oracle (Amber ff14SB) on frames of the same trajectory that begin 10 ps later. Printed for
each: cos θ between the adversarial direction and the model's force; mean size of the energy error against ε (squared
displacement of the whole molecule, Å²) along adversarial and random directions and up the gradient of the judge; the
ratio of adversarial to random; relaxation on the model and the first step of it against cos θ. Goal: adversarial at
least 3 times random at the same ε.

    python tests/benchmarks/directions.py [--frames 100] [--steps 8000] [--seed 0] [-o DIR]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from uqbias.attacks.attack_options import DirectionOptions
from uqbias.attacks.direction_tables import lines_of, summary
from uqbias.attacks.directions import directions
from uqbias.model.fit import fit_model
from uqbias.model.score import score_model
from uqbias.molecule.frames import read_frames
from uqbias.molecule.topology import Topology
from uqbias.registry import ORACLES
from uqbias.report.direction_plots import save_direction_figure

ALANINE = Path(__file__).parents[2] / "systems" / "alanine_dipeptide"
FIGURE = Path(__file__).with_suffix(".png")
GOAL = 3.0
TRAININGS = {
    "energies": {"force_weight": 0.0, "energy_weight": 1.0},
    "energies and forces": {"force_weight": 1.0, "energy_weight": 0.1},
}


def trained(weights, training, steps, seed):
    settings = {
        "seed": seed,
        "training": {"steps": steps, "learning_rate": 0.01, "evaluate_every": 500, "patience": 10**6, **weights},
    }
    return fit_model(training, Topology.from_pdb(ALANINE / "structure.pdb"), settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=100, help="test frames")
    parser.add_argument("--steps", type=int, default=8000, help="of each training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, help="folder for models, numbers and figure")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    oracle = ORACLES.rebuild("openmm", {"structure": str(ALANINE / "structure.pdb")})
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, ALANINE / "reference.py", "training-benchmark", folder], check=True)
        training, test = (read_frames(Path(folder) / f"{name}.xyz") for name in ("train", "test"))
    test = test[list(range(0, len(test), max(1, len(test) // arguments.frames)))[: arguments.frames]]
    results, numbers = {}, {}
    for name, weights in TRAININGS.items():
        began = time.perf_counter()
        model, facts = trained(weights, training, arguments.steps, arguments.seed)
        errors = score_model(model, test)
        print(
            f"\ntrained on {name}: {facts['frames']} frames, {facts['wall_s']:.0f} s; on {len(test)} test frames "
            f"force MAE {errors['force_mae_meV_per_A']:.1f} meV/Å, "
            f"energy MAE {errors['energy_mae_meV_per_atom']:.2f} meV/atom"
        )
        options = DirectionOptions(ascents=("judge", "driver"))
        results[name] = directions(model, test.positions, oracle, options, seed=arguments.seed)
        numbers[name] = found = summary(results[name])
        tell(found)
        print(f"{time.perf_counter() - began:.0f} s")
        if arguments.output:
            model.save(arguments.output / f"{name.replace(' ', '_')}.uqb")
    target = FIGURE
    if arguments.output:
        target = arguments.output / FIGURE.name
        (arguments.output / "directions.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    save_direction_figure({f"trained on {name}": result for name, result in results.items()}, target)
    print(f"figure: {target}")


def tell(found):
    print("\n".join(lines_of(found)))
    reached = [
        f"{epsilon:g}"
        for epsilon, ratio in zip(found["epsilon_A2"], found["ratio"]["adversarial"], strict=True)
        if ratio >= GOAL
    ]
    print(f"adversarial at least {GOAL:g} times random at ε = {', '.join(reached) or 'none'} Å²")
    sizes = found["relaxation"]["energy_error_meV"]
    for part in ("mean", "median"):
        first, second, last = (f"{sizes[part][at]:.4g}" for at in (0, 1, -1))
        print(f"relaxation: {part} |energy error| {first} meV, {second} after the first step, {last} at the end")


if __name__ == "__main__":
    main()
