"""Walkers: W copies of the molecule in one Context that share one evaluation a step and one bias."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.compile.fused import FusedEvaluator
from uqbias.errors import UqbiasError
from uqbias.md.constraints import Projector, choose_constraints
from uqbias.md.engines import check_engine, make_context
from uqbias.md.extended import ExtendedVariables
from uqbias.md.guards import Guard, Violation
from uqbias.md.loop import Array, ChooseRestart, Look, Placements, StepLoop, look_of
from uqbias.md.stack import choose_backend
from uqbias.md.walker_cells import WalkerCells
from uqbias.molecule.topology import Topology
from uqbias.runs.observation import ExternalBias, Observation, Observer
from uqbias.units import kt


class Walkers(StepLoop):
    """MD of W walkers with LangevinMiddle (Zhang et al., J. Phys. Chem. A 123, 6056, 2019) or Verlet dynamics.

    On the Reference platform the same seed gives bit-identical runs (one Walkers object at a time in a process, since
    that platform has one random number generator), and so does engine ``torch`` on the CPU.

    Parameters
    ----------
    topology : bond graph of the molecule, N atoms.
    evaluator : energy and forces of its ``n_walkers`` walkers; its bias is updated at each observation.
    positions : [W, N, 3] nm, where the walkers start; or [n, N, 3] with n < W, of which each walker takes the next.
        In a cell atoms may be at any of their images, those of a molecule near each other; none is ever wrapped.
    temperature : K.
    timestep_fs : fs.
    friction_per_ps : 1/ps; None for Verlet dynamics at constant energy.
    engine : ``openmm``, or ``torch``: the same dynamics on tensors, without constraints or external forces.
    platform : ``Reference`` (double precision), ``CPU``, ``CUDA`` (mixed precision), or ``auto``: CUDA where the
        evaluator is on a GPU, else Reference.
    backend : backend of the force, see `uqbias.md.force.make_force`.
    constraints : ``none``, ``hbonds``, ``bonds`` or ``bonds_angles``; see `uqbias.md.constraints`.
    constraint_geometry : [N, 3] or [n, N, 3] nm, whose mean lengths are held; ``safe_frames`` if None.
    guard : judges the walkers at each observation; None lets them run.
    safe_frames : [n, N, 3] nm, where stopped walkers restart; ``positions`` if None.
    choose_restart : chooses among them; uniformly at random if None.
    external : further forces on the walkers, beside the evaluator's.
    placements : walkers that are placed every so often on relaxed safe frames of their own.
    box, safe_boxes : cells of ``positions`` and ``safe_frames``, see `uqbias.md.walker_cells.WalkerCells`.
    pressure : bar, under which the cell of each walker moves by itself; None for constant volumes.
    barostat : ``isotropic`` or ``anisotropic``, see `uqbias.md.barostat.Barostat`.
    seed : seed of velocities, noise and restarts.

    Attributes
    ----------
    context : openmm.Context, or `uqbias.md.torch_context.TorchContext`, of the W*N particles, walker after walker, and
        then of the extended variables. It knows of no cell: only the evaluator's force acts.
    cells : cells of the walkers.

    Raises
    ------
    UqbiasError
        If the platform is missing, shapes do not fit, a safe frame violates the guard's geometry; for a cell that the
        evaluator was not made for, external forces in one, or a pressure that cannot be held.
    """

    def __init__(
        self,
        topology: Topology,
        evaluator: FusedEvaluator,
        positions: NDArray[Any],
        *,
        temperature: float,
        timestep_fs: float = 0.5,
        friction_per_ps: float | None = 1.0,
        engine: str = "openmm",
        platform: str = "auto",
        backend: str = "auto",
        constraints: str = "none",
        constraint_geometry: NDArray[Any] | None = None,
        guard: Guard | None = None,
        safe_frames: NDArray[Any] | None = None,
        choose_restart: ChooseRestart | None = None,
        external: ExternalBias | None = None,
        placements: Placements | None = None,
        box: NDArray[Any] | None = None,
        safe_boxes: NDArray[Any] | None = None,
        pressure: float | None = None,
        barostat: str = "isotropic",
        seed: int = 0,
    ) -> None:
        import openmm

        check_engine(engine, platform, backend, constraints, external=external is not None)
        if tuple(topology.numbers) != tuple(evaluator.numbers):
            raise UqbiasError(
                f"topology with elements {topology.numbers}, model with {evaluator.numbers}",
                "use the topology that the model was trained on, in the same order of atoms",
            )
        self.topology, self.evaluator = topology, evaluator
        start = self._frames(positions, "positions")
        super().__init__(
            evaluator.n_walkers,
            timestep_fs,
            temperature,
            evaluator=evaluator,
            guard=guard,
            safe_frames=start if safe_frames is None else self._frames(safe_frames, "safe_frames"),
            choose_restart=choose_restart,
            seed=int(seed),
            friction_per_ps=friction_per_ps,
            placements=placements,
        )
        self.cells = WalkerCells(evaluator, box, len(start), safe_boxes, len(self.safe_frames))
        if self.cells.boxes is not None and external is not None:
            raise UqbiasError("external forces on walkers in a cell, of which they do not know", "leave them out")
        self._check_safe_frames()
        self._parked: dict[int, Violation] = {}
        self._external = external

        masses = topology.masses()
        self._sigma = np.sqrt(kt(self.temperature) / masses)[:, None]
        geometry = self.safe_frames if constraint_geometry is None else constraint_geometry
        self.constraints = choose_constraints(topology, geometry, constraints)
        self._project = Projector(masses, self.constraints)
        if pressure is not None and friction_per_ps is None:
            raise UqbiasError(f"a pressure of {pressure:g} bar without a thermostat", "give friction_per_ps")
        if pressure is not None and engine == "openmm" and choose_backend(backend) == "torchforce":
            raise UqbiasError(f"a pressure of {pressure:g} bar with backend 'torchforce'", "use backend 'pythonforce'")
        held = [(i, j) for i, j, _ in self.constraints]
        self.cells.press(pressure, barostat, temperature=self.temperature, n_atoms=self.n_atoms, constraints=held)
        system = openmm.System()
        for walker in range(self.n_walkers):
            for mass in masses:
                system.addParticle(float(mass))
            shift = walker * self.n_atoms
            for i, j, length in self.constraints:
                system.addConstraint(i + shift, j + shift, length)
        self._extended = ExtendedVariables(evaluator, self.temperature)
        self._extended.add_particles(system)
        self._system = system
        self.context, self._integrator = make_context(
            engine,
            system,
            evaluator,
            timestep=self.timestep_fs * 1e-3,
            temperature=self.temperature,
            friction=None if friction_per_ps is None else float(friction_per_ps),
            seed=int(seed),
            platform=platform,
            backend=backend,
            forces=external.forces(topology, self.n_walkers) if external is not None else (),
        )
        self._place(
            {w: self._project(start[w % len(start)], self._thermal(w)) for w in range(self.n_walkers)},
        )

    @property
    def n_atoms(self) -> int:
        """N."""
        return len(self.topology)

    def run(self, steps: int, *, pace: int, observers: Sequence[Observer] = ()) -> None:
        first = [] if self._external is None else [self._update_external]
        super().run(steps, pace=pace, observers=[*first, *observers])

    def save(self, path: str | Path) -> None:
        """Write a snapshot: one file, atomically, with all that a later `load` needs to go on.

        Positions, velocities, extended variables, the state of integrator and random numbers, the bias, the step.
        """
        facts = {
            "observed_start": self._observed_start,
            "in_a_row": self._in_a_row.tolist(),
            "random": [rng.bit_generator.state for rng in self._rngs],
            "walkers": self.n_walkers,
            "health": self.health.state(),
            **self.cells.facts(),
        }
        self.save_state(path, self.context, self.topology.numbers, facts, self.cells.arrays())

    def load(self, path: str | Path) -> None:
        """Go on from a snapshot, made by a `Walkers` of the same settings.

        On the Reference platform the trajectory is then bit for bit that of a run without interruption.

        Raises
        ------
        UqbiasError
            If the file is not a whole snapshot, or one of another system or other settings.
        """
        arrays: dict[str, NDArray[Any]] = {}

        def look_back(held: Mapping[str, NDArray[Any]]) -> None:
            self.cells.check(Path(path), held)
            arrays.update(held)

        settings = {"walkers": self.n_walkers, **self.cells.ensemble}
        facts = self.load_state(path, self.context, self.topology.numbers, settings, look_back)
        self.cells.restore(facts, arrays)
        self._observed_start = facts["observed_start"]
        self._in_a_row = np.array(facts["in_a_row"], dtype=int)
        self.health.restore(facts.get("health", {}))
        for rng, state in zip(self._rngs, facts["random"], strict=True):
            rng.bit_generator.state = state

    def snapshot(self, walker: int) -> tuple[Array, Array]:
        """Positions [N, 3] nm and velocities [N, 3] nm/ps of one walker, to be put back by `place`."""
        state = self.context.getState(positions=True, velocities=True)
        part = self._slice(walker)
        return _array(state.getPositions(asNumpy=True))[part], _array(state.getVelocities(asNumpy=True))[part]

    def place(
        self,
        walker: int,
        positions: NDArray[Any],
        velocities: NDArray[Any] | None = None,
        box: NDArray[Any] | None = None,
    ) -> None:
        """Put one walker elsewhere; the others are not touched.

        Parameters
        ----------
        positions : [N, 3] nm; moved onto the constraints, if there are any.
        velocities : [N, 3] nm/ps; drawn at the temperature from the seed if None.
        box : [3, 3] nm; that of the walker if None.
        """
        self.cells.put({} if box is None else {walker: np.asarray(box, dtype=np.float64)})
        v = self._thermal(walker) if velocities is None else np.asarray(velocities, dtype=np.float64)
        self._place({walker: self._project(np.asarray(positions, dtype=np.float64), v)})

    def kinetic_temperatures(self) -> Array:
        """Kinetic temperature of each walker, [W] K."""
        velocities = _array(self.context.getState(velocities=True).getVelocities(asNumpy=True))
        v = self._of_atoms(velocities)
        freedom = 3 * self.n_atoms - len(self.constraints)
        # The masses are in _sigma: (v/sigma)² has mean 1 per degree of freedom at the temperature of the thermostat.
        return np.asarray(((v / self._sigma) ** 2).sum(axis=(1, 2)) / freedom * self.temperature, dtype=np.float64)

    def heat(self, look: Look) -> tuple[Array | None, Array | None]:
        temperatures = self.kinetic_temperatures()
        fixed = self.bias is None or self.bias.frozen or not self.bias.pace
        if self.health.friction is not None or not fixed or self.evaluator.input_names or self._external is not None:
            return temperatures, None
        freedom = 3 * self.n_atoms - len(self.constraints)
        potential = (look.energy + look.bias) / (freedom * kt(self.temperature))
        return temperatures, potential + 0.5 * temperatures / self.temperature

    def look(self) -> Look:
        import openmm

        # Forces, not the energy: these are what makes OpenMM evaluate; E, u and V come along in the evaluator.
        try:
            state = self.context.getState(positions=True, forces=True)
        except openmm.OpenMMException:
            self.evaluator.reraise()
            if not self._park():
                raise
            state = self.context.getState(positions=True, forces=True)
        if self.evaluator.last is None:
            raise UqbiasError("the force made no evaluation", "leave the Context's force groups as they are")
        positions = self._of_atoms(_array(state.getPositions(asNumpy=True))).copy()
        parked = np.isin(np.arange(self.n_walkers), [*self._parked])
        return look_of(self.evaluator, positions, self.evaluator.broken | parked, self.cells.seen())

    def check(self, look: Look) -> list[Violation]:
        violations = [self._parked.get(violation.walker, violation) for violation in super().check(look)]
        self._parked.clear()
        return violations

    def restart(self, frames: Mapping[int, int]) -> None:
        self.cells.put_as_in(frames)
        self._place({w: self._project(self.safe_frames[frame], self._thermal(w)) for w, frame in frames.items()})

    def advance(self, steps: int) -> None:
        """Integrate; a walker whose coordinates overflow waits on a safe frame for the next observation."""
        import openmm

        end = self.context.getStepCount() + steps
        while (left := end - self.context.getStepCount()) > 0:
            try:
                self._integrator.step(self.cells.steps_until(self.context.getStepCount(), left))
                self.cells.move(self.context, self._extended, self._rngs)
            except openmm.OpenMMException:
                self.evaluator.reraise()
                if not self._park():
                    raise

    def _update_external(self, observation: Observation) -> None:
        assert self._external is not None
        moving = observation.positions[~observation.restarted]
        self._external.update(self.context, observation.step, moving)

    def _place(self, placed: dict[int, tuple[Array, Array]]) -> None:
        state = self.context.getState(positions=True, velocities=True)
        positions = _array(state.getPositions(asNumpy=True)).copy()
        velocities = _array(state.getVelocities(asNumpy=True)).copy()
        for walker, (x, v) in placed.items():
            positions[self._slice(walker)] = x
            velocities[self._slice(walker)] = v
        self._extended.follow(positions, velocities, {walker: self._rngs[walker] for walker in placed})
        self.context.setPositions(positions)
        self.context.setVelocities(velocities)

    def _of_atoms(self, values: Array) -> Array:
        """[W, N, 3] of the atoms, without the extended variables."""
        return values[: self.n_walkers * self.n_atoms].reshape(self.n_walkers, self.n_atoms, 3)

    def _slice(self, walker: int) -> slice:
        return slice(walker * self.n_atoms, (walker + 1) * self.n_atoms)

    def _thermal(self, walker: int) -> Array:
        """Velocities [N, 3] nm/ps from the Maxwell-Boltzmann distribution.

        Of a walker on relaxed frames at twice the temperature: half of that goes into the vibrations' potential energy.
        """
        on_relaxed = self.placements is not None and walker in self.placements.walkers
        sigma = np.sqrt(2.0) * self._sigma if on_relaxed else self._sigma
        return np.asarray(sigma * self._rngs[walker].normal(size=(self.n_atoms, 3)), dtype=np.float64)

    def _frames(self, frames: NDArray[Any], name: str) -> Array:
        x = np.asarray(frames, dtype=np.float64)
        if x.ndim != 3 or x.shape[1:] != (self.n_atoms, 3) or not len(x):
            raise UqbiasError(f"{name} of shape {x.shape} for {self.n_atoms} atoms", "give [n, N, 3] in nm")
        if not np.isfinite(x).all():
            raise UqbiasError(f"{name} are not all finite", "remove the frames with NaN")
        return x

    def _check_safe_frames(self) -> None:
        if self.guard is None:
            return
        bad = self.guard.check(self.safe_frames, boxes=self.cells.safe)
        if bad:
            raise UqbiasError(
                f"safe frame {bad[0].walker} violates the guard itself: '{bad[0].reason}' {bad[0].values}",
                "remove it, or widen the guard",
            )

    def _park(self) -> bool:
        """Put walkers with coordinates that are not finite on a safe frame; False if that is not what went wrong.

        The Reference platform integrates them without complaint, CPU and CUDA stop with an exception.
        """
        x = _array(self.context.getState(positions=True).getPositions(asNumpy=True))
        atoms = (~np.isfinite(self._of_atoms(x))).any(axis=2).sum(axis=1)
        atoms += self._extended.not_finite(x)
        bad = np.flatnonzero(atoms).tolist()
        if self.guard is None or not bad:
            return False
        self._parked |= {walker: Violation(walker, "not_finite", {"atoms": float(atoms[walker])}) for walker in bad}
        self.restart(dict.fromkeys(bad, 0))
        return True


def _array(quantity: Any) -> Array:
    """The float64 array inside an OpenMM Quantity, which is in nm or nm/ps."""
    return np.asarray(quantity._value, dtype=np.float64)
