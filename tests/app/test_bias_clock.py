"""HILLS and COLVAR have the Context's time, whatever its steps are; a restart counts no hill twice."""

import numpy as np
import openmm
import pytest
from argon_atom import DT, metadynamics, particle, simulate

from uqbias.errors import UqbiasError
from uqbias.runs.series import read_colvar


def sampled(folder, integrator=None, **options):
    """A bias that writes to a folder, with a row of COLVAR every 5 and a hill every 10 steps, and its Simulation."""
    system, topology = particle()
    options = {"hills": folder / "HILLS", "colvar": folder / "COLVAR", "pace": 5, **options}
    bias = metadynamics(system, 2.0, **options)
    return bias, simulate(system, topology, langevin() if integrator is None else integrator)


def langevin():
    integrator = openmm.LangevinMiddleIntegrator(300, 5.0, DT)
    integrator.setRandomNumberSeed(4)
    return integrator


def times(path):
    return read_colvar(path)["time"]


def time_of(simulation):
    return simulation.context.getState().getTime()._value


def compound():
    integrator = openmm.CompoundIntegrator()
    for step in (0.001, 0.003):
        integrator.addIntegrator(openmm.VerletIntegrator(step))
    return integrator


STEPS = {
    "variable langevin": lambda: openmm.VariableLangevinIntegrator(300, 1, 0.001),
    "variable verlet": lambda: openmm.VariableVerletIntegrator(1e-4),
    "changed": lambda: openmm.VerletIntegrator(0.001),
    "another of a compound": compound,
    "clock that is set": lambda: openmm.VerletIntegrator(0.001),
}


@pytest.mark.parametrize("name", STEPS)
def test_hills_have_the_time_of_the_context(name, tmp_path):
    bias, simulation = sampled(tmp_path, STEPS[name]())
    expected = []
    for part in range(4):
        if part == 2 and name == "changed":
            simulation.integrator.setStepSize(0.003)
        if part == 2 and "compound" in name:
            simulation.integrator.setCurrentIntegrator(1)
        if part == 2 and "set" in name:
            simulation.context.setTime(7.0)
        bias.step(simulation, 10)
        expected.append(time_of(simulation))
    assert len(set(np.diff(expected).round(7))) > 1
    np.testing.assert_allclose(times(tmp_path / "HILLS"), expected, atol=6e-7)
    np.testing.assert_allclose(times(tmp_path / "COLVAR")[1::2], expected, atol=6e-7)


@pytest.mark.parametrize("name", STEPS)
def test_a_restart_and_a_snapshot_keep_the_times(name, tmp_path):
    bias, simulation = sampled(tmp_path, STEPS[name]())
    bias.step(simulation, 30)
    bias.save(simulation, tmp_path / "s.npz")
    kept = (tmp_path / "HILLS").read_text(), (tmp_path / "COLVAR").read_text()
    bias.step(simulation, 20)
    bias, simulation = sampled(tmp_path, STEPS[name]())
    bias.load(simulation, tmp_path / "s.npz")
    assert ((tmp_path / "HILLS").read_text(), (tmp_path / "COLVAR").read_text()) == kept

    bias, simulation = sampled(tmp_path, STEPS[name](), restart=True)
    bias.step(simulation, 20)
    assert len(bias.metadynamics.hills) == 5
    assert (tmp_path / "HILLS").read_text().startswith(kept[0])
    assert times(tmp_path / "HILLS")[-1] == pytest.approx(time_of(simulation), abs=6e-7)


def test_each_simulation_has_its_own_time(tmp_path):
    system, topology = particle()
    bias = metadynamics(system, hills=tmp_path / "HILLS", colvar=tmp_path / "COLVAR")
    simulations = [simulate(system, topology, openmm.VerletIntegrator(step)) for step in (0.001, 0.002)]
    for _ in range(2):
        for simulation in simulations:
            bias.step(simulation, 10)
    for name in ("HILLS", "COLVAR"):
        np.testing.assert_allclose(times(tmp_path / name), [0.01, 0.02, 0.02, 0.04])


def test_hills_in_a_common_folder_have_it_too(tmp_path):
    system, topology = particle()
    bias = metadynamics(system, saveFrequency=20, biasDir=tmp_path / "common", colvar=tmp_path / "COLVAR")
    bias.step(simulate(system, topology, STEPS["variable verlet"]()), 30)
    (path,) = (tmp_path / "common").iterdir()
    assert len(times(path)) == 3
    np.testing.assert_array_equal(times(path), times(tmp_path / "COLVAR"))


@pytest.fixture
def behind_a_checkpoint(tmp_path):
    """A run of 95 steps in a folder, its checkpoint of step 55, and the same run in another folder, uninterrupted."""
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        bias, simulation = sampled(tmp_path / name)
        bias.step(simulation, 55)
        simulation.saveCheckpoint(str(tmp_path / "run.chk"))
        bias.step(simulation, 40)
    return tmp_path


def test_a_restart_behind_an_older_checkpoint_is_refused(behind_a_checkpoint):
    folder = behind_a_checkpoint / "killed"
    files = {path: path.read_text() for path in folder.iterdir()}
    bias, simulation = sampled(folder, restart=True)
    simulation.loadCheckpoint(str(folder.parent / "run.chk"))
    with pytest.raises(UqbiasError, match=r"4 hills later than this state \(0\.11 ps\).*twice; restart='cut'"):
        bias.step(simulation, 40)
    assert simulation.currentStep == 55
    assert {path: path.read_text() for path in folder.iterdir()} == files


def test_a_restart_that_cuts_goes_on_as_if_never_killed(behind_a_checkpoint):
    whole, folder = behind_a_checkpoint / "whole", behind_a_checkpoint / "killed"
    files = {path.name: path.read_text() for path in folder.iterdir()}
    bias, simulation = sampled(folder, restart="cut")
    simulation.loadCheckpoint(str(folder.parent / "run.chk"))
    bias.step(simulation, 40)
    for name in ("HILLS", "COLVAR"):
        ours, expected = read_colvar(folder / name), read_colvar(whole / name)
        np.testing.assert_array_equal(ours["time"], expected["time"])
        for column in expected:
            np.testing.assert_allclose(ours[column], expected[column], rtol=1e-5, atol=1e-7)
        assert (folder / f"bck.0.{name}").read_text() == files[name]
    assert bias.metadynamics.hills["step"].tolist() == list(range(10, 91, 10))


def test_rows_of_colvar_are_not_there_twice_either(tmp_path):
    bias, simulation = sampled(tmp_path)
    bias.step(simulation, 10)
    simulation.saveCheckpoint(str(tmp_path / "run.chk"))
    bias.step(simulation, 5)
    for restart in (True, "cut"):
        bias, simulation = sampled(tmp_path, restart=restart)
        simulation.loadCheckpoint(str(tmp_path / "run.chk"))
        if restart is True:
            with pytest.raises(UqbiasError, match="COLVAR has rows later than this state"):
                bias.step(simulation, 10)
    bias.step(simulation, 10)
    np.testing.assert_allclose(times(tmp_path / "COLVAR"), DT * np.array([5, 10, 15, 20]))
    assert not (tmp_path / "bck.0.HILLS").exists()


def test_what_is_no_restart_behind_a_checkpoint(behind_a_checkpoint):
    """A new trajectory, and a checkpoint that is newer than the hills; then the checkpoint of that new one."""
    folder, checkpoint = behind_a_checkpoint / "killed", str(behind_a_checkpoint / "run.chk")
    bias, simulation = sampled(folder, restart=True)
    bias.step(simulation, 60)
    simulation.saveCheckpoint(checkpoint)
    assert len(bias.metadynamics.hills) == 9 + 6
    bias, simulation = sampled(folder, restart=True)
    simulation.loadCheckpoint(checkpoint)
    bias.step(simulation, 40)
    assert len(bias.metadynamics.hills) == 9 + 6 + 4
    bias, simulation = sampled(folder, restart="cut")
    simulation.loadCheckpoint(checkpoint)
    bias.step(simulation, 10)
    assert len(bias.metadynamics.hills) == 9 + 6 + 1
    assert len(times(folder / "HILLS")) == 9 + 6 + 1
    assert len(times(folder / "COLVAR")) == 19 + 12 + 2
    with pytest.raises(UqbiasError, match="restart='back'"):
        sampled(folder, restart="back")


def test_a_simulation_that_is_put_back(tmp_path):
    """By a checkpoint in the same process; not by a snapshot, and not for another trajectory."""
    bias, simulation = sampled(tmp_path)
    bias.step(simulation, 50)
    simulation.saveCheckpoint(str(tmp_path / "run.chk"))
    bias.save(simulation, tmp_path / "s.npz")
    bias.step(simulation, 45)
    simulation.loadCheckpoint(str(tmp_path / "run.chk"))
    with pytest.raises(UqbiasError, match=r"put back from 0\.19 to 0\.1 ps.*setTime\(0\)"):
        bias.step(simulation, 40)
    assert len(bias.metadynamics.hills) == 9
    bias.load(simulation, tmp_path / "s.npz")
    bias.step(simulation, 40)
    assert len(bias.metadynamics.hills) == len(times(tmp_path / "HILLS")) == 9
    simulation.context.setTime(0)
    simulation.currentStep = 0
    bias.step(simulation, 90)
    assert len(bias.metadynamics.hills) == len(times(tmp_path / "HILLS")) == 18
