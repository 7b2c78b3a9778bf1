"""Oracles by a short name: what a campaign file has to say for each, and the extra that brings it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uqbias.errors import UqbiasError, did_you_mean
from uqbias.registry import ORACLES, import_attribute

_TBLITE = {"kind": "ase", "calculator": "tblite.ase:TBLite"}
#: Sections of a campaign file by name.
PRESETS: dict[str, dict[str, Any]] = {
    "gfn2": {**_TBLITE, "calculator_options": {"method": "GFN2-xTB", "verbosity": 0}},
    "gfn1": {**_TBLITE, "calculator_options": {"method": "GFN1-xTB", "verbosity": 0}},
    "emt": {"kind": "ase", "calculator": "ase.calculators.emt:EMT"},
}
#: Extra of uqbias that installs what a calculator needs.
EXTRAS = {"tblite.ase:TBLite": "xtb"}


def oracle_section(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Section ``oracle`` of a campaign file.

    Parameters
    ----------
    name : of `PRESETS`, a kind of oracle, or the import path of an ASE calculator, ``module:Class``.
    options : further keys, which come before those of the preset.

    Raises
    ------
    UqbiasError
        If there is no such oracle, or its calculator is not installed.
    """
    if name in PRESETS:
        section = PRESETS[name]
    elif name in ORACLES.names():
        section = {"kind": name}
    elif ":" in name:
        section = {"kind": "ase", "calculator": name}
    else:
        choice = did_you_mean(name, [*PRESETS, *ORACLES.names()])
        raise UqbiasError(f"no oracle '{name}'", f"{choice}; or name an ASE calculator, as module:Class")
    section = {**section, **options}
    if calculator := section.get("calculator"):
        try:
            import_attribute(str(calculator))
        except UqbiasError as error:
            cure = f"pip install 'uqbias[{EXTRAS[calculator]}]'" if calculator in EXTRAS else error.cure
            raise UqbiasError(f"oracle '{name}': {error.what}", cure) from None
    return section
