"""Small networks on the latents that predict an error, trained together with the potential."""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from typing_extensions import Doc

from uqbias.molecule.topology import Topology
from uqbias.options import Count, Positive
from uqbias.uncertainty.aggregation import Aggregation, OverAtoms
from uqbias.uncertainty.atomwise import AtomwiseUncertainty
from uqbias.uncertainty.base import energy_unit, set_buffers
from uqbias.uncertainty.elements import known_elements


def over_atoms(values: Tensor, present: Tensor | None) -> Tensor:
    """Mean of [..., N, K] over the atoms that are ``present`` [..., N], or over all."""
    if present is None:
        return values.mean(-2)
    return (values * present.unsqueeze(-1)).sum(-2) / present.sum(-1, keepdim=True)


class ElementNetwork(nn.Module):
    """A network per element: latents [..., W, N, F] to outputs [..., W, N, K], one hidden layer or none.

    Parameters
    ----------
    numbers : atomic numbers of the N atoms.
    n_latents : latent features per atom, F.
    hidden : width of the hidden layer; 0 for a linear map.
    n_outputs : outputs per atom, K.
    seed : seed of the initial weights.
    known : all elements that have a network, where other systems have more of them.
    """

    species: Tensor

    def __init__(
        self,
        numbers: Sequence[int],
        n_latents: int,
        hidden: int,
        n_outputs: int,
        seed: int = 0,
        known: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        elements = known_elements(numbers, known)
        species = torch.tensor([elements.index(number) for number in numbers])
        self.register_buffer("species", species, persistent=False)
        draw = torch.Generator().manual_seed(seed)
        widths = (n_latents, hidden, n_outputs) if hidden else (n_latents, n_outputs)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(len(elements), a, b, generator=draw) / math.sqrt(a))
            for a, b in itertools.pairwise(widths)
        )
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(len(elements), 1, width)) for width in widths[1:])

    def forward(self, latents: Tensor) -> Tensor:
        """Outputs of every atom."""
        # Atoms lead, so that each is multiplied by the weights of its own element in one batched product.
        x = latents.transpose(-3, -2)
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.matmul(x, weight.index_select(0, self.species)) + bias.index_select(0, self.species)
            x = x if layer == last else silu(x)
        return x.transpose(-3, -2)


class TrainedKind(AtomwiseUncertainty):
    """A kind with a network on the latents that is trained with the potential, by `Uncertainty.loss`.

    Parameters
    ----------
    numbers : atomic numbers.
    n_latents : latent features per atom, F.
    aggregation : arguments of `Aggregation`, or None.
    n_atoms : length of ``numbers``, as model files state it for every kind that has values per atom.
    known : all elements that have weights, where other systems have more of them.
    loss_weight : weight of the kind's loss beside that of the potential.
    """

    statistic: ClassVar[str] = "deviation"
    most_members: ClassVar[int | None] = 1
    force_unit: Tensor

    def __init__(
        self,
        numbers: Sequence[int],
        n_latents: int,
        aggregation: Mapping[str, Any] | None = None,
        n_atoms: int | None = None,
        known: Sequence[int] | None = None,
        *,
        loss_weight: Annotated[Positive, Doc("weight of its likelihood beside the potential's loss")] = 0.1,
    ) -> None:
        super().__init__(aggregation, range(len(numbers)), len(numbers))
        self.numbers = tuple(numbers)
        self.known = None if known is None else tuple(known)
        self.n_latents = n_latents
        self.loss_weight = loss_weight
        self.register_buffer("force_unit", torch.ones(()))

    def _placed(self, topology: Topology) -> dict[str, Any]:
        known, numbers = known_elements(self.numbers, self.known), topology.numbers
        return {"numbers": numbers, "known": known, **self._over(topology, range(len(numbers)))}

    @property
    def requires_latents(self) -> bool:
        """Whether the potential's latents are used."""
        return True

    def set_force_unit(self, force: float) -> None:
        """Take the unit of the errors that `loss` is given, kJ/mol/nm."""
        set_buffers(self, force_unit=force)

    @property
    def energy_unit(self) -> Tensor:
        """Unit of the energy errors that `loss` is given, [] kJ/mol."""
        return self.force_unit * energy_unit(self.n_atoms)


class ErrorHead(TrainedKind):
    """A predicted distribution of the error of each atom's force components, or of the energy.

    A kind says how many numbers the network gives, what loss they have, and what standard deviation they mean.

    Parameters
    ----------
    quantity : ``forces`` has a value per atom; for ``energy`` outputs are averaged over atoms first.
    options : those of `TrainedKind`, by name; no aggregation of ``energy``.
    """

    n_outputs: ClassVar[int]

    def __init__(
        self,
        *,
        quantity: Annotated[
            Literal["forces", "energy"], Doc("whose error: forces (kJ/mol/nm) or energy (kJ/mol)")
        ] = "forces",
        hidden: Annotated[Count, Doc("width of that network's hidden layer")] = 16,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.quantity = quantity
        self.hidden = hidden
        self.unit = "kJ/mol" if quantity == "energy" else "kJ/mol/nm"
        self.network = ElementNetwork(self.numbers, self.n_latents, hidden, self.n_outputs, known=self.known)

    @classmethod
    def build(cls, topology: Topology, n_latents: int, *, aggregation: OverAtoms = None, **options: Any) -> ErrorHead:
        """Take the atoms of a molecule, where the quantity is per atom."""
        atoms = None if options.get("quantity") == "energy" else range(len(topology.numbers))
        over_atoms = Aggregation.choose(topology, atoms, aggregation, "an energy, which is")
        return cls(numbers=topology.numbers, n_latents=n_latents, aggregation=over_atoms, **options)

    @abstractmethod
    def negative_log_likelihood(self, error: Tensor, outputs: Tensor) -> Tensor:
        """Loss of each error; ``outputs`` [..., K] broadcasts against ``error`` [..., 1] to [...]."""

    @abstractmethod
    def deviation(self, outputs: Tensor) -> Tensor:
        """Standard deviation of the error, [...], of outputs [..., K], in the unit of `loss`."""

    def loss(self, energy_error: Tensor, force_error: Tensor, latents: Tensor, present: Tensor | None = None) -> Tensor:
        """Weighted mean over the components of `negative_log_likelihood`; see `Uncertainty.loss`."""
        outputs = self.network(latents)
        if self.quantity == "energy":
            return self.loss_weight * self.negative_log_likelihood(energy_error, over_atoms(outputs, present)).mean()
        # The three components of an atom's force have one distribution, so that it does not turn with the molecule.
        likelihood = self.negative_log_likelihood(force_error, outputs.unsqueeze(-2))
        if present is not None:
            likelihood = over_atoms(likelihood, present)
        return self.loss_weight * likelihood.mean()

    def atom_values(self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None) -> Tensor:
        """Standard deviation of each atom's force components [W, N], kJ/mol/nm, or of the energy [W], kJ/mol."""
        outputs = self.network(latents[0])
        if self.quantity == "energy":
            return self.deviation(outputs.mean(-2)) * self.energy_unit
        return self.deviation(outputs) * self.force_unit
