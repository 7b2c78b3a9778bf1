"""Structures from files and from positions: bonds through the images of a cell, networks and molecules among them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from uqbias.errors import UqbiasError
from uqbias.molecule.cells import EVERYWHERE, ISOLATED, Periodic, check_cell, volume
from uqbias.molecule.frames import Frames
from uqbias.molecule.readers import known, unreadable
from uqbias.molecule.topology import BOND_TOLERANCE, Topology, read_pdb
from uqbias.units import ANGSTROM

Array = NDArray[np.float64]
#: Files that OpenMM reads, with residues; and what is read.
PDB = (".pdb", ".ent")
FILES = "PDB, extended XYZ, CIF or POSCAR"
#: nm³ an atom; the cell of a PDB file with less is none (CRYST1 1 1 1).
LEAST_VOLUME = 3e-3


class Structure(NamedTuple):
    """What a file of one structure holds.

    Attributes
    ----------
    topology : atoms and bonds.
    positions : [N, 3] nm.
    cell : [3, 3] nm; None in vacuum.
    periodic : whether it repeats along each lattice vector.
    """

    topology: Topology
    positions: Array
    cell: Array | None = None
    periodic: Periodic = ISOLATED


def read_structure(path: str | Path) -> Structure:
    """Read a structure: PDB (bonds from residue templates and CONECT records), or whatever ASE reads, such as extended
    XYZ, CIF and POSCAR (bonds from the distances). Of several frames the first counts.

    The cell of a PDB file tells networks from molecules and no more: many have one that means nothing.

    Raises
    ------
    UqbiasError
        If the file is missing, cannot be read, has no atom, places that are only partly occupied, or no cell that fits.
    """
    path = Path(path)
    if path.suffix.lower() in PDB:
        return _from_pdb(path)
    if not path.is_file():
        raise UqbiasError(f"no such file: {path}", f"give a {FILES} file")
    import ase.io

    try:
        atoms = known(ase.io.read(path, 0, do_not_split_by_at_sign=True))
    except Exception as error:
        raise unreadable(path, "no structure that ASE reads", error, f"give a {FILES} file, named so") from error
    if not len(atoms):
        raise UqbiasError(f"{path} holds no atom", "give a structure")
    if any(share < 1 for site in (atoms.info.get("occupancy") or {}).values() for share in site.values()):
        raise UqbiasError(f"{path} has places that are only partly occupied", "give one arrangement of its atoms")
    a, b, c = (bool(repeats) for repeats in atoms.pbc)
    periodic = a, b, c
    cell = check_cell(atoms.cell.array * ANGSTROM, periodic, str(path)) if any(periodic) else None
    positions = atoms.positions * ANGSTROM
    return Structure(from_distances(atoms.numbers, positions, cell, periodic), positions, cell, periodic)


def _from_pdb(path: Path) -> Structure:
    pdb, x = read_pdb(path)
    graph, vectors = Topology.from_pdb(path), pdb.getPeriodicBoxVectors()
    cell = None if vectors is None else np.array(vectors._value)
    if cell is None or volume(cell) < LEAST_VOLUME * len(x):
        return Structure(graph, x)
    if Topology.from_openmm(pdb).bonds == graph.bonds:
        i, j = np.array(graph.bonds, dtype=np.int64).reshape(-1, 2).T
        shifts = -np.round((x[j] - x[i]) @ np.linalg.inv(cell)).astype(np.int64)
        _, network = _components(len(x), *(np.concatenate(two) for two in ((i, j), (j, i), (shifts, -shifts))))
        graph = replace(graph, bonds=tuple(bond for bond in graph.bonds if bond[0] not in network), network=network)
    else:
        guessed = from_distances(graph.numbers, x, cell)
        graph = replace(graph, bonds=guessed.bonds, network=guessed.network)
    return Structure(graph, x)


def from_distances(
    numbers: Iterable[int], positions: NDArray[Any], cell: NDArray[Any] | None = None, periodic: Periodic = EVERYWHERE
) -> Topology:
    """Guess bonds from distances, through the images of a cell where there is one.

    Atoms whose bonds lead to their own image are of a network: they carry no bonds, and each is a residue of its own.
    The others are molecules, each a residue.

    Parameters
    ----------
    numbers : [N] atomic numbers.
    positions : [N, 3] nm.
    cell : [3, 3] nm; None in vacuum.
    periodic : whether it repeats along each lattice vector.
    """
    elements = tuple(int(number) for number in numbers)
    if cell is None:
        return Topology.from_positions(elements, positions)
    from ase.data import chemical_symbols, covalent_radii

    from uqbias.molecule.neighbours import pairs_by_tree

    x, box = np.asarray(positions, dtype=np.float64), np.asarray(cell, dtype=np.float64)
    radii = BOND_TOLERANCE * ANGSTROM * covalent_radii[list(elements)]
    pairs = pairs_by_tree(x[None], box[None], periodic, 2 * float(radii.max(initial=0)))
    apart = np.linalg.norm(x[pairs.j] - x[pairs.i] + pairs.shifts @ box, axis=1)
    close = apart < radii[pairs.i] + radii[pairs.j]
    molecules, network = _components(len(x), pairs.i[close], pairs.j[close], pairs.shifts[close])
    molecule = {atom: place for place, atoms in enumerate(molecules, start=1) for atom in atoms}
    residues = [
        f"{chemical_symbols[number]}{atom + 1}" if atom in network else f"MOL{molecule[atom]}"
        for atom, number in enumerate(elements)
    ]
    bonds = {
        (min(i, j), max(i, j))
        for i, j in zip(pairs.i[close].tolist(), pairs.j[close].tolist(), strict=True)
        if i not in network
    }
    return Topology(elements, tuple(bonds), residues=tuple(residues), network=network)


def _components(
    count: int, i: NDArray[np.int64], j: NDArray[np.int64], shifts: NDArray[np.int64]
) -> tuple[list[list[int]], frozenset[int]]:
    """Atoms of each molecule, and the atoms of networks: of a network two ways lead to different images of an atom."""
    bonded: list[list[tuple[int, tuple[int, ...]]]] = [[] for _ in range(count)]
    for first, second, shift in zip(i.tolist(), j.tolist(), shifts.tolist(), strict=True):
        bonded[first].append((second, tuple(shift)))
    place: list[tuple[int, ...] | None] = [None] * count
    molecules: list[list[int]] = []
    network: set[int] = set()
    for start in range(count):
        if place[start] is not None:
            continue
        place[start] = (0, 0, 0)
        atoms, winds = [start], False
        for atom in atoms:  # grows
            here = place[atom]
            assert here is not None
            for other, shift in bonded[atom]:
                there = tuple(a + b for a, b in zip(here, shift, strict=True))
                if place[other] is None:
                    place[other] = there
                    atoms.append(other)
                winds |= place[other] != there
        if winds:
            network.update(atoms)
        else:
            molecules.append(atoms)
    return molecules, frozenset(network)


def made_whole(topology: Topology, positions: NDArray[Any], cells: NDArray[Any] | None, periodic: Periodic) -> Array:
    """Positions in which the atoms of each molecule are at the images that are bonded; a whole one stays as it is.

    Parameters
    ----------
    positions : [n, N, 3] nm.
    cells : [n, 3, 3] nm; None in vacuum.
    """
    x = np.asarray(positions, dtype=np.float64)
    if cells is None or not topology.bonds or not len(x):
        return x
    x, inverse = x.copy(), np.linalg.inv(cells)
    reached = np.zeros(len(topology), dtype=bool)
    for start in range(len(topology)):
        if reached[start]:
            continue
        reached[start], queue = True, [start]
        for atom in queue:  # grows
            for other in topology.neighbours[atom]:
                if not reached[other]:
                    reached[other] = True
                    queue.append(other)
                    steps = np.round(np.einsum("nx,nxy->ny", x[:, other] - x[:, atom], inverse)) * periodic
                    x[:, other] -= np.einsum("nx,nxy->ny", steps, cells)
    return x


def whole_frames(frames: Frames, topology: Topology) -> Frames:
    """The frames with `made_whole` positions."""
    return replace(frames, positions=made_whole(topology, frames.positions, frames.cells, frames.periodic))
