"""The contract of an oracle, the expensive, trusted source of energies and forces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from uqbias.errors import UqbiasError

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
    energy : kJ/mol.
    forces : [N, 3] kJ/mol/nm.
    """

    energy: float
    forces: Array


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
    folder : where to write the files of the next label; None for a temporary folder.
    charge, spin : total charge and multiplicity that the labels are of; None where the oracle cannot say.
    """

    kind: ClassVar[str]
    numbers: tuple[int, ...] | None = None
    only_known: ClassVar[bool] = False
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
    def _evaluate(self, positions: Array) -> tuple[float, Array]:
        """Energy in kJ/mol and forces [N, 3] in kJ/mol/nm at ``positions`` [N, 3] in nm; may raise anything."""

    def label(self, positions: NDArray[Any]) -> Label:
        """Label one geometry.

        Parameters
        ----------
        positions : [N, 3] nm.

        Returns
        -------
        Label
            Energy in kJ/mol, forces [N, 3] in kJ/mol/nm.

        Raises
        ------
        OracleError
            If the calculation fails or tries to end the program, or its result is no label: not finite, not real, of
            the wrong shape, or beyond `ABSURD`.
        """
        x = np.asarray(positions, dtype=np.float64)
        expected = None if self.numbers is None else (len(self.numbers), 3)
        if x.ndim != 2 or x.shape[1] != 3 or (expected is not None and x.shape != expected):
            raise OracleError(f"{self.kind} oracle: positions of shape {x.shape}", f"give {expected or '[N, 3]'} in nm")
        if not np.isfinite(x).all():
            raise OracleError(f"{self.kind} oracle: positions are not finite", "leave this geometry out")
        try:
            answer = self._evaluate(x)
            energy, forces = _real(answer[0], "energy"), _real(answer[1], "forces")
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
        return Label(value, forces)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.options())

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> Self:
        """Build from what `options` returns."""
        return cls(**options)


def _real(value: Any, name: str) -> Array:
    """An answer as real numbers, or an error that says what it is instead."""
    array = np.ma.filled(np.ma.asarray(value), np.nan) if np.ma.isMaskedArray(value) else np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name} of type {array.dtype if array.dtype != object else type(value).__name__}, not real")
    return array.astype(np.float64)


def _rebuild(cls: type[Oracle], options: dict[str, Any]) -> Oracle:
    return cls.from_options(options)
