"""A mixture of full-covariance Gaussians in whitened features, fitted by scikit-learn and evaluated in torch."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from uqbias.errors import UqbiasError
from uqbias.uncertainty.base import PADDING, set_buffers
from uqbias.uncertainty.whitening import Whiten, Whitening

#: More samples than this make the fit slower, not better.
MAX_SAMPLES = 20_000


class MixtureDensity(nn.Module):
    """Function −ln Σ_k w_k N(z | μ_k, Σ_k), one matrix product and a logsumexp; K components, some of them padding.

    Parameters
    ----------
    dim : features, D.
    n_components : Gaussians K, at most.
    whitening, dims : see `Whitening`.
    """

    projection: Tensor
    offset: Tensor
    log_weights: Tensor

    def __init__(self, dim: int, n_components: int, whitening: Whiten, dims: int | None) -> None:
        super().__init__()
        self.n_components = n_components
        self.whitening = Whitening(dim, whitening, dims)
        d = self.whitening.dim
        self.register_buffer("projection", torch.zeros(d, n_components * d))
        self.register_buffer("offset", torch.zeros(n_components * d))
        self.register_buffer("log_weights", torch.full((n_components,), PADDING))

    def fit(
        self,
        samples: NDArray[np.float64],
        *,
        samples_per_component: int | None,
        choose: str,
        reg_covar: float,
        max_iter: int,
        seed: int,
    ) -> int:
        """Fit whitening and mixture to samples [n, D]; returns the number of Gaussians.

        Parameters
        ----------
        samples_per_component : with n samples, at most n // this Gaussians, and one at least; None: no such limit.
        choose : ``fixed`` (as many as allowed) or ``bic`` (the number up to that with the lowest Bayesian information
            criterion; Schwarz, Ann. Stat. 6, 461 (1978)).
        reg_covar, max_iter : as in scikit-learn's GaussianMixture.
        seed : seed of the initial components, and of the choice among very many samples.

        Raises
        ------
        UqbiasError
            If the samples are too few or without variance, or expectation maximisation fails or does not converge.
        """
        if len(samples) > MAX_SAMPLES:
            samples = samples[np.random.default_rng(seed).choice(len(samples), MAX_SAMPLES, replace=False)]
        count = self.n_components
        if samples_per_component:
            count = max(1, min(count, len(samples) // samples_per_component))
        if len(samples) < max(count, 2):
            raise UqbiasError(
                f"{len(samples)} training samples for {count} mixture components",
                "give more frames, or set samples_per_component",
            )
        self.whitening.fit(samples)
        # Directions that the data do not have are zero: their covariances would count as parameters in the BIC.
        kept = np.flatnonzero(self.whitening.matrix.abs().sum(0).cpu().numpy() > 0)
        z = self.whitening.transform(samples)[:, kept]
        if choose == "fixed":
            mixture = _expectation_maximisation(z, count, reg_covar, max_iter, seed)
        else:
            mixture = _lowest_bic(z, count, reg_covar, max_iter, seed)
        self._take(mixture, kept)
        return len(mixture.means_)

    def _take(self, mixture: Any, kept: NDArray[np.int64]) -> None:
        count, d = mixture.means_.shape
        projection = np.zeros((self.whitening.dim, self.n_components, self.whitening.dim))
        offset = np.zeros((self.n_components, self.whitening.dim))
        log_weights = np.full(self.n_components, PADDING)
        cholesky = mixture.precisions_cholesky_
        projection[np.ix_(kept, np.arange(count), kept)] = cholesky.transpose(1, 0, 2)
        offset[np.ix_(np.arange(count), kept)] = np.einsum("ki,kij->kj", mixture.means_, cholesky)
        log_determinants = np.log(np.diagonal(cholesky, axis1=1, axis2=2)).sum(axis=1)
        with np.errstate(divide="ignore"):
            log_weights[:count] = np.log(mixture.weights_) + log_determinants - 0.5 * d * math.log(2 * math.pi)
        set_buffers(
            self,
            projection=projection.reshape(self.whitening.dim, -1),
            offset=offset.reshape(-1),
            log_weights=np.maximum(log_weights, PADDING),
        )

    def forward(self, features: Tensor) -> Tensor:
        """NLL of features [..., D], [...] nats."""
        z = self.whitening(features)
        standardised = (z @ self.projection - self.offset).reshape(*z.shape[:-1], self.n_components, -1)
        return -torch.logsumexp(self.log_weights - 0.5 * (standardised * standardised).sum(-1), -1)


def _lowest_bic(z: NDArray[np.float64], most: int, reg_covar: float, max_iter: int, seed: int) -> Any:
    """The mixture of 1 to ``most`` Gaussians with the lowest BIC; those that do not converge are passed over."""
    mixtures, fault = [], None
    for count in range(1, most + 1):
        try:
            mixtures.append(_expectation_maximisation(z, count, reg_covar, max_iter, seed))
        except UqbiasError as error:
            fault = error
    if not mixtures and fault is not None:
        raise fault
    return min(mixtures, key=lambda mixture: float(mixture.bic(z)))


def _expectation_maximisation(z: NDArray[np.float64], count: int, reg_covar: float, max_iter: int, seed: int) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(count, reg_covar=reg_covar, max_iter=max_iter, random_state=seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            mixture.fit(z)
    except ValueError as error:
        raise UqbiasError(f"the mixture of {count} Gaussians failed ({error})", "raise reg_covar") from error
    if not mixture.converged_:
        raise UqbiasError(
            f"the mixture of {count} Gaussians on {len(z)} samples did not converge in {max_iter} iterations",
            "raise max_iter, or lower n_components",
        )
    return mixture
