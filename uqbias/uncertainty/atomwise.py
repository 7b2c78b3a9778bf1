"""Uncertainties that are aggregated from one value per atom."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uqbias.molecule.topology import Topology
from uqbias.uncertainty.aggregation import Aggregation
from uqbias.uncertainty.base import Sample, Uncertainty
from uqbias.uncertainty.features.base import Features


class AtomwiseUncertainty(Uncertainty):
    """Aggregation of `atom_values` to u; a kind says only what an atom's value is.

    Parameters
    ----------
    aggregation : arguments of `Aggregation` (its ``options``); None where `atom_values` gives one value per walker.
    atoms : indices of the A atoms that have a value, in the order of the atom axis.
    n_atoms : atoms of the molecule, N.
    features : as in `Uncertainty`.
    """

    scatter: Tensor

    def __init__(
        self,
        aggregation: Mapping[str, Any] | None,
        atoms: Sequence[int],
        n_atoms: int,
        features: Features | None = None,
    ) -> None:
        super().__init__(features)
        self.n_atoms = n_atoms
        self.aggregation = None if aggregation is None else Aggregation(**aggregation)
        scatter = torch.zeros(len(atoms), n_atoms)
        scatter[range(len(atoms)), list(atoms)] = 1.0
        self.register_buffer("scatter", scatter, persistent=False)

    def _over(self, topology: Topology, atoms: Sequence[int]) -> dict[str, Any]:
        """Part of `_placed`: the aggregation over the ``atoms`` that have a value, and the number of atoms."""
        over = None if self.aggregation is None else self.aggregation.placed(topology, atoms)
        return {"aggregation": over, "n_atoms": len(topology)}

    @property
    def labelled(self) -> bool:
        """Whether u tells like atoms apart, through its features or its aggregation."""
        return super().labelled or (self.aggregation is not None and self.aggregation.labelled)

    @abstractmethod
    def atom_values(self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None) -> Tensor:
        """Value of each atom, [W, A]; [W] where there is no aggregation. Arguments as in `Uncertainty.forward`."""

    def fit(
        self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None, *, seed: int
    ) -> None:
        """Fit to one system; see `Uncertainty.fit`."""
        self._fit([Sample(self, positions, energy, latents, forces)], seed)

    def fit_systems(self, samples: Sequence[Sample], *, seed: int) -> None:
        """Fit to several systems; see `Uncertainty.fit_systems`."""
        if type(self).fit is not AtomwiseUncertainty.fit:  # what a kind of somebody else's does is of one system
            return super().fit_systems(samples, seed=seed)
        return self._fit(samples, seed)

    def _fit(self, samples: Sequence[Sample], seed: int) -> None:
        """Check the committee, and scale the aggregation: all that there is to fit for many kinds."""
        self.check_members(len(samples[0].energy), most=False)
        self._fit_aggregation(samples)

    def forward(self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None) -> Tensor:
        """Return u [W], the aggregated values."""
        values = self.atom_values(positions, energy, latents, forces)
        return values if self.aggregation is None else cast("Tensor", self.aggregation(values))

    def per_atom(
        self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None
    ) -> Tensor | None:
        """Value of each atom [W, N], 0 for atoms left out; None if there is one value per walker only."""
        if self.aggregation is None:
            return None
        return self.atom_values(positions, energy, latents, forces) @ self.scatter

    def fit_aggregation(self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None) -> None:
        """Scale a smooth maximum to the spread of the values over the training atoms; call it last in `fit`."""
        self._fit_aggregation([Sample(self, positions, energy, latents, forces)])

    def _fit_aggregation(self, samples: Sequence[Sample]) -> None:
        if self.aggregation is not None:
            self.aggregation.fit(in_one(samples, type(self).atom_values))


def in_one(samples: Sequence[Sample], function: Callable[..., Tensor]) -> NDArray[np.float64]:
    """`Sample.values` of several systems in one array, flat if there are several."""
    values = [sample.values(function) for sample in samples]
    return values[0] if len(values) == 1 else np.concatenate([each.ravel() for each in values])
