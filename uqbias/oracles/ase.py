"""Labels from any ASE calculator, named by its import path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

import numpy as np
from typing_extensions import Doc

from uqbias.errors import UqbiasError
from uqbias.molecule.topology import Topology
from uqbias.oracles.base import Array, Oracle
from uqbias.registry import import_attribute
from uqbias.units import ANGSTROM, EV, EV_PER_ANGSTROM


class ASEOracle(Oracle):
    """Any ASE calculator: tblite, PySCF, ORCA, a foundation model.

    Parameters
    ----------
    calculator : import path of the class or of a function that returns a calculator, as ``module:attribute``
        or ``module.attribute``, for example ``tblite.ase:TBLite`` or ``ase.calculators.emt.EMT``.
    calculator_options : keyword arguments for it, for example ``{"method": "GFN2-xTB"}``.
    numbers : [N] atomic numbers; or give
    structure : PDB file to take them from.

    Raises
    ------
    UqbiasError
        If the calculator cannot be imported or built, or neither numbers nor structure are given.
    """

    kind: ClassVar[str] = "ase"
    numbers: tuple[int, ...]

    def __init__(
        self,
        *,
        calculator: Annotated[str, Doc("import path of the calculator class, as module:Class")],
        calculator_options: Annotated[Mapping[str, Any], Doc("arguments of the calculator")] = MappingProxyType({}),
        numbers: Sequence[int] | None = None,
        structure: str | Path | None = None,
    ) -> None:
        from ase import Atoms

        if numbers is None:
            if structure is None:
                raise UqbiasError("ase oracle has neither numbers nor structure", "give atomic numbers or a PDB file")
            numbers = Topology.from_pdb(structure).numbers
        self.numbers = tuple(int(number) for number in numbers)
        self.calculator = calculator
        self.calculator_options = dict(calculator_options)
        factory = import_attribute(calculator)
        try:
            built = factory(**self.calculator_options)
        except Exception as error:
            raise UqbiasError(
                f"calculator '{calculator}' cannot be built with {self.calculator_options} ({error})",
                "check calculator_options of the oracle",
            ) from error
        self._atoms = Atoms(numbers=self.numbers, positions=np.zeros((len(self.numbers), 3)))
        self._atoms.calc = built

    def options(self) -> dict[str, Any]:
        """JSON-able keyword arguments that rebuild this oracle."""
        return {
            "calculator": self.calculator,
            "calculator_options": self.calculator_options,
            "numbers": list(self.numbers),
        }

    def _evaluate(self, positions: Array) -> tuple[float, Array]:
        # Calculators begin at the last geometry's wave function; a label must not depend on what was labelled before.
        if reset := getattr(self._atoms.calc, "reset", None):
            reset()
        self._atoms.set_positions(positions / ANGSTROM)
        return self._atoms.get_potential_energy() * EV, self._atoms.get_forces() * EV_PER_ANGSTROM
