"""The one place with conversion factors.

Runtime units are nm, ps, kJ/mol, K and dalton (OpenMM's); data files are eV, Å and eV/Å (ASE's).
Values from CODATA 2018, whose defining constants are exact.
"""

from __future__ import annotations

import re
from typing import Any

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
#: kJ/mol/nm³ per bar.
BAR = 1e5 * 1e-27 * AVOGADRO / 1000.0
#: kJ/mol/nm³ per GPa.
GPA = 1e4 * BAR
#: Gas constant, kJ/mol/K.
GAS_CONSTANT = BOLTZMANN * AVOGADRO / 1000.0


def kt(temperature: float) -> float:
    """Thermal energy in kJ/mol at ``temperature`` in K."""
    return GAS_CONSTANT * temperature


def seconds_of(value: Any) -> Any:
    """Seconds of a text such as ``1:30:00`` or ``2-00:00:00``; other things as they are.

    Raises
    ------
    ValueError
        If the text is no time.
    """
    if not isinstance(value, str):
        return value
    if re.fullmatch(r"\d+(\.\d*)?", value):
        return float(value)
    if (parts := re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)", value)) is None:
        raise ValueError("write a time as h:mm:ss, d-hh:mm:ss or in s")
    days, hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    return 86400.0 * days + 3600.0 * hours + 60.0 * minutes + seconds


def duration(seconds: float) -> str:
    """``75.0`` as ``1 min 15 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
