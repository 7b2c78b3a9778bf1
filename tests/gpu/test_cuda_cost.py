"""What an evaluation and an MD step cost on OpenMM's CUDA platform; the table at the end of the run says.

The model, the springs that hold it and the hills are those of ``make bench``. No time is asserted: each test checks
that what it timed ran as it says.
"""

import numpy as np
import openmm
import pytest
import torch

from uqbias.bias.base import BiasSum
from uqbias.bias.fixed import UpperWall
from uqbias.bias.metad import MetaD
from uqbias.errors import UqbiasError
from uqbias.md.stack import check_platform, choose_backend
from uqbias.model.export import export_torchscript
from uqbias.molecule.frames import read_frames

WALKERS = [1, 16, 256]
TURNS = 3


@pytest.fixture(scope="module")
def frames(step_cost):
    return read_frames(step_cost.SYSTEM / "start.xyz")


@pytest.fixture(scope="module")
def model(step_cost, frames):
    return step_cost.demo_model(frames)


def synchronised(run):
    """``run`` to the end of what it left on the GPU."""

    def timed(count):
        run(count)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return timed


@pytest.mark.parametrize("n_walkers", WALKERS)
@pytest.mark.parametrize("biased", [False, True], ids=["energy", "biased"])
def test_evaluation(step_cost, frames, model, graph_cache, device, table, runner, biased, n_walkers):
    """The limit: no OpenMM."""
    evaluator = step_cost.evaluator_for(
        model, n_walkers, biased=biased, runner=runner, device=device, cache_dir=graph_cache
    )
    points = torch.tensor(frames.positions[:1]).repeat(n_walkers, 1, 1).to(device, torch.float32)
    side = step_cost.Side("evaluation", synchronised(step_cost.repeat(evaluator, points)), 20)
    seconds = step_cost.measure([side], TURNS)["evaluation"]
    assert evaluator.runner == runner
    assert torch.isfinite(evaluator.last.forces).all()
    table.append((f"evaluation, {runner}, {'E + V(u)' if biased else 'E'}", n_walkers, seconds))


@pytest.mark.parametrize("n_walkers", WALKERS)
@pytest.mark.parametrize("biased", [False, True], ids=["energy", "biased"])
def test_md_step(step_cost, frames, model, graph_cache, device, platform, table, runner, backend, biased, n_walkers):
    """LangevinMiddle steps in mixed precision, a hill of each walker every 50 steps."""
    side = step_cost.walkers_side(
        "step",
        model,
        frames.positions[0],
        backend,
        n_walkers,
        step_cost.PACE,
        biased=biased,
        platform=platform,
        runner=runner,
        device=device,
        cache_dir=graph_cache,
    )
    seconds = step_cost.measure([side], TURNS)["step"]
    table.append((f"step, {backend}, {runner}, {'E + V(u)' if biased else 'E'}", n_walkers, seconds))


@pytest.mark.parametrize("graphs", [False, True], ids=["plain", "graphs"])
def test_md_step_of_an_exported_module(step_cost, frames, model, make_context, platform, table, tmp_path, graphs):
    """A TorchForce of the exported file, with a fixed bias: the one that can be captured in a CUDA graph.

    A live bias calls back to Python each step, which a captured graph would leave out.
    """
    try:
        check_platform(platform, choose_backend("torchforce"))
    except UqbiasError as error:
        pytest.skip(f"torchforce: {error}")
    if graphs and platform != "CUDA":
        pytest.skip(f"CUDA graphs on platform {platform}")
    from openmmtorch import TorchForce

    positions = frames.positions[0]
    path = str(tmp_path / "biased.pt")
    bias = BiasSum([MetaD(), UpperWall(at=14.0)])
    export_torchscript(model, path, "biased", with_forces=True, bias=bias)
    expected = torch.jit.load(path)(torch.tensor(positions))[1].numpy()
    force = TorchForce(path)
    force.setOutputsForces(True)
    force.setProperty("useCUDAGraphs", "true" if graphs else "false")
    force.setForceGroup(1)
    system = openmm.System()
    for mass in model.topology.masses():
        system.addParticle(float(mass))
    system.addForce(force)
    system.addForce(step_cost.springs(positions, 1))
    context = make_context(
        system,
        openmm.LangevinMiddleIntegrator(step_cost.TEMPERATURE, step_cost.FRICTION, step_cost.TIMESTEP_FS * 1e-3),
    )
    context.setPositions(positions)
    integrator = context.getIntegrator()

    def run(steps):
        integrator.step(steps)
        context.getState(positions=True)

    seconds = step_cost.measure([step_cost.Side("step", run, step_cost.PACE)], TURNS)["step"]
    # After many steps, so that a replayed graph is checked and not the capture.
    context.setPositions(positions)
    forces = context.getState(forces=True, groups={1}).getForces(asNumpy=True)._value
    assert np.abs(forces - expected).max() < 1e-4 * np.abs(expected).max()
    table.append((f"step, exported file, {'CUDA graph' if graphs else 'plain'}, fixed V", 1, seconds))
