"""Enhanced representation-based sampling as a driver: principal components of descriptors, which OPES then explores.

The recipe of M. R. Schäfer and J. Kästner's package erbs 0.2 with its `GlobalPCA`: descriptors averaged over the atoms,
their two largest principal components, OPES-explore along these. It differs in two ways: the descriptors are the
latents of the potential, and the components are fitted once a round, to all labelled frames, not after each kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from uqbias.uncertainty.base import Uncertainty, set_buffers

COMPONENTS = 2


class PrincipalComponents(Uncertainty):
    """Largest principal components of mean latents, in standard deviations; as one number, their square length."""

    unit = "dimensionless"
    part_names = tuple(f"component {index + 1}" for index in range(COMPONENTS))
    mean: Tensor
    axes: Tensor

    def __init__(self, n_latents: int) -> None:
        super().__init__()
        self.n_latents = n_latents
        self.register_buffer("mean", torch.zeros(n_latents))
        self.register_buffer("axes", torch.zeros(n_latents, COMPONENTS))

    @classmethod
    def build(cls, topology: Any, n_latents: int) -> PrincipalComponents:
        """Make unfitted components."""
        return cls(n_latents)

    def options(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {"n_latents": self.n_latents}

    @property
    def requires_latents(self) -> bool:
        """True."""
        return True

    def fit(
        self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None, *, seed: int
    ) -> None:
        """Find the components among the frames."""
        values = latents[0].double().mean(dim=1)
        mean = values.mean(dim=0)
        _, lengths, axes = torch.linalg.svd(values - mean, full_matrices=False)
        deviations = lengths[:COMPONENTS] / max(1, len(values) - 1) ** 0.5
        set_buffers(self, mean=mean, axes=axes[:COMPONENTS].T / deviations)

    def local(self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None) -> Tensor:
        """Components, [W, 2]."""
        return (latents[0].mean(dim=1) - self.mean) @ self.axes

    def forward(self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None) -> Tensor:
        """Square distance from the mean, [W]."""
        return self.local(positions, energy, latents).square().sum(dim=-1)
