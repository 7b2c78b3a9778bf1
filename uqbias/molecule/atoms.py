"""Selections of atoms: from the words, indices and names of a campaign file to indices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from uqbias.errors import UqbiasError, did_you_mean
from uqbias.molecule.topology import Topology

#: Index or name.
Atom = int | str
#: `all`, `heavy`, or indices and names of atoms.
Atoms = Literal["all", "heavy"] | Sequence[Atom]
#: A word that chooses atoms in any system; None where indices and names did.
Selection = Literal["all", "heavy"] | None
#: The same from a caller whose words and entries have not been checked.
Unchecked = str | Sequence[Atom]


def ordered_atoms(topology: Topology, spec: Unchecked, owner: str) -> tuple[int, ...]:
    """Atom indices in the order given.

    Parameters
    ----------
    spec : ``"all"``, ``"heavy"`` (no hydrogens), or a list of indices (from 0), names (``"CA"``), and names with their
        residue (``"ALA2:CA"``). A name that several atoms have stands for all of them.
    owner : for messages, such as ``"atoms of distance"``.

    Raises
    ------
    UqbiasError
        For a name or an index that the molecule does not have, an atom given twice, or an empty list.
    """
    chosen = _chosen(topology, spec, owner)
    twice = [i for i in chosen if chosen.count(i) > 1]
    if twice:
        raise UqbiasError(f"{owner}: atom {twice[0]} ({_label(topology, twice[0])}) twice", "give each atom once")
    return tuple(chosen)


def fixed_atoms(topology: Topology, spec: Unchecked, count: int, owner: str) -> tuple[int, ...]:
    """Exactly ``count`` atoms, each entry of ``spec`` naming one; otherwise as `ordered_atoms`.

    Raises
    ------
    UqbiasError
        For another number of entries, or a name that several atoms have.
    """
    if isinstance(spec, str) or not isinstance(spec, Sequence) or len(spec) != count:
        raise UqbiasError(f"{owner}: {spec!r}", f"give a list of {count} indices or atom names")
    for entry in spec:
        matches = _matching(topology, entry, owner)
        if len(matches) > 1:
            labels = ", ".join(_label(topology, i) for i in matches[:4])
            raise UqbiasError(
                f"{owner}: '{entry}' is the name of {len(matches)} atoms", f"say which: {labels}, or an index"
            )
    return ordered_atoms(topology, spec, owner)


def _matching(topology: Topology, entry: int | str, owner: str) -> list[int]:
    n = len(topology)
    if isinstance(entry, str):
        full = [f"{residue}:{name}" for residue, name in zip(topology.residues, topology.names, strict=True)]
        matches = [i for i in range(n) if topology.names[i] and entry in (topology.names[i], full[i])]
        if not matches:
            names = {name for i, name in enumerate(full if ":" in entry else topology.names) if topology.names[i]}
            cure = did_you_mean(entry, names) if names else "this molecule has no atom names; give indices"
            raise UqbiasError(f"{owner}: no atom is called '{entry}'", cure)
        return matches
    if isinstance(entry, bool) or not isinstance(entry, int | np.integer) or not 0 <= entry < n:
        raise UqbiasError(f"{owner}: {entry!r} in a molecule of {n} atoms", "atoms are numbered from 0")
    return [int(entry)]


def _label(topology: Topology, index: int) -> str:
    residue, name = topology.residues[index], topology.names[index]
    return f"{residue}:{name}" if residue and name else name or str(index)


def select_atoms(topology: Topology, spec: Unchecked | None) -> tuple[int, ...]:
    """Atom indices, ascending, each once; ``spec`` as for `ordered_atoms`, None for all atoms."""
    return tuple(sorted(set(_chosen(topology, "all" if spec is None else spec, "atoms"))))


def word_of(spec: object) -> Selection:
    """The word of a selection by which it chooses atoms in any system, if it is one."""
    return "all" if spec == "all" else "heavy" if spec == "heavy" else None


def select_again(topology: Topology, selection: Selection, every: bool, owner: str) -> tuple[int, ...]:
    """Atoms of another system than that in which ``selection`` chose some, or ``every`` atom.

    Raises
    ------
    UqbiasError
        If atoms were chosen by index or name, which says nothing of another system.
    """
    if selection is None and not every:
        raise UqbiasError(f"{owner} of atoms given by index or name", "choose all or heavy for several systems")
    return select_atoms(topology, selection)


def _chosen(topology: Topology, spec: Unchecked, owner: str) -> list[int]:
    n = len(topology)
    if spec in ("all", "heavy"):
        chosen = [i for i in range(n) if spec == "all" or topology.numbers[i] > 1]
    elif isinstance(spec, str) or not isinstance(spec, Sequence):
        raise UqbiasError(f"{owner}: {spec!r}", "give 'all', 'heavy', or a list of indices and atom names")
    else:
        chosen = [i for entry in spec for i in _matching(topology, entry, owner)]
    if not chosen:
        raise UqbiasError(f"{owner}: {spec!r} chooses no atom of {n}", "choose at least one")
    return chosen
