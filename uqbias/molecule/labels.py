"""Labels: their names in a file, and the units and signs that they most likely have, from how they fit together."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

#: What is read, as help texts say it.
FORMATS = "extended XYZ, ASE .traj or .db, VASP OUTCAR or vasprun.xml (eV, Å); MD17 .npz (kcal/mol); a DeePMD folder"
Kind = Literal["energy", "forces", "stress"]
#: Options that name a label.
OPTIONS: dict[Kind, str] = {name: f"--{name}-key" for name in ("energy", "forces", "stress")}
#: What these options are called in a campaign file.
IN_CAMPAIGN = " (in a campaign file: system.energy_key, forces_key, stress_key)"
#: Number in a file for one eV, and for one eV/Å.
ENERGY_UNITS = {
    "eV": 1.0,
    "Hartree": 1 / 27.211386,
    "kcal/mol": 23.060548,
    "kJ/mol": 96.485332,
    "Rydberg": 1 / 13.605693,
}
FORCE_UNITS = {
    "eV/Å": 1.0,
    "Hartree/bohr": 1 / 51.422067,
    "kcal/mol/Å": 23.060548,
    "kJ/mol/Å": 96.485332,
    "kJ/mol/nm": 964.85332,
    "Hartree/Å": 1 / 27.211386,
    "eV/bohr": 0.52917721,
    "Rydberg/bohr": 1 / 25.711034,
    "eV/nm": 10.0,
}
#: Slopes within this factor of 1 are right: what frames apart do to it is less, what units do is more.
SLOPE_FACTOR = 1.5
#: Force constants of bonds with hydrogen, eV/Å²: usual, and what none of any method is outside of.
USUAL, SOFTEST, STIFFEST = 34.0, 3.0, 300.0


@dataclass(frozen=True)
class LabelKeys:
    """Names of the labels in a file; None for the usual ones (energy, forces, stress)."""

    energy: str | None = None
    forces: str | None = None
    stress: str | None = None


class Misfit(NamedTuple):
    """What does not fit, and the cure."""

    what: str
    cure: str


def likely_units(slope: float | None, stiffness: float | None, n_atoms: int) -> Misfit | None:
    """What units and sign energies and forces most likely have; None where all is well, or nothing is known.

    Parameters
    ----------
    slope : of energy differences against work, 1 if energies and forces belong together, 0 if they have nothing to do
        with each other; None if not known.
    stiffness : median force constant of bonds with hydrogen, eV/Å²; None if not known.
    n_atoms : atoms of the molecule, for energies per atom.
    """
    sloped = slope is not None and not 1 / SLOPE_FACTOR < slope < SLOPE_FACTOR
    strange = stiffness is not None and not SOFTEST < stiffness < STIFFEST
    # The slope knows the sign better: made-up energies may have no minimum.
    if slope is not None and stiffness is not None and slope * stiffness < 0:
        stiffness, strange = None, False
    if not (sloped or strange):
        return None
    seen = []
    if slope is not None:
        seen.append(f"between near frames the energy changes by {slope:.3g} times what the forces say")
    if stiffness is not None:
        seen.append(f"bonds with hydrogen have a force constant of {stiffness:.3g} eV/Å² (usual are 17 to 60)")
    what = " and ".join(seen)
    if slope == 0:
        return Misfit(
            "between near frames the energy does not change as the forces say; most likely the energies are those of "
            "other frames",
            "give energies and forces of the same calculation",
        )
    negative = (slope if slope is not None else stiffness or 0.0) < 0
    likely = []
    if negative:
        likely.append("the forces are gradients, with the other sign")
    fit = _units(None if slope is None else abs(slope), None if stiffness is None else abs(stiffness), n_atoms)
    if fit is not None:
        likely += [f"the {name} are in {unit}" for name, unit in zip(("energies", "forces"), fit, strict=True) if unit]
    if not likely:
        return Misfit(f"{what}: they do not belong together", "give energies in eV and forces in eV/Å, of one method")
    return Misfit(
        f"{what}; most likely {' and '.join(likely)}",
        "write energies in eV and forces, minus the gradient, in eV/Å",
    )


def _units(slope: float | None, stiffness: float | None, n_atoms: int) -> tuple[str, str] | None:
    """Units of energies and forces that explain both sizes best, "" where they are right; None if none do."""
    energies = ENERGY_UNITS | ({"eV per atom": 1 / n_atoms} if n_atoms > 1 else {})
    best, chosen = math.inf, None
    for (energy, e), (force, f) in itertools.product(energies.items(), FORCE_UNITS.items()):
        off = 0.0 if slope is None else abs(math.log(slope * f / e))
        soft = 0.0 if stiffness is None else abs(math.log(stiffness / USUAL / f))
        if off > 0.25 or soft > 0.9:
            continue
        # Of two that explain it alike, the one with fewer and commoner errors.
        rare = 0.4 * (energy != "eV") + 0.4 * (force != "eV/Å") + 0.02 * list(FORCE_UNITS).index(force)
        cost = 4 * off + 0.5 * soft + rare + 0.3 * (energy == "eV per atom")
        if cost < best:
            best, chosen = cost, ("" if e == 1 else energy, "" if f == 1 else force)
    return chosen
