"""A model in place of the internal forces of one molecule of a classical System."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

from uqbias.errors import UqbiasError

#: Forces that do not act between atoms of one molecule by parameters of its atoms, or that a user put there on purpose.
LEFT_ALONE = ("CMMotionRemover", "CustomExternalForce", "CustomCVForce", "PythonForce", "TorchForce", "RMSDForce")

#: Name of a term, number of its atoms, and of the parameters at its end that are its strength.
BONDED = {
    "HarmonicBondForce": ("Bond", 2, 1),
    "HarmonicAngleForce": ("Angle", 3, 1),
    "PeriodicTorsionForce": ("Torsion", 4, 1),
    "RBTorsionForce": ("Torsion", 4, 6),
}


def remove_internal_forces(system: Any, atoms: Sequence[int], *, constraints: bool = True) -> None:
    """Take all interactions among some atoms out of a System, so that a model can take their place.

    Bonded terms within the atoms get the strength zero, and non-bonded ones become exceptions; what acts between these
    atoms and all others stays: mechanical embedding, as in openmm-ml's ``createMixedSystem``. Charges stay too, so the
    surroundings feel the force field's charges whatever the model makes of the molecule. With Ewald summation the atoms
    go on to interact with the periodic images of one another.

    Terms of strength zero still tell OpenMM what a molecule is, for barostats and for periodic images.

    Parameters
    ----------
    system : openmm.System, changed in place.
    atoms : indices of the atoms; whole molecules.
    constraints : whether constraints among them go too: a model trained on free bonds gives their forces itself. The
        timestep must then be 1 fs or less.

    Raises
    ------
    UqbiasError
        If a force is of a kind that cannot be changed so, or a bonded term connects the atoms with others. The System
        is then as it was.
    """
    inside = {int(atom) for atom in atoms}
    if not inside or not inside <= set(range(system.getNumParticles())):
        raise UqbiasError(f"atoms {sorted(inside)[:10]} in a System of {system.getNumParticles()}", "give its indices")
    changes = [_change_of(force, inside) for force in system.getForces()]
    for change in changes:
        change()
    if constraints:
        _remove_constraints(system, inside)


def _change_of(force: Any, inside: set[int]) -> Callable[[], None]:
    """What is to be done to one force, after a look at whether it can be."""
    kind = type(force).__name__
    if kind in LEFT_ALONE or "Barostat" in kind or "Thermostat" in kind:
        return lambda: None
    if kind == "NonbondedForce":
        return lambda: _except(force, inside)
    if kind == "CustomNonbondedForce":
        return lambda: _exclude(force, inside)
    if kind == "CMAPTorsionForce":
        terms = [force.getTorsionParameters(index) for index in range(force.getNumTorsions())]
        within = _within(kind, [term[1:] for term in terms], inside)
        return lambda: _flatten(force, [(index, terms[index]) for index in within])
    if kind not in BONDED:
        raise UqbiasError(f"{kind}: terms within the molecule cannot be removed from it", "use another force field")
    name, n_atoms, n_strengths = BONDED[kind]
    get, put = getattr(force, f"get{name}Parameters"), getattr(force, f"set{name}Parameters")
    terms = [get(index) for index in range(getattr(force, f"getNum{name}s")())]
    within = _within(kind, [term[:n_atoms] for term in terms], inside)

    def weaken() -> None:
        for index in within:
            put(index, *terms[index][:-n_strengths], *[0.0] * n_strengths)

    return weaken


def _within(kind: str, terms: Sequence[Sequence[int]], inside: set[int]) -> list[int]:
    """Indices of the terms whose atoms are all inside."""
    indices = []
    for index, term in enumerate(terms):
        members = [atom in inside for atom in term]
        if all(members):
            indices.append(index)
        elif any(members):
            raise UqbiasError(f"{kind} between the molecule and other atoms", "name all atoms of the molecule")
    return indices


def _remove_constraints(system: Any, inside: set[int]) -> None:
    """Put a bond of strength zero in place of each."""
    import openmm

    bonds = openmm.HarmonicBondForce()
    for index in reversed(range(system.getNumConstraints())):
        first, second, length = system.getConstraintParameters(index)
        if first in inside and second in inside:
            system.removeConstraint(index)
            bonds.addBond(first, second, length, 0.0)
    if bonds.getNumBonds():
        system.addForce(bonds)


def _except(force: Any, inside: set[int]) -> None:
    for first, second in combinations(sorted(inside), 2):
        force.addException(first, second, 0.0, 0.1, 0.0, True)


def _exclude(force: Any, inside: set[int]) -> None:
    known = {tuple(sorted(force.getExclusionParticles(index))) for index in range(force.getNumExclusions())}
    for pair in combinations(sorted(inside), 2):
        if pair not in known:
            force.addExclusion(*pair)


def _flatten(force: Any, torsions: Sequence[tuple[int, Sequence[Any]]]) -> None:
    """Put CMAP torsions on a map of zeros."""
    if torsions:
        size, values = force.getMapParameters(0)
        zeros = force.addMap(size, [0.0] * len(values))
        for index, term in torsions:
            force.setTorsionParameters(index, zeros, *term[1:])
