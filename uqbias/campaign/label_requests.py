"""Frames to label and their labels, as executors hand them over and the ledger keeps them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.molecule.cells import EVERYWHERE, Periodic
from uqbias.molecule.frames import Frames
from uqbias.oracles.base import Label


def label_key(positions: NDArray[Any], oracle: str, cell: NDArray[Any] | None = None) -> str:
    """Identify a label by what it was computed from.

    Parameters
    ----------
    positions : [N, 3] nm; the bytes of its float64 form count.
    oracle : text that identifies the oracle and its options.
    cell : [3, 3] nm, or None.

    Returns
    -------
    str
        32 hexadecimal digits.
    """
    content = hashlib.sha256(oracle.encode())
    for part in (positions,) if cell is None else (positions, cell):
        content.update(np.ascontiguousarray(part, dtype=np.float64).tobytes())
    return content.hexdigest()[:32]


@dataclass(frozen=True)
class LabelRequest:
    """One frame to label.

    Attributes
    ----------
    index : place of the frame in its round.
    key : see `label_key`.
    positions : [N, 3] nm.
    info : JSON-able facts kept with the label.
    cell : [3, 3] nm, or None.
    periodic : whether the frame repeats along each lattice vector.
    """

    index: int
    key: str
    positions: NDArray[np.float64]
    info: dict[str, Any]
    cell: NDArray[np.float64] | None = None
    periodic: Periodic = EVERYWHERE


def requests_from(frames: Frames, oracle: str) -> list[LabelRequest]:
    """Requests for the labels of frames, in their order, with their info; ``oracle`` as for `label_key`."""
    cells = [None] * len(frames) if frames.cells is None else frames.cells
    return [
        LabelRequest(index, label_key(x, oracle, cell), x, info, cell, frames.periodic)
        for index, (x, cell, info) in enumerate(zip(frames.positions, cells, frames.info, strict=True))
    ]


def to_label(facts: Mapping[str, Any]) -> Label:
    """The label that a line of a ledger, or the file of a label, holds."""
    stress = facts.get("stress")
    forces = np.array(facts["forces"], dtype=np.float64)
    return Label(float(facts["energy"]), forces, None if stress is None else np.array(stress, dtype=np.float64))


def label_in(frames: Frames, index: int) -> Label:
    """The label of one labelled frame."""
    energies, forces = frames.labels()
    return Label(float(energies[index]), forces[index], None if frames.stresses is None else frames.stresses[index])
