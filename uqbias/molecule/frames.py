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
#: No coordinate or label, in eV and Å, is so large.
ABSURD = 1e15
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
    labelled: bool | Literal["energies", "unless failed"] = True,
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
    images = read_images(path, form)
    if not images:
        raise UqbiasError(f"{path} holds no frame")
    failed = np.array([labelled == "unless failed" and bool(image.info.get("failed")) for image in images])
    numbers = _one_molecule(path, images)
    cells, repeats = _cells(path, images, periodic)
    positions = np.stack([image.positions for image in images]) * ANGSTROM
    _check_size(path, "positions are", positions)
    units: dict[Kind, float] = {"energy": EV, "forces": EV_PER_ANGSTROM, "stress": EV / ANGSTROM**3}
    needed: list[Kind] = ["energy"] if labelled == "energies" else ["energy", "forces"] if labelled else []
    given: list[Kind] = [kind for kind in units if getattr(keys, kind) is not None]
    columns: dict[Kind, Array | None] = {}
    names: dict[Kind, str | None] = {kind: getattr(keys, kind) or kind for kind in units}
    names["energy"] = keys.energy or energy_name(path, images, needed=bool(labelled))
    if cells is None and keys.stress is None:  # nothing needs it
        del units["stress"], names["stress"]
    elif keys.stress is None and not any("stress" in image.values for image in images):
        names["stress"] = "virial"
    for kind in units:
        values = label_values(path, images, kind, names[kind])
        if kind != "stress" or any(value is not None for value in values):
            shape = {"energy": (), "forces": (len(numbers), 3), "stress": (3, 3)}[kind]
            values = [np.zeros(shape) if bad else value for bad, value in zip(failed, values, strict=True)]
        without = [index for index, value in enumerate(values) if value is None]
        columns[kind] = None if without else np.stack(values)
        partial = labelled and len(without) < len(images) and kind != "stress"
        if without and (kind in {*needed, *given} or partial):
            raise missing(
                path, images[without[0]], without[0], ["energy", "forces"] if kind in needed else [kind], names
            )
        if 0 < len(without) < len(images):
            LOG.warning("%s: %d of %d frames have no %s, which is not used", path, len(without), len(images), kind)
    for kind, column in columns.items():
        if column is not None:
            _check_size(path, f"{kind} is", column)
            column[failed] = np.nan
            columns[kind] = column * units[kind]
    stresses = columns.get("stress")
    if stresses is not None and "virial" in str(names["stress"]).lower():
        if cells is None:
            raise UqbiasError(f"{path}: a virial of frames without a cell", "give their cells, or no name of a stress")
        stresses = -stresses * ANGSTROM**3 / volume(cells)[:, None, None]
    tell_other_labels(path, images, keys, names, needed=bool(labelled))
    return Frames(
        numbers,
        positions,
        columns["energy"],
        columns["forces"] if columns["energy"] is not None else None,
        [dict(image.info) for image in images],
        cells,
        stresses,
        source=str(path),
        periodic=repeats,
    )


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


def _one_molecule(path: Path, images: list[Image]) -> NDArray[np.int64]:
    """Atomic numbers [N] that all images have."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(tuple(image.numbers.tolist()), []).append(index)
    if len(groups) > 1:
        names = [f"{images[where[0]].formula} ({len(where)}, first frame {where[0]})" for where in groups.values()]
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        one = len({tuple(sorted(numbers)) for numbers in groups}) == 1
        raise UqbiasError(
            f"{path} holds {len(groups)} {'orders of atoms of one molecule' if one else 'molecules'}: {shown}",
            "keep one molecule in one atom order per file",
        )
    return images[0].numbers


def _cells(path: Path, images: list[Image], allowed: bool) -> tuple[Array | None, Periodic]:
    """Cells [n, 3, 3] nm of periodic images, None where no image is periodic, and along which vectors they repeat."""
    first = images[0].periodic
    for index, image in enumerate(images):
        if any(image.periodic) and not allowed:
            raise UqbiasError(f"{path}: frame {index} is periodic", 'give a molecule in vacuum, pbc="F F F"')
        if image.periodic != first:
            where, other = (index, first) if any(image.periodic) else (0, image.periodic)
            rest = f"have pbc {list(other)}" if any(other) else "are not"
            raise UqbiasError(
                f"{path}: frame {where} is periodic (pbc {list(images[where].periodic)}), others {rest}",
                "keep periodic frames and others in files of their own",
            )
    if not any(first):
        return None, ISOLATED
    cells = [check_cell(image.cell * ANGSTROM, first, f"{path}: frame {index}") for index, image in enumerate(images)]
    return np.stack(cells), first


def _check_size(path: Path, what: str, values: Array) -> None:
    largest = np.abs(values.reshape(len(values), -1)).max(axis=1, initial=0)
    bad = ~(largest < ABSURD)
    if bad.any():
        index = int(bad.argmax())
        size = f"absurdly large ({largest[index]:.3g})" if np.isfinite(largest[index]) else "not finite"
        raise UqbiasError(f"{path}: {what} {size} in frame {index}", "remove that frame")
