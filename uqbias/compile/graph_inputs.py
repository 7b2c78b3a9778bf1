"""Inputs of the graph of a model: positions, and its weights under their names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uqbias.errors import UqbiasError

#: State tensors of a bias with this name (after the last dot) may grow along dimension 0 without a new graph.
GROWING = "table"
#: Weight of a model that every energy begins from.
SHIFT = "potential.energy_shift"


def check_device(device: torch.device | str) -> torch.device:
    """The device; raises UqbiasError where torch has none of this name."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # the latter from a torch without CUDA
        raise UqbiasError(f"device '{device}' ({str(error).splitlines()[0]})", "use device 'cpu'") from error


def graph_inputs(
    model: torch.nn.Module, n_walkers: int, dtype: torch.dtype, device: torch.device | str
) -> tuple[list[str], list[Tensor]]:
    """Inputs of a graph of ``model``: positions [W, N, 3] and contiguous copies of its weights, with their names.

    Raises
    ------
    UqbiasError
        If ``dtype`` is neither float32 nor float64.
    """
    if dtype not in {torch.float32, torch.float64}:
        raise UqbiasError(f"evaluation in {dtype}", "choose float32 or float64")
    n_atoms = len(model.numbers)  # type: ignore[arg-type]
    positions = torch.zeros(n_walkers, n_atoms, 3, dtype=dtype, device=device)
    positions.copy_(_crowd(n_walkers, n_atoms))
    weights = weights_of(model)
    return list(weights), [positions, *(copied(tensor, dtype, device) for tensor in weights.values())]


def cells_input(
    potential: Any,
    box: Tensor | NDArray[np.floating] | None,
    n_walkers: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor | None:
    """Cells [W, 3, 3] nm of the walkers, from one [3, 3] or from as many; UqbiasError if the potential takes none."""
    if box is None:
        return None
    if not getattr(potential, "periodic", False):
        raise UqbiasError("a model whose potential takes no cell, in one", "leave the box out, or train another")
    return torch.as_tensor(box).to(device, dtype).expand(n_walkers, 3, 3).clone()


def _crowd(n_walkers: int, n_atoms: int) -> Tensor:
    """[W, N, 3] nm: a disordered lattice, in which atoms feel each other and none meet."""
    side = math.ceil(n_atoms ** (1 / 3))
    lattice = torch.cartesian_prod(*[torch.arange(float(side))] * 3)[:n_atoms]
    random = torch.Generator().manual_seed(0)
    return 0.15 * lattice + 0.04 * (torch.rand(n_walkers, n_atoms, 3, generator=random) - 0.5)


def copied(tensor: Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """A contiguous copy; whole numbers and the zero of the energies keep their type."""
    exact = not tensor.is_floating_point() or (tensor.dtype == torch.float64 and tensor.dim() == 0)
    return tensor.detach().to(device, tensor.dtype if exact else dtype, copy=True).contiguous()


def without_shift(inputs: Sequence[Tensor], names: Sequence[str]) -> list[Tensor]:
    """Inputs by which energies begin from 0: an error is compared with their scale, which an offset hides."""
    result = list(inputs)
    if SHIFT in names:
        place = 1 + names.index(SHIFT)
        result[place] = torch.zeros_like(result[place])
    return result


def check_inputs(inputs: Sequence[Tensor], names: Sequence[str], state: Sequence[tuple[int, str]]) -> list[Tensor]:
    """Inputs with bias grids that span any value and are not zero, and without energy shift, so that all counts.

    Parameters
    ----------
    names : names of the weights.
    state : places of the tensors of the bias's state, and their names.
    """
    inputs = without_shift(inputs, names)
    random = torch.Generator().manual_seed(1)
    for index, name in state:
        tensor, kind = inputs[index], name.rpartition(".")[2]
        if kind == GROWING:
            inputs[index] = torch.rand(tensor.shape, generator=random).to(tensor)
        elif kind in {"origin", "spacing"}:
            inputs[index] = torch.full_like(tensor, -1e3 if kind == "origin" else 40.0)
    return inputs


def take_weights(model: torch.nn.Module, names: Sequence[str], inputs: Sequence[Tensor]) -> None:
    """Copy the weights of ``model`` into inputs of a graph that has these names for them.

    Raises
    ------
    UqbiasError
        If a tensor is missing or has another shape.
    """
    weights = weights_of(model)
    if list(weights) != list(names):
        raise UqbiasError("the model has another architecture or other atoms", "make a new FusedEvaluator")
    for (name, new), old in zip(weights.items(), inputs, strict=False):
        if new.shape != old.shape:
            raise UqbiasError(
                f"'{name}' has shape {tuple(new.shape)}, the compiled graph takes {tuple(old.shape)}",
                "make a new FusedEvaluator",
            )
    for new, old in zip(weights.values(), inputs, strict=False):
        old.copy_(new.detach())


def signature_of(model: torch.nn.Module) -> str:
    """What a graph depends on beside shapes; empty for a module that does not tell."""
    return str(getattr(model, "signature", str)())


def weights_of(model: torch.nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; tensors of a module used twice appear once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
