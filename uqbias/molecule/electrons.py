"""Charge and spin of a molecule: what its bonds say, and what only its owner can say."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from uqbias.errors import UqbiasError
from uqbias.molecule.rotors import BondOrders
from uqbias.molecule.topology import Topology

#: Elements whose open shells no bond graph tells: transition metals, lanthanides, actinides.
OPEN_SHELLS = frozenset({*range(21, 31), *range(39, 49), *range(57, 81), *range(89, 113)})
#: Molecules of two such atoms are triplets: O2, S2.
TRIPLETS = ((8, 8), (16, 16))
#: Atoms named in a message.
NAMED = 5


class Electrons(NamedTuple):
    """Total charge in e, spin multiplicity 2S + 1, and where each comes from, in words."""

    charge: int
    spin: int
    why: str


class Lewis(NamedTuple):
    """What the best Lewis structure of a bond graph says.

    Attributes
    ----------
    charge : sum of the formal charges of N, O, S and B.
    charged : atoms that carry one.
    unsaturated : carbon atoms that lack bonds: radicals, ions, carbenes, or hydrogens that are not there.
    """

    charge: int
    charged: tuple[int, ...]
    unsaturated: tuple[int, ...]


def lewis(topology: Topology) -> Lewis:
    """Formal charges that follow from the bonds of a molecule with all of its hydrogens."""
    orders, used = BondOrders(topology), np.zeros(len(topology))
    for bond, more in zip(orders.bonds, orders.extra, strict=True):
        used[[*bond]] += more
    charges = np.rint(used - orders.free).astype(int)  # one bond too many, or too few
    for atom, (number, around) in enumerate(zip(topology.numbers, topology.neighbours, strict=True)):
        usual = {5: 3, 7: 3, 8: 2}.get(number)
        if usual is not None and len(around) > usual:
            charges[atom] = (len(around) - usual) * (-1 if number == 5 else 1)
        elif number not in (6, 7, 8, 16):
            charges[atom] = 0
    carbons = np.array(topology.numbers) == 6
    charged = np.flatnonzero(np.where(carbons, 0, charges))
    unsaturated = np.flatnonzero(carbons & (charges < 0))
    return Lewis(int(charges[charged].sum()), tuple(charged.tolist()), tuple(unsaturated.tolist()))


def electrons_of(
    topology: Topology,
    charge: int | None = None,
    spin: int | None = None,
    *,
    stated: int | None = None,
    radicals: int = 0,
    source: str = "the structure",
) -> Electrons:
    """Charge and spin multiplicity of a molecule in vacuum; what cannot be known is asked for.

    Parameters
    ----------
    topology : bond graph with all hydrogens.
    charge, spin : what the user says, or None.
    stated : charge that the source says, or None.
    radicals : unpaired electrons that the source says.
    source : what it is, for messages.

    Raises
    ------
    UqbiasError
        If the user and the source differ, the bonds speak of ions, radicals or missing hydrogens and the user says
        nothing of charge or spin, the element has open shells, or charge and spin do not fit the number of electrons.
    """
    if charge is not None and stated is not None and charge != stated:
        raise UqbiasError(f"--charge {charge}, but {source} has a charge of {stated}", "correct one of them")
    likely = lewis(topology)
    if charge is None and stated is None:
        if likely.unsaturated and spin is None:
            raise UqbiasError(
                f"{_named(topology, likely.unsaturated)} of {source}: too few bonds, so hydrogens are missing, or it "
                "is a radical or an ion",
                "add all hydrogens; if it is meant, give --charge and --spin (multiplicity 2S + 1)",
            )
        if likely.charge:
            raise UqbiasError(
                f"{source} states no charge, and by its bonds it is {likely.charge:+d} ({_named(topology, likely[1])})",
                f"give --charge {likely.charge}, or what it is",
            )
    total = charge if charge is not None else stated or 0
    electrons = sum(topology.numbers) - total
    if spin is None:
        open_shells = [i for i, number in enumerate(topology.numbers) if number in OPEN_SHELLS]
        count = f"{electrons} electrons at charge {total}"
        what = (
            f"{count}, an odd number: a radical, or another charge"
            if electrons % 2
            else f"{radicals} unpaired electrons in {source}"
            if radicals
            else f"{_named(topology, open_shells)} may have unpaired electrons"
            if open_shells
            else f"{count}, and the ground state of such a molecule is a triplet"
            if topology.numbers in TRIPLETS
            else ""
        )
        if what:
            raise UqbiasError(
                what, "give --spin, the multiplicity 2S + 1 (1 singlet, 2 doublet, 3 triplet), or --charge"
            )
    multiplicity = spin or 1
    if electrons < multiplicity - 1 or (electrons - multiplicity) % 2 == 0:
        raise UqbiasError(
            f"spin {multiplicity} with {electrons} electrons (charge {total})",
            f"give {'an even' if electrons % 2 else 'an odd'} multiplicity 2S + 1, or another --charge",
        )
    origin = "as given" if charge is not None else f"as {source} says" if stated is not None else "by its bonds"
    return Electrons(total, multiplicity, f"charge {total} ({origin}), spin {multiplicity}")


def _named(topology: Topology, atoms: tuple[int, ...] | list[int]) -> str:
    from ase.data import chemical_symbols

    names = [topology.names[i] or f"{chemical_symbols[topology.numbers[i]]}{i + 1}" for i in atoms[:NAMED]]
    return ", ".join(names) + (f" and {len(atoms) - NAMED} more" if len(atoms) > NAMED else "")
