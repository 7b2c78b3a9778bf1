"""OpenMM Forces as collective variables: value and gradient from an inner Context."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.errors import UqbiasError
from uqbias.md.stack import available_platforms, check_platform, check_torchforce_as_variable

Array = NDArray[np.float64]
#: Force groups of a Context.
MAX_VARIABLES = 32
#: Forces over pairs of particles, for which the Reference platform takes time by the square of their number.
PAIRWISE = ("Nonbonded", "GB", "Amoeba", "Hippo", "GayBerne", "Hbond", "ManyParticle")


class ForceVariables:
    """Potential energies of OpenMM Forces, as functions of all particles of a System.

    Copies of the Forces live in an inner Context that gets positions and periodic box at each evaluation. A step costs
    one more evaluation of these Forces, and of nothing else.

    Parameters
    ----------
    system : the openmm.System that the particles belong to. Positions of virtual sites come from outside.
    forces : for each variable, an ``openmm.Force`` (in a System or not), a list of them, or an ``openmm.System`` of the
        same particles, whose potential energy is then the variable. The value is the energy in kJ/mol, whatever the
        unit that the Force gives it.
    platform : name of an OpenMM platform; ``auto``: CPU if a Force is over pairs of particles, else Reference, which
        computes in double precision.

    Attributes
    ----------
    names : names of the K variables.

    Raises
    ------
    UqbiasError
        If something is not a Force, or OpenMM cannot copy it.
    """

    def __init__(self, system: Any, forces: Mapping[str, Any], platform: str = "auto") -> None:
        import openmm

        if len(forces) > MAX_VARIABLES:
            raise UqbiasError(f"{len(forces)} Forces as variables", f"OpenMM has {MAX_VARIABLES} force groups")
        inner = openmm.System()
        for index in range(system.getNumParticles()):
            inner.addParticle(system.getParticleMass(index))
        inner.setDefaultPeriodicBoxVectors(*system.getDefaultPeriodicBoxVectors())
        for group, (name, given) in enumerate(forces.items()):
            for force in _copies(name, given, system):
                force.setForceGroup(group)
                inner.addForce(force)
        self._prepare(tuple(forces), inner, platform)

    def _prepare(self, names: tuple[str, ...], inner: Any, platform: str) -> None:
        import openmm

        self.names = names
        self.platform = _platform(platform, [type(force).__name__ for force in inner.getForces()])
        try:
            self._context = openmm.Context(
                inner, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName(self.platform)
            )
        except openmm.OpenMMException as error:
            raise UqbiasError(
                f"Forces {list(self.names)} as variables: {error}", "check them against the System"
            ) from error
        self._system = inner
        self._periodic = inner.usesPeriodicBoundaryConditions()
        self._parameters = dict(self._context.getParameters())
        self._at: tuple[Array, Array] | None = None
        self._last: tuple[Array, Array] = (np.empty(0), np.empty((0, 0, 3)))

    @property
    def n_particles(self) -> int:
        """P."""
        return int(self._system.getNumParticles())

    @property
    def periodic(self) -> bool:
        """Whether any of the Forces uses periodic boundary conditions."""
        return bool(self._periodic)

    def take_parameters(self, outer: Mapping[str, float]) -> None:
        """Set the global parameters that these Forces have in common with the outer Context to its values."""
        for name, old in [*self._parameters.items()]:
            if name in outer and outer[name] != old:
                self._context.setParameter(name, outer[name])
                self._parameters[name], self._at = outer[name], None

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the global parameters of the Forces."""
        return tuple(self._parameters)

    def evaluate(self, positions: NDArray[Any], box: NDArray[Any] | None) -> tuple[Array, Array]:
        """Values and negative gradients.

        Parameters
        ----------
        positions : [P, 3] nm.
        box : [3, 3] nm, rows are the box vectors; the System's own if None.

        Returns
        -------
        values : [K] kJ/mol.
        forces : [K, P, 3] kJ/mol/nm, -ds/dx.
        """
        cell = np.zeros(0) if box is None else np.asarray(box)
        if self._at is not None and np.array_equal(self._at[0], positions) and np.array_equal(self._at[1], cell):
            return self._last
        if self._periodic and box is not None:
            self._context.setPeriodicBoxVectors(*box)
        self._context.setPositions(positions)
        states = [
            self._context.getState(energy=True, forces=True, groups=1 << group) for group in range(len(self.names))
        ]
        values = np.array([state.getPotentialEnergy()._value for state in states], dtype=np.float64)
        forces = np.array([state.getForces(asNumpy=True)._value for state in states], dtype=np.float64)
        self._at, self._last = (positions.copy(), cell.copy()), (values, forces)
        return self._last

    def __reduce__(self) -> tuple[Any, ...]:
        import openmm

        return _restored, (self.names, openmm.XmlSerializer.serialize(self._system), self.platform)


def _restored(names: tuple[str, ...], system: str, platform: str) -> ForceVariables:
    import openmm

    variables = ForceVariables.__new__(ForceVariables)
    variables._prepare(names, openmm.XmlSerializer.deserialize(system), platform)
    return variables


def is_force(given: Any) -> bool:
    """Whether something is an openmm.Force, an openmm.System, or a list of Forces."""
    import openmm

    items = given if isinstance(given, list | tuple) else [given]
    return bool(items) and all(isinstance(one, openmm.Force | openmm.System) for one in items)


def _copies(name: str, given: Any, system: Any) -> list[Any]:
    """Copies of the Forces of one variable, without those that have no energy."""
    import openmm

    if not is_force(given):
        raise UqbiasError(f"variable '{name}' is a {type(given).__name__}", "give an openmm.Force, a list, or a System")
    forces: list[Any] = []
    for one in given if isinstance(given, list | tuple) else [given]:
        if isinstance(one, openmm.System):
            if one.getNumParticles() != system.getNumParticles():
                raise UqbiasError(
                    f"variable '{name}': a System of {one.getNumParticles()} particles for one of "
                    f"{system.getNumParticles()}",
                    "give one of the same particles",
                )
            forces += [force for force in one.getForces() if not _is_without_energy(force)]
        else:
            forces.append(one)
    for force in forces:
        if type(force).__name__ == "TorchForce":
            check_torchforce_as_variable()
    try:
        return [copy.deepcopy(force) for force in forces]
    except openmm.OpenMMException as error:
        raise UqbiasError(
            f"variable '{name}' cannot be copied ({error})", "give a Force that OpenMM can serialise"
        ) from error


def _is_without_energy(force: Any) -> bool:
    kind = type(force).__name__
    return kind == "CMMotionRemover" or kind.endswith(("Barostat", "Thermostat"))


def _platform(name: str, kinds: Sequence[str]) -> str:
    if name == "auto":
        pairs = any(part in kind for kind in kinds for part in PAIRWISE)
        return "CPU" if pairs and "CPU" in available_platforms() else "Reference"
    check_platform(name, "pythonforce")
    return name
