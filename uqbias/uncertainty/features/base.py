"""The contract of a feature space, and making one from a campaign file or a model file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from uqbias.errors import UqbiasError, did_you_mean
from uqbias.molecule.topology import Topology
from uqbias.options import options_of
from uqbias.registry import FEATURES, check_options

#: How a user writes a feature space.
FeatureSpec = str | Mapping[str, Any]


class Features(nn.Module, ABC):
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
    def build(cls, topology: Topology, n_latents: int, *_: Any, **user_options: Any) -> Features:
        """Make the feature space of one molecule from the options of a campaign file."""

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """JSON-able constructor arguments; ``type(self)(**options)`` rebuilds an unprepared twin."""

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

    def __init__(self, kind: str, dim: int, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.kind = kind
        self.dim = dim
        self.requires_latents = True
        self._function = function

    @classmethod
    def build(cls, topology: Topology, n_latents: int, *_: Any, **user_options: Any) -> Features:
        """Not used: `build_features` probes the function itself."""
        raise NotImplementedError

    @classmethod
    def probe(cls, kind: str, function: Callable[[Tensor, Tensor], Tensor], n_atoms: int, n_latents: int) -> Features:
        """Call the function once on two random geometries to learn its dimension."""
        generator = torch.Generator().manual_seed(0)
        positions = torch.randn(2, n_atoms, 3, generator=generator)
        found = function(positions, torch.randn(1, 2, n_atoms, n_latents, generator=generator))
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != 2:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UqbiasError(f"features '{kind}' gave {shape} for 2 geometries", "return a tensor [W, D]")
        return cls(kind, found.shape[1], function)

    def options(self) -> dict[str, Any]:
        """Constructor arguments without the function, which is found again by its name."""
        return {"dim": self.dim}

    def forward(self, positions: Tensor, latents: Tensor) -> Tensor:
        """Features of the function, [W, D]."""
        return self._function(positions, latents)


def build_features(spec: str | Mapping[str, Any], topology: Topology, n_latents: int) -> Features:
    """Make a feature space from a campaign file.

    Parameters
    ----------
    spec : a name, or a mapping with ``kind`` and the options of that kind. A kind ``"module:attribute"`` names a
        third party's `Features` class or a function (see `CallableFeatures`).
    topology : bond graph of the molecule.
    n_latents : latent features per atom of the potential.

    Raises
    ------
    UqbiasError
        For an unknown kind or option, or a molecule without such features.
    """
    values = {"kind": spec} if isinstance(spec, str) else dict(spec)
    kind = values.pop("kind", None)
    if not isinstance(kind, str):
        raise UqbiasError(f"features {spec!r} have no kind", did_you_mean("", FEATURES.names()))
    found = _find(kind)
    if isinstance(found, FunctionType):
        check_options(f"features '{kind}'", values, ())
        return CallableFeatures.probe(kind, found, len(topology.numbers), n_latents)
    check_options(f"features '{kind}'", values, list(options_of(found, FEATURES.given)))
    features: Features = found.build(topology, n_latents, **values)
    features.kind = kind
    return features


def rebuild_features(manifest: Mapping[str, Any]) -> Features:
    """Make a feature space from the ``{"kind", "options"}`` of a model file."""
    kind = manifest["kind"]
    found = _find(kind)
    if isinstance(found, FunctionType):
        return CallableFeatures(kind, function=found, **manifest["options"])
    features: Features = found(**manifest["options"])
    features.kind = kind
    return features


def describe_features(features: Features) -> dict[str, Any]:
    """Inverse of `rebuild_features`."""
    return {"kind": features.kind, "options": features.options()}


def _find(kind: str) -> Any:
    """Look a kind up in the registry, or import ``module:attribute``; only classes and plain functions are called."""
    found = FEATURES.get(kind)
    if not (isinstance(found, FunctionType) or (isinstance(found, type) and issubclass(found, Features))):
        raise UqbiasError(f"features '{kind}' are a {type(found).__name__}", "name a Features class or a function")
    return found
