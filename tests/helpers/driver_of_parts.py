"""A driver of K parts: of a peroxide's torsion φ, each highest elsewhere."""

import torch

from uqbias.uncertainty.base import Uncertainty, set_buffers


class DriverOfParts(Uncertainty):
    """Parts 3 (1 + sin(φ + i)), i from 0; the driver is their sum. Fitting sets the amplitude, always to 3."""

    def __init__(self, count=2):
        super().__init__()
        self.part_names = tuple(f"phase {index}" for index in range(count))
        self.register_buffer("amplitude", torch.zeros(()))

    @classmethod
    def build(cls, topology, n_latents, *, count=2):
        return cls(count)

    def options(self):
        return {"count": len(self.part_names)}

    def fit(self, positions, energy, latents, forces=None, *, seed):
        set_buffers(self, amplitude=3.0)

    def local(self, positions, energy, latents, forces=None):
        b, a, c = (positions[:, index + 1] - positions[:, index] for index in range(3))
        m, n = torch.linalg.cross(b, a), torch.linalg.cross(a, c)
        norm = (m.square().sum(-1) * n.square().sum(-1) + 1e-20).sqrt()
        cosine, sine = (m * n).sum(-1) / norm, a.square().sum(-1).sqrt() * (b * n).sum(-1) / norm
        shift = torch.arange(len(self.part_names), dtype=sine.dtype, device=sine.device)
        return self.amplitude * (1 + sine[:, None] * shift.cos() + cosine[:, None] * shift.sin())

    def forward(self, positions, energy, latents, forces=None):
        return self.local(positions, energy, latents).sum(-1)
