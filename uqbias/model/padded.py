"""Frames of several systems in few layouts, so that few graphs are compiled: places for the atoms of each element.

A layout has as many places of an element as the system that has most of them; a system with fewer leaves some empty.
An empty place has no neighbour and is none, so that energies, forces and latents of the others are those of the system
by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uqbias.errors import UqbiasError
from uqbias.molecule.frames import Frames
from uqbias.molecule.geometry import Geometry
from uqbias.molecule.neighbours import NeighbourList
from uqbias.potentials.base import Potential

#: Layouts, at most, and by which factor the work may grow for the sake of one layout fewer.
MOST, WASTE = 4, 1.5
#: nm, edge of the box that a molecule in vacuum is given beside systems with a cell; its shifts are all zero.
EDGE = 1.0


class Padded(NamedTuple):
    """Frames of systems that share a layout, n of them, N places."""

    #: The potential of the places.
    potential: Potential
    #: [n, N, 3] nm; empty places are where the first atom is.
    positions: Tensor
    geometry: Geometry
    #: Indices of the systems.
    members: tuple[int, ...]
    #: [N_s] place of each atom of each of these systems.
    places: tuple[Tensor, ...]

    def spread(self, values: Sequence[NDArray[np.float64]]) -> Tensor:
        """Values of the atoms of each system, [n_s, N_s, 3], at their places, [n, N, 3]; 0 in empty ones."""
        parts = []
        for member, places in zip(self.members, self.places, strict=True):
            part = self.positions.new_zeros(len(values[member]), *self.positions.shape[1:])
            part[:, places] = torch.as_tensor(values[member]).to(part)
            parts.append(part)
        return torch.cat(parts)


def pad(potential: Potential, sets: Sequence[Frames], most: int = MOST) -> list[Padded]:
    """Lay out frames of several systems.

    Parameters
    ----------
    potential : a potential of all their elements.
    sets : frames, one of each system.
    most : layouts, at most.

    Raises
    ------
    UqbiasError
        If the potential knows no such element, or reads no tables of neighbours.
    """
    check_padded(potential)
    boxed = any(frames.cells is not None for frames in sets)
    return [_laid_out(potential, sets, members, boxed) for members in _layouts(sets, most)]


def check_padded(potential: Potential) -> None:
    """Refuse a potential that reads no tables of neighbours: in a padded layout empty places would be felt."""
    if potential.cutoff is None or potential.needs == "dense":
        raise UqbiasError(
            f"potential '{potential.kind}' on several systems, whose atoms are padded, and which reads no tables",
            "choose power_spectrum",
        )


def _layouts(sets: Sequence[Frames], most: int) -> list[list[int]]:
    """Indices of the systems of each layout: neighbours in size share one while little work is wasted."""
    groups: list[tuple[Counter[int], int, list[int]]] = []
    for index in sorted(range(len(sets)), key=lambda each: len(sets[each].numbers)):
        groups.append((Counter(sets[index].numbers.tolist()), len(sets[index]), [index]))

    def waste(at: int) -> float:
        (one, n, _), (other, m, _) = groups[at : at + 2]
        return (one | other).total() * (n + m) / (one.total() * n + other.total() * m)

    while len(groups) > 1:
        at = min(range(len(groups) - 1), key=waste)
        if waste(at) > WASTE and len(groups) <= most:
            break
        (one, n, here), (other, m, there) = groups[at : at + 2]
        groups[at : at + 2] = [(one | other, n + m, here + there)]
    return [members for _, _, members in groups]


def _laid_out(potential: Potential, sets: Sequence[Frames], members: list[int], boxed: bool) -> Padded:
    counts: Counter[int] = Counter()
    for member in members:
        counts |= Counter(sets[member].numbers.tolist())
    layout = [element for element in sorted(counts) for _ in range(counts[element])]
    whole = potential.with_numbers(layout)
    like = next(potential.parameters())
    tables, places = [], []
    assert potential.cutoff is not None
    for member in members:
        frames, used = sets[member], Counter[int]()
        order = []
        for number in frames.numbers.tolist():
            order.append(layout.index(number) + used[number])
            used[number] += 1
        places.append(torch.tensor(order))
        find = NeighbourList(frames.numbers.tolist(), potential.elements, potential.cutoff, 0.0, frames.periodic)
        cells = None if frames.cells is None else torch.as_tensor(frames.cells).to(like)
        tables.append(find.geometry(torch.as_tensor(frames.positions).to(like), cells))
    blocks = tuple(max(widths) for widths in zip(*(_blocks(table) for table in tables), strict=True))
    parts = []
    for member, table, own in zip(members, tables, places, strict=True):
        parts.append(_padded(torch.as_tensor(sets[member].positions).to(like), table, own, blocks, len(layout), boxed))
    positions, *tensors = (torch.cat(column) for column in zip(*parts, strict=True))
    box, neighbours, shifts, present = tensors if boxed else (None, tensors[0], None, tensors[1])
    return Padded(whole, positions, Geometry(box, neighbours, shifts, present, blocks), tuple(members), tuple(places))


def _blocks(table: Geometry) -> tuple[int, ...]:
    assert table.blocks is not None
    return table.blocks


def _padded(
    x: Tensor, table: Geometry, places: Tensor, blocks: tuple[int, ...], size: int, boxed: bool
) -> list[Tensor]:
    """Positions, box, neighbours, shifts and presence of a system's frames in a layout of ``size`` places."""
    assert table.neighbours is not None
    n = len(x)
    # The ghost atom of the system is that of the layout.
    lookup = torch.cat([places, torch.tensor([size])])
    slots = [
        end - width + slot
        for end, width, used in zip(np.cumsum(blocks), blocks, _blocks(table), strict=True)
        for slot in range(used)
    ]
    neighbours = torch.full((n, size, sum(blocks)), size)
    neighbours[:, places[:, None], torch.tensor(slots)] = lookup[table.neighbours]
    positions = x[:, :1].repeat(1, size, 1)
    positions[:, places] = x
    present = x.new_zeros(n, size)
    present[:, places] = 1.0
    if not boxed:
        return [positions, neighbours, present]
    box = (EDGE * torch.eye(3).to(x)).repeat(n, 1, 1) if table.box is None else table.box
    shifts = x.new_zeros(*neighbours.shape, 3)
    if table.shifts is not None:
        shifts[:, places[:, None], torch.tensor(slots)] = table.shifts
    return [positions, box, neighbours, shifts, present]


def reference_energies(sets: Sequence[Frames]) -> dict[int, float]:
    """Energy of an atom of each element, kJ/mol, by least squares over the labelled frames; the shortest such vector.

    Energies of different systems differ by 10⁵ kJ/mol and more, by which they are counted from here: what is left is
    small enough for single precision.
    """
    elements = sorted({number for frames in sets for number in frames.numbers.tolist()})
    rows = np.array([[np.count_nonzero(frames.numbers == element) for element in elements] for frames in sets])
    weights = np.sqrt([len(frames) for frames in sets])
    means = np.array([frames.energies.mean() for frames in sets if frames.energies is not None])
    solution = np.linalg.lstsq(rows * weights[:, None], means * weights, rcond=None)[0]
    return dict(zip(elements, map(float, solution), strict=True))
