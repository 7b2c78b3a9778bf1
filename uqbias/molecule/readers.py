"""Files of geometries and labels as people have them: through ASE, NumPy archives of MD17, and DeePMD sets."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.errors import UqbiasError
from uqbias.files import content_of, read_array, read_arrays
from uqbias.molecule.cells import Periodic
from uqbias.molecule.labels import ENERGY_UNITS, FORMATS, IN_CAMPAIGN, OPTIONS, Kind, LabelKeys

#: Names of the arrays of an NPZ file: atomic numbers, positions, energies, forces (rMD17, then MD17 and sGDML).
ARCHIVES = (("nuclear_charges", "coords", "energies", "forces"), ("z", "R", "E", "F"))
#: Pattern in a file's name, ASE's name of the format, ours.
ASE_FORMATS = (
    (r"\.traj$", "traj", "an ASE trajectory"),
    (r"\.db$", "db", "an ASE database"),
    (r"^outcar(?!.*\.(ext)?xyz$)|\.outcar$", "vasp-out", "a VASP OUTCAR"),
    (r"\.xml$", "vasp-xml", "a vasprun.xml"),
    (r"", "extxyz", "an extended-XYZ file"),
)
LOG = logging.getLogger(__name__)
#: One more than the highest atomic number.
KNOWN_ELEMENTS = 119
AGAIN = "download or write it again"
#: Parts of names that a label may have, in lower case.
LOOKS: dict[Kind, tuple[str, ...]] = {
    "energy": ("energ",),
    "forces": ("force", "grad"),
    "stress": ("stress", "virial"),
}
#: Written beside labels by this program: what a model says.
OURS = frozenset({"model_energy"})


@dataclass(frozen=True)
class Image:
    """One frame of a file in eV and Å, unchecked.

    Attributes
    ----------
    numbers : [N] atomic numbers.
    positions : [N, 3] Å.
    values : labels and everything else that the file says of the frame or its atoms, by name.
    info : what is not about single atoms and no result of a calculator.
    cell : [3, 3] Å, rows are lattice vectors.
    pbc : [3] whether it is periodic along each.
    """

    numbers: NDArray[np.int64]
    positions: NDArray[np.float64]
    values: Mapping[str, Any] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    cell: NDArray[np.float64] = field(default_factory=lambda: np.zeros((3, 3)))
    pbc: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(3, dtype=bool))

    @property
    def periodic(self) -> Periodic:
        """Whether it repeats along each lattice vector."""
        a, b, c = (bool(repeats) for repeats in self.pbc)
        return a, b, c

    @property
    def formula(self) -> str:
        """Chemical formula."""
        from ase.symbols import Symbols

        return str(Symbols(self.numbers).get_chemical_formula())

    def labels_like(self, kind: Kind) -> list[str]:
        """Names that look like labels of a kind and have its shape."""
        shapes: dict[Kind, tuple[tuple[int, ...], ...]] = {
            "energy": ((), (1,)),
            "forces": (self.positions.shape,),
            "stress": ((6,), (9,), (3, 3)),
        }
        return [
            name
            for name, value in self.values.items()
            if any(part in name.lower() for part in LOOKS[kind])
            and name not in OURS
            and not isinstance(value, str)
            and np.shape(value) in shapes[kind]
        ]


def read_images(path: str | Path, form: str | None = None) -> list[Image]:
    """Read every frame of a file; its ``form`` in ASE's words follows from its name, extended XYZ if it says nothing.

    Raises
    ------
    UqbiasError
        If the file is missing or unreadable.
    """
    path = Path(path)
    if path.is_dir() and form is None:
        return _read_deepmd(path)
    if not path.is_file():
        raise UqbiasError(f"no such file: {path}", f"give {FORMATS}")
    if path.suffix.lower() == ".npz" and form is None:
        return _read_archive(path)
    by_name = ((name, words) for part, name, words in ASE_FORMATS if re.search(part, path.name, re.IGNORECASE))
    form, words = next(by_name) if form is None else (form, f"a file of ASE's format {form}")
    import ase.io

    try:
        # Otherwise ASE takes what follows an @ in the name for an index, and opens another file.
        atoms = [known(one) for one in ase.io.read(path, ":", format=form, do_not_split_by_at_sign=True)]
    except Exception as error:
        raise unreadable(path, f"not {words}", error, "write it with ase.io.write") from error
    return [_from_ase(one) for one in atoms]


def known(atoms: Any) -> Any:
    """ASE's atoms, of which none is ASE's X; KeyError otherwise."""
    if not atoms.numbers.all():
        raise KeyError("X")
    return atoms


def unreadable(path: Path, what: str, error: Exception, cure: str) -> UqbiasError:
    """Error for a file that ASE cannot read, which names an element that is none."""
    from ase.data import atomic_numbers

    if isinstance(error, KeyError) and isinstance(name := error.args[0], str) and not atomic_numbers.get(name):
        return UqbiasError(f"{path}: no element is called '{name}'", "name elements by their symbols, such as Si")
    return UqbiasError(f"{path} is {what} ({' '.join(str(error).split())})", cure)


def _from_ase(atoms: Any) -> Image:
    data = atoms.info.get("data")  # of a database's row
    results = {} if atoms.calc is None else dict(atoms.calc.results)
    arrays = {name: value for name, value in atoms.arrays.items() if name not in ("numbers", "positions")}
    return Image(
        np.asarray(atoms.numbers, dtype=np.int64),
        atoms.positions,
        {**atoms.info, **(data if isinstance(data, dict) else {}), **arrays, **results},
        atoms.info,
        atoms.cell.array,
        atoms.pbc,
    )


def _read_archive(path: Path) -> list[Image]:
    """MD17 and its revision (kcal/mol, Å), or sGDML's files, which name their units."""
    wanted = {name for names in ARCHIVES for name in names} | {"e_unit", "r_unit"}
    arrays = read_arrays(path, "NumPy archive (.npz)", AGAIN, wanted)
    names = next((names for names in ARCHIVES if all(name in arrays for name in names[:2])), None)
    if names is None:
        raise UqbiasError(
            f"{path} has the arrays {', '.join(arrays)}",
            f"give those of rMD17 or MD17 ({' or '.join(', '.join(names) for names in ARCHIVES)}), or extended XYZ",
        )
    with content_of(path, AGAIN, "does not name its units"):
        unit, length = (
            np.asarray(arrays.get(key, usual)).astype(str).item()
            for key, usual in (("e_unit", "kcal/mol"), ("r_unit", "Ang"))
        )
    if unit not in ENERGY_UNITS or not length.startswith(("Ang", "Å")):
        raise UqbiasError(f"{path}: units {unit} and {length}", f"give Å and one of {', '.join(ENERGY_UNITS)}")
    numbers, positions, energies, forces = (arrays.get(name) for name in names)
    return _stacked(path, numbers, positions, energies, forces, scale=ENERGY_UNITS[unit])


def _read_deepmd(path: Path) -> list[Image]:
    """A DeePMD system (eV, Å): type.raw, type_map.raw, and set.* with coord, energy, force and box."""
    from ase.data import atomic_numbers

    cure = "give one with type.raw, type_map.raw and set.000/coord.npy, energy.npy, force.npy"
    sets = sorted(path.glob("set.*"))
    try:
        kinds = np.array((path / "type.raw").read_text(encoding="utf-8").split(), dtype=np.int64)
        elements = [atomic_numbers[name] for name in (path / "type_map.raw").read_text(encoding="utf-8").split()]
        images = [image for folder in sets for image in _read_set(folder, kinds, elements, (path / "nopbc").exists())]
    except (OSError, KeyError, ValueError, OverflowError) as error:
        raise UqbiasError(f"{path} is not a DeePMD folder ({error})", cure) from error
    if not sets:
        raise UqbiasError(f"{path} is a folder without set.000", f"give {FORMATS}")
    return images


def _read_set(folder: Path, kinds: NDArray[np.int64], elements: Sequence[int], in_vacuum: bool) -> list[Image]:
    if (folder / "real_atom_types.npy").exists():
        raise UqbiasError(
            f"{folder} is of DeePMD's mixed type (real_atom_types.npy), which is not read",
            "write one molecule in the standard format (dpdata: deepmd/npy)",
        )
    if not ((kinds >= 0) & (kinds < len(elements))).all():
        raise ValueError(f"type.raw has {kinds.min()} to {kinds.max()}, type_map.raw {len(elements)} elements")
    names = ("coord", "energy", "force", "virial", "box")
    arrays = {file.stem: read_array(file, AGAIN) for file in folder.glob("*.npy") if file.stem in names}
    coord, energy, force, virial, box = (arrays["coord"], *(arrays.get(name) for name in names[1:]))
    return _stacked(folder, np.array(elements)[kinds], coord, energy, force, virial, None if in_vacuum else box)


def _stacked(
    path: Path,
    numbers: Any,
    positions: Any,
    energies: Any,
    forces: Any,
    virials: Any = None,
    box: Any = None,
    *,
    scale: float = 1.0,
) -> list[Image]:
    """Images from arrays with one row a frame; ``scale`` is the number for one eV."""
    with content_of(path, AGAIN, "has arrays that do not fit together"):
        atoms, x = np.asarray(numbers), np.asarray(positions, dtype=np.float64)
        if atoms.ndim == 2 and len(atoms) and (atoms == atoms[0]).all():  # once for each frame
            atoms = atoms[0]
        if atoms.ndim != 1 or atoms.dtype.kind not in "iu" or not ((atoms > 0) & (atoms < KNOWN_ELEMENTS)).all():
            raise UqbiasError(f"{' '.join(str(atoms).split())[:80]} are no atomic numbers of one molecule")
        shape = (len(atoms), 3)
        for name, values in (("positions", x), ("forces", forces)):
            there = shape if values is None else np.shape(values)
            if there != shape and there[1:] not in (shape, (3 * len(atoms),)):
                raise UqbiasError(f"{name} {there} of {len(atoms)} atoms")
        x = x.reshape(-1, *shape)
        columns = {
            name: np.asarray(values, dtype=np.float64).reshape(len(x), *one) / scale
            for name, values, one in (("energy", energies, ()), ("forces", forces, shape), ("virial", virials, (3, 3)))
            if values is not None
        }
        cells = np.zeros((len(x), 3, 3)) if box is None else np.asarray(box, dtype=np.float64).reshape(len(x), 3, 3)
        atoms, periodic = atoms.astype(np.int64), np.full(3, box is not None)
        return [
            Image(atoms, x[i], {name: values[i] for name, values in columns.items()}, {}, cells[i], periodic)
            for i in range(len(x))
        ]


def energy_name(path: Path, images: Sequence[Image], *, needed: bool) -> str | None:
    """Name of the energies of a file for which no name was given: ``free_energy`` where the frames have it, whose
    gradient the forces of a calculation with smeared occupations are; None where two are mixed and none is ``needed``.

    Raises
    ------
    UqbiasError
        If some frames have a ``free_energy`` that is not their ``energy``, and others only an ``energy``.
    """
    free, usual = ({i for i, one in enumerate(images) if name in one.values} for name in ("free_energy", "energy"))
    if usual <= free:
        return "free_energy" if free else "energy"
    if free <= usual and all(np.array_equal(images[i].values["free_energy"], images[i].values["energy"]) for i in free):
        return "energy"
    what = f"{path}: frame {min(free)} has a 'free_energy' and frame {min(usual - free)} only an 'energy'"
    if needed:
        cure = f"{OPTIONS['energy']} energy{IN_CAMPAIGN}, if all have it" if free <= usual else "label all frames alike"
        raise UqbiasError(what, cure)
    LOG.warning("%s; energies are not used", what)
    return None


def label_values(path: Path, images: Sequence[Image], kind: Kind, name: str | None) -> list[Any]:
    """The labels of a ``name`` of all images, checked for type and shape; None where an image has none.

    Raises
    ------
    UqbiasError
        If a label is no number, or has another shape.
    """
    values: list[Any] = []
    for index, image in enumerate(images):
        value = image.values.get(name or "")
        if value is not None:
            array = np.asarray(value)
            number = array.dtype.kind in "iuf"
            shape = {"energy": (), "forces": image.positions.shape, "stress": (3, 3)}[kind]
            if kind == "stress" and array.shape == (6,):
                array = array[[0, 5, 4, 5, 1, 3, 4, 3, 2]]
            if not number or array.size != int(np.prod(shape)) or (kind == "forces" and array.shape != shape):
                what = repr(value) if array.size == 1 else f"an array {array.shape} of {array.dtype}"
                raise UqbiasError(
                    f"{path}: '{name}' of frame {index} is {what}",
                    f"give {'one number' if kind == 'energy' else f'numbers of shape {list(shape)}'}",
                )
            value = array.astype(np.float64).reshape(shape)
        values.append(value)
    return values


def missing(
    path: Path, image: Image, index: int, kinds: Sequence[Kind], names: Mapping[Kind, str | None]
) -> UqbiasError:
    """Error for a frame without labels, which names those that look like them."""
    absent = [kind for kind in kinds if names[kind] not in image.values]
    hints = {kind: image.labels_like(kind) for kind in absent}
    what = f"{path}: frame {index} has no {' or '.join(names[kind] or kind for kind in absent)}"
    options = [f"{OPTIONS[kind]} {names[0]}" for kind, names in hints.items() if names]
    if not options:
        alone = "; energies alone: uqbias evaluate, or uqbias train --set training.force_weight=0"
        return UqbiasError(what, "label every frame" + (alone if absent == ["forces"] else ""))
    there = [name for names in hints.values() for name in names]
    gradient = "; a gradient is minus the forces" if any("grad" in name.lower() for name in there) else ""
    return UqbiasError(f"{what}; it has {', '.join(there)}", f"give {' '.join(options)}{gradient}{IN_CAMPAIGN}")


def tell_other_labels(
    path: Path, images: Sequence[Image], keys: LabelKeys, names: Mapping[Kind, str | None], *, needed: bool
) -> None:
    """Log which labels are used, where a file has several of a kind, or a ``needed`` one under another name."""
    for kind, used in names.items():
        value = images[0].values.get(used or "")
        others = [name for name in images[0].labels_like(kind) if name != used]
        both = [image.values for image in images if {"energy", "free_energy"} <= set(image.values)]
        if kind == "energy" and all(np.array_equal(values["energy"], values["free_energy"]) for values in both):
            others = [name for name in others if name not in ("energy", "free_energy")]
        if others and used and getattr(keys, kind) is None and (value is not None or needed):
            verb = "used" if value is not None else "missing"
            choice = f"{OPTIONS[kind]} chooses{IN_CAMPAIGN}"
            LOG.warning("%s: '%s' is %s, not %s; %s", path, used, verb, ", ".join(others), choice)
