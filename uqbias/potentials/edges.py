"""The base of potentials that see pairs of atoms: models of others, which are used as they are."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from io import StringIO
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from uqbias.errors import UqbiasError
from uqbias.molecule.geometry import Geometry, nearest_image
from uqbias.potentials.base import Potential
from uqbias.units import ANGSTROM, EV

#: Atoms up to which all pairs in vacuum are fewer than the slots of a table.
FEW = 40


class Neighbours(NamedTuple):
    """Neighbours of the atoms of walkers, K slots an atom; M' is M where each member has its own positions, else 1."""

    #: [M', W, N, K] int64; the atom itself in an empty slot.
    slots: Tensor
    #: [M', W, N, K, 3] Å, from the atom to the neighbour; twice the cutoff long in an empty slot.
    vectors: Tensor

    def edges(self) -> tuple[Tensor, Tensor, Tensor]:
        """Atoms i [E] and their neighbours j [E], counted through all walkers, and the vectors [E, 3] Å from i to j."""
        n = self.slots.shape[2]
        walkers = self.slots.flatten(0, 1)
        first = n * torch.arange(len(walkers), device=walkers.device).view(-1, 1, 1)
        atoms = torch.arange(n, device=walkers.device).view(1, -1, 1).expand_as(walkers)
        return (first + atoms).flatten(), (first + walkers).flatten(), self.vectors.reshape(-1, 3)


class EdgePotential(Potential):
    """A potential from the vectors between neighbours, whose weights come from elsewhere and stay as they are.

    A subclass gives energies and latents of atoms, `atoms`. A neighbour at the cutoff or beyond must add nothing, to no
    digit: empty slots are such neighbours.

    Parameters
    ----------
    numbers : atomic numbers of the N atoms.
    elements : atomic numbers of the elements that the model knows.
    cutoff : nm.
    n_members, n_latents : sizes M and F.
    element_energies : kJ/mol that an atom of each element adds, which `atoms` leaves out: they are added in double
        precision, so that single precision serves what differs between geometries.

    Attributes
    ----------
    has_weights : whether its constructor finds the weights; else a model file must hold them, and no campaign can begin
        with the kind alone.
    origin : facts for the provenance of a model file, such as the licence.
    """

    periodic = True
    needs = "either"
    #: A list takes a hundredth of the time of an evaluation, and every slot of it costs.
    skin = 0.02
    frozen = True
    has_weights: ClassVar[bool] = True
    cutoff: float
    kinds: Tensor
    atom_zero: Tensor

    def __init__(
        self,
        numbers: Sequence[int],
        elements: Sequence[int],
        cutoff: float,
        n_members: int,
        n_latents: int,
        element_energies: Mapping[int, float],
    ) -> None:
        super().__init__()
        self.elements = tuple(sorted(int(element) for element in elements))
        self.origin: dict[str, str] = {}
        self.cutoff, self.n_members, self.n_latents = cutoff, n_members, n_latents
        self.element_energies = {element: element_energies.get(element, 0.0) for element in self.elements}
        self._place(numbers)
        self.register_buffer("atom_zero", torch.zeros(len(self.elements)))
        self.register_buffer("energy_shift", torch.tensor(self.element_sum(self.numbers), dtype=torch.float64))

    def _place(self, numbers: Sequence[int]) -> None:
        super()._place(numbers)
        kinds = torch.tensor([self.elements.index(number) for number in self.numbers])
        self.register_buffer("kinds", kinds, persistent=False)

    def uses_table(self, *, box: bool) -> bool:
        return box or not 1 < len(self.numbers) <= FEW

    @abstractmethod
    def atoms(self, near: Neighbours) -> tuple[Tensor, Tensor]:
        """Energies [M, W, N] eV, without those of the elements, and invariant latents [M, W, N, F] of the atoms.

        ``kinds`` [N] says which of the ``elements`` each atom is.
        """

    def forward(self, positions: Tensor, geometry: Geometry | None = None) -> tuple[Tensor, Tensor]:
        energies, latents = self.atoms(self._neighbours(positions, geometry))
        energies = energies - self.atom_zero[self.kinds]
        if geometry is not None and geometry.present is not None:
            energies = energies * geometry.present
        return energies.sum(-1) * EV, latents

    @torch.no_grad()
    def centre(self, positions: Tensor, geometry: Geometry | None = None) -> None:
        """Count energies of atoms from those in some frames: what is left keeps its digits in single precision."""
        energies = self.atoms(self._neighbours(positions, geometry))[0].mean((0, 1)) - self.atom_zero[self.kinds]
        # Multiples of 1/64 eV, which are exact in either precision.
        parts = [energies[self.kinds == kind] for kind in range(len(self.elements))]
        moves = torch.stack([torch.round(64 * part.mean()) / 64 if len(part) else part.sum() for part in parts])
        self._buffers["atom_zero"] = self.atom_zero + moves
        before = self.element_sum(self.numbers)
        known = self.element_energies
        self.element_energies = {e: known[e] + EV * float(move) for e, move in zip(self.elements, moves, strict=True)}
        self._buffers["energy_shift"] = self.energy_shift + (self.element_sum(self.numbers) - before)

    def standardise(
        self, positions: Tensor, energies: Tensor, forces: Tensor, geometry: Geometry | None = None
    ) -> None:
        raise UqbiasError(f"training of potential '{self.kind}', which is frozen", "use it as it is")

    def _neighbours(self, positions: Tensor, geometry: Geometry | None) -> Neighbours:
        x = positions if positions.dim() == 4 else positions.unsqueeze(0)
        members, walkers, n = x.shape[:3]
        table = None if geometry is None else geometry.neighbours
        atoms = torch.arange(n, device=x.device).unsqueeze(1)
        if table is None:
            others = torch.arange(n - 1, device=x.device)
            table = others + (others >= atoms).long()
        empty = table == n
        index = torch.where(empty, atoms, table).expand(members, walkers, n, -1)
        there = x.gather(2, index.flatten(2).unsqueeze(-1).expand(-1, -1, -1, 3)).view(*index.shape, 3)
        vectors = there - x.unsqueeze(3)
        if geometry is not None and geometry.box is not None:
            if geometry.neighbours is None:
                vectors = nearest_image(vectors, geometry.box, self.cutoff)
            elif geometry.shifts is not None:
                vectors = vectors + geometry.shifts @ geometry.box.unsqueeze(-3)
        away = torch.zeros_like(vectors[:1, :1, :1, :1])
        away[..., 0] = 2 * self.cutoff
        return Neighbours(index, torch.where(empty.unsqueeze(-1), away, vectors) / ANGSTROM)


@contextmanager
def optional_package(name: str, extra: str) -> Iterator[Any]:
    """A package that is not a dependency, imported and used without its warnings.

    Raises
    ------
    UqbiasError
        If it is not there, with the extra of uqbias that installs it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with redirect_stdout(StringIO()):  # a line about what else is not installed would end up in --json
                package = import_module(name)
        except ImportError as error:
            raise UqbiasError(f"{name} cannot be imported ({error})", f"pip install 'uqbias[{extra}]'") from error
        yield package
