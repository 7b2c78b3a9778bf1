"""Many last layers on one body: an ensemble at the price of a single model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from uqbias.errors import UqbiasError, did_you_mean
from uqbias.topology import Topology
from uqbias.uncertainty.aggregation import Aggregation
from uqbias.uncertainty.atomwise import AtomwiseUncertainty
from uqbias.uncertainty.base import energy_unit, set_buffers
from uqbias.uncertainty.heads import ElementNetwork

SCORES = ("crps", "nll")
#: Least standard deviation of an energy, in the unit of `Uncertainty.loss`.
FLOOR = 1e-4
#: Energies differ by little in that unit; without it the first steps of training would only shrink the heads.
HEAD_SCALE = 0.05


class ShallowEnsemble(AtomwiseUncertainty):
    r"""Standard deviation of the energy over K last layers, trained on a proper score.

    The potential's own last layer gives the mean, K further ones on the same latents give deviations from it that are
    centred on zero, :math:`\delta E_k = \sum_i h_i \cdot (w_k^{z_i} - \bar w^{z_i})`, and

    .. math:: \sigma^2 = \frac{1}{K - 1} \sum_k \delta E_k^2

    is trained by the Gaussian CRPS (Gneiting and Raftery, J. Am. Stat. Assoc. 102, 359 (2007)) or the NLL of the
    energies. Kellner and Ceriotti, Mach. Learn.: Sci. Technol. 5, 035006 (2024); that form, mean and spread
    parametrised apart, is the same family of predictions.

    Parameters
    ----------
    numbers : atomic numbers.
    n_latents : F.
    n_heads : K.
    score : ``crps`` or ``nll``.
    loss_weight : of the score beside the loss of the potential.
    aggregation : arguments of `Aggregation` over the standard deviations of the atoms' energies; None for that of the
        total energy.
    """

    kind = "shallow_ensemble"
    statistic: ClassVar[str] = "deviation"
    unit = "kJ/mol"
    most_members: ClassVar[int | None] = 1
    force_unit: Tensor

    def __init__(
        self,
        numbers: Sequence[int],
        n_latents: int,
        n_heads: int = 32,
        score: str = "crps",
        loss_weight: float = 0.1,
        aggregation: Mapping[str, Any] | None = None,
        n_atoms: int = 0,
    ) -> None:
        if n_heads < 2:
            raise UqbiasError(f"{n_heads} heads of a shallow ensemble", "give 2 or more")
        if score not in SCORES:
            raise UqbiasError(f"unknown score '{score}'", did_you_mean(score, SCORES))
        if not loss_weight > 0:
            raise UqbiasError(f"loss_weight of 'shallow_ensemble': {loss_weight}", "give a number above 0")
        super().__init__(aggregation, range(len(numbers)), len(numbers))
        self.numbers = tuple(numbers)
        self.n_latents = n_latents
        self.n_heads = n_heads
        self.score = score
        self.loss_weight = loss_weight
        self.heads = ElementNetwork(numbers, n_latents, 0, n_heads)
        self.register_buffer("force_unit", torch.ones(()))

    @classmethod
    def build(
        cls,
        topology: Topology,
        n_latents: int,
        *,
        n_heads: int = 32,
        score: str = "crps",
        loss_weight: float = 0.1,
        aggregation: str | Mapping[str, Any] | None = None,
    ) -> ShallowEnsemble:
        """Options of a campaign file; without ``aggregation`` u is the standard deviation of the total energy."""
        atoms = range(len(topology.numbers))
        over_atoms = None if aggregation is None else Aggregation.build(topology, atoms, aggregation).options()
        return cls(topology.numbers, n_latents, n_heads, score, loss_weight, over_atoms)

    def options(self) -> dict[str, Any]:
        """Constructor arguments."""
        return super().options() | {
            "numbers": list(self.numbers),
            "n_latents": self.n_latents,
            "n_heads": self.n_heads,
            "score": self.score,
            "loss_weight": self.loss_weight,
        }

    @property
    def requires_latents(self) -> bool:
        """Whether the potential's latents are used."""
        return True

    def set_force_unit(self, force: float) -> None:
        """Take the unit of the errors that `loss` is given, kJ/mol/nm."""
        set_buffers(self, force_unit=force)

    def _deviations(self, latents: Tensor) -> Tensor:
        """Centred deviations of each atom's energy, [..., W, N, K]."""
        each = HEAD_SCALE * self.heads(latents)
        return cast("Tensor", each - each.mean(-1, keepdim=True))

    def _spread(self, deviations: Tensor) -> Tensor:
        return (deviations.square().sum(-1) / (self.n_heads - 1) + FLOOR**2).sqrt()

    def loss(self, energy_error: Tensor, force_error: Tensor, latents: Tensor) -> Tensor:
        """Weighted mean score of the energies; see `Uncertainty.loss`."""
        sigma = self._spread(self._deviations(latents).sum(-2))
        z = energy_error / sigma
        if self.score == "nll":
            return self.loss_weight * (torch.log(sigma) + 0.5 * z.square()).mean()
        density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
        score = sigma * (z * torch.erf(z / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))
        return self.loss_weight * score.mean()

    def fit(
        self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None, *, seed: int
    ) -> None:
        """Scale the aggregation; the heads are trained with the potential. See `Uncertainty.fit`."""
        self.fit_aggregation(positions, energy, latents)

    def atom_values(self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None) -> Tensor:
        """Standard deviation of each atom's energy [W, N], kJ/mol."""
        return self._spread(self._deviations(latents[0])) * self._energy_unit

    @property
    def _energy_unit(self) -> Tensor:
        return self.force_unit * energy_unit(self.n_atoms)

    def forward(self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None) -> Tensor:
        """Return u [W], kJ/mol."""
        if self.aggregation is not None:
            return super().forward(positions, energy, latents, forces)
        return self._spread(self._deviations(latents[0]).sum(-2)) * self._energy_unit

    def per_atom(
        self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None
    ) -> Tensor | None:
        """Standard deviation of each atom's energy [W, N], kJ/mol."""
        return self.atom_values(positions, energy, latents, forces)
