"""One uncertainty through every way of evaluation: eager, flattened, exported, and as a force of OpenMM."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uqbias.bias.linear import Linear
from uqbias.compile.fused import FusedEvaluator
from uqbias.errors import UqbiasError
from uqbias.md.force import make_force
from uqbias.md.stack import choose_backend
from uqbias.model.export import export_torchscript
from uqbias.model.model import UncertaintyModel
from uqbias.testing.case import Case
from uqbias.testing.measuring import change, gradient_of, largest
from uqbias.testing.report import Report

Array = NDArray[np.float64]
#: Difference from the eager model in float32, relative to the largest component.
AGREEMENT = 1e-4
RUNNERS = ("eager", "torchscript")
#: Route, quantity, what it gave, what the eager model gives.
Comparison = tuple[str, str, Tensor, Tensor]


def check_routes(case: Case, backends: Sequence[str] = ("pythonforce", "torchforce")) -> Report:
    """The same numbers from every route, in float32.

    The eager model with autograd is the reference, with a linear bias on u whose forces are as large as the model's.
    Energy, u before and after calibration and the total forces of two walkers are compared with

    - the flattened graph (`uqbias.compile.fused.FusedEvaluator`), run eagerly and as TorchScript;
    - exported TorchScript files (`uqbias.model.export.export_torchscript`), frozen as a host freezes them: the
      calibrated u and the biased energy, differentiated by autograd and with forces of their own;
    - OpenMM forces (`uqbias.md.force.make_force`) of each backend, and, for ``torchforce``, the exported files in an
      ``openmmtorch.TorchForce``.

    Differences are relative to the largest component, or to the largest over the training frames for u, and at most
    1e-4.

    Parameters
    ----------
    backends : those to test; one that does not work here is recorded in ``skipped`` with the reason.

    Raises
    ------
    ContractError
        If a route gives other numbers.
    """
    report = case.report()
    model = case.in_dtype(torch.float32)
    x = torch.tensor(case.held_out.positions[:2], dtype=torch.float32)
    bias, expected = _reference(model, x)
    everywhere = case.evaluate(case.training.positions, torch.float32)
    scales = {"u": everywhere.raw, "calibrated u": everywhere.calibrated}
    usable = []
    for backend in backends:
        try:
            usable.append(choose_backend(backend))
        except UqbiasError as error:
            report.skipped[f"route {backend}"] = str(error)
    with tempfile.TemporaryDirectory() as folder:
        for route, quantity, computed, wanted in (
            *_fused(model, x, bias, expected, usable),
            *_exported(model, x, bias, expected, usable, Path(folder)),
        ):
            scale = largest(scales.get(quantity, wanted))
            report.add(f"{route}: {quantity}", change(computed, wanted, scale), AGREEMENT)
    return report.verified()


def _reference(model: UncertaintyModel, x: Tensor) -> tuple[Linear, dict[str, Tensor]]:
    """A bias V = slope · u as strong as the model, and what the eager model gives with it."""
    points = x.clone().requires_grad_()
    energy, u, calibrated, _ = model(points)
    parts = {"energy": energy, "u": u, "calibrated u": calibrated}
    gradients = {name: gradient_of(value, points) for name, value in parts.items()}
    size = float(gradients["u"].abs().max())
    bias = Linear(tau=-float(gradients["energy"].abs().max()) / size if size > 0 else -1.0)
    slope = -bias.tau
    expected = {name: value.detach() for name, value in parts.items()}
    expected["total energy"] = expected["energy"] + slope * expected["u"]
    expected["forces"] = -(gradients["energy"] + slope * gradients["u"])
    expected["calibrated u's gradient"] = gradients["calibrated u"]
    return bias, expected


def _fused(
    model: UncertaintyModel, x: Tensor, bias: Linear, expected: dict[str, Tensor], backends: Sequence[str]
) -> Iterator[Comparison]:
    for runner in RUNNERS:
        evaluator = FusedEvaluator(model, bias, len(x), runner=runner)
        result = evaluator.evaluate(x)
        values = {"energy": result.energy, "u": result.driver, "calibrated u": result.judge, "forces": result.forces}
        for name, value in values.items():
            yield f"flattened, {runner}", name, value, expected[name]
    for backend in backends:
        energy, forces = through_openmm(make_force(evaluator, backend), x)
        yield backend, "total energy", energy, expected["total energy"].double().sum()
        yield backend, "forces", forces, expected["forces"]


def _exported(
    model: UncertaintyModel,
    x: Tensor,
    bias: Linear,
    expected: dict[str, Tensor],
    backends: Sequence[str],
    folder: Path,
) -> Iterator[Comparison]:
    """Exported files take one molecule: the first walker."""
    point = x[0]
    outputs: dict[str, tuple[Linear | None, str, Tensor]] = {
        "biased": (bias, "total energy", expected["forces"][0]),
        "judge": (None, "calibrated u", -expected["calibrated u's gradient"][0]),
    }
    for output, (added, name, forces) in outputs.items():
        for with_forces in (False, True):
            path = folder / f"{output}_{with_forces}.pt"
            export_torchscript(model, path, output, with_forces=with_forces, bias=added)
            # A host freezes the module; a detach in it would be lost there.
            module = torch.jit.freeze(torch.jit.load(str(path)).eval())  # type: ignore[no-untyped-call]
            value, computed = module(point) if with_forces else _differentiated(module, point)
            form = "exported with forces" if with_forces else "exported"
            label = "forces" if output == "biased" else f"{name}'s gradient"
            yield form, name, value, expected[name][0]
            yield form, label, computed, forces
            if output == "biased" and "torchforce" in backends:
                energy, computed = through_openmm(_torch_force(path, with_forces), point[None])
                yield f"{form} in a TorchForce", name, energy, expected[name][0]
                yield f"{form} in a TorchForce", label, computed[0], forces


def _differentiated(module: Callable[[Tensor], Tensor], point: Tensor) -> tuple[Tensor, Tensor]:
    point = point.clone().requires_grad_()
    value = module(point)
    return value.detach(), -gradient_of(value, point)


def _torch_force(path: Path, with_forces: bool) -> Any:
    from openmmtorch import TorchForce

    force = TorchForce(str(path))
    force.setOutputsForces(with_forces)
    return force


def through_openmm(force: Any, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Energy [] in kJ/mol and forces [W, N, 3] in kJ/mol/nm that OpenMM's Reference platform gets from a force."""
    state = context_of(force, positions.double().numpy()).getState(energy=True, forces=True)
    energy, forces = state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value
    return torch.tensor(energy, dtype=torch.float64), torch.tensor(forces).view(positions.shape)


def context_of(force: Any, positions: Array, platform: str = "Reference") -> Any:
    """OpenMM's Context of a force alone on a platform, particles at ``positions`` [W, N, 3] nm."""
    import openmm

    system = openmm.System()
    for _ in range(positions.shape[0] * positions.shape[1]):
        system.addParticle(1.0)
    system.addForce(force)
    context = openmm.Context(system, openmm.VerletIntegrator(1e-4), openmm.Platform.getPlatformByName(platform))
    context.setPositions(positions.reshape(-1, 3))
    return context
