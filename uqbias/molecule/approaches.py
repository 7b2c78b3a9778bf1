"""Approaches of atoms in crystals, glasses and between molecules: smallest distances and coordination, with images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from uqbias.errors import UqbiasError, did_you_mean
from uqbias.molecule.cells import Periodic
from uqbias.molecule.frames import Frames
from uqbias.molecule.limits import CoordinationLimits
from uqbias.molecule.topology import Topology
from uqbias.units import ANGSTROM

Array = NDArray[np.float64]
#: nm; atoms of a network that are never nearer in the reference have the limit of their covalent radii.
REACH = 0.5


class Fault(NamedTuple):
    """Fault of one geometry."""

    #: ``"bond"``, ``"angle"``, ``"clash"``, ``"chirality"`` or ``"coordination"``.
    kind: str
    #: Atoms of the worst bond, angle or contact; centre and three neighbours of an inverted stereocentre; the atom of
    #: a coordination.
    atoms: tuple[int, ...]
    #: Bond: multiple of its reference length; angle: degrees off its reference; clash: distance, nm; chirality: 1;
    #: coordination: number of neighbours.
    value: float


class Approaches:
    """Smallest distances that atoms of different molecules, or of a network, may have, and their coordination.

    Two atoms of which one is in a network may come as near as a share of the smallest distance that two atoms of their
    elements have in the reference, or of the sum of their covalent radii where none are within `REACH` there.

    Parameters
    ----------
    topology : molecules and networks.
    reference : physical frames, such as the start frames.
    share : that share.
    contacts : [N, N] nm, least distance of atoms of two molecules, or of a molecule and its image; None for no limit.
    coordination : limits of the number of neighbours.

    Raises
    ------
    UqbiasError
        For a coordination of elements that are not there.
    """

    def __init__(
        self,
        topology: Topology,
        reference: Frames,
        share: float,
        contacts: Array | None = None,
        coordination: Sequence[CoordinationLimits] = (),
    ) -> None:
        from ase.data import chemical_symbols, covalent_radii

        numbers = np.array(topology.numbers)
        elements, kind = np.unique(numbers, return_inverse=True)
        self._molecule = connected_components(topology.graph(), directed=False)[1]
        network = np.isin(np.arange(len(numbers)), list(topology.network))
        either = network[:, None] | network
        radii = covalent_radii[elements] * ANGSTROM
        smallest = np.full((len(elements), len(elements)), np.inf)
        for i, j, _, apart in _pairs(reference.positions, reference.cells, reference.periodic, REACH):
            used = either[i, j]
            np.minimum.at(smallest, (kind[i[used]], kind[j[used]]), apart[used])
        smallest = share * np.where(np.isfinite(smallest), smallest, radii[:, None] + radii)
        self._limits = np.where(either, smallest[kind][:, kind], 0.0 if contacts is None else contacts)
        symbols = [chemical_symbols[number] for number in elements]
        for rule in coordination:
            for name in (rule.centre, rule.neighbour):
                if name not in symbols:
                    raise UqbiasError(f"coordination of {name}, which is not there", did_you_mean(name, symbols))
        self._rules = [
            (kind == symbols.index(rule.centre), kind == symbols.index(rule.neighbour), rule) for rule in coordination
        ]
        self._periodic = reference.periodic
        self._reach = max([float(self._limits.max()), *(rule.within for rule in coordination)])

    def faults(self, positions: Array, cells: Array | None) -> list[Fault | None]:
        """The worst approach, or a coordination out of its limits, of whole ``positions`` [n, N, 3] nm."""
        return [self._fault(*pairs) for pairs in _pairs(positions, cells, self._periodic, self._reach)]

    def _fault(
        self, i: NDArray[np.int64], j: NDArray[np.int64], shifted: NDArray[np.bool_], apart: Array
    ) -> Fault | None:
        between = shifted | (self._molecule[i] != self._molecule[j])
        near = np.where(between, self._limits[i, j], 0.0) / np.maximum(apart, 1e-12)
        if near.max(initial=0.0) > 1:
            worst = int(near.argmax())
            return Fault("clash", (int(i[worst]), int(j[worst])), float(apart[worst]))
        for centre, neighbour, rule in self._rules:
            counted = centre[i] & neighbour[j] & (apart < rule.within)
            count = np.bincount(i[counted], minlength=len(centre))
            wrong = centre & ((count < rule.least) | (count > (np.inf if rule.most is None else rule.most)))
            if wrong.any():
                atom = int(wrong.argmax())
                return Fault("coordination", (atom,), float(count[atom]))
        return None


def _pairs(
    positions: Array, cells: Array | None, periodic: Periodic, reach: float
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_], Array]]:
    """Of each frame the pairs of atoms within reach: both, whether one is an image, and their distance."""
    from uqbias.molecule.neighbours import pairs_by_tree

    for frame, x in enumerate(positions):
        box: Any = None if cells is None else cells[frame]
        _, i, j, shifts = pairs_by_tree(x[None], None if box is None else box[None], periodic, reach)
        move = 0.0 if box is None else shifts @ box
        yield i, j, np.asarray(shifts.any(axis=1)), np.linalg.norm(x[j] - x[i] + move, axis=1)
