"""Extended variables as particles of somebody's own System."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.bias.base import Extended
from uqbias.errors import UqbiasError

Array = NDArray[np.float64]


def add_extended_particles(system: Any, extended: Sequence[Extended]) -> dict[str, int]:
    """Add one particle for each extended variable, without any interaction of its own.

    Returns
    -------
    dict
        Name of the variable to the index of its particle.

    Raises
    ------
    UqbiasError
        If the System has a barostat, which would scale the variable with the box; a CMMotionRemover, which would shift
        it with the atoms; or a force that cannot be told to leave a particle alone.
    """
    if not extended:
        return {}
    refuse_company(system, extended[0].name)
    for force in system.getForces():
        _check_force(force, extended[0].name)
    particles = {}
    for one in extended:
        particles[one.name] = int(system.addParticle(one.mass))
        for force in system.getForces():
            kind = type(force).__name__
            if kind == "NonbondedForce":
                force.addParticle(0.0, 0.1, 0.0)
            elif kind == "CustomNonbondedForce":
                force.addParticle([0.0] * force.getNumPerParticleParameters())
    return particles


def refuse_company(system: Any, name: str) -> None:
    """Raise UqbiasError for a barostat or a CMMotionRemover beside the extended variable ``name``."""
    for force in system.getForces():
        kind = type(force).__name__
        if "Barostat" in kind:
            raise UqbiasError(
                f"{kind} beside the extended variable '{name}', which it would scale with the box",
                "equilibrate the volume first and remove the barostat, or choose metadynamics or opes",
            )
        if kind == "CMMotionRemover":
            raise UqbiasError(
                f"CMMotionRemover beside the extended variable '{name}', which it would shift with the atoms",
                "createSystem(..., removeCMMotion=False)",
            )


def extend_topology(topology: Any, names: Sequence[str]) -> Any:
    """A copy of an openmm.app.Topology with one atom without element more for each name."""
    extended = _copied(topology)
    residue = extended.addResidue("LAM", extended.addChain())
    for name in names:
        extended.addAtom(name, None, residue)
    return extended


def _copied(topology: Any) -> Any:
    from openmm import app

    copy = app.Topology()
    copy.setPeriodicBoxVectors(topology.getPeriodicBoxVectors())
    atoms = {}
    for chain in topology.chains():
        new_chain = copy.addChain(chain.id)
        for residue in chain.residues():
            new_residue = copy.addResidue(residue.name, new_chain, residue.id, residue.insertionCode)
            for atom in residue.atoms():
                atoms[atom] = copy.addAtom(atom.name, atom.element, new_residue, atom.id)
    for bond in topology.bonds():
        copy.addBond(atoms[bond[0]], atoms[bond[1]], bond.type, bond.order)
    return copy


def _check_force(force: Any, name: str) -> None:
    """Refuse forces in which every particle of the System takes part, whatever its parameters."""
    kind = type(force).__name__
    harmless = ("NonbondedForce", "CustomExternalForce")
    if kind == "CustomNonbondedForce" and force.getNumInteractionGroups():
        return
    if kind not in harmless and (hasattr(force, "addParticle") or kind.startswith(("Amoeba", "Hippo"))):
        raise UqbiasError(
            f"{kind} beside the extended variable '{name}': its particle cannot be left out of it",
            "choose metadynamics or opes, or a force field without it",
        )
