"""Distances between heavy atoms three or more bonds apart: sensitive to torsions, blind to bonds and angles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Doc

from uqbias.errors import UqbiasError
from uqbias.molecule.topology import Topology
from uqbias.options import Count
from uqbias.uncertainty.features.base import Features

#: nm; keeps the derivative of a distance finite where two atoms coincide.
SOFTENING = 1e-3


class PairDistances(Features):
    """Distances of atoms far apart on the bond graph.

    d = √(‖x_i − x_j‖² + ε²) in nm.

    Parameters
    ----------
    pairs : [P, 2] atom indices.
    """

    kind = "pair_distances"
    first: Tensor
    second: Tensor

    def __init__(self, pairs: Sequence[Sequence[int]]) -> None:
        super().__init__()
        if not pairs:
            raise UqbiasError(
                "the molecule has no such atom pair", "choose a smaller min_separation, or heavy_only: false"
            )
        self.pairs = tuple((int(i), int(j)) for i, j in pairs)
        self.dim = len(self.pairs)
        index = torch.tensor(self.pairs, dtype=torch.int64)
        self.register_buffer("first", index[:, 0].contiguous(), persistent=False)
        self.register_buffer("second", index[:, 1].contiguous(), persistent=False)

    @classmethod
    def build(
        cls,
        topology: Topology,
        n_latents: int,
        *,
        min_separation: Annotated[Count, Doc("fewest bonds between the two atoms")] = 3,
        heavy_only: Annotated[bool, Doc("leave hydrogens out")] = True,
    ) -> PairDistances:
        """Take the pairs of a molecule."""
        far = np.triu(topology.bond_separation() >= min_separation, k=1)
        if heavy_only:
            heavy = np.array(topology.numbers) > 1
            far &= heavy[:, None] & heavy[None]
        return cls(np.argwhere(far).tolist())

    def forward(self, positions: Tensor, latents: Tensor) -> Tensor:
        """Distances [W, P] in nm."""
        apart = positions.index_select(1, self.first) - positions.index_select(1, self.second)
        return ((apart * apart).sum(-1) + SOFTENING**2).sqrt()
