"""The tiny model's molecule as a user's own System, beside atoms that the model does not know."""

import numpy as np
import openmm
from openmm import app

import uqbias
from uqbias.bias.fixed import UpperWall
from uqbias.bias.metad import MetaD

#: The model's atoms: after two argon atoms.
ATOMS = [2, 3, 4, 5, 6]
TIMESTEP = 0.0005  # ps


def caged_molecule(model, positions, extra=2, field=True):
    """System, Topology and positions [n, 3] nm of ``extra`` argon atoms and the model's atoms.

    With ``field`` a harmonic cage stands for a force field.
    """
    topology = app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    system = openmm.System()
    cage = openmm.CustomExternalForce("200*(x^2+y^2+z^2)")
    for number in (18,) * extra + model.numbers:
        element = app.Element.getByAtomicNumber(number)
        topology.addAtom(element.symbol, element, residue)
        cage.addParticle(system.addParticle(element.mass))
    if field:
        system.addForce(cage)
    return system, topology, np.concatenate([np.eye(3)[:extra], positions[0].numpy()])


def bond(first=0, second=4):
    """A distance between an argon atom and one of the molecule."""
    force = openmm.CustomBondForce("r")
    force.addBond(first, second)
    return force


def langevin(seed=3):
    integrator = openmm.LangevinMiddleIntegrator(300, 5.0, TIMESTEP)
    integrator.setRandomNumberSeed(seed)
    return integrator


def simulate(system, topology, positions, integrator=None):
    platform = openmm.Platform.getPlatformByName("Reference")
    simulation = app.Simulation(topology, system, integrator or langevin(), platform)
    simulation.context.setPositions(positions)
    simulation.context.setVelocitiesToTemperature(300, 1)
    return simulation


def state_of(simulation):
    state = simulation.context.getState(positions=True, velocities=True)
    return np.concatenate([state.getPositions(asNumpy=True)._value, state.getVelocities(asNumpy=True)._value])


def sampled(system, model, biases, folder=None, **options):
    files = (
        {"hills": None, "colvar": None} if folder is None else {"hills": folder / "HILLS", "colvar": folder / "COLVAR"}
    )
    settings = {"atoms": ATOMS, "temperature": 300, "runner": "eager", **files}
    return uqbias.Sampling(system, model, biases, **{**settings, **options})


def two_dimensional(model, positions, folder, **options):
    """A run on (u, a distance to an argon atom), with a wall; float32, as users run it."""
    system, topology, x = caged_molecule(model, positions)
    hills = MetaD(variables=["driver", "d"], sigma=[0.3, 0.05], pace=10, height=2.0)
    biases = [hills, UpperWall(at=1.0, variables=["d"], kappa=100.0)]
    sampling = sampled(system, model, biases, folder, variables={"d": bond()}, **options)
    return sampling, simulate(system, topology, x)
