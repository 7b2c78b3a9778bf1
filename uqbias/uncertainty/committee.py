"""Disagreement of a committee of potentials."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import Doc

from uqbias.molecule.topology import Topology
from uqbias.uncertainty.aggregation import Aggregation, OverAtoms
from uqbias.uncertainty.atomwise import AtomwiseUncertainty

#: Added to standard deviations in quadrature, in kJ/mol or kJ/mol/nm, so that agreement is no kink.
FLOOR = {"energy": 1e-2, "forces": 1e-1}


class Committee(AtomwiseUncertainty):
    r"""Standard deviation over committee members (potential.n_members, 4 if null), of the energy or of the forces.

    .. math:: u_E = \sqrt{\mathrm{Var}_m E_m}, \qquad
              u_i = \sqrt{\tfrac13 \sum_{c \in xyz} \mathrm{Var}_m F_{ic}^{(m)}}

    with the unbiased variance; u_i is aggregated over atoms. All members are evaluated in one pass, and one backward
    gives all their forces. Query by committee: Seung, Opper and Sompolinsky, COLT 1992; force variance: Schran,
    Brezina and Marsalek, J. Chem. Phys. 153, 104105 (2020).

    Parameters
    ----------
    aggregation : arguments of `Aggregation`; None for ``energy``.
    n_atoms : atoms of the molecule, N.
    quantity : ``energy`` has one value a structure, ``forces`` one per atom, and as a driver needs second derivatives
        of the potential.
    bootstrap : without it members differ by their initial weights and the order of the frames.
    """

    kind = "committee"
    statistic: ClassVar[str] = "deviation"
    default_members: ClassVar[int] = 4
    fewest_members: ClassVar[int] = 2

    def __init__(
        self,
        aggregation: Mapping[str, Any] | None = None,
        n_atoms: int = 0,
        *,
        quantity: Annotated[
            Literal["energy", "forces"],
            Doc("energy (kJ/mol) or forces (kJ/mol/nm; a better judge, several times the cost)"),
        ] = "energy",
        bootstrap: Annotated[bool, Doc("train each member on its own resample of the frames")] = False,
    ) -> None:
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
        aggregation: OverAtoms = None,
        **options: Any,
    ) -> Committee:
        """Take the atoms of a molecule, where the quantity is per atom."""
        n_atoms = len(topology.numbers)
        atoms = range(n_atoms) if options.get("quantity") == "forces" else None
        over_atoms = Aggregation.choose(topology, atoms, aggregation, "a committee's energy, which is")
        return cls(over_atoms, n_atoms, **options)

    def _placed(self, topology: Topology) -> dict[str, Any]:
        return self._over(topology, range(len(topology)))

    @property
    def requires_forces(self) -> bool:
        """Whether the members' forces are used."""
        return self.quantity == "forces"

    def atom_values(self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None) -> Tensor:
        """Standard deviation of the energy [W], kJ/mol, or of each atom's forces [W, N], kJ/mol/nm."""
        floor = FLOOR[self.quantity] ** 2
        if self.quantity == "energy":
            return (torch.var(energy, dim=0) + floor).sqrt()
        assert forces is not None
        return (torch.var(forces, dim=0).mean(-1) + floor).sqrt()
