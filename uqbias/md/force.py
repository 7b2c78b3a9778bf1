"""One OpenMM Force over the fused evaluation, through either backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from uqbias.compile.fused import FusedEvaluator
from uqbias.errors import UqbiasError
from uqbias.md.stack import choose_backend

#: positions [n, 3] nm -> energy [] kJ/mol, forces [n, 3] kJ/mol/nm
Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]


def make_force(evaluator: FusedEvaluator, backend: str = "auto", particles: Sequence[int] | None = None) -> Any:
    """Make the force of W walkers in one Context: E + V of each, in kJ/mol.

    Parameters
    ----------
    evaluator : gives energies and forces; what it computed last is in ``evaluator.last``.
    backend : ``pythonforce`` (OpenMM >= 8.5), ``torchforce`` (openmmtorch), or ``auto``, the faster that works. Both
        give the same numbers.
    particles : indices of the W*N particles, walker after walker, then of the W*K extended variables; all of the
        System, which must have just these, if None.

    Returns
    -------
    openmm.Force
        ``openmm.PythonForce`` or ``openmmtorch.TorchForce``. An exception during a step reaches the caller as an
        OpenMMException; ``evaluator.reraise()`` gives the original.

    Raises
    ------
    UqbiasError
        If the backend does not work with the installed versions, or the number of particles is not W*(N + K).
    """
    expected = evaluator.n_walkers * (evaluator.n_atoms + len(evaluator.input_names))
    chosen = None if particles is None else [int(index) for index in particles]
    if chosen is not None and len(chosen) != expected:
        raise UqbiasError(
            f"{len(chosen)} particles given for {evaluator.n_walkers} walkers of {evaluator.n_atoms} atoms",
            f"give {expected}",
        )
    if choose_backend(backend) == "torchforce":
        from openmmtorch import TorchForce

        from uqbias.md.torch_op import bridge_module

        force = TorchForce(bridge_module(evaluator, chosen))
        force.setOutputsForces(True)
        return force
    import openmm

    # PythonForce can be given particles from OpenMM 8.6 on.
    narrow = chosen is not None and hasattr(openmm.PythonForce, "setParticles")
    force = openmm.PythonForce(_OfState(evaluator.evaluate_for_host, None if narrow else chosen))
    if narrow:
        force.setParticles(chosen)
    return force


class _OfState:
    """From an OpenMM State to energy and forces, of all its particles or of some."""

    def __init__(self, evaluate: Evaluate, particles: list[int] | None) -> None:
        self.evaluate, self.particles = evaluate, particles

    def __call__(self, state: Any) -> tuple[float, Any]:
        # ._value is the array in nm; value_in_unit would copy it.
        positions = state.getPositions(asNumpy=True)._value
        selected = positions if self.particles is None else positions[self.particles]
        energy, tensor = self.evaluate(torch.from_numpy(selected))
        forces = tensor.to("cpu", torch.float64).numpy()
        if self.particles is None:
            return float(energy), forces
        everywhere = np.zeros_like(positions)
        everywhere[self.particles] = forces
        return float(energy), everywhere
