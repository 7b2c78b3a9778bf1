"""Forces of every runner and backend against central differences of the same energy."""

import copy

import numpy as np
import openmm
import pytest
import torch

from uqbias.bias.base import BiasSum
from uqbias.bias.fixed import UpperWall
from uqbias.bias.metad import MetaD
from uqbias.compile.fused import FusedEvaluator
from uqbias.compile.runners import find_compiler
from uqbias.md.force import make_force

W = 2
STEP = 1e-5  # nm
AOTI = pytest.param(
    "aoti",
    marks=[pytest.mark.slow, pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")],
)


def make_bias(around):
    """Metadynamics with steep hills, and a wall, both active at the walkers."""
    metadynamics = MetaD(height=200.0, sigma=0.4, pace=1, biasfactor=None)
    for step, shift in enumerate((0.3, -0.5, 0.1), start=1):
        metadynamics.update(step, (np.asarray(around) + shift)[:, None])
    return BiasSum([metadynamics, UpperWall(at=float(min(around)) - 0.5, kappa=3.0)])


@pytest.fixture(scope="module")
def positions(alanine_frames):
    """[W, N, 3] nm, displaced so that no symmetry hides an error."""
    noise = np.random.default_rng(3).normal(scale=0.005, size=(W, len(alanine_frames.numbers), 3))
    return torch.tensor(alanine_frames.positions[[5, 60]] + noise)


@pytest.fixture(scope="module")
def driver(alanine_model, positions):
    """[W] values of the CV."""
    with torch.no_grad():
        return alanine_model(positions).driver.numpy()


@pytest.fixture(scope="module")
def references(alanine_model, positions, driver):
    """[W, N, 3] central differences of E + V and of E alone, from the model in float64 without compile or autograd."""
    bias = make_bias(driver).to(torch.float64)
    n_atoms = positions.shape[1]
    shifts = STEP * torch.eye(3 * n_atoms, dtype=torch.float64).reshape(-1, n_atoms, 3)

    def energies(walker, sign):
        with torch.no_grad():
            prediction = alanine_model(positions[walker] + sign * shifts)
            return prediction.energy, prediction.energy + bias.energy(prediction.driver[:, None], bias.state())

    forces = []
    for walker in range(W):
        pairs = zip(energies(walker, 1), energies(walker, -1), strict=True)
        forces.append([-(plus - minus).reshape(n_atoms, 3) / (2 * STEP) for plus, minus in pairs])
    bare, biased = zip(*forces, strict=True)
    return torch.stack(biased), torch.stack(bare)


@pytest.fixture(scope="module")
def evaluators(alanine_model, driver, graph_cache):
    """Evaluators by runner and dtype, each built once."""
    made = {}

    def get(runner, dtype):
        if (runner, dtype) not in made:
            model = copy.deepcopy(alanine_model).to(dtype)
            made[runner, dtype] = FusedEvaluator(
                model, make_bias(driver), W, runner=runner, dtype=dtype, cache_dir=graph_cache
            )
        return made[runner, dtype]

    return get


def relative(forces, reference):
    return float((forces.double() - reference).abs().max() / reference.abs().max())


def through_openmm(evaluator, positions, backend, platform="Reference"):
    system = openmm.System()
    for _ in range(positions.shape[0] * positions.shape[1]):
        system.addParticle(12.0)
    system.addForce(make_force(evaluator, backend))
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName(platform))
    context.setPositions(positions.reshape(-1, 3).numpy())
    state = context.getState(energy=True, forces=True)
    energy = state.getPotentialEnergy().value_in_unit(openmm.unit.kilojoules_per_mole)
    forces = state.getForces(asNumpy=True).value_in_unit(openmm.unit.kilojoules_per_mole / openmm.unit.nanometer)
    return energy, torch.tensor(forces).view_as(positions)


def test_the_bias_matters_here(references):
    biased, bare = references
    assert relative(bare, biased) > 0.02


@pytest.mark.parametrize("runner", ["eager", "torchscript", AOTI])
def test_runner_float32(evaluators, references, positions, runner):
    evaluator = evaluators(runner, torch.float32)
    assert evaluator.runner == runner
    evaluation = evaluator.evaluate(positions)
    assert evaluation.forces.dtype == torch.float32
    assert relative(evaluation.forces, references[0]) < 1e-3


@pytest.mark.parametrize("runner", ["eager", "torchscript"])
def test_runner_float64(evaluators, references, positions, runner):
    assert relative(evaluators(runner, torch.float64).evaluate(positions).forces, references[0]) < 1e-6


@pytest.mark.parametrize("backend", ["pythonforce", "torchforce"])
@pytest.mark.parametrize("runner", ["eager", "torchscript", AOTI])
def test_backend_float32(evaluators, references, positions, runner, backend):
    if backend == "torchforce":
        pytest.importorskip("openmmtorch")
    evaluator = evaluators(runner, torch.float32)
    energy, forces = through_openmm(evaluator, positions, backend)
    assert relative(forces, references[0]) < 1e-3
    evaluation = evaluator.last
    assert energy == pytest.approx(float((evaluation.energy + evaluation.bias).sum()), rel=1e-6)


@pytest.mark.parametrize("backend", ["pythonforce", "torchforce"])
def test_backend_float64(evaluators, references, positions, backend):
    if backend == "torchforce":
        pytest.importorskip("openmmtorch")
    _, forces = through_openmm(evaluators("eager", torch.float64), positions, backend)
    assert relative(forces, references[0]) < 1e-6


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_backends_agree(evaluators, positions, platform):
    pytest.importorskip("openmmtorch")
    evaluator = evaluators("torchscript", torch.float32)
    energies, forces = zip(
        *(through_openmm(evaluator, positions, name, platform) for name in ("pythonforce", "torchforce")), strict=True
    )
    assert energies[0] == pytest.approx(energies[1], rel=1e-4)
    assert relative(forces[0], forces[1]) < 1e-4


def test_values_are_those_of_the_model(alanine_model, evaluators, positions):
    evaluation = evaluators("eager", torch.float64).evaluate(positions)
    with torch.no_grad():
        prediction = alanine_model(positions)
    for name in ("energy", "driver", "judge"):
        torch.testing.assert_close(getattr(evaluation, name), getattr(prediction, name), rtol=1e-9, atol=1e-9)
