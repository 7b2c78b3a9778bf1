"""A crystal, heated until it melts under a model that has seen the cold one only: the uncertainty says when.

    python examples/periodic_argon.py

Argon, 32 atoms in a cell, labelled by a Lennard-Jones potential; constant pressure by ASE, with the model's stress.
"""

import argparse

import numpy as np
from ase import units
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.io import write
from ase.md.nptberendsen import NPTBerendsen
from picture import draw

import uqbias
from uqbias.ase import UncertaintyCalculator

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--frames", type=int, default=40)
parser.add_argument("--training", type=int, default=300, help="steps of its training")
parser.add_argument("--steps", type=int, default=1500, help="of 4 fs")
parser.add_argument("--runner", default="auto", help="auto, aoti, torchscript or eager")
arguments = parser.parse_args()

# 1. Frames with energy, forces and stress: the crystal, strained by some per cent, and shaken as heat does.
argon = bulk("Ar", "fcc", a=5.26, cubic=True) * (2, 2, 2)
rng, frames = np.random.default_rng(0), []
for _ in range(arguments.frames):
    frame = argon.copy()
    frame.set_cell(argon.cell.array @ (np.eye(3) + rng.normal(0, 0.02, (3, 3))), scale_atoms=True)
    frame.positions += rng.normal(0, rng.uniform(0.05, 0.2), frame.positions.shape)
    frame.calc = LennardJones(sigma=3.4, epsilon=0.0104, rc=6.0, smooth=True)
    frame.get_potential_energy()
    frame.get_stress()
    frames.append(frame)
write("argon.xyz", frames)

# 2. A model with a driver and a judge that need no bonds and no torsions.
settings = {
    "potential": {"cutoff": 0.6, "n_radial": 6, "n_channels": 4, "l_max": 2, "hidden": [16, 8]},
    "training": {"steps": arguments.training, "stress_weight": 0.1, "runner": arguments.runner},
    "driver": {"kind": "llpr"},
    "judge": {"kind": "llpr"},
}
model, facts = uqbias.fit_model(uqbias.read_frames("argon.xyz", periodic=True), settings=settings)
print(f"force MAE on held-out frames: {facts['validation']['force_mae_meV_per_A']:.2f} meV/Å")

# 3. MD at 1 bar, from 20 to 200 K.
atoms = argon.copy()
atoms.calc = UncertaintyCalculator(model, runner=arguments.runner)
atoms.set_momenta(rng.normal(size=(32, 3)) * np.sqrt(20 * units.kB * atoms.get_masses())[:, None])
bath = {
    "taut": 100 * units.fs,
    "taup": 500 * units.fs,
    "pressure_au": units.bar,
    "compressibility_au": 5e-2 / units.GPa,
}
dynamics = NPTBerendsen(atoms, 4 * units.fs, temperature_K=20, **bath)
rows = []
for step in range(0, arguments.steps, 20):
    dynamics.set_temperature(temperature_K=20 + 180 * step / arguments.steps)
    dynamics.run(20)
    values = atoms.calc.results
    rows.append((atoms.get_temperature(), atoms.get_volume(), 1000 * values["uncertainty"]))
temperature, volume, uncertainty = np.array(rows).T
labels = {"temperature (K)": temperature, "volume (Å³)": volume, "uncertainty (meV/Å)": uncertainty}
draw(labels, 0.08 * np.arange(len(rows)))
print(f"uncertainty {uncertainty[:5].mean():.2f} meV/Å in the crystal, {uncertainty[-5:].mean():.2f} at the end")
