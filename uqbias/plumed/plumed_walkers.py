"""Walkers under PLUMED: each has a Context and a PLUMED of its own, which holds the bias and the hills."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# torch first, since OpenMM's plugin for torch links its libraries.
import torch  # noqa: F401

from uqbias.errors import UqbiasError
from uqbias.md.guards import Guard
from uqbias.md.loop import Array, ChooseRestart, Look, StepLoop
from uqbias.model.model import UncertaintyModel
from uqbias.plumed.bridge import PlumedBridge
from uqbias.units import kt


class PlumedWalkers(StepLoop):
    """MD of W walkers that move in turns, each under its own PLUMED, and are looked at together.

    Parameters
    ----------
    model : potential, driver and judge of the N atoms.
    plumed_dat : PLUMED's input.
    positions : [W, N, 3] nm, where the walkers start.
    stack : ends every PLUMED when it closes.
    output_dir : PLUMED's files go to ``walker_N`` in it.
    temperature : K.
    timestep_fs : fs.
    friction_per_ps : 1/ps.
    platform : name of an OpenMM platform, or ``auto`` for Reference.
    runner : see `uqbias.compile.runners.compile_function`.
    guard, safe_frames, choose_restart, seed : see `StepLoop`.
    """

    def __init__(
        self,
        model: UncertaintyModel,
        plumed_dat: Path,
        positions: Array,
        stack: ExitStack,
        *,
        output_dir: Path,
        temperature: float,
        timestep_fs: float,
        friction_per_ps: float,
        platform: str,
        runner: str,
        guard: Guard,
        safe_frames: Array,
        choose_restart: ChooseRestart | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            len(positions),
            timestep_fs,
            temperature,
            guard=guard,
            safe_frames=safe_frames,
            choose_restart=choose_restart,
            seed=seed,
        )
        import openmm
        from openmm import app

        self.topology = model.topology
        masses = np.asarray(self.topology.masses(), dtype=np.float64)
        spread = np.sqrt(kt(temperature) / masses)[:, None]
        chosen = openmm.Platform.getPlatformByName("Reference" if platform == "auto" else platform)
        timestep = timestep_fs * 1e-3
        self._walkers: list[_Walker] = []
        for index, (start, random) in enumerate(zip(positions, self._rngs, strict=True)):
            system = openmm.System()
            for mass in masses:
                system.addParticle(mass)
            folder = output_dir / f"walker_{index}"
            folder.mkdir(parents=True, exist_ok=True)
            settings: dict[str, Any] = {"temperature": temperature, "timestep": timestep, "runner": runner}
            bridge = stack.enter_context(PlumedBridge(system, plumed_dat, model, output_dir=folder, **settings))
            integrator = openmm.LangevinMiddleIntegrator(temperature, friction_per_ps, timestep)
            integrator.setRandomNumberSeed(int(random.integers(1, 2**31 - 1)))
            simulation = app.Simulation(self.topology.to_openmm(), system, integrator, chosen)
            self._walkers.append(_Walker(bridge, simulation, spread, random))
            self._walkers[-1].place(start)

    @property
    def runner(self) -> str:
        return self._walkers[0].bridge.runner

    @property
    def n_evaluations(self) -> int:
        return sum(walker.bridge.n_evaluations for walker in self._walkers)

    @property
    def steps_of_all(self) -> int:
        """Steps that all walkers did together."""
        return sum(walker.steps for walker in self._walkers)

    @property
    def ended(self) -> bool:
        """Whether PLUMED has stopped every walker."""
        return all(walker.bridge.stopped for walker in self._walkers)

    def look(self) -> Look:
        places, values = zip(*(walker.look() for walker in self._walkers), strict=True)
        energy, driver, judge, bias = np.array(values).T
        return Look(np.stack(places), energy, driver, judge, bias, np.zeros((len(places), 0)), ~np.isfinite(energy))

    def advance(self, steps: int) -> None:
        for walker in self._walkers:
            walker.step(steps)

    def restart(self, frames: Mapping[int, int]) -> None:
        for walker, frame in frames.items():
            self._walkers[walker].place(self.safe_frames[frame])

    def save(self, path: str | Path) -> None:
        """Raise UqbiasError: what PLUMED holds cannot be put into a snapshot."""
        raise UqbiasError("a snapshot of walkers under PLUMED", "leave snapshots out")

    def load(self, path: str | Path) -> None:
        """Raise UqbiasError, since there is no such snapshot."""
        self.save(path)


@dataclass
class _Walker:
    """One copy of the molecule with a Context and a PLUMED."""

    bridge: PlumedBridge
    simulation: Any
    #: [N, 1] nm/ps, of thermal velocities.
    spread: Array
    random: np.random.Generator
    steps: int = 0

    def place(self, positions: Any) -> None:
        """Put the walker at positions [N, 3] nm with thermal velocities."""
        self.simulation.context.setPositions(positions)
        self.simulation.context.setVelocities(self.spread * self.random.normal(size=(len(self.spread), 3)))

    def step(self, steps: int) -> None:
        """Integrate; a walker whose numbers overflow is left as it is, for the guard to find."""
        try:
            self.steps += self.bridge.step(self.simulation, steps)
        except UqbiasError as error:
            if "the model gives energy" not in error.what:
                raise

    def look(self) -> tuple[Any, tuple[float, float, float, float]]:
        """Positions [N, 3] nm, and energy, driver, judge and bias there."""
        context = self.simulation.context
        positions = context.getState(positions=True).getPositions(asNumpy=True)._value.copy()
        if not np.isfinite(positions).all():
            return positions, (np.nan, np.nan, np.nan, np.nan)
        if not self.bridge.stopped:
            context.getState(energy=True)
        last = self.bridge.last
        assert last is not None
        return positions, (last.energy, last.driver, last.judge, last.bias)
