"""An ordinary OpenMM script, and three lines that make it metadynamics on a model's uncertainty.

The force field moves the molecule; the model only says where it is uncertain. For a model that gives the energy too,
leave the force field out and say ``drive="model"``. `solvated_peptide.py` is the same in a box of water.

    python examples/openmm_script.py --steps 60000
"""

import argparse

import numpy as np
import torch  # noqa: F401 - before OpenMM, whose plugin for torch links its libraries
from openmm import LangevinMiddleIntegrator, Platform, app, unit
from picture import draw
from quick_model import SYSTEM, quick_model

import uqbias

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="model.uqb", help="model file; trained quickly if it is not there")
parser.add_argument("--steps", type=int, default=60000, help="of 1 fs")
parser.add_argument("--runner", default="auto", help="auto, aoti, torchscript or eager")
arguments = parser.parse_args()
model = quick_model(arguments.model, runner=arguments.runner)

# --- the script as it was ---------------------------------------------------------------------------------------------
pdb = app.PDBFile(str(SYSTEM / "structure.pdb"))
system = app.ForceField("amber14/protein.ff14SB.xml").createSystem(pdb.topology, constraints=app.HBonds)

# uqbias, lines 1 and 2: metadynamics on the model's driver u, with a wall where geometries become nonsense
u = uqbias.BiasVariable(model, biasWidth=1.0)
bias = uqbias.Metadynamics(
    system, [u], temperature=300, biasFactor=10, height=1.0, frequency=50, wall=14.0, runner=arguments.runner
)

integrator = LangevinMiddleIntegrator(300 * unit.kelvin, 1 / unit.picosecond, 1 * unit.femtoseconds)
integrator.setRandomNumberSeed(1)
simulation = app.Simulation(pdb.topology, system, integrator, Platform.getPlatformByName("Reference"))
simulation.context.setPositions(pdb.positions)
simulation.minimizeEnergy()
simulation.context.setVelocitiesToTemperature(300 * unit.kelvin, 1)
simulation.reporters.append(app.DCDReporter("trajectory.dcd", 50))
simulation.reporters.append(bias)  # uqbias, line 3: deposits the hills, writes HILLS and COLVAR
simulation.step(arguments.steps)
# --- end of the script ------------------------------------------------------------------------------------------------

import mdtraj  # noqa: E402

from uqbias.runs.series import read_colvar  # noqa: E402

simulation.reporters.clear()
colvar = read_colvar("COLVAR")
phi = np.degrees(mdtraj.compute_phi(mdtraj.load("trajectory.dcd", top=str(SYSTEM / "structure.pdb")))[1][:, 0])
draw({"driver u": colvar["driver"], "bias (kJ/mol)": colvar["bias"]}, colvar["time"])
print(f"{arguments.steps} steps, {len(bias.metadynamics.hills)} hills, runner {bias.evaluator.runner}")
print(
    f"driver: from {colvar['driver'].min():.2f} to {colvar['driver'].max():.2f}; "
    f"bias up to {colvar['bias'].max():.1f} kJ/mol"
)
print(f"frames beyond the barrier (15° < φ < 135°): {np.mean((phi > 15) & (phi < 135)):.1%}")
