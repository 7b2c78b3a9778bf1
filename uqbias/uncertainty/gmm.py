"""Negative log-likelihood under a mixture of full-covariance Gaussians."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from typing_extensions import Doc

from uqbias.errors import UqbiasError
from uqbias.molecule.topology import Topology
from uqbias.options import Count, OfKind, Positive
from uqbias.registry import FEATURES
from uqbias.uncertainty.aggregation import OverAtoms
from uqbias.uncertainty.atomwise import in_one
from uqbias.uncertainty.base import Sample, set_buffers
from uqbias.uncertainty.elements import ElementwiseUncertainty
from uqbias.uncertainty.features.base import Features, FeatureSpec
from uqbias.uncertainty.mixture import MixtureDensity
from uqbias.uncertainty.whitening import Components, Whiten


class GaussianMixture(ElementwiseUncertainty):
    """−ln of a mixture of full-covariance Gaussians, nats.

    NLL = −ln Σ_k w_k N(z | μ_k, Σ_k) of whitened features, aggregated over atoms where the features are per atom.
    Fitted by expectation maximisation (scikit-learn), evaluated as one matrix product and a logsumexp. Without
    squashing u = NLL − median over the training frames, in nats. With ``softplus_sqrt``, dimensionless,

        a = (NLL − median) / (q95 − median),  u0 = √(softplus(a) + 0.1),  u = (u0 − median) / (1.3 (median − q10)),

    where median, q95 and q10 are quantiles over the training frames (of NLL, then of u0); the scale comes from the
    lower tail, since the upper one widens with every diverse label.

    As an uncertainty: Zhu et al., J. Chem. Phys. 158, 164111 (2023); Tan et al., npj Comput. Mater. 9, 225 (2023). As a
    CV: Tan, Dietschreit and Gómez-Bombarelli, arXiv:2402.03753.

    Parameters
    ----------
    features : feature space.
    of_elements : other arguments of `ElementwiseUncertainty`: one mixture for each element, whose NLL is counted from
        its median over the training atoms of that element.
    n_components : of n samples, max(1, min(n_components, n // samples_per_component)) Gaussians are fitted and the
        rest is padding.
    """

    kind = "gmm"
    hill_width: ClassVar[float | None] = 0.3
    nll_median: Tensor
    nll_scale: Tensor
    squashed_median: Tensor
    squashed_scale: Tensor
    group_median: Tensor

    def __init__(
        self,
        features: Features,
        *,
        n_components: Annotated[Count, Doc("Gaussians, at most")] = 6,
        choose_components: Annotated[
            Literal["fixed", "bic"], Doc("fixed, or bic (the number up to n_components with the lowest BIC)")
        ] = "fixed",
        samples_per_component: Annotated[
            Count | None, Doc("fewest samples for each Gaussian; null: always n_components Gaussians")
        ] = 40,
        reg_covar: Annotated[Positive, Doc("added to the diagonal of every whitened covariance")] = 1e-3,
        whitening: Annotated[Whiten, Doc("none, standard, pca")] = "pca",
        dims: Components = None,
        squash: Annotated[
            Literal["none", "softplus_sqrt"], Doc("none, or softplus_sqrt (bounded slope, for a driver)")
        ] = "none",
        max_iter: Annotated[Count, Doc("iterations of expectation maximisation, at most")] = 500,
        **of_elements: Any,
    ) -> None:
        super().__init__(features, **of_elements)
        self.n_components = n_components
        self.samples_per_component = samples_per_component
        self.reg_covar = reg_covar
        self.dims = dims
        self.squash = squash
        self.max_iter = max_iter
        self.whitening = whitening
        self.choose_components = choose_components
        self.densities = nn.ModuleList(
            MixtureDensity(features.dim, n_components, whitening, dims) for _ in range(len(self.groups))
        )
        for name in ("nll_median", "squashed_median"):
            self.register_buffer(name, torch.zeros(()))
        self.register_buffer("group_median", torch.zeros(len(self.groups)))
        for name in ("nll_scale", "squashed_scale"):
            self.register_buffer(name, torch.ones(()))

    @classmethod
    def build(
        cls,
        topology: Topology,
        n_latents: int,
        *,
        features: Annotated[FeatureSpec, OfKind("features", "latents"), Doc("space of the density")] = "latents",
        per_element: Annotated[bool, Doc("one mixture for the atoms of each element, not one for all")] = False,
        aggregation: OverAtoms = None,
        **options: Any,
    ) -> GaussianMixture:
        """Make the feature space of a molecule, and a mixture in it."""
        space: Features = FEATURES.build(features, topology=topology, n_latents=n_latents)
        asked = None if aggregation == "mean" else aggregation
        return cls._in_space(space, topology, asked, per_element, **options)

    def _fit(self, samples: Sequence[Sample], seed: int) -> None:
        """Fit whitening, mixture and scale; see `Uncertainty.fit`."""
        medians = np.zeros(len(self.groups))
        for group, (chosen, density) in enumerate(zip(self._features_of(samples), self.densities, strict=True)):
            flat = np.concatenate([each.reshape(-1, self.features.dim) for each in chosen])
            try:
                density.fit(  # type: ignore[operator]
                    flat,
                    samples_per_component=self.samples_per_component,
                    choose=self.choose_components,
                    reg_covar=self.reg_covar,
                    max_iter=self.max_iter,
                    seed=seed,
                )
            except UqbiasError as error:
                if self.elements is None:
                    raise
                raise UqbiasError(f"{self.groups.name(group)}: {error.what}", error.cure) from error
            if self.elements is not None:
                with torch.no_grad():
                    medians[group] = float(density(torch.as_tensor(flat).to(self.group_median)).median())
        set_buffers(self, group_median=medians)
        self._set_scale(samples)

    def _set_scale(self, samples: Sequence[Sample]) -> None:
        """Set the shift and, for the squashed u, the scales, from the quantiles over the training frames."""
        set_buffers(self, nll_median=0.0, nll_scale=1.0, squashed_median=0.0, squashed_scale=1.0)
        self._fit_aggregation(samples)
        nll = in_one(samples, ElementwiseUncertainty.forward)
        median, upper = np.quantile(nll, (0.5, 0.95))
        set_buffers(self, nll_median=median)
        if self.squash == "none":
            return
        if not upper - median > 0:
            raise UqbiasError(f"the NLL of {len(nll)} training frames has no spread", "give frames that differ")
        set_buffers(self, nll_scale=upper - median)
        u0 = in_one(samples, type(self).forward)
        lower, median = np.quantile(u0, (0.1, 0.5))
        if not median - lower > 0:
            raise UqbiasError(f"the NLL of {len(nll)} training frames has no lower tail", "give frames that differ")
        set_buffers(self, squashed_median=median, squashed_scale=1.3 * (median - lower))

    def atom_values(self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None) -> Tensor:
        """NLL in nats of the whitened features: [W], or [W, A] where the features are per atom."""
        parts = self.groups.split(self.features(positions, latents))
        # Densities of different elements have different units; each is counted from its own median.
        medians = self.group_median.unbind(0)
        return self.groups.join([self.densities[group](part) - medians[group] for group, part in parts])

    def forward(self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None) -> Tensor:
        """Return u [W]: nats above the median of the training set, or dimensionless if squashed."""
        above = super().forward(positions, energy, latents) - self.nll_median
        if self.squash == "none":
            return above
        u0 = (softplus(above / self.nll_scale) + 0.1).sqrt()
        return (u0 - self.squashed_median) / self.squashed_scale
