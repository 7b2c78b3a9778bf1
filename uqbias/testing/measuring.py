"""Numbers that the contract tests measure: sizes, changes, derivatives, tensors that are not what they were."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from uqbias.testing.report import Report

Array = NDArray[np.float64]
#: Step of the central differences: nm, or the unit of a bias's variable.
STEP = 1e-5
#: A rotation about no axis of the coordinates, [3, 3].
ROTATION: Array = Rotation.from_rotvec([1.0, -2.0, 0.5]).as_matrix()


def largest(tensor: Tensor) -> float:
    """Largest absolute value; infinity if one is not finite."""
    return float(tensor.abs().max()) if torch.isfinite(tensor).all() else float("inf")


def change(value: Tensor, expected: Tensor, scale: float = 0.0) -> float:
    """Largest difference, relative to the largest value or to ``scale`` if that is larger."""
    return largest(value.double() - expected.double()) / max(largest(expected), scale, 1e-30)


def gradient_of(value: Tensor, x: Tensor) -> Tensor:
    """∂Σvalue/∂x; zero where autograd cannot reach the value."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(value.sum(), x, retain_graph=True, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient.detach()


def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """∂Σf/∂x, zero where f does not depend on x."""
    x = x.detach().clone().requires_grad_()
    return gradient_of(function(x), x)


def differences(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Central differences of f [W] at one point ``x``, of its shape."""
    unit = STEP * torch.eye(x.numel(), dtype=x.dtype).reshape(-1, *x.shape)
    return ((function(x + unit) - function(x - unit)) / (2 * STEP)).reshape(x.shape)


def gradient_error(computed: Tensor, expected: Tensor) -> float:
    """Error of a derivative, relative to its largest component unless that all but vanishes."""
    return largest(computed - expected) / max(largest(expected), 1e-6)


def identical(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same bit for bit."""
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that are not bit for bit what they were."""
    return [name for name, tensor in before.items() if name not in after or not identical(tensor, after[name])]


def counted(names: Collection[str]) -> tuple[int, int, str]:
    """Number, limit and note of faults of which there must be none."""
    return len(names), 0, ", ".join(list(names)[:3])


def short(dtype: torch.dtype) -> str:
    """Name of a type of numbers without its package."""
    return str(dtype).removeprefix("torch.")


def through_json(report: Report, options: Any) -> Any:
    """Options as they come back from a file."""
    try:
        return json.loads(json.dumps(options, allow_nan=False))
    except (TypeError, ValueError) as error:
        report.add("options: not JSON", 1, 0, str(error))
        report.verified()
        raise
