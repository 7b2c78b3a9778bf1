"""What moves the walkers: an openmm.Context, or tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from uqbias.compile.fused import FusedEvaluator
from uqbias.errors import UqbiasError, did_you_mean
from uqbias.md.constraints import TOLERANCE
from uqbias.md.force import make_force
from uqbias.md.stack import available_platforms, check_platform, choose_backend
from uqbias.md.torch_context import TorchContext

ENGINES = ("openmm", "torch")


def check_engine(engine: str, platform: str, backend: str, constraints: str, *, external: bool = False) -> None:
    """Raise UqbiasError for an engine that does not exist, or what the engine on tensors does not have."""
    if engine not in ENGINES:
        raise UqbiasError(f"unknown engine '{engine}'", did_you_mean(engine, ENGINES))
    if engine == "openmm":
        return
    for name, value, possible in (
        ("constraints", constraints, {"none"}),
        ("platform", platform, {"auto", "CUDA"}),
        ("backend", backend, {"auto"}),
    ):
        if value not in possible:
            raise UqbiasError(
                f"engine 'torch' with {name} '{value}'",
                f"take {name}: {' or '.join(sorted(possible))}, or engine: openmm",
            )
    if external:
        raise UqbiasError("engine 'torch' with forces of OpenMM beside the model's", "take engine: openmm")


def make_context(
    engine: str,
    system: Any,
    evaluator: FusedEvaluator,
    *,
    timestep: float,
    temperature: float,
    friction: float | None,
    seed: int,
    platform: str = "auto",
    backend: str = "auto",
    forces: Iterable[Any] = (),
) -> tuple[Any, Any]:
    """A Context of the particles of a System under the evaluator's force, and its integrator.

    Parameters
    ----------
    engine : ``openmm`` or ``torch``; the latter's Context is its own integrator.
    system : openmm.System with all particles and constraints.
    evaluator : of the walkers.
    timestep : ps.
    temperature : K.
    friction : 1/ps; None for Verlet dynamics.
    seed : seed of the noise.
    platform, backend : see `uqbias.md.walkers.Walkers`.
    forces : further openmm.Force.
    """
    import openmm

    # 0 would make OpenMM choose a seed of its own.
    random = int(np.random.default_rng(seed).integers(1, 2**31 - 1))
    if engine == "torch":
        if platform == "CUDA" and evaluator.device.type != "cuda":
            raise UqbiasError("platform 'CUDA' with an evaluator on the CPU", "make the evaluator with device 'cuda'")
        context = TorchContext(system, evaluator, timestep, temperature, friction, random)
        return context, context
    if platform == "auto":
        platform = "CUDA" if evaluator.device.type == "cuda" and "CUDA" in available_platforms() else "Reference"
    check_platform(platform, choose_backend(backend))
    for force in (make_force(evaluator, backend), *forces):
        system.addForce(force)
    if friction is None:
        integrator = openmm.VerletIntegrator(timestep)
    else:
        integrator = openmm.LangevinMiddleIntegrator(temperature, friction, timestep)
        integrator.setRandomNumberSeed(random)
    integrator.setConstraintTolerance(TOLERANCE)
    chosen = openmm.Platform.getPlatformByName(platform)
    # The default of GPU platforms, single precision, would lose the small moves of a 0.5 fs step.
    properties = {"Precision": "mixed"} if "Precision" in chosen.getPropertyNames() else {}
    return openmm.Context(system, integrator, chosen, properties), integrator
