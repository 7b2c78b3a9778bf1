"""Frames that a model can begin from, and what they say of a molecule though some are broken."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uqbias.errors import UqbiasError
from uqbias.molecule.measures import distances
from uqbias.molecule.readers import read_images
from uqbias.molecule.sense import check_geometries
from uqbias.molecule.topology import Topology
from uqbias.units import ANGSTROM

Array = NDArray[np.float64]
#: A molecule has flown apart when an atom is further from the centre than this multiple of the base's radius, plus nm;
#: the base itself may have this multiple of the typical radius.
APART, APART_NM = 2.0, 0.5
#: Distances over one and two bonds of a frame that others are compared with, as multiples of their medians.
SHORT, LONG = 0.8, 1.25
#: Median absolute deviations from the median at which a value is an outlier: 6.7 standard deviations of a Gaussian.
OUTLIER = 10.0


@dataclass(frozen=True)
class UsableFrames:
    """Frames read from a file, and those left out.

    Attributes
    ----------
    positions : [n, N, 3] nm.
    index : [n] place of each in the file.
    skipped : (place in the file, reason) of the frames left out.
    """

    positions: Array
    index: NDArray[np.int64]
    skipped: list[tuple[int, str]]


def usable_frames(path: str | Path, topology: Topology) -> UsableFrames:
    """Read the frames of one molecule from a file, leaving out what cannot be one.

    Parameters
    ----------
    topology : bond graph of the molecule, in the model's order of atoms.

    Raises
    ------
    UqbiasError
        If the file is missing or unreadable, no frame is left, or they are in another unit or order of atoms.
    """
    from ase import Atoms

    path = Path(path)
    images = read_images(path)
    wanted = list(topology.numbers)
    good, skipped = [], []
    for place, image in enumerate(images):
        numbers_there = image.numbers.tolist()
        if sorted(numbers_there) != sorted(wanted):
            skipped.append((place, f"atoms {image.formula}, the model's are {Atoms(wanted).get_chemical_formula()}"))
        elif numbers_there != wanted:
            skipped.append((place, "the model's atoms in another order"))
        elif image.pbc.any():
            skipped.append((place, "a periodic cell"))
        elif not np.isfinite(image.positions).all():
            skipped.append((place, "positions that are not finite"))
        else:
            good.append(place)
    if not good:
        reason = f"the first has {skipped[0][1]}" if skipped else "there is none"
        raise UqbiasError(f"{path}: none of {len(images)} frames can be used; {reason}", "give frames of this molecule")
    positions = np.stack([images[place].positions for place in good]) * ANGSTROM
    check_geometries(positions[reference_frames(topology, positions)], wanted, topology, str(path))
    return UsableFrames(positions, np.array(good, dtype=np.int64), skipped)


def reference_frames(topology: Topology, positions: Array) -> NDArray[np.bool_]:
    """Mask of frames that show what the molecule looks like: distances over one and two bonds are near their medians.

    Means over frames, such as those of `uqbias.molecule.physical.PhysicalFilter`, are spoiled by one broken frame.

    Parameters
    ----------
    positions : [n, N, 3] nm, finite.

    Returns
    -------
    [n] bool; of the least deviating frame at least, where none is near the medians.
    """
    pairs = np.array([*topology.bonds, *((i, k) for i, _, k in topology.angles())], dtype=np.int64).reshape(-1, 2)
    if not len(pairs):
        return np.ones(len(positions), dtype=bool)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        lengths = distances(positions, pairs)
        ratio = lengths / np.median(lengths, axis=0)
        excess = np.nan_to_num(np.maximum(ratio / LONG, SHORT / ratio).max(axis=1), nan=np.inf)
    near: NDArray[np.bool_] = excess <= 1.0
    return near if near.any() else excess == excess.min()


def inliers(values: Array, least: float) -> Array:
    """Finite ones of ``values`` [n] without outliers, [m]; empty if none is finite.

    Parameters
    ----------
    least : distance from the median that is never an outlier, in the unit of the values.
    """
    finite: Array = values[np.isfinite(values)]
    if not len(finite):
        return finite
    apart = np.abs(finite - np.median(finite))
    return finite[apart <= max(OUTLIER * float(np.median(apart)), least)]


def farthest(positions: Array) -> Array:
    """Distance from the centre beyond which an atom of each molecule [n, N, 3] counts as flown off, [n] nm.

    Less than its radius for a molecule that has flown apart already, compared with the median radius of the n.
    """
    size = radius(positions)
    finite = size[np.isfinite(size)]
    # The lower one of two medians: a broken frame is rather too large than too small.
    typical = np.quantile(finite, 0.5, method="lower") if len(finite) else np.nan
    return np.asarray(APART * np.minimum(size, APART * typical) + APART_NM)


def radius(positions: Array) -> Array:
    """Largest distance of an atom from the centre of each geometry [n, N, 3], [n]; not finite if a position is not."""
    with np.errstate(over="ignore", invalid="ignore"):
        apart = positions - positions.mean(axis=1, keepdims=True)
        return np.asarray(np.linalg.norm(apart, axis=-1).max(axis=1))
