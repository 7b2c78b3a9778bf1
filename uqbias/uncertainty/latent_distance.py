"""Distance to the training set in feature space: the simple yardstick."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Doc

from uqbias.errors import UqbiasError
from uqbias.molecule.topology import Topology
from uqbias.options import Count, OfKind, Positive
from uqbias.registry import FEATURES
from uqbias.uncertainty.aggregation import OverAtoms
from uqbias.uncertainty.base import PADDING, Sample, set_buffers
from uqbias.uncertainty.elements import ElementwiseUncertainty
from uqbias.uncertainty.features.base import Features, FeatureSpec
from uqbias.uncertainty.whitening import bend, bend_tensor, check_varies

#: Rounding of a distance at zero, in standard deviations.
ROUNDING = 0.1
#: Training atoms that decide the width of the weights.
PROBES = 500

Array = NDArray[np.float64]


class LatentDistance(ElementwiseUncertainty):
    r"""Distance to the training set in feature space, dimensionless.

    The distance d of an atom's features, whitened, to those of the training set:

    - ``mahalanobis``: to their mean, :math:`\sqrt{(x - \mu)^T (\Sigma + \epsilon)^{-1} (x - \mu)}`.
    - ``knn``: to the k nearest of a fixed number of references, in the same metric. The mean over the k nearest has
      kinks where neighbours change places; here it is :math:`\sum_j w_j d_j` with
      :math:`w_j \propto \exp(-d_j / h)`, and h such that :math:`1/\sum_j w_j^2 = k` in the median over training atoms.

    As a yardstick for machine-learned potentials: Janet, Duan, Yang, Nandy and Kulik, Chem. Sci. 10, 7913 (2019).

    Parameters
    ----------
    features : per atom, or of whole geometries.
    of_elements : other arguments of `ElementwiseUncertainty`.
    capacity : references are drawn at random from the training atoms.
    regularisation : ε.
    """

    kind = "distance"
    statistic: ClassVar[str] = "deviation"
    unit = "dimensionless"
    mean: Tensor
    matrix: Tensor
    references: Tensor
    squares: Tensor
    offsets: Tensor
    width: Tensor

    def __init__(
        self,
        features: Features,
        *,
        metric: Annotated[
            Literal["mahalanobis", "knn"], Doc("mahalanobis (to the mean) or knn (to the k nearest, smoothed)")
        ] = "mahalanobis",
        k: Annotated[Count, Doc("neighbours of knn")] = 10,
        capacity: Annotated[Count, Doc("reference atoms of knn, per element")] = 256,
        regularisation: Annotated[Positive, Doc("added to the covariance, in units of its mean variance")] = 1e-5,
        **of_elements: Any,
    ) -> None:
        if metric == "knn" and k >= capacity:
            raise UqbiasError(f"k = {k} of 'distance' with capacity {capacity}", "give a whole number below it")
        super().__init__(features, **of_elements)
        self.metric = metric
        self.k = k
        self.capacity = capacity
        self.regularisation = regularisation
        groups, dim = len(self.groups), features.dim
        self.register_buffer("mean", torch.zeros(groups, dim))
        self.register_buffer("matrix", torch.zeros(groups, dim, dim))
        if metric == "knn":
            self.register_buffer("references", torch.zeros(groups, capacity, dim))
            self.register_buffer("squares", torch.zeros(groups, capacity))
            self.register_buffer("offsets", torch.full((groups, capacity), PADDING))
            self.register_buffer("width", torch.ones(groups))

    @classmethod
    def build(
        cls,
        topology: Topology,
        n_latents: int,
        *,
        features: Annotated[FeatureSpec, OfKind("features", "latents"), Doc("space of the distance")] = "latents",
        per_element: Annotated[
            bool | None, Doc("only among atoms of the same element; null: where the features are per atom")
        ] = None,
        aggregation: OverAtoms = None,
        **options: Any,
    ) -> LatentDistance:
        """Make the feature space of a molecule, and the distance in it."""
        space: Features = FEATURES.build(features, topology=topology, n_latents=n_latents)
        apart = space.per_atom if per_element is None else per_element
        return cls._in_space(space, topology, aggregation, apart, **options)

    def _fit(self, samples: Sequence[Sample], seed: int) -> None:
        """Set metric and references; see `Uncertainty.fit`."""
        dim = self.features.dim
        random = np.random.default_rng(seed)
        buffers = {name: value.double().cpu().numpy().copy() for name, value in self.named_buffers(recurse=False)}
        for group, chosen in enumerate(self._features_of(samples)):
            flat = np.concatenate([each.reshape(-1, dim) for each in chosen])
            mean, matrix = self._metric_of(flat, group)
            buffers["mean"][group], buffers["matrix"][group] = mean, matrix
            if self.metric == "knn":
                z = bend((flat - mean) @ matrix)
                picked = random.permutation(len(z))[: self.capacity]
                buffers["references"][group] = 0.0
                buffers["references"][group, : len(picked)] = z[picked]
                buffers["squares"][group] = (buffers["references"][group] ** 2).sum(axis=1)
                buffers["offsets"][group] = np.where(np.arange(self.capacity) < len(picked), 0.0, PADDING)
                buffers["width"][group] = self._width_of(z, picked, random, self.groups.name(group))
        set_buffers(self, **{name: buffers[name] for name in buffers if name != "scatter"})
        self._fit_aggregation(samples)

    def _metric_of(self, flat: Array, group: int) -> tuple[Array, Array]:
        mean = flat.mean(axis=0)
        covariance = np.cov(flat.T, bias=True).reshape(flat.shape[1], -1)
        check_varies(flat, f"features of {self.groups.name(group)}")
        variance = float(np.trace(covariance)) / len(covariance)
        values, vectors = np.linalg.eigh(covariance + self.regularisation * variance * np.eye(len(covariance)))
        return mean, vectors / np.sqrt(values)

    def _width_of(self, z: Array, picked: NDArray[np.int64], random: np.random.Generator, whose: str) -> float:
        """Find h at which the effective number of neighbours is k, by bisection."""
        if len(picked) <= self.k + 1:
            raise UqbiasError(
                f"{len(picked)} samples of {whose} for {self.k} nearest neighbours", "give more frames, or a smaller k"
            )
        probes = random.permutation(len(z))[:PROBES]
        squares = (z[probes] ** 2).sum(axis=1)[:, None] + (z[picked] ** 2).sum(axis=1) - 2 * z[probes] @ z[picked].T
        distance = np.sqrt(np.maximum(squares, 0.0) + ROUNDING**2)
        distance[probes[:, None] == picked] = np.inf  # an atom is not its own neighbour
        distance -= distance.min(axis=1, keepdims=True)

        def neighbours(h: float) -> float:
            weights = np.exp(-distance / h)
            return float(np.median(weights.sum(axis=1) ** 2 / (weights**2).sum(axis=1)))

        low, high = 1e-4, 1e4
        for _ in range(60):
            middle = np.sqrt(low * high)
            low, high = (middle, high) if neighbours(middle) < self.k else (low, middle)
        return float(np.sqrt(low * high))

    def atom_values(self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None) -> Tensor:
        """Distance of each atom [W, A], or of the geometry [W]."""
        features = self.features(positions, latents)
        whole = not self.features.per_atom
        parts = self.groups.split(features.unsqueeze(-2) if whole else features)
        distances = []
        for group, part in parts:
            z = bend_tensor((part - self.mean[group]) @ self.matrix[group])
            norms = z.square().sum(-1)
            distances.append(
                (norms + ROUNDING**2).sqrt() if self.metric == "mahalanobis" else self._nearest(z, norms, group)
            )
        joined = self.groups.join(distances)
        return joined.squeeze(-1) if whole else joined

    def _nearest(self, z: Tensor, norms: Tensor, group: int) -> Tensor:
        squares = norms.unsqueeze(-1) + self.squares[group] - 2 * (z @ self.references[group].t())
        distance = (squares.clamp(min=0.0) + ROUNDING**2).sqrt()
        weights = torch.softmax(self.offsets[group] - distance / self.width[group], -1)
        return (weights * distance).sum(-1)
