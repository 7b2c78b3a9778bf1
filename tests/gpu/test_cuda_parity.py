"""The same numbers on OpenMM's CUDA platform as on the CPU."""

import copy

import numpy as np
import openmm
import pytest
import torch
from openmm import unit

from uqbias.bias.base import BiasSum
from uqbias.bias.fixed import UpperWall
from uqbias.bias.metad import MetaD
from uqbias.compile.fused import FusedEvaluator
from uqbias.errors import UqbiasError
from uqbias.md.force import make_force
from uqbias.md.stack import check_platform, choose_backend
from uqbias.md.walkers import Walkers
from uqbias.model.export import export_torchscript

KJ, NM = unit.kilojoules_per_mole, unit.nanometer
#: Of the largest force: against the same graph on the CPU in float32, and against exact differences.
PARITY, DIFFERENCES = 1e-4, 1e-3


def make_bias(around):
    """Three hills and a wall, all felt at ``around`` [n]."""
    metadynamics = MetaD(height=50.0, sigma=0.6, pace=1, biasfactor=None)
    for step, shift in enumerate((0.3, -0.5, 0.1), start=1):
        metadynamics.update(step, (np.quantile(around, [0.1, 0.5, 0.9]) + shift)[:, None])
    return BiasSum([metadynamics, UpperWall(at=float(np.min(around)) - 0.5, kappa=3.0)])


def walkers_of(frames, count):
    """[count, N, 3] nm, start frames with noise."""
    noise = np.random.default_rng(3).normal(scale=0.003, size=(count, len(frames.numbers), 3))
    return torch.tensor(frames.positions[np.arange(count) % len(frames)] + noise)


def driver(model, positions):
    with torch.no_grad():
        return model(positions).driver.numpy()


def single(model):
    """A float32 copy."""
    return copy.deepcopy(model).float()


def context_of(force, n_particles, make_context):
    system = openmm.System()
    for _ in range(n_particles):
        system.addParticle(12.0)
    system.addForce(force)
    return make_context(system, openmm.VerletIntegrator(0.0002))


def evaluated(context, positions):
    """Energy and forces [W, N, 3] that OpenMM sees at ``positions`` [W, N, 3]."""
    context.setPositions(positions.reshape(-1, 3).numpy())
    state = context.getState(energy=True, forces=True)
    forces = torch.tensor(state.getForces(asNumpy=True).value_in_unit(KJ / NM)).view_as(positions)
    return state.getPotentialEnergy().value_in_unit(KJ), forces


def relative(forces, reference):
    reference = reference.cpu().double()
    return float((forces.cpu().double() - reference).abs().max() / reference.abs().max())


@pytest.mark.parametrize("n_walkers", [1, 16, 256])
def test_energy_bias_and_forces_are_those_of_the_cpu(
    alanine_model, alanine_frames, graph_cache, make_context, device, runner, backend, n_walkers
):
    positions = walkers_of(alanine_frames, n_walkers)
    around = driver(alanine_model, positions)
    model = single(alanine_model)
    reference = FusedEvaluator(model, make_bias(around), n_walkers, runner="eager").evaluate(positions)
    evaluator = FusedEvaluator(model, make_bias(around), n_walkers, runner=runner, device=device, cache_dir=graph_cache)
    assert evaluator.runner == runner
    context = context_of(make_force(evaluator, backend), positions.shape[0] * positions.shape[1], make_context)
    energy, forces = evaluated(context, positions)
    assert relative(forces, reference.forces) < PARITY
    last = evaluator.last
    assert last.forces.device.type == device
    assert not evaluator.broken.any()
    # Single precision: rounding of energies of a few hundred kJ/mol, of u of a few tens.
    np.testing.assert_allclose(last.energy.cpu(), reference.energy, rtol=1e-5, atol=0.03)
    np.testing.assert_allclose(last.driver.cpu(), reference.driver, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(last.judge.cpu(), reference.judge, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(last.bias.cpu(), reference.bias, rtol=1e-5, atol=0.01)
    assert energy == pytest.approx(float((reference.energy + reference.bias).double().sum()), abs=0.03 * n_walkers)


def test_central_differences(alanine_model, alanine_frames, make_context, device, backend):
    """Forces in mixed precision against differences of the float64 energy on the CPU."""
    positions = walkers_of(alanine_frames, 2)
    around = driver(alanine_model, positions)
    evaluator = FusedEvaluator(single(alanine_model), make_bias(around), 2, runner="eager", device=device)
    _, forces = evaluated(
        context_of(make_force(evaluator, backend), positions.shape[0] * positions.shape[1], make_context), positions
    )
    exact = make_bias(around).to(torch.float64)
    shifts = 1e-5 * torch.eye(positions[0].numel(), dtype=torch.float64).view(-1, *positions.shape[1:])

    def energy(place):
        with torch.no_grad():
            prediction = alanine_model(place)
            return prediction.energy + exact.energy(prediction.driver[:, None], exact.state())

    expected = torch.stack([-(energy(x + shifts) - energy(x - shifts)) / 2e-5 for x in positions])
    assert relative(forces, expected.view_as(positions)) < DIFFERENCES


@pytest.mark.parametrize("n_walkers", [1, 16, 256])
def test_backends_agree(alanine_model, alanine_frames, make_context, device, platform, n_walkers):
    positions = walkers_of(alanine_frames, n_walkers)
    around = driver(alanine_model, positions)
    results = []
    for name in ("pythonforce", "torchforce"):
        try:
            check_platform(platform, choose_backend(name))
        except UqbiasError as error:
            pytest.skip(f"{name}: {error}")
        evaluator = FusedEvaluator(
            single(alanine_model), make_bias(around), n_walkers, runner="torchscript", device=device
        )
        force = make_force(evaluator, name)
        context = context_of(force, positions.shape[0] * positions.shape[1], make_context)
        results.append(evaluated(context, positions))
    assert relative(results[1][1], results[0][1]) < PARITY
    assert results[0][0] == pytest.approx(results[1][0], rel=PARITY)


@pytest.mark.parametrize("n_walkers", [1, 16])
def test_walkers_deposit_the_hills_that_the_cpu_would(
    alanine_model, alanine_frames, device, backend, platform, n_walkers
):
    """Metadynamics on the GPU; the same sequence of u through a bias on the CPU gives the same hills and the same V."""
    options = {"height": 0.5, "sigma": 0.5, "pace": 5, "biasfactor": 10.0}
    bias, twin = MetaD(**options), MetaD(**options)
    evaluator = FusedEvaluator(single(alanine_model), bias, n_walkers, runner="eager", device=device)
    walkers = Walkers(
        alanine_model.topology,
        evaluator,
        alanine_frames.positions[np.arange(n_walkers) % len(alanine_frames)],
        temperature=300.0,
        timestep_fs=0.1,
        platform=platform,
        backend=backend,
    )
    seen = []
    walkers.run(30, pace=5, observers=[seen.append])
    # One evaluation a step; what the observations ask for is used by the next step.
    assert evaluator.n_evaluations == 31
    for observation in seen:
        # float32 on the GPU against float64 on the CPU, with the hills deposited before this step.
        np.testing.assert_allclose(observation.bias, twin.value(observation.driver), rtol=1e-5, atol=1e-4)
        twin.update(observation.step, observation.driver, observation.energy)
    assert len(bias.hills) == 6 * n_walkers
    np.testing.assert_array_equal(bias.hills, twin.hills)
    np.testing.assert_array_equal(bias.grid.table, twin.grid.table)
    on_device = bias.state()["table"]
    assert on_device.device.type == device
    np.testing.assert_array_equal(on_device.cpu(), bias.grid.table.astype(np.float32))
    assert max(observation.bias.max() for observation in seen) > 0.4
    assert np.all(np.isfinite(seen[-1].positions))


@pytest.mark.parametrize("n_walkers", [1, 16])
def test_md_on_tensors_is_that_of_openmm_on_the_cpu(alanine_model, alanine_frames, device, n_walkers):
    """Without a thermostat, for as long as single precision lets trajectories stay together."""
    runs = []
    for engine, where in (("openmm", "cpu"), ("torch", device)):
        bias = MetaD(pace=5, sigma=0.5)
        evaluator = FusedEvaluator(single(alanine_model), bias, n_walkers, runner="eager", device=where)
        walkers = Walkers(
            alanine_model.topology,
            evaluator,
            alanine_frames.positions[np.arange(n_walkers) % len(alanine_frames)],
            temperature=300.0,
            timestep_fs=0.1,
            friction_per_ps=None,
            engine=engine,
        )
        seen = []
        walkers.run(20, pace=5, observers=[seen.append])
        assert evaluator.last.forces.device.type == where
        assert not evaluator.broken.any()
        runs.append(seen)
    for one, other in zip(*runs, strict=True):
        np.testing.assert_allclose(one.positions, other.positions, atol=1e-6)
        np.testing.assert_allclose(one.bias, other.bias, rtol=1e-3, atol=1e-3)
    assert np.abs(runs[1][0].positions - runs[1][-1].positions).max() > 1e-4


def test_another_model_without_another_graph(alanine_model, alanine_frames, device):
    positions = walkers_of(alanine_frames, 2)
    other = single(alanine_model)
    with torch.no_grad():
        other.potential.readout.mul_(1.5)
    evaluator = FusedEvaluator(single(alanine_model), None, 2, runner="torchscript", device=device)
    evaluator.evaluate(positions)
    evaluator.load_model(other)
    expected = FusedEvaluator(other, None, 2, runner="eager").evaluate(positions)
    assert relative(evaluator.evaluate(positions).forces, expected.forces) < PARITY


def test_a_broken_walker_disturbs_no_other(alanine_model, alanine_frames, device):
    positions = walkers_of(alanine_frames, 3)
    sound = FusedEvaluator(single(alanine_model), None, 3, runner="eager").evaluate(positions)
    evaluator = FusedEvaluator(single(alanine_model), None, 3, runner="torchscript", device=device)
    positions[1, 4] = torch.nan
    forces = evaluator.evaluate(positions).forces
    assert evaluator.broken.tolist() == [False, True, False]
    assert not forces[1].any()
    assert relative(forces[[0, 2]], sound.forces[[0, 2]]) < PARITY
    assert torch.isfinite(evaluator.total_energy)


@pytest.mark.parametrize("output", ["judge", "driver", "energy", "biased"])
@pytest.mark.parametrize("with_forces", [False, True], ids=["scalar", "forces"])
def test_exported_module_on_the_device(alanine_model, alanine_frames, device, tmp_path, output, with_forces):
    """No tensor in the file is tied to the CPU it was traced on."""
    positions = torch.tensor(alanine_frames.positions[10])
    bias = make_bias(driver(alanine_model, positions[None])) if output == "biased" else None
    path = str(tmp_path / "module.pt")
    export_torchscript(alanine_model, path, output, with_forces=with_forces, bias=bias)
    results = []
    for where in ("cpu", device):
        module = torch.jit.load(path, map_location=where)
        points = positions.to(where, torch.float32).requires_grad_(not with_forces)
        if with_forces:
            value, forces = module(points)
        else:
            value = module(points)
            forces = -torch.autograd.grad(value, points)[0]
        assert forces.device.type == torch.device(where).type
        results.append((float(value.detach()), forces))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-5, abs=1e-2)
    assert relative(results[1][1], results[0][1]) < PARITY
