"""Energies, forces and latents of many frames, in batches, without compilation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uqbias.errors import UqbiasError
from uqbias.molecule.geometry import Geometry, virial
from uqbias.molecule.neighbours import NeighbourList
from uqbias.potentials.base import Potential

#: Atoms with tables of neighbours that are evaluated together, to bound the memory.
ATOMS = 2000
Cells = NDArray[np.floating] | Tensor
Periodic = tuple[bool, bool, bool]


class Readouts(NamedTuple):
    """K functions of the latents in place of the potential's last layer."""

    heads: int
    #: Latents [M, W, N, F] to energies [K, W].
    energies: Callable[[Tensor], Tensor]


class Predictions(NamedTuple):
    """What a potential says of n frames."""

    #: [M, n] kJ/mol, from the potential's ``energy_shift``.
    energy: Tensor
    #: [M, n, N, F].
    latents: Tensor
    #: [n, N, 3] kJ/mol/nm, mean over the members; None where not asked for.
    forces: Tensor | None
    #: [M, n, N, 3] kJ/mol/nm, or those of readouts, [K, n, N, 3]; None where not asked for.
    member_forces: Tensor | None
    #: [n, 3, 3] kJ/mol, see `uqbias.molecule.geometry.virial`, mean over the members; None without forces or cells.
    virial: Tensor | None = None


def neighbour_list(
    potential: Potential, *, box: bool, periodic: Periodic = (True, True, True), skin: float | None = 0.0
) -> NeighbourList | None:
    """The list of neighbours of a potential's atoms, in a cell or not; None where all pairs are evaluated.

    Raises
    ------
    UqbiasError
        If the potential needs one and has no cutoff.
    """
    if not potential.uses_table(box=box):
        return None
    if potential.cutoff is None:
        raise UqbiasError(f"potential '{potential.kind}' with a table of neighbours, without a cutoff", "give it one")
    skin = potential.skin if skin is None else skin
    return NeighbourList(potential.numbers, potential.elements, potential.cutoff, skin, periodic)


def geometry_for(
    potential: Potential, positions: Tensor, cells: Cells | None = None, periodic: Periodic = (True, True, True)
) -> Geometry | None:
    """What a potential needs beside ``positions`` [n, N, 3] nm in ``cells`` [n, 3, 3] nm; None for a small molecule."""
    boxes = None if cells is None else torch.as_tensor(cells).to(positions)
    table = neighbour_list(potential, box=boxes is not None, periodic=periodic)
    if table is not None:
        return table.geometry(positions, boxes)
    return None if boxes is None else Geometry(boxes)


def with_member_forces(
    potential: Potential, positions: Tensor, geometry: Geometry | None = None, readouts: Readouts | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Energies [M, W], latents [M, W, N, F] and forces of each member [M, W, N, 3], or of each readout [K, W, N, 3].

    Differentiable where autograd is on.

    One backward gives all forces, since each member, or readout, has its own copy of the positions [W, N, 3].
    """
    differentiable, walkers = torch.is_grad_enabled(), len(positions)
    with torch.enable_grad():  # type: ignore[no-untyped-call]
        count = potential.n_members if readouts is None else readouts.heads
        copies = positions.unsqueeze(0).expand(count, -1, -1, -1).clone()
        if not copies.requires_grad:
            copies.requires_grad_()
        if readouts is None:
            energy, latents = potential(copies, geometry)
            total = energy.sum()
        else:  # as so many walkers more
            energy, latents = potential(copies.flatten(0, 1), None if geometry is None else geometry.repeated(count))
            # Readout k of copy k.
            total = readouts.energies(latents).view(count, count, walkers).diagonal().sum()
            energy, latents = energy[:, :walkers], latents[:, :walkers]
        (gradient,) = torch.autograd.grad(total, copies, create_graph=differentiable)
    if differentiable:
        return energy, latents, -gradient
    return energy.detach(), latents.detach(), -gradient.detach()


def predict(
    potential: Potential,
    positions: NDArray[np.floating] | Tensor,
    batch_size: int = 64,
    *,
    forces: Literal["none", "mean", "members"] = "mean",
    cells: Cells | None = None,
    periodic: Periodic = (True, True, True),
    readouts: Readouts | None = None,
) -> Predictions:
    """Evaluate ``potential`` at ``positions`` [n, N, 3] nm in ``cells`` [n, 3, 3] nm; there is no autograd history.

    With ``readouts`` their forces are given as ``member_forces``.
    """
    x = torch.as_tensor(positions).to(next(potential.parameters()))
    boxes = None if cells is None else torch.as_tensor(cells).to(x)
    table = neighbour_list(potential, box=boxes is not None, periodic=periodic)
    if readouts is not None:
        batch_size = max(1, batch_size // readouts.heads)
        forces = "mean" if forces == "members" else forces
    if table is not None:
        batch_size = min(batch_size, max(1, ATOMS // len(potential.numbers)))
    parts: list[list[Tensor]] = [[], [], [], [], []]
    for start in range(0, max(len(x), 1), batch_size):
        batch, box = x[start : start + batch_size], None if boxes is None else boxes[start : start + batch_size]
        geometry = table.geometry(batch, box) if table is not None else None if box is None else Geometry(box)
        said = _predicted(potential, batch, geometry, forces)
        if readouts is not None:
            with torch.no_grad():
                said = said._replace(member_forces=with_member_forces(potential, batch, geometry, readouts)[2])
        for part, values in zip(parts, said, strict=True):
            if values is not None:
                part.append(values)
    joined = [torch.cat(part, dim) if part else None for part, dim in zip(parts, (1, 1, 0, 1, 0), strict=True)]
    assert joined[0] is not None
    assert joined[1] is not None
    return Predictions(joined[0], joined[1], *joined[2:])


def _predicted(potential: Potential, batch: Tensor, geometry: Geometry | None, forces: str) -> Predictions:
    box = None if geometry is None else geometry.box
    if forces == "none":
        with torch.no_grad():
            return Predictions(*potential(batch, geometry), None, None)
    with torch.enable_grad():  # type: ignore[no-untyped-call]
        copies = batch.clone().requires_grad_()
        if forces == "members":
            copies = batch.expand(potential.n_members, -1, -1, -1).clone().requires_grad_()
        roots = [copies]
        if geometry is not None and box is not None:
            roots.append(box.clone().requires_grad_())
            geometry = geometry._replace(box=roots[1])
        energy, latents = potential(copies, geometry)
        total, weight = (energy.sum(), len(energy)) if forces == "members" else (energy.mean(0).sum(), 1)
        gradient, *of_box = torch.autograd.grad(total, roots)
    with torch.no_grad():
        each = -gradient if forces == "members" else None
        mean = -gradient if each is None else each.mean(0)
        strained = virial(batch, -mean, roots[1], of_box[0] / weight) if of_box else None
        return Predictions(energy.detach(), latents.detach(), mean, each, strained)
