"""The bias in the user's own OpenMM script, and the CV in OpenMM's own metadynamics."""

import subprocess
import sys

import numpy as np
import openmm
import pytest
import torch
from caged_molecule import ATOMS, caged_molecule
from openmm import app, unit

import uqbias
from uqbias.errors import UqbiasError
from uqbias.runs.hills import read_hills
from uqbias.runs.series import read_colvar


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


def biased(system, model, width=0.3, **options):
    """The second line of the script."""
    settings = {"temperature": 300, "biasFactor": 10, "height": 2.0, "frequency": 20, "atoms": ATOMS, "runner": "eager"}
    variable = uqbias.BiasVariable(model, biasWidth=width)
    return uqbias.Metadynamics(system, [variable], **{**settings, **options})


@pytest.mark.parametrize("drive", ["model", "bias"])
def test_three_lines_in_a_script(tmp_path, tiny_model, tiny_positions, drive):
    extra = 2
    system, topology, positions = caged_molecule(tiny_model, tiny_positions, field=drive == "bias")
    files = {"hills": tmp_path / "HILLS", "colvar": tmp_path / "COLVAR"}
    bias = biased(system, tiny_model, wall=3.0, drive=drive, **files)
    simulation = simulate(topology, system, positions)
    simulation.reporters.append(bias)
    simulation.reporters.append(app.StateDataReporter(str(tmp_path / "log"), 20, potentialEnergy=True))
    before = bias.evaluator.n_evaluations
    simulation.step(200)

    # One for each of the 201 places visited, whatever the other reporter asks for.
    assert bias.evaluator.n_evaluations - before == 201
    assert len(bias.metadynamics.hills) == 10
    hills, colvar = read_hills(tmp_path / "HILLS", 0.5), read_colvar(tmp_path / "COLVAR")
    np.testing.assert_array_equal(hills["step"], np.arange(20, 201, 20))
    np.testing.assert_allclose(colvar["driver"], hills["centre"][:, 0], rtol=1e-8)
    np.testing.assert_allclose(colvar["time"], np.arange(1, 11) * 0.01)

    x = simulation_positions(simulation)[extra:]
    model = predict(tiny_model, x)
    assert colvar["driver"][-1] == pytest.approx(float(model.driver), rel=1e-4)
    assert colvar["energy"][-1] == pytest.approx(float(model.energy), rel=1e-4)

    # The force is the derivative of the energy that OpenMM sees: E + V, or V alone.
    field_energy = 200 * (simulation_positions(simulation) ** 2).sum() if drive == "bias" else float(model.energy)
    # At the step of a deposition the bias is still without the new hill, for all who ask: that hill acts from the next
    # positions on.
    for _ in range(2):
        energy = simulation.context.getState(energy=True).getPotentialEnergy()._value
        assert energy == pytest.approx(field_energy + colvar["bias"][-1], rel=1e-4)
    simulation.context.setPositions(simulation_positions(simulation) + 1e-9)
    v = bias.metadynamics.value(model.driver.numpy())[0] + 20.0 * max(0.0, float(model.driver) - 3.0) ** 2
    later = simulation.context.getState(energy=True).getPotentialEnergy()._value
    assert later == pytest.approx(field_energy + v, rel=1e-4)
    assert later - energy == pytest.approx(hills["height"][-1], rel=1e-2)

    # Continue in a new simulation from the files.
    system, topology, _ = caged_molecule(tiny_model, tiny_positions)
    again = biased(system, tiny_model, drive=drive, restart=True, **files)
    u = np.linspace(0, 4, 50)
    np.testing.assert_allclose(again.metadynamics.value(u), bias.metadynamics.value(u), atol=1e-4)
    simulation = simulate(topology, system, simulation_positions(simulation))
    simulation.currentStep = 200
    simulation.context.setTime(0.1)
    simulation.reporters.append(again)
    simulation.step(40)
    hills = read_hills(tmp_path / "HILLS", 0.5)
    np.testing.assert_array_equal(hills["step"], np.arange(20, 241, 20))
    np.testing.assert_array_equal(again.metadynamics.hills["step"], hills["step"])
    assert len(read_colvar(tmp_path / "COLVAR")["time"]) == 12


def simulation_positions(simulation):
    return simulation.context.getState(positions=True).getPositions(asNumpy=True)._value


def test_bias_only_forces_are_derivatives(tiny_model, tiny_positions):
    system, topology, positions = caged_molecule(tiny_model, tiny_positions, field=False)
    bias = biased(system, tiny_model, frequency=1, dtype=torch.float64, hills=None, colvar=None)
    simulation = simulate(topology, system, positions)
    model = predict(tiny_model, positions[2:])
    bias.metadynamics.update(1, model.driver.numpy()[:, None] - 0.5)
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
    system, topology, positions = caged_molecule(tiny_model, tiny_positions)
    force = uqbias.uncertainty_cv_force(tiny_model, ATOMS, backend="pythonforce", runner="eager", dtype=torch.float64)
    start = float(predict(tiny_model, positions[2:]).driver)
    variable = app.BiasVariable(force, start - 2, start + 2, 0.2)
    metadynamics = app.Metadynamics(system, [variable], 300 * unit.kelvin, 10.0, 1.0, 10)
    simulation = simulate(topology, system, positions)
    assert metadynamics.getCollectiveVariables(simulation)[0] == pytest.approx(start, rel=1e-9)
    metadynamics.step(simulation, 50)
    x = simulation_positions(simulation)
    expected = float(predict(tiny_model, x[2:]).driver)
    assert metadynamics.getCollectiveVariables(simulation)[0] == pytest.approx(expected, rel=1e-9)
    assert np.ptp(metadynamics.getFreeEnergy()._value) > 1.0


def test_cv_force_is_u_and_its_derivative(tiny_model, tiny_positions):
    system, topology, positions = caged_molecule(tiny_model, tiny_positions, field=False)
    driver = openmm.CustomCVForce("3*driver^2")
    driver.addCollectiveVariable(
        "driver", uqbias.uncertainty_cv_force(tiny_model, ATOMS, runner="eager", dtype=torch.float64)
    )
    system.addForce(driver)
    simulation = simulate(topology, system, positions)
    check_forces(simulation.context, positions)
    u = float(predict(tiny_model, positions[2:]).driver)
    assert simulation.context.getState(energy=True).getPotentialEnergy()._value == pytest.approx(3 * u**2)


READ = """
import sys
import numpy as np, openmm
system = openmm.XmlSerializer.deserialize(open(sys.argv[1]).read())
x = np.load(sys.argv[2])
context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
context.setPositions(x)
for _ in range(2):
    state = context.getState(energy=True, forces=True)
again = openmm.XmlSerializer.serialize(system)
np.savez(sys.argv[3], energy=state.getPotentialEnergy()._value, forces=state.getForces(asNumpy=True)._value, xml=again)
"""


def elsewhere(folder, system_xml, positions):
    """Energy and forces that another process finds, or what it says on standard error."""
    (folder / "system.xml").write_text(system_xml)
    np.save(folder / "x.npy", positions)
    command = [sys.executable, "-c", READ, *(str(folder / name) for name in ("system.xml", "x.npy", "found.npz"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        assert done.returncode == 1, done  # not a crash
        return done.stderr
    return np.load(folder / "found.npz")


def here(system, positions):
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    context.setPositions(positions)
    state = context.getState(energy=True, forces=True)
    return state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value


def test_cv_force_in_xml(tmp_path, alanine_model, alanine_frames):
    path = tmp_path / "model.uqb"
    alanine_model.save(path)
    system = openmm.System()
    for _ in range(23):
        system.addParticle(12.0)
    driver = openmm.CustomCVForce("driver^2")
    force = uqbias.uncertainty_cv_force(path, list(range(1, 23)), runner="eager", dtype=torch.float64)
    driver.addCollectiveVariable("driver", force)
    system.addForce(driver)
    x = np.concatenate([np.zeros((1, 3)), alanine_frames.positions[3]])
    energy, forces = here(system, x)
    assert energy > 1e-3
    xml = openmm.XmlSerializer.serialize(system)
    found = elsewhere(tmp_path, xml, x)
    assert found["energy"] == pytest.approx(energy, rel=1e-12)
    np.testing.assert_allclose(found["forces"], forces, atol=1e-9 * np.abs(forces).max())
    # Written again there, it can still be read, here and elsewhere.
    again = elsewhere(tmp_path, str(found["xml"]), x)
    assert again["energy"] == pytest.approx(energy, rel=1e-12)

    # In this process the evaluator is shared.
    copy = openmm.XmlSerializer.deserialize(xml)
    path.unlink()
    assert here(copy, x)[0] == pytest.approx(energy, rel=1e-12)
    said = elsewhere(tmp_path, xml, x)
    assert "no such model file" in said
    assert str(path) in said

    in_memory = openmm.System()
    for _ in range(22):
        in_memory.addParticle(12.0)
    in_memory.addForce(uqbias.uncertainty_cv_force(alanine_model, runner="eager", dtype=torch.float64))
    said = elsewhere(tmp_path, openmm.XmlSerializer.serialize(in_memory), x[1:])
    assert "a model in memory" in said


def test_biases_in_xml(tmp_path, alanine_model, alanine_frames):
    """Elsewhere the force has the bias as it was when it was written, and keeps it."""
    path = tmp_path / "model.uqb"
    alanine_model.save(path)
    system = openmm.System()
    for _ in range(22):
        system.addParticle(12.0)
    bond = openmm.CustomBondForce("r")
    bond.addBond(4, 14)
    variables = [uqbias.BiasVariable(path, biasWidth=1.0), uqbias.BiasVariable(bond, biasWidth=0.05)]
    options = {"runner": "eager", "dtype": torch.float64, "hills": None, "colvar": None}
    bias = uqbias.Metadynamics(system, variables, 300, 10, 3.0, 1, **options)
    x = alanine_frames.positions[3]
    plain = openmm.XmlSerializer.serialize(system)
    here(system, x)
    bias.metadynamics.update(1, bias.evaluator.last.variables.numpy() + np.array([[0.3, 0.02]]))
    energy, forces = here(system, x)
    assert energy == pytest.approx(3.0 * np.exp(-(0.3**2) / 2 - 0.4**2 / 2), rel=1e-4)
    found = elsewhere(tmp_path, bias.serialize(system), x)
    assert found["energy"] == pytest.approx(energy, rel=1e-12)
    np.testing.assert_allclose(found["forces"], forces, atol=1e-9 * np.abs(forces).max())
    # OpenMM alone cannot write the bias as it is; nothing is computed without it.
    assert "Sampling.serialize(system)" in elsewhere(tmp_path, plain, x)
    assert here(openmm.XmlSerializer.deserialize(plain), x)[0] == pytest.approx(energy, rel=1e-12)
    with pytest.raises(UqbiasError, match="does not have the force"):
        bias.serialize(openmm.System())


def test_wrong_atoms_are_refused_before_the_first_step(tiny_model, tiny_positions, tmp_path):
    system, topology, positions = caged_molecule(tiny_model, tiny_positions, field=False)
    quiet = {"hills": tmp_path / "HILLS", "colvar": None}
    bias = biased(system, tiny_model, atoms=[0, 1, 2, 3, 4], **quiet)
    simulation = simulate(topology, system, positions)
    simulation.reporters.append(bias)
    with pytest.raises(UqbiasError, match=r"elements \(18, 18, 6, 1, 1\)"):
        simulation.step(10)
    assert not (tmp_path / "HILLS").exists()
    for atoms, message in (
        ([0, 1, 2], "3 atoms for a model of 5"),
        ([2, 3, 4, 5, 7], "atom 7 in a System of 7 particles"),
        ([2, 3, 4, 5, 5], "twice"),
        (None, "a model of 5 atoms for a System of 7 particles"),
    ):
        forces = system.getNumForces()
        with pytest.raises(UqbiasError, match=message):
            biased(system, tiny_model, atoms=atoms, **quiet)
        assert system.getNumForces() == forces
    with pytest.raises(UqbiasError, match="did you mean 'bias'"):
        biased(system, tiny_model, drive="bia", **quiet)
    with pytest.raises(UqbiasError, match="no such model file"):
        biased(system, "nowhere.uqb", **quiet)


def test_reporter_without_the_force_is_an_error(tiny_model, tiny_positions):
    system, topology, positions = caged_molecule(tiny_model, tiny_positions, extra=0)
    bias = biased(openmm.XmlSerializer.clone(system), tiny_model, atoms=None, frequency=5, hills=None, colvar=None)
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
        uqbias.uncertainty_cv_force(tiny_model, backend="torchforce")
