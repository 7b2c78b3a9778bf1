"""The contract of an oracle, the expensive, trusted source of energies and forces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from uqbias.errors import UqbiasError
from uqbias.molecule.cells import EVERYWHERE, check_cell
from uqbias.molecule.structure import read_structure

Array = NDArray[np.float64]


#: kJ/mol per atom, ten times the total energy of the heaviest one: beyond it an energy is no energy.
ABSURD = 1e9


class OracleError(UqbiasError):
    """Failure to label one geometry; the next one may well be labelled."""


class OracleExitError(OracleError):
    """Calculation that tried to end the process, or ran out of memory; alone it may succeed."""


class Label(NamedTuple):
    """Answer of an oracle for one geometry.

    Attributes
    ----------
    energy : kJ/mol; of a periodic system that of one cell.
    forces : [N, 3] kJ/mol/nm.
    stress : [3, 3] kJ/mol/nm³, tension positive, where there is a cell and the oracle has one; else None.
    """

    energy: float
    forces: Array
    stress: Array | None = None


#: What `Oracle._evaluate` returns: energy and forces, and a stress where there is one.
Answer = tuple[float, Array] | tuple[float, Array, Array | None]


class Oracle(ABC):
    """Source of labels, built from JSON-able options.

    An oracle pickles as (class, options), so that a worker process builds its own copy of whatever the
    oracle holds (contexts, calculators). Subclasses give `kind`, build themselves in ``__init__`` from keyword
    arguments, return those in `options`, and compute in `_evaluate`.

    Attributes
    ----------
    kind : name in `uqbias.kinds.ORACLES`.
    numbers : [N] atomic numbers, or None where any molecule is accepted.
    only_known : whether it has labels for the geometries of a file only.
    periodic : whether it takes a cell; `_evaluate` is then given one.
    elsewhere : whether a campaign hands its geometries over in a file, and waits for the labels.
    noted : options that every label's info tells, and what they are called there: what its energy depends on.
    folder : where to write the files of the next label; None for a temporary folder.
    charge, spin : total charge and multiplicity that the labels are of; None where the oracle cannot say.
    """

    kind: ClassVar[str]
    numbers: tuple[int, ...] | None = None
    only_known: ClassVar[bool] = False
    periodic: ClassVar[bool] = False
    elsewhere: ClassVar[bool] = False
    noted: ClassVar[Mapping[str, str]] = MappingProxyType({})
    folder: Path | None = None
    charge: int | None = None
    spin: int | None = None

    @classmethod  # noqa: B027
    def check_molecule(cls, options: dict[str, Any], numbers: tuple[int, ...]) -> None:
        """Refuse, before anything is paid for, options that do not fit a molecule; the base class does nothing.

        Parameters
        ----------
        numbers : [N] atomic numbers of the molecule.

        Raises
        ------
        UqbiasError
            With value and cure.
        """

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """JSON-able keyword arguments that rebuild this oracle."""

    @abstractmethod
    def _evaluate(self, positions: Array, cell: Array | None = None) -> Answer:
        """Energy in kJ/mol, forces [N, 3] in kJ/mol/nm and, with a cell, a stress at ``positions`` [N, 3] in nm.

        ``cell`` [3, 3] nm is given only where there is one, so that an oracle of molecules may do without it. It may
        raise anything.
        """

    def label(self, positions: NDArray[Any], cell: NDArray[Any] | None = None) -> Label:
        """Label one geometry.

        Parameters
        ----------
        positions : [N, 3] nm.
        cell : [3, 3] nm, rows are lattice vectors; None for a molecule in vacuum.

        Returns
        -------
        Label
            Energy in kJ/mol, forces [N, 3] in kJ/mol/nm, and with a cell the stress, if the oracle has one.

        Raises
        ------
        OracleError
            If the calculation fails or tries to end the program, or its result is no label: not finite, not real, of
            the wrong shape, or beyond `ABSURD`; and for a cell that it does not take, or that is none.
        """
        x = np.asarray(positions, dtype=np.float64)
        expected = None if self.numbers is None else (len(self.numbers), 3)
        if x.ndim != 2 or x.shape[1] != 3 or (expected is not None and x.shape != expected):
            raise OracleError(f"{self.kind} oracle: positions of shape {x.shape}", f"give {expected or '[N, 3]'} in nm")
        if not np.isfinite(x).all():
            raise OracleError(f"{self.kind} oracle: positions are not finite", "leave this geometry out")
        box = None if cell is None else self._checked(cell)
        try:
            answer = self._evaluate(x) if box is None else self._evaluate(x, box)
            energy, forces = _real(answer[0], "energy"), _real(answer[1], "forces")
            stress = None if box is None or len(answer) < 3 or answer[2] is None else _real(answer[2], "stress")
        except OracleError:
            raise
        except (Exception, SystemExit) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, SystemExit | MemoryError):
                raise OracleExitError(f"{self.kind} oracle failed: {type(error).__name__} ({reason})") from error
            raise OracleError(f"{self.kind} oracle failed: {reason}") from error
        if energy.size != 1:
            raise OracleError(f"{self.kind} oracle: energy of shape {energy.shape}, not one number")
        if forces.shape != x.shape:
            raise OracleError(f"{self.kind} oracle: forces of shape {forces.shape} for positions {x.shape}")
        value = float(energy.reshape(()))
        if not (np.isfinite(value) and np.isfinite(forces).all()):
            raise OracleError(f"{self.kind} oracle: label is not finite (energy {value} kJ/mol)")
        largest = float(np.abs(forces).max(initial=0.0))
        if max(abs(value) / len(x), largest) > ABSURD:
            raise OracleError(
                f"{self.kind} oracle: absurd label (energy {value:.3g} kJ/mol, largest force {largest:.3g} kJ/mol/nm)"
            )
        if stress is not None and not (stress.shape == (3, 3) and (np.abs(stress) <= ABSURD).all()):
            raise OracleError(f"{self.kind} oracle: stress {stress.tolist()}", "give [3, 3] finite numbers")
        return Label(value, forces, None if stress is None else (stress + stress.T) / 2)

    def _checked(self, cell: NDArray[Any]) -> Array:
        """A cell [3, 3] that can be one, for an oracle that takes one."""
        if not self.periodic:
            raise OracleError(
                f"{self.kind} oracle: it labels molecules in vacuum, and the geometry has a cell",
                'remove the cell (pbc="F F F"), or choose an oracle of periodic systems: ase, openmm, pool',
            )
        box = np.asarray(cell, dtype=np.float64)
        if box.shape != (3, 3):
            raise OracleError(f"{self.kind} oracle: a cell of shape {box.shape}", "give [3, 3] in nm")
        try:
            return check_cell(box, EVERYWHERE, f"{self.kind} oracle: the geometry")
        except UqbiasError as error:
            raise OracleError(error.what, error.cure) from None

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.options())

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> Self:
        """Build from what `options` returns."""
        return cls(**options)


def numbers_of(kind: str, numbers: Sequence[int] | None, structure: str | Path | None) -> tuple[int, ...]:
    """Atomic numbers that an oracle is given, or those of a structure's file.

    Raises
    ------
    UqbiasError
        If neither is given.
    """
    if numbers is None:
        if structure is None:
            raise UqbiasError(f"{kind} oracle has neither numbers nor structure", "give atomic numbers or a file")
        numbers = read_structure(structure).topology.numbers
    return tuple(int(number) for number in numbers)


def _real(value: Any, name: str) -> Array:
    """An answer as real numbers, or an error that says what it is instead."""
    array = np.ma.filled(np.ma.asarray(value), np.nan) if np.ma.isMaskedArray(value) else np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name} of type {array.dtype if array.dtype != object else type(value).__name__}, not real")
    return array.astype(np.float64)


def _rebuild(cls: type[Oracle], options: dict[str, Any]) -> Oracle:
    return cls.from_options(options)
