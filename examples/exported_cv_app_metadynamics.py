"""The exported CV with OpenMM's own metadynamics: where the CV is used, torch and openmmtorch are all it takes.

    python examples/exported_cv_app_metadynamics.py --steps 20000

uqbias writes the file (as `uqbias export model.uqb -o driver.pt` does); everything after that imports nothing of it.
OpenMM 8.5 is needed: 8.6 cannot copy the TorchForce of openmmtorch 1.5, and a CustomCVForce copies what is in it.
"""

import argparse

import torch
from openmm import LangevinMiddleIntegrator, Platform, app, unit, version
from picture import draw
from quick_model import SYSTEM, quick_model

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="model.uqb", help="model file; trained quickly if it is not there")
parser.add_argument("--steps", type=int, default=20000, help="of 1 fs")
arguments = parser.parse_args()
if tuple(int(part) for part in version.version.split(".")[:2]) >= (8, 6):
    raise SystemExit(f"OpenMM {version.version} dies when it copies a TorchForce; pip install 'openmm>=8.5,<8.6'")

# --- with uqbias, once ------------------------------------------------------------------------------------------------
import uqbias  # noqa: E402

uqbias.export_torchscript(uqbias.UncertaintyModel.load(quick_model(arguments.model)), "driver.pt", "driver")

# --- without uqbias ---------------------------------------------------------------------------------------------------
from openmmtorch import TorchForce  # noqa: E402

torch.set_num_threads(1)
pdb = app.PDBFile(str(SYSTEM / "structure.pdb"))
system = app.ForceField("amber14/protein.ff14SB.xml").createSystem(pdb.topology, constraints=app.HBonds)
u = app.BiasVariable(TorchForce("driver.pt"), minValue=-5.0, maxValue=20.0, biasWidth=1.0, periodic=False)
metadynamics = app.Metadynamics(
    system, [u], temperature=300 * unit.kelvin, biasFactor=10, height=1.0 * unit.kilojoules_per_mole, frequency=50
)
integrator = LangevinMiddleIntegrator(300 * unit.kelvin, 1 / unit.picosecond, 1 * unit.femtoseconds)
integrator.setRandomNumberSeed(1)
simulation = app.Simulation(pdb.topology, system, integrator, Platform.getPlatformByName("Reference"))
simulation.context.setPositions(pdb.positions)
simulation.minimizeEnergy()
simulation.context.setVelocitiesToTemperature(300 * unit.kelvin, 1)
values = []
for _ in range(max(1, arguments.steps // 50)):
    metadynamics.step(simulation, 50)
    values.append(metadynamics.getCollectiveVariables(simulation)[0])

bias = metadynamics.getFreeEnergy().value_in_unit(unit.kilojoules_per_mole)
draw({"driver u": values}, [0.05 * (hill + 1) for hill in range(len(values))])
print(f"{len(values) * 50} steps, {len(values)} hills")
print(f"driver u: from {min(values):.2f} to {max(values):.2f}")
print(f"free energy along u as the hills have it: {bias.max() - bias.min():.1f} kJ/mol deep")
