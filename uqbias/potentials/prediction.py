"""Energies, forces and latents of many frames, in batches, without compilation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uqbias.potentials.base import Potential


class Predictions(NamedTuple):
    """What a potential says of n frames."""

    #: [M, n] kJ/mol.
    energy: Tensor
    #: [n, N, 3] kJ/mol/nm, mean over the members.
    forces: Tensor
    #: [M, n, N, F].
    latents: Tensor


def predict(potential: Potential, positions: NDArray[np.floating] | Tensor, batch_size: int = 64) -> Predictions:
    """Evaluate ``potential`` at ``positions`` [n, N, 3] nm; the outputs carry no autograd history."""
    reference = next(potential.parameters())
    everything = torch.as_tensor(positions).to(reference)
    energies, forces, latents = [], [], []
    for batch in torch.split(everything, batch_size):
        moved = batch.clone().requires_grad_()
        with torch.enable_grad():  # type: ignore[no-untyped-call]
            energy, latent = potential(moved)
            (gradient,) = torch.autograd.grad(energy.mean(0).sum(), moved)
        energies.append(energy.detach())
        forces.append(-gradient)
        latents.append(latent.detach())
    return Predictions(torch.cat(energies, 1), torch.cat(forces), torch.cat(latents, 1))
