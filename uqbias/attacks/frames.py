"""Frames of a file that a model can begin from, and why the others are left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uqbias.errors import UqbiasError
from uqbias.units import ANGSTROM

Array = NDArray[np.float64]


@dataclass(frozen=True)
class UsableFrames:
    """What was read.

    Attributes
    ----------
    positions : [n, N, 3] nm.
    index : [n] place of each in the file.
    skipped : (place in the file, reason) of the frames left out.
    """

    positions: Array
    index: NDArray[np.int64]
    skipped: list[tuple[int, str]]


def usable_frames(path: str | Path, numbers: Sequence[int]) -> UsableFrames:
    """Read the frames of one molecule from an extended-XYZ file (Å), leaving out what cannot be one.

    Parameters
    ----------
    numbers : [N] atomic numbers of the molecule, in the order of the model.

    Raises
    ------
    UqbiasError
        If the file is missing or unreadable, or no frame is left.
    """
    import ase.io
    from ase import Atoms

    path = Path(path)
    if not path.is_file():
        raise UqbiasError(f"no such file: {path}", "give an extended-XYZ file (eV, Å)")
    try:
        images = ase.io.read(path, ":", format="extxyz")
    except Exception as error:
        raise UqbiasError(f"{path} is not an extended-XYZ file ({error})", "write it with ase.io.write") from error
    wanted = [int(number) for number in numbers]
    good, skipped = [], []
    for place, image in enumerate(images):
        found = image.numbers.tolist()
        if sorted(found) != sorted(wanted):
            skipped.append(
                (place, f"atoms {image.get_chemical_formula()}, the model's are {Atoms(wanted).get_chemical_formula()}")
            )
        elif found != wanted:
            skipped.append((place, "the model's atoms in another order"))
        elif not np.isfinite(image.positions).all():
            skipped.append((place, "positions that are not finite"))
        else:
            good.append(place)
    if not good:
        reason = f"the first has {skipped[0][1]}" if skipped else "there is none"
        raise UqbiasError(f"{path}: none of {len(images)} frames can be used; {reason}", "give frames of this molecule")
    positions = np.stack([images[place].positions for place in good]) * ANGSTROM
    return UsableFrames(positions, np.array(good, dtype=np.int64), skipped)
