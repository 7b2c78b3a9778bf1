"""The operator through which a TorchScript module inside a TorchForce calls a live evaluator in Python.

TorchForce clones and freezes its module, so nothing inside can change during a run. An operator is opaque to
freezing: it takes the positions (without a position-dependent argument it would be folded to a constant) and a number
that names the evaluator.
"""

# No "from __future__ import annotations" here: torch.jit reads the annotations as objects.
import itertools
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

from uqbias.compile.fused import FusedEvaluator

# A TorchForce cannot say when it is deleted, so its evaluator stays for the life of the process.
_evaluators: dict[int, FusedEvaluator] = {}
_handles = itertools.count()


class _Bridge(torch.nn.Module):
    """Energy and forces of all particles of the force, of which the walkers are all or some."""

    particles: Tensor

    def __init__(self, handle: int, particles: list[int] | None) -> None:
        super().__init__()
        self.handle, self.everything = handle, particles is None
        self.register_buffer("particles", torch.tensor(particles or [], dtype=torch.int64))

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        if self.everything:
            energy, forces = torch.ops.uqbias.evaluate(positions, self.handle)
            return energy, forces
        particles = self.particles.to(positions.device)
        energy, forces = torch.ops.uqbias.evaluate(positions.index_select(0, particles), self.handle)
        return energy, torch.zeros_like(positions).index_copy(0, particles, forces)


def bridge_module(evaluator: FusedEvaluator, particles: list[int] | None = None) -> Any:
    """Return a ScriptModule ``positions [P, 3] -> (energy [], forces [P, 3])`` that calls ``evaluator``.

    Parameters
    ----------
    evaluator : kept alive for the life of the process.
    particles : W*N particle indices in walker order; all particles of the System if None.
    """
    _register()
    handle = next(_handles)
    _evaluators[handle] = evaluator
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(_Bridge(handle, particles).eval())


def _evaluate(positions: Tensor, handle: int) -> tuple[Tensor, Tensor]:
    # On the CPU platforms positions arrive with requires_grad set, even where the module outputs forces.
    with torch.no_grad():
        energy, forces = _evaluators[handle].evaluate_for_host(positions.detach())
        # Outputs of an operator must not alias what the evaluator keeps, nor differ in device from the positions.
        return (
            energy.to(positions.device, torch.float64, copy=True),
            forces.to(positions.device, positions.dtype, copy=True),
        )


@cache
def _register() -> torch.library.Library:
    """Register the operator, once; the library object must stay alive."""
    library = torch.library.Library("uqbias", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define("evaluate(Tensor positions, int handle) -> (Tensor, Tensor)")  # type: ignore[no-untyped-call]
    for key in ("CPU", "CUDA"):
        library.impl("evaluate", _evaluate, key)  # type: ignore[no-untyped-call]
    # Without this, autograd would wrap the operator and look for a derivative.
    library.impl("evaluate", torch.library.fallthrough_kernel, "Autograd")  # type: ignore[no-untyped-call]
    return library
