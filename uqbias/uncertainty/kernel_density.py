"""Negative logarithm of a kernel density over the labelled frames."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Doc

from uqbias.errors import UqbiasError
from uqbias.molecule.topology import Topology
from uqbias.options import Count, OfKind, Positive
from uqbias.registry import FEATURES
from uqbias.uncertainty.base import PADDING, WALL, Uncertainty, set_buffers
from uqbias.uncertainty.features.base import Features, FeatureSpec
from uqbias.uncertainty.whitening import Components, Whiten, Whitening


class KernelDensity(Uncertainty):
    """−ln of a kernel density of the labelled frames, nats.

    u = −ln Σ_k w_k K(f, f_k) − median over the references:

    - ``von_mises``, for torsions: K = exp(κ Σ_t w_t (cos(θ_t − θ_tk) − 1)) = exp(κ (f·f_k − f_k·f_k)). Bounded above
      by ln(references) + 2 κ Σ_t w_t, so that stiff modes cannot drive it.
    - ``gaussian``, for any features of whole geometries: K = exp(−|z − z_k|² / 2h²) of the whitened features z.

    References are the labelled frames with equal weights, padded to ``capacity`` so that the graph stays when labels
    are added. Evaluation is one matrix product and a logsumexp.

    Parameters
    ----------
    features : feature space, one vector per geometry.
    capacity : rounded up to a power of two, and doubled by `fit` when labels exceed it, which changes the graph.
    """

    kind = "kernel_density"
    hill_width: ClassVar[float | None] = 0.3
    wall: float | None = WALL
    features: Features
    references: Tensor
    offsets: Tensor
    median: Tensor

    def __init__(
        self,
        features: Features,
        *,
        kernel: Annotated[
            Literal["von_mises", "gaussian"], Doc("von_mises (for torsions) or gaussian (for any features)")
        ] = "von_mises",
        kappa: Annotated[Positive, Doc("concentration of the von Mises kernel")] = 5.0,
        bandwidth: Annotated[Positive, Doc("width of the Gaussian kernel, in whitened units")] = 0.5,
        capacity: Annotated[Count, Doc("places for labelled frames in the compiled graph")] = 1024,
        whitening: Annotated[Whiten, Doc("whitening for the Gaussian kernel: none, standard, pca")] = "pca",
        dims: Components = None,
    ) -> None:
        super().__init__(features)
        if features.per_atom:
            raise UqbiasError(
                f"a kernel density of '{features.kind}', which are per atom",
                "choose torsions or pair_distances, or gmm",
            )
        if kernel == "von_mises" and not features.angular:
            raise UqbiasError(f"a von Mises kernel on '{features.kind}', which are not angles", "set kernel: gaussian")
        self.kernel = kernel
        self.kappa = float(kappa)
        self.bandwidth = float(bandwidth)
        self.dims = dims
        self.whitening_kind = whitening
        self.whitening = Whitening(features.dim, whitening, dims) if kernel == "gaussian" else None
        width = features.dim if self.whitening is None else self.whitening.dim
        if kernel == "von_mises":
            self.wall = wall_of_angles(self.kappa, features)
        self._allocate(power_of_two(capacity), width)
        self.register_buffer("median", torch.zeros(()))

    @classmethod
    def build(
        cls,
        topology: Topology,
        n_latents: int,
        *,
        features: Annotated[FeatureSpec, OfKind("features", "torsions"), Doc("space of the density")] = "torsions",
        **options: Any,
    ) -> KernelDensity:
        """Make the feature space of a molecule, and a density in it."""
        return cls(FEATURES.build(features, topology=topology, n_latents=n_latents), **options)

    def options(self) -> dict[str, Any]:
        """Constructor arguments, with the capacity as it is now."""
        return super().options() | {"whitening": self.whitening_kind}

    @property
    def capacity(self) -> int:
        """Places for references."""
        return len(self.references)

    def _allocate(self, capacity: int, width: int, like: Tensor | None = None) -> None:
        like = torch.zeros(()) if like is None else like
        self.register_buffer("references", like.new_zeros(capacity, width))
        self.register_buffer("offsets", like.new_full((capacity,), PADDING))

    def fit(
        self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None, *, seed: int
    ) -> None:
        """Take the frames as references; see `Uncertainty.fit`. Nothing is random here."""
        features = self._training_features(positions, latents)
        count = len(features)
        if count > self.capacity:
            self._allocate(power_of_two(count), self.references.shape[1], self.references)
        if self.whitening is not None:
            self.whitening.fit(features)
            features = self.whitening.transform(features)
            self_products = 0.5 * (features**2).sum(axis=1)
        else:
            self_products = (features**2).sum(axis=1)
        references = np.zeros(self.references.shape)
        offsets = np.full(self.capacity, PADDING)
        references[:count] = features
        offsets[:count] = -math.log(count) - self._concentration * self_products
        set_buffers(self, references=references, offsets=offsets, median=0.0)
        set_buffers(self, median=np.median(self._in_chunks(self.forward, positions, energy, latents)))

    @property
    def _concentration(self) -> float:
        return self.kappa if self.whitening is None else self.bandwidth**-2

    def forward(self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None) -> Tensor:
        """Return u [W] in nats above the median of the references."""
        f = self.features(positions, latents)
        if self.whitening is None:
            self_term: Tensor | float = 0.0
        else:
            f = self.whitening(f)
            self_term = (0.5 * self._concentration) * (f * f).sum(-1)
        kernels = self._concentration * (f @ self.references.t()) + self.offsets
        return self_term - torch.logsumexp(kernels, -1) - self.median


def power_of_two(count: int) -> int:
    """Smallest power of two that is not below ``count``."""
    return 1 << (int(count) - 1).bit_length()


def wall_of_angles(kappa: float, features: Features) -> float:
    """Where a von Mises density has its wall: the range of u, 2 κ Σ_t w_t, grows with the number of angles.

    It is `WALL` for two torsions, or fewer, of κ = 5.
    """
    weights: Tensor = getattr(features, "weights", torch.zeros(0))
    return WALL * max(1.0, kappa * float(weights.sum()) / 10.0)
