"""Frames of several systems from several files, by the name of the system."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uqbias.errors import UqbiasError
from uqbias.molecule.frames import USUAL, Frames, Labelled, read_systems
from uqbias.molecule.labels import LabelKeys
from uqbias.molecule.sense import check_geometries
from uqbias.molecule.structure import from_distances, whole_frames
from uqbias.molecule.topology import Topology


def read_collection(
    paths: Sequence[str | Path],
    *,
    labelled: Labelled = True,
    keys: LabelKeys = USUAL,
) -> dict[str, Frames]:
    """Read files of frames, with cells or without, and join those of one system.

    Frames with the same atoms in the same order and the same bonds are of one system. A system has the name
    of its file, or of its files, joined by ``+``; in a file of several its formula, with a number where two have one.

    Parameters
    ----------
    paths : files in any format of `uqbias.molecule.readers.read_images`.
    labelled, keys : as in `uqbias.molecule.frames.read_frames`.

    Raises
    ------
    UqbiasError
        As `read_frames` does, and for a system with cells in some of its frames only.
    """
    systems: list[tuple[list[str], Topology, list[Frames]]] = []
    for path in map(Path, paths):
        parts = read_systems(path, labelled=labelled, periodic=True, keys=keys)
        for frames in parts:
            name = path.stem if len(parts) == 1 else formula(frames.numbers)
            same = next((system for system in systems if _is_of(frames, *system[1:])), None)
            if same is None:
                systems.append(([name], guessed_topology(frames), [frames]))
            else:
                same[0].append(name)
                same[2].append(frames)
    named: dict[str, Frames] = {}
    for names, _, each in systems:
        name, count = "+".join(dict.fromkeys(names)), 1
        while (unique := name if count == 1 else f"{name}-{count}") in named:
            count += 1
        named[unique] = Frames.concatenate(each)
    return named


def _is_of(frames: Frames, graph: Topology, others: list[Frames]) -> bool:
    """Whether frames are of the system with this bond graph that others are of."""
    if graph.numbers != tuple(frames.numbers.tolist()) or frames.periodic != others[0].periodic:
        return False
    try:
        whole = whole_frames(frames, graph)
        check_geometries(whole.positions, graph.numbers, graph, "", frames.cells, frames.periodic)
    except UqbiasError:
        return False
    return True


def guessed_topology(frames: Frames) -> Topology:
    """Bond graph by the distances in the first frame."""
    first = None if frames.cells is None else frames.cells[0]
    return from_distances(frames.numbers.tolist(), frames.positions[0], first, frames.periodic)


def formula(numbers: Sequence[int] | NDArray[np.int64]) -> str:
    """Chemical formula of atomic numbers, in Hill's order."""
    from ase.formula import Formula
    from ase.symbols import Symbols

    return f"{Formula(Symbols(numbers).get_chemical_formula()):hill}"
