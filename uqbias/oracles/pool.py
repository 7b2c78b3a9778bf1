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
from uqbias.oracles.base import Array, Oracle, OracleError

#: nm; no coordinate of a geometry may be further from that of its frame in the file.
TOLERANCE = 1e-6


class Places:
    """Geometries looked up by their coordinates, without any superposition.

    Parameters
    ----------
    positions : [n, N, 3] nm.
    """

    def __init__(self, positions: NDArray[Any]) -> None:
        self._count = len(positions)
        self._tree = cKDTree(np.asarray(positions, dtype=np.float64).reshape(len(positions), -1))

    def find(self, positions: NDArray[Any]) -> tuple[NDArray[np.int64], Array]:
        """Index [m] of the nearest geometry to each of ``positions`` [m, N, 3], -1 where none is within `TOLERANCE`.

        Returns
        -------
        index : [m].
        apart : [m] nm, largest difference of a coordinate from the nearest geometry; infinite where there is none.
        """
        x = np.asarray(positions, dtype=np.float64)
        if not self._count or not len(x):
            return np.full(len(x), -1), np.full(len(x), np.inf)
        apart, index = self._tree.query(x.reshape(len(x), -1), p=np.inf)
        return np.where(apart <= TOLERANCE, index, -1), apart


class PoolOracle(Oracle):
    """Labels of a file, looked up by geometry; for sampler: pool.

    A geometry that is not in the file has no label.

    With it a campaign runs on a data set that is there already, such as one of costly calculations, and sees only the
    labels that it asks for. Use it with ``sampler: pool``, which proposes frames of such a file.

    Parameters
    ----------
    file : labelled frames, in a file that `uqbias train` reads. A geometry is found again to `TOLERANCE` in each
        coordinate.
    energy_key, forces_key : names of the labels in it, as the system section states them.

    Raises
    ------
    UqbiasError
        If the file cannot be read, or a frame has no label.
    """

    kind: ClassVar[str] = "pool"
    numbers: tuple[int, ...]
    only_known: ClassVar[bool] = True

    def __init__(
        self,
        *,
        file: Annotated[str, InputFile(), Doc("labelled file of frames, as `uqbias train` reads them")],
        energy_key: str | None = None,
        forces_key: str | None = None,
    ) -> None:
        self.file, self.energy_key, self.forces_key = str(file), energy_key, forces_key
        self._frames = read_frames(file, keys=LabelKeys(energy_key, forces_key))
        self.numbers = tuple(int(number) for number in self._frames.numbers)
        self._places = Places(self._frames.positions)

    def options(self) -> dict[str, Any]:
        """JSON-able keyword arguments that rebuild this oracle."""
        keys = {name: value for name in ("energy_key", "forces_key") if (value := getattr(self, name)) is not None}
        return {"file": self.file, **keys}

    @classmethod
    def check_molecule(cls, options: dict[str, Any], numbers: tuple[int, ...]) -> None:
        check_pool(options["file"], numbers, LabelKeys(options.get("energy_key"), options.get("forces_key")))

    def _evaluate(self, positions: Array) -> tuple[float, Array]:
        (index,), (apart,) = self._places.find(positions[None])
        if index < 0:
            raise OracleError(
                f"pool oracle: no frame of {self.file} has this geometry, the nearest is {apart:.2g} nm away",
                "propose frames of that file, with sampler: pool",
            )
        energies, forces = self._frames.labels()
        return float(energies[index]), forces[index]


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
    frames = read_frames(file, labelled=keys is not None, keys=keys or LabelKeys())
    check_molecule(frames, numbers, "the structure")
    check_sense(frames)
