"""The step loop in the user's Simulation, which moves the particles itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from uqbias.app.computation import Computation
from uqbias.app.host import ALL_GROUPS, BROKEN
from uqbias.app.integrator import NOT_THERE
from uqbias.bias.base import Array
from uqbias.errors import UqbiasError
from uqbias.md.guards import Violation
from uqbias.md.loop import Look, StepLoop, look_of
from uqbias.runs.observation import Observer


class SimulationLoop(StepLoop):
    """Observations of the one walker that is the model's atoms in the user's Simulation.

    A molecule that breaks is an error: nobody but the user can put it elsewhere.

    Parameters
    ----------
    computation : what the force computes.
    names : variables of the biases.
    pace : steps between observations.
    temperature : K.
    """

    def __init__(self, computation: Computation, names: Sequence[str], pace: int, temperature: float) -> None:
        # The timestep is known when there is a Simulation.
        super().__init__(1, math.nan, temperature, evaluator=computation.evaluator)
        self.evaluator, self._computation = computation.evaluator, computation
        self._names, self._pace = tuple(names), pace
        self._others: Array | None = None
        self._time_ps = 0.0
        #: openmm.Force of the computation.
        self.force: Any = None
        #: openmm.Context, while it is observed; kept no longer, since it may hold a GPU's memory.
        self._context: Any = None

    @property
    def names(self) -> tuple[str, ...]:
        return self._names

    @property
    def time_ps(self) -> float:
        """Time of the Simulation, ps."""
        return self._time_ps

    def observe_in(self, simulation: Any, time_ps: float, observers: Sequence[Observer]) -> None:
        """Observe the molecule at the step that the Simulation is at."""
        self.step, self._time_ps, self._context = simulation.currentStep, time_ps, simulation.context
        try:
            self.observe(observers)
        finally:
            self._context = None

    def look(self) -> Look:
        # Another reporter may have asked for the energy here, and steps lie between this and the biases' last change.
        self.evaluator.arm_memo()
        self.evaluate(self._context)
        self._others = None
        return look_of(self.evaluator, np.zeros((1, 0, 3)), self.evaluator.broken)

    def evaluate(self, context: Any) -> None:
        """Evaluate the force of the biases alone, at the current positions of an openmm.Context."""
        import openmm

        calls = self.evaluator.n_calls
        try:
            context.getState(forces=True, groups={self.force.getForceGroup()})
        except openmm.OpenMMException:
            self.evaluator.reraise()
            raise
        if self.evaluator.n_calls == calls:
            raise UqbiasError(*NOT_THERE)

    def variables(self) -> Array:
        """[C] variables of the biases in the latest evaluation."""
        last = self.evaluator.last
        values = np.zeros(0) if last is None else last.variables[0].detach().cpu().numpy()
        return np.asarray(values[: len(self.names)], dtype=np.float64)

    def check(self, look: Look) -> list[Violation]:
        self.refuse_broken(self.step)
        return []

    def refuse_broken(self, step: int) -> None:
        """Raise UqbiasError if an evaluation since the last observation broke, or a variable is not finite."""
        if self.evaluator.last is None:
            return
        variables = dict(zip(self.names, self.variables().tolist(), strict=True))
        for name, value in variables.items():
            if not math.isfinite(value):
                raise UqbiasError(f"variable '{name}' is not a finite number at step {step}", BROKEN)
        if self.evaluator.broken.any():
            values = ", ".join(f"{name} {value:.4g}" for name, value in variables.items())
            raise UqbiasError(
                f"in the {self._pace} steps up to step {step} the molecule left what the model describes: energy "
                f"{float(self.evaluator.last.energy[0]):.6g} kJ/mol, {values}",
                BROKEN,
            )

    def probe(self, state: Mapping[str, Tensor]) -> Array:
        """Forces [1, N, 3] on the model's atoms, the System's own forces included.

        These are evaluated when the first bias asks.
        """
        if self._others is None:
            group = self.force.getForceGroup()
            if sum(force.getForceGroup() == group for force in self._context.getSystem().getForces()) > 1:
                raise UqbiasError(
                    f"this bias measures the other forces, but shares force group {group} with them",
                    "give it a force group of its own, or a fixed tau",
                )
            others = self._context.getState(forces=True, groups=set(ALL_GROUPS - {self.force.getForceGroup()}))
            forces, atoms = others.getForces(asNumpy=True)._value, self._computation.atoms
            self._others = forces[: self.evaluator.n_atoms] if atoms is None else forces[atoms]
        return np.asarray(self.evaluator.probe(state) + self._others, dtype=np.float64)
