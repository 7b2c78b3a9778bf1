"""What the integrator of the user's Simulation does with the force of the biases, and its clock."""

from __future__ import annotations

import re
from typing import Any

from uqbias.errors import UqbiasError
from uqbias.runs.run_files import FINE_STEP, TIME_DIGIT

#: What is wrong, and what to do, where a Context does not call the force of a bias.
NOT_THERE = (
    "the force of these biases is not in the simulation's System, or came there or changed its group after its Context "
    "was made",
    "make the Simulation from the System that they were made with, after it, or reinitialize its context",
)


def current(simulation: Any) -> Any:
    """The integrator that makes the next step: of an openmm.CompoundIntegrator the chosen one."""
    import openmm

    integrator = simulation.integrator
    if isinstance(integrator, openmm.CompoundIntegrator):
        return integrator.getIntegrator(integrator.getCurrentIntegrator())
    return integrator


def timestep_fs(simulation: Any) -> float:
    """Timestep of the simulation's integrator, fs; `FINE_STEP` if it chooses them itself."""
    integrator = current(simulation)
    return FINE_STEP if hasattr(integrator, "getErrorTolerance") else float(integrator.getStepSize()._value * 1e3)


def time_ps(simulation: Any) -> float:
    """Time of the simulation's Context, ps."""
    return float(simulation.context.getState().getTime()._value)


def refuse_idle(simulation: Any, group: int) -> None:
    """Raise UqbiasError if the integrator does not evaluate a force group: hills would grow and nothing act."""
    groups = _integrated_groups(current(simulation))
    if group not in groups:
        kind, names = type(current(simulation)).__name__, ", ".join(map(str, sorted(groups)))
        raise UqbiasError(
            f"{kind} evaluates force groups {{{names}}}, and the force of these biases, in group {group}, never acts",
            f"let the integrator evaluate group {group}, as MTSIntegrator(dt, [({group}, 1), ...]) does, or put the "
            f"force into another, .force.setForceGroup({min(groups, default=0)}), before the Simulation is made",
        )


def refuse_rewound(time_ps: float, before: float) -> None:
    """Raise UqbiasError where a Context was put back from a time: what it did since would count twice."""
    if 0 < time_ps < before - TIME_DIGIT:
        raise UqbiasError(
            f"the Simulation was put back from {before:.6g} to {time_ps:.6g} ps, and its bias has hills and rows since",
            "load a snapshot, which puts the bias back too (.save, .load); for another trajectory "
            "simulation.context.setTime(0)",
        )


def compares_energies(simulation: Any) -> bool:
    """Whether Monte Carlo moves compare energies: a barostat, or a CustomIntegrator that looks at the energy.

    Both energies must then be those of the same bias.
    """
    if any("Barostat" in type(force).__name__ for force in simulation.system.getForces()):
        return True
    return any(re.search(r"\benergy\d*\b", text) for _, text in _computations(current(simulation)))


def _integrated_groups(integrator: Any) -> set[int]:
    """Force groups that move particles: by forces, or by energies where there is no force in the integrator."""
    mask = integrator.getIntegrationForceGroups()
    chosen = {group for group in range(32) if mask >> group & 1}
    computations = _computations(integrator)
    per_particle = " ".join(text for kind, text in computations if kind == integrator.ComputePerDof)
    named = re.findall(r"\bf(\d*)\b", per_particle)
    named = named or re.findall(r"\benergy(\d*)\b", " ".join(text for _, text in computations))
    if not named:
        return chosen
    return {int(name) for name in named if name} | (chosen if "" in named else set())


def _computations(integrator: Any) -> list[tuple[int, str]]:
    """Kind and expression of each computation of a CustomIntegrator; none of another."""
    import openmm

    if not isinstance(integrator, openmm.CustomIntegrator):
        return []
    steps = [integrator.getComputationStep(index) for index in range(integrator.getNumComputations())]
    return [(kind, str(expression)) for kind, _, expression in steps]
