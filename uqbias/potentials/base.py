"""The contract of a potential."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from annotated_types import MinLen
from torch import Tensor
from typing_extensions import Doc

from uqbias.molecule.seen import Memory
from uqbias.options import Count
from uqbias.registry import Part

#: Options that potentials with a committee and a network have in common.
Members = Annotated[Count | None, Doc("committee size; null: what driver and judge need, 1 without a committee")]
Hidden = Annotated[Sequence[Count], MinLen(1), Doc("widths of the hidden layers; the last is the number of latents")]


class Potential(Part, Memory, torch.nn.Module, ABC):
    """A potential for one molecule, with committee members and walkers as leading axes.

    Everything that training changes is a parameter or a buffer, so that a compiled graph takes it as input.
    ``forward`` holds no ``detach``, no ``item`` and no data-dependent branch: it is flattened to one graph.

    Attributes
    ----------
    kind : name in the registry and in the model file.
    invariant : whether the energy stays when all atoms are moved or turned together; False in a field that is fixed in
        space.
    numbers : atomic numbers of the molecule, N of them, fixed.
    n_members : committee size M.
    n_latents : latent features per atom, F.
    seen : what it was trained on, see `Memory`.
    energy_shift : [] kJ/mol, zero of the energies, a buffer. It is added where an energy is reported, outside this
        module: a total energy of −10⁶ kJ/mol in single precision would drown what differs between members.
    """

    kind: str
    invariant: ClassVar[bool] = True
    numbers: tuple[int, ...]
    n_members: int
    n_latents: int
    energy_shift: Tensor

    @abstractmethod
    def standardise(self, positions: Tensor, energies: Tensor, forces: Tensor) -> None:
        """Set the scales of inputs and outputs from training data, before the first training.

        Parameters
        ----------
        positions : [n, N, 3] nm.
        energies : [n] kJ/mol.
        forces : [n, N, 3] kJ/mol/nm.
        """

    @abstractmethod
    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Energies and latents.

        Parameters
        ----------
        positions : [W, N, 3] nm, or [M, W, N, 3] where each member is to see its own copy.
        box : [3, 3] nm, rows are lattice vectors; None for a molecule in vacuum.

        Returns
        -------
        energy : [M, W] kJ/mol, from ``energy_shift``.
        latents : [M, W, N, F]; invariant under translation, rotation and permutation of like atoms.
        """
