"""Displacements of atoms along x, y and z."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Self

import torch
from numpy.typing import NDArray
from pydantic import AfterValidator
from torch import Tensor
from typing_extensions import Doc

from uqbias.attacks.base import DistortionSpace, checked_reference
from uqbias.molecule.atoms import Atoms, ordered_atoms
from uqbias.molecule.topology import Topology


def _is_choice_of_axes(axes: str) -> str:
    if not axes or len(set(axes)) != len(axes) or not set(axes) <= set("xyz"):
        raise ValueError("give some of x, y and z, such as xy")
    return axes


class Cartesian(DistortionSpace):
    """Displacements of atoms, in nm: the space of the published attacks.

    Parameters
    ----------
    n_atoms : atoms of the molecule, N.
    coordinates : [D] indices of the coordinates that move, into the flattened [N, 3].
    labels : [D] texts.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from uqbias.molecule.topology import Topology
    >>> from uqbias.registry import SPACES
    >>> water = Topology((8, 1, 1), ((0, 1), (0, 2)))
    >>> options = {"atoms": [1], "axes": "x"}
    >>> space = SPACES.build("cartesian", options, topology=water, reference=np.zeros((3, 3)))
    >>> space(torch.zeros(1, 3, 3), torch.tensor([[0.1]]))[0, 1]
    tensor([0.1000, 0.0000, 0.0000])
    """

    kind: ClassVar[str] = "cartesian"
    unit: ClassVar[str] = "nm"
    default_learning_rate: ClassVar[float] = 1e-3
    default_noise: ClassVar[float] = 1e-3
    embedding: Tensor

    def __init__(self, n_atoms: int, coordinates: Sequence[int], labels: tuple[str, ...]) -> None:
        super().__init__()
        self.n_coordinates = len(coordinates)
        self.labels = labels
        rows = torch.zeros(len(coordinates), 3 * n_atoms)
        rows[torch.arange(len(coordinates)), torch.tensor(coordinates)] = 1.0
        self.register_buffer("embedding", rows, persistent=False)

    @classmethod
    def build(
        cls,
        topology: Topology,
        reference: NDArray[Any],
        *,
        atoms: Annotated[Atoms, Doc("which atoms move: all, heavy, or a list of indices and names")] = "all",
        axes: Annotated[str, AfterValidator(_is_choice_of_axes), Doc("along which axes")] = "xyz",
    ) -> Self:
        """Make the space of one molecule; the reference is not used."""
        checked_reference(topology, reference)
        chosen = ordered_atoms(topology, atoms, "atoms of space 'cartesian'")
        coordinates = [3 * i + "xyz".index(axis) for i in chosen for axis in axes]
        return cls(len(topology), coordinates, tuple(f"{axis} {i}" for i in chosen for axis in axes))

    def forward(self, base: Tensor, delta: Tensor) -> Tensor:
        """Base plus displacements, [W, N, 3] nm."""
        return base + (delta @ self.embedding.to(delta.dtype)).view_as(base)
