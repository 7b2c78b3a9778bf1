"""The bias in somebody's own OpenMM script, and the CV in OpenMM's own metadynamics."""

import numpy as np
import openmm
import pytest
import torch
from openmm import app, unit

from uqbias.errors import UqbiasError
from uqbias.md.metadynamics import Metadynamics, uncertainty_cv_force
from uqbias.md.reporters import read_colvar, read_hills

# Two argon-like atoms and the five atoms of the tiny model, so that the model's atoms are only some.
ATOMS = [2, 3, 4, 5, 6]


def script(tiny_model, tiny_positions, extra=2):
    """System and Simulation as a user has them: harmonic bonds to the origin stand for a force field."""
    topology = app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    system = openmm.System()
    field = openmm.CustomExternalForce("200*(x^2+y^2+z^2)")
    for number in (18,) * extra + tiny_model.numbers:
        element = app.Element.getByAtomicNumber(number)
        topology.addAtom(element.symbol, element, residue)
        field.addParticle(system.addParticle(element.mass))
    positions = np.concatenate([np.eye(3)[:extra], tiny_positions[0].numpy()])
    return topology, system, field, positions


def predict(model, positions):
    with torch.no_grad():
        return model(torch.tensor(positions)[None])


def simulate(topology, system, positions, seed=1):
    integrator = openmm.LangevinMiddleIntegrator(300, 5.0, 0.0005)
    integrator.setRandomNumberSeed(seed)
    simulation = app.Simulation(topology, system, integrator, openmm.Platform.getPlatformByName("Reference"))
    simulation.context.setPositions(positions)
    simulation.context.setVelocitiesToTemperature(300, seed)
    return simulation


@pytest.mark.parametrize("drive", ["model", "bias"])
def test_three_lines_in_a_script(tmp_path, tiny_model, tiny_positions, drive):
    extra = 2
    topology, system, field, positions = script(tiny_model, tiny_positions)
    if drive == "bias":
        system.addForce(field)
    files = {"hills": tmp_path / "HILLS", "colvar": tmp_path / "COLVAR"}
    bias = Metadynamics(
        tiny_model, temperature=300, height=2.0, sigma=0.3, pace=20, wall=3.0, drive=drive, runner="eager", **files
    )
    system.addForce(bias.force(atoms=ATOMS))
    simulation = simulate(topology, system, positions)
    simulation.reporters.append(bias)
    simulation.reporters.append(app.StateDataReporter(str(tmp_path / "log"), 20, step=True))
    before = bias.evaluator.n_evaluations
    simulation.step(200)

    # One for each of the 201 places visited.
    assert bias.evaluator.n_evaluations - before == 201
    assert len(bias.metadynamics.hills) == 10
    hills, colvar = read_hills(tmp_path / "HILLS", 0.5), read_colvar(tmp_path / "COLVAR")
    np.testing.assert_array_equal(hills["step"], np.arange(20, 201, 20))
    np.testing.assert_allclose(colvar["u"], hills["centre"], rtol=1e-8)
    np.testing.assert_allclose(colvar["time"], np.arange(1, 11) * 0.01)

    x = simulation.context.getState(positions=True).getPositions(asNumpy=True)._value[extra:]
    model = predict(tiny_model, x)
    assert colvar["u"][-1] == pytest.approx(float(model.cv), rel=1e-4)
    assert colvar["energy"][-1] == pytest.approx(float(model.energy), rel=1e-4)

    # The force is the derivative of the energy that OpenMM sees: E + V, or V alone.
    v = bias.metadynamics.value(model.cv.numpy())[0]
    field_energy = 200 * (simulation_positions(simulation) ** 2).sum() if drive == "bias" else float(model.energy)
    wall = 20.0 * max(0.0, float(model.cv) - 3.0) ** 2
    energies = [simulation.context.getState(energy=True).getPotentialEnergy()._value for _ in range(2)]
    # At the step of a deposition the bias is still without the new hill; that hill acts from the next evaluation on.
    assert energies[0] == pytest.approx(field_energy + colvar["bias"][-1], rel=1e-4)
    assert energies[1] == pytest.approx(field_energy + v + wall, rel=1e-4)
    assert energies[1] - energies[0] == pytest.approx(hills["height"][-1], rel=1e-2)

    # Continue in a new simulation from the files.
    again = Metadynamics(
        tiny_model, temperature=300, height=2.0, sigma=0.3, pace=20, drive=drive, runner="eager", restart=True, **files
    )
    u = np.linspace(0, 4, 50)
    np.testing.assert_allclose(again.metadynamics.value(u), bias.metadynamics.value(u), atol=1e-4)
    topology, system, field, _ = script(tiny_model, tiny_positions)
    system.addForce(field)
    system.addForce(again.force(atoms=ATOMS))
    simulation = simulate(topology, system, simulation_positions(simulation))
    simulation.currentStep = 200
    simulation.reporters.append(again)
    simulation.step(40)
    hills = read_hills(tmp_path / "HILLS", 0.5)
    np.testing.assert_array_equal(hills["step"], np.arange(20, 241, 20))
    np.testing.assert_array_equal(again.metadynamics.hills["step"], hills["step"])
    assert len(read_colvar(tmp_path / "COLVAR")["time"]) == 12


def simulation_positions(simulation):
    return simulation.context.getState(positions=True).getPositions(asNumpy=True)._value


def test_bias_only_forces_are_derivatives(tiny_model, tiny_positions):
    topology, system, _, positions = script(tiny_model, tiny_positions)
    bias = Metadynamics(
        tiny_model, temperature=300, drive="bias", pace=1, runner="eager", dtype=torch.float64, hills=None, colvar=None
    )
    system.addForce(bias.force(atoms=ATOMS))
    simulation = simulate(topology, system, positions)
    model = predict(tiny_model, positions[2:])
    bias.metadynamics.update(1, model.cv.numpy()[:, None] - 0.5)
    check_forces(simulation.context, positions)
    forces = simulation.context.getState(forces=True).getForces(asNumpy=True)._value
    assert np.abs(forces[:2]).max() == 0
    assert np.abs(forces[2:]).max() > 1e-3


def check_forces(context, positions, step=1e-5, tolerance=1e-6):
    context.setPositions(positions)
    forces = context.getState(forces=True).getForces(asNumpy=True)._value
    numeric = np.zeros_like(positions)
    for index in np.ndindex(*positions.shape):
        energies = []
        for sign in (1, -1):
            moved = positions.copy()
            moved[index] += sign * step
            context.setPositions(moved)
            energies.append(context.getState(energy=True).getPotentialEnergy()._value)
        numeric[index] = -(energies[0] - energies[1]) / (2 * step)
    assert np.abs(forces - numeric).max() <= tolerance * max(1.0, np.abs(numeric).max())
    context.setPositions(positions)


def test_cv_force_in_openmms_own_metadynamics(tiny_model, tiny_positions):
    topology, system, field, positions = script(tiny_model, tiny_positions)
    system.addForce(field)
    force = uncertainty_cv_force(tiny_model, ATOMS, backend="pythonforce", runner="eager", dtype=torch.float64)
    start = float(predict(tiny_model, positions[2:]).cv)
    variable = app.BiasVariable(force, start - 2, start + 2, 0.2)
    metadynamics = app.Metadynamics(system, [variable], 300 * unit.kelvin, 10.0, 1.0, 10)
    simulation = simulate(topology, system, positions)
    assert metadynamics.getCollectiveVariables(simulation)[0] == pytest.approx(start, rel=1e-9)
    metadynamics.step(simulation, 50)
    x = simulation_positions(simulation)
    expected = float(predict(tiny_model, x[2:]).cv)
    assert metadynamics.getCollectiveVariables(simulation)[0] == pytest.approx(expected, rel=1e-9)
    assert np.ptp(metadynamics.getFreeEnergy()._value) > 1.0


def test_cv_force_is_u_and_its_derivative(tiny_model, tiny_positions):
    topology, system, _, positions = script(tiny_model, tiny_positions)
    cv = openmm.CustomCVForce("3*u^2")
    cv.addCollectiveVariable("u", uncertainty_cv_force(tiny_model, ATOMS, runner="eager", dtype=torch.float64))
    system.addForce(cv)
    simulation = simulate(topology, system, positions)
    check_forces(simulation.context, positions)
    u = float(predict(tiny_model, positions[2:]).cv)
    assert simulation.context.getState(energy=True).getPotentialEnergy()._value == pytest.approx(3 * u**2)


def test_wrong_atoms_are_refused_before_the_first_step(tiny_model, tiny_positions):
    topology, system, _, positions = script(tiny_model, tiny_positions)
    bias = Metadynamics(tiny_model, temperature=300, runner="eager", hills=None, colvar=None)
    system.addForce(bias.force(atoms=[0, 1, 2, 3, 4]))
    simulation = simulate(topology, system, positions)
    simulation.reporters.append(bias)
    with pytest.raises(UqbiasError, match=r"elements \(18, 18, 6, 1, 1\)"):
        simulation.step(10)
    with pytest.raises(UqbiasError, match="did you mean 'bias'"):
        Metadynamics(tiny_model, temperature=300, drive="bia")
    with pytest.raises(UqbiasError, match="no such model file"):
        Metadynamics("nowhere.uqb", temperature=300)


def test_reporter_without_the_force_is_an_error(tiny_model, tiny_positions):
    topology, system, field, positions = script(tiny_model, tiny_positions, extra=0)
    system.addForce(field)
    bias = Metadynamics(tiny_model, temperature=300, pace=5, runner="eager", hills=None, colvar=None)
    simulation = simulate(topology, system, positions)
    simulation.reporters.append(bias)
    with pytest.raises(UqbiasError, match="not in the simulation's System"):
        simulation.step(10)


def test_torchforce_in_a_customcvforce_is_refused_where_it_crashes(tiny_model):
    pytest.importorskip("openmmtorch")
    version = tuple(int(part) for part in openmm.version.version.split(".")[:2])
    if version < (8, 6):
        pytest.skip("this OpenMM copies a TorchForce without harm")
    with pytest.raises(UqbiasError, match="pythonforce"):
        uncertainty_cv_force(tiny_model, backend="torchforce")
