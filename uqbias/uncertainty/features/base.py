"""The contract of a feature space, and making one from a campaign file or a model file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from uqbias.errors import UqbiasError
from uqbias.molecule.topology import Topology
from uqbias.registry import Part

#: How a user writes a feature space.
FeatureSpec = str | Mapping[str, Any]


class Features(Part, nn.Module, ABC):
    """A differentiable map from geometries (and latents) to the space in which a density is estimated.

    Everything that `prepare` changes is a floating-point buffer, so that a compiled graph takes it as input.
    ``forward`` is smooth, and finite for any finite geometry.

    Attributes
    ----------
    kind : name in the registry and in the model file.
    per_atom : whether ``forward`` gives one vector per atom, [W, A, dim], or one per walker, [W, dim].
    dim : length D of a feature vector.
    atoms : indices of the A atoms of per-atom features; empty otherwise.
    requires_latents : whether the potential's latents are used.
    labelled : whether the bond graph tells like atoms apart.
    angular : whether a feature vector is a set of weighted unit vectors (cos, sin), so that
        ``f·f' = Σ_t w_t cos(θ_t − θ'_t)``, as a von Mises kernel needs.
    """

    kind: str
    per_atom: ClassVar[bool] = False
    angular: ClassVar[bool] = False
    requires_latents: bool = False
    labelled: bool = True
    dim: int
    atoms: tuple[int, ...] = ()

    @classmethod
    @abstractmethod
    def build(cls, topology: Topology, n_latents: int, *_: Any, **options: Any) -> Features:
        """Make the feature space of one molecule from the options of a campaign file."""

    def with_topology(self, topology: Topology) -> Self:
        """The same space for the atoms of another system.

        Raises
        ------
        UqbiasError
            If the features are of one molecule.
        """
        raise UqbiasError(f"features '{self.kind}' are of one molecule", "choose latents for several systems")

    @property
    def is_prepared(self) -> bool:
        """Whether `prepare` is no longer needed."""
        return True

    def prepare(self, positions: Tensor) -> None:
        """Set buffers from the start frames of a campaign; done once, since the feature space must not move later.

        Parameters
        ----------
        positions : [n, N, 3] nm.
        """

    def stiff_deviation(self, positions: Tensor) -> Tensor:
        """Largest deviation of a stiff internal coordinate from its mean over the start frames, [n] degrees.

        Zero for a feature space without stiff coordinates. A walker or a candidate beyond about 60 degrees has left
        the molecule that the features describe (a cis amide, say).
        """
        return positions.new_zeros(len(positions))

    @abstractmethod
    def forward(self, positions: Tensor, latents: Tensor) -> Tensor:
        """Feature vectors.

        Parameters
        ----------
        positions : [W, N, 3] nm.
        latents : [M, W, N, F]; ignored unless `requires_latents`.

        Returns
        -------
        [W, D], or [W, A, D] where `per_atom`.
        """


class CallableFeatures(Features):
    """A third party's function ``f(positions, latents) -> [W, D]``, named ``"module:attribute"``.

    It takes positions [W, N, 3] in nm and latents [M, W, N, F]. It must be differentiable, invariant
    under rotation and translation, and free of data-dependent branches.
    """

    unrecorded: ClassVar[tuple[str, ...]] = ("kind", "function")

    def __init__(self, kind: str, function: Callable[[Tensor, Tensor], Tensor], dim: int) -> None:
        super().__init__()
        self.kind = kind
        self.dim = dim
        self.requires_latents = True
        self._function = function

    @classmethod
    def build(
        cls, topology: Topology, n_latents: int, kind: str, function: Callable[[Tensor, Tensor], Tensor]
    ) -> CallableFeatures:
        """Call the function once on two random geometries to learn its dimension."""
        generator = torch.Generator().manual_seed(0)
        positions = torch.randn(2, len(topology), 3, generator=generator)
        vectors = function(positions, torch.randn(1, 2, len(topology), n_latents, generator=generator))
        if not isinstance(vectors, Tensor) or vectors.ndim != 2 or len(vectors) != 2:
            shape = tuple(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
            raise UqbiasError(f"features '{kind}' gave {shape} for 2 geometries", "return a tensor [W, D]")
        return cls(kind, function, vectors.shape[1])

    def forward(self, positions: Tensor, latents: Tensor) -> Tensor:
        """Features of the function, [W, D]."""
        return self._function(positions, latents)
