"""A model of atoms in a cell as a force in the user's own periodic System."""

import numpy as np
import openmm
import pytest
import torch
from openmm import app, unit
from periodic_systems import CELLS, atoms
from toy_crystal import Crystal, Solid

import uqbias
from uqbias.bias.metad import MetaD
from uqbias.compile.fused import FusedEvaluator
from uqbias.errors import UqbiasError

TRICLINIC = CELLS["triclinic"][0]


def crystal(box=TRICLINIC, argon=0):
    """A System of masses in a cell, with some argon that the model does not know; topology, positions, the model."""
    numbers, positions = atoms(box, (True, True, True), seed=3)
    model = Solid(list(numbers))
    model.provenance = {"reference_cell_nm": box.tolist(), "reference_periodic": [True] * 3}
    system, topology = openmm.System(), app.Topology()
    chain = topology.addChain()
    for index, number in enumerate([*list(numbers), *[18] * argon]):
        element = app.Element.getByAtomicNumber(int(number))
        topology.addAtom(f"X{index}", element, topology.addResidue("X", chain))
        system.addParticle(element.mass)
    system.setDefaultPeriodicBoxVectors(*box * unit.nanometer)
    x = np.concatenate([positions[0], np.linspace(0.1, 0.4, argon)[:, None] * np.ones(3)])
    return system, topology, x, model


def run_of(system, topology, x, integrator=None):
    integrator = integrator or openmm.VerletIntegrator(0.001)
    simulation = app.Simulation(topology, system, integrator, openmm.Platform.getPlatformByName("Reference"))
    simulation.context.setPositions(x)
    return simulation


def sampled(system, model, biases=(), **options):
    settings = {"hills": None, "colvar": None, "temperature": 300, "runner": "eager", "dtype": torch.float64}
    return uqbias.Sampling(system, model, biases, backend="pythonforce", **settings | options)


def energy_of(simulation):
    return simulation.context.getState(energy=True).getPotentialEnergy()._value


def test_forces_across_the_boundary_and_in_a_stretched_box():
    system, topology, x, model = crystal()
    sampling = sampled(system, model, [MetaD(height=1.0, sigma=0.5, pace=10)], drive="model")
    simulation = run_of(system, topology, x)
    sampling.step(simulation, 20)
    assert len(sampling.bias.biases[0].hills) == 2
    sampling.bias.frozen = True
    x = x + TRICLINIC[1] + 0.5 * TRICLINIC[2]  # most atoms lie in other images now
    for box in (TRICLINIC, 1.03 * TRICLINIC):
        simulation.context.setPeriodicBoxVectors(*box * unit.nanometer)
        simulation.context.setPositions(x)
        forces = simulation.context.getState(forces=True).getForces(asNumpy=True)._value
        alone = FusedEvaluator(model, sampling.bias, 1, runner="eager", dtype=torch.float64, box=box)
        expected = alone.evaluate(torch.tensor(x)[None])
        assert energy_of(simulation) == pytest.approx(float(alone.total_energy), abs=1e-9)
        np.testing.assert_allclose(forces, expected.forces[0].numpy(), atol=1e-8)
        for atom, axis in ((0, 0), (5, 1), (11, 2)):
            there, h = x.copy(), 1e-5
            energies = []
            for sign in (1, -1):
                there[atom, axis] = x[atom, axis] + sign * h
                simulation.context.setPositions(there)
                energies.append(energy_of(simulation))
            assert forces[atom, axis] == pytest.approx((energies[1] - energies[0]) / (2 * h), abs=1e-4)
    # The stretched box is another energy than the first: the force is told it.
    energies = [float(alone.evaluate(torch.tensor(x)[None], box=torch.tensor(one)).energy) for one in (box, TRICLINIC)]
    assert np.ptp(energies) > 1


def test_energy_is_conserved():
    system, topology, x, model = crystal()
    sampling = sampled(system, model, drive="model")
    simulation = run_of(system, topology, x)
    simulation.context.setVelocitiesToTemperature(300, 1)
    totals = []
    for _ in range(60):
        sampling.step(simulation, 25)
        state = simulation.context.getState(energy=True)
        totals.append((state.getPotentialEnergy() + state.getKineticEnergy())._value)
    moved = simulation.context.getState(positions=True).getPositions(asNumpy=True)._value - x
    assert np.abs(moved).max() > 0.1  # beyond the skin: tables were made anew
    assert np.std(totals) < 0.02 * len(x) ** 0.5
    assert abs(np.polyfit(range(60), totals, 1)[0] * 60) < 0.02 * len(x) ** 0.5


def test_the_driver_as_a_variable_of_openmm():
    system, topology, x, model = crystal()
    variable = openmm.CustomCVForce("10*u")
    force = uqbias.uncertainty_cv_force(
        model, periodic=True, backend="pythonforce", runner="eager", dtype=torch.float64
    )
    variable.addCollectiveVariable("u", force)
    system.addForce(variable)
    simulation = run_of(system, topology, x)
    for box in (TRICLINIC, 0.97 * TRICLINIC):
        simulation.context.setPeriodicBoxVectors(*box * unit.nanometer)
        alone = FusedEvaluator(model, None, 1, runner="eager", dtype=torch.float64, box=box)
        expected = float(alone.evaluate(torch.tensor(x)[None]).driver)
        assert energy_of(simulation) == pytest.approx(10 * expected, rel=1e-9)
    with pytest.raises(UqbiasError, match="periodic=True"):
        uqbias.uncertainty_cv_force(model)


@pytest.mark.slow
def test_a_barostat_gives_the_volume_its_distribution():
    """V of a harmonic crystal under OpenMM's own barostat, from its analytic Boltzmann factor."""
    from toy_crystal import BULK, NEON, PLACES

    model = Crystal()
    model.topology, model.provenance = NEON, {"reference_periodic": [True] * 3}
    system, topology = openmm.System(), app.Topology()
    chain = topology.addChain()
    for name in ("NE1", "NE2"):
        topology.addAtom(name, app.Element.getByAtomicNumber(10), topology.addResidue("NEO", chain))
        system.addParticle(20.18)
    box = np.array([[1.0, 0, 0], [0.3, 1.0, 0], [0.1, -0.2, 1.0]])
    system.setDefaultPeriodicBoxVectors(*box * unit.nanometer)
    sampling = sampled(system, model, drive="model")
    system.addForce(openmm.MonteCarloBarostat(1.0, 300.0, 5))
    simulation = run_of(system, topology, PLACES @ box, openmm.LangevinMiddleIntegrator(300.0, 5.0, 0.004))
    volumes = []
    for _ in range(2000):
        sampling.step(simulation, 10)
        volumes.append(simulation.context.getState().getPeriodicBoxVolume()._value)
    grid = np.linspace(0.8, 1.2, 2001)
    weights = np.exp(2 * np.log(grid) - 0.5 * BULK * (grid - 1) ** 2 / (8.31446e-3 * 300))
    mean = np.average(grid, weights=weights)
    spread = np.average((grid - mean) ** 2, weights=weights) ** 0.5
    parts = np.reshape(volumes[200:], (9, 200)).mean(1)
    assert abs(np.mean(parts) - mean) < 4 * parts.std(ddof=1) / 3
    assert np.std(volumes[200:]) == pytest.approx(spread, rel=0.15)


def test_a_model_of_some_of_the_atoms():
    """Argon flies through a framework that the model alone holds; both feel the cell."""
    system, topology, x, model = crystal(argon=2)
    force = openmm.NonbondedForce()
    force.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
    force.setCutoffDistance(0.3)
    for _ in range(len(x)):
        force.addParticle(0.0, 0.2, 0.1)
    system.addForce(force)
    n = len(x) - 2
    hills = MetaD(height=1.0, sigma=0.5, pace=10)
    sampling = sampled(system, model, [hills], atoms=range(n), drive="model")
    simulation = run_of(system, topology, x)
    sampling.step(simulation, 10)
    state = simulation.context.getState(positions=True)
    here = state.getPositions(asNumpy=True)._value[:n]
    alone = FusedEvaluator(model, None, 1, runner="eager", dtype=torch.float64, box=TRICLINIC)
    assert sampling.getCollectiveVariables(simulation)[0] == pytest.approx(
        float(alone.evaluate(torch.tensor(here)[None]).driver), abs=1e-9
    )


def test_refusals():
    system, _, _, model = crystal()
    boxless = openmm.System()
    for index in range(system.getNumParticles()):
        boxless.addParticle(system.getParticleMass(index))
    with pytest.raises(UqbiasError, match="a model of atoms in a cell where none is told"):
        sampled(boxless, model, drive="model")
    assert boxless.getNumForces() == 0
    with pytest.raises(UqbiasError, match="'torchforce' with periodic boundaries"):
        uqbias.Sampling(system, model, [], drive="model", temperature=300, backend="torchforce", hills=None)
    model.provenance["reference_periodic"] = [True, True, False]
    with pytest.raises(UqbiasError, match="repeat along"):
        sampled(system, model, drive="model")
