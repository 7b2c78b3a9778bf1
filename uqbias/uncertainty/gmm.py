"""Negative log-likelihood under a mixture of full-covariance Gaussians."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import softplus

from uqbias.errors import UqbiasError, did_you_mean
from uqbias.features.base import Features, build_features
from uqbias.topology import Topology
from uqbias.uncertainty.aggregation import Aggregation
from uqbias.uncertainty.atomwise import AtomwiseUncertainty
from uqbias.uncertainty.base import set_buffers
from uqbias.uncertainty.whitening import Whitening

SQUASHES = ("none", "softplus_sqrt")
#: Log-weight of a component that is only padding: never seen, yet finite in float32.
PADDING = -1e9
#: More samples than this make the fit slower, not better.
MAX_SAMPLES = 20_000


class GaussianMixture(AtomwiseUncertainty):
    """NLL = −ln Σ_k w_k N(z | μ_k, Σ_k) of whitened features, aggregated over atoms where the features are per atom.

    Fitted by expectation maximisation (scikit-learn), evaluated as one matrix product and a logsumexp. Without
    squashing u = NLL − median over the training frames, in nats. With ``softplus_sqrt``, dimensionless,

        a = (NLL − median) / (q95 − median),  u0 = √(softplus(a) + 0.1),  u = (u0 − median) / (1.3 (median − q10)),

    where median, q95 and q10 are quantiles over the training frames (of NLL, then of u0); the scale comes from the
    lower tail, since the upper one widens with every diverse label.

    As a CV on latents: Zhu et al., J. Chem. Phys. 158, 164111 (2023); Tan et al., npj Comput. Mater. 9, 225 (2023).

    Parameters
    ----------
    features : feature space.
    n_components : Gaussians K, at most.
    samples_per_component : with n samples, max(1, min(K, n // this)) Gaussians are fitted and the rest is padding;
        None: always K.
    reg_covar : added to the diagonal of every covariance, in units of the whitened features.
    whitening, dims : see `Whitening`.
    squash : ``none`` or ``softplus_sqrt``.
    aggregation : arguments of `Aggregation`; None for features of whole geometries.
    max_iter : iterations of expectation maximisation.
    """

    kind = "gmm"
    features: Features
    projection: Tensor
    offset: Tensor
    log_weights: Tensor
    nll_median: Tensor
    nll_scale: Tensor
    squashed_median: Tensor
    squashed_scale: Tensor

    def __init__(
        self,
        features: Features,
        n_components: int = 6,
        samples_per_component: int | None = 40,
        reg_covar: float = 1e-3,
        whitening: str = "pca",
        dims: int | None = None,
        squash: str = "none",
        aggregation: Mapping[str, Any] | None = None,
        max_iter: int = 500,
        n_atoms: int = 0,
    ) -> None:
        super().__init__(aggregation, features.atoms, n_atoms, features)
        for name, value in (("n_components", n_components), ("max_iter", max_iter), ("reg_covar", reg_covar)):
            if not value > 0:
                raise UqbiasError(f"{name} of the mixture: {value}", "give a number above 0")
        if squash not in SQUASHES:
            raise UqbiasError(f"unknown squash '{squash}'", did_you_mean(squash, SQUASHES))
        self.n_components = n_components
        self.samples_per_component = samples_per_component
        self.reg_covar = reg_covar
        self.dims = dims
        self.squash = squash
        self.max_iter = max_iter
        self.whitening = Whitening(features.dim, whitening, dims)
        d = self.whitening.dim
        self.register_buffer("projection", torch.zeros(d, n_components * d))
        self.register_buffer("offset", torch.zeros(n_components * d))
        self.register_buffer("log_weights", torch.full((n_components,), PADDING))
        for name in ("nll_median", "squashed_median"):
            self.register_buffer(name, torch.zeros(()))
        for name in ("nll_scale", "squashed_scale"):
            self.register_buffer(name, torch.ones(()))

    @classmethod
    def build(
        cls,
        topology: Topology,
        n_latents: int,
        *,
        features: str | Mapping[str, Any] = "latents",
        n_components: int = 6,
        samples_per_component: int | None = 40,
        reg_covar: float = 1e-3,
        whitening: str = "pca",
        dims: int | None = None,
        squash: str = "none",
        aggregation: str | Mapping[str, Any] | None = None,
        max_iter: int = 500,
    ) -> GaussianMixture:
        """Options of a campaign file; ``aggregation`` as in `Aggregation.build` (``mean`` if not given)."""
        made = build_features(features, topology, n_latents)
        over_atoms = Aggregation.build(topology, made.atoms, aggregation or "mean") if made.per_atom else None
        if aggregation is not None and aggregation != "mean" and over_atoms is None:
            raise UqbiasError(
                f"aggregation {aggregation!r} of features '{made.kind}', which are not per atom", "leave it out"
            )
        return cls(
            made,
            n_components=n_components,
            samples_per_component=samples_per_component,
            reg_covar=reg_covar,
            whitening=whitening,
            dims=dims,
            squash=squash,
            aggregation=None if over_atoms is None else over_atoms.options(),
            max_iter=max_iter,
            n_atoms=len(topology.numbers),
        )

    def options(self) -> dict[str, Any]:
        """Constructor arguments."""
        return super().options() | {
            "n_components": self.n_components,
            "samples_per_component": self.samples_per_component,
            "reg_covar": self.reg_covar,
            "whitening": self.whitening.kind,
            "dims": self.dims,
            "squash": self.squash,
            "max_iter": self.max_iter,
        }

    def fit(
        self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None, *, seed: int
    ) -> None:
        """Fit whitening, mixture and scale; see `Uncertainty.fit`."""
        samples = self._training_features(positions, latents).reshape(-1, self.features.dim)
        if len(samples) > MAX_SAMPLES:
            samples = samples[np.random.default_rng(seed).choice(len(samples), MAX_SAMPLES, replace=False)]
        count = self.n_components
        if self.samples_per_component:
            count = max(1, min(count, len(samples) // self.samples_per_component))
        if len(samples) < count:
            raise UqbiasError(
                f"{len(samples)} training samples for {count} mixture components",
                "give more frames, or set samples_per_component",
            )
        self.whitening.fit(samples)
        self._set_mixture(self._expectation_maximisation(self.whitening.transform(samples), count, seed))
        self._set_scale(positions, energy, latents)

    def _expectation_maximisation(self, z: NDArray[np.float64], count: int, seed: int) -> Any:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture as Mixture

        mixture = Mixture(count, reg_covar=self.reg_covar, max_iter=self.max_iter, random_state=seed)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                mixture.fit(z)
        except ValueError as error:
            raise UqbiasError(f"the mixture of {count} Gaussians failed ({error})", "raise reg_covar") from error
        if not mixture.converged_:
            raise UqbiasError(
                f"the mixture of {count} Gaussians on {len(z)} samples did not converge in {self.max_iter} iterations",
                "raise max_iter, or lower n_components",
            )
        return mixture

    def _set_mixture(self, mixture: Any) -> None:
        count, d = mixture.means_.shape
        projection = np.zeros((d, self.n_components, d))
        offset = np.zeros((self.n_components, d))
        log_weights = np.full(self.n_components, PADDING)
        cholesky = mixture.precisions_cholesky_
        projection[:, :count] = cholesky.transpose(1, 0, 2)
        offset[:count] = np.einsum("ki,kij->kj", mixture.means_, cholesky)
        log_determinants = np.log(np.diagonal(cholesky, axis1=1, axis2=2)).sum(axis=1)
        with np.errstate(divide="ignore"):
            log_weights[:count] = np.log(mixture.weights_) + log_determinants - 0.5 * d * math.log(2 * math.pi)
        set_buffers(
            self,
            projection=projection.reshape(d, -1),
            offset=offset.reshape(-1),
            log_weights=np.maximum(log_weights, PADDING),
        )

    def _set_scale(self, positions: Tensor, energy: Tensor, latents: Tensor) -> None:
        """Set the shift and, for the squashed u, the scales, from the quantiles over the training frames."""
        set_buffers(self, nll_median=0.0, nll_scale=1.0, squashed_median=0.0, squashed_scale=1.0)
        self.fit_aggregation(positions, energy, latents)
        nll = self._evaluate(positions, energy, latents, function=self.aggregated)
        median, upper = np.quantile(nll, (0.5, 0.95))
        set_buffers(self, nll_median=median)
        if self.squash == "none":
            return
        if not upper - median > 0:
            raise UqbiasError(f"the NLL of {len(nll)} training frames has no spread", "give frames that differ")
        set_buffers(self, nll_scale=upper - median)
        u0 = self._evaluate(positions, energy, latents)
        lower, median = np.quantile(u0, (0.1, 0.5))
        if not median - lower > 0:
            raise UqbiasError(f"the NLL of {len(nll)} training frames has no lower tail", "give frames that differ")
        set_buffers(self, squashed_median=median, squashed_scale=1.3 * (median - lower))

    def atom_values(self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None) -> Tensor:
        """NLL in nats of the whitened features: [W], or [W, A] where the features are per atom."""
        z = self.whitening(self.features(positions, latents))
        standardised = (z @ self.projection - self.offset).reshape(*z.shape[:-1], self.n_components, -1)
        return -torch.logsumexp(self.log_weights - 0.5 * (standardised * standardised).sum(-1), -1)

    def forward(self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None) -> Tensor:
        """Return u [W]: nats above the median of the training set, or dimensionless if squashed."""
        above = self.aggregated(positions, energy, latents) - self.nll_median
        if self.squash == "none":
            return above
        u0 = (softplus(above / self.nll_scale) + 0.1).sqrt()
        return (u0 - self.squashed_median) / self.squashed_scale
