"""The step loop: what happens between MD steps, under `Walkers`, in the user's Simulation and under PLUMED."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from uqbias.bias.base import Bias
from uqbias.compile.fused import FusedEvaluator
from uqbias.errors import UqbiasError
from uqbias.md.guards import Guard, Violation, refuse_endless
from uqbias.md.health import Health
from uqbias.runs.observation import GuardEvent, Observation, Observer
from uqbias.runs.snapshot import open_snapshot, restore_bias, restore_context, state_of_context, write_snapshot

Array = NDArray[np.float64]
#: Chooses the safe frame a walker restarts from: (walker, safe frames [n, N, 3] nm, generator) -> index.
ChooseRestart = Callable[[int, Array, np.random.Generator], int]


class Placements(NamedTuple):
    """Walkers that are placed every so often on frames of their own, relaxed ones, among the safe frames."""

    walkers: tuple[int, ...]
    #: Steps between two placements of a walker.
    every: int
    #: Index of the first of their frames, and how many there are; after the last comes the first again.
    first: int
    number: int

    def at(self, step: int) -> dict[int, int]:
        """The safe frame of each walker that is placed at a step."""
        if step % self.every:
            return {}
        begin = step // self.every * len(self.walkers)
        return {walker: self.first + (begin + place) % self.number for place, walker in enumerate(self.walkers)}


class Look(NamedTuple):
    """What one look at the walkers shows, all of it from one evaluation."""

    #: [W, N, 3] nm.
    positions: Array
    #: [W] energy of the model, kJ/mol.
    energy: Array
    #: [W] driver.
    driver: Array
    #: [W] judge, kJ/mol/nm.
    judge: Array
    #: [W] bias, kJ/mol.
    bias: Array
    #: [W, C] variables of the bias.
    variables: Array
    #: [W] whether an energy or a force was not finite, or beyond any bound, since the last look.
    broken: NDArray[np.bool_]
    #: [W, 3, 3] nm, rows are lattice vectors; None in vacuum.
    boxes: Array | None = None


class StepLoop(ABC):
    """Observations of W walkers, the bias updates and restarts that follow, and snapshots.

    An observation costs no evaluation: the one that it makes is handed to the integrator's next step, at the same
    positions. So hills deposited at step k act from step k+1 on. At an observation come, in this order: the guard, the
    bias update, the observers, the restarts.

    A subclass says how its walkers are looked at, moved and put elsewhere.

    Parameters
    ----------
    n_walkers : W.
    timestep_fs : fs.
    temperature : K.
    evaluator : energy, driver, judge and bias of the walkers; None where another program holds the bias.
    guard : judges the walkers at each observation; None lets them run.
    safe_frames : [n, N, 3] nm, where stopped walkers restart.
    choose_restart : chooses among them; uniformly at random if None.
    seed : seed of each walker's random numbers.
    friction_per_ps : of the thermostat, 1/ps; None where there is none, or another program has it.
    placements : walkers that are placed elsewhere every so often, however they are; they restart there, too, if
        ``choose_restart`` says so.

    Attributes
    ----------
    step : MD steps so far.
    bias : the evaluator's bias, or None.
    events : what the guard stopped so far.
    health : what the looks say of the run as a whole.
    at_once : whether hills act on the very next evaluation, even at the same positions.
    """

    def __init__(
        self,
        n_walkers: int,
        timestep_fs: float,
        temperature: float,
        *,
        evaluator: FusedEvaluator | None = None,
        guard: Guard | None = None,
        safe_frames: Array | None = None,
        choose_restart: ChooseRestart | None = None,
        seed: int = 0,
        friction_per_ps: float | None = None,
        placements: Placements | None = None,
    ) -> None:
        self.placements = placements
        self.n_walkers, self.timestep_fs, self.temperature = n_walkers, float(timestep_fs), float(temperature)
        self.guard, self.step, self.at_once = guard, 0, False
        self.bias: Bias | None = None if evaluator is None else evaluator.bias  # type: ignore[assignment]
        self.events: list[GuardEvent] = []
        self.health = Health(n_walkers, self.temperature, friction_per_ps)
        self._looks = 0
        self.safe_frames = np.zeros((0, 0, 3)) if safe_frames is None else safe_frames
        self._evaluator, self._choose_restart = evaluator, choose_restart
        self._rngs = [np.random.default_rng([seed, walker]) for walker in range(n_walkers)]
        self._in_a_row = np.zeros(n_walkers, dtype=int)
        self._observed_start = False

    @abstractmethod
    def look(self) -> Look:
        """Evaluate the walkers where they are."""

    def advance(self, steps: int) -> None:  # noqa: B027
        """Integrate all walkers; nothing to do where another program does that."""

    def restart(self, frames: Mapping[int, int]) -> None:  # noqa: B027
        """Put walkers on safe frames, with thermal velocities; without a guard it is never called."""

    def heat(self, look: Look) -> tuple[Array | None, Array | None]:
        """Kinetic temperature and conserved energy of the walkers as `Health.note` takes them; here not known."""
        return None, None

    def check(self, look: Look) -> list[Violation]:
        """Walkers to be stopped."""
        if self.guard is None:
            return []
        return self.guard.check(look.positions, look.driver, look.judge, look.broken, look.boxes)

    def probe(self, state: Mapping[str, Tensor]) -> Array:
        """Forces [W, N, 3] kJ/mol/nm at the walkers' positions under another state of the bias."""
        assert self._evaluator is not None
        return self._evaluator.probe(state)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the variables of the bias."""
        return () if self._evaluator is None else self._evaluator.names

    @property
    def runner(self) -> str:
        """How the model is evaluated, see `uqbias.compile.runners.compile_function`."""
        return "" if self._evaluator is None else self._evaluator.runner

    @property
    def n_evaluations(self) -> int:
        """Evaluations of the model so far."""
        return 0 if self._evaluator is None else self._evaluator.n_evaluations

    @property
    def time_ps(self) -> float:
        """Time simulated so far by each walker, ps."""
        return self.step * self.timestep_fs * 1e-3

    @property
    def ended(self) -> bool:
        """Whether no walker moves any more."""
        return False

    def run(self, steps: int, *, pace: int, observers: Sequence[Observer] = ()) -> None:
        """Run ``steps`` steps and observe the walkers every ``pace`` steps, before the first step too.

        Parameters
        ----------
        steps : a multiple of ``pace``.
        pace : steps between observations; a divisor of the bias's own pace.
        observers : called with each `Observation`.

        Raises
        ------
        UqbiasError
            If the numbers do not divide, or a walker breaks again and again however it is restarted.
        """
        if pace < 1 or steps % pace:
            raise UqbiasError(f"{steps} steps observed every {pace}", "give a number of steps that is a multiple of it")
        if self.bias is not None and not self.bias.frozen:
            check_pace(self.bias, pace)
        if not self._observed_start:
            self.observe(observers)
            self._observed_start = True
        for _ in range(steps // pace):
            if self.ended:
                break
            self.advance(pace)
            self.step += pace
            self.observe(observers)

    def observe(self, observers: Sequence[Observer]) -> None:
        """Look at the walkers, stop those that the guard objects to, update the bias and call the observers."""
        look = self.look()
        if self._evaluator is not None and self._looks & (self._looks - 1) == 0:
            self._evaluator.verify(self.step)
        self._looks += 1
        violations = self.check(look)
        stopped = np.zeros(self.n_walkers, dtype=bool)
        stopped[[violation.walker for violation in violations]] = True
        placed = self.placements.at(self.step) if self.placements is not None and self.step else {}
        restarted = stopped.copy()
        restarted[[*placed]] = True
        self.health.note(self.time_ps, stopped, *self.heat(look), leaving=restarted)
        if self._evaluator is not None:
            self._evaluator.broken[:] = False
        if self.bias is not None:
            self.bias.update(self.step, np.where(restarted[:, None], np.nan, look.variables), self.probe)
        events = tuple(self._event(violation) for violation in violations)
        self.events += events
        observation = Observation(
            self.step, self.time_ps, *look[:5], restarted, look.variables, self.names, events, look.boxes
        )
        for observer in observers:
            observer(observation)
        if self._evaluator is not None:
            self._evaluator.arm_memo(not self.at_once)
        self._in_a_row = np.where(stopped, self._in_a_row + 1, 0)
        refuse_endless(events, self._in_a_row)
        if frames := {event.walker: event.restart_frame for event in events} | placed:
            self.restart(frames)

    def _event(self, violation: Violation) -> GuardEvent:
        walker, frames = violation.walker, self.safe_frames
        rng = self._rngs[walker]
        choose = self._choose_restart
        frame = int(rng.integers(len(frames)) if choose is None else choose(walker, frames, rng))
        return GuardEvent(self.step, self.time_ps, walker, violation.reason, violation.values, frame)

    def save_state(
        self,
        path: str | Path,
        context: Any,
        numbers: Sequence[int],
        facts: Mapping[str, Any],
        arrays: Mapping[str, NDArray[Any]] = MappingProxyType({}),
    ) -> None:
        """Write a snapshot: one file, atomically, with all that a later `load_state` needs to go on.

        Parameters
        ----------
        context : openmm.Context of the walkers.
        numbers : atomic numbers of its molecule.
        facts : JSON-able values beside step, timestep and temperature.
        arrays : further arrays.
        """
        assert self._evaluator is not None
        loop_facts = {"step": self.step, **facts, "timestep_fs": self.timestep_fs, "temperature": self.temperature}
        everything = {**arrays, **state_of_context(context), **self._evaluator.memo()}
        write_snapshot(path, numbers, loop_facts, everything, self.bias)

    def load_state(
        self,
        path: str | Path,
        context: Any,
        numbers: Sequence[int],
        facts: Mapping[str, Any],
        before: Callable[[Mapping[str, Any]], None] = lambda arrays: None,
    ) -> dict[str, Any]:
        """Put back what `save_state` wrote; where it does not fit, nothing is changed.

        Parameters
        ----------
        facts : values that must be those of the run that wrote it.
        before : called with the arrays when the file has been checked, before anything changes.

        Returns
        -------
        The facts of the snapshot.

        Raises
        ------
        UqbiasError
            If the file is not a whole snapshot, or one of another system or other settings.
        """
        assert self._evaluator is not None
        wanted = {**facts, "timestep_fs": self.timestep_fs, "temperature": self.temperature}
        loop_facts, arrays = open_snapshot(path, numbers, wanted, self.bias, context.getSystem().getNumParticles())
        before(arrays)
        restore_bias(path, self.bias, arrays)
        restore_context(context, arrays)
        self._evaluator.restore_memo(arrays)
        self._evaluator.broken[:] = False
        self.step = loop_facts["step"]
        return loop_facts


def check_pace(bias: Bias, pace: int) -> None:
    """Raise UqbiasError if observations every ``pace`` steps miss updates of the bias."""
    if bias.pace and bias.pace % pace:
        raise UqbiasError(
            f"observing every {pace} steps misses updates of a bias with pace {bias.pace}",
            "give a divisor of the bias's pace",
        )


def look_of(evaluator: FusedEvaluator, positions: Array, broken: NDArray[np.bool_], boxes: Array | None = None) -> Look:
    """The evaluator's latest evaluation, judge included, in double precision.

    Parameters
    ----------
    positions : [W, N, 3] nm.
    broken : [W].
    boxes : [W, 3, 3] nm, or None.
    """
    last = evaluator.judged()
    energy, driver, judge, bias, variables = (
        values.detach().cpu().numpy().astype(np.float64)
        for values in (last.energy, last.driver, last.judge, last.bias, last.variables)
    )
    return Look(positions, energy, driver, judge, bias, variables, broken, boxes)
