"""Loads exported modules with torch, OpenMM and openmmtorch alone; prints what it found as one JSON line."""

import json
import sys
from pathlib import Path

import torch  # isort: skip  (before OpenMM, whose plugin for torch links its libraries)

import numpy as np
import openmm
import openmm.app
from openmm import unit
from openmmtorch import TorchForce

folder = Path(sys.argv[1])
positions = np.load(folder / "positions.npy")
torch.set_num_threads(1)
FORCE = unit.kilojoules_per_mole / unit.nanometer


def system_with(*forces):
    system = openmm.System()
    for _ in positions:
        system.addParticle(12.0)
    for force in forces:
        system.addForce(force)
    return system


def torch_force(name):
    force = TorchForce(str(folder / f"{name}.pt"))
    force.setOutputsForces(name.endswith("_forces"))
    return force


def reference_context(system):
    integrator = openmm.LangevinMiddleIntegrator(300, 1.0, 0.0005)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(positions)
    return context


result = {}
for name in ("driver", "driver_forces", "energy", "energy_forces"):
    context = reference_context(system_with(torch_force(name)))
    forces = context.getState(forces=True).getForces(asNumpy=True).value_in_unit(FORCE)
    result[name] = forces.tolist()

# OpenMM's own metadynamics on the exported CV, inside its CustomCVForce. OpenMM 8.6 cannot copy a TorchForce, but it
# can a PythonForce.
with_forces = torch.jit.load(str(folder / "driver_forces.pt"))


def compute(state):
    with torch.no_grad():
        value, forces = with_forces(torch.from_numpy(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)))
    return float(value), forces.numpy()


torchforce_copies = tuple(int(part) for part in openmm.version.version.split(".")[:2]) < (8, 6)
variable_force = torch_force("driver") if torchforce_copies else openmm.PythonForce(compute)
system = system_with()
cage = openmm.CustomExternalForce("1000*((x-x0)^2+(y-y0)^2+(z-z0)^2)")
for parameter in ("x0", "y0", "z0"):
    cage.addPerParticleParameter(parameter)
for index, place in enumerate(positions):
    cage.addParticle(index, place)
system.addForce(cage)
value = float(torch.jit.load(str(folder / "driver.pt"))(torch.tensor(positions)))
variable = openmm.app.BiasVariable(variable_force, value - 20, value + 20, 0.5, False)
metadynamics = openmm.app.Metadynamics(system, [variable], 300 * unit.kelvin, 10.0, 2.0, 5)
topology = openmm.app.Topology()
residue = topology.addResidue("X", topology.addChain())
for _ in positions:
    topology.addAtom("C", openmm.app.element.carbon, residue)
simulation = openmm.app.Simulation(
    topology,
    system,
    openmm.LangevinMiddleIntegrator(300, 1.0, 0.0005),
    openmm.Platform.getPlatformByName("Reference"),
)
simulation.context.setPositions(positions)
result["driver_from_module"] = value
result["driver_from_metadynamics"] = metadynamics.getCollectiveVariables(simulation)[0]
before = simulation.context.getState(forces=True).getForces(asNumpy=True).value_in_unit(FORCE)
metadynamics.step(simulation, 15)
simulation.context.setPositions(positions)
after = simulation.context.getState(forces=True).getForces(asNumpy=True).value_in_unit(FORCE)
result["hills_moved_the_force"] = float(np.abs(after - before).max())
assert not [name for name in sys.modules if name.startswith("uqbias")]
print(json.dumps(result))
