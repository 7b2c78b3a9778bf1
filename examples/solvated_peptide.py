"""A force field drives in a box of water; the bias acts on a model's uncertainty of the solute, and on its φ.

Alanine dipeptide in water with PME; the model is about the 22 atoms of the solute, wherever the box puts them. φ is an
OpenMM Force, of any kind, on any particles: its value is one more variable of the same bias, at the cost of that Force.

    python examples/solvated_peptide.py --steps 10000

The same command goes on from the last snapshot of a run that was interrupted.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch  # noqa: F401 - before OpenMM, whose plugin for torch links its libraries
from openmm import CustomTorsionForce, LangevinMiddleIntegrator, Platform, Vec3, app, unit
from picture import draw
from quick_model import SYSTEM, quick_model

import uqbias

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="model.uqb", help="model file; trained quickly if it is not there")
parser.add_argument("--steps", type=int, default=10000, help="of 2 fs")
parser.add_argument("--runner", default="auto", help="auto, aoti, torchscript or eager")
arguments = parser.parse_args()
model = quick_model(arguments.model, runner=arguments.runner)

# --- the script as it was ---------------------------------------------------------------------------------------------
pdb = app.PDBFile(str(SYSTEM / "structure.pdb"))
field = app.ForceField("amber14/protein.ff14SB.xml", "amber14/tip3p.xml")
modeller = app.Modeller(pdb.topology, pdb.positions)
modeller.addSolvent(field, boxSize=Vec3(2.2, 2.2, 2.2) * unit.nanometer)
system = field.createSystem(
    modeller.topology, nonbondedMethod=app.PME, nonbondedCutoff=0.9 * unit.nanometer, constraints=app.HBonds
)

# uqbias: u of the model and φ of the backbone (C, N, CA, C), together
phi = CustomTorsionForce("theta")
phi.addTorsion(4, 6, 8, 14)
variables = [
    uqbias.BiasVariable(model, biasWidth=1.0),
    uqbias.BiasVariable(phi, -np.pi, np.pi, biasWidth=0.35, periodic=True, name="phi"),
]
solute = [atom.index for atom in modeller.topology.atoms() if atom.residue.name != "HOH"]
bias = uqbias.Metadynamics(
    system,
    variables,
    temperature=300,
    biasFactor=10,
    height=1.0,
    frequency=100,
    wall=14.0,
    atoms=solute,
    snapshot="snapshot.npz",
    snapshot_every=5000,
    runner=arguments.runner,
)

integrator = LangevinMiddleIntegrator(300 * unit.kelvin, 1 / unit.picosecond, 2 * unit.femtoseconds)
simulation = app.Simulation(modeller.topology, system, integrator, Platform.getPlatformByName("CPU"))
simulation.reporters.append(bias)
if Path("snapshot.npz").is_file():
    bias.load(simulation, "snapshot.npz")
    print(f"going on from step {simulation.currentStep}")
else:
    simulation.context.setPositions(modeller.positions)
    simulation.minimizeEnergy(maxIterations=200)
    simulation.context.setVelocitiesToTemperature(300 * unit.kelvin)
begin, steps = time.perf_counter(), arguments.steps - simulation.currentStep
simulation.step(max(0, steps))
seconds = time.perf_counter() - begin
# --- end of the script ------------------------------------------------------------------------------------------------

from uqbias.runs.series import read_colvar  # noqa: E402

colvar = read_colvar("COLVAR")
free_energy = bias.getFreeEnergy().value_in_unit(unit.kilojoules_per_mole)
draw({"driver u": colvar["driver"], "φ (°)": np.degrees(colvar["phi"])}, colvar["time"])
print(f"{system.getNumParticles()} particles, {simulation.currentStep} steps, {len(bias.metadynamics.hills)} hills")
print(f"{1e3 * seconds / max(1, steps):.2f} ms a step")
print(f"driver u: from {colvar['driver'].min():.2f} to {colvar['driver'].max():.2f}")
print(f"φ: from {np.degrees(colvar['phi']).min():.0f}° to {np.degrees(colvar['phi']).max():.0f}°")
print(f"free energy of (u, φ) as the hills have it: {np.ptp(free_energy):.1f} kJ/mol deep")
