"""PLUMED inside OpenMM: forces, hills, steps and files of the bridge, against our own metadynamics.

``python test_plumed_bridge.py TASK MODEL FOLDER`` is the part of a test that needs a process of its own.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

from molecules import ALANINE, ALANINE_PDB

import torch  # isort: skip  (before OpenMM, whose plugin for torch links its libraries)

import numpy as np
import openmm
import plumed_kernel
import pytest
from openmm import app

from uqbias.app.metadynamics import BiasVariable, Metadynamics
from uqbias.bias.base import BiasSum
from uqbias.bias.fixed import UpperWall
from uqbias.bias.metad import MetaD
from uqbias.compile.fused import FusedEvaluator
from uqbias.errors import UqbiasError
from uqbias.model.model import UncertaintyModel
from uqbias.plumed.bridge import PlumedBridge
from uqbias.plumed.kernel import environment, find_kernel
from uqbias.runs.hills import HillsFile, read_hills
from uqbias.runs.series import read_colvar
from uqbias.units import kt

EXAMPLES = Path(__file__).parents[2] / "examples" / "plumed"
TIMESTEP = 0.0005
HEIGHT, SIGMA, PACE = 1.0, 0.4, 10

METAD = (
    "c: EXTRACV NAME=driver",
    f"m: METAD ARG=c SIGMA={SIGMA} HEIGHT={HEIGHT} PACE={PACE} BIASFACTOR=10 FILE=HILLS",
    "PRINT ARG=c,m.bias FILE=COLVAR STRIDE=1 FMT=%.15g",
)


pytestmark = pytest.mark.plumed
needs_kernel = plumed_kernel.needs_kernel()


def bare_system(model):
    system = openmm.System()
    for number in model.numbers:
        system.addParticle(app.Element.getByAtomicNumber(int(number)).mass)
    return system


def force_field_system():
    """Alanine dipeptide by a force field: motion that is regular enough to compare two programs over 500 steps."""
    topology = app.PDBFile(str(ALANINE_PDB)).topology
    return app.ForceField("amber14-all.xml").createSystem(topology, constraints=None, rigidWater=False)


def bridged(system, lines, model, folder, **options):
    options = {"runner": "eager", "dtype": torch.float64, "timestep": TIMESTEP, "temperature": 300} | options
    return PlumedBridge(system, lines, model, output_dir=folder, **options)


def simulation_of(system, positions, seed=4, integrator=None, platform="Reference"):
    """Alanine dipeptide by Verlet; velocities of 300 K."""
    topology = app.PDBFile(str(ALANINE_PDB)).topology
    integrator = openmm.VerletIntegrator(TIMESTEP) if integrator is None else integrator
    simulation = app.Simulation(topology, system, integrator, openmm.Platform.getPlatformByName(platform))
    simulation.context.setPositions(positions)
    # Not OpenMM's own generator, which differs between its versions.
    masses = np.array([system.getParticleMass(index)._value for index in range(system.getNumParticles())])
    velocities = np.random.default_rng(seed).normal(size=(len(masses), 3)) * np.sqrt(kt(300) / masses)[:, None]
    simulation.context.setVelocities(velocities)
    return simulation


def positions_of(simulation):
    return np.array(simulation.context.getState(positions=True).getPositions(asNumpy=True)._value)


def energy_and_forces(context):
    state = context.getState(energy=True, forces=True)
    return state.getPotentialEnergy()._value, np.array(state.getForces(asNumpy=True)._value)


@pytest.fixture
def start(alanine_frames):
    return alanine_frames.positions[0]


@needs_kernel
def test_a_wall_gives_the_forces_of_the_fused_evaluation(tmp_path, alanine_model, start):
    with torch.no_grad():
        # The wall keeps its place in float32 until it is moved to another dtype.
        at = float(np.float32(float(alanine_model(torch.tensor(start)[None]).driver) - 0.7))
    evaluator = FusedEvaluator(
        alanine_model, BiasSum([UpperWall(at=at, kappa=30.0)]), 1, runner="eager", dtype=torch.float64
    )
    ours = evaluator.evaluate(torch.tensor(start)[None])
    system = bare_system(alanine_model)
    lines = ["c: EXTRACV NAME=driver", f"UPPER_WALLS ARG=c AT={at!r} KAPPA=30.0"]
    bridge = bridged(system, lines, alanine_model, tmp_path)
    energy, forces = energy_and_forces(simulation_of(system, start).context)
    assert bridge.last.bias == pytest.approx(float(ours.bias), rel=1e-10)
    assert bridge.last.driver == pytest.approx(float(ours.driver), rel=1e-10)
    assert bridge.last.judge == pytest.approx(float(ours.judge), rel=1e-10)
    assert energy == pytest.approx(float(evaluator.total_energy), rel=1e-12)
    assert float(ours.bias) > 1.0
    scale = np.abs(forces).max()
    np.testing.assert_allclose(forces, ours.forces[0].numpy(), atol=1e-9 * scale, rtol=0)
    bridge.finalize()


@needs_kernel
@pytest.mark.parametrize("include_energy", [True, False])
def test_values_and_atoms_in_one_input(tmp_path, alanine_model, start, include_energy):
    """Forces are the derivative of the energy with all three values, a torsion, some particles only, PLUMED in Å."""
    system = openmm.System()
    for mass in (40.0, 40.0):
        system.addParticle(mass)
    for particle in range(bare_system(alanine_model).getNumParticles()):
        system.addParticle(bare_system(alanine_model).getParticleMass(particle))
    lines = """
        UNITS LENGTH=A   # on a line of its own
        u: EXTRACV NAME=judge
        EXTRACV ...
            NAME=driver
            LABEL=c
        ... EXTRACV
        e: EXTRACV NAME=energy
        phi: TORSION ATOMS=7,9,11,17
        d: DISTANCE ATOMS=1,9
        RESTRAINT ARG=u,c,e,phi,d AT=0,0,0,0,0 KAPPA=0.01,20,0.001,50,3
    """.splitlines()
    model_atoms = list(range(2, 24))
    bridge = bridged(system, lines, alanine_model, tmp_path, particles=model_atoms, include_energy=include_energy)
    assert bridge.names == ("judge", "driver", "energy")
    x = np.concatenate([[[0.5, 0.6, 0.7], [1.0, 1.1, 0.9]], start])
    context = openmm.Context(system, openmm.VerletIntegrator(TIMESTEP), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(x)
    _, forces = energy_and_forces(context)
    for index in ((0, 0), (6, 1), (8, 0), (8, 2), (10, 1), (16, 2), (12, 0)):
        numeric = 0.0
        for sign in (1, -1):
            moved = x.copy()
            moved[index] += sign * 1e-5
            context.setPositions(moved)
            numeric -= sign * energy_and_forces(context)[0] / 2e-5
        assert forces[index] == pytest.approx(numeric, abs=1e-6 * np.abs(forces).max())
    assert np.abs(forces[0]).max() > 1.0
    np.testing.assert_array_equal(forces[1], 0.0)
    bridge.finalize()


@needs_kernel
def test_a_bias_with_a_stride_rests_in_between(tmp_path, alanine_model, start):
    """On a step where PLUMED computes nothing, no force of the step before may be left over."""
    system = bare_system(alanine_model)
    lines = [METAD[0], "d: DISTANCE ATOMS=1,5", "RESTRAINT ARG=c,d AT=0,0 KAPPA=50,5000 STRIDE=2"]
    bridge = bridged(system, lines, alanine_model, tmp_path)
    simulation = simulation_of(system, start)
    evaluator = FusedEvaluator(alanine_model, None, 1, runner="eager", dtype=torch.float64)
    biases = []
    for _ in range(4):
        _, forces = energy_and_forces(simulation.context)
        model_forces = evaluator.evaluate(torch.tensor(positions_of(simulation))[None]).forces[0].numpy()
        biases.append(np.abs(forces - model_forces).max() / np.abs(model_forces).max())
        bridge.step(simulation, 1)
    assert min(biases[::2]) > 1e-2
    assert max(biases[1::2]) < 1e-9
    bridge.finalize()


def own_metadynamics(model, start, folder, steps=500, **options):
    """Hills and positions of our own metadynamics, with the parameters of METAD above."""
    system = force_field_system()
    settings = {"temperature": 300, "biasFactor": 10.0, "height": HEIGHT, "frequency": PACE}
    files = {"hills": folder / "OWN", "colvar": None}
    u = BiasVariable(model, biasWidth=SIGMA)
    own = Metadynamics(system, [u], **settings, **files, runner="eager", dtype=torch.float64, **options)
    simulation = simulation_of(system, start)
    simulation.reporters.append(own)
    simulation.step(steps)
    return own, positions_of(simulation)


def in_process(task, model, folder, **variables):
    """Run `main` of this file in a process of its own."""
    model.save(folder / "model.uqb")
    command = [sys.executable, str(Path(__file__)), task, str(folder / "model.uqb"), str(folder)]
    path = os.pathsep.join([str(Path(__file__).parents[1] / "helpers"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@needs_kernel
def test_500_steps_as_our_own_metadynamics(tmp_path, alanine_model, start):
    """With PLUMED's plain Gaussians (PLUMED_DP2CUTOFF_NOSTRETCH); the process ends without finalize."""
    done = in_process("plain", alanine_model, tmp_path, PLUMED_DP2CUTOFF_NOSTRETCH="1")
    assert done.returncode == 0, done.stderr
    own, own_positions = own_metadynamics(alanine_model, start, tmp_path)
    plumed, ours = read_hills(tmp_path / "HILLS", TIMESTEP * 1e3), own.metadynamics.hills
    # The kernel is cut at 3.5 σ there and at 6 σ here: the comparison is fair while all centres are nearer.
    assert np.ptp(ours["centre"]) < 3.5 * SIGMA
    np.testing.assert_array_equal(plumed["step"], np.arange(PACE, 501, PACE))
    np.testing.assert_array_equal(plumed["step"], ours["step"])
    np.testing.assert_allclose(plumed["centre"], ours["centre"], atol=1e-5)
    np.testing.assert_allclose(plumed["height"], ours["height"], atol=1e-5)
    assert ours["height"].min() < 0.5 * HEIGHT  # tempering was at work
    assert np.abs(np.load(tmp_path / "positions.npy") - own_positions).max() < 1e-5
    unbiased = simulation_of(force_field_system(), start)
    unbiased.step(500)
    assert np.abs(positions_of(unbiased) - own_positions).max() > 1e-3


@needs_kernel
def test_500_steps_with_stretched_kernels(tmp_path, alanine_model, start):
    """PLUMED's default kernels, which are stretched to end at 3.5 σ, and ours of that kind: the same run."""
    system = force_field_system()
    bridge = bridged(system, METAD, alanine_model, tmp_path, include_energy=False)
    simulation = simulation_of(system, start)
    with bridge:
        assert bridge.step(simulation, 500) == 500
    own, own_positions = own_metadynamics(alanine_model, start, tmp_path, kernel="stretched-gaussian")
    plumed, ours = read_hills(tmp_path / "HILLS", TIMESTEP * 1e3), own.metadynamics.hills
    np.testing.assert_array_equal(plumed["step"], ours["step"])
    np.testing.assert_allclose(plumed["centre"], ours["centre"], atol=1e-5)
    np.testing.assert_allclose(plumed["height"], ours["height"], atol=1e-5)
    assert np.abs(positions_of(simulation) - own_positions).max() < 1e-5


@needs_kernel
def test_500_steps_through_the_plugin(tmp_path, alanine_model, start):
    """The action UNCERTAINTY on atoms in the place of EXTRACV, in the same bridge: the same run."""
    from uqbias.model.export import export_torchscript
    from uqbias.plumed.compile_plugin import build_plugin

    try:
        library = build_plugin(tmp_path / "plugin", find_kernel())
    except UqbiasError as error:
        pytest.skip(f"the plugin cannot be built here: {error}")
    export_torchscript(alanine_model, tmp_path / "driver.pt", "driver", with_forces=True)
    action = f"c: UNCERTAINTY ATOMS=1-22 MODEL={tmp_path / 'driver.pt'} FLOAT64 NOPBC"
    final = []
    for name, lines in (("bridge", METAD), ("plugin", [f"LOAD FILE={library}", action, *METAD[1:]])):
        system = force_field_system()
        bridge = bridged(system, lines, alanine_model, tmp_path / name, include_energy=False)
        simulation = simulation_of(system, start)
        with bridge:
            bridge.step(simulation, 500)
        final.append((positions_of(simulation), read_hills(tmp_path / name / "HILLS", TIMESTEP * 1e3)))
    np.testing.assert_array_equal(final[1][1]["step"], final[0][1]["step"])
    # The exported weights are float32.
    np.testing.assert_allclose(final[1][1]["centre"], final[0][1]["centre"], atol=1e-4)
    np.testing.assert_allclose(final[1][1]["height"], final[0][1]["height"], atol=1e-4)
    assert np.abs(final[1][0] - final[0][0]).max() < 1e-5


@needs_kernel
def test_platform_cpu_and_single_precision(tmp_path, alanine_model, start):
    forces, final = [], []
    for name, dtype in (("Reference", torch.float64), ("CPU", torch.float32)):
        system = bare_system(alanine_model)
        bridge = bridged(system, METAD, alanine_model, tmp_path / "forces" / name, dtype=dtype)
        forces.append(energy_and_forces(simulation_of(system, start, platform=name).context)[1])
        bridge.finalize()
        system = force_field_system()
        bridge = bridged(system, METAD, alanine_model, tmp_path / name, dtype=dtype, include_energy=False)
        simulation = simulation_of(system, start, platform=name)
        with bridge:
            bridge.step(simulation, 100)
        final.append((positions_of(simulation), read_hills(tmp_path / name / "HILLS", 0.5)))
    np.testing.assert_allclose(forces[1], forces[0], atol=1e-4 * np.abs(forces[0]).max(), rtol=0)
    np.testing.assert_allclose(final[1][0], final[0][0], atol=1e-4)
    np.testing.assert_allclose(final[1][1]["centre"], final[0][1]["centre"], atol=1e-3)
    assert len(final[1][1]) == 10


def run_hills(folder, model, start, steps=60, prepare=None, reporters=(), plain=False):
    """HILLS, COLVAR and final positions of a short run."""
    system = bare_system(model)
    bridge = bridged(system, METAD, model, folder)
    simulation = simulation_of(system, start)
    if prepare is not None:
        prepare(simulation)
    simulation.reporters.extend(reporters)
    if plain:
        simulation.reporters.append(bridge)
    with bridge:
        simulation.step(steps) if plain else bridge.step(simulation, steps)
    return (folder / "HILLS").read_text(), (folder / "COLVAR").read_text(), positions_of(simulation)


@needs_kernel
def test_reports_and_evaluations_change_nothing(tmp_path, alanine_model, start):
    def minimise(simulation):
        x, velocities = positions_of(simulation), simulation.context.getState(velocities=True).getVelocities()
        simulation.minimizeEnergy(maxIterations=5)
        assert np.abs(positions_of(simulation) - x).max() > 1e-4
        simulation.context.setPositions(x)
        simulation.context.setVelocities(velocities)

    energies = app.StateDataReporter(str(tmp_path / "log"), 1, step=True, potentialEnergy=True)
    expected = run_hills(tmp_path / "a", alanine_model, start)
    others = [
        run_hills(tmp_path / "b", alanine_model, start, reporters=[energies]),
        run_hills(tmp_path / "c", alanine_model, start, prepare=minimise),
        run_hills(tmp_path / "d", alanine_model, start, reporters=[energies], plain=True),
        run_hills(tmp_path / "e", alanine_model, start, plain=True),
    ]
    assert len(read_hills(tmp_path / "a" / "HILLS", 0.5)) == 6
    np.testing.assert_allclose(read_colvar(tmp_path / "a" / "COLVAR")["time"], np.arange(61) * TIMESTEP, atol=1e-12)
    for hills, colvar, positions in others:
        assert hills == expected[0]
        assert colvar == expected[1]
        np.testing.assert_array_equal(positions, expected[2])


@needs_kernel
@pytest.mark.parametrize("integrator", ["verlet", "langevin"])
def test_a_barostat_neither_adds_nor_loses_nor_moves_a_hill(tmp_path, alanine_model, start, integrator):
    """Without bonds in the System each atom is scaled on its own, so that each trial move changes u."""
    system = bare_system(alanine_model)
    system.setDefaultPeriodicBoxVectors(*(3.0 * np.eye(3)))
    bridge = bridged(system, METAD, alanine_model, tmp_path, periodic=True)
    barostat = openmm.MonteCarloBarostat(1.0, 300.0, 1)
    barostat.setRandomNumberSeed(1)
    system.addForce(barostat)
    chosen = (
        openmm.VerletIntegrator(TIMESTEP)
        if integrator == "verlet"
        else openmm.LangevinMiddleIntegrator(300, 1.0, TIMESTEP)
    )
    simulation = simulation_of(system, start, integrator=chosen)
    trail = []

    class Trail:
        def describeNextReport(self, _):  # noqa: N802
            return {"steps": 1, "periodic": False, "include": ["positions"]}

        def report(self, _, state):
            trail.append((state.getPositions(asNumpy=True)._value.copy(), state.getPeriodicBoxVolume()._value))

    simulation.reporters.append(Trail())
    with bridge:
        bridge.step(simulation, 60)
    hills, colvar = read_hills(tmp_path / "HILLS", 0.5), read_colvar(tmp_path / "COLVAR")
    np.testing.assert_array_equal(hills["step"], np.arange(10, 61, 10))
    np.testing.assert_allclose(colvar["time"], np.arange(61) * TIMESTEP, atol=1e-12)
    np.testing.assert_allclose(hills["centre"][:, 0], colvar["c"][10::10], rtol=1e-12)
    # A step at whose start a move was rejected goes on from where the step before ended.
    rejected = [k for k in range(1, 60) if trail[k][1] == trail[k - 1][1]]
    assert len(rejected) > 5
    for k in rejected:
        with torch.no_grad():
            u = float(alanine_model(torch.tensor(trail[k - 1][0])[None]).driver)
        assert colvar["c"][k] == pytest.approx(u, rel=1e-9)


@needs_kernel
def test_killed_and_restarted(tmp_path, alanine_model, start):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    killed.mkdir()
    system = bare_system(alanine_model)
    bridge = bridged(system, METAD, alanine_model, whole)
    simulation = simulation_of(system, start)
    with bridge:
        bridge.step(simulation, 201)
        next_positions = positions_of(simulation)
        bridge.step(simulation, 29)
    done = in_process("killed", alanine_model, killed)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert read_hills(killed / "HILLS", 0.5)["step"][-1] == 200
    with (killed / "HILLS").open("a") as stream:
        stream.write("        0.105      1.36")  # a write that the end of the process cut short
    system = bare_system(alanine_model)
    bridge = bridged(system, METAD, alanine_model, killed, restart=True)
    simulation = simulation_of(system, start)
    simulation.loadCheckpoint(str(killed / "checkpoint"))
    assert simulation.currentStep == 200
    went_on = positions_of(simulation)
    simulation.context.setPositions(next_positions)
    energy_and_forces(simulation.context)
    uninterrupted = read_colvar(whole / "COLVAR")
    assert bridge.last.bias == pytest.approx(uninterrupted["m.bias"][201], rel=1e-13)
    assert bridge.last.bias > 1.0
    simulation.context.setPositions(went_on)
    with bridge:
        bridge.step(simulation, 30)
    hills = read_hills(killed / "HILLS", 0.5)
    np.testing.assert_array_equal(hills["step"], np.arange(10, 231, 10))
    np.testing.assert_array_equal(hills[:20], read_hills(whole / "HILLS", 0.5)[:20])


@needs_kernel
@pytest.mark.parametrize("kernel", ["gaussian", "stretched-gaussian"])
def test_sum_hills_of_our_file_gives_our_free_energy(tmp_path, kernel):
    if find_kernel().executable is None:
        pytest.skip("this PLUMED has no command plumed")
    generator = np.random.default_rng(5)
    bias = MetaD(height=1.2, sigma=1.0, pace=1, biasfactor=8.0, temperature=300, kernel=kernel)
    hills = HillsFile(tmp_path / "HILLS", bias, 0.5)
    for step, centre in enumerate(generator.uniform(2.0, 5.4, 100), start=1):
        bias.update(step, np.array([centre])[:, None])
        hills()
    hills.close()
    grid = np.linspace(2.0, 5.4, 69)
    own = bias.free_energy(grid)[1]

    def sum_hills(**variables):
        command = [str(find_kernel().executable), "--no-mpi", "sum_hills", "--hills", "HILLS", "--outfile", "fes.dat"]
        command += ["--min", "2.0", "--max", "5.4", "--bin", "68", "--mintozero"]
        env = environment(find_kernel().path) | variables
        subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True, timeout=100)
        fes = np.array(list(read_colvar(tmp_path / "fes.dat").values())[:2])
        np.testing.assert_allclose(fes[0], grid, atol=1e-6)
        return fes[1]

    # All hills are within 3.4 σ of the grid, where PLUMED's plain Gaussians are whole.
    plain = {"PLUMED_DP2CUTOFF_NOSTRETCH": "1"} if kernel == "gaussian" else {}
    np.testing.assert_allclose(sum_hills(**plain), own, atol=1e-3)
    assert own.max() > 5.0


@needs_kernel
def test_opes_runs(tmp_path, alanine_model, start):
    system = bare_system(alanine_model)
    lines = [
        "c: EXTRACV NAME=driver",
        "o: OPES_METAD ARG=c PACE=10 BARRIER=20",
        "PRINT ARG=c,o.bias FILE=COLVAR STRIDE=5",
    ]
    if "opes" not in find_kernel().modules and find_kernel().modules:
        pytest.skip("this PLUMED has no module opes")
    bridge = bridged(system, lines, alanine_model, tmp_path)
    simulation = simulation_of(system, start)
    with bridge:
        assert bridge.step(simulation, 300) == 300
    assert len(read_colvar(tmp_path / "COLVAR")["time"]) == 61
    assert np.ptp(read_colvar(tmp_path / "COLVAR")["o.bias"]) > 1e-3
    assert (tmp_path / "KERNELS").read_text().count("\n") > 5


@needs_kernel
def test_committor_stops_the_run(tmp_path, alanine_model, start):
    system = bare_system(alanine_model)
    lines = [*METAD, "COMMITTOR ARG=c STRIDE=20 BASIN_LL1=-1000 BASIN_UL1=1000"]
    bridge = bridged(system, lines, alanine_model, tmp_path)
    simulation = simulation_of(system, start)
    with bridge:
        steps = bridge.step(simulation, 200)
        assert bridge.stopped
        assert bridge.step(simulation, 10) == 0
    assert steps in {1, 21}
    assert len(read_colvar(tmp_path / "COLVAR")["time"]) == steps
    # In a plain script the run ends with the reason in the message.
    system = bare_system(alanine_model)
    bridged(system, lines, alanine_model, tmp_path / "plain")
    with pytest.raises(openmm.OpenMMException, match="PLUMED asked to stop at step"):
        simulation_of(system, start).step(200)


@needs_kernel
def test_the_end(tmp_path, alanine_model, start):
    system = bare_system(alanine_model)
    bridge = bridged(
        system,
        ["# nothing but a print", METAD[0], "PRINT ARG=c FILE=COLVAR"],
        alanine_model,
        tmp_path,
        temperature=None,
    )
    bridge.finalize()
    bridge.finalize()
    with pytest.raises(openmm.OpenMMException, match="finalised"):
        simulation_of(system, start).step(1)


@needs_kernel
@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        (["PRINT ARG=x"], "no line that uses the uncertainty; add one such as 'u: EXTRACV NAME=judge'"),
        (["u: EXTRACV NAME=drivr"], "line 1: EXTRACV NAME=drivr; did you mean 'driver'"),
        (["UNITS ENERGY=kcal/mol", METAD[0]], "line 1: UNITS ENERGY=kcal/mol makes the bias force wrong"),
        (["UNITS NATURAL", METAD[0]], "makes the bias force wrong"),
        ([METAD[0], "e: ENERGY"], "line 2: ENERGY.*e: EXTRACV NAME=energy"),
        ([METAD[0], "METAD ARG=c SIGMA=0.1 HEIGT=1 PACE=5"], "PLUMED refuses the input: .*METAD.*"),
        ([METAD[0], "METADD ARG=c"], "PLUMED refuses the input: .*METADD.*"),
        ([METAD[0], "METAD ARG=q SIGMA=0.1 HEIGHT=1 PACE=5"], "PLUMED refuses the input: .*q"),
    ],
)
def test_bad_inputs(tmp_path, tiny_model, lines, fault):
    with pytest.raises(UqbiasError, match=fault) as raised:
        bridged(bare_system(tiny_model), lines, tiny_model, tmp_path)
    assert "\n" not in str(raised.value)


@needs_kernel
def test_bad_numbers(tmp_path, tiny_model, tiny_positions):
    system = bare_system(tiny_model)
    with pytest.raises(UqbiasError, match=r"no such file: nowhere.dat"):
        bridged(system, "nowhere.dat", tiny_model, tmp_path)
    with pytest.raises(UqbiasError, match="a model of 5 atoms for 4 particles"):
        bridged(system, METAD, tiny_model, tmp_path, particles=[0, 1, 2, 3])
    with pytest.raises(UqbiasError, match="give each atom once"):
        bridged(system, METAD, tiny_model, tmp_path, particles=[0, 1, 2, 3, 3])
    with pytest.raises(UqbiasError, match=r"timestep 0.0 ps"):
        bridged(system, METAD, tiny_model, tmp_path, timestep=0)
    assert system.getNumForces() == 0
    bridge = bridged(system, METAD, tiny_model, tmp_path, timestep=0.002 * openmm.unit.picosecond)
    context = openmm.Context(system, openmm.VerletIntegrator(TIMESTEP), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(tiny_positions[0].numpy())
    with pytest.raises(openmm.OpenMMException, match=r"the integrator's step is 0.0005 ps, the bridge was made for"):
        context.getIntegrator().step(2)
    with pytest.raises(Exception, match="could not be pickled"):
        openmm.XmlSerializer.serialize(system)
    bridge.finalize()


def test_missing_kernel(tmp_path, tiny_model, monkeypatch):
    monkeypatch.setenv("PLUMED_KERNEL", str(tmp_path / "libplumedKernel.so"))
    with pytest.raises(UqbiasError, match=r"PLUMED_KERNEL is '.*', no such file; set it to the path of"):
        bridged(bare_system(tiny_model), METAD, tiny_model, tmp_path)
    (tmp_path / "libplumedKernel.so").write_text("not a library")
    with pytest.raises(UqbiasError, match=r"does not load.*conda install -c conda-forge plumed"):
        find_kernel()


@needs_kernel
@pytest.mark.parametrize(("command", "output"), [("bridge/run.py", "plumed_out"), ("opes/run.sh", "opes_out")])
def test_examples(tmp_path, alanine_model, command, output):
    if output == "opes_out" and find_kernel().modules and "opes" not in find_kernel().modules:
        pytest.skip("this PLUMED has no module opes")
    alanine_model.save(tmp_path / "model.uqb")
    script = EXAMPLES / command
    start = [sys.executable] if script.suffix == ".py" else ["sh"]
    done = subprocess.run(
        [*start, str(script), "--steps", "100", "--runner", "eager"],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "100 steps, bias of PLUMED at the end" in done.stdout
    assert len(read_colvar(tmp_path / output / "COLVAR")["time"]) == 3
    assert (tmp_path / output / "figure.png").is_file()


def main(task, model_path, folder):
    """In a process of its own: ``plain`` ends without finalize, ``killed`` by SIGKILL at step 230."""
    torch.set_num_threads(1)
    from uqbias.molecule.frames import read_frames

    model, folder = UncertaintyModel.load(model_path), Path(folder)
    start = read_frames(ALANINE / "start.xyz").positions[0]
    plain = task == "plain"
    system = force_field_system() if plain else bare_system(model)
    bridge = bridged(system, METAD, model, folder, flush=50, include_energy=not plain)
    simulation = simulation_of(system, start)
    if plain:
        simulation.reporters.append(app.StateDataReporter(os.devnull, 1, potentialEnergy=True))
        simulation.step(500)
        np.save(folder / "positions.npy", positions_of(simulation))
        return
    simulation.reporters.append(app.CheckpointReporter(str(folder / "checkpoint"), 50))
    bridge.step(simulation, 230)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
