"""Shared fixtures: one torch thread, a tiny model, one cache of compiled graphs per session."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch

torch.set_num_threads(1)


class Prediction(NamedTuple):
    energy: torch.Tensor
    cv: torch.Tensor
    uncertainty: torch.Tensor


class TinyModel(torch.nn.Module):
    """Same contract as uqbias.model.UncertaintyModel, smooth, for a few atoms in vacuum."""

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
        cv = (latents.mean(1) - self.centre).pow(2).sum(-1)
        return Prediction(energy, cv, 2.0 * cv + 1.0)


@pytest.fixture
def tiny_model() -> TinyModel:
    return TinyModel()


@pytest.fixture
def tiny_positions() -> torch.Tensor:
    """[3, 5, 3] nm."""
    generator = torch.Generator().manual_seed(7)
    return 0.15 * torch.randn(3, 5, 3, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="session")
def graph_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cache directory of the session: each graph is compiled once."""
    return tmp_path_factory.mktemp("graphs")
