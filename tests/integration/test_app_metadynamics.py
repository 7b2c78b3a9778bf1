"""uqbias.Metadynamics beside openmm.app.Metadynamics: the same arguments, the same hills, the same bias."""

import numpy as np
import openmm
import pytest
import torch
from openmm import app, unit

import uqbias
from uqbias.bias.metad import hill_type
from uqbias.errors import UqbiasError
from uqbias.runs.hills import read_hills
from uqbias.variables.names import COLUMNS

PI = np.pi
#: Without a model the graph has nothing but the bias in it.
QUIET = {"runner": "eager", "dtype": torch.float64, "hills": None, "colvar": None}


def coordinate(axis):
    """A Force whose energy is one coordinate of particle 0."""
    force = openmm.CustomExternalForce(axis)
    force.addParticle(0)
    return force


def particles(count=1):
    system = openmm.System()
    topology = app.Topology()
    residue = topology.addResidue("AR", topology.addChain())
    for _ in range(count):
        system.addParticle(39.9)
        topology.addAtom("AR", app.element.argon, residue)
    return system, topology


def simulate(system, topology, integrator=None, positions=((0.3, -0.4, 0.1),)):
    integrator = integrator or openmm.VerletIntegrator(0.001)
    simulation = app.Simulation(topology, system, integrator, openmm.Platform.getPlatformByName("Reference"))
    simulation.context.setPositions(np.array(positions))
    return simulation


#: Ranges, periodic, widths, points of OpenMM's grid to a width. Of ours there are 10, in two dimensions 5.
CASES = {
    "1d": ([(-2.0, 3.0)], False, [0.25], 20),
    "1d periodic": ([(-PI, PI)], True, [PI / 20], 20),
    "1d periodic from 0": ([(0.0, 2 * PI)], True, [PI / 20], 20),
    "2d": ([(-2.0, 3.0), (-1.0, 1.0)], False, [0.25, 0.1], 10),
    "2d periodic": ([(-PI, PI), (-PI, PI)], True, [PI / 20, PI / 12], 10),
}


@pytest.mark.parametrize("case", CASES)
def test_same_hills_same_bias(case):
    """Bias on the grid points of openmm.app.Metadynamics, and energy and force of a particle there."""
    ranges, periodic, widths, fineness = CASES[case]
    counts = [round(fineness * (high - low) / width) + 1 for (low, high), width in zip(ranges, widths, strict=True)]

    def variables(make):
        return [
            make(coordinate(axis), low, high, width, periodic, count)
            for axis, (low, high), width, count in zip("xy", ranges, widths, counts, strict=False)
        ]

    systems = [particles(), particles()]
    theirs = app.Metadynamics(systems[0][0], variables(app.BiasVariable), 300, 8.0, 1.2, 10)
    ours = uqbias.Metadynamics(systems[1][0], variables(uqbias.BiasVariable), 300, 8.0, 1.2, 10, **QUIET)
    contexts = [simulate(*system).context for system in systems]
    rng = np.random.default_rng(0)
    low, high = np.array(ranges).T
    # Centres anywhere on a ring; else so far inside that no hill reaches the end of OpenMM's grid.
    margin = 0.0 if periodic else 0.15
    centres = low + (high - low) * rng.uniform(margin, 1 - margin, (80, len(ranges)))
    heights = rng.uniform(0.2, 1.2, len(centres))
    for centre, height in zip(centres, heights, strict=True):
        theirs._addGaussian(centre, height * unit.kilojoules_per_mole, contexts[0])
    hills = np.zeros(len(centres), hill_type(len(ranges)))
    hills["centre"], hills["height"], hills["sigma"], hills["biasfactor"] = centres, heights, widths, 8.0
    ours.metadynamics.deposit(hills)

    free_energies = [object.getFreeEnergy().value_in_unit(unit.kilojoules_per_mole) for object in (theirs, ours)]
    assert free_energies[0].shape == free_energies[1].shape == tuple(reversed(counts))
    scale = np.abs(free_energies[0]).max()
    assert scale > 2
    # In two dimensions where both have a grid point; between them both interpolate, ours to 1e-5 of a hill there.
    every = (slice(None),) if len(counts) == 1 else (slice(None, None, 2),) * 2
    assert np.abs(free_energies[0] - free_energies[1])[every].max() < 1e-6 * scale

    axes = ours.grid_points()
    found = []
    # Far from the ends of the grid, where a natural spline has no curvature.
    for index in 2 * rng.integers(np.array(counts) // 10, np.array(counts) * 2 // 5, (60, len(counts))):
        at = np.zeros(3)
        at[: len(axes)] = [axis[place] for axis, place in zip(axes, index, strict=True)]
        for context in contexts:
            context.setPositions([at])
            state = context.getState(energy=True, forces=True)
            found.append([state.getPotentialEnergy()._value, *state.getForces(asNumpy=True)._value[0]])
    theirs_found, ours_found = np.array(found[::2]), np.array(found[1::2])
    assert np.abs(theirs_found - ours_found)[:, 0].max() < 1e-6 * scale
    slope = np.abs(theirs_found[:, 1:]).max()
    assert slope > 1
    # The slope of a spline is off by the fourth power of the spacing.
    assert np.abs(theirs_found - ours_found)[:, 1:].max() < (1e-6 if len(counts) == 1 else 1e-5) * slope


def energy_aware_verlet():
    """Velocity Verlet that looks at the energy, as hybrid Monte Carlo does."""
    integrator = openmm.CustomIntegrator(0.002)
    integrator.addGlobalVariable("before", 0)
    integrator.addComputeGlobal("before", "energy")
    integrator.addComputePerDof("v", "v+0.5*dt*f/m")
    integrator.addComputePerDof("x", "x+dt*v")
    integrator.addComputePerDof("v", "v+0.5*dt*f/m")
    return integrator


def field():
    force = openmm.CustomExternalForce("50*((x-0.2)^2+y^2+z^2)+20*x*y")
    force.addParticle(0)
    return force


def test_a_run_is_that_of_openmms_metadynamics():
    """Where hills act at once, as they do there: positions, hills and free energy of 600 steps."""

    def variables(make):
        return [make(coordinate("x"), -1.0, 1.5, 0.05, False, 1001)]

    runs = []
    for make, method, extra in (
        (app.BiasVariable, app.Metadynamics, {}),
        (uqbias.BiasVariable, uqbias.Metadynamics, QUIET),
        (app.BiasVariable, uqbias.Metadynamics, QUIET),
    ):
        system, topology = particles()
        system.addForce(field())
        metadynamics = method(
            system, variables(make), 300 * unit.kelvin, 5, 0.3 * unit.kilojoules_per_mole, 20, **extra
        )
        simulation = simulate(system, topology, energy_aware_verlet())
        simulation.context.setVelocitiesToTemperature(300, 1)
        metadynamics.step(simulation, 600)
        state = simulation.context.getState(positions=True)
        runs.append((
            state.getPositions(asNumpy=True)._value,
            metadynamics.getFreeEnergy().value_in_unit(unit.kilojoules_per_mole),
            metadynamics.getCollectiveVariables(simulation),
        ))  # fmt: skip
    assert np.ptp(runs[0][1]) > 2
    for x, free_energy, values in runs[1:]:
        assert np.abs(x - runs[0][0]).max() < 1e-5
        assert np.abs(free_energy - runs[0][1]).max() < 1e-4
        assert values == pytest.approx(runs[0][2], abs=1e-5)
        assert isinstance(values, tuple)


def test_quantities_and_numbers():
    system, topology = particles(4)
    torsion = openmm.CustomTorsionForce("theta")
    torsion.addTorsion(0, 1, 2, 3)
    angle = uqbias.BiasVariable(torsion, -180 * unit.degrees, 180 * unit.degrees, 20 * unit.degrees, True, name="phi")
    assert angle.period == pytest.approx(2 * PI)
    distance = uqbias.BiasVariable(coordinate("x"), biasWidth=0.5 * unit.angstrom)
    assert distance.biasWidth == pytest.approx(0.05)
    metadynamics = uqbias.Metadynamics(
        system, [angle, distance], 300 * unit.kelvin, None, 0.5 * unit.kilocalories_per_mole, 5, **QUIET
    )
    assert metadynamics.metadynamics.height == pytest.approx(2.092)
    assert metadynamics.metadynamics.biasfactor is None
    assert metadynamics.names == ("phi", "cv1")
    x = np.array([[0.1, 0, 0], [0, 0, 0], [0, 0.1, 0], [0, 0.1, 0.1]])
    simulation = simulate(system, topology, positions=x)
    phi, at = metadynamics.getCollectiveVariables(simulation)
    assert abs(phi) == pytest.approx(PI / 2)
    assert at == pytest.approx(0.1)
    with pytest.raises(UqbiasError, match="a variable without a range"):
        metadynamics.getFreeEnergy()
    metadynamics.step(simulation, 10)
    # After the run nothing is left among the reporters, and steps without it deposit nothing.
    assert not simulation.reporters
    simulation.step(10)
    assert metadynamics.metadynamics.hills["step"].tolist() == [5, 10]
    free_energy = metadynamics.getFreeEnergy()
    axes = metadynamics.grid_points()
    assert free_energy.shape == (len(axes[1]), len(axes[0]))
    assert len(axes[0]) == 90
    points = np.array([[axes[0][7], axes[1][0]]])
    expected = -metadynamics.metadynamics.value(points)[0]
    assert free_energy[0, 7].value_in_unit(unit.kilojoules_per_mole) == pytest.approx(expected)


def in_a_folder(folder, save_frequency, seed=0):
    """Metadynamics of a process that shares a folder, and its Simulation."""
    system, topology = particles()
    system.addForce(field())
    variable = uqbias.BiasVariable(coordinate("x"), biasWidth=0.05)
    bias = uqbias.Metadynamics(system, [variable], 300, 5, 0.3, 10, save_frequency, folder, **QUIET)
    integrator = openmm.LangevinMiddleIntegrator(300, 5.0, 0.002)
    integrator.setRandomNumberSeed(seed)
    return bias, simulate(system, topology, integrator)


def test_processes_share_a_folder(tmp_path):
    pair = [in_a_folder(tmp_path / "bias", save_frequency=20, seed=seed) for seed in (1, 2)]
    for _ in range(3):
        for bias, simulation in pair:
            bias.step(simulation, 40)
    for bias, simulation in pair:
        bias.step(simulation, 20)  # the last exchange of each comes after its own last hills
    pair[0][0]._shared.sync()
    hills = [bias.metadynamics.hills for bias, _ in pair]
    assert len(hills[0]) == len(hills[1]) == 28
    u = np.linspace(-0.5, 1, 40)
    np.testing.assert_allclose(pair[0][0].metadynamics.value(u), pair[1][0].metadynamics.value(u), atol=1e-9)
    files = sorted((tmp_path / "bias").glob("HILLS.*"))
    assert [len(read_hills(path, 2.0)) for path in files] == [14, 14]
    # One that comes later begins with what is there.
    late, simulation = in_a_folder(tmp_path / "bias", save_frequency=20)
    simulation.reporters.append(late)
    simulation.step(1)
    assert len(late.metadynamics.hills) == 28


def test_a_shared_folder_misses_no_hill_of_a_process_that_ends(tmp_path):
    """Hills since the last exchange, those of a snapshot between two, and those after it."""
    bias, simulation = in_a_folder(tmp_path / "bias", save_frequency=40)
    bias.step(simulation, 10)
    # What a kill within the report of step 20 leaves: the snapshot has its hill, and so has the folder.
    bias.metadynamics.update(20, np.array([[0.2]]))
    bias.save(simulation, tmp_path / "snapshot.npz")
    assert [len(read_hills(path, 2.0)) for path in (tmp_path / "bias").glob("HILLS.*")] == [2]
    again, other = in_a_folder(tmp_path / "bias", save_frequency=40)
    again.load(other, tmp_path / "snapshot.npz")
    for name in ("step", "centre", "height"):
        np.testing.assert_allclose(again.metadynamics.hills[name], bias.metadynamics.hills[name], rtol=1e-12)
    again.step(other, 30)
    assert sum(len(read_hills(path, 2.0)) for path in (tmp_path / "bias").glob("HILLS.*")) == 5
    late, third = in_a_folder(tmp_path / "bias", save_frequency=40)
    late.step(third, 1)
    assert len(late.metadynamics.hills) == 5


@pytest.mark.parametrize("what", ["bias", "metadynamics"])
def test_a_frozen_bias_takes_no_hills_over(tmp_path, what):
    bias, simulation = in_a_folder(tmp_path / "bias", save_frequency=20)
    other, second = in_a_folder(tmp_path / "bias", save_frequency=20, seed=1)
    bias.step(simulation, 20)
    getattr(bias, what).frozen = True
    other.step(second, 40)
    bias.step(simulation, 20)
    assert len(bias.metadynamics.hills) == 2
    getattr(bias, what).frozen = False
    bias.step(simulation, 20)
    assert len(bias.metadynamics.hills) == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"biasFactor": 1.0}, "biasfactor 1.0"),
        ({"biasFactor": 0.5}, "biasfactor 0.5"),
        ({"biasFactor": np.inf}, "biasfactor inf"),
        ({"biasFactor": "10"}, "biasfactor '10'; input should be a valid number"),
        ({"height": None}, "height None; input should be a valid number"),
        ({"temperature": "warm"}, "temperature 'warm'; input should be a valid number"),
        ({"frequency": "20"}, "frequency '20'; input should be a valid integer"),
        ({"hills": "/"}, "cannot write to /: it is a directory"),
        ({"colvar": "/dev/full"}, "cannot write to /dev/full: it is not a regular file"),
        ({"biasDir": "/dev/null", "saveFrequency": 10}, "cannot write to /dev/null"),
        ({"height": np.inf}, "height inf"),
        ({"temperature": np.inf}, "temperature inf"),
        ({"frequency": 2.7}, "frequency 2.7"),
        ({"frequency": 0, "saveFrequency": 25, "biasDir": "here"}, "frequency 0"),
        ({"device": "cuda:99"}, "device 'cuda:99' .*use device 'cpu'"),
        ({"device": "nonsense"}, "device 'nonsense'"),
        ({"height": 0}, "height 0"),
        ({"temperature": -3}, "temperature -3"),
        ({"frequency": 0}, "frequency 0"),
        ({"saveFrequency": 20}, "saveFrequency 20 with biasDir None"),
        ({"saveFrequency": 25, "biasDir": "here"}, "saveFrequency 25 with frequency 10"),
        ({"variables": []}, "one to three"),
        ({"variables": [object()]}, "give uqbias.BiasVariable"),
        ({"pace": 20}, "misses updates"),
        ({"pace": 0}, "pace 0; give a whole number"),
        ({"pace": 2.5}, "pace 2.5; give a whole number"),
        ({"stride": 15}, "multiple of the pace"),
        ({"snapshot_every": 100}, "give both or none"),
    ],
)
def test_bad_arguments(change, message):
    system, _ = particles()
    arguments = {"temperature": 300, "biasFactor": 5, "height": 1.0, "frequency": 10, **QUIET, **change}
    arguments.setdefault("variables", [uqbias.BiasVariable(coordinate("x"), biasWidth=0.1)])
    with pytest.raises(UqbiasError, match=message):
        uqbias.Metadynamics(system, **arguments)
    assert system.getNumForces() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, 1.0, 0.1), "minValue 1.0 and maxValue 1.0"),
        ((2.0, 1.0, 0.1), "above the minimum"),
        ((None, None, None), "biasWidth None"),
        ((0.0, 1.0, -0.1), "biasWidth -0.1"),
        ((0.0, None, 0.1, True), "one period apart"),
        ((0.0, 1.0, 0.1, False, 1), "gridWidth 1"),
        ((0.0, 1.0, 0.1, False, 10.5), "gridWidth 10.5"),
        ((0.0, np.inf, 0.1), "maxValue inf"),
        ((-np.inf, np.inf, 0.1, True), "minValue -inf and maxValue inf"),
        ((0.0, 1.0, np.inf), "biasWidth inf"),
    ],
)
def test_bad_variables(arguments, message):
    with pytest.raises(UqbiasError, match=message):
        uqbias.BiasVariable(coordinate("x"), *arguments)


def test_width_of_the_driver(alanine_model, tiny_model, tmp_path):
    """Left out, it is what suits the kind of driver; a kind whose scale depends on the system takes none by itself."""
    alanine_model.save(tmp_path / "model.uqb")
    for model in (alanine_model, tmp_path / "model.uqb"):
        assert uqbias.BiasVariable(model).biasWidth == alanine_model.driver.hill_width
        assert uqbias.BiasVariable(model, biasWidth=1.0).biasWidth == 1.0
    with pytest.raises(UqbiasError, match="biasWidth None"):
        uqbias.BiasVariable(alanine_model, name="judge")
    with pytest.raises(UqbiasError, match="no width for hills on the driver"):
        uqbias.BiasVariable(tiny_model)


@pytest.mark.parametrize("name", ["extended_x", "sigma_x", *COLUMNS])
def test_names_of_columns_are_refused(name):
    """A COLVAR with two columns of one name, or a HILLS file that is none."""
    system, _ = particles()
    with pytest.raises(UqbiasError, match=f"a variable called '{name}'"):
        uqbias.Metadynamics(
            system, [uqbias.BiasVariable(coordinate("x"), biasWidth=0.1, name=name)], 300, 5, 1.0, 10, **QUIET
        )
    assert system.getNumForces() == 0
