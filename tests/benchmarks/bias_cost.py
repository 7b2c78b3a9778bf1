"""Cost of an MD step under each bias, with no hills and with 100,000, and against the ordinary way.

The model is that of the demo with untrained weights (see step_cost.py). All sides run in this process, in turns, on one
thread; medians over the turns. A turn includes what the bias does on the host: hills, kernels, mean forces.

    python tests/benchmarks/bias_cost.py [--quick] [--hills-only] [--runner auto] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch  # isort: skip  (before OpenMM, whose plugin for torch links its libraries)

import numpy as np
import openmm
from step_cost import (
    FRICTION,
    ORDINARY_GOAL,
    SYSTEM,
    TEMPERATURE,
    TIMESTEP_FS,
    Side,
    demo_model,
    measure,
    ordinary_side,
    springs,
)

from uqbias.bias.base import BiasSum
from uqbias.bias.eabf import ExtendedABF, WellTemperedExtendedABF
from uqbias.bias.gamd import GaMD
from uqbias.bias.linear import Linear
from uqbias.bias.metad import MetaD
from uqbias.bias.opes import OPES
from uqbias.compile.fused import FusedEvaluator
from uqbias.files import write_text
from uqbias.md.stack import backend_faults
from uqbias.md.walkers import Walkers
from uqbias.molecule.frames import read_frames
from uqbias.variables.dihedral import Dihedral

HILLS = 100_000
PACE = 50
#: Goal of the project: cost with 100,000 hills over cost with none.
HILLS_GOAL = 1.05
PHI, PSI = (4, 6, 8, 14), (6, 8, 14, 16)
ANGLE = {"periods": [2 * np.pi]}


def hills_of(bias, count, low, high):
    """Fill a metadynamics bias with hills between two values of its variables."""
    random = np.random.default_rng(0)
    for step in range(1, count // 1000 + 1):
        bias.update(step * PACE, random.uniform(low, high, (1000, len(bias.variables))))


def biases():
    """Name to bias."""
    angles = {"variables": ["phi", "psi"], "periods": [2 * np.pi] * 2}
    shared = {"height": 0.01, "pace": PACE}
    found = {
        "none": BiasSum([]),
        "metadynamics on u, no hills": MetaD(sigma=1.0, **shared),
        "metadynamics on u, 100,000 hills": MetaD(sigma=1.0, **shared),
        "metadynamics on φ ψ, no hills": MetaD(sigma=0.3, **shared, **angles),
        "metadynamics on φ ψ, 100,000 hills": MetaD(sigma=0.3, **shared, **angles),
        "metadynamics on u φ ψ": MetaD(
            variables=["driver", "phi", "psi"], periods=[None, 2 * np.pi, 2 * np.pi], sigma=[1.0, 0.4, 0.4], **shared
        ),
        "opes on u": OPES(barrier=40.0, sigma=0.5, pace=PACE, temperature=TEMPERATURE),
        "eabf on u": ExtendedABF(pace=10, temperature=TEMPERATURE),
        "wtm_eabf on u": WellTemperedExtendedABF(pace=10, temperature=TEMPERATURE),
        "gamd": GaMD(pace=10, temperature=TEMPERATURE),
        "linear on u": Linear(pace=PACE),
    }
    hills_of(found["metadynamics on u, 100,000 hills"], HILLS, -3.0, 12.0)
    hills_of(found["metadynamics on φ ψ, 100,000 hills"], HILLS, -np.pi, np.pi)
    return found


def side(name, bias, model, positions, runner, chunk):
    evaluator = FusedEvaluator(model, bias, 1, variables={"phi": Dihedral(PHI), "psi": Dihedral(PSI)}, runner=runner)
    walkers = Walkers(
        model.topology,
        evaluator,
        positions[None],
        temperature=TEMPERATURE,
        timestep_fs=TIMESTEP_FS,
        friction_per_ps=FRICTION,
        platform="Reference",
    )
    walkers._system.addForce(springs(positions, 1))
    walkers.context.reinitialize(preserveState=True)
    pace = bias.pace or PACE
    return Side(name, lambda steps: walkers.run(steps, pace=pace), chunk)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--runner", default="auto", help="auto, aoti, torchscript or eager")
    parser.add_argument("--quick", action="store_true", help="fewer turns")
    parser.add_argument("--hills-only", action="store_true", help="metadynamics only, for the two goals")
    options = parser.parse_args()
    torch.set_num_threads(1)
    frames = read_frames(SYSTEM / "start.xyz")
    model, positions = demo_model(frames), frames.positions[0]
    turns, chunk = (3, 100) if options.quick else (25, 200)
    chosen = {
        name: bias for name, bias in biases().items() if not options.hills_only or "hills" in name or name == "none"
    }
    sides = [side(name, bias, model, positions, options.runner, chunk) for name, bias in chosen.items()]
    with tempfile.TemporaryDirectory() as folder:
        way = None
        if backend_faults()["torchforce"] is None:
            ordinary, way = ordinary_side("ordinary way", model, positions, Path(folder), chunk)
            sides.append(ordinary)
        medians = measure(sides, turns)
    print(f"one MD step, 1 walker, torch {torch.__version__}, OpenMM {openmm.version.version}, one thread")
    for name, value in medians.items():
        print(f"  {name:36} {value * 1e6:7.0f} us   {value / medians['none']:5.2f} x without bias")
    ratios = {
        "hills_u": medians["metadynamics on u, 100,000 hills"] / medians["metadynamics on u, no hills"],
        "hills_phi_psi": medians["metadynamics on φ ψ, 100,000 hills"] / medians["metadynamics on φ ψ, no hills"],
    }
    for name, ratio in ratios.items():
        print(f"100,000 hills over none, {name.removeprefix('hills_')}: {ratio:.3f} (goal <= {HILLS_GOAL})")
    if way:
        ratios["ordinary"] = medians["ordinary way"] / medians["metadynamics on u, no hills"]
        print(
            f"ordinary way (autograd TorchForce for E, app.Metadynamics on a {way} of u): {ratios['ordinary']:.1f} x "
            f"(goal >= {ORDINARY_GOAL:.0f})"
        )
    if options.json:
        write_text(options.json, json.dumps({"step_s": medians, "ratios": ratios, "ordinary_cv_force": way}) + "\n")


if __name__ == "__main__":
    main()
