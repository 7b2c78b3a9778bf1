"""Sampling in the user's own Simulation: snapshots, other reporters and integrators, extended variables, bad input."""

import io

import numpy as np
import openmm
import pytest
import torch
from caged_molecule import TIMESTEP, bond, caged_molecule, langevin, sampled, simulate, state_of, two_dimensional
from openmm import app, unit

from uqbias.bias.eabf import ExtendedABF, WellTemperedExtendedABF
from uqbias.bias.fixed import UpperWall
from uqbias.bias.linear import Linear
from uqbias.bias.metad import MetaD
from uqbias.errors import UqbiasError
from uqbias.runs.hills import read_hills
from uqbias.runs.series import read_colvar


def test_killed_and_resumed_as_if_never_interrupted(tmp_path, tiny_model, tiny_positions):
    """Positions, velocities, HILLS and COLVAR bit for bit; the file of the snapshot is written by the run itself."""
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    sampling, simulation = two_dimensional(tiny_model, tiny_positions, tmp_path / "whole")
    sampling.step(simulation, 100)
    expected = state_of(simulation)

    snapshot = tmp_path / "snapshot.npz"
    written = {"snapshot": snapshot, "snapshot_every": 30}
    sampling, simulation = two_dimensional(tiny_model, tiny_positions, tmp_path / "broken", **written)
    sampling.step(simulation, 78)  # past the snapshot at 60, with a hill that must not stay
    del sampling, simulation
    with (tmp_path / "broken" / "HILLS").open("a") as stream:
        stream.write("      0.035  1.2")
    sampling, simulation = two_dimensional(tiny_model, tiny_positions, tmp_path / "broken")
    sampling.load(simulation, snapshot)
    assert simulation.currentStep == 60
    assert len(sampling.bias.biases[0].hills) == 6
    sampling.step(simulation, 40)
    np.testing.assert_array_equal(state_of(simulation), expected)
    for name in ("HILLS", "COLVAR"):
        assert (tmp_path / "broken" / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert len(read_hills(tmp_path / "whole" / "HILLS", 0.5)) == 10

    # Not at a multiple of the pace, and without the files.
    (tmp_path / "third").mkdir()
    sampling, simulation = two_dimensional(tiny_model, tiny_positions, tmp_path / "third")
    sampling.step(simulation, 66)
    sampling.save(simulation, snapshot)
    sampling, simulation = two_dimensional(tiny_model, tiny_positions, tmp_path / "third")
    (tmp_path / "third" / "HILLS").unlink()
    sampling.load(simulation, snapshot)
    sampling.step(simulation, 34)
    np.testing.assert_array_equal(state_of(simulation), expected)
    assert (tmp_path / "third" / "HILLS").read_text() == (tmp_path / "whole" / "HILLS").read_text()


def test_snapshots_that_do_not_fit(tmp_path, tiny_model, tiny_positions):
    sampling, simulation = two_dimensional(tiny_model, tiny_positions, tmp_path)
    sampling.step(simulation, 20)
    path = tmp_path / "snapshot.npz"
    sampling.save(simulation, path)
    kept = (tmp_path / "HILLS").read_text()

    system, topology, x = caged_molecule(tiny_model, tiny_positions, extra=3)
    hills = MetaD(variables=["driver", "d"], sigma=[0.3, 0.05], pace=20, height=2.0)
    other = sampled(system, tiny_model, [hills], tmp_path, variables={"d": bond()}, atoms=[3, 4, 5, 6, 7])
    with pytest.raises(UqbiasError, match="another system: 7 atoms"):
        other.load(simulate(system, topology, x), path)

    system, topology, x = caged_molecule(tiny_model, tiny_positions)
    other = sampled(system, tiny_model, [MetaD(sigma=0.3, pace=20)], tmp_path)
    with pytest.raises(UqbiasError, match="holds a bias"):
        other.load(simulate(system, topology, x), path)

    def walled(at):
        system, topology, x = caged_molecule(tiny_model, tiny_positions)
        other = sampled(system, tiny_model, [MetaD(sigma=0.3, pace=20), UpperWall(at=at)])
        return other, simulate(system, topology, x)

    other, simulation = walled(1.0)
    other.save(simulation, tmp_path / "walled.npz")
    other, simulation = walled(5.0)
    with pytest.raises(UqbiasError, match=r"upper_wall on driver with at 1\.0, this run's has 5\.0"):
        other.load(simulation, tmp_path / "walled.npz")

    path.write_bytes(path.read_bytes()[:2000])
    again, simulation = two_dimensional(tiny_model, tiny_positions, tmp_path)
    with pytest.raises(UqbiasError, match="not a whole snapshot"):
        again.load(simulation, path)
    assert not len(again.bias.biases[0].hills)
    assert (tmp_path / "HILLS").read_text() == kept


def test_an_earlier_run_is_not_overwritten(tmp_path, tiny_model, tiny_positions):
    for steps in (20, 30):
        sampling, simulation = two_dimensional(tiny_model, tiny_positions, tmp_path)
        sampling.step(simulation, steps)
    assert [len(read_hills(tmp_path / name, 0.5)) for name in ("bck.0.HILLS", "HILLS")] == [2, 3]
    assert len(read_colvar(tmp_path / "bck.0.COLVAR")["time"]) == 2


def test_nve_with_a_frozen_bias(tiny_model, tiny_positions):
    """The total energy fluctuates as without the bias, which changes the run, and as the square of the timestep."""
    spread, ends = [], []
    for height, steps in ((0.0, 4), (20.0, 4), (20.0, 8)):
        system, topology, x = caged_molecule(tiny_model, tiny_positions)
        hills = MetaD(sigma=0.5, pace=10, biasfactor=None)
        sampling = sampled(system, tiny_model, [hills], drive="model", dtype=torch.float64)
        integrator = openmm.CustomIntegrator(0.001 / steps)
        for step in ("v+0.5*dt*f/m", "x+dt*v", "v+0.5*dt*f/m"):
            integrator.addComputePerDof(step[0], step)
        simulation = simulate(system, topology, x, integrator)
        start = sampling.getCollectiveVariables(simulation)[0]
        if height:
            record = np.zeros(3, hills.hills.dtype)
            record["centre"][:, 0], record["sigma"] = start + np.array([-0.5, 0.2, 0.7]), 0.5
            record["height"], record["biasfactor"] = height, 1.0
            hills.deposit(record)
        sampling.bias.frozen = True
        energies = []
        for _ in range(100):
            sampling.step(simulation, steps)
            state = simulation.context.getState(energy=True)
            energies.append(state.getPotentialEnergy()._value + state.getKineticEnergy()._value)
        spread.append(np.std(energies))
        ends.append(state_of(simulation))
        assert len(hills.hills) == (3 if height else 0)
    assert np.abs(ends[1] - ends[0]).max() > 0.1
    assert spread[1] < 2 * spread[0]
    assert spread[2] == pytest.approx(spread[1] / 4, rel=0.2)


INTEGRATORS = {
    "verlet": lambda: openmm.VerletIntegrator(TIMESTEP),
    "langevin middle": langevin,
    "nose-hoover": lambda: openmm.NoseHooverIntegrator(300, 10.0, TIMESTEP),
    "brownian": lambda: openmm.BrownianIntegrator(300, 1000.0, TIMESTEP),
    "variable": lambda: openmm.VariableLangevinIntegrator(300, 5.0, 0.001),
    "mts": lambda: openmm.MTSIntegrator(TIMESTEP, [(0, 1), (31, 2)]),
}


@pytest.mark.parametrize("name", INTEGRATORS)
def test_reports_do_not_touch_the_trajectory(name, tiny_model, tiny_positions):
    """Ours and those of others; a report evaluates one force group only, which no integrator may take for all."""
    ends, evaluations = [], []
    for reported in (False, True):
        system, topology, x = caged_molecule(tiny_model, tiny_positions)
        hills = MetaD(sigma=0.3, pace=1)
        sampling = sampled(system, tiny_model, [hills], drive="model", pace=1)
        integrator = INTEGRATORS[name]()
        if isinstance(integrator, openmm.BrownianIntegrator | openmm.VariableLangevinIntegrator):
            integrator.setRandomNumberSeed(5)
        simulation = simulate(system, topology, x, integrator)
        hills.update(1, np.array(sampling.getCollectiveVariables(simulation))[None] + 0.1)
        sampling.bias.frozen = True
        if reported:
            simulation.reporters.append(sampling)
            simulation.reporters.append(app.StateDataReporter("/dev/null", 3, potentialEnergy=True))
        before = sampling.evaluator.n_evaluations
        simulation.step(40)
        evaluations.append(sampling.evaluator.n_evaluations - before)
        ends.append(state_of(simulation))
    np.testing.assert_array_equal(ends[0], ends[1])
    assert evaluations[1] <= evaluations[0] + 1


def test_minimisation_and_other_reporters_deposit_nothing(tmp_path, tiny_model, tiny_positions):
    system, topology, x = caged_molecule(tiny_model, tiny_positions)
    sampling = sampled(system, tiny_model, [MetaD(sigma=0.3, pace=20)], tmp_path, drive="model")
    simulation = simulate(system, topology, x)
    simulation.reporters.append(sampling)
    simulation.reporters.append(sampling)  # twice is once
    simulation.reporters.append(app.StateDataReporter(str(tmp_path / "log"), 7, potentialEnergy=True))
    simulation.minimizeEnergy(maxIterations=20)
    simulation.step(40)
    simulation.minimizeEnergy(maxIterations=20)
    # A geometry that only the minimiser saw.
    sampling.evaluator.broken[:] = True
    for _ in range(4):
        simulation.step(5)
    assert sampling.bias.biases[0].hills["step"].tolist() == [20, 40, 60]
    assert len(read_colvar(tmp_path / "COLVAR")["time"]) == 3


def test_hills_act_at_once_beside_a_barostat(tiny_model, tiny_positions):
    """A volume move compares energies before and after; both must be of one bias."""
    found = []
    for barostat in (False, True):
        system, topology, x = caged_molecule(tiny_model, tiny_positions)
        system.setDefaultPeriodicBoxVectors([4, 0, 0], [0, 4, 0], [0, 0, 4])
        field = openmm.NonbondedForce()
        field.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
        for _ in range(system.getNumParticles()):
            field.addParticle(0.0, 0.1, 0.0)
        system.addForce(field)
        if barostat:
            system.addForce(openmm.MonteCarloBarostat(1.0, 300, 1000))
        sampling = sampled(system, tiny_model, [MetaD(sigma=0.3, pace=10, height=5.0)])
        simulation = simulate(system, topology, x)
        sampling.step(simulation, 9)
        energies = []
        group = {sampling.force.getForceGroup()}
        for _ in range(2):
            energies.append(simulation.context.getState(energy=True, groups=group).getPotentialEnergy()._value)
            sampling.step(simulation, 1) if len(energies) == 1 else None
        found.append(energies[1])
    assert found[0] == 0
    assert found[1] == pytest.approx(5.0, abs=1e-3)


@pytest.mark.parametrize("watched", [False, True])
def test_monte_carlo_moves_compare_energies_of_one_bias(tiny_model, tiny_positions, watched):
    """The energy before a move is that with the hill too, although the positions are those of the last evaluation."""
    system, topology, x = caged_molecule(tiny_model, tiny_positions)
    hills = MetaD(sigma=0.3, pace=10, height=5.0, biasfactor=None)
    sampling = sampled(system, tiny_model, [hills])
    moves = openmm.CustomIntegrator(TIMESTEP)
    for name in ("before", "after"):
        moves.addGlobalVariable(name, 0)
    moves.addComputeGlobal("before", "energy")
    moves.addComputePerDof("x", "x+1e-5*gaussian")
    moves.addComputeGlobal("after", "energy")
    simulation = simulate(system, topology, x, moves)
    if watched:
        simulation.reporters.append(app.StateDataReporter(io.StringIO(), 10, potentialEnergy=True))
    differences = []
    for _ in range(31):
        sampling.step(simulation, 1)
        differences.append(moves.getGlobalVariableByName("after") - moves.getGlobalVariableByName("before"))
    assert len(hills.hills) == 3
    assert np.abs(differences).max() < 0.5


def test_linear_bias_weighs_against_the_force_field(tiny_model, tiny_positions):
    """With drive=bias the force without the bias is that of the System's own forces on the model's atoms."""
    system, topology, x = caged_molecule(tiny_model, tiny_positions)
    linear = Linear(relative=0.2, pace=2, averaging=3)
    sampling = sampled(system, tiny_model, [linear], dtype=torch.float64)
    simulation = simulate(system, topology, x)
    sampling.step(simulation, 40)
    assert linear.tau > 0
    positions = torch.tensor(state_of(simulation)[2:7])[None].requires_grad_()
    (slope,) = torch.autograd.grad(tiny_model(positions).driver.sum(), positions)
    drive = np.linalg.norm(-400 * state_of(simulation)[2:7], axis=1).mean()
    bias = linear.tau * np.linalg.norm(slope[0].numpy(), axis=1).mean()
    assert bias / drive == pytest.approx(0.2, rel=0.2)


# Extended variables


def extended(model, positions, folder=None, **options):
    system, topology, x = caged_molecule(model, positions)
    bias = ExtendedABF(variables=["driver"], sigma=0.1, mass=20.0, bin_width=0.05, full_samples=20, pace=2)
    sampling = sampled(system, model, [bias], folder, drive="model", dtype=torch.float64, **options)
    topology, x = sampling.extend(topology, x * unit.nanometer)
    return sampling, bias, system, topology, x.value_in_unit(unit.nanometer)


def test_eabf_in_a_users_system(tmp_path, tiny_model, tiny_positions):
    sampling, bias, system, topology, x = extended(tiny_model, tiny_positions, tmp_path, stride=10)
    assert system.getNumParticles() == topology.getNumAtoms() == len(x) == 8
    simulation = simulate(system, topology, x)
    u, extended_driver = sampling.getCollectiveVariables(simulation)
    assert extended_driver == pytest.approx(u)
    x[7, 0] += 0.05
    simulation.context.setPositions(x)
    forces = simulation.context.getState(forces=True).getForces(asNumpy=True)._value
    assert forces[7, 0] == pytest.approx(-bias.coupling * 0.05)
    assert np.abs(forces[7, 1:]).max() == 0
    simulation.reporters.append(app.DCDReporter(str(tmp_path / "all.dcd"), 50))
    sampling.step(simulation, 200)
    _, free_energy = sampling.free_energy()
    assert np.isfinite(free_energy).any()
    colvar = read_colvar(tmp_path / "COLVAR")
    assert len(colvar["extended_driver"]) == 20
    assert np.ptp(colvar["extended_driver"]) > 0.01
    # The coupling holds u and λ together: u goes up and down around a λ that is slow.
    assert np.abs(colvar["extended_driver"] - colvar["driver"]).max() < 1.0
    assert np.abs((colvar["extended_driver"] - colvar["driver"]).mean()) < 0.3


def test_an_extended_variable_has_no_interactions(tiny_model, tiny_positions, tmp_path):
    """In a periodic box with PME, at a value outside the box; HILLS of WTM-eABF are on λ."""
    energies = []
    for biased in (False, True):
        system, topology, x = caged_molecule(tiny_model, tiny_positions)
        field = openmm.NonbondedForce()
        field.setNonbondedMethod(openmm.NonbondedForce.PME)
        field.setUseDispersionCorrection(False)  # a constant that counts particles
        for index in range(7):
            field.addParticle(0.1 * (-1) ** index * (index < 6), 0.1, 0.1)
        field.setForceGroup(3)
        system.addForce(field)
        custom = openmm.CustomNonbondedForce("a1*a2/r^2")
        custom.addPerParticleParameter("a")
        for _ in range(7):
            custom.addParticle([1.0])
        custom.addInteractionGroup(range(2), range(2, 7))
        custom.setNonbondedMethod(openmm.CustomNonbondedForce.CutoffPeriodic)
        custom.setForceGroup(3)
        system.addForce(custom)
        system.setDefaultPeriodicBoxVectors([3, 0, 0], [0.5, 3, 0], [0, 0, 3])
        if biased:
            bias = WellTemperedExtendedABF(
                variables=["driver"], sigma=0.1, mass=20.0, bin_width=0.05, pace=2, hill_pace=10
            )
            sampling = sampled(system, tiny_model, [bias], tmp_path, drive="model", dtype=torch.float64)
            topology, x = sampling.extend(topology, x)
            x = x.value_in_unit(unit.nanometer)
            assert topology.getPeriodicBoxVectors() is None
            assert x[7, 0] > 3
        simulation = simulate(system, topology, x)
        state = simulation.context.getState(energy=True, forces=True, groups={3})
        energies.append((state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value[:7]))
    assert energies[0][0] == pytest.approx(energies[1][0], rel=1e-12)
    np.testing.assert_allclose(energies[0][1], energies[1][1], atol=1e-9)
    sampling.step(simulation, 40)
    hills = read_hills(tmp_path / "HILLS", 0.5, ["extended_driver"])
    assert hills["step"].tolist() == [10, 20, 30, 40]
    colvar = read_colvar(tmp_path / "COLVAR")
    np.testing.assert_allclose(hills["centre"][:, 0], colvar["extended_driver"][4::5], rtol=1e-8)


def test_extended_variables_in_a_snapshot(tmp_path, tiny_model, tiny_positions):
    sampling, _, system, topology, x = extended(tiny_model, tiny_positions)
    simulation = simulate(system, topology, x)
    sampling.step(simulation, 30)
    sampling.save(simulation, tmp_path / "s.npz")
    sampling.step(simulation, 30)
    expected = state_of(simulation)
    sampling, _, system, topology, x = extended(tiny_model, tiny_positions)
    simulation = simulate(system, topology, x)
    sampling.load(simulation, tmp_path / "s.npz")
    sampling.step(simulation, 30)
    np.testing.assert_array_equal(state_of(simulation), expected)


@pytest.mark.parametrize(
    ("force", "message"),
    [
        (lambda: openmm.MonteCarloBarostat(1.0, 300), "barostat"),
        (openmm.CMMotionRemover, "removeCMMotion=False"),
        (openmm.GBSAOBCForce, "cannot be left out"),
        (lambda: openmm.CustomNonbondedForce("r"), "cannot be left out"),
    ],
)
def test_extended_variables_refuse_bad_company(force, message, tiny_model, tiny_positions):
    system, _, _ = caged_molecule(tiny_model, tiny_positions)
    system.addForce(force())
    with pytest.raises(UqbiasError, match=message):
        sampled(system, tiny_model, [ExtendedABF(variables=["driver"])])
    assert (system.getNumParticles(), system.getNumForces()) == (7, 2)


def test_a_barostat_that_comes_later_is_refused_too(tiny_model, tiny_positions):
    sampling, _, system, topology, x = extended(tiny_model, tiny_positions)
    system.addForce(openmm.MonteCarloBarostat(1.0, 300))
    field = openmm.NonbondedForce()
    field.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
    for _ in range(8):
        field.addParticle(0, 0.1, 0)
    system.addForce(field)
    system.setDefaultPeriodicBoxVectors([4, 0, 0], [0, 4, 0], [0, 0, 4])
    with pytest.raises(UqbiasError, match="equilibrate the volume first"):
        sampling.step(simulate(system, topology, x), 10)


# Bad input


def test_coordinates_that_become_nan_where_openmm_looks_first(tiny_model, tiny_positions):
    """The CPU platform stops before the force is asked."""
    system, topology, x = caged_molecule(tiny_model, tiny_positions)
    sampling = sampled(system, tiny_model, [MetaD(sigma=0.3, pace=10)])
    simulation = app.Simulation(topology, system, langevin(), openmm.Platform.getPlatformByName("CPU"))
    simulation.context.setPositions(x)
    sampling.step(simulation, 20)
    simulation.context.setVelocities(np.full((system.getNumParticles(), 3), np.nan))
    with pytest.raises(UqbiasError, match=r"after step 2\d: .*NaN"):
        sampling.step(simulation, 20)
    assert len(sampling.bias.biases[0].hills) == 2


def test_a_variable_that_becomes_nan(tmp_path, tiny_model, tiny_positions):
    """The line names it and the step; what was written before is there."""
    system, topology, x = caged_molecule(tiny_model, tiny_positions)
    fragile = openmm.CustomBondForce("sqrt(limit-r)")
    fragile.addGlobalParameter("limit", 5.0)
    fragile.addBond(0, 4)
    switch = openmm.CustomExternalForce("0*limit*x")
    switch.addGlobalParameter("limit", 5.0)
    system.addForce(switch)
    hills = MetaD(variables=["driver", "d"], sigma=[0.3, 0.05], pace=10)
    sampling = sampled(system, tiny_model, [hills], tmp_path, variables={"d": fragile})
    simulation = simulate(system, topology, x)
    simulation.reporters.append(sampling)
    simulation.step(20)
    simulation.context.setParameter("limit", 0.0)
    with pytest.raises(UqbiasError, match="variable 'd' is not a finite number at step 30"):
        simulation.step(20)
    assert len(read_hills(tmp_path / "HILLS", 0.5)) == len(read_colvar(tmp_path / "COLVAR")["d"]) == 2


def test_a_molecule_that_flies_apart(tmp_path, tiny_model, tiny_positions):
    system, topology, x = caged_molecule(tiny_model, tiny_positions)
    sampling = sampled(system, tiny_model, [MetaD(sigma=0.3, pace=10)], tmp_path, drive="model")
    simulation = simulate(system, topology, x)
    sampling.step(simulation, 10)
    far = state_of(simulation)[:7]
    far[3] += 60.0
    simulation.context.setPositions(far)
    with pytest.raises(UqbiasError, match=r"up to step 20 the molecule left what the model describes"):
        sampling.step(simulation, 10)
    assert len(read_hills(tmp_path / "HILLS", 0.5)) == 1


def test_bad_input(tmp_path, tiny_model, tiny_positions):
    def fails(message, biases, **options):
        system, _, _ = caged_molecule(tiny_model, tiny_positions)
        with pytest.raises(UqbiasError, match=message):
            sampled(system, options.pop("model", tiny_model), biases, tmp_path, **options)
        assert system.getNumForces() == 1

    fails("'phi', a variable that nobody defines", [MetaD(variables=["phi"])])
    fails("did you mean 'energy'", [MetaD(variables=["enrgy"])])
    fails("there is no model", [MetaD()], model=None)
    fails("a variable called 'driver'", [MetaD()], variables={"driver": bond()})
    fails("variable 'd' is a int", [MetaD(variables=["d"])], variables={"d": 3})
    fails("metadynamics for 310 K in a run at 300 K", [MetaD(temperature=310.0)])
    fails("no such file", [MetaD()], restart=True)
    fails("misses updates", [MetaD(pace=50)], pace=20)
    (tmp_path / "HILLS").write_text("#! FIELDS time phi sigma_phi height biasf\n 0.1 1.0 0.1 1.0 10\n")
    fails("holds hills on phi, not on driver", [MetaD()], restart=True)
    (tmp_path / "HILLS").write_text("#! FIELDS time driver sigma_driver height biasf\n 0.1 1.0 0.1 x 10\n")
    fails("line 2", [MetaD()], restart=True)
    fails("load a snapshot", [Linear(tau=1.0)], restart=True)
    assert "x 10" in (tmp_path / "HILLS").read_text()


def test_torchforce_is_refused_where_it_would_be_wrong(tiny_model, tiny_positions):
    pytest.importorskip("openmmtorch")
    system, _, _ = caged_molecule(tiny_model, tiny_positions)
    with pytest.raises(UqbiasError, match="a Force as variable"):
        sampled(system, tiny_model, [MetaD(variables=["d"])], variables={"d": bond()}, backend="torchforce")


def test_torchforce_gives_the_same_run(tiny_model, tiny_positions):
    pytest.importorskip("openmmtorch")
    ends = []
    for backend in ("pythonforce", "torchforce"):
        system, topology, x = caged_molecule(tiny_model, tiny_positions)
        sampling = sampled(system, tiny_model, [MetaD(sigma=0.3, pace=10)], backend=backend, dtype=torch.float64)
        simulation = simulate(system, topology, x)
        sampling.step(simulation, 100)
        ends.append(state_of(simulation))
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-9)
