"""The smallest model that keeps the contract of uqbias's models."""

from typing import NamedTuple

import torch


class Prediction(NamedTuple):
    energy: torch.Tensor
    driver: torch.Tensor
    judge: torch.Tensor


class TinyModel(torch.nn.Module):
    """Same contract as uqbias.model.model.UncertaintyModel, smooth, for a few atoms in vacuum."""

    def __init__(self, numbers: tuple[int, ...] = (6, 1, 1, 8, 1), width: int = 8, seed: int = 0) -> None:
        super().__init__()
        self.numbers = numbers
        generator = torch.Generator().manual_seed(seed)
        n_atoms = len(numbers)
        self.weight = torch.nn.Parameter(torch.randn(n_atoms, width, generator=generator, dtype=torch.float64))
        self.readout = torch.nn.Parameter(torch.randn(width, generator=generator, dtype=torch.float64) * 5)
        self.register_buffer("centre", torch.randn(width, generator=generator, dtype=torch.float64))

    def forward(self, positions: torch.Tensor) -> Prediction:
        difference = positions.unsqueeze(2) - positions.unsqueeze(1)
        squared = difference.pow(2).sum(-1)
        latents = torch.tanh(torch.exp(-squared / 0.04) @ self.weight)
        # A harmonic cage of the pair distances keeps the molecule together in dynamics.
        energy = (latents @ self.readout).sum(-1) + 500.0 * (squared - 0.04).pow(2).sum((1, 2))
        driver = (latents.mean(1) - self.centre).pow(2).sum(-1)
        return Prediction(energy, driver, 2.0 * driver + 1.0)
