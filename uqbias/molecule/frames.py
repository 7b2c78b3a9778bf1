"""Labelled and unlabelled geometries of one molecule or crystal, and their files (eV, Å)."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from uqbias.errors import UqbiasError
from uqbias.files import atomic_path
from uqbias.molecule.cells import EVERYWHERE, ISOLATED, Periodic, check_cell, volume
from uqbias.molecule.labels import Kind, LabelKeys
from uqbias.molecule.readers import Image, energy_name, label_values, missing, read_images, tell_other_labels
from uqbias.units import ANGSTROM, EV, EV_PER_ANGSTROM

Array = NDArray[np.float64]
LOG = logging.getLogger(__name__)
#: Which labels a file must have, see `read_frames`.
Labelled = bool | Literal["energies", "unless failed"]
#: No coordinate or label, in eV and Å, is so large.
ABSURD = 1e15
KINDS: tuple[Kind, ...] = ("energy", "forces", "stress")
#: Energies, forces and stresses under their usual names.
USUAL = LabelKeys()


@dataclass(frozen=True)
class Frames:
    """``n`` geometries of one molecule or crystal in runtime units.

    Attributes
    ----------
    numbers : [N] atomic numbers.
    positions : [n, N, 3] nm.
    energies : [n] kJ/mol, or None where not labelled.
    forces : [n, N, 3] kJ/mol/nm, or None where not labelled.
    info : one dict a frame, written to the comment line of the file.
    cells : [n, 3, 3] nm, rows are lattice vectors; None for molecules in vacuum.
    stresses : [n, 3, 3] kJ/mol/nm³, tension positive, or None.
    source : where they come from, for messages.
    periodic : whether they repeat along each lattice vector; never without cells.
    """

    numbers: NDArray[np.int64]
    positions: Array
    energies: Array | None = None
    forces: Array | None = None
    info: list[dict[str, Any]] = field(default_factory=list)
    cells: Array | None = None
    stresses: Array | None = None
    source: str = "frames"
    periodic: Periodic = EVERYWHERE

    def __post_init__(self) -> None:
        if (self.cells is None) != (self.periodic == ISOLATED):
            object.__setattr__(self, "periodic", ISOLATED if self.cells is None else EVERYWHERE)

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def labelled(self) -> bool:
        """Whether energies and forces are there."""
        return self.energies is not None and self.forces is not None

    def __getitem__(self, index: slice | NDArray[Any] | list[int]) -> Frames:
        picked = np.arange(len(self))[index]

        def pick(values: Array | None) -> Array | None:
            return None if values is None else values[picked]

        return replace(
            self,
            positions=self.positions[picked],
            energies=pick(self.energies),
            forces=pick(self.forces),
            info=[self.info[i] for i in picked] if self.info else [],
            cells=pick(self.cells),
            stresses=pick(self.stresses),
        )

    def labels(self) -> tuple[Array, Array]:
        """Energies and forces.

        Raises
        ------
        UqbiasError
            If the frames carry no labels.
        """
        if self.energies is None or self.forces is None:
            absent = "forces" if self.energies is not None else "energies and forces"
            raise UqbiasError(f"the frames carry no {absent}", "label them first")
        return self.energies, self.forces

    @staticmethod
    def concatenate(parts: list[Frames]) -> Frames:
        """Join frames of one molecule; what not every part has is left out.

        Raises
        ------
        UqbiasError
            For parts with other atoms, or some with cells and some without.
        """
        first = parts[0]
        for part in parts[1:]:
            if not np.array_equal(part.numbers, first.numbers):
                raise UqbiasError(f"frames of two molecules: {first.numbers.tolist()} and {part.numbers.tolist()}")
        if len({part.periodic for part in parts}) > 1:
            raise UqbiasError("frames with a cell and frames without", "keep periodic frames and others apart")

        def joined(arrays: list[Array | None]) -> Array | None:
            present = [array for array in arrays if array is not None]
            return np.concatenate(present) if len(present) == len(parts) else None

        return Frames(
            numbers=first.numbers,
            positions=np.concatenate([part.positions for part in parts]),
            energies=joined([part.energies for part in parts]),
            forces=joined([part.forces for part in parts]),
            info=[entry for part in parts for entry in (part.info or [{} for _ in range(len(part))])],
            cells=joined([part.cells for part in parts]),
            stresses=joined([part.stresses for part in parts]),
            source=first.source,
            periodic=first.periodic,
        )


def read_frames(
    path: str | Path,
    *,
    labelled: Labelled = True,
    periodic: bool = False,
    keys: LabelKeys = USUAL,
    form: str | None = None,
) -> Frames:
    """Read a file of frames in any format of `uqbias.molecule.readers.read_images`.

    Parameters
    ----------
    labelled : demand finite energies and forces in every frame; ``"energies"``: energies at least; ``"unless failed"``:
        but for those that ``failed`` in their info marks, whose labels are then NaN.
    periodic : take frames with a cell too; otherwise they are refused, so that no cell is dropped in silence.
    keys : names of the labels in the file. The stress of periodic frames (eV/Å³, tension positive) is called ``stress``
        or, as ``virial`` or where its name has that in it, is a virial: minus the stress times the volume, eV.
    form : ASE's name of the format; None: as the name of the file says.

    Raises
    ------
    UqbiasError
        If the file is missing, empty, holds more than one molecule, or a label is missing, not finite or no number; and
        for a periodic frame where none is expected, or one beside frames that are not.
    """
    path = Path(path)
    images = _images(path, form)
    systems = _by_atoms(images)
    if len(systems) > 1:
        raise _two_molecules(path, images, systems)
    return _read(path, images, systems, labelled, periodic, keys)[0]


def read_systems(
    path: str | Path,
    *,
    labelled: Labelled = True,
    periodic: bool = False,
    keys: LabelKeys = USUAL,
) -> list[Frames]:
    """Read a file of frames of several systems, each by itself: same atoms in the same order are one system.

    Parameters and errors are those of `read_frames`; a system has cells in all of its frames, or in none.
    """
    path = Path(path)
    images = _images(path)
    return _read(path, images, _by_atoms(images), labelled, periodic, keys)


def _images(path: Path, form: str | None = None) -> list[Image]:
    images = read_images(path, form)
    if not images:
        raise UqbiasError(f"{path} holds no frame")
    return images


def _read(
    path: Path,
    images: list[Image],
    systems: list[list[int]],
    labelled: Labelled,
    periodic: bool,
    keys: LabelKeys,
) -> list[Frames]:
    """Frames of each system, which is given by the places of its images."""
    cells = [_cells(path, images, places, periodic) for places in systems]
    boxed = any(one is not None for one, _ in cells)
    positions = [np.stack([images[i].positions for i in places]) * ANGSTROM for places in systems]
    for places, x in zip(systems, positions, strict=True):
        _check_size(path, "positions are", x, places)
    columns, names = _labels(path, images, systems, boxed, labelled, keys)
    frames = []
    for at, (places, (boxes, repeats)) in enumerate(zip(systems, cells, strict=True)):
        energies, forces, stresses = (columns[kind][at] if kind in columns else None for kind in KINDS)
        if stresses is not None and "virial" in str(names["stress"]).lower():
            if boxes is None:
                cure = "give their cells, or no name of a stress"
                raise UqbiasError(f"{path}: a virial of frames without a cell", cure)
            stresses = -stresses * ANGSTROM**3 / volume(boxes)[:, None, None]
        first = images[places[0]]
        frames.append(
            Frames(
                first.numbers,
                positions[at],
                energies,
                forces if energies is not None else None,
                [dict(images[i].info) for i in places],
                boxes,
                stresses,
                source=str(path) if len(systems) == 1 else f"{path} ({first.formula})",
                periodic=repeats,
            )
        )
    tell_other_labels(path, images, keys, names, needed=bool(labelled))
    return frames


def _labels(
    path: Path,
    images: list[Image],
    systems: list[list[int]],
    boxed: bool,
    labelled: Labelled,
    keys: LabelKeys,
) -> tuple[dict[Kind, list[Array | None]], dict[Kind, str | None]]:
    """Labels of each system, None where not all of its frames have them, in runtime units; and their names."""
    units: dict[Kind, float] = dict(zip(KINDS, (EV, EV_PER_ANGSTROM, EV / ANGSTROM**3), strict=True))
    failed = np.array([labelled == "unless failed" and bool(image.info.get("failed")) for image in images])
    needed: list[Kind] = ["energy"] if labelled == "energies" else ["energy", "forces"] if labelled else []
    given: list[Kind] = [kind for kind in units if getattr(keys, kind) is not None]
    names: dict[Kind, str | None] = {kind: getattr(keys, kind) or kind for kind in units}
    names["energy"] = keys.energy or energy_name(path, images, needed=bool(labelled))
    if not boxed and keys.stress is None:  # nothing needs it
        del units["stress"], names["stress"]
    elif keys.stress is None and not any("stress" in image.values for image in images):
        names["stress"] = "virial"
    columns: dict[Kind, list[Array | None]] = {}
    for kind in units:
        values = label_values(path, images, kind, names[kind])
        if kind != "stress" or any(value is not None for value in values):
            shapes = {"energy": (), "stress": (3, 3)}
            for i in np.flatnonzero(failed):
                values[i] = np.zeros(shapes.get(kind, images[i].positions.shape))
        # Molecules in vacuum beside crystals have no stress.
        without = [
            index
            for index, value in enumerate(values)
            if value is None and (kind != "stress" or not boxed or any(images[index].periodic))
        ]
        partial = labelled and len(without) < len(images) and kind != "stress"
        if without and (kind in {*needed, *given} or partial):
            raise missing(
                path, images[without[0]], without[0], ["energy", "forces"] if kind in needed else [kind], names
            )
        columns[kind] = []
        for places in systems:
            absent = sum(values[i] is None for i in places)
            columns[kind].append(None if absent else np.stack([values[i] for i in places]))
            if 0 < absent < len(places):
                LOG.warning("%s: %d of %d frames have no %s, which is not used", path, absent, len(places), kind)
    for kind, of_systems in columns.items():
        for at, (places, column) in enumerate(zip(systems, of_systems, strict=True)):
            if column is not None:
                _check_size(path, f"{kind} is", column, places)
                column[failed[places]] = np.nan
                of_systems[at] = column * units[kind]
    return columns, names


def write_frames(path: str | Path, frames: Frames) -> None:
    """Write an extended-XYZ file (eV, Å, eV/Å) atomically."""
    import ase.io
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator

    images = []
    for index in range(len(frames)):
        image = Atoms(numbers=frames.numbers, positions=frames.positions[index] / ANGSTROM)
        if frames.cells is not None:
            image.set_cell(frames.cells[index] / ANGSTROM)
            image.set_pbc(frames.periodic)
        image.info.update(frames.info[index] if frames.info else {})
        labels: dict[str, Any] = {}
        if frames.energies is not None:
            labels["energy"] = float(frames.energies[index] / EV)
        if frames.forces is not None:
            labels["forces"] = frames.forces[index] / EV_PER_ANGSTROM
        if frames.stresses is not None:
            labels["stress"] = (frames.stresses[index] * ANGSTROM**3 / EV).ravel()[[0, 4, 8, 5, 2, 1]]
        if labels:
            image.calc = SinglePointCalculator(image, **labels)
        images.append(image)
    with atomic_path(path) as temporary:
        ase.io.write(temporary, images, format="extxyz")


def _by_atoms(images: list[Image]) -> list[list[int]]:
    """Places of the images that have the same atoms in the same order."""
    systems: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        systems.setdefault(tuple(image.numbers.tolist()), []).append(index)
    return list(systems.values())


def _two_molecules(path: Path, images: list[Image], systems: list[list[int]]) -> UqbiasError:
    names = [f"{images[places[0]].formula} ({len(places)}, first frame {places[0]})" for places in systems]
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    one = len({tuple(sorted(images[places[0]].numbers)) for places in systems}) == 1
    return UqbiasError(
        f"{path} holds {len(systems)} {'orders of atoms of one molecule' if one else 'molecules'}: {shown}",
        "keep one molecule in one atom order per file",
    )


def _cells(path: Path, images: list[Image], places: list[int], allowed: bool) -> tuple[Array | None, Periodic]:
    """Cells [n, 3, 3] nm of periodic images, None where no image is periodic, and along which vectors they repeat."""
    first = images[places[0]].periodic
    for index in places:
        image = images[index]
        if any(image.periodic) and not allowed:
            raise UqbiasError(f"{path}: frame {index} is periodic", 'give a molecule in vacuum, pbc="F F F"')
        if image.periodic != first:
            where, other = (index, first) if any(image.periodic) else (places[0], image.periodic)
            rest = f"have pbc {list(other)}" if any(other) else "are not"
            raise UqbiasError(
                f"{path}: frame {where} is periodic (pbc {list(images[where].periodic)}), others {rest}",
                "keep periodic frames and others in files of their own",
            )
    if not any(first):
        return None, ISOLATED
    cells = [check_cell(images[index].cell * ANGSTROM, first, f"{path}: frame {index}") for index in places]
    return np.stack(cells), first


def _check_size(path: Path, what: str, values: Array, places: list[int]) -> None:
    largest = np.abs(values.reshape(len(values), -1)).max(axis=1, initial=0)
    bad = ~(largest < ABSURD)
    if bad.any():
        index = int(bad.argmax())
        size = f"absurdly large ({largest[index]:.3g})" if np.isfinite(largest[index]) else "not finite"
        raise UqbiasError(f"{path}: {what} {size} in frame {places[index]}", "remove that frame")
