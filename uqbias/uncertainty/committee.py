"""Disagreement of a committee of potentials."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from uqbias.errors import UqbiasError, did_you_mean
from uqbias.molecule.topology import Topology
from uqbias.uncertainty.aggregation import Aggregation
from uqbias.uncertainty.atomwise import AtomwiseUncertainty

QUANTITIES = ("energy", "forces")
#: Added to standard deviations in quadrature, in kJ/mol or kJ/mol/nm, so that agreement is no kink.
FLOOR = {"energy": 1e-2, "forces": 1e-1}


class Committee(AtomwiseUncertainty):
    r"""Standard deviation over the members of the energy, or of the forces.

    .. math:: u_E = \sqrt{\mathrm{Var}_m E_m}, \qquad
              u_i = \sqrt{\tfrac13 \sum_{c \in xyz} \mathrm{Var}_m F_{ic}^{(m)}}

    with the unbiased variance; u_i is aggregated over atoms. All members are evaluated in one pass, and one backward
    gives all their forces. Query by committee: Seung, Opper and Sompolinsky, COLT 1992; force variance: Schran,
    Brezina and Marsalek, J. Chem. Phys. 153, 104105 (2020).

    Parameters
    ----------
    quantity : ``energy`` (kJ/mol, one value a structure) or ``forces`` (kJ/mol/nm per component, a value per atom; as a
        bias it needs second derivatives of the potential).
    bootstrap : train each member on its own resample of the frames; otherwise members differ by their initial weights
        and the order of the frames.
    aggregation : arguments of `Aggregation`; None for ``energy``.
    n_atoms : N.
    """

    kind = "committee"
    statistic: ClassVar[str] = "deviation"
    default_members: ClassVar[int] = 4
    fewest_members: ClassVar[int] = 2

    def __init__(
        self,
        quantity: str = "energy",
        bootstrap: bool = False,
        aggregation: Mapping[str, Any] | None = None,
        n_atoms: int = 0,
    ) -> None:
        if quantity not in QUANTITIES:
            raise UqbiasError(f"unknown quantity '{quantity}' of a committee", did_you_mean(quantity, QUANTITIES))
        super().__init__(aggregation, range(n_atoms), n_atoms)
        self.quantity = quantity
        self.bootstrap = bootstrap
        self.unit = "kJ/mol" if quantity == "energy" else "kJ/mol/nm"

    @classmethod
    def build(
        cls,
        topology: Topology,
        n_latents: int,
        *,
        quantity: str = "energy",
        bootstrap: bool = False,
        aggregation: str | Mapping[str, Any] | None = None,
    ) -> Committee:
        """Options of a campaign file; ``aggregation`` of ``forces`` as in `Aggregation.build` (``mean``)."""
        n_atoms = len(topology.numbers)
        atoms = None if quantity == "energy" else range(n_atoms)
        over_atoms = Aggregation.choose(topology, atoms, aggregation, "a committee's energy, which is")
        return cls(quantity, bootstrap, over_atoms, n_atoms)

    def options(self) -> dict[str, Any]:
        """Constructor arguments."""
        return super().options() | {"quantity": self.quantity, "bootstrap": self.bootstrap}

    @property
    def requires_forces(self) -> bool:
        """Whether the members' forces are used."""
        return self.quantity == "forces"

    def fit(
        self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None, *, seed: int
    ) -> None:
        """Check the committee, and scale the aggregation; see `Uncertainty.fit`."""
        self.check_members(len(energy))
        self.fit_aggregation(positions, energy, latents, forces)

    def atom_values(self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None) -> Tensor:
        """Standard deviation of the energy [W], kJ/mol, or of each atom's forces [W, N], kJ/mol/nm."""
        floor = FLOOR[self.quantity] ** 2
        if self.quantity == "energy":
            return (torch.var(energy, dim=0) + floor).sqrt()
        assert forces is not None
        return (torch.var(forces, dim=0).mean(-1) + floor).sqrt()
