"""Latents of the potential, one vector per atom, as published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from annotated_types import Ge
from torch import Tensor
from typing_extensions import Doc

from uqbias.errors import UqbiasError
from uqbias.molecule.atoms import Selection, select_again, select_atoms, word_of
from uqbias.molecule.topology import Topology
from uqbias.uncertainty.features.base import Features


class Latents(Features):
    """The potential's last hidden layer, per atom.

    Parameters
    ----------
    n_latents : latent features per atom, F.
    atoms : indices of the atoms that count.
    n_atoms : atoms of the molecule, N.
    selection : the word by which the atoms were chosen, which chooses those of other systems.
    member : members have unrelated latent spaces.
    """

    kind = "latents"
    per_atom: ClassVar[bool] = True
    index: Tensor

    def __init__(
        self,
        n_latents: int,
        atoms: Sequence[int],
        n_atoms: int,
        selection: Selection = None,
        *,
        member: Annotated[int, Ge(0), Doc("committee member whose latents are used")] = 0,
    ) -> None:
        super().__init__()
        if n_latents < 1:
            raise UqbiasError(
                f"the potential has {n_latents} latents", "choose the features torsions or pair_distances"
            )
        self.dim = self.n_latents = n_latents
        self.atoms = tuple(atoms)
        self.n_atoms = n_atoms
        self.selection = selection
        self.member = member
        self.requires_latents = True
        self.labelled = False
        self.register_buffer("index", torch.tensor(self.atoms, dtype=torch.int64), persistent=False)

    @classmethod
    def build(
        cls,
        topology: Topology,
        n_latents: int,
        *,
        atoms: Annotated[
            Literal["all", "heavy"] | Sequence[int | str], Doc("all, heavy, or a list of indices and atom names")
        ] = "all",
        **options: Any,
    ) -> Latents:
        """Choose the atoms of a molecule."""
        return cls(n_latents, select_atoms(topology, atoms), len(topology.numbers), word_of(atoms), **options)

    def with_topology(self, topology: Topology) -> Self:
        """The latents of another system's atoms."""
        atoms = select_again(topology, self.selection, len(self.atoms) == self.n_atoms, "latents")
        return type(self)(self.n_latents, atoms, len(topology), self.selection, member=self.member)

    def forward(self, positions: Tensor, latents: Tensor) -> Tensor:
        """Latents of one member, [W, A, F]."""
        chosen = latents[self.member]
        return chosen if len(self.atoms) == self.n_atoms else chosen.index_select(1, self.index)
