"""Observations of the walkers between steps, and the biases that may act on them beside the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from uqbias.molecule.topology import Topology

Array = NDArray[np.float64]


@dataclass(frozen=True)
class GuardEvent:
    """A walker that was stopped, and the safe frame it was restarted from."""

    step: int
    time_ps: float
    walker: int
    reason: str
    values: dict[str, float]
    restart_frame: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


@dataclass(frozen=True)
class Observation:
    """The walkers at one step, all from one evaluation.

    A walker with ``restarted`` True was stopped here by the guard, its values being those that it was stopped for, or
    has come to the end of its way from a jump: it deposits no hill, and goes on from a safe frame.

    Attributes
    ----------
    step : MD step.
    time_ps : time in ps.
    positions : [W, N, 3] nm.
    energy : [W] kJ/mol, of the model.
    driver : [W] driver.
    judge : [W] judge, kJ/mol/nm.
    bias : [W] kJ/mol, as it acted on this step, before the hills of this step.
    restarted : [W] bool.
    variables : [W, C] variables of the bias, extended ones too.
    names : names of the variables.
    events : one entry per stopped walker.
    boxes : [W, 3, 3] nm, rows are lattice vectors; None in vacuum.
    """

    step: int
    time_ps: float
    positions: Array
    energy: Array
    driver: Array
    judge: Array
    bias: Array
    restarted: NDArray[np.bool_]
    variables: Array = field(default_factory=lambda: np.zeros((0, 0)))
    names: tuple[str, ...] = ()
    events: tuple[GuardEvent, ...] = ()
    boxes: Array | None = None


Observer = Callable[[Observation], object]


class ExternalBias(Protocol):
    """Any other OpenMM forces on the walkers, with an update at each observation."""

    def forces(self, topology: Topology, n_walkers: int) -> list[Any]:
        """OpenMM Forces over the W*N particles; called once, before the Context is made."""

    def update(self, context: Any, step: int, positions: Array) -> None:
        """Change them by what the walkers [W, N, 3] nm do."""
