"""Force error after a fixed training time on one core.

1000 frames of 500 K MD of alanine dipeptide, 0.1 ps apart, made by ``systems/alanine_dipeptide/reference.py``: 950
train, 50 choose among the weights. 500 frames of the same trajectory that begin 10 ps later test. The time counts the
training itself; compiling its step (once for an architecture) comes before it.

    python tests/benchmarks/training.py [--seconds 120] [--seeds 1] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from uqbias.model.training import force_and_energy_mae, train
from uqbias.molecule.frames import read_frames
from uqbias.potentials.power_spectrum import PowerSpectrum
from uqbias.settings.training_sections import TrainingOptions

REFERENCE = Path(__file__).parents[2] / "systems" / "alanine_dipeptide" / "reference.py"
GOAL = 20.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, REFERENCE, "training-benchmark", folder], check=True)
        frames, test = (read_frames(Path(folder) / f"{name}.xyz") for name in ("train", "test"))
    held_out = frames[list(range(0, len(frames), 20))]
    training = frames[[index for index in range(len(frames)) if index % 20]]
    # Compiles the training step, or finds it in the cache, before the clock starts.
    train(PowerSpectrum(frames.numbers), training, None, TrainingOptions(steps=1))
    rows = []
    for seed in range(arguments.seeds):
        potential = PowerSpectrum(frames.numbers, seed=seed)
        options = TrainingOptions(
            max_seconds=arguments.seconds, learning_rate=0.01, evaluate_every=1000, patience=10**6
        )
        result = train(potential, training, held_out, options, seed=seed)
        force_mae, energy_mae = force_and_energy_mae(potential, test)
        rows.append({"seed": seed, "steps": result.steps, "force_mae": force_mae, "energy_mae": energy_mae})
        print(
            f"seed {seed}: {len(training)} frames, {result.seconds:.0f} s, {result.steps} steps: "
            f"force MAE {force_mae:.1f} meV/Å (goal {GOAL:.0f}), energy MAE {energy_mae:.2f} meV/atom"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
