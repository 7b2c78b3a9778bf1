"""The two coordinates of the maps: named dihedrals, or principal components where none are configured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.errors import UqbiasError
from uqbias.molecule.measures import dihedral_angles

Array = NDArray[np.float64]

GREEK = {"phi": "φ", "psi": "ψ", "omega": "ω", "chi": "χ", "chi1": "χ₁", "chi2": "χ₂"}


@dataclass(frozen=True)
class MapAxes:
    """A map of geometries to the plane on which the figures are drawn.

    Attributes
    ----------
    labels : axis labels with units.
    limits : ((x_low, x_high), (y_low, y_high)).
    periodic : whether both axes are angles from -180 to 180 degrees.
    project : [..., N, 3] nm -> [..., 2].
    """

    labels: tuple[str, str]
    limits: tuple[tuple[float, float], tuple[float, float]]
    periodic: bool
    project: Callable[[Array], Array]


@dataclass(frozen=True)
class Region:
    """A named part of the map, for which errors are reported apart.

    Attributes
    ----------
    name : the name in the keys of summary.json.
    title : the name that tables show.
    text : its bounds in words, such as ``15° < φ < 135°``.
    shaded : [low, high] in degrees of what it takes of the first coordinate, in two pieces where it goes through 180°;
        empty for a region that other coordinates bound too.
    """

    name: str
    title: str
    text: str
    shaded: tuple[tuple[float, float], ...] = ()


def regions_of(score: Mapping[str, Any]) -> list[Region]:
    """Regions in the section ``score`` of a campaign file."""
    first = [*(score.get("coordinates") or {})][:1]
    regions = []
    for name, box in (score.get("regions") or {}).items():
        text = ", ".join(f"{low:g}° < {GREEK.get(angle, angle)} < {high:g}°" for angle, (low, high) in box.items())
        low, high = next(iter(box.values()))
        pieces = ((low, high),) if low <= high else ((low, 180.0), (-180.0, high))
        regions.append(Region(name, display_name(score, name), text, pieces if [*box] == first else ()))
    return regions


def display_name(score: Mapping[str, Any], name: str) -> str:
    """Name of a basin or a region in figures and tables."""
    return str((score.get("display_names") or {}).get(name, name))


def dihedral_coordinates(named: Mapping[str, Sequence[int]]) -> MapAxes:
    """The first two of ``named`` dihedrals (name -> four atom indices).

    Raises
    ------
    UqbiasError
        If there are fewer than two, or one does not name four atoms.
    """
    if len(named) < 2:
        raise UqbiasError(
            f"a map needs two coordinates, not {list(named)}", "name two dihedrals under score.coordinates"
        )
    pair = [*named.items()][:2]
    for name, atoms in pair:
        if len(atoms) != 4:
            raise UqbiasError(f"coordinate '{name}' has atoms {list(atoms)}", "a dihedral takes four atom indices")

    def project(positions: Array) -> Array:
        return np.degrees(dihedral_angles(positions, [atoms for _, atoms in pair]))

    x, y = (f"{GREEK.get(name, name)} (°)" for name, _ in pair)
    return MapAxes((x, y), ((-180.0, 180.0), (-180.0, 180.0)), True, project)


def principal_components(positions: Array, numbers: NDArray[np.int64] | None = None) -> MapAxes:
    """First two principal components of the heavy-atom pair distances of labelled frames.

    Parameters
    ----------
    positions : [n, N, 3] nm, the frames that the components are fitted to.
    numbers : [N] atomic numbers; without them every atom counts as heavy.
    """
    n_atoms = positions.shape[1]
    if n_atoms == 1:
        return places(positions)
    heavy = np.arange(n_atoms) if numbers is None else np.flatnonzero(np.asarray(numbers) > 1)
    if len(heavy) < 3:
        heavy = np.arange(n_atoms)
    first, second = np.triu_indices(len(heavy), 1)

    def distances(frames: Array) -> Array:
        chosen = np.asarray(frames, dtype=np.float64)[..., heavy, :]
        return np.asarray(np.linalg.norm(chosen[..., first, :] - chosen[..., second, :], axis=-1))

    values = distances(positions)
    mean = values.mean(axis=0)
    axes = np.linalg.svd(values - mean, full_matrices=False)[2][:2]
    axes = np.vstack([axes, np.zeros((2 - len(axes), axes.shape[1]))])
    axes *= np.where(axes[np.arange(2), np.abs(axes).argmax(axis=1)] < 0, -1.0, 1.0)[:, None]  # a sign that is stable

    def project(frames: Array) -> Array:
        return np.asarray((distances(frames) - mean) @ axes.T)

    limits = _limits((values - mean) @ axes.T)
    return MapAxes(("component 1 (nm)", "component 2 (nm)"), limits, False, project)


def places(positions: Array) -> MapAxes:
    """Place of the first atom, x and y: for a lone one in an external field; ``positions`` [n, N, 3] nm."""

    def project(frames: Array) -> Array:
        return np.asarray(frames, dtype=np.float64)[..., 0, :2]

    return MapAxes(("x (nm)", "y (nm)"), _limits(project(positions)), False, project)


def _limits(points: Array) -> tuple[tuple[float, float], tuple[float, float]]:
    """Range of each column of ``points`` [n, 2], with a margin."""
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.15 * np.maximum(high - low, 1e-3)
    (x, y) = ((float(a), float(b)) for a, b in zip(low - margin, high + margin, strict=True))
    return x, y
