"""Negative logarithms of the densities of a molecule's parts, and of the tree that joins them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.csgraph import minimum_spanning_tree
from torch import Tensor
from typing_extensions import Doc

from uqbias.molecule.topology import Topology
from uqbias.options import Count, Positive
from uqbias.uncertainty.base import Uncertainty, set_buffers
from uqbias.uncertainty.features.local_angles import Grouping, LocalAngles
from uqbias.uncertainty.kernel_density import power_of_two, wall_of_angles

#: Added to a density, so that one that rounds to 0 in single precision has a logarithm.
TINY = 1e-35
#: Reference frames, at most, over which mutual information is taken: its cost grows with their square.
PAIRED = 256

Array = NDArray[np.float64]


class LocalDensities(Uncertainty):
    """−ln of one von Mises density of the labelled frames for each soft torsion, ring or mobile proton, nats.

    For part k, of angles A_k, and references r = 1 ... n,

        u_k = −ln Σ_r exp(κ Σ_{t ∈ A_k} w_t (cos(θ_t − θ_tr) − 1)) / n − median over the references,

    bounded as `KernelDensity` is. A bias on each u_k (`local`) turns every part, where one on the density of all of
    them turns the softest. ``forward`` is −ln of the tree-structured density (Chow and Liu, IEEE Trans. Inf. Theory
    14, 462, 1968),

        p = Π_(k,l) p_kl / Π_k p_k^(d_k − 1),

    with the densities p_kl of the K − 1 pairs of parts that form the tree of greatest mutual information, and the
    numbers d_k of its edges at k. The tree is found anew at each fit and is an input of the graph.

    Parameters
    ----------
    features : angles of the parts.
    capacity : as of `KernelDensity`.
    """

    kind = "local_densities"
    hill_width: ClassVar[float | None] = 0.3
    features: LocalAngles
    references: Tensor
    offsets: Tensor
    shares: Tensor
    edges: Tensor
    medians: Tensor
    median: Tensor
    padded: Tensor

    def __init__(
        self,
        features: LocalAngles,
        *,
        kappa: Annotated[Positive, Doc("concentration of the von Mises kernel")] = 5.0,
        capacity: Annotated[Count, Doc("places for labelled frames in the compiled graph")] = 1024,
    ) -> None:
        super().__init__(features)
        self.kappa = float(kappa)
        self.part_names = features.part_names
        self.wall = wall_of_angles(self.kappa, features)
        parts, n_angles = len(self.part_names), len(features.parts)
        self._width = 2 * max(features.parts.count(k) for k in range(parts))
        # Cosines and sines of each part beside each other, padded with zeros, by one product: [2T, K · width].
        padded = torch.zeros(2 * n_angles, parts, self._width)
        for k in range(parts):
            angles = [t for t, part in enumerate(features.parts) if part == k]
            for column, row in enumerate([*angles, *(t + n_angles for t in angles)]):
                padded[row, k, column] = 1.0
        self.register_buffer("padded", padded.reshape(2 * n_angles, -1), persistent=False)
        self._allocate(power_of_two(capacity))
        self.register_buffer("edges", torch.zeros(parts, parts))
        self.register_buffer("medians", torch.zeros(parts))
        self.register_buffer("median", torch.zeros(()))

    @classmethod
    def build(
        cls, topology: Topology, n_latents: int, *, grouping: Grouping = "bonds", **options: Any
    ) -> LocalDensities:
        """Find the parts of a molecule, and make a density of each."""
        return cls(LocalAngles.build(topology, n_latents, grouping=grouping), **options)

    @property
    def capacity(self) -> int:
        """Places for references."""
        return len(self.shares)

    def _allocate(self, capacity: int, like: Tensor | None = None) -> None:
        like, parts = torch.zeros(()) if like is None else like, len(self.part_names)
        self.register_buffer("references", like.new_zeros(parts, self._width, capacity))
        self.register_buffer("offsets", like.new_zeros(parts, 1, capacity))
        self.register_buffer("shares", like.new_zeros(capacity))

    def fit(
        self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None, *, seed: int
    ) -> None:
        """Take the frames as references, then the tree from them; see `Uncertainty.fit`. Nothing is random here."""
        features = self._training_features(positions, latents)
        count, parts = len(features), len(self.part_names)
        if count > self.capacity:
            self._allocate(power_of_two(count), self.references)
        padded = (features @ self.padded.double().cpu().numpy()).reshape(count, parts, self._width)
        references = np.zeros(self.references.shape)
        references[:, :, :count] = padded.transpose(1, 2, 0)
        offsets = -self.kappa * (references**2).sum(axis=1, keepdims=True)
        shares = np.zeros(self.capacity)
        shares[:count] = 1.0 / count
        edges = _tree(self.kappa, padded)
        set_buffers(self, references=references, offsets=offsets, shares=shares, edges=edges)
        set_buffers(self, medians=0.0, median=0.0)
        local = self._in_chunks(self.local, positions, energy, latents)
        tree = self._in_chunks(self.forward, positions, energy, latents)
        set_buffers(self, medians=np.median(local, axis=0), median=np.median(tree))

    def forward(self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None) -> Tensor:
        """Return u [W] of the tree, in nats above the median of the references."""
        return self.with_local(positions, energy, latents)[0]

    def local(self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None) -> Tensor:
        """Return u_k [W, K], in nats above the median of the references."""
        return self.with_local(positions, energy, latents)[1]

    def with_local(
        self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return u of the tree [W] and u_k [W, K]; the densities of all pairs are one batched product."""
        f = (self.features(positions, latents) @ self.padded).reshape(-1, len(self.part_names), self._width)
        kernels = (self.kappa * (f.transpose(0, 1) @ self.references) + self.offsets).exp().transpose(0, 1)
        shared = kernels * self.shares
        single = (shared.sum(-1) + TINY).log()
        pairs = (shared @ kernels.transpose(1, 2) + TINY).log()
        joined = (self.edges * pairs).sum((1, 2)) + ((1.0 - self.edges.sum(0) - self.edges.sum(1)) * single).sum(1)
        return -joined - self.median, -single - self.medians


def _tree(kappa: float, vectors: Array) -> Array:
    """Pairs of parts in the tree of greatest mutual information, as ones in a matrix [K, K].

    The information is the mean of ln p_kl / (p_k p_l) over the references, with the densities themselves.

    Parameters
    ----------
    vectors : [n, K, D] reference vectors of each part.
    """
    vectors = vectors[np.linspace(0, len(vectors) - 1, min(PAIRED, len(vectors))).astype(np.int64)]
    own = (vectors**2).sum(axis=2).T[:, None]
    kernels = np.exp(kappa * (np.einsum("akd,bkd->kab", vectors, vectors) - own))
    parts = len(kernels)
    single = np.log(kernels.mean(axis=2)).mean(axis=1)
    information = np.zeros((parts, parts))
    for k in range(parts):
        joint = np.log((kernels[k] * kernels[k + 1 :]).mean(axis=2)).mean(axis=1)
        information[k, k + 1 :] = joint - single[k] - single[k + 1 :]
    # Every pair has a cost above 0, which would count as no edge.
    cost = np.triu(information.max() - information + 1.0, k=1)
    tree: Array = (minimum_spanning_tree(cost).toarray() > 0).astype(np.float64)
    return tree
