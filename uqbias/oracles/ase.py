"""Labels from any ASE calculator, named by its import path."""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

import numpy as np
from typing_extensions import Doc

from uqbias.errors import UqbiasError
from uqbias.molecule.cells import EVERYWHERE
from uqbias.oracles.base import Answer, Array, Oracle, OracleError, numbers_of
from uqbias.registry import import_attribute
from uqbias.units import ANGSTROM, EV, EV_PER_ANGSTROM

#: What calculators call the total charge, and the multiplicity.
NAMES = {"charge": ("charge", "total_charge"), "spin": ("multiplicity", "mult")}
#: Calculators that hand keywords on to their program without listing them, by module.
KEYWORDS = {
    "ase.calculators.orca": ("charge", "mult"),
    "ase.calculators.gaussian": ("charge", "mult"),
    "ase.calculators.psi4": ("charge", "multiplicity"),
    "ase.calculators.qchem": ("charge", "multiplicity"),
    "ase.calculators.nwchem": ("charge",),
}


class ASEOracle(Oracle):
    """Any ASE calculator: tblite, PySCF, ORCA, a foundation model.

    Where the calculator has a ``free_energy``, as with smeared occupations, that is the energy of the label: the forces
    are its gradient. A calculator that writes files does so in the label's own folder.

    Parameters
    ----------
    calculator : import path of the class or of a function that returns a calculator, as ``module:attribute``
        or ``module.attribute``, for example ``tblite.ase:TBLite`` or ``ase.calculators.emt.EMT``.
    calculator_options : keyword arguments for it, for example ``{"method": "GFN2-xTB"}``.
    numbers : [N] atomic numbers; or give
    structure : file to take them from, see `uqbias.molecule.structure.read_structure`.
    charge, spin : total charge and multiplicity, given to the calculator under its own names; None: its default.
    pbc : whether the system repeats along each lattice vector; for geometries with a cell.

    Raises
    ------
    UqbiasError
        If the calculator cannot be imported or built, does not take a charge or multiplicity that is given, or neither
        numbers nor structure are given.
    """

    kind: ClassVar[str] = "ase"
    periodic: ClassVar[bool] = True
    numbers: tuple[int, ...]

    def __init__(
        self,
        *,
        calculator: Annotated[str, Doc("import path of the calculator class, as module:Class")],
        calculator_options: Annotated[Mapping[str, Any], Doc("arguments of the calculator")] = MappingProxyType({}),
        numbers: Sequence[int] | None = None,
        structure: str | Path | None = None,
        charge: int | None = None,
        spin: int | None = None,
        pbc: Sequence[bool] = EVERYWHERE,
    ) -> None:
        from ase import Atoms

        self.numbers = numbers_of(self.kind, numbers, structure)
        self.calculator = calculator
        self.calculator_options = dict(calculator_options)
        factory = import_attribute(calculator)
        arguments = {name: _absolute(value) for name, value in self.calculator_options.items()}
        for name, value in (("charge", charge), ("spin", spin)):
            if value is not None:
                arguments |= self._electrons(factory, name, value)
        try:
            built = factory(**arguments)
        except Exception as error:
            raise UqbiasError(
                f"calculator '{calculator}' cannot be built with {self.calculator_options} ({error})",
                "check calculator_options of the oracle",
            ) from error
        self._stated, self.pbc = (charge, spin), [bool(repeats) for repeats in pbc]
        parameters = {**(getattr(built, "parameters", None) or {}), **arguments}
        self.charge, self.spin = (
            next((parameters[name] for name in NAMES[which] if parameters.get(name) is not None), None)
            for which in ("charge", "spin")
        )
        self._atoms = Atoms(numbers=self.numbers, positions=np.zeros((len(self.numbers), 3)))
        self._atoms.calc = built

    def _electrons(self, factory: Callable[..., Any], which: str, value: int) -> dict[str, int]:
        """Argument by which the calculator takes the charge, or the multiplicity."""
        listed = {*inspect.signature(factory).parameters, *(getattr(factory, "default_parameters", None) or {})}
        listed |= {*KEYWORDS.get(getattr(factory, "__module__", ""), ()), *self.calculator_options}
        name = next((name for name in NAMES[which] if name in listed), None)
        if name is None:
            raise UqbiasError(
                f"system.{which} = {value}: the calculator '{self.calculator}' takes no {' or '.join(NAMES[which])}",
                f"name a function with the parameter {NAMES[which][0]} that makes it, or remove system.{which}",
            )
        if self.calculator_options.get(name, value) != value:
            raise UqbiasError(
                f"system.{which} = {value}, and {name} = {self.calculator_options[name]} in calculator_options",
                "keep one of them",
            )
        return {name: value}

    def options(self) -> dict[str, Any]:
        """JSON-able keyword arguments that rebuild this oracle."""
        return {
            "calculator": self.calculator,
            "calculator_options": self.calculator_options,
            "numbers": list(self.numbers),
            **{name: value for name, value in zip(NAMES, self._stated, strict=True) if value is not None},
            **({} if all(self.pbc) else {"pbc": self.pbc}),
        }

    def _evaluate(self, positions: Array, cell: Array | None = None) -> Answer:
        # Calculators begin at the last geometry's wave function; a label must not depend on what was labelled before.
        if reset := getattr(self._atoms.calc, "reset", None):
            reset()
        x, box = positions / ANGSTROM, np.zeros((3, 3)) if cell is None else cell / ANGSTROM
        self._atoms.set_cell(box)
        self._atoms.set_pbc(self.pbc if cell is not None else False)
        self._atoms.set_positions(x)
        stress, calculator = None, self._atoms.calc
        with nullcontext(self.folder) if self.folder else tempfile.TemporaryDirectory(prefix="uqbias-") as folder:
            if hasattr(calculator, "directory"):
                calculator.directory = Path(folder)  # GenericFileIOCalculator joins it by /
            energy, forces = self._atoms.get_potential_energy(), self._atoms.get_forces()
            if cell is not None and "stress" in getattr(calculator, "implemented_properties", ()):
                with suppress(NotImplementedError):  # of this method, or this basis
                    stress = _scaled(self._atoms.get_stress(voigt=False), EV / ANGSTROM**3)
            if not (np.array_equal(self._atoms.positions, x) and np.array_equal(self._atoms.cell.array, box)):
                raise OracleError(f"{self.kind} oracle failed: the calculator moved the atoms")
            free = (getattr(calculator, "results", None) or {}).get("free_energy")
        return _scaled(energy if free is None else free, EV), _scaled(forces, EV_PER_ANGSTROM), stress


def _scaled(value: Any, unit: float) -> Any:
    """A number or array in our unit; what is no number stays as it is, for the label's checks."""
    array = np.asanyarray(value)
    return array * unit if array.dtype.kind in "fiuc" else array


def _absolute(value: Any) -> Any:
    """An option that names a file by a relative path, as an absolute one: labels are computed in other folders."""
    if isinstance(value, str) and os.sep in value and Path(value).exists():
        return str(Path(value).absolute())
    return value
