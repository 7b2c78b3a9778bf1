"""One model of several systems against a model of each, at equal frames: force and energy errors on the rest.

    python tests/benchmarks/several_systems.py NAME=FRAMES.xyz NAME=FRAMES.xyz ... [--frames 200] [--steps 4000]

Of each file so many frames at random are trained on (a tenth of them stops the training, a tenth calibrates), all
others are the test. Apart, each model has all steps; together they are steps of one model that sees all systems.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

import uqbias
from uqbias.model.several import score_systems
from uqbias.molecule.frames import Frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="+", metavar="NAME=FRAMES.xyz")
    parser.add_argument("--frames", type=int, default=200, help="frames of each system that are trained on")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runner", default="auto")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    training: dict[str, Frames] = {}
    tests: dict[str, Frames] = {}
    for name, _, path in (each.partition("=") for each in arguments.systems):
        frames = uqbias.read_frames(path, periodic=True)
        order = np.random.default_rng(arguments.seed).permutation(len(frames))
        training[name], tests[name] = frames[order[: arguments.frames]], frames[order[arguments.frames :]]
    schedule = {"steps": arguments.steps, "runner": arguments.runner}
    settings = {"seed": arguments.seed, "training": schedule, "driver": {"kind": "gmm"}}
    begun = time.perf_counter()
    scores = score_systems(uqbias.fit_model(training, None, settings)[0], tests)["systems"]
    print(f"together: {time.perf_counter() - begun:.0f} s", flush=True)
    for name, frames in training.items():
        begun = time.perf_counter()
        alone = uqbias.score_model(uqbias.fit_model(frames, None, settings)[0], tests[name])
        print(f"{name} alone: {time.perf_counter() - begun:.0f} s")
        for key in ("force_mae_meV_per_A", "energy_mae_meV_per_atom", "coverage"):
            print(f"  {key}: {scores[name][key]:.4g} together, {alone[key]:.4g} alone", flush=True)


if __name__ == "__main__":
    main()
