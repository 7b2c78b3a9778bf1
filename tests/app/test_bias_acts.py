"""A bias acts, and once: whatever the integrator, however many Simulations and biases, whatever joins the System."""

import numpy as np
import openmm
import pytest
from argon_atom import DT, QUIET, coordinate, metadynamics, particle, place, simulate
from caged_molecule import caged_molecule, sampled
from caged_molecule import simulate as simulate_caged
from openmm import app

import uqbias
from uqbias.bias.fixed import Restraint
from uqbias.bias.gamd import GaMD
from uqbias.bias.linear import Linear
from uqbias.bias.metad import MetaD
from uqbias.errors import UqbiasError


def verlet(force="f"):
    integrator = openmm.CustomIntegrator(DT)
    for name, expression in (("v", f"v+0.5*dt*{force}/m"), ("x", "x+dt*v"), ("v", f"v+0.5*dt*{force}/m")):
        integrator.addComputePerDof(name, expression)
    return integrator


def kicks(*forces):
    integrator = openmm.CustomIntegrator(DT)
    for force in forces:
        integrator.addComputePerDof("v", f"v+dt*{force}/m")
    integrator.addComputePerDof("x", "x+dt*v")
    return integrator


def within_groups(groups):
    integrator = openmm.VerletIntegrator(DT)
    integrator.setIntegrationForceGroups(groups)
    return integrator


def compound(*parts):
    integrator = openmm.CompoundIntegrator()
    for part in parts:
        integrator.addIntegrator(part)
    return integrator


def of_stated_energy():
    """Moves of a Monte Carlo kind that only the energy of group 0 decides on."""
    integrator = openmm.CustomIntegrator(DT)
    integrator.addGlobalVariable("before", 0)
    integrator.addComputeGlobal("before", "energy0")
    integrator.addComputePerDof("x", "x+1e-5*gaussian")
    return integrator


IDLE = {
    "MTSIntegrator": lambda: openmm.MTSIntegrator(DT, [(0, 1)]),
    "MTSLangevinIntegrator": lambda: openmm.MTSLangevinIntegrator(300, 1, DT, [(0, 2), (1, 1)]),
    "VerletIntegrator": lambda: within_groups({0, 3}),
    "CustomIntegrator": lambda: verlet("f0"),
    "CustomIntegrator by energy": of_stated_energy,
    "CustomIntegrator in groups": lambda: _masked(verlet("f")),
    "CompoundIntegrator": lambda: compound(within_groups({0}), openmm.VerletIntegrator(DT)),
}


def _masked(integrator):
    integrator.setIntegrationForceGroups({0, 1})
    return integrator


@pytest.mark.parametrize("name", IDLE)
def test_an_integrator_that_leaves_the_force_out_is_refused(name, tmp_path):
    """Before a step is made and a file is touched; with the force in a group that is integrated it acts."""
    (tmp_path / "HILLS").write_text("of an earlier run\n")
    ends = []
    for height in (1e-9, 50.0):
        system, topology = particle()
        bias = metadynamics(system, height, hills=tmp_path / "HILLS")
        simulation = simulate(system, topology, IDLE[name]())
        with pytest.raises(UqbiasError, match=r"evaluates force groups \{0.*in group 31, never acts"):
            bias.step(simulation, 20)
        simulation.reporters.append(bias)
        with pytest.raises(UqbiasError, match=r"force\.setForceGroup\(0\)"):
            simulation.step(20)
        assert simulation.currentStep == len(bias.metadynamics.hills) == 0
        assert (tmp_path / "HILLS").read_text() == "of an earlier run\n"
        if "energy" in name:
            continue
        system, topology = particle()
        bias = metadynamics(system, height)
        bias.force.setForceGroup(0)
        simulation = simulate(system, topology, IDLE[name]())
        bias.step(simulation, 60)
        ends.append(place(simulation))
    assert not ends or np.abs(ends[0] - ends[1]).max() > 1e-5


ACTING = {
    "MTSIntegrator": lambda: openmm.MTSIntegrator(DT, [(0, 1), (31, 2)]),
    "MTSLangevinIntegrator": lambda: openmm.MTSLangevinIntegrator(300, 1, DT, [(31, 1), (0, 2)]),
    "groups": lambda: within_groups({31, 0}),
    "f31": lambda: kicks("f0", "f31"),
    "accelerated": lambda: openmm.AMDForceGroupIntegrator(DT, 2, 1.0, 1.0),
    "compound": lambda: compound(openmm.VerletIntegrator(DT), within_groups({0})),
    "nose-hoover": lambda: openmm.NoseHooverIntegrator(DT),
    "variable": lambda: openmm.VariableVerletIntegrator(1e-4),
}


@pytest.mark.parametrize("name", ACTING)
def test_hills_act_whatever_evaluates_them(name):
    ends = []
    for height in (1e-9, 50.0):
        system, topology = particle()
        bias = metadynamics(system, height)
        integrator = ACTING[name]()
        if hasattr(integrator, "setRandomNumberSeed"):
            integrator.setRandomNumberSeed(1)
        simulation = simulate(system, topology, integrator)
        bias.step(simulation, 60)
        assert len(bias.metadynamics.hills) == 6
        ends.append(place(simulation))
    assert np.abs(ends[0] - ends[1]).max() > 1e-5


def test_each_integrator_of_a_compound_is_looked_at():
    system, topology = particle()
    bias = metadynamics(system)
    integrator = compound(openmm.VerletIntegrator(DT), within_groups({0}))
    simulation = simulate(system, topology, integrator)
    bias.step(simulation, 20)
    integrator.setCurrentIntegrator(1)
    with pytest.raises(UqbiasError, match="never acts"):
        bias.step(simulation, 20)
    assert simulation.currentStep == 20
    integrator.setCurrentIntegrator(0)
    bias.step(simulation, 20)
    simulation.integrator.getIntegrator(0).setIntegrationForceGroups({0})
    with pytest.raises(UqbiasError, match="never acts"):
        bias.step(simulation, 20)
    assert bias.metadynamics.hills["step"].tolist() == [10, 20, 30, 40]


@pytest.mark.parametrize("used_before", [False, True])
def test_a_force_that_came_after_the_context(used_before, tmp_path):
    """OpenMM does not know it; a Context made anew does."""
    system, topology = particle()
    simulation = simulate(system, topology)
    bias = metadynamics(system, 50.0, hills=tmp_path / "HILLS")
    if used_before:
        bias.step(simulate(system, topology), 10)
    with pytest.raises(UqbiasError, match="after its Context was made"):
        bias.step(simulation, 20)
    assert (tmp_path / "HILLS").exists() == used_before
    simulation.context.reinitialize(preserveState=True)
    bias.step(simulation, 20)
    assert len(bias.metadynamics.hills) == 2 + used_before


def test_simulations_that_share_a_bias_in_turn():
    """Two atoms as OpenMM's metadynamics has them: hills that are too low to matter, so that both visit the same."""
    free_energies = []
    for make in (app, uqbias):
        system, topology = particle()
        bias = metadynamics(system, 1e-6, make)
        simulations = [simulate(system, topology, x=x) for x in (0.1, 0.25)]
        for _ in range(3):
            for simulation in simulations:
                bias.step(simulation, 10)
        bias.step(simulations[1], 25)
        simulations[1].currentStep = 0  # one that begins again, at the step of its latest hill in the end
        bias.step(simulations[1], 50)
        free_energies.append(bias.getFreeEnergy()._value)
    assert len(bias.metadynamics.hills) == 3 + 5 + 5
    scale = np.abs(free_energies[0]).max()
    assert scale > 1e-6
    np.testing.assert_allclose(free_energies[1], free_energies[0], atol=1e-5 * scale)


def test_what_one_simulation_deposits_acts_in_the_other():
    ends = []
    for height in (1e-9, 50.0):
        system, topology = particle()
        bias = metadynamics(system, height)
        first, second = (simulate(system, topology) for _ in range(2))
        bias.step(first, 10)
        second.step(100)
        ends.append(place(second))
    assert np.abs(ends[0] - ends[1]).max() > 1e-5


def test_stages_counted_in_steps_do_not_begin_anew_in_silence():
    system, topology = particle()
    energy = openmm.CustomExternalForce("50*(x^2+y^2+z^2)")
    energy.addParticle(0)
    gamd = GaMD(variables=["V"], pace=1, conventional_steps=10, preparation_steps=2, equilibration_steps=20)
    bias = uqbias.Sampling(system, None, [gamd], variables={"V": energy}, temperature=300, **QUIET)
    bias.step(simulate(system, topology), 15)
    samples = gamd.parameters["samples"]
    with pytest.raises(UqbiasError, match="gamd after step 15 in a Simulation at step 0"):
        bias.step(simulate(system, topology), 15)
    assert gamd.parameters["samples"] == samples > 0
    gamd.reset()
    bias.step(simulate(system, topology), 15)
    assert gamd.parameters["samples"] == samples


def boxed(system):
    system.setDefaultPeriodicBoxVectors([3, 0, 0], [0, 3, 0], [0, 0, 3])
    field = openmm.NonbondedForce()
    field.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
    field.addParticle(0.0, 0.1, 0.0)
    system.addForce(field)


def test_a_barostat_that_comes_later_keeps_the_bias():
    """The Context is made anew; from then on hills act at once."""
    ends = []
    for height in (1e-9, 50.0):
        system, topology = particle()
        boxed(system)
        bias = metadynamics(system, height)
        simulation = simulate(system, topology)
        bias.step(simulation, 10)
        system.addForce(openmm.MonteCarloBarostat(1.0, 300, 1000))
        simulation.context.reinitialize(preserveState=True)
        bias.step(simulation, 50)
        assert len(bias.metadynamics.hills) == 6
        x = place(simulation)
        ends.append(x)
        energy = simulation.context.getState(energy=True, groups={31}).getPotentialEnergy()._value
        assert energy == pytest.approx(bias.metadynamics.value(x[:, 0])[0], rel=1e-6)
    assert np.abs(ends[0] - ends[1]).max() > 1e-5
    assert energy > 40


def test_a_system_that_becomes_periodic_later():
    system, topology = particle()
    bias = metadynamics(system)
    boxed(system)
    with pytest.raises(UqbiasError, match="has become periodic since"):
        bias.step(simulate(system, topology), 10)


def test_two_biases_on_one_system(tmp_path):
    """Each acts and deposits; together they are the sum."""
    files = [{"hills": tmp_path / f"HILLS.{name}", "colvar": tmp_path / f"COLVAR.{name}"} for name in "ab"]
    system, topology = particle()
    biases = [metadynamics(system, height, **names) for height, names in zip((50.0, 20.0), files, strict=True)]
    simulation = simulate(system, topology)
    simulation.reporters += biases
    simulation.step(60)
    assert [len(bias.metadynamics.hills) for bias in biases] == [6, 6]
    x = place(simulation) + 1e-3
    simulation.context.setPositions(x)
    total = simulation.context.getState(energy=True, groups={30, 31}).getPotentialEnergy()._value
    assert total == pytest.approx(sum(bias.metadynamics.value(x[:, 0])[0] for bias in biases), rel=1e-6)
    assert total > 20


def test_what_would_act_or_be_written_twice_on_one_system(tmp_path, tiny_model, tiny_positions):
    system, _ = particle()
    first = metadynamics(system, hills=tmp_path / "HILLS")
    forces = system.getNumForces()
    with pytest.raises(UqbiasError, match=r"HILLS.* is that of another bias on this System"):
        metadynamics(system, hills=tmp_path / "HILLS")
    with pytest.raises(UqbiasError, match="metadynamics is already among the biases of this System"):
        uqbias.Sampling(system, None, [first.metadynamics], variables={"cv0": coordinate()}, temperature=300, **QUIET)
    assert system.getNumForces() == forces
    # Another System, or another bias in its place.
    metadynamics(particle()[0], hills=tmp_path / "HILLS")
    system.removeForce(forces - 1)
    metadynamics(system, hills=tmp_path / "HILLS")

    system, _ = particle()
    for _ in range(4):
        system.addParticle(12.0)
    atoms = {"atoms": range(len(tiny_model.numbers)), "temperature": 300, "drive": "model", **QUIET}
    uqbias.Sampling(system, tiny_model, [Restraint(at=1.0, kappa=1.0)], **atoms)
    with pytest.raises(UqbiasError, match="drive='model' a second time"):
        uqbias.Sampling(system, tiny_model, [MetaD()], **atoms)
    uqbias.Sampling(system, tiny_model, [MetaD()], **{**atoms, "drive": "bias"})


def test_a_bias_that_weighs_other_forces_has_a_group_of_its_own(tiny_model, tiny_positions):
    system, topology, x = caged_molecule(tiny_model, tiny_positions)
    sampling = sampled(system, tiny_model, [Linear(relative=0.2, pace=2)])
    sampling.force.setForceGroup(0)
    with pytest.raises(UqbiasError, match="but shares force group 0 with them"):
        sampling.step(simulate_caged(system, topology, x), 4)
