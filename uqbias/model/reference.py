"""What a model remembers of each system that it was trained on: a geometry to begin with, and along what it repeats."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from uqbias.errors import UqbiasError
from uqbias.molecule.frames import Frames
from uqbias.molecule.topology import Topology

#: Facts of the provenance: positions [N, 3] nm of low energy; in a cell also its vectors [3, 3] nm, and along which
#: of them the system repeats.
POSITIONS, CELL, REPEATS = "reference_positions_nm", "reference_cell_nm", "reference_periodic"
#: These facts of each of several systems, by name.
OF_SYSTEMS = "reference_of_systems"


def reference_facts(frames: Frames, energies: NDArray[np.floating]) -> dict[str, Any]:
    """Facts from the frame of lowest energy."""
    lowest = int(energies.argmin())
    facts: dict[str, Any] = {POSITIONS: np.round(frames.positions[lowest], 6).tolist()}
    if frames.cells is not None:
        facts |= {CELL: np.round(frames.cells[lowest], 6).tolist(), REPEATS: list(frames.periodic)}
    return facts


def facts_for(provenance: Mapping[str, Any], systems: Mapping[str, Topology], topology: Topology) -> dict[str, Any]:
    """The provenance of a model of several systems as that of a model of one of them, or of a new one.

    Along what a new one repeats is taken from the others where these agree.
    """
    facts = {name: fact for name, fact in provenance.items() if name not in (POSITIONS, CELL, REPEATS)}
    each: Mapping[str, Any] = provenance.get(OF_SYSTEMS, {})
    names = [name for name, graph in systems.items() if graph == topology and name in each]
    repeats = [of_one.get(REPEATS) for of_one in each.values()] or [provenance.get(REPEATS)]
    if names:
        facts |= each[names[0]]
    elif repeats[0] is not None and all(along == repeats[0] for along in repeats):
        facts[REPEATS] = repeats[0]
    return facts


def check_told_apart(sets: Mapping[str, Frames], graphs: Mapping[str, Topology]) -> None:
    """Refuse systems that differ in nothing but the cell: a model knows its system by the atoms and bonds.

    Raises
    ------
    UqbiasError
        With the names of the two.
    """
    for one, other in combinations(sets, 2):
        repeats = [sets[name].cells is not None and sets[name].periodic for name in (one, other)]
        alike = graphs[one].numbers == graphs[other].numbers and graphs[one].bonds == graphs[other].bonds
        if alike and repeats[0] != repeats[1]:
            raise UqbiasError(
                f"'{one}' and '{other}' have the same atoms and bonds, and repeat along {repeats[0] or 'nothing'} and "
                f"{repeats[1] or 'nothing'}",
                "train a model of each, or write the molecule in vacuum in a large cell too",
            )


def in_a_cell(model: torch.nn.Module) -> bool:
    """Whether the model is of atoms in a cell, not of a molecule in vacuum.

    Raises
    ------
    UqbiasError
        If it was trained on both, and its system is none of those.
    """
    topology, provenance = getattr(model, "topology", None), getattr(model, "provenance", {})
    if getattr(topology, "network", None) or REPEATS in provenance:
        return True
    each = provenance.get(OF_SYSTEMS, {})
    known = not each or topology in getattr(model, "systems", {}).values()
    if not known and any(REPEATS in of_one for of_one in each.values()):
        raise UqbiasError(
            "a model of molecules in vacuum and of atoms in cells, for a system that is none of those",
            "train it on a few frames of this system too",
        )
    return False
