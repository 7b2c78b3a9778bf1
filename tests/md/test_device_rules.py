"""What only a GPU would show: memory layout under TorchForce, precision, plugins."""

import numpy as np
import openmm
import pytest
import torch

from uqbias.compile.fused import FusedEvaluator
from uqbias.errors import UqbiasError
from uqbias.md import stack
from uqbias.md.force import make_force
from uqbias.md.walkers import Walkers


@pytest.mark.parametrize("backend", ["pythonforce", "torchforce"])
def test_forces_of_any_memory_layout(tiny_model, tiny_positions, backend):
    """TorchForce reads the memory of the forces as if it were dense; compiled code may stride it otherwise."""
    if backend == "torchforce":
        pytest.importorskip("openmmtorch")
    evaluator = FusedEvaluator(tiny_model, None, len(tiny_positions), runner="eager", dtype=torch.float64)
    run = evaluator._run

    def strided(inputs):
        outputs = list(run(inputs))
        outputs[4] = outputs[4].permute(2, 0, 1).contiguous().permute(1, 2, 0)
        return outputs

    evaluator._run = strided
    system = openmm.System()
    for _ in range(tiny_positions.shape[0] * tiny_positions.shape[1]):
        system.addParticle(12.0)
    system.addForce(make_force(evaluator, backend))
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(tiny_positions.reshape(-1, 3).numpy())
    forces = context.getState(forces=True).getForces(asNumpy=True)._value
    assert not evaluator.last.forces.is_contiguous()
    np.testing.assert_allclose(forces, evaluator.last.forces.reshape(-1, 3), rtol=1e-12)


def test_mixed_precision_where_the_platform_has_a_choice(alanine_model, alanine_frames, monkeypatch):
    asked = []

    class Platform:
        def getPropertyNames(self):  # noqa: N802
            return ("DeviceIndex", "Precision")

    def context(system, integrator, platform, properties):
        asked.append(properties)
        raise RuntimeError("seen enough")

    monkeypatch.setattr(openmm.Platform, "getPlatformByName", staticmethod(lambda name: Platform()))
    monkeypatch.setattr(openmm, "Context", context)
    evaluator = FusedEvaluator(alanine_model, None, 1, runner="eager")
    with pytest.raises(RuntimeError, match="seen enough"):
        Walkers(alanine_model.topology, evaluator, alanine_frames.positions[:1], temperature=300.0)
    assert asked == [{"Precision": "mixed"}]


def test_torchforce_without_its_cuda_plugin(monkeypatch):
    monkeypatch.setattr(stack, "available_platforms", lambda: ["Reference", "CUDA"])
    monkeypatch.setattr(stack, "_has_plugin", lambda *_: False)
    stack.check_platform("CUDA", "pythonforce")
    with pytest.raises(UqbiasError, match="no plugin for platform CUDA"):
        stack.check_platform("CUDA", "torchforce")
