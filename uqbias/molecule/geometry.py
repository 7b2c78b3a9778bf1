"""The surroundings of a molecule's positions: its cell, and which atoms are neighbours."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Geometry(NamedTuple):
    """What a potential reads beside the positions of W walkers with N atoms each.

    The tensors have fixed shapes, so that all of them are inputs of a compiled graph. Atom j in slot k of atom i is at
    ``r_ij = x_j - x_i + shifts @ box``. Without a geometry a molecule is in vacuum and all pairs of atoms count.
    """

    #: [W, 3, 3] nm, rows are lattice vectors; differentiable. None in vacuum.
    box: Tensor | None
    #: [W, N, K] int64, neighbours j of each atom i, in blocks per element of j; N, a ghost atom, where a slot is empty.
    #: None where all pairs count.
    neighbours: Tensor | None = None
    #: [W, N, K, 3] whole numbers of lattice vectors, in the dtype of the box; None without neighbours or in vacuum.
    shifts: Tensor | None = None
    #: [W, N] 1 for atoms, 0 for empty places of a padded system; None where there are no empty ones.
    present: Tensor | None = None
    #: Widths of the blocks of K, one for each element of the potential; no tensor, part of the shape.
    blocks: tuple[int, ...] | None = None

    def tensors(self) -> list[Tensor]:
        """Those that are there, in order: the inputs of a graph."""
        return [value for value in self if isinstance(value, Tensor)]

    def with_tensors(self, tensors: list[Tensor]) -> Geometry:
        """A geometry of the same make with other ``tensors``."""
        names = [name for name, value in self._asdict().items() if isinstance(value, Tensor)]
        return self._replace(**dict(zip(names, tensors, strict=True)))  # type: ignore[arg-type]

    def of(self, walkers: Any) -> Geometry:
        """The geometry of the walkers of a slice or a tensor of indices."""
        return self.with_tensors([tensor[walkers] for tensor in self.tensors()])

    def repeated(self, count: int) -> Geometry:
        """The geometry of ``count`` copies of all walkers, one copy after the other."""
        return self.with_tensors([tensor.repeat(count, *[1] * (tensor.dim() - 1)) for tensor in self.tensors()])


def virial(positions: Tensor, gradient: Tensor, box: Tensor, box_gradient: Tensor) -> Tensor:
    """Derivative of an energy by a strain of positions and cell, [..., 3, 3] kJ/mol, made symmetric.

    Parameters
    ----------
    positions, gradient : [..., N, 3] nm and the derivative by them.
    box, box_gradient : [..., 3, 3] nm and the derivative by it, at fixed positions.
    """
    strained = positions.transpose(-1, -2) @ gradient + box.transpose(-1, -2) @ box_gradient
    return 0.5 * (strained + strained.transpose(-1, -2))


def heights(box: Tensor) -> Tensor:
    """Distances between opposite faces of cells [..., 3, 3] nm: [..., 3]."""
    normals = torch.linalg.cross(box.roll(-1, -2), box.roll(-2, -2))
    volume: Tensor = (box * normals).sum(-1).abs()
    return torch.div(volume, normals.square().sum(-1).sqrt())


def nearest_image(separation: Tensor, box: Tensor, cutoff: float) -> Tensor:
    """Of each pair the nearest image alone, [..., W, N, K, 3], in boxes [..., W, 3, 3].

    Exact while every height of the cell is over twice the cutoff; elsewhere not a number, for the graphs that cannot
    refuse.
    """
    narrow = (heights(box).amin(-1) <= 2 * cutoff)[..., None, None, None]
    box = box.unsqueeze(-3)
    fractional = torch.linalg.solve_ex(box, separation, left=False)[0]
    nearest = separation - torch.round(fractional) @ box
    return torch.where(narrow, torch.full_like(nearest, torch.nan), nearest)
