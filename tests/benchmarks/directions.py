"""Adversarial directions of two models of a system: trained on energies alone, and on energies and forces.

Both models see the same frames for the same number of steps, and are judged by the oracle. Alanine dipeptide (Amber
ff14SB): frames of 500 K MD, made by ``systems/alanine_dipeptide/reference.py``; test frames begin 10 ps later. Silica
(BKS, a small network on an l_max of 2 in place of Behler's and Parrinello's): frames of α-quartz and β-cristobalite at
1000 K and of a melt at 3000 K, made by ``systems/silica/make_reference.py hot``; the last quarter of each is the test.
Printed for each: cos θ between the adversarial direction and the model's force; mean size of the energy error against
ε (squared displacement of the whole molecule, Å²) along adversarial and random directions and up the gradient of the
judge; the ratio of adversarial to random; relaxation on the model and the first step of it against cos θ. Goal:
adversarial at least 3 times random at the same ε.

    python tests/benchmarks/directions.py [--system silica] [--frames 100] [--steps 8000] [--seed 0] [-o DIR]
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
from uqbias.molecule.frames import Frames, read_frames
from uqbias.molecule.structure import read_structure
from uqbias.molecule.topology import Topology
from uqbias.registry import ORACLES
from uqbias.report.direction_plots import save_direction_figure

SYSTEMS = Path(__file__).parents[2] / "systems"
ALANINE, SILICA = SYSTEMS / "alanine_dipeptide", SYSTEMS / "silica"
GOAL = 3.0
TRAININGS = {
    "energies": {"force_weight": 0.0, "energy_weight": 1.0},
    "energies and forces": {"force_weight": 1.0, "energy_weight": 0.1},
}


DENSITY = {"kind": "gmm", "features": {"kind": "latents"}, "per_element": True}
#: Of silica: a net as small as those of 2007.
SMALL = {
    "potential": {"cutoff": 0.5, "n_radial": 8, "n_channels": 4, "l_max": 2, "hidden": [24, 24]},
    "driver": DENSITY,
    "judge": DENSITY,
}


#: Labels of crystals take longer, and a melt has no minimum nearby.
BRIEF = DirectionOptions(epsilons=(0.1, 0.3, 0.5), n_random=4, relax_steps=0)


def alanine(folder):
    """Training and test frames, oracle, topology, settings and options."""
    subprocess.run([sys.executable, ALANINE / "reference.py", "training-benchmark", folder], check=True)
    frames = [read_frames(folder / f"{name}.xyz") for name in ("train", "test")]
    structure = ALANINE / "structure.pdb"
    return (
        *frames,
        ORACLES.rebuild("openmm", {"structure": str(structure)}),
        Topology.from_pdb(structure),
        {},
        DirectionOptions(ascents=("judge", "driver")),
    )


def silica(folder):
    """As `alanine`."""
    if not (folder / "melt.xyz").is_file():
        subprocess.run([sys.executable, SILICA / "make_reference.py", "hot", folder], check=True)
    frames = [read_frames(folder / f"{name}.xyz", periodic=True) for name in ("quartz", "cristobalite", "melt")]
    cuts = [len(each) * 3 // 4 for each in frames]
    training = Frames.concatenate([each[:cut] for each, cut in zip(frames, cuts, strict=True)])
    test = Frames.concatenate([each[cut:] for each, cut in zip(frames, cuts, strict=True)])
    structure = str(SILICA / "quartz.xyz")
    options = {"structure": structure, "forcefield": [str(SILICA / "bks.xml")], "cutoff": 0.55}
    return training, test, ORACLES.rebuild("openmm", options), read_structure(structure).topology, SMALL, BRIEF


def trained(weights, training, topology, settings, steps, seed):
    schedule = {"steps": steps, "learning_rate": 0.01, "evaluate_every": 500, "patience": 10**6, **weights}
    return fit_model(training, topology, {"seed": seed, "training": schedule, **settings})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", choices=["alanine", "silica"], default="alanine")
    parser.add_argument("--data", type=Path, help="folder of the frames, if they are to be kept")
    parser.add_argument("--frames", type=int, default=100, help="test frames")
    parser.add_argument("--steps", type=int, default=8000, help="of each training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, help="folder for models, numbers and figure")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    system = {"alanine": alanine, "silica": silica}[arguments.system]
    with tempfile.TemporaryDirectory() as folder:
        training, test, oracle, topology, settings, options = system(arguments.data or Path(folder))
    test = test[list(range(0, len(test), max(1, len(test) // arguments.frames)))[: arguments.frames]]
    results, numbers = {}, {}
    for name, weights in TRAININGS.items():
        began = time.perf_counter()
        model, facts = trained(weights, training, topology, settings, arguments.steps, arguments.seed)
        errors = score_model(model, test)
        print(
            f"\ntrained on {name}: {facts['frames']} frames, {facts['wall_s']:.0f} s; on {len(test)} test frames "
            f"force MAE {errors['force_mae_meV_per_A']:.1f} meV/Å, "
            f"energy MAE {errors['energy_mae_meV_per_atom']:.2f} meV/atom"
        )
        results[name] = directions(model, test, oracle, options, seed=arguments.seed)
        numbers[name] = found = summary(results[name])
        tell(found)
        print(f"{time.perf_counter() - began:.0f} s")
        if arguments.output:
            model.save(arguments.output / f"{name.replace(' ', '_')}.uqb")
    name = "directions.png" if arguments.system == "alanine" else f"directions_{arguments.system}.png"
    target = (arguments.output or Path(__file__).parent) / name
    if arguments.output:
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
    if "relaxation" not in found:
        return
    sizes = found["relaxation"]["energy_error_meV"]
    for part in ("mean", "median"):
        first, second, last = (f"{sizes[part][at]:.4g}" for at in (0, 1, -1))
        print(f"relaxation: {part} |energy error| {first} meV, {second} after the first step, {last} at the end")


if __name__ == "__main__":
    main()
