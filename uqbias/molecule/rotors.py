"""Bonds that turn and rings that pucker, by the bond graph and the bond orders that it leaves possible.

How far start frames happen to turn says nothing: a rotor in one well is as narrow as an amide.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.molecule.measures import distances
from uqbias.molecule.topology import Pair, Topology
from uqbias.units import ANGSTROM

#: Value of one more bond between two atoms, and price of the charge of a nitrogen or oxygen that makes one too many.
PAIRED, CHARGE = 1.0, 0.7
#: Usual number of bonds of the elements that make double ones; sulphur and phosphorus make more with bare oxygens.
VALENCE = {6: 4, 7: 3, 8: 2, 15: 3, 16: 2, 34: 2}
CHALCOGENS = (8, 16, 34)
SINGLE, DOUBLE, CONJUGATED, LINEAR = "single bond", "double bond", "conjugated", "linear"
RING, FLAT = "ring", "flat ring"
#: Reasons of bonds that neither turn nor hold still: saturated rings pucker, a linear group has no torsion.
UNDECIDED = (RING, LINEAR)


@dataclass(frozen=True)
class Rotor:
    """A bond about which both sides have heavy atoms to turn.

    Attributes
    ----------
    bond : its atoms, in ascending order.
    soft : whether it turns at an affordable price in energy.
    reason : ``single bond`` if it does; else ``double bond``, ``conjugated`` (double in another resonance structure),
        ``amide``, ``ester``, ``flat ring``, ``ring`` or ``linear``.
    """

    bond: Pair
    soft: bool
    reason: str


def rotors(topology: Topology, positions: NDArray[Any] | None = None) -> list[Rotor]:
    """Every bond of two heavy atoms that have further heavy neighbours, which leaves out OH, NH2 and CH3 tops.

    Parameters
    ----------
    topology : bond graph with all hydrogens.
    positions : [..., N, 3] nm, one geometry or more; a bond longer than the sum of covalent radii is none but single.
    """
    heavy = [[i for i in around if topology.numbers[i] > 1] for around in topology.neighbours]
    return [
        Rotor(bond, reason == SINGLE, reason)
        for bond, reason in bond_reasons(topology, positions).items()
        if all(topology.numbers[i] > 1 and len(heavy[i]) > 1 for i in bond)
    ]


def bond_reasons(topology: Topology, positions: NDArray[Any] | None = None) -> dict[Pair, str]:
    """Reason, as in `Rotor`, of each bond whose atoms both have another neighbour; tops included.

    Parameters
    ----------
    positions : as of `rotors`.
    """
    orders, rings = BondOrders(topology, positions), _rings(topology)
    cyclic: dict[frozenset[int], str] = {}
    for ring in rings:
        for pair in zip(ring, ring[1:] + ring[:1], strict=True):
            if cyclic.get(frozenset(pair)) != FLAT:
                cyclic[frozenset(pair)] = RING if orders.puckers(ring) else FLAT
    bonds = [bond for bond in topology.bonds if all(len(topology.neighbours[i]) > 1 for i in bond)]
    return {bond: cyclic.get(frozenset(bond)) or orders.reason(bond, rings) for bond in bonds}


def ring_systems(topology: Topology) -> list[tuple[int, ...]]:
    """Atoms of each ring that puckers, in ring order: five or more, two neighbouring ones saturated, no bridge."""
    orders, rings = BondOrders(topology), _rings(topology)
    return [
        ring
        for ring in rings
        if len(ring) > 4
        and orders.puckers(ring)
        and all(len({*ring} & {*other}) < 3 for other in rings if other != ring)
    ]


def _rings(topology: Topology) -> list[tuple[int, ...]]:
    """Smallest ring through each bond that is in one, in ring order, each once."""
    rings: dict[frozenset[int], tuple[int, ...]] = {}
    for first, last in topology.bonds:
        before, queue = {first: first}, deque([first])
        while queue and last not in before:
            atom = queue.popleft()
            for other in topology.neighbours[atom]:
                if other not in before and {atom, other} != {first, last}:
                    before[other] = atom
                    queue.append(other)
        if last in before:
            ring = [last]
            while ring[-1] != first:
                ring.append(before[ring[-1]])
            rings.setdefault(frozenset(ring), tuple(ring))
    return [*rings.values()]


class BondOrders:
    """Lewis structures of a molecule: where second and third bonds can be, as an integer program.

    A structure is worth `PAIRED` for each such bond less `CHARGE` for each charged nitrogen or oxygen (nitro,
    iminium); a bond is double where the best structures have it so, and conjugated where some of them do.
    """

    def __init__(self, topology: Topology, positions: NDArray[Any] | None = None) -> None:
        self.topology = topology
        bare = [[i for i in around if len(topology.neighbours[i]) == 1] for around in topology.neighbours]
        #: Further bonds that each atom wants.
        self.free = np.zeros(len(topology))
        for i, (number, around) in enumerate(zip(topology.numbers, topology.neighbours, strict=True)):
            oxygens = sum(topology.numbers[j] in CHALCOGENS for j in bare[i])
            valence = VALENCE.get(number, 0) + (2 * min(oxygens, 2 if number != 15 else 1) if number in (15, 16) else 0)
            self.free[i] = max(0, valence - len(around))
        charged = [len(a) < {7: 4, 8: 3}.get(n, 0) for n, a in self._atoms()]
        self.charged = np.array(charged, dtype=float)
        bonds = np.array(topology.bonds, dtype=np.int64).reshape(-1, 2)
        able = ((self.free + self.charged)[bonds] > 0).all(axis=1) & (self.free[bonds] > 0).any(axis=1)
        if positions is not None:
            able &= self._short(np.reshape(positions, (-1, len(topology), 3)), bonds)
        self.bonds = [bond for bond, possible in zip(topology.bonds, able, strict=True) if possible]
        self.best, self.extra = self._solve()
        total = np.zeros(len(topology))
        for bond, more in zip(self.bonds, self.extra, strict=True):
            total[[*bond]] += more
        self.linear = [len(a) == 2 and more > 1 for (_, a), more in zip(self._atoms(), total, strict=True)]

    def reason(self, bond: Pair, rings: list[tuple[int, ...]]) -> str:
        """Reason, as in `Rotor`, of a bond that is in no ring."""
        if any(self.linear[i] for i in bond):
            return LINEAR
        numbers, around = self.topology.numbers, self.topology.neighbours
        for carbon, other in (bond, bond[::-1]):
            if numbers[carbon] != 6 or len(around[carbon]) != 3 or numbers[other] not in (7, 8, 16) or self.free[other]:
                continue
            if any(numbers[i] in CHALCOGENS and len(around[i]) == 1 for i in around[carbon]):
                return "amide" if numbers[other] == 7 else "ester"
            imines = (i for i in around[carbon] if numbers[i] == 7 and self.free[i])
            if numbers[other] == 7 and any(not any({carbon, i} <= {*ring} for ring in rings) for i in imines):
                return CONJUGATED  # amidine, guanidine
        return self._by_structures(bond, rings) if bond in self.bonds else SINGLE

    def _by_structures(self, bond: Pair, rings: list[tuple[int, ...]]) -> str:
        """Reason of a bond that has room to be double."""
        if self._solve({bond: 0})[0] < self.best - 1e-6:
            return DOUBLE
        conjugated = self._solve({bond: 1})[0] > self.best - 1e-6
        if conjugated or (not any(i in ring for ring in rings for i in bond) and self._by_transfer(bond)):
            return CONJUGATED
        return SINGLE

    def is_saturated(self, atom: int) -> bool:
        """Whether an atom has no second bond, nor a lone pair beside one, which would make it flat."""
        number, around = self.topology.numbers[atom], self.topology.neighbours[atom]
        pair = number in CHALCOGENS or (number == 7 and len(around) < 4)
        return not self.free[atom] and not (pair and any(self.free[i] for i in around))

    def puckers(self, ring: tuple[int, ...]) -> bool:
        """Whether a ring has two neighbouring atoms that are saturated."""
        saturated = [self.is_saturated(i) for i in ring]
        return any(saturated[k - 1] and saturated[k] for k in range(len(ring)))

    def _atoms(self) -> zip[tuple[int, tuple[int, ...]]]:
        """Atomic number and neighbours of each atom."""
        return zip(self.topology.numbers, self.topology.neighbours, strict=True)

    def _short(self, positions: NDArray[Any], bonds: NDArray[np.int64]) -> NDArray[np.bool_]:
        from ase.data import covalent_radii

        radii = covalent_radii[list(self.topology.numbers)] * ANGSTROM
        return np.asarray(distances(positions, bonds).mean(axis=0) < radii[bonds].sum(axis=1))

    @cached_property
    def _transfers(self) -> list[tuple[int, int]]:
        """Donor and acceptor of each proton that can move within a ring of six."""
        numbers, apart = self.topology.numbers, self.topology.bond_separation()
        able = np.isin(numbers, (7, 8))
        carries = [any(numbers[j] == 1 for j in around) for around in self.topology.neighbours]
        donors, acceptors = able & carries & (self.free == 0), able & (self.free > 0)
        return [(int(d), int(a)) for d, a in np.argwhere((apart == 4) & donors[:, None] & acceptors)]

    def _by_transfer(self, bond: Pair) -> bool:
        """Whether a bond is double once the proton of a hydrogen bond in a ring of six has moved, as in enols."""
        for donor, acceptor in self._transfers:
            moved = self.free.copy()
            moved[donor] += 1
            moved[acceptor] -= 1
            if self._solve({bond: 1}, moved)[0] > self.best - 1e-6:
                return True
        return False

    def _solve(
        self, fixed: dict[Pair, int] | None = None, free: NDArray[np.float64] | None = None
    ) -> tuple[float, NDArray[np.int64]]:
        """Worth of the best structure and further bonds [B] of each bond in it.

        Parameters
        ----------
        fixed : further bonds of some bonds; a lower bound where it is more than 0.
        free : further bonds that each atom wants, where these are not the molecule's.
        """
        from scipy.optimize import Bounds, LinearConstraint, milp

        if not self.bonds:
            return 0.0, np.zeros(0, dtype=np.int64)
        n_bonds, n = len(self.bonds), len(self.topology)
        atoms = np.zeros((n, n_bonds + n))
        for column, bond in enumerate(self.bonds):
            atoms[[*bond], column] = 1.0
        atoms[:, n_bonds:] = -np.eye(n)
        low, high = np.zeros(n_bonds + n), np.concatenate([np.full(n_bonds, 2.0), self.charged])
        for bond, order in (fixed or {}).items():
            low[self.bonds.index(bond)] = order
            if not order:
                high[self.bonds.index(bond)] = 0
        worth = np.concatenate([np.full(n_bonds, PAIRED), np.full(n, -CHARGE)])
        limit = LinearConstraint(atoms, ub=self.free if free is None else free)  # type: ignore[arg-type]
        result = milp(-worth, constraints=limit, integrality=np.ones(n_bonds + n), bounds=Bounds(low, high))
        if result.x is None:
            return -np.inf, np.zeros(n_bonds, dtype=np.int64)
        return float(worth @ result.x), np.rint(result.x[:n_bonds]).astype(np.int64)
