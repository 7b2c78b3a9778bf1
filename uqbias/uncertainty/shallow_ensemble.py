"""Many last layers on one body: an ensemble at the price of a single model."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, cast

import torch
from annotated_types import Ge
from torch import Tensor
from typing_extensions import Doc

from uqbias.molecule.topology import Topology
from uqbias.options import Positive
from uqbias.uncertainty.aggregation import Aggregation, Spec
from uqbias.uncertainty.base import energy_unit
from uqbias.uncertainty.heads import ElementNetwork, TrainedKind

#: Least standard deviation of an energy, in the unit of `Uncertainty.loss`.
FLOOR = 1e-4
#: Energies differ by little in that unit; without it the first steps of training would only shrink the heads.
HEAD_SCALE = 0.05


class ShallowEnsemble(TrainedKind):
    r"""Standard deviation of the energy over many last layers, kJ/mol.

    Trained on a proper score. The potential's own last layer gives the mean, K further ones on the same latents give
    deviations from it that are centred on zero, :math:`\delta E_k = \sum_i h_i \cdot (w_k^{z_i} - \bar w^{z_i})`, and

    .. math:: \sigma^2 = \frac{1}{K - 1} \sum_k \delta E_k^2

    is trained by the Gaussian CRPS (Gneiting and Raftery, J. Am. Stat. Assoc. 102, 359 (2007)) or the NLL of the
    energies. Kellner and Ceriotti, Mach. Learn.: Sci. Technol. 5, 035006 (2024); that form, mean and spread
    parametrised apart, is the same family of predictions.

    Parameters
    ----------
    unit_atoms : the heads give energies in the `energy_unit` of so many atoms; those of the molecule if None.
    n_heads : K.
    options : those of `TrainedKind`, by name. The aggregation is over the standard deviations of the atoms' energies;
        None for that of the total energy.
    """

    kind = "shallow_ensemble"
    unit = "kJ/mol"

    def __init__(
        self,
        unit_atoms: int | None = None,
        *,
        n_heads: Annotated[int, Ge(2), Doc("last layers")] = 32,
        score: Annotated[Literal["crps", "nll"], Doc("what the last layers are trained on")] = "crps",
        loss_weight: Annotated[Positive, Doc("weight of that score beside the potential's loss")] = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(loss_weight=loss_weight, **options)
        self.unit_atoms = self.n_atoms if unit_atoms is None else unit_atoms
        self.n_heads = n_heads
        self.score = score
        self.heads = ElementNetwork(self.numbers, self.n_latents, 0, n_heads, known=self.known)

    @classmethod
    def build(
        cls,
        topology: Topology,
        n_latents: int,
        *,
        aggregation: Annotated[
            Spec, Doc("over the atoms' energies: mean, max, sum, local_mean_max; null: the total energy")
        ] = None,
        **options: Any,
    ) -> ShallowEnsemble:
        """Take the atoms of a molecule."""
        atoms = range(len(topology.numbers))
        over_atoms = None if aggregation is None else Aggregation.build(topology, atoms, aggregation).options()
        return cls(numbers=topology.numbers, n_latents=n_latents, aggregation=over_atoms, **options)

    def _placed(self, topology: Topology) -> dict[str, Any]:
        return super()._placed(topology) | {"unit_atoms": self.unit_atoms}

    @property
    def energy_unit(self) -> Tensor:
        """Unit of the heads' energies, [] kJ/mol, the same for all systems."""
        return self.force_unit * energy_unit(self.unit_atoms)

    def _deviations(self, latents: Tensor) -> Tensor:
        """Centred deviations of each atom's energy, [..., W, N, K]."""
        each = HEAD_SCALE * self.heads(latents)
        return cast("Tensor", each - each.mean(-1, keepdim=True))

    def _spread(self, deviations: Tensor) -> Tensor:
        return (deviations.square().sum(-1) / (self.n_heads - 1) + FLOOR**2).sqrt()

    def loss(self, energy_error: Tensor, force_error: Tensor, latents: Tensor, present: Tensor | None = None) -> Tensor:
        """Weighted mean score of the energies; see `Uncertainty.loss`."""
        deviations = self._deviations(latents)
        if present is not None:
            deviations = deviations * present.unsqueeze(-1)
        n_atoms = self.n_atoms if present is None else present.sum(-1)
        # Errors are given in the unit of their own frame.
        sigma = self._spread(deviations.sum(-2)) * (self.unit_atoms / n_atoms) ** 0.5
        z = energy_error / sigma
        if self.score == "nll":
            return self.loss_weight * (torch.log(sigma) + 0.5 * z.square()).mean()
        density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
        score = sigma * (z * torch.erf(z / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))
        return self.loss_weight * score.mean()

    def atom_values(self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None) -> Tensor:
        """Standard deviation of each atom's energy [W, N], kJ/mol."""
        return self._spread(self._deviations(latents[0])) * self.energy_unit

    def forward(self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None) -> Tensor:
        """Return u [W], kJ/mol."""
        if self.aggregation is not None:
            return super().forward(positions, energy, latents, forces)
        return self._spread(self._deviations(latents[0]).sum(-2)) * self.energy_unit

    def per_atom(
        self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None
    ) -> Tensor | None:
        """Standard deviation of each atom's energy [W, N], kJ/mol."""
        return self.atom_values(positions, energy, latents, forces)
