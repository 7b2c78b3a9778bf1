"""Labelled and unlabelled geometries of one molecule, and their extended-XYZ files (eV, Å)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.errors import UqbiasError
from uqbias.files import atomic_path
from uqbias.units import ANGSTROM, EV, EV_PER_ANGSTROM

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Frames:
    """``n`` geometries of one molecule in runtime units.

    Attributes
    ----------
    numbers : [N] atomic numbers.
    positions : [n, N, 3] nm.
    energies : [n] kJ/mol, or None where not labelled.
    forces : [n, N, 3] kJ/mol/nm, or None where not labelled.
    info : one dict a frame, written to the comment line of the file.
    cells : [n, 3, 3] nm, rows are lattice vectors; None for molecules in vacuum.
    """

    numbers: NDArray[np.int64]
    positions: Array
    energies: Array | None = None
    forces: Array | None = None
    info: list[dict[str, Any]] = field(default_factory=list)
    cells: Array | None = None

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
        )

    def labels(self) -> tuple[Array, Array]:
        """Energies and forces.

        Raises
        ------
        UqbiasError
            If the frames carry no labels.
        """
        if self.energies is None or self.forces is None:
            raise UqbiasError("the frames carry no energies and forces", "label them first")
        return self.energies, self.forces

    @staticmethod
    def concatenate(parts: list[Frames]) -> Frames:
        """Join frames of one molecule; labels are kept where every part has them.

        Raises
        ------
        UqbiasError
            For parts with other atoms, or some with cells and some without.
        """
        first = parts[0]
        for part in parts[1:]:
            if not np.array_equal(part.numbers, first.numbers):
                raise UqbiasError(f"frames of two molecules: {first.numbers.tolist()} and {part.numbers.tolist()}")
        cells = [part.cells for part in parts if part.cells is not None]
        if len(cells) not in (0, len(parts)):
            raise UqbiasError("frames with a cell and frames without", "keep periodic frames and others apart")
        labelled = all(part.labelled for part in parts)
        return Frames(
            numbers=first.numbers,
            positions=np.concatenate([part.positions for part in parts]),
            energies=np.concatenate([part.labels()[0] for part in parts]) if labelled else None,
            forces=np.concatenate([part.labels()[1] for part in parts]) if labelled else None,
            info=[entry for part in parts for entry in (part.info or [{} for _ in range(len(part))])],
            cells=np.concatenate(cells) if cells else None,
        )


def read_images(path: Path) -> list[Any]:
    """ASE Atoms of every frame of an extended-XYZ file.

    Raises
    ------
    UqbiasError
        If the file is missing or unreadable.
    """
    import ase.io

    if not path.is_file():
        raise UqbiasError(f"no such file: {path}", "give an extended-XYZ file (eV, Å)")
    try:
        return list(ase.io.read(path, ":", format="extxyz"))
    except Exception as error:
        raise UqbiasError(f"{path} is not an extended-XYZ file ({error})", "write it with ase.io.write") from error


def read_frames(path: str | Path, *, labelled: bool = True, periodic: bool = False) -> Frames:
    """Read an extended-XYZ file (eV, Å, eV/Å) through ASE.

    Parameters
    ----------
    labelled : demand finite energies and forces in every frame.
    periodic : take frames with a cell too; otherwise they are refused, so that no cell is dropped in silence.

    Raises
    ------
    UqbiasError
        If the file is missing, empty, holds more than one molecule, or a label is missing or not finite; and for a
        periodic frame where none is expected, or one beside frames that are not.
    """
    path = Path(path)
    images = read_images(path)
    if not images:
        raise UqbiasError(f"{path} holds no frame")
    numbers = np.asarray(images[0].numbers, dtype=np.int64)
    for index, image in enumerate(images):
        if not np.array_equal(image.numbers, numbers):
            raise UqbiasError(
                f"{path}: frame {index} has atoms {image.get_chemical_formula()}, frame 0 "
                f"{images[0].get_chemical_formula()}",
                "keep one molecule in one atom order per file",
            )
    cells = _cells(path, images, periodic)
    positions = np.stack([image.positions for image in images]) * ANGSTROM
    if not np.isfinite(positions).all():
        raise UqbiasError(f"{path}: positions are not finite in frame {_first_bad(positions)}", "remove that frame")
    has = [image.calc is not None and {"energy", "forces"} <= set(image.calc.results) for image in images]
    if not all(has):
        if labelled:
            raise UqbiasError(f"{path}: frame {has.index(False)} has no energy or forces", "label every frame")
        return Frames(numbers, positions, info=[dict(image.info) for image in images], cells=cells)
    energies = np.array([image.calc.results["energy"] for image in images]) * EV
    forces = np.stack([image.calc.results["forces"] for image in images]) * EV_PER_ANGSTROM
    for name, values in (("energy", energies), ("forces", forces)):
        if not np.isfinite(values).all():
            raise UqbiasError(f"{path}: {name} is not finite in frame {_first_bad(values)}", "remove that frame")
    return Frames(numbers, positions, energies, forces, [dict(image.info) for image in images], cells)


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
            image.set_pbc(True)
        image.info.update(frames.info[index] if frames.info else {})
        if frames.energies is not None and frames.forces is not None:
            image.calc = SinglePointCalculator(
                image, energy=float(frames.energies[index] / EV), forces=frames.forces[index] / EV_PER_ANGSTROM
            )
        images.append(image)
    with atomic_path(path) as temporary:
        ase.io.write(temporary, images, format="extxyz")


def _cells(path: Path, images: list[Any], allowed: bool) -> Array | None:
    """Cells [n, 3, 3] nm of periodic images; None where no image is periodic."""
    periodic = [bool(image.pbc.all()) for image in images]
    for index, image in enumerate(images):
        if image.pbc.any() and not allowed:
            raise UqbiasError(f"{path}: frame {index} is periodic", 'give a molecule in vacuum, pbc="F F F"')
        if image.pbc.any() and not all(periodic):
            raise UqbiasError(
                f"{path}: frame {index} is periodic (pbc {image.pbc.tolist()}), others are not",
                "give frames that are periodic in three directions, or in none",
            )
    return np.stack([image.cell.array for image in images]) * ANGSTROM if all(periodic) else None


def _first_bad(values: Array) -> int:
    return int(np.argmin(np.isfinite(values.reshape(len(values), -1)).all(axis=1)))
