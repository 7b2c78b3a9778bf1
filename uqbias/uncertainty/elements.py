"""Atoms taken apart by element, for statistics of each element on its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from uqbias.errors import UqbiasError
from uqbias.molecule.topology import Topology
from uqbias.uncertainty.features.base import Features


class ElementGroups(nn.Module):
    """An atom axis split by element, and joined again; one group where ``elements`` is None.

    Parameters
    ----------
    elements : atomic number of each of the A atoms; None to keep all together.

    Attributes
    ----------
    labels : atomic number of each group, ascending; None for the one group of all.
    """

    order: Tensor
    inverse_order: Tensor

    def __init__(self, elements: Sequence[int] | None) -> None:
        super().__init__()
        self.labels: list[int | None] = [None]
        self.counts: list[int] = []
        if elements is None:
            return
        numbers = torch.tensor(list(elements))
        labels, counts = torch.unique(numbers, return_counts=True)
        self.labels, self.counts = labels.tolist(), counts.tolist()
        order = torch.argsort(numbers, stable=True)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("inverse_order", torch.argsort(order), persistent=False)

    def __len__(self) -> int:
        return len(self.labels)

    def split(self, x: Tensor) -> Sequence[Tensor]:
        """[..., A, D] to one [..., A_e, D] for each group."""
        if not self.counts:
            return [x]
        groups: Sequence[Tensor] = torch.split(x.index_select(-2, self.order), self.counts, dim=-2)
        return groups

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """One [..., A_e] for each group to [..., A]."""
        if not self.counts:
            return parts[0]
        return torch.cat(list(parts), dim=-1).index_select(-1, self.inverse_order)

    def name(self, group: int) -> str:
        """Name of a group, for messages."""
        from ase.data import chemical_symbols

        label = self.labels[group]
        return "the atoms" if label is None else f"the {chemical_symbols[label]} atoms"


def elements_of(topology: Topology, features: Features) -> list[int]:
    """Atomic numbers of the atoms of per-atom features.

    Raises
    ------
    UqbiasError
        If the features are of whole geometries.
    """
    if not features.per_atom:
        raise UqbiasError(f"per_element with features '{features.kind}', which are not per atom", "set it to false")
    return [int(topology.numbers[atom]) for atom in features.atoms]
