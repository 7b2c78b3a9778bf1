"""Time of 500 adversarial attacks of 100 iterations on alanine dipeptide; goal: 60 s on two cores.

The potential and the judge are those of the demo, trained shortly on its start frames: the cost does not depend on the
weights. No attack stops early. Compiling, once for each architecture, is told apart.

    python tests/benchmarks/attack_cost.py [--attacks 500] [--iterations 100]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from uqbias.attacks.ascent import AttackOptions, attack
from uqbias.data import read_frames
from uqbias.fit import fit_model
from uqbias.topology import Topology

SYSTEM = Path(__file__).parents[2] / "systems" / "alanine_dipeptide"
GOAL = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attacks", type=int, default=500)
    parser.add_argument("--iterations", type=int, default=100)
    given = parser.parse_args()
    torch.set_num_threads(1)
    frames = read_frames(SYSTEM / "start.xyz")
    model, _ = fit_model(frames, Topology.from_pdb(SYSTEM / "structure.pdb"), {"training": {"steps": 500}})
    options = AttackOptions(iterations=given.iterations, patience=given.iterations + 1, keep_every=1)
    begun = time.perf_counter()
    attack(model, frames.positions[:2], replace(options, iterations=1))
    first = time.perf_counter() - begun
    positions = np.resize(frames.positions, (given.attacks, *frames.positions.shape[1:]))
    begun = time.perf_counter()
    found = attack(model, positions, options)
    seconds = time.perf_counter() - begun
    rise = np.median(found.log_likelihood - found.trajectory["log_likelihood"][0])
    print(f"runner {found.runner}; compiling or loading, and one iteration: {first:.1f} s")
    print(
        f"{given.attacks} attacks, {int(found.iterations.sum())} iterations in all, {int(found.failed.sum())} failed, "
        f"median rise of ln L {rise:.2f}: {seconds:.1f} s, {found.iterations.sum() / seconds:.0f} iterations/s "
        f"(goal {GOAL:g} s: {'met' if seconds <= GOAL else 'MISSED'})"
    )


if __name__ == "__main__":
    main()
