"""An argon atom in a harmonic field, and metadynamics on one of its coordinates, ours or that of OpenMM."""

import openmm
import torch
from openmm import app

import uqbias

QUIET = {"runner": "eager", "dtype": torch.float64, "hills": None, "colvar": None}
DT = 0.002


def coordinate(axis="x"):
    force = openmm.CustomExternalForce(axis)
    force.addParticle(0)
    return force


def particle():
    """An argon atom in a harmonic field, in force group 0."""
    system, topology = openmm.System(), app.Topology()
    system.addParticle(39.9)
    topology.addAtom("AR", app.element.argon, topology.addResidue("AR", topology.addChain()))
    field = openmm.CustomExternalForce("50*(x^2+y^2+z^2)")
    field.addParticle(0)
    system.addForce(field)
    return system, topology


def metadynamics(system, height=1.0, make=uqbias, frequency=10, **options):
    options = {**QUIET, **options} if make is uqbias else {}
    variable = make.BiasVariable(coordinate(), -1.0, 1.0, 0.05, False, 801)
    return make.Metadynamics(system, [variable], 300, 5, height, frequency, **options)


def simulate(system, topology, integrator=None, x=0.1):
    integrator = openmm.VerletIntegrator(DT) if integrator is None else integrator
    simulation = app.Simulation(topology, system, integrator, openmm.Platform.getPlatformByName("Reference"))
    simulation.context.setPositions([[x, 0.05, 0.0]])
    return simulation


def place(simulation):
    return simulation.context.getState(positions=True).getPositions(asNumpy=True)._value
