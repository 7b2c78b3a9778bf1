"""Mobile protons: hydrogens of intramolecular hydrogen bonds that are short enough for a transfer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.molecule.measures import distances
from uqbias.molecule.rotors import BondOrders
from uqbias.molecule.topology import Topology, Triple
from uqbias.units import ANGSTROM

#: Elements that give and take a proton: N, O, S.
ENDS = (7, 8, 16)
#: Members of a ring that the hydrogen bond closes, the hydrogen among them.
RINGS = (5, 6, 7)
#: Donor and acceptor are near within this multiple of the sum of their covalent radii (2.7 Å for O and O), in this
#: share of the frames at least: 0.89 of them in acetylacetone at 300 K, 0.06 in peptides' rings of seven.
NEAR, SHARE = 2.05, 0.25


def mobile_protons(topology: Topology, positions: NDArray[Any]) -> list[Triple]:
    """Hydrogens that may sit on their donor or on an acceptor in the same molecule.

    The acceptor has a free valence (C=O, not an ether), after the transfer as good a Lewis structure can be drawn as
    before (acetylacetone, salicylic acid; not glycol, no peptide), the hydrogen bond closes a ring of 5 to 7, and donor
    and acceptor are near in a good share of the frames. Whether the other side is stable is not asked: the model's
    energy and the labels tell.

    Parameters
    ----------
    positions : [n, N, 3] nm, frames such as those that a campaign starts from.

    Returns
    -------
    List of (donor, hydrogen, acceptor), each hydrogen once.
    """
    from ase.data import covalent_radii

    x, numbers = np.asarray(positions, dtype=np.float64), topology.numbers
    separation, orders = topology.bond_separation(), BondOrders(topology)
    takers = np.isin(numbers, ENDS) & (orders.free > 0)
    triples = []
    for h, around in enumerate(topology.neighbours):
        if numbers[h] != 1 or len(around) != 1 or numbers[around[0]] not in ENDS:
            continue
        d, best = around[0], (SHARE, -1)
        for a in np.flatnonzero(takers & np.isin(separation[h] + 1, RINGS)).tolist():
            apart, held = distances(x, np.array([(d, a), (h, a)])).T
            near = apart < NEAR * ANGSTROM * (covalent_radii[numbers[d]] + covalent_radii[numbers[a]])
            share = float((near & (held < apart)).mean())
            bonds = {*topology.bonds} - {(min(d, h), max(d, h))} | {(h, a)}
            moved = replace(topology, bonds=tuple(bonds), mobile=())
            if share > best[0] and BondOrders(moved).best > orders.best - 1e-6:
                best = (share, a)
        if best[1] >= 0:
            triples.append((d, h, best[1]))
    return triples


def with_mobile_protons(topology: Topology, positions: NDArray[Any]) -> Topology:
    """Bond graph with the `mobile_protons` of frames [n, N, 3] nm; one that has some already stays as it is."""
    return topology if topology.mobile else replace(topology, mobile=tuple(mobile_protons(topology, positions)))
