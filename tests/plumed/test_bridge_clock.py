"""The bridge's force acts, PLUMED's clock is the run's, and a restart counts no hill twice."""

import numpy as np
import openmm
import plumed_kernel
import pytest
import torch
from openmm import app

import uqbias
from uqbias.errors import UqbiasError
from uqbias.plumed.bridge import PlumedBridge
from uqbias.plumed.session import read_actions
from uqbias.plumed.step_clock import files_written, last_hill
from uqbias.runs.series import read_colvar

DT = 0.0005


needs_kernel = plumed_kernel.needs_kernel()
pytestmark = pytest.mark.plumed


def metad(height=1.0, stride=1):
    return [
        "c: EXTRACV NAME=driver",
        f"METAD ARG=c SIGMA=0.3 HEIGHT={height} PACE=10 FILE=HILLS STRIDE={stride}",
        "PRINT ARG=c FILE=COLVAR STRIDE=5",
    ]


def bridged(model, folder, system=None, lines=None, **options):
    """A bridge, and the System of the model's atoms in a harmonic cage, in force group 1."""
    if system is None:
        system, cage = openmm.System(), openmm.CustomExternalForce("200*(x^2+y^2+z^2)")
        for number in model.numbers:
            cage.addParticle(system.addParticle(app.Element.getByAtomicNumber(int(number)).mass))
        cage.setForceGroup(1)
        system.addForce(cage)
    options = {"runner": "eager", "dtype": torch.float64, "timestep": DT, "temperature": 300, **options}
    lines = metad() if lines is None else lines
    return PlumedBridge(system, lines, model, output_dir=folder, include_energy=False, **options), system


def simulate(model, system, positions, integrator=None):
    topology = app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    for number in model.numbers:
        element = app.Element.getByAtomicNumber(int(number))
        topology.addAtom(element.symbol, element, residue)
    integrator = openmm.VerletIntegrator(DT) if integrator is None else integrator
    simulation = app.Simulation(topology, system, integrator, openmm.Platform.getPlatformByName("Reference"))
    simulation.context.setPositions(positions[0].numpy())
    return simulation


def place(simulation):
    return simulation.context.getState(positions=True).getPositions(asNumpy=True)._value


def within_groups(groups):
    integrator = openmm.VerletIntegrator(DT)
    integrator.setIntegrationForceGroups(groups)
    return integrator


IDLE = {"mts": lambda: openmm.MTSIntegrator(DT, [(1, 1)]), "groups": lambda: within_groups({1, 2})}


@needs_kernel
@pytest.mark.parametrize("name", IDLE)
def test_an_integrator_that_leaves_the_force_out_is_refused(name, tmp_path, tiny_model, tiny_positions):
    ends = []
    for height in (1e-9, 50.0):
        bridge, system = bridged(tiny_model, tmp_path / f"{height}", lines=metad(height, stride=2))
        simulation = simulate(tiny_model, system, tiny_positions, IDLE[name]())
        with pytest.raises(UqbiasError, match=r"evaluates force groups \{1.*in group 0, never acts"):
            bridge.step(simulation, 20)
        simulation.reporters.append(bridge)
        with pytest.raises(UqbiasError, match="never acts"):
            simulation.step(20)
        assert simulation.currentStep == 0
        bridge.force.setForceGroup(1)
        with pytest.raises(UqbiasError, match="changed its group after its Context"):
            bridge.step(simulation, 20)
        simulation = simulate(tiny_model, system, tiny_positions, IDLE[name]())
        with bridge:
            bridge.step(simulation, 60)
        ends.append(place(simulation))
        assert len(read_colvar(tmp_path / f"{height}" / "HILLS")["time"]) == 6
    assert np.abs(ends[0] - ends[1]).max() > 1e-5


@needs_kernel
def test_a_force_that_came_after_the_context(tmp_path, tiny_model, tiny_positions):
    system = openmm.System()
    for number in tiny_model.numbers:
        system.addParticle(app.Element.getByAtomicNumber(int(number)).mass)
    simulation = simulate(tiny_model, system, tiny_positions)
    bridge, _ = bridged(tiny_model, tmp_path, system)
    with pytest.raises(UqbiasError, match="after its Context was made"):
        bridge.step(simulation, 20)
    simulation.context.reinitialize(preserveState=True)
    with bridge:
        bridge.step(simulation, 20)
    assert len(read_colvar(tmp_path / "HILLS")["time"]) == 2


@needs_kernel
def test_steps_of_another_length_midway_are_refused(tmp_path, tiny_model, tiny_positions):
    bridge, system = bridged(tiny_model, tmp_path)
    simulation = simulate(tiny_model, system, tiny_positions)
    bridge.step(simulation, 15)
    simulation.integrator.setStepSize(2 * DT)
    for _ in range(2):
        with pytest.raises(UqbiasError, match=r"the integrator's step is 0\.001 ps, the bridge was made for 0\.0005"):
            bridge.step(simulation, 15)
    bridge, system = bridged(tiny_model, tmp_path / "variable")
    with pytest.raises(UqbiasError, match=r"the integrator's step is"):
        bridge.step(simulate(tiny_model, system, tiny_positions, openmm.VariableVerletIntegrator(1e-4)), 15)


@needs_kernel
def test_simulations_in_turn_are_refused(tmp_path, tiny_model, tiny_positions):
    bridge, system = bridged(tiny_model, tmp_path)
    first, second = (simulate(tiny_model, system, tiny_positions) for _ in range(2))
    bridge.step(first, 10)
    with pytest.raises(UqbiasError, match="two runs would mix"):
        bridge.step(second, 10)


@needs_kernel
def test_a_restart_behind_an_older_checkpoint_is_refused(tmp_path, tiny_model, tiny_positions):
    bridge, system = bridged(tiny_model, tmp_path)
    simulation = simulate(tiny_model, system, tiny_positions)
    checkpoints = {}
    with bridge:
        for step in (55, 95):
            bridge.step(simulation, step - simulation.currentStep)
            checkpoints[step] = simulation.context.createCheckpoint()
    for lines, restart in ((None, True), (["RESTART", *metad()], False)):
        bridge, system = bridged(tiny_model, tmp_path, lines=lines, restart=restart)
        simulation = simulate(tiny_model, system, tiny_positions)
        simulation.context.loadCheckpoint(checkpoints[55])
        with pytest.raises(UqbiasError, match=r"HILLS has hills until 0\.045 ps, later than this state \(0\.0275 ps\)"):
            bridge.step(simulation, 10)
        assert simulation.currentStep == 55
    # As new as the hills, and a new trajectory.
    for step, expected in ((95, 10), (0, 11)):
        bridge, system = bridged(tiny_model, tmp_path, restart=True)
        simulation = simulate(tiny_model, system, tiny_positions)
        if step:
            simulation.context.loadCheckpoint(checkpoints[step])
        with bridge:
            bridge.step(simulation, 10)
        assert len(read_colvar(tmp_path / "HILLS")["time"]) == expected


@needs_kernel
def test_two_bridges_on_one_system(tmp_path, tiny_model, tiny_positions):
    one, system = bridged(tiny_model, tmp_path / "a")
    with pytest.raises(UqbiasError, match=r"(COLVAR|HILLS|plumed\.log) is that of another bias on this System"):
        bridged(tiny_model, tmp_path / "a", system)
    assert system.getNumForces() == 2
    two, _ = bridged(tiny_model, tmp_path / "b", system)
    with pytest.raises(UqbiasError, match=r"HILLS is that of another bias on this System"):
        uqbias.Sampling(
            system, tiny_model, [uqbias.bias.MetaD()], temperature=300, runner="eager", hills=tmp_path / "a" / "HILLS"
        )
    simulation = simulate(tiny_model, system, tiny_positions)
    simulation.reporters += [one, two]
    with one, two:
        simulation.step(20)
    assert [len(read_colvar(tmp_path / name / "HILLS")["time"]) for name in "ab"] == [2, 2]


def test_files_of_an_input_and_its_last_hill(tmp_path):
    text = """
    UNITS TIME=fs
    INCLUDE FILE=more.dat
    METAD ARG=c SIGMA=0.3 HEIGHT=1 PACE=10
    OPES_METAD ARG=c FILE=K STATE_RFILE=S
    PBMETAD ARG=c,d SIGMA=1,1 HEIGHT=1 PACE=5 FILE=H1,H2
    EXTERNAL ARG=c FILE=grid.dat
    PRINT ARG=c FILE=COLVAR
    """
    actions = read_actions(text.splitlines(), tmp_path)
    assert files_written(actions) == ["HILLS", "K", "H1", "H2", "COLVAR"]
    assert last_hill(actions, tmp_path, restart=True) == (tmp_path, -np.inf)
    for name, times in {"HILLS": [10, 20, 30], "K": [50], "H2": [10, 40]}.items():
        rows = "".join(f" {time} 0.1\n" for time in times)
        (tmp_path / name).write_text(f"#! FIELDS time c\n{rows} 60")
    assert last_hill(actions, tmp_path, restart=True) == (tmp_path / "H2", pytest.approx(0.04))
    assert last_hill(actions, tmp_path, restart=False) == (tmp_path, -np.inf)
