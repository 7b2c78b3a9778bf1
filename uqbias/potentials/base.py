"""The contract of a potential."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal, Self

import torch
from annotated_types import MinLen
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from typing_extensions import Doc

from uqbias.errors import UqbiasError
from uqbias.molecule.geometry import Geometry, heights
from uqbias.molecule.seen import Memory
from uqbias.options import Count
from uqbias.registry import Part

#: Atoms up to which all pairs take no longer than a table of neighbours.
DENSE = 100
#: Options that potentials with a committee and a network have in common.
Members = Annotated[Count | None, Doc("committee size; null: what driver and judge need, 1 without a committee")]
Hidden = Annotated[Sequence[Count], MinLen(1), Doc("widths of the hidden layers; the last is the number of latents")]


class Potential(Part, Memory, torch.nn.Module, ABC):
    """A potential for the atoms of one system, with committee members and walkers as leading axes.

    Everything that training changes is a parameter or a buffer, so that a compiled graph takes it as input.
    ``forward`` holds no ``detach``, no ``item`` and no data-dependent branch: it is flattened to one graph.

    Attributes
    ----------
    kind : name in the registry and in the model file.
    invariant : whether the energy stays when all atoms are moved or turned together; False in a field that is fixed in
        space.
    cutoff : nm, distance beyond which atoms do not feel each other; None if there is no such distance.
    needs : what it reads of the neighbours: ``dense`` all pairs of atoms, so that it takes no table; ``table`` the
        table of `Geometry`; ``edges`` the pairs of that table as one list; ``either`` all pairs without a table.
    skin : nm, how much further than the cutoff tables of neighbours look in MD, so that they last.
    periodic : whether it takes a box.
    frozen : whether its weights stay as they are, so that it cannot be trained.
    elements : atomic numbers of the elements that it has weights for, sorted; given with the shape of a table.
    numbers : atomic numbers of the N atoms, see `with_numbers`.
    n_members : committee size M.
    n_latents : latent features per atom, F.
    element_energies : kJ/mol that an atom of each element adds to ``energy_shift``, where that is known.
    seen : what it was trained on, see `Memory`.
    energy_shift : [] kJ/mol, zero of the energies, a float64 buffer; added where an energy is reported, outside this
        module: a total energy of −10⁶ kJ/mol in single precision would drown what differs between members.
    """

    kind: str
    invariant: ClassVar[bool] = True
    cutoff: float | None = None
    needs: Literal["dense", "table", "edges", "either"] = "dense"
    skin: ClassVar[float] = 0.1
    periodic: bool = False
    frozen: bool = False
    elements: tuple[int, ...]
    numbers: tuple[int, ...]
    n_members: int
    n_latents: int
    element_energies: Mapping[int, float] = MappingProxyType({})
    energy_shift: Tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert all tensors; the zero of the energies stays in double precision, as exact as it was."""
        shift = self._buffers.get("energy_shift")
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call] # of torch
        if shift is not None and shift.dtype == torch.float64:
            self._buffers["energy_shift"] = shift.to(self.energy_shift.device)
        return self

    def __call__(self, positions: Tensor, geometry: Geometry | None = None) -> tuple[Tensor, Tensor]:
        """`forward`, after `check_geometry`."""
        self.check_geometry(geometry)
        outputs: tuple[Tensor, Tensor] = super().__call__(positions, geometry)
        return outputs

    def check_geometry(self, geometry: Geometry | None) -> None:
        """Refuse a geometry that ``needs`` and ``periodic`` exclude; its values are not looked at.

        Raises
        ------
        UqbiasError
            For a box that the potential would ignore, a table that it does not read, or a table that is missing.
        """
        name = f"potential '{self.kind}'"
        box, neighbours = (None, None) if geometry is None else (geometry.box, geometry.neighbours)
        if box is not None and not self.periodic:
            raise UqbiasError(f"{name} with a periodic box", "leave the box out, or choose another potential")
        if box is not None and box.dim() not in {3, 4}:
            raise UqbiasError(f"{name} with a box of {box.dim()} dimension(s)", "give [W, 3, 3], one box a walker")
        if neighbours is not None and self.needs == "dense":
            raise UqbiasError(f"{name} with a table of neighbours, but it takes all pairs", "leave the table out")
        if neighbours is None and self.needs in {"table", "edges"}:
            raise UqbiasError(f"{name} without a table of neighbours", "give a Geometry with neighbours")
        # A graph that is traced has no values yet.
        if box is not None and neighbours is None and self.cutoff is not None and not _is_traced():
            lowest = float(heights(box.detach()).min())
            if not lowest > 2 * self.cutoff:
                raise UqbiasError(
                    f"{name} with all pairs of atoms, of which it sees the nearest image alone, in a cell "
                    f"{lowest:.3g} nm high, not over twice the cutoff of {self.cutoff:g} nm",
                    "give a Geometry of a NeighbourList",
                )
        if geometry is not None and geometry.present is not None and neighbours is None:
            raise UqbiasError(f"{name} with empty places and without a table", "give a Geometry of a NeighbourList")

    def uses_table(self, *, box: bool) -> bool:
        """Whether this system is best evaluated with a table of neighbours: one with a cell, or with many atoms."""
        return self.needs in {"table", "edges"} or (self.needs == "either" and (box or len(self.numbers) > DENSE))

    def with_numbers(self, numbers: Sequence[int]) -> Self:
        """A twin for other atoms of the same elements; both have the same weights, whichever is trained.

        Raises
        ------
        UqbiasError
            If it knows no such element, or is of one list of atoms.
        """
        twin = copy.copy(self)
        for name in ("_parameters", "_buffers", "_modules"):
            vars(twin)[name] = dict(vars(self)[name])
        twin._place(numbers)
        shift = self.energy_shift
        twin._buffers["energy_shift"] = shift + (self.element_sum(twin.numbers) - self.element_sum(self.numbers))
        return twin

    def element_sum(self, numbers: Sequence[int]) -> float:
        """Energies of the elements of atoms, added up, kJ/mol."""
        return math.fsum(self.element_energies.get(number, 0.0) for number in numbers)

    def _place(self, numbers: Sequence[int]) -> None:
        """Take ``numbers`` for the atoms; a potential of elements sets all that follows from their order here."""
        self.numbers = tuple(int(number) for number in numbers)
        if strangers := sorted(set(self.numbers) - set(self.elements)):
            raise UqbiasError(
                f"potential '{self.kind}' of the elements {list(self.elements)}, atoms of element {strangers[0]}",
                "train a potential of these elements",
            )

    @abstractmethod
    def standardise(
        self, positions: Tensor, energies: Tensor, forces: Tensor, geometry: Geometry | None = None
    ) -> None:
        """Set the scales of inputs and outputs from training data, before the first training.

        Parameters
        ----------
        positions : [n, N, 3] nm.
        energies : [n] kJ/mol, float64.
        forces : [n, N, 3] kJ/mol/nm.
        geometry : cells and neighbours of the n frames.
        """

    @abstractmethod
    def forward(self, positions: Tensor, geometry: Geometry | None = None) -> tuple[Tensor, Tensor]:
        """Energies and latents of W walkers; called through `__call__`, which has checked the geometry.

        Parameters
        ----------
        positions : [W, N, 3] nm, or [M, W, N, 3] where each member is to see its own copy.
        geometry : box [W, 3, 3] nm and neighbours [W, N, K] of the walkers, or those of each member where it has its
            own walkers, [M, W, ...]; None for a molecule in vacuum of which all pairs count.

        Returns
        -------
        energy : [M, W] kJ/mol, from ``energy_shift``.
        latents : [M, W, N, F], without unit; where ``invariant``, they stay under translation and rotation, and go with
            their atoms when like atoms are exchanged.
        """


def _is_traced() -> bool:
    return get_proxy_mode() is not None or torch._C._get_tracing_state() is not None
