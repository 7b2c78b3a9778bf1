"""Prediction rigidity of forces: the spread of the forces of last layers that the training set leaves possible."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Doc

from uqbias.errors import UqbiasError
from uqbias.molecule.topology import Topology
from uqbias.options import Count, Positive
from uqbias.potentials.prediction import Readouts
from uqbias.registry import FEATURES
from uqbias.uncertainty.aggregation import OverAtoms
from uqbias.uncertainty.base import Sample, set_buffers
from uqbias.uncertainty.elements import ElementwiseUncertainty
from uqbias.uncertainty.features.base import Features
from uqbias.uncertainty.whitening import check_varies

#: Added to u² so that u has a slope everywhere.
FLOOR = 1e-6
#: Training frames, at most, whose force components are rows of C: thousands of rows for a hundred columns.
FRAMES = 60


class ForceRigidity(ElementwiseUncertainty):
    r"""Prediction rigidity of forces: a committee of last layers at the price of one model, also of a frozen one.

    The force component :math:`F_{ic}` is linear in the last layer, with :math:`\phi_{ic} = -\partial f_A / \partial
    x_{ic}` in place of latents, :math:`f_A` as in `LastLayerRigidity`. A Gaussian posterior on the last layer gives

    .. math:: u_i = \sqrt{\tfrac13 \sum_c \phi_{ic}^T C^{-1} \phi_{ic}}, \qquad
              C = \langle \phi \phi^T \rangle + \varsigma^2

    with the mean over force components of the training frames; no label is needed. The sum over the columns of
    :math:`L^{-T}`, :math:`C = L L^T`, is one over last layers drawn from the posterior, of which K are kept: random
    orthogonal combinations, whose mean is the whole sum. Each gives forces by its own backward pass, as the members of
    a committee do. u is aggregated over atoms. Of atoms beyond the cutoff from all others it is 0, as a committee's.
    Bigi, Chong, Ceriotti and Grasselli, Mach. Learn.: Sci. Technol. 5, 045018 (2024), on forces and last-layer
    ensembles.

    Parameters
    ----------
    features : latents of all atoms.
    of_elements : other arguments of `ElementwiseUncertainty`.
    n_readouts : K; with as many as components times elements the sum is whole.
    """

    kind = "llpr_forces"
    statistic: ClassVar[str] = "deviation"
    unit = "dimensionless"
    weights: Tensor

    def __init__(
        self,
        features: Features,
        *,
        n_readouts: Annotated[Count, Doc("last layers whose forces are compared")] = 16,
        dims: Annotated[Count, Doc("principal components of the latents of each element that count")] = 32,
        ridge: Annotated[Positive, Doc("regularisation, relative to the mean eigenvalue")] = 1e-6,
        **of_elements: Any,
    ) -> None:
        super().__init__(features, **of_elements)
        self.n_readouts, self.dims, self.ridge = n_readouts, dims, ridge
        self.register_buffer("weights", torch.zeros(len(self.groups), features.dim, n_readouts))

    @classmethod
    def build(
        cls,
        topology: Topology,
        n_latents: int,
        *,
        member: Annotated[int, Doc("committee member whose latents are used")] = 0,
        aggregation: OverAtoms = None,
        **options: Any,
    ) -> ForceRigidity:
        """Take the latents of a molecule's atoms."""
        spec = {"kind": "latents", "member": member}
        space: Features = FEATURES.build(spec, topology=topology, n_latents=n_latents)
        return cls._in_space(space, topology, aggregation, True, **options)

    @property
    def readouts(self) -> Readouts:
        """The K last layers."""
        return self._readouts(self.weights)

    def _readouts(self, weights: Tensor) -> Readouts:
        """Last layers of ``weights`` [elements, F, K]."""

        def energies(latents: Tensor) -> Tensor:
            parts = self.groups.split(self.features(latents, latents))
            return torch.stack([part.sum(-2) @ weights[group] for group, part in parts]).sum(0).transpose(0, 1)

        return Readouts(weights.shape[-1], energies)

    def _fit(self, samples: Sequence[Sample], seed: int) -> None:
        """Draw the last layers; see `Uncertainty.fit`."""
        rng, dim = np.random.default_rng(seed), self.features.dim
        columns = []
        for at, group in enumerate(self._features_of(samples)):
            atoms = np.concatenate([each.reshape(-1, dim) for each in group])
            check_varies(atoms, f"latents of {self.groups.name(at)}")
            columns.append(np.linalg.eigh(np.cov(atoms.T).reshape(dim, dim))[1][:, ::-1][:, : self.dims])
        width = columns[0].shape[1]
        # Components of all elements side by side: last layers that see one component of one element.
        basis = np.zeros((len(columns), dim, len(columns) * width))
        for at, each in enumerate(columns):
            basis[at, :, at * width : (at + 1) * width] = each
        share = min(1.0, FRAMES / sum(len(sample.positions) for sample in samples))
        chosen = []
        for sample in samples:
            n = len(sample.positions)
            chosen.append(np.sort(rng.permutation(n)[: math.ceil(share * n)]))
        rows = np.concatenate(
            [
                self._forces(sample, basis, part).reshape(basis.shape[-1], -1).T
                for sample, part in zip(samples, chosen, strict=True)
            ]
        )
        covariance = rows.T @ rows / len(rows)
        covariance += self.ridge * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        try:
            inverse = np.linalg.inv(np.linalg.cholesky(covariance)).T
        except np.linalg.LinAlgError as error:
            raise UqbiasError(f"ridge {self.ridge:g} of 'llpr_forces' leaves C singular", "raise it") from error
        draws = np.linalg.qr(rng.standard_normal((len(inverse), len(inverse))))[0][:, : self.n_readouts]
        kept = draws.shape[1]
        weights = np.zeros((len(columns), dim, self.n_readouts))
        weights[..., :kept] = basis @ (inverse @ draws) * math.sqrt(len(inverse) / kept)
        set_buffers(self, weights=weights)
        if self.aggregation is not None and self.aggregation.kind != "mean":
            fitted = []
            for sample, part in zip(samples, chosen, strict=True):
                forces = torch.as_tensor(self._forces(sample, weights, part))
                fitted.append(self.atom_values(sample.positions, sample.energy, sample.latents, forces).numpy())
            self.aggregation.fit(np.concatenate([each.ravel() for each in fitted]))

    def _forces(self, sample: Sample, weights: NDArray[np.float64], chosen: NDArray[np.intp]) -> NDArray[np.float64]:
        """Forces [K, n, N, 3] of last layers [elements, F, K] in some frames."""
        if sample.forces_of is None:
            raise UqbiasError("'llpr_forces' without the potential", "fit it with fit_model or fit_uncertainty")
        assert isinstance(sample.part, ForceRigidity)
        readouts = sample.part._readouts(torch.as_tensor(weights).to(sample.latents))
        forces = sample.forces_of(readouts, chosen).double().cpu().numpy()
        if not np.isfinite(forces).all():
            raise UqbiasError("derivatives of the latents are not finite", "train the potential again")
        return np.asarray(forces)

    def atom_values(self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None) -> Tensor:
        """Rigidity of each atom's force components [W, N]."""
        assert forces is not None
        return (forces.square().mean(-1).sum(0) + FLOOR).sqrt()
