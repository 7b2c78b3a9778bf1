"""Extended variables: OpenMM particles whose x coordinate in nm is the value, for walkers and for the user's System."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from uqbias.bias.base import Extended
from uqbias.compile.fused import FusedEvaluator
from uqbias.errors import UqbiasError, did_you_mean
from uqbias.units import kt

Array = NDArray[np.float64]


class ExtendedVariables:
    """The W*K particles that follow the W*N atoms, walker after walker.

    Parameters
    ----------
    evaluator : its input columns must be extended variables of its bias.
    temperature : K, of their velocities.

    Raises
    ------
    UqbiasError
        If the bias acts on a variable that nobody gives.
    """

    def __init__(self, evaluator: FusedEvaluator, temperature: float) -> None:
        self.evaluator = evaluator
        self.variables = find_extended(evaluator)
        self._sigma = np.sqrt(kt(temperature) / np.array([one.mass for one in self.variables], dtype=np.float64))
        self._first = evaluator.n_walkers * evaluator.n_atoms

    def __len__(self) -> int:
        return len(self.variables)

    def add_particles(self, system: Any) -> list[int]:
        """Add the particles to an openmm.System; returns their indices."""
        return [system.addParticle(one.mass) for _ in range(self.evaluator.n_walkers) for one in self.variables]

    def follow(self, positions: Array, velocities: Array, walkers: Mapping[int, np.random.Generator]) -> None:
        """Put the extended variables of some walkers where the atoms are, with thermal velocities.

        Parameters
        ----------
        positions, velocities : [W*N + W*K, 3], changed in place.
        walkers : generator of each walker to place.
        """
        if not self.variables:
            return
        w, n, k = self.evaluator.n_walkers, self.evaluator.n_atoms, len(self)
        atoms = torch.as_tensor(positions[: w * n].reshape(w, n, 3))
        # Here the extended variables are still at 0, and pull at the atoms as they never will.
        broken = self.evaluator.broken.copy()
        values = self.evaluator.evaluate(atoms).variables.double().cpu().numpy()
        self.evaluator.broken[:] = broken
        for place, one in enumerate(self.variables):
            column = self.evaluator.names.index(one.of)
            for walker, random in walkers.items():
                particle = self._first + walker * k + place
                positions[particle] = (values[walker, column], 0.0, 0.0)
                # Along y and z nothing pulls; at rest there the particle starts where it will be looked at.
                velocities[particle] = (self._sigma[place] * random.normal(), 0.0, 0.0)

    def not_finite(self, positions: Array) -> NDArray[np.int64]:
        """[W] number of extended variables that are not finite."""
        x = positions[self._first :, 0].reshape(self.evaluator.n_walkers, len(self))
        return np.asarray((~np.isfinite(x)).sum(axis=1), dtype=np.int64)


def find_extended(evaluator: FusedEvaluator) -> list[Extended]:
    """Extended variables of the evaluator's bias, in the order of its input columns.

    Raises
    ------
    UqbiasError
        If one of its variables is neither of the model, nor computed in the graph, nor extended.
    """
    known = {one.name: one for one in getattr(evaluator.bias, "extended", ())}
    found = []
    for name in evaluator.input_names:
        if name not in known:
            given = [other for other in evaluator.names if other not in evaluator.input_names]
            raise UqbiasError(
                f"the bias acts on '{name}', a variable that nobody defines",
                did_you_mean(name, ["driver", "judge", "energy", *given]) + "; or define it among the variables",
            )
        found.append(known[name])
    return found


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
