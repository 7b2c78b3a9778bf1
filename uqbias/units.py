"""The one place with conversion factors.

Runtime units are nm, ps, kJ/mol, K and dalton (OpenMM's); data files are eV, Å and eV/Å (ASE's).
Values from CODATA 2018, whose defining constants are exact.
"""

from __future__ import annotations

AVOGADRO = 6.02214076e23
ELEMENTARY_CHARGE = 1.602176634e-19
BOLTZMANN = 1.380649e-23

#: kJ/mol per eV.
EV = ELEMENTARY_CHARGE * AVOGADRO / 1000.0
#: nm per Å.
ANGSTROM = 0.1
#: kJ/mol/nm per eV/Å.
EV_PER_ANGSTROM = EV / ANGSTROM
#: kJ/mol per kcal/mol.
KCAL = 4.184
#: Gas constant, kJ/mol/K.
GAS_CONSTANT = BOLTZMANN * AVOGADRO / 1000.0


def kt(temperature: float) -> float:
    """Thermal energy in kJ/mol at ``temperature`` in K."""
    return GAS_CONSTANT * temperature
