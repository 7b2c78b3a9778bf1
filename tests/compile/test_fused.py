"""The fused evaluator on a tiny model: memo, new weights, growing bias, broken walkers, errors under OpenMM."""

import copy

import numpy as np
import openmm
import pytest
import torch

from uqbias.bias.base import BiasSum
from uqbias.bias.metad import MetaD
from uqbias.compile.fused import FusedEvaluator
from uqbias.errors import UqbiasError
from uqbias.md import stack
from uqbias.md.force import make_force

W, N = 3, 5


def make(model, bias=None, **options):
    return FusedEvaluator(model, bias, W, **{"runner": "eager", "dtype": torch.float64, **options})


def context_of(evaluator, positions, backend, particles=None, extra=0):
    system = openmm.System()
    for _ in range(extra + W * N):
        system.addParticle(12.0)
    system.addForce(make_force(evaluator, backend, particles))
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.0005), platform)
    context.setPositions(np.concatenate([np.zeros((extra, 3)), positions.reshape(-1, 3)]))
    return context


@pytest.fixture(params=["pythonforce", "torchforce"])
def backend(request):
    if request.param == "torchforce":
        pytest.importorskip("openmmtorch")
    return request.param


def test_without_bias(tiny_model, tiny_positions):
    evaluator = make(tiny_model)
    evaluation = evaluator.evaluate(tiny_positions)
    positions = tiny_positions.clone().requires_grad_()
    prediction = tiny_model(positions)
    (gradient,) = torch.autograd.grad(prediction.energy.sum(), positions)
    torch.testing.assert_close(evaluation.forces, -gradient)
    torch.testing.assert_close(evaluation.judge, prediction.judge.detach())
    assert not evaluation.bias.any()
    assert float(evaluator.total_energy) == pytest.approx(float(prediction.energy.detach().sum()))
    assert (evaluator.n_walkers, evaluator.n_atoms, evaluator.numbers) == (W, N, tiny_model.numbers)


def test_energy_only(tiny_model, tiny_positions):
    bare, full = make(tiny_model, energy_only=True), make(tiny_model)
    torch.testing.assert_close(bare.evaluate(tiny_positions).forces, full.evaluate(tiny_positions).forces)
    assert not bare.last.driver.any()


def test_hills_act_from_the_next_evaluation_and_the_grid_grows(tiny_model, tiny_positions):
    bias = BiasSum([MetaD(sigma=0.5, pace=1, height=3.0)])
    evaluator = make(tiny_model, bias, runner="torchscript")
    first = evaluator.evaluate(tiny_positions)
    assert not first.bias.any()
    bias.update(1, first.driver.numpy()[:, None])
    length = len(bias.state()["0.table"])
    second = evaluator.evaluate(tiny_positions)
    np.testing.assert_allclose(second.bias.numpy(), bias.biases[0].value(first.driver.numpy()), rtol=1e-6)
    assert (second.bias > 2.9).all()
    assert (second.forces - first.forces).abs().max() > 0
    bias.update(2, first.driver.numpy()[:, None] + 40.0)
    assert len(bias.state()["0.table"]) > length
    torch.testing.assert_close(evaluator.evaluate(tiny_positions).bias, second.bias)


def test_memo_is_used_once_and_only_at_the_same_positions(tiny_model, tiny_positions):
    evaluator = make(tiny_model)
    first = evaluator.evaluate(tiny_positions)
    evaluator.arm_memo()
    assert evaluator.evaluate(tiny_positions.clone()) is first
    assert evaluator.evaluate(tiny_positions) is not first
    evaluator.arm_memo()
    assert evaluator.evaluate(tiny_positions + 1e-12) is not first
    assert evaluator.n_evaluations == 3


def test_new_weights_without_a_new_graph(tiny_model, tiny_positions, monkeypatch):
    other = type(tiny_model)(seed=5)
    expected = make(other).evaluate(tiny_positions)
    evaluator = make(tiny_model)
    before = evaluator.evaluate(tiny_positions)
    monkeypatch.setattr("uqbias.compile.fused.compile_function", None)
    evaluator.load_model(other)
    after = evaluator.evaluate(tiny_positions)
    torch.testing.assert_close(after.forces, expected.forces)
    assert not torch.allclose(after.energy, before.energy)
    with torch.no_grad():
        other.weight.mul_(0.0)
    torch.testing.assert_close(evaluator.evaluate(tiny_positions).forces, expected.forces)
    with pytest.raises(UqbiasError, match=r"'weight' has shape \(5, 4\)"):
        evaluator.load_model(type(tiny_model)(width=4))
    with pytest.raises(UqbiasError, match="other atoms"):
        evaluator.load_model(type(tiny_model)(numbers=(6, 1, 1, 8, 8)))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1e4])
def test_broken_walker_leaves_the_others_alone(tiny_model, tiny_positions, wrong):
    evaluator = make(tiny_model)
    sound = evaluator.evaluate(tiny_positions)
    assert not evaluator.broken.any()
    positions = tiny_positions.clone()
    positions[1, 2, 0] = wrong
    evaluation = evaluator.evaluate(positions)
    assert evaluator.broken.tolist() == [False, True, False]
    assert not evaluation.forces[1].any()
    torch.testing.assert_close(evaluation.forces[[0, 2]], sound.forces[[0, 2]])
    assert float(evaluator.total_energy) == pytest.approx(float(sound.energy[[0, 2]].sum()))
    evaluator.evaluate(tiny_positions)
    assert evaluator.broken[1], "the flag must last until the host has seen it"
    evaluator.broken[:] = False
    evaluator.evaluate(tiny_positions)
    assert not evaluator.broken.any()


def test_bad_arguments(tiny_model):
    with pytest.raises(UqbiasError, match="0 walkers"):
        FusedEvaluator(tiny_model, None, 0)
    with pytest.raises(UqbiasError, match="float16"):
        FusedEvaluator(tiny_model, None, 1, dtype=torch.float16)
    with pytest.raises(UqbiasError, match="14 particles given for 3 walkers of 5 atoms"):
        make_force(make(tiny_model), "pythonforce", range(14))


def test_subset_of_the_particles(tiny_model, tiny_positions, backend):
    evaluator = make(tiny_model)
    expected = evaluator.evaluate(tiny_positions)
    context = context_of(evaluator, tiny_positions.numpy(), backend, range(4, 4 + W * N), extra=4)
    forces = context.getState(forces=True).getForces(asNumpy=True)._value
    np.testing.assert_allclose(forces[4:], expected.forces.reshape(-1, 3).numpy(), rtol=1e-6)
    assert not forces[:4].any()


def test_a_running_context_sees_new_hills(tiny_model, tiny_positions, backend):
    bias = BiasSum([MetaD(sigma=0.5, pace=1, height=3.0)])
    evaluator = make(tiny_model, bias)
    context = context_of(evaluator, tiny_positions.numpy(), backend)
    before = context.getState(energy=True).getPotentialEnergy()._value
    bias.update(1, evaluator.last.driver.numpy()[:, None])
    after = context.getState(energy=True).getPotentialEnergy()._value
    expected = bias.biases[0].value(evaluator.last.driver.numpy()).sum()
    assert after - before == pytest.approx(expected, rel=1e-6)
    assert expected > 8


def test_exceptions_are_not_lost(tiny_model, tiny_positions, backend):
    evaluator = make(tiny_model)
    context = context_of(evaluator, tiny_positions.numpy(), backend)
    evaluator.reraise()

    def fail(_inputs):
        raise ZeroDivisionError("in the middle of a step")

    evaluator._run = fail
    with pytest.raises(openmm.OpenMMException):
        context.getIntegrator().step(1)
    with pytest.raises(ZeroDivisionError, match="in the middle"):
        evaluator.reraise()
    evaluator.reraise()


def test_broken_stacks_are_refused():
    for version, cuda, found in (
        ("2.11.0+cu128", "12.8", "fails in every evaluation"),
        ("2.8.0", "12.8", "fails in every evaluation"),
        ("2.9.1+cpu", None, "CPU-only"),
    ):
        with pytest.raises(UqbiasError, match=found):
            stack._refuse_torch(version, cuda)
    stack._refuse_torch("2.9.1+cu128", "12.8")
    with pytest.raises(UqbiasError, match="did you mean 'torchforce'"):
        stack.choose_backend("torchforcee")
    with pytest.raises(UqbiasError, match="Referenc"):
        stack.check_platform("Refrence", "pythonforce")


def test_opencl_with_torchforce_is_refused(monkeypatch):
    monkeypatch.setattr(stack, "available_platforms", lambda: ["Reference", "OpenCL"])
    stack.check_platform("OpenCL", "pythonforce")
    with pytest.raises(UqbiasError, match="kills the process"):
        stack.check_platform("OpenCL", "torchforce")


def test_missing_openmmtorch(monkeypatch):
    monkeypatch.setattr(stack.importlib.util, "find_spec", lambda name: None)
    assert "not installed" in str(stack.backend_faults()["torchforce"])
    assert stack.choose_backend("auto") == "pythonforce"


def test_torchforce_as_variable_is_refused_where_it_kills_the_process(monkeypatch):
    monkeypatch.setattr(stack, "_version", lambda openmm: (8, 6))
    with pytest.raises(UqbiasError, match="kills the process"):
        stack.check_torchforce_as_variable()
    monkeypatch.setattr(stack, "_version", lambda openmm: (8, 5))
    stack.check_torchforce_as_variable()


def test_load_model_refuses_other_options_with_the_same_tensors(alanine_model, graph_cache):
    """The kind of calibration is no tensor, but part of the graph."""
    evaluator = FusedEvaluator(alanine_model, None, 1, runner="eager", dtype=torch.float64, cache_dir=graph_cache)
    other = copy.deepcopy(alanine_model)
    evaluator.load_model(other)
    other.calibration.kind = "variance_scaling"
    with pytest.raises(UqbiasError, match="other options of potential, driver, judge or calibration"):
        evaluator.load_model(other)
