"""Last-layer prediction rigidity: how firmly the training set holds the last layer where a geometry looks at it."""

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
from uqbias.options import OfKind, Positive
from uqbias.registry import FEATURES
from uqbias.uncertainty.aggregation import OverAtoms
from uqbias.uncertainty.base import Sample, set_buffers
from uqbias.uncertainty.elements import ElementwiseUncertainty
from uqbias.uncertainty.features.base import Features, FeatureSpec
from uqbias.uncertainty.whitening import check_varies

#: Added to u² so that u has a slope everywhere.
FLOOR = 1e-6


class LastLayerRigidity(ElementwiseUncertainty):
    r"""Last-layer prediction rigidity: no extra training, dimensionless.

    The standard deviation of the energy under a Gaussian posterior on the last layer, up to a factor. With :math:`f_A`
    the latents :math:`h_i` of structure A summed over the atoms of each element and set side by side (what the last
    layer of each element is multiplied with), both counted from their mean over the training set,
    :math:`C = \langle f_A f_A^T \rangle + \varsigma^2`, and

    - ``structure``: :math:`u = \sqrt{f^T C^{-1} f}`, of the total energy;
    - ``atoms``: :math:`u_i = \sqrt{h_i^T [C_{z_i z_i}]^{-1} h_i}`, of the energy of atom i, aggregated over atoms.

    Bigi, Chong, Ceriotti and Grasselli, Mach. Learn.: Sci. Technol. 5, 045018 (2024); local rigidities: Chong et al.,
    J. Chem. Theory Comput. 19, 8020 (2023). The mean is taken off since the bias of the last layer, which is not
    penalised, takes it up. Forces are not among the rows of C, and C is a mean, so that u does not shrink with the
    number of frames. With fewer frames than latents (times elements) the ridge alone sets u off the training set: it
    still ranks, but its size means nothing before calibration.

    Parameters
    ----------
    features : latents.
    of_elements : other arguments of `ElementwiseUncertainty`; no aggregation of ``structure``.
    ridge : ς² in units of the mean eigenvalue of ⟨f fᵀ⟩.
    """

    kind = "llpr"
    statistic: ClassVar[str] = "deviation"
    unit = "dimensionless"
    factors: Tensor
    centre: Tensor

    def __init__(
        self,
        features: Features,
        *,
        scope: Annotated[
            Literal["atoms", "structure"], Doc("rigidity of each atom's energy, or of the total energy")
        ] = "atoms",
        ridge: Annotated[Positive, Doc("regularisation, relative to the mean eigenvalue")] = 1e-4,
        **of_elements: Any,
    ) -> None:
        super().__init__(features, **of_elements)
        self.scope = scope
        self.ridge = ridge
        # structure: rows of L⁻ᵀ, C = L Lᵀ, by element; atoms: the same of each diagonal block of C.
        width = features.dim * (len(self.groups) if scope == "structure" else 1)
        self.register_buffer("factors", torch.zeros(len(self.groups), features.dim, width))
        self.register_buffer("centre", torch.zeros(len(self.groups), features.dim))

    @classmethod
    def build(
        cls,
        topology: Topology,
        n_latents: int,
        *,
        features: Annotated[
            FeatureSpec, OfKind("features", "latents"), Doc("what the last layer is multiplied with")
        ] = "latents",
        aggregation: OverAtoms = None,
        **options: Any,
    ) -> LastLayerRigidity:
        """Take the latents of a molecule's atoms."""
        scope = options.get("scope", "atoms")
        space: Features = FEATURES.build(features, topology=topology, n_latents=n_latents)
        if space.kind != "latents":
            raise UqbiasError(f"features '{space.kind}' of 'llpr'", "the last layer sees the latents; leave it out")
        if scope == "structure" and len(space.atoms) < len(topology.numbers):
            raise UqbiasError(
                f"scope 'structure' of 'llpr' with {len(space.atoms)} of {len(topology.numbers)} atoms",
                "the total energy is that of all atoms; set scope: atoms",
            )
        whole = f"scope '{scope}', which is" if scope == "structure" else ""
        return cls._in_space(space, topology, aggregation, True, whole, **options)

    def _fit(self, samples: Sequence[Sample], seed: int) -> None:
        """Set C from the training frames; see `Uncertainty.fit`. Nothing is random here."""
        groups = self._features_of(samples)
        flat = [np.concatenate([each.reshape(-1, self.features.dim) for each in group]) for group in groups]
        one = len(samples) == 1
        means = [group[0].mean(axis=(0, 1)) if one else x.mean(axis=0) for group, x in zip(groups, flat, strict=True)]
        centre = np.stack(means)
        pairs = zip(groups, centre, strict=True)
        # f of each frame, [n, elements · F]
        design = np.concatenate(
            [np.concatenate([(each - at).sum(axis=1) for each in group]) for group, at in pairs], axis=1
        )
        covariance = design.T @ design / len(design)
        for at, atoms in enumerate(flat):
            check_varies(atoms, f"latents of {self.groups.name(at)}")
        mean = float(np.trace(covariance)) / len(covariance)
        regularised = covariance + self.ridge * mean * np.eye(len(covariance))
        dim = self.features.dim
        if self.scope == "structure":
            factors = self._inverse_factor(regularised).reshape(len(groups), dim, -1)
        else:
            blocks = [regularised[at : at + dim, at : at + dim] for at in range(0, len(covariance), dim)]
            factors = np.stack([self._inverse_factor(block) for block in blocks])
        set_buffers(self, factors=factors, centre=centre)
        self._fit_aggregation(samples)

    def _inverse_factor(self, covariance: NDArray[np.float64]) -> NDArray[np.float64]:
        """L⁻ᵀ of C = L Lᵀ, so that |h L⁻ᵀ|² = h C⁻¹ hᵀ."""
        try:
            factor = np.linalg.cholesky(covariance)
            inverse: NDArray[np.float64] = np.linalg.inv(factor).T
        except np.linalg.LinAlgError as error:
            raise UqbiasError(f"ridge {self.ridge:g} of 'llpr' leaves C singular", "raise it") from error
        return inverse

    def atom_values(self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None) -> Tensor:
        """Rigidity of each atom's energy [W, A], or of the total energy [W]."""
        centre, factors = self.centre.unbind(0), self.factors.unbind(0)
        together = self.groups.split(self.features(positions, latents))
        parts = [(part - centre[group], factors[group]) for group, part in together]
        if self.scope == "structure":
            # |Σ_e f_eᵀ L_e|, one sum since L is the factor of the whole C⁻¹.
            total = sum(
                (part.sum(-2) @ factor for part, factor in parts),
                start=torch.zeros((), dtype=latents.dtype, device=latents.device),
            )
            return (total.square().sum(-1) + FLOOR).sqrt()
        return self.groups.join([((part @ factor).square().sum(-1) + FLOOR).sqrt() for part, factor in parts])
