"""Labels that were paid before: looked up by geometry in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from typing_extensions import Doc

from uqbias.molecule.frames import read_frames
from uqbias.molecule.labels import LabelKeys
from uqbias.molecule.sense import check_molecule, check_sense
from uqbias.options import InputFile
from uqbias.oracles.base import Answer, Array, Oracle, OracleError

#: nm; no coordinate of a geometry may be further from that of its frame in the file.
TOLERANCE = 1e-6


class Places:
    """Geometries looked up by their coordinates and cells, without any superposition.

    Parameters
    ----------
    positions : [n, N, 3] nm.
    cells : [n, 3, 3] nm, or None in vacuum.
    """

    def __init__(self, positions: NDArray[Any], cells: NDArray[Any] | None = None) -> None:
        self._count = len(positions)
        self._tree = cKDTree(_flat(positions, cells))

    def find(self, positions: NDArray[Any], cells: NDArray[Any] | None = None) -> tuple[NDArray[np.int64], Array]:
        """Index [m] of the nearest geometry to each of ``positions`` [m, N, 3], -1 where none is within `TOLERANCE`.

        Parameters
        ----------
        cells : [m, 3, 3] nm, or None in vacuum.

        Returns
        -------
        index : [m].
        apart : [m] nm, largest difference of a coordinate from the nearest geometry; infinite where there is none.
        """
        x = _flat(positions, cells)
        if not self._count or not len(x) or x.shape[1] != self._tree.m:  # one in a cell, the other in vacuum
            return np.full(len(x), -1), np.full(len(x), np.inf)
        apart, index = self._tree.query(x, p=np.inf)
        return np.where(apart <= TOLERANCE, index, -1), apart


def _flat(positions: NDArray[Any], cells: NDArray[Any] | None) -> Array:
    """Coordinates, then those of the cell, [n, D]."""
    parts = [np.asarray(part, dtype=np.float64) for part in (positions, cells) if part is not None]
    return np.concatenate([part.reshape(len(positions), -1) for part in parts], axis=1)


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
        self._places = Places(self._frames.positions, self._frames.cells)

    def options(self) -> dict[str, Any]:
        """JSON-able keyword arguments that rebuild this oracle."""
        return {"file": self.file, **self._keys}

    @classmethod
    def check_molecule(cls, options: dict[str, Any], numbers: tuple[int, ...]) -> None:
        keys = LabelKeys(*(options.get(f"{name}_key") for name in ("energy", "forces", "stress")))
        check_pool(options["file"], numbers, keys)

    def _evaluate(self, positions: Array, cell: Array | None = None) -> Answer:
        (index,), (apart,) = self._places.find(positions[None], None if cell is None else cell[None])
        if index < 0:
            raise OracleError(
                f"pool oracle: no frame of {self.file} has this geometry, the nearest is {apart:.2g} nm away",
                "propose frames of that file, with sampler: pool",
            )
        energies, forces = self._frames.labels()
        stresses = self._frames.stresses
        return float(energies[index]), forces[index], None if stresses is None else stresses[index]


def check_pool(file: str | Path, numbers: tuple[int, ...], keys: LabelKeys | None) -> None:
    """See that a file holds frames of this molecule.

    Parameters
    ----------
    numbers : [N] atomic numbers of the molecule.
    keys : names of its labels; None if it needs none.

    Raises
    ------
    UqbiasError
        If it does not.
    """
    frames = read_frames(file, labelled=keys is not None, periodic=True, keys=keys or LabelKeys())
    check_molecule(frames, numbers, "the structure")
    check_sense(frames)
