"""Metadynamics on the uncertainty in an ASE script: three lines beside those of any Langevin run."""

import argparse
import sys
from pathlib import Path

import numpy as np
from ase import units
from ase.io import read
from ase.md.langevin import Langevin

from uqbias.ase import UncertaintyCalculator
from uqbias.bias import MetaD, UpperWall

sys.path.insert(0, str(Path(__file__).parents[1]))
from picture import draw
from quick_model import SYSTEM, quick_model

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="model.uqb", help="model file; trained first if it is not there")
parser.add_argument("--steps", type=int, default=2000)
parser.add_argument("--runner", default="auto", help="auto compiles the model, eager does not")
options = parser.parse_args()

atoms = read(SYSTEM / "start.xyz", 0)
bias = MetaD(temperature=300.0, height=1.0, sigma=0.5, pace=50)  # K, kJ/mol, the driver's unit, steps
wall = UpperWall(at=12.0, kappa=5.0)
atoms.calc = UncertaintyCalculator(
    quick_model(options.model, runner=options.runner), [bias, wall], runner=options.runner
)
widths = np.sqrt(300 * units.kB * atoms.get_masses())[:, None]
atoms.set_momenta(np.random.default_rng(0).normal(size=(len(atoms), 3)) * widths)
bath = {"temperature_K": 300, "friction": 1e-3 / units.fs, "rng": np.random.default_rng(1), "fixcm": False}
dynamics = Langevin(atoms, 0.5 * units.fs, trajectory="md.traj", **bath)
atoms.calc.attach(dynamics)  # a hill every 50 steps
seen = []
dynamics.attach(lambda: seen.append(atoms.calc.results.copy()), interval=50)
dynamics.run(options.steps)

drivers, biases = ([results[name] for results in seen] for name in ("driver", "bias_energy"))
draw({"driver u": drivers, "bias (eV)": biases}, [0.025 * look for look in range(len(seen))])
print(f"{options.steps} steps, {len(bias.hills)} hills, driver from {min(drivers):.2f} to {max(drivers):.2f}")
worst = max(seen, key=lambda results: results["uncertainty"])
print(f"largest uncertainty {worst['uncertainty']:.3f} eV/Å, with a bias of {worst['bias_energy']:.3f} eV")
each = atoms.calc.get_property("uncertainties", atoms)
print(f"least certain atom at the end: {atoms[int(np.nanargmax(each))].symbol}{int(np.nanargmax(each))}")
