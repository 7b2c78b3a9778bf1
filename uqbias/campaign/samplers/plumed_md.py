"""A campaign's exploration under a PLUMED input of the user's own."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from uqbias.campaign.samplers.base import Advance, Exploration
from uqbias.campaign.samplers.md import MolecularDynamics, make_guard, starting_points
from uqbias.errors import UqbiasError
from uqbias.md.guards import refuse_endless
from uqbias.runs.observation import GuardEvent, Observation
from uqbias.units import kt

if TYPE_CHECKING:
    from uqbias.molecule.frames import Frames
    from uqbias.molecule.topology import Topology
    from uqbias.settings.schema import Campaign


class PlumedDynamics(MolecularDynamics):
    """MD under the PLUMED input md.plumed."""

    def check(self, campaign: Campaign, topology: Topology, start: Frames) -> None:
        if campaign.md.plumed is None:
            raise UqbiasError("sampler = plumed without an input", "give md: {engine: plumed, plumed: FILE}")

    def explore(self, job: Exploration, advance: Advance | None = None) -> dict[str, Any]:
        return explore_plumed(job, advance)


def explore_plumed(job: Exploration, advance: Advance | None = None) -> dict[str, Any]:
    """Run the walkers of a group under ``md.plumed`` and write the group's folder.

    Each walker is a Context with a PLUMED of its own, whose files are in ``walker_N`` of the folder; they share hills
    where the input says so (``WALKERS_DIR`` of METAD). Walkers move in turns and are looked at together, with the
    guards and the observations of `uqbias.campaign.samplers.md.explore`: what is harvested is of the same kind.

    Raises
    ------
    UqbiasError
        If no PLUMED kernel is found, PLUMED refuses the input, or a walker breaks again and again.
    """
    import torch

    from uqbias.model.model import UncertaintyModel
    from uqbias.runs.series import ObservationRecorder
    from uqbias.runs.trajectories import Trajectories

    torch.set_num_threads(1)
    md = job.md
    job.folder.mkdir(parents=True, exist_ok=True)
    model = UncertaintyModel.load(job.model)
    guard = make_guard(job, model)
    frames, weights, begin = starting_points(job, guard)
    in_a_row, stopped, step = np.zeros(md.walkers, dtype=np.int64), 0, 0
    with ExitStack() as stack:
        walkers = [stack.enter_context(_Walker(job, model, index, frames[start])) for index, start in enumerate(begin)]
        recorder = stack.enter_context(ObservationRecorder(job.folder, stride=md.observe_every // md.pace))
        trajectories = Trajectories(job.folder, model.topology, md.walkers, stride=md.trajectory_every // md.pace)
        stack.callback(trajectories.close)
        while True:
            seen = [walker.look() for walker in walkers]
            positions = np.stack([place for place, _ in seen])
            energy, driver, judge, bias = np.array([values for _, values in seen]).T
            broken = ~np.isfinite(energy)
            violations = guard.check(positions, driver, judge, broken)
            restarted = np.zeros(len(walkers), dtype=bool)
            restarted[[violation.walker for violation in violations]] = True
            time_ps = step * md.timestep_fs * 1e-3
            events = tuple(
                GuardEvent(
                    step,
                    time_ps,
                    violation.walker,
                    violation.reason,
                    violation.values,
                    int(walkers[violation.walker].random.choice(len(frames), p=weights)),
                )
                for violation in violations
            )
            observation = Observation(step, time_ps, positions, energy, driver, judge, bias, restarted, events=events)
            for observer in (recorder, trajectories):
                observer(observation)
            in_a_row, stopped = np.where(restarted, in_a_row + 1, 0), stopped + len(events)
            refuse_endless(events, in_a_row)
            for event in events:
                walkers[event.walker].place(frames[event.restart_frame])
            if advance is not None and step:
                advance(md.pace, f"u up to {np.nanmax(driver, initial=-np.inf):.1f}, {stopped} stopped")
            if step >= md.steps or all(walker.bridge.stopped for walker in walkers):
                break
            for walker in walkers:
                walker.step(md.pace)
            step += md.pace
        recorder.save()
        return {
            "steps": sum(walker.steps for walker in walkers),
            "stopped": stopped,
            "runner": walkers[0].bridge.runner,
            "evaluations": sum(walker.bridge.n_evaluations for walker in walkers),
        }


class _Walker:
    """One copy of the molecule with a Context and a PLUMED."""

    def __init__(self, job: Exploration, model: Any, index: int, positions: Any) -> None:
        # torch first, since OpenMM's plugin for torch links its libraries.
        import torch  # noqa: F401, I001
        import openmm
        from openmm import app

        from uqbias.plumed.bridge import PlumedBridge

        md = job.md
        self.random = np.random.default_rng([job.seed, index])
        system = openmm.System()
        masses = model.topology.masses()
        for mass in masses:
            system.addParticle(float(mass))
        folder = job.folder / f"walker_{index}"
        folder.mkdir(parents=True, exist_ok=True)
        self.bridge = PlumedBridge(
            system,
            Path(str(md.plumed)),
            model,
            temperature=md.temperature,
            timestep=md.timestep_fs * 1e-3,
            output_dir=folder,
            runner=md.runner,
        )
        integrator = openmm.LangevinMiddleIntegrator(md.temperature, md.friction_per_ps, md.timestep_fs * 1e-3)
        integrator.setRandomNumberSeed(int(self.random.integers(1, 2**31 - 1)))
        name = "Reference" if md.platform == "auto" else md.platform
        self.simulation = app.Simulation(
            model.topology.to_openmm(), system, integrator, openmm.Platform.getPlatformByName(name)
        )
        self._spread = np.sqrt(kt(md.temperature) / np.asarray(masses, dtype=np.float64))[:, None]
        self.steps = 0
        self.place(positions)

    def place(self, positions: Any) -> None:
        """Put the walker at positions [N, 3] nm with thermal velocities."""
        self.simulation.context.setPositions(positions)
        self.simulation.context.setVelocities(self._spread * self.random.normal(size=(len(self._spread), 3)))

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
