"""Energies, forces and latents of many frames, in batches, without compilation."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uqbias.molecule.geometry import Geometry
from uqbias.potentials.base import Potential


class Predictions(NamedTuple):
    """What a potential says of n frames."""

    #: [M, n] kJ/mol, from the potential's ``energy_shift``.
    energy: Tensor
    #: [M, n, N, F].
    latents: Tensor
    #: [n, N, 3] kJ/mol/nm, mean over the members; None where not asked for.
    forces: Tensor | None
    #: [M, n, N, 3] kJ/mol/nm; None where not asked for.
    member_forces: Tensor | None


def with_member_forces(
    potential: Potential, positions: Tensor, geometry: Geometry | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Energies [M, W], latents [M, W, N, F] and forces of each member [M, W, N, 3].

    Differentiable where autograd is on.

    One backward gives all members' forces, since each has its own copy of the positions [W, N, 3].
    """
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():  # type: ignore[no-untyped-call]
        copies = positions.unsqueeze(0).expand(potential.n_members, -1, -1, -1).clone()
        if not copies.requires_grad:
            copies.requires_grad_()
        energy, latents = potential(copies, geometry)
        (gradient,) = torch.autograd.grad(energy.sum(), copies, create_graph=differentiable)
    if differentiable:
        return energy, latents, -gradient
    return energy.detach(), latents.detach(), -gradient.detach()


def predict(
    potential: Potential,
    positions: NDArray[np.floating] | Tensor,
    batch_size: int = 64,
    *,
    forces: Literal["none", "mean", "members"] = "mean",
) -> Predictions:
    """Evaluate ``potential`` at ``positions`` [n, N, 3] nm; the outputs carry no autograd history."""
    reference = next(potential.parameters())
    parts: list[list[Tensor]] = [[], [], [], []]
    for batch in torch.split(torch.as_tensor(positions).to(reference), batch_size):
        with torch.no_grad():
            if forces == "members":
                energy, latents, each = with_member_forces(potential, batch)
                outputs = [energy, latents, each.mean(0), each]
            elif forces == "mean":
                with torch.enable_grad():  # type: ignore[no-untyped-call]
                    moved = batch.clone().requires_grad_()
                    energy, latents = potential(moved)
                    (gradient,) = torch.autograd.grad(energy.mean(0).sum(), moved)
                outputs = [energy.detach(), latents.detach(), -gradient]
            else:
                outputs = list(potential(batch))
        for part, values in zip(parts, outputs, strict=False):
            part.append(values)
    joined = [torch.cat(part, dim) if part else None for part, dim in zip(parts, (1, 1, 0, 1), strict=True)]
    assert joined[0] is not None
    assert joined[1] is not None
    return Predictions(joined[0], joined[1], joined[2], joined[3])
