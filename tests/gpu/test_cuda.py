"""The same numbers on OpenMM's CUDA platform as on the CPU, and what a step costs there."""

import copy
import time

import numpy as np
import openmm
import pytest
import torch
from openmm import unit

from uqbias.bias.base import BiasSum
from uqbias.bias.metadynamics import Metadynamics
from uqbias.bias.walls import UpperWall
from uqbias.compile.fused import FusedEvaluator
from uqbias.compile.runners import find_compiler
from uqbias.export import export_torchscript
from uqbias.md.force import make_force
from uqbias.md.stack import backend_faults

BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(fault is not None, reason=f"{name}: {fault}"))
    for name, fault in backend_faults().items()
]
RUNNERS = [
    "eager",
    "torchscript",
    pytest.param("aoti", marks=pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")),
]
KJ, NM = unit.kilojoules_per_mole, unit.nanometer


def make_bias(around):
    """Three hills and a wall, all felt at ``around`` [n]."""
    metadynamics = Metadynamics(height=50.0, sigma=0.6, pace=1, biasfactor=None)
    for step, shift in enumerate((0.3, -0.5, 0.1), start=1):
        metadynamics.update(step, np.quantile(around, [0.1, 0.5, 0.9]) + shift, np.zeros(3))
    return BiasSum([metadynamics, UpperWall(at=float(np.min(around)) - 0.5, kappa=3.0)])


def walkers_of(frames, count):
    """[count, N, 3] nm, start frames with noise."""
    noise = np.random.default_rng(3).normal(scale=0.003, size=(count, len(frames.numbers), 3))
    return torch.tensor(frames.positions[np.arange(count) % len(frames)] + noise)


def context_of(force, n_particles, make_context):
    system = openmm.System()
    for _ in range(n_particles):
        system.addParticle(12.0)
    system.addForce(force)
    return make_context(system, openmm.LangevinMiddleIntegrator(300, 1, 0.0002))


def evaluated(context, positions):
    context.setPositions(positions.reshape(-1, 3).numpy())
    state = context.getState(energy=True, forces=True)
    forces = torch.tensor(state.getForces(asNumpy=True).value_in_unit(KJ / NM)).view_as(positions)
    return state.getPotentialEnergy().value_in_unit(KJ), forces


@pytest.mark.parametrize("n_walkers", [1, 16, 256])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("runner", RUNNERS)
def test_energy_and_forces_are_those_of_the_cpu(
    alanine_model, alanine_frames, graph_cache, make_context, device, table, runner, backend, n_walkers
):
    positions = walkers_of(alanine_frames, n_walkers)
    with torch.no_grad():
        around = alanine_model(positions).cv.numpy()
    reference = FusedEvaluator(
        copy.deepcopy(alanine_model), make_bias(around), n_walkers, runner="eager", dtype=torch.float64
    ).evaluate(positions)
    evaluator = FusedEvaluator(
        copy.deepcopy(alanine_model).float(),
        make_bias(around),
        n_walkers,
        runner=runner,
        device=device,
        cache_dir=graph_cache,
    )
    context = context_of(make_force(evaluator, backend), positions.shape[0] * positions.shape[1], make_context)
    energy, forces = evaluated(context, positions)
    expected = float((reference.energy + reference.bias).sum())
    # The energy of a molecule is a difference of large numbers in single precision: measured by its spread.
    assert abs(energy - expected) / n_walkers < 1e-4 * float(reference.forces.abs().max())
    assert float((forces - reference.forces).abs().max() / reference.forces.abs().max()) < 1e-3
    np.testing.assert_allclose(evaluator.last.bias.cpu(), reference.bias, rtol=1e-3, atol=1e-2)
    steps = 20
    context.getIntegrator().step(steps)
    begin = time.perf_counter()
    context.getIntegrator().step(steps)
    context.getState(positions=True)
    table.append((f"{backend}, {runner}", n_walkers, (time.perf_counter() - begin) / steps))


def test_central_differences(alanine_model, alanine_frames, make_context, device):
    """Forces in mixed precision against differences of the float64 energy on the CPU."""
    positions = walkers_of(alanine_frames, 1)
    with torch.no_grad():
        around = alanine_model(walkers_of(alanine_frames, 8)).cv.numpy()
    bias = make_bias(around)
    evaluator = FusedEvaluator(copy.deepcopy(alanine_model).float(), bias, 1, runner="eager", device=device)
    _, forces = evaluated(context_of(make_force(evaluator, "pythonforce"), positions.shape[1], make_context), positions)
    exact = make_bias(around).to(torch.float64)
    shifts = 1e-5 * torch.eye(positions[0].numel(), dtype=torch.float64).view(-1, *positions.shape[1:])

    def energy(sign):
        with torch.no_grad():
            prediction = alanine_model(positions[0] + sign * shifts)
            return prediction.energy + exact.energy(prediction.cv, prediction.energy, exact.state())

    differences = (-(energy(1) - energy(-1)) / 2e-5).view(positions.shape)
    assert float((forces - differences).abs().max() / differences.abs().max()) < 1e-3


def test_backends_agree(alanine_model, alanine_frames, make_context, device):
    if faults := [f"{name}: {fault}" for name, fault in backend_faults().items() if fault is not None]:
        pytest.skip("; ".join(faults))
    positions = walkers_of(alanine_frames, 4)
    results = []
    for backend in ("pythonforce", "torchforce"):
        evaluator = FusedEvaluator(copy.deepcopy(alanine_model).float(), None, 4, runner="eager", device=device)
        context = context_of(make_force(evaluator, backend), 4 * positions.shape[1], make_context)
        results.append(evaluated(context, positions)[1])
    assert float((results[0] - results[1]).abs().max() / results[0].abs().max()) < 1e-4


@pytest.mark.parametrize("graphs", [False, True], ids=["plain", "CUDA graphs"])
def test_exported_module(alanine_model, alanine_frames, make_context, device, table, tmp_path, graphs):
    """The exported file runs on the GPU: no tensor in it is tied to the CPU."""
    if fault := backend_faults()["torchforce"]:
        pytest.skip(f"torchforce: {fault}")
    from openmmtorch import TorchForce

    positions = walkers_of(alanine_frames, 1)
    model = copy.deepcopy(alanine_model).float()
    export_torchscript(model, tmp_path / "energy.pt", "energy", with_forces=True)
    module = torch.jit.load(tmp_path / "energy.pt", map_location=device)
    energy, forces = module(positions[0].to(device))
    expected = FusedEvaluator(model, None, 1, runner="eager").evaluate(positions)
    assert float((forces.cpu() - expected.forces[0]).abs().max() / expected.forces.abs().max()) < 1e-3
    assert abs(float(energy) - float(expected.energy)) < 1e-4 * float(expected.forces.abs().max())
    force = TorchForce(str(tmp_path / "energy.pt"), {"useCUDAGraphs": "true" if graphs else "false"})
    force.setOutputsForces(True)
    context = context_of(force, positions.shape[1], make_context)
    _, through = evaluated(context, positions)
    assert float((through - expected.forces[0]).abs().max() / expected.forces.abs().max()) < 1e-3
    context.getIntegrator().step(20)
    begin = time.perf_counter()
    context.getIntegrator().step(20)
    context.getState(positions=True)
    table.append((f"exported, {'CUDA graphs' if graphs else 'plain'}", 1, (time.perf_counter() - begin) / 20))


def test_hills_are_those_of_the_cpu():
    """Hills are deposited on the host in float64, wherever the graph runs."""
    u = np.random.default_rng(0).normal(size=(30, 16))
    tables = []
    for dtype in (torch.float64, torch.float32):
        bias = Metadynamics(pace=1)
        bias.to(dtype)
        for step, values in enumerate(u, start=1):
            bias.update(step, values, np.zeros(16))
        tables.append(bias.hills.copy())
    np.testing.assert_array_equal(tables[0], tables[1])
