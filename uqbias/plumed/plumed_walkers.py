"""Walkers under PLUMED: each has a Context and a PLUMED of its own, which holds the bias and the hills."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
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
        self.topology = model.topology
        self._walkers = [
            stack.enter_context(
                _Walker(
                    model,
                    plumed_dat,
                    start,
                    output_dir / f"walker_{index}",
                    temperature=temperature,
                    timestep=timestep_fs * 1e-3,
                    friction=friction_per_ps,
                    platform="Reference" if platform == "auto" else platform,
                    runner=runner,
                    random=self._rngs[index],
                )
            )
            for index, start in enumerate(positions)
        ]

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

    def restart(self, frames: Mapping[int, Array]) -> None:
        for walker, frame in frames.items():
            self._walkers[walker].place(frame)

    def save(self, path: str | Path) -> None:
        """Raise UqbiasError: what PLUMED holds cannot be put into a snapshot."""
        raise UqbiasError("a snapshot of walkers under PLUMED", "leave snapshots out")

    def load(self, path: str | Path) -> None:
        """Raise UqbiasError, since there is no such snapshot."""
        self.save(path)


class _Walker:
    """One copy of the molecule with a Context and a PLUMED."""

    def __init__(
        self,
        model: UncertaintyModel,
        plumed_dat: Path,
        positions: Array,
        folder: Path,
        *,
        temperature: float,
        timestep: float,
        friction: float,
        platform: str,
        runner: str,
        random: np.random.Generator,
    ) -> None:
        import openmm
        from openmm import app

        self._random = random
        system = openmm.System()
        masses = model.topology.masses()
        for mass in masses:
            system.addParticle(float(mass))
        folder.mkdir(parents=True, exist_ok=True)
        self.bridge = PlumedBridge(
            system,
            plumed_dat,
            model,
            temperature=temperature,
            timestep=timestep,
            output_dir=folder,
            runner=runner,
        )
        integrator = openmm.LangevinMiddleIntegrator(temperature, friction, timestep)
        integrator.setRandomNumberSeed(int(random.integers(1, 2**31 - 1)))
        self.simulation = app.Simulation(
            model.topology.to_openmm(), system, integrator, openmm.Platform.getPlatformByName(platform)
        )
        self._spread = np.sqrt(kt(temperature) / np.asarray(masses, dtype=np.float64))[:, None]
        self.steps = 0
        self.place(positions)

    def place(self, positions: Any) -> None:
        """Put the walker at positions [N, 3] nm with thermal velocities."""
        self.simulation.context.setPositions(positions)
        self.simulation.context.setVelocities(self._spread * self._random.normal(size=(len(self._spread), 3)))

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

    def __enter__(self) -> _Walker:
        return self

    def __exit__(self, *error: object) -> None:
        self.bridge.__exit__(*error)
