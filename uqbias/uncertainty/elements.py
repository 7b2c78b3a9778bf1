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
from uqbias.uncertainty.base import Sample
from uqbias.uncertainty.features.base import Features


class ElementGroups(nn.Module):
    """An atom axis split by element, and joined again; one group where ``elements`` is None.

    Parameters
    ----------
    elements : atomic number of each of the A atoms; None to keep all together.
    known : atomic numbers of all groups, some of which may have no atom here; those of the atoms if None.

    Attributes
    ----------
    labels : atomic number of each group, ascending; None for the one group of all.

    Raises
    ------
    UqbiasError
        If an atom is of an element that is not known.
    """

    order: Tensor
    inverse_order: Tensor

    def __init__(self, elements: Sequence[int] | None, known: Sequence[int] | None = None) -> None:
        super().__init__()
        self.labels: list[int | None] = [None]
        self.counts: list[int] = []
        if elements is None:
            return
        numbers = torch.tensor(list(elements))
        labels = known_elements(elements, known)
        self.labels, self.counts = list(labels), [list(elements).count(label) for label in labels]
        order = torch.argsort(numbers, stable=True)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("inverse_order", torch.argsort(order), persistent=False)

    def __len__(self) -> int:
        return len(self.labels)

    def split(self, x: Tensor) -> list[tuple[int, Tensor]]:
        """[..., A, D] to the index and [..., A_e, D] of each group that has atoms."""
        if not self.counts:
            return [(0, x)]
        groups: Sequence[Tensor] = torch.split(x.index_select(-2, self.order), self.counts, dim=-2)
        return [(group, part) for group, part in enumerate(groups) if self.counts[group]]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """One [..., A_e] for each group that has atoms to [..., A]."""
        if not self.counts:
            return parts[0]
        return torch.cat(list(parts), dim=-1).index_select(-1, self.inverse_order)

    def name(self, group: int) -> str:
        """Name of a group, for messages."""
        from ase.data import chemical_symbols

        label = self.labels[group]
        return "the atoms" if label is None else f"the {chemical_symbols[label]} atoms"


def known_elements(numbers: Sequence[int], known: Sequence[int] | None) -> tuple[int, ...]:
    """The elements that something has weights or statistics for, ascending: ``known``, or those of its atoms.

    Raises
    ------
    UqbiasError
        If an atom is of another element.
    """
    there = {int(number) for number in numbers}
    elements = there if known is None else {int(number) for number in known}
    if strangers := sorted(there - elements):
        raise UqbiasError(
            f"atoms of element {strangers[0]}, where the uncertainty knows the elements {sorted(elements)}",
            "train a model of these elements",
        )
    return tuple(sorted(elements))


class ElementwiseUncertainty(AtomwiseUncertainty):
    """Statistics of features, of each element's atoms on their own or of all atoms together, aggregated to u.

    Parameters
    ----------
    features : per atom, or of whole geometries.
    aggregation : arguments of `Aggregation`; None for one value per geometry.
    elements : atomic number of each of the A atoms, for statistics of each element; None: all together.
    n_atoms : atoms of the molecule, N.
    known : all elements that have statistics, where other systems have more of them.
    """

    features: Features

    def __init__(
        self,
        features: Features,
        aggregation: Mapping[str, Any] | None = None,
        elements: Sequence[int] | None = None,
        n_atoms: int = 0,
        known: Sequence[int] | None = None,
    ) -> None:
        super().__init__(aggregation, features.atoms, n_atoms, features)
        self.elements = None if elements is None else tuple(elements)
        self.groups = ElementGroups(elements, known)
        self.known = None if known is None else tuple(known)

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

    def _placed(self, topology: Topology) -> dict[str, Any]:
        space = self.features.with_topology(topology)
        arguments = {"features": space, **self._over(topology, space.atoms)}
        if self.elements is None:
            return arguments
        return arguments | {"elements": [topology.numbers[atom] for atom in space.atoms], "known": self.groups.labels}

    def _features_of(self, samples: Sequence[Sample]) -> list[list[NDArray[np.float64]]]:
        """Features of each group's atoms, an [n, A_e, D] (or [n, D]) for each system.

        Raises
        ------
        UqbiasError
            If frames are too few, all the same or not finite, or none has an atom of an element.
        """
        if len(samples) == 1:
            values = [samples[0].part._training_features(samples[0].positions, samples[0].latents)]
        else:
            values = [sample.part._finite_features(sample.positions, sample.latents) for sample in samples]
        groups = []
        for group, label in enumerate(self.groups.labels):
            groups.append(
                [
                    each if label is None else each[:, np.array(sample.part.elements) == label]  # type: ignore[arg-type]
                    for sample, each in zip(samples, values, strict=True)
                ]
            )
            if not sum(each.size for each in groups[-1]):
                raise UqbiasError(
                    f"no training frame of the uncertainty '{self.kind}' has {self.groups.name(group)}",
                    "give frames of systems that have them",
                )
        return groups
