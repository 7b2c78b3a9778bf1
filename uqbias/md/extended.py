"""Extended variables: OpenMM particles whose x coordinate in nm is the value, for walkers and in the user's System."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from uqbias.compile.fused import FusedEvaluator
from uqbias.errors import UqbiasError, did_you_mean
from uqbias.units import kt

Array = NDArray[np.float64]


class ExtendedVariables:
    """The K extended variables of each walker, as particles.

    Parameters
    ----------
    evaluator : evaluator of W walkers; the extended variables are those of its bias, in the order of its input columns.
    temperature : K, of their velocities.
    elsewhere : names of input columns that come from Forces.

    Attributes
    ----------
    particles : [W, K] index of each in the System, see `add_particles`.

    Raises
    ------
    UqbiasError
        If one of the bias's variables is neither of the model, nor computed in the graph, nor extended, nor elsewhere.
    """

    def __init__(self, evaluator: FusedEvaluator, temperature: float, elsewhere: Sequence[str] = ()) -> None:
        known = {one.name: one for one in getattr(evaluator.bias, "extended", ())}
        for name in evaluator.input_names:
            if name not in known and name not in elsewhere:
                given = [other for other in evaluator.names if other not in evaluator.input_names]
                raise UqbiasError(
                    f"the bias acts on '{name}', a variable that nobody defines",
                    did_you_mean(name, ["driver", "judge", "energy", *given]) + "; or define it among the variables",
                )
        self.evaluator = evaluator
        self.variables = [known[name] for name in evaluator.input_names if name in known]
        self.particles = np.zeros((evaluator.n_walkers, 0), dtype=np.int64)
        self._sigma = np.sqrt(kt(temperature) / np.array([one.mass for one in self.variables], dtype=np.float64))

    def __len__(self) -> int:
        return len(self.variables)

    @property
    def of_first_walker(self) -> dict[str, int]:
        """Name of each variable to the index of its particle."""
        return {one.name: int(index) for one, index in zip(self.variables, self.particles[0], strict=True)}

    def add_particles(self, system: Any) -> None:
        """Add the particles to an openmm.System, walker after walker, without any interaction of their own.

        Raises
        ------
        UqbiasError
            If the System has a barostat, which would scale a variable with the box; a CMMotionRemover, which would
            shift it with the atoms; or a force that cannot be told to leave a particle alone. It is then as it was.
        """
        if not self.variables:
            return
        self.refuse_company(system)
        for force in system.getForces():
            _check_force(force, self.variables[0].name)
        masses = [[one.mass for one in self.variables]] * self.evaluator.n_walkers
        self.particles = np.array([[system.addParticle(mass) for mass in row] for row in masses], dtype=np.int64)
        for force in system.getForces():
            kind = type(force).__name__
            for _ in range(self.particles.size):
                if kind == "NonbondedForce":
                    force.addParticle(0.0, 0.1, 0.0)
                elif kind == "CustomNonbondedForce":
                    force.addParticle([0.0] * force.getNumPerParticleParameters())

    def refuse_company(self, system: Any) -> None:
        """Raise UqbiasError for a barostat or a CMMotionRemover beside an extended variable."""
        for force in system.getForces() if self.variables else ():
            kind, name = type(force).__name__, self.variables[0].name
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

    def put(self, positions: Array, variables: Array, walkers: Iterable[int] = (0,)) -> None:
        """Put the extended variables of some walkers where the variables are that they follow.

        Parameters
        ----------
        positions : [P, 3] nm, changed in place.
        variables : [W, C] values of the evaluator's variables.
        """
        columns = [self.evaluator.names.index(one.of) for one in self.variables]
        for walker in walkers:
            positions[self.particles[walker]] = 0.0
            positions[self.particles[walker], 0] = variables[walker, columns]

    def follow(self, positions: Array, velocities: Array, walkers: Mapping[int, np.random.Generator]) -> None:
        """Put the extended variables of some walkers where the atoms are, with thermal velocities.

        Parameters
        ----------
        positions, velocities : [W*N + W*K, 3], changed in place.
        walkers : generator of each walker to place.
        """
        if not self.variables:
            return
        w, n = self.evaluator.n_walkers, self.evaluator.n_atoms
        atoms = torch.as_tensor(positions[: w * n].reshape(w, n, 3))
        # Here the extended variables are still at 0, and pull at the atoms as they never will.
        broken = self.evaluator.broken.copy()
        values = self.evaluator.evaluate(atoms, judged=False).variables.double().cpu().numpy()
        self.evaluator.broken[:] = broken
        self.put(positions, values, walkers)
        for walker, random in walkers.items():
            # Along y and z nothing pulls; at rest there a particle starts where it will be looked at.
            velocities[self.particles[walker]] = 0.0
            velocities[self.particles[walker], 0] = self._sigma * random.normal(size=len(self))

    def not_finite(self, positions: Array) -> NDArray[np.int64]:
        """[W] number of extended variables that are not finite."""
        return np.asarray((~np.isfinite(positions[self.particles, 0])).sum(axis=1), dtype=np.int64)

    def extend_topology(self, topology: Any) -> Any:
        """A copy of an openmm.app.Topology with one atom more, without element, for each variable of one walker."""
        from openmm import Vec3, app, unit

        copy = app.Modeller(topology, [Vec3(0, 0, 0)] * topology.getNumAtoms() * unit.nanometer)
        copy.delete([])
        extended = copy.topology
        residue = extended.addResidue("LAM", extended.addChain())
        for one in self.variables:
            extended.addAtom(one.name, None, residue)
        return extended


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
