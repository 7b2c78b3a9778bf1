"""Mobile protons: hydrogens of intramolecular hydrogen bonds that are short enough for a transfer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.molecule.measures import distances
from uqbias.molecule.topology import Topology, Triple
from uqbias.units import ANGSTROM

#: Elements that give and take a proton: N, O, S.
ENDS = (7, 8, 16)
#: Usual number of bonds, a double bond counted twice.
VALENCE = {1: 1, 5: 3, 6: 4, 7: 3, 8: 2, 9: 1, 14: 4, 15: 3, 16: 2, 17: 1, 35: 1, 53: 1}
#: Members of a ring that the hydrogen bond closes, the hydrogen among them.
RINGS = (5, 6, 7)
#: Donor and acceptor are near within this multiple of the sum of their covalent radii (2.7 Å for O and O), in this
#: share of the frames at least: 0.89 of them in acetylacetone at 300 K, 0.06 in peptides' rings of seven.
NEAR, SHARE = 2.05, 0.25


def mobile_protons(topology: Topology, positions: NDArray[Any]) -> list[Triple]:
    """Hydrogens that may sit on their donor or on an acceptor in the same molecule.

    The acceptor has a free valence (C=O, not an ether), as many double bonds can be drawn after the transfer as before
    (acetylacetone, salicylic acid; not glycol, no peptide), the hydrogen bond closes a ring of 5 to 7, and donor and
    acceptor are near in a good share of the frames. Whether the other side is stable is not asked: the model's energy
    and the labels tell.

    Parameters
    ----------
    positions : [n, N, 3] nm, frames such as those that a campaign starts from.

    Returns
    -------
    List of (donor, hydrogen, acceptor), each hydrogen once.
    """
    from ase.data import covalent_radii

    x, numbers = np.asarray(positions, dtype=np.float64), topology.numbers
    separation, drawn, free = topology.bond_separation(), _double_bonds(topology), _free_valences(topology)
    triples = []
    for h, around in enumerate(topology.neighbours):
        if numbers[h] != 1 or len(around) != 1 or numbers[around[0]] not in ENDS:
            continue
        d, best = around[0], (SHARE, -1)
        for a in np.flatnonzero(np.isin(numbers, ENDS) & (free > 0) & np.isin(separation[h] + 1, RINGS)).tolist():
            bonds = {*topology.bonds} - {(min(d, h), max(d, h))} | {(h, a)}
            if _double_bonds(replace(topology, bonds=tuple(bonds), mobile=())) < drawn:
                continue
            apart, held = distances(x, np.array([(d, a), (h, a)])).T
            near = apart < NEAR * ANGSTROM * (covalent_radii[numbers[d]] + covalent_radii[numbers[a]])
            best = max(best, (float((near & (held < apart)).mean()), a))
        if best[1] >= 0:
            triples.append((d, h, best[1]))
    return triples


def with_mobile_protons(topology: Topology, positions: NDArray[Any]) -> Topology:
    """Bond graph with the `mobile_protons` of frames [n, N, 3] nm; one that has some already stays as it is."""
    return topology if topology.mobile else replace(topology, mobile=tuple(mobile_protons(topology, positions)))


def _free_valences(topology: Topology) -> NDArray[np.int64]:
    usual = np.array([VALENCE.get(number, 0) for number in topology.numbers])
    free: NDArray[np.int64] = np.maximum(usual - [len(around) for around in topology.neighbours], 0)
    return free


def _double_bonds(topology: Topology) -> int:
    """Most double bonds that free valences of neighbours can form.

    That is a maximum matching, half the rank of a random skew matrix on the edges (Lovász, FCT 1979, 565).
    """
    slots = np.repeat(np.arange(len(topology)), _free_valences(topology))
    bonded = topology.graph().toarray()
    weights = np.random.default_rng(0).uniform(1.0, 2.0, (len(slots), len(slots)))
    upper = np.triu((bonded + bonded.T)[np.ix_(slots, slots)] * weights)
    return int(np.linalg.matrix_rank(upper - upper.T)) // 2
