"""One OpenMM Force over the fused evaluation, through either backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from uqbias.compile.fused import FusedEvaluator
from uqbias.errors import UqbiasError
from uqbias.md.stack import choose_backend


def make_force(evaluator: FusedEvaluator, backend: str = "auto", particles: Sequence[int] | None = None) -> Any:
    """Make the force of W walkers in one Context: E + V of each, in kJ/mol.

    Parameters
    ----------
    evaluator : gives energies and forces; what it computed last is in ``evaluator.last``.
    backend : ``pythonforce`` (OpenMM >= 8.5), ``torchforce`` (openmmtorch), or ``auto``, the faster that works. Both
        give the same numbers.
    particles : indices of the W*N particles, walker after walker; the first W*N must be all of the System if None.

    Returns
    -------
    openmm.Force
        ``openmm.PythonForce`` or ``openmmtorch.TorchForce``. An exception during a step reaches the caller as an
        OpenMMException; ``evaluator.reraise()`` gives the original.

    Raises
    ------
    UqbiasError
        If the backend does not work with the installed versions, or the number of particles is not W*N.
    """
    expected = evaluator.n_walkers * evaluator.n_atoms
    chosen = None if particles is None else [int(index) for index in particles]
    if chosen is not None and len(chosen) != expected:
        raise UqbiasError(
            f"{len(chosen)} particles given for {evaluator.n_walkers} walkers of {evaluator.n_atoms} atoms",
            f"give {expected}",
        )
    if choose_backend(backend) == "pythonforce":
        return _python_force(evaluator, chosen)
    return _torch_force(evaluator, chosen)


def _python_force(evaluator: FusedEvaluator, particles: list[int] | None) -> Any:
    import openmm

    def compute(state: Any) -> tuple[float, Any]:
        # ._value is the array in nm; value_in_unit would copy it.
        positions = torch.from_numpy(state.getPositions(asNumpy=True)._value)
        energy, forces = evaluator.evaluate_for_host(positions)
        return float(energy), forces.to("cpu", torch.float64).numpy()

    force = openmm.PythonForce(compute)
    if particles is not None:
        force.setParticles(particles)
    return force


def _torch_force(evaluator: FusedEvaluator, particles: list[int] | None) -> Any:
    from openmmtorch import TorchForce

    from uqbias.md.torch_op import bridge_module

    force = TorchForce(bridge_module(evaluator, particles))
    force.setOutputsForces(True)
    return force
