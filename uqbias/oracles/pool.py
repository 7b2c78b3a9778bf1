"""Labels that were paid before: looked up by geometry in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from typing_extensions import Doc

from uqbias.errors import UqbiasError
from uqbias.molecule.cells import ISOLATED, Periodic
from uqbias.molecule.frames import Frames, read_frames
from uqbias.molecule.labels import LabelKeys
from uqbias.molecule.sense import check_molecule, check_sense
from uqbias.molecule.structure import from_distances, whole_frames
from uqbias.options import InputFile
from uqbias.oracles.base import Answer, Array, Oracle, OracleError

NO_NUMBERS = np.empty(0, dtype=np.int64)
#: nm; no coordinate of a geometry may be further from that of its frame in the file; and of one that another program
#: computed and wrote, which rounds.
TOLERANCE, ROUNDED = 1e-6, 1e-5


class Places:
    """Geometries looked up by their coordinates and cells, without any superposition, whichever images atoms are at.

    Parameters
    ----------
    frames : frames, or positions [n, N, 3] nm in vacuum.
    """

    def __init__(self, frames: Frames | NDArray[Any]) -> None:
        frames = frames if isinstance(frames, Frames) else Frames(NO_NUMBERS, frames)
        self._count, period = len(frames), None
        if frames.cells is not None:
            #: nm, by which coordinates along each lattice vector are multiplied; where it repeats, the period.
            self._scale = np.linalg.norm(frames.cells, axis=2).max(axis=0, initial=1e-9)
            period = np.concatenate([np.tile(self._scale * frames.periodic, frames.positions.shape[1]), np.zeros(9)])
        self._tree = cKDTree(self._flat(frames), boxsize=period)

    def find(self, frames: Frames | NDArray[Any], tolerance: float = TOLERANCE) -> tuple[NDArray[np.int64], Array]:
        """Index [m] of the nearest geometry to each of m frames, -1 where none is within ``tolerance``, nm.

        Returns
        -------
        index : [m].
        apart : [m] nm, largest difference of a coordinate from the nearest geometry; infinite where there is none.
        """
        frames = frames if isinstance(frames, Frames) else Frames(NO_NUMBERS, frames)
        x = self._flat(frames)
        if not self._count or not len(x) or x.shape[1] != self._tree.m:  # one in a cell, the other in vacuum
            return np.full(len(x), -1), np.full(len(x), np.inf)
        apart, index = self._tree.query(x, p=np.inf)
        return np.where(apart <= tolerance, index, -1), apart

    def _flat(self, frames: Frames) -> Array:
        """Coordinates, then those of the cell, [n, D] nm."""
        x = np.asarray(frames.positions, dtype=np.float64)
        if frames.cells is None:
            return x.reshape(len(x), -1)
        places = x @ np.linalg.inv(frames.cells)
        places = np.where(frames.periodic, places % 1 % 1, places)  # twice: the rest of -1e-17 is 1
        return np.concatenate([(places * self._scale).reshape(len(x), -1), frames.cells.reshape(len(x), -1)], axis=1)


class PoolOracle(Oracle):
    """Labels of a file, looked up by geometry; for sampler: pool.

    A geometry that is not in the file has no label.

    With it a campaign runs on a data set that is there already, such as one of costly calculations, and sees only the
    labels that it asks for. Use it with ``sampler: pool``, which proposes frames of such a file.

    Parameters
    ----------
    file : labelled frames, in a file that `uqbias train` reads. A geometry is found again to `TOLERANCE` in each
        coordinate.
    energy_key, forces_key, stress_key : names of the labels in it, as the system section states them.

    Raises
    ------
    UqbiasError
        If the file cannot be read, or a frame has no label.
    """

    kind: ClassVar[str] = "pool"
    numbers: tuple[int, ...]
    only_known: ClassVar[bool] = True
    periodic: ClassVar[bool] = True

    def __init__(
        self,
        *,
        file: Annotated[str, InputFile(), Doc("labelled file of frames, as `uqbias train` reads them")],
        energy_key: str | None = None,
        forces_key: str | None = None,
        stress_key: str | None = None,
    ) -> None:
        self.file, self._keys = str(file), {}
        for name, value in (("energy_key", energy_key), ("forces_key", forces_key), ("stress_key", stress_key)):
            if value is not None:
                self._keys[name] = value
        self._frames = read_frames(file, periodic=True, keys=LabelKeys(energy_key, forces_key, stress_key))
        self.numbers = tuple(int(number) for number in self._frames.numbers)
        self._places = Places(self._frames)

    def options(self) -> dict[str, Any]:
        """JSON-able keyword arguments that rebuild this oracle."""
        return {"file": self.file, **self._keys}

    @classmethod
    def check_molecule(cls, options: dict[str, Any], numbers: tuple[int, ...]) -> None:
        keys = LabelKeys(*(options.get(f"{name}_key") for name in ("energy", "forces", "stress")))
        check_pool(options["file"], numbers, keys)

    def _evaluate(self, positions: Array, cell: Array | None = None) -> Answer:
        return label_at(self._frames, positions, cell, self.kind, self._places)


def label_at(frames: Frames, positions: Array, cell: Array | None, kind: str, places: Places | None = None) -> Answer:
    """The label of a geometry among labelled frames; ``kind`` of the oracle, for messages.

    Raises
    ------
    OracleError
        If no frame has this geometry.
    """
    cells, repeats = (None, ISOLATED) if cell is None else (cell[None], frames.periodic)
    there = Frames(NO_NUMBERS, positions[None], cells=cells, periodic=repeats)
    (index,), (apart,) = (places or Places(frames)).find(there)
    if index < 0:
        raise OracleError(
            f"{kind} oracle: no frame of {frames.source} has this geometry, the nearest is {apart:.2g} nm away",
            "propose frames of that file, with sampler: pool",
        )
    energies, forces = frames.labels()
    return float(energies[index]), forces[index], None if frames.stresses is None else frames.stresses[index]


def check_pool(
    file: str | Path, numbers: tuple[int, ...], keys: LabelKeys | None, periodic: Periodic | None = None
) -> None:
    """See that a file holds frames of this molecule.

    Parameters
    ----------
    numbers : [N] atomic numbers of the molecule.
    keys : names of its labels; None if it needs none.
    periodic : whether the start frames repeat along each lattice vector; None: not asked.

    Raises
    ------
    UqbiasError
        If it does not.
    """
    frames = read_frames(file, labelled=keys is not None, periodic=True, keys=keys or LabelKeys())
    check_molecule(frames, numbers, "the structure")
    if periodic is not None and frames.periodic != periodic:
        raise UqbiasError(
            f"{file} has pbc {list(frames.periodic)}, the start frames {list(periodic)}",
            "give a pool and start frames that repeat alike",
        )
    first = None if frames.cells is None else frames.cells[0]
    check_sense(whole_frames(frames, from_distances(frames.numbers, frames.positions[0], first, frames.periodic)))
