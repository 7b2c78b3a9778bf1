"""A model moves the solute, a force field the water and what acts between them; the bias is on the model's uncertainty.

Alanine dipeptide in water: bonded and non-bonded terms within the solute leave the System, the model's energy takes
their place; the solute and the water go on to see each other through the force field (mechanical embedding).

    python examples/mixed_system.py --steps 6000

A model that moves atoms must know what water does to them: the one that is trained here has seen the whole map of φ and
ψ. One that knows a single basin falls into holes of its energy; OpenMM then says that a coordinate is NaN.
"""

import argparse
import time
from pathlib import Path

import torch  # noqa: F401 - before OpenMM, whose plugin for torch links its libraries
from openmm import LangevinMiddleIntegrator, Platform, Vec3, app, unit
from picture import draw
from quick_model import SYSTEM

import uqbias

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="wide.uqb", help="model file; trained in a minute if it is not there")
parser.add_argument("--training", type=int, default=1500, help="steps of its training")
parser.add_argument("--steps", type=int, default=6000, help="of 0.5 fs")
parser.add_argument("--runner", default="auto", help="auto, aoti, torchscript or eager")
arguments = parser.parse_args()
if not Path(arguments.model).is_file():
    print(f"training {arguments.model} ...", flush=True)
    frames = uqbias.read_frames(SYSTEM / "reference" / "test_set.xyz")
    topology = uqbias.Topology.from_pdb(SYSTEM / "structure.pdb")
    options = {"training": {"steps": arguments.training, "runner": arguments.runner}}
    uqbias.fit_model(frames, topology, options)[0].save(arguments.model)

pdb = app.PDBFile(str(SYSTEM / "structure.pdb"))
field = app.ForceField("amber14/protein.ff14SB.xml", "amber14/tip3p.xml")
modeller = app.Modeller(pdb.topology, pdb.positions)
modeller.addSolvent(field, boxSize=Vec3(2.2, 2.2, 2.2) * unit.nanometer)
system = field.createSystem(modeller.topology, nonbondedMethod=app.PME, nonbondedCutoff=0.9 * unit.nanometer)

solute = [atom.index for atom in modeller.topology.atoms() if atom.residue.name != "HOH"]
uqbias.remove_internal_forces(system, solute)
u = uqbias.BiasVariable(arguments.model, biasWidth=1.0)
# drive="model": the force holds the model's energy and the bias. One evaluation a step gives both.
bias = uqbias.Metadynamics(
    system,
    [u],
    temperature=300,
    biasFactor=10,
    height=1.0,
    frequency=25,
    wall=6.0,
    atoms=solute,
    drive="model",
    runner=arguments.runner,
)

integrator = LangevinMiddleIntegrator(300 * unit.kelvin, 1 / unit.picosecond, 0.5 * unit.femtoseconds)
simulation = app.Simulation(modeller.topology, system, integrator, Platform.getPlatformByName("CPU"))
simulation.context.setPositions(modeller.positions)
simulation.minimizeEnergy(maxIterations=200)
simulation.context.setVelocitiesToTemperature(300 * unit.kelvin)
begin = time.perf_counter()
bias.step(simulation, arguments.steps)
seconds = time.perf_counter() - begin

from uqbias.runs.series import read_colvar  # noqa: E402

colvar = read_colvar("COLVAR")
draw({"driver u": colvar["driver"], "model's energy (kJ/mol)": colvar["energy"]}, colvar["time"])
print(f"{system.getNumParticles()} particles, {arguments.steps} steps, {len(bias.metadynamics.hills)} hills")
print(f"{1e3 * seconds / arguments.steps:.2f} ms a step")
print(f"driver u: from {colvar['driver'].min():.2f} to {colvar['driver'].max():.2f}")
spread = colvar["energy"].std()
print(f"model's energy of the solute: {colvar['energy'].mean():.1f} kJ/mol, standard deviation {spread:.1f}")
