"""The contract of an oracle, the expensive, trusted source of energies and forces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from uqbias.errors import UqbiasError

Array = NDArray[np.float64]


class OracleError(UqbiasError):
    """Failure to label one geometry; the next one may well be labelled."""


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
    """

    kind: ClassVar[str]
    numbers: tuple[int, ...] | None = None
    only_known: ClassVar[bool] = False

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
            If the calculation fails or its result is not finite or has the wrong shape.
        """
        x = np.asarray(positions, dtype=np.float64)
        expected = None if self.numbers is None else (len(self.numbers), 3)
        if x.ndim != 2 or x.shape[1] != 3 or (expected is not None and x.shape != expected):
            raise OracleError(f"{self.kind} oracle: positions of shape {x.shape}", f"give {expected or '[N, 3]'} in nm")
        if not np.isfinite(x).all():
            raise OracleError(f"{self.kind} oracle: positions are not finite", "leave this geometry out")
        try:
            energy, forces = self._evaluate(x)
        except OracleError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise OracleError(f"{self.kind} oracle failed: {reason}") from error
        energy, forces = float(energy), np.asarray(forces, dtype=np.float64)
        if forces.shape != x.shape:
            raise OracleError(f"{self.kind} oracle: forces of shape {forces.shape} for positions {x.shape}")
        if not (np.isfinite(energy) and np.isfinite(forces).all()):
            raise OracleError(f"{self.kind} oracle: label is not finite (energy {energy} kJ/mol)")
        return Label(energy, forces)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.options())

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> Self:
        """Build from what `options` returns."""
        return cls(**options)


def _rebuild(cls: type[Oracle], options: dict[str, Any]) -> Oracle:
    return cls.from_options(options)
