"""Atoms taken apart by element, and the uncertainties that are statistics of each element on its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from uqbias.errors import UqbiasError
from uqbias.molecule.topology import Topology
from uqbias.uncertainty.aggregation import Aggregation, Spec
from uqbias.uncertainty.atomwise import AtomwiseUncertainty
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


class ElementwiseUncertainty(AtomwiseUncertainty):
    """Statistics of features, of each element's atoms on their own or of all atoms together, aggregated to u.

    Parameters
    ----------
    features : per atom, or of whole geometries.
    aggregation : arguments of `Aggregation`; None for one value per geometry.
    elements : atomic number of each of the A atoms, for statistics of each element; None: all together.
    n_atoms : atoms of the molecule, N.
    """

    features: Features

    def __init__(
        self,
        features: Features,
        aggregation: Mapping[str, Any] | None = None,
        elements: Sequence[int] | None = None,
        n_atoms: int = 0,
    ) -> None:
        super().__init__(aggregation, features.atoms, n_atoms, features)
        self.elements = None if elements is None else tuple(elements)
        self.groups = ElementGroups(elements)

    @classmethod
    def _in_space(
        cls, space: Features, topology: Topology, aggregation: Spec, per_element: bool, whole: str = "", **options: Any
    ) -> Self:
        """Make the kind for a molecule.

        Parameters
        ----------
        space : feature space of the molecule.
        whole : what has one value per geometry, in words, where that is not the features themselves.

        Raises
        ------
        UqbiasError
            If an aggregation or statistics of each element are wanted where there are no values per atom.
        """
        if per_element and not space.per_atom:
            raise UqbiasError(f"per_element with features '{space.kind}', which are not per atom", "set it to false")
        whole = whole or ("" if space.per_atom else f"features '{space.kind}', which are")
        over_atoms = Aggregation.choose(topology, None if whole else space.atoms, aggregation, whole)
        elements = [int(topology.numbers[atom]) for atom in space.atoms] if per_element else None
        return cls(space, aggregation=over_atoms, elements=elements, n_atoms=len(topology.numbers), **options)

    def _of_groups(self, samples: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        """Samples [n, A, D] (or [n, D]) of each group, [n, A_e, D]."""
        numbers = np.array(self.elements)
        return [samples if label is None else samples[:, numbers == label] for label in self.groups.labels]
