"""PLUMED inside OpenMM: any PLUMED bias on the uncertainty, by one force in the System."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from uqbias.app.computation import load_model
from uqbias.app.host import FORCE_NAME, USES, use_once, value
from uqbias.app.integrator import NOT_THERE, refuse_idle
from uqbias.compile.graph_inputs import graph_inputs
from uqbias.compile.judging import Judge, is_apart
from uqbias.compile.runners import CompiledFunction, compile_function
from uqbias.errors import UqbiasError
from uqbias.md.stack import check_pythonforce
from uqbias.plumed.session import PlumedSession, PlumedStop, drop_cut_lines, input_lines, names_in_use, read_actions
from uqbias.plumed.step_clock import StepClock, files_written, last_hill
from uqbias.variables.names import by_name, missing_part

Array = NDArray[np.float64]


class BridgeValues(NamedTuple):
    """What the latest evaluation gave."""

    #: MD step.
    step: int
    #: Model energy E, kJ/mol.
    energy: float
    #: Driver.
    driver: float
    #: Judge: calibrated uncertainty, kJ/mol/nm.
    judge: float
    #: All of PLUMED's biases, kJ/mol.
    bias: float


class PlumedBridge:
    """Adds one force to a System: the model's, and that of the biases in a PLUMED input.

    ::

        bridge = uqbias.PlumedBridge(system, "plumed.dat", "model.uqb", temperature=300, timestep=0.0005)
        simulation = app.Simulation(topology, system, integrator)
        with bridge:
            bridge.step(simulation, 100_000)

    In plumed.dat ``u: EXTRACV NAME=judge`` is the calibrated uncertainty, ``NAME=driver`` the driver and
    ``NAME=energy`` the energy of the model. Each may be an argument of any action, and actions on atoms, such as
    TORSION, work beside them; atoms are numbered as in the System, from 1. The force is
    -dE/dx - Σ (dV/ds) ds/dx over these values s, by one evaluation of the model, plus PLUMED's own forces on atoms.

    PLUMED is updated (hills, output) exactly once per MD step, on the positions from which the integrator left the
    step: reporters, minimisations and trial moves of a barostat change nothing. A minimisation runs under the bias as
    it is. Actions that keep a history while they calculate (work of MOVINGRESTRAINT, ABMD) also see a barostat's trial
    moves, since PLUMED offers no way to take those back.

    The last step: `step`, or the bridge among ``simulation.reporters``, lets PLUMED see the final positions, so that n
    steps from step 0 give updates 0 to n, as PLUMED's MD engines do. After a plain ``simulation.step`` the bridge does
    not know the final positions unless a reporter asked for their energy or forces, and ends with update n-1.

    Parameters
    ----------
    system : OpenMM System; the force is added to it.
    plumed_dat : path of the input, or its lines. Relative paths in it start at ``output_dir``.
    model : the model, or the path of its file.
    temperature : K or Quantity; PLUMED's kT where the input has no TEMP. None for NVE without it.
    timestep : ps or Quantity, of the integrator.
    particles : indices of the model's atoms in the System, in the model's order; all particles if None.
    output_dir : for PLUMED's files.
    log : name of PLUMED's log in ``output_dir``.
    restart : append to the files of an earlier run and begin with their bias. A last line cut short by the end of a
        process is removed first.
    flush : all files are flushed every so many steps, so that no more is lost when a process is killed; None leaves it
        to PLUMED (every 10000 steps). For an exact restart write OpenMM's checkpoints every so many steps.
    include_energy : False to leave the model's own forces out: PLUMED's biases act on top of another force field.
    periodic : give PLUMED the box; as the System's other forces if None.
    runner, dtype, device, cache_dir : see `uqbias.compile.runners.compile_function`.

    Attributes
    ----------
    last : `BridgeValues` of the latest evaluation, or None.
    force : the openmm.PythonForce.
    names : values that the input uses.
    stopped : True once an action such as COMMITTOR asked for the end.
    n_evaluations : evaluations of the model so far.

    Raises
    ------
    UqbiasError
        If no PLUMED kernel is found, the input is refused or uses none of the values, or numbers do not fit.
    """

    def __init__(
        self,
        system: Any,
        plumed_dat: str | Path | Sequence[str],
        model: torch.nn.Module | str | Path,
        *,
        timestep: Any,
        temperature: Any = None,
        particles: Sequence[int] | None = None,
        output_dir: str | Path = ".",
        log: str = "plumed.log",
        restart: bool = False,
        flush: int | None = 1000,
        include_energy: bool = True,
        periodic: bool | None = None,
        runner: str = "auto",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        cache_dir: Path | None = None,
    ) -> None:
        check_pythonforce()
        import openmm

        lines, folder = input_lines(plumed_dat), Path(output_dir)
        actions = read_actions(lines, folder)
        self.names = names_in_use(actions)
        module = load_model(model, 0)
        if lacking := missing_part(self.names, len(getattr(module, "local_names", ()))):
            raise UqbiasError(f"EXTRACV of {lacking[0]}", lacking[1])
        self.numbers = tuple(int(number) for number in module.numbers)  # type: ignore[union-attr, arg-type]
        self._particles = _chosen(particles, len(self.numbers), system.getNumParticles())
        self._whole = particles is None or self._particles.tolist() == list(range(system.getNumParticles()))
        self.include_energy, self.timestep = include_energy, float(value(timestep))
        if not self.timestep > 0:
            raise UqbiasError(f"timestep {self.timestep} ps", "give the integrator's, in ps")
        # Gradients in this order; the energy's is needed for its own force and for a bias on it.
        self._gradients = [name for name in self.names if name != "energy"]
        if include_energy or "energy" in self.names:
            self._gradients.append("energy")
        self._gradients = self._gradients or ["driver"]
        apart = is_apart(module, self.names)
        self._values = [*dict.fromkeys(("energy", "driver", *([] if apart else ["judge"]), *self._gradients))]
        options: dict[str, Any] = {"runner": runner, "cache_dir": cache_dir}
        weights, self._inputs = graph_inputs(module, 1, dtype, device)
        self._graph = _compiled(module, weights, self._inputs, self._values, self._gradients, options)
        self._judge = Judge(module, weights, self._inputs[0], **options) if apart else None
        self.runner = self._graph.runner
        paths = [folder / name for name in [*files_written(actions), log]]
        use = use_once(system, [], paths, "model" if include_energy else "bias")
        if restart:
            drop_cut_lines(actions, folder)
        self._clock = StepClock(self.timestep, *last_hill(actions, folder, restart=restart))
        self._session = PlumedSession(
            lines,
            self.names,
            masses=np.array([system.getParticleMass(i)._value for i in range(system.getNumParticles())], dtype=float),
            charges=_charges(system),
            timestep=self.timestep,
            temperature=None if temperature is None else float(value(temperature)),
            output_dir=folder,
            log=log,
            restart=restart,
            flush=flush,
        )
        self._last: BridgeValues | None = None
        self.n_evaluations = self._n_calls = 0
        self._contexts: weakref.WeakSet[Any] = weakref.WeakSet()
        self.exception: BaseException | None = None
        self._simulation: Any = lambda: None
        self._valid = False
        self._answer: tuple[float, Array] = (0.0, np.zeros((0, 3)))
        self._periodic = system.usesPeriodicBoundaryConditions() if periodic is None else bool(periodic)
        function = _Callable(self)
        self.force = openmm.PythonForce(function)
        self.force.setName(FORCE_NAME)
        USES[function] = use
        self.force.setUsesPeriodicBoundaryConditions(self._periodic)
        system.addForce(self.force)
        # Runs when the bridge goes or the interpreter ends, whichever comes first.
        self._end = weakref.finalize(self, _end, self._session)

    @property
    def last(self) -> BridgeValues | None:
        """What the latest evaluation gave; a judge that takes the forces of a committee is evaluated when asked for."""
        if self._last is not None and self._judge is not None and math.isnan(self._last.judge):
            self._last = self._last._replace(judge=float(self._judge(self._inputs)[0]))
        return self._last

    @property
    def stopped(self) -> bool:
        """Whether PLUMED asked for the end of the run."""
        return self._session.stopped

    def step(self, simulation: Any, steps: int) -> int:
        """Run an ``openmm.app.Simulation`` whose System holds the force.

        Parameters
        ----------
        simulation : the simulation.
        steps : number of MD steps.

        Returns
        -------
        Steps done: fewer than asked for where PLUMED stopped the run, see `stopped`.

        Raises
        ------
        UqbiasError
            What stopped an evaluation.
        """
        self._meet(simulation)
        before = simulation.context.getStepCount()
        if not self.stopped:
            try:
                simulation.step(steps)
            except Exception as error:
                self._reraise(error)
        return int(simulation.context.getStepCount() - before)

    def finalize(self) -> None:
        """Let PLUMED see the final positions, if the simulation is known, write its files and end it; idempotent."""
        try:
            simulation = self._simulation()
            if self._end.alive and simulation is not None and not self.stopped and self.exception is None:
                with contextlib.suppress(PlumedStop):
                    self.evaluate(simulation.context.getState(positions=True))
        finally:
            self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is None:
            self.finalize()
        else:  # what went wrong would go wrong again
            self._end()

    def describeNextReport(self, simulation: Any) -> dict[str, Any]:  # noqa: N802
        """Called by OpenMM where the bridge is among the reporters; it only looks whether the force acts."""
        self._meet(simulation)
        return {"steps": 1_000_000_000, "periodic": None, "include": []}

    def report(self, simulation: Any, state: Any) -> None:
        """Called by OpenMM; there is nothing to do."""

    def _meet(self, simulation: Any) -> None:
        """Remember the simulation, unless PLUMED would not be asked there."""
        group = self.force.getForceGroup()
        refuse_idle(simulation, group)
        if simulation.context not in self._contexts and not self.stopped:
            calls = self._n_calls
            try:  # what the integrator asks for first, which is then known
                simulation.context.getState(forces=True, groups={group})
            except Exception as error:
                self._reraise(error)
            if self._n_calls == calls:
                raise UqbiasError(*NOT_THERE)
            self._contexts.add(simulation.context)
        self._simulation = weakref.ref(simulation)

    def _reraise(self, error: Exception) -> None:
        """Raise the original of what OpenMM made an OpenMMException of; a stop by PLUMED is no error."""
        original, self.exception = self.exception, None
        if original is None:
            raise error
        if not isinstance(original, PlumedStop):
            raise original

    def evaluate(self, state: Any) -> tuple[float, Array]:
        """Energy in kJ/mol and forces [n, 3] in kJ/mol/nm at an openmm.State, as OpenMM asks for them.

        Raises
        ------
        UqbiasError
            If PLUMED fails or stops, or the model gives no finite number.
        """
        session, self._n_calls = self._session, self._n_calls + 1
        step, positions = state.getStepCount(), state.getPositions(asNumpy=True)._value
        box = state.getPeriodicBoxVectors(asNumpy=True)._value if self._periodic else None
        if step != session.step:
            self._clock.check(step, state.getTime()._value)
        elif self._valid and not session.closed and self._same(positions, box):
            return self._answer
        if box is not None:
            session.box[:] = box
        self._valid = False
        session.begin(step)
        selected = positions if self._whole else positions[self._particles]
        self._inputs[0].copy_(torch.from_numpy(selected))
        numbers, gradients = self._graph.unchecked(self._inputs)
        values = dict(zip(self._values, numbers.tolist(), strict=True))
        energy, driver, judge = values["energy"], values["driver"], values.get("judge", math.nan)
        self.n_evaluations += 1
        if not math.isfinite(sum(values.values())):
            raise UqbiasError(
                f"at step {step} the model gives {', '.join(f'{name} {one:.6g}' for name, one in values.items())}",
                "use a shorter timestep, lower hills or an upper wall (UPPER_WALLS) on the uncertainty",
            )
        session.calculate(positions, values)
        forces = session.forces.copy()
        model_forces = self._own_forces(gradients)
        if self._whole:
            forces += model_forces
        else:
            forces[self._particles] += model_forces
        bias = float(session.bias[0])
        self._last = BridgeValues(step, energy, driver, judge, bias)
        self._answer = ((energy if self.include_energy else 0.0) + bias, forces)
        self._valid = True
        return self._answer

    def _same(self, positions: Array, box: Array | None) -> bool:
        """Whether this is the geometry of the latest evaluation: after a report the integrator asks again."""
        known = self._session
        return np.array_equal(positions, known.positions) and (box is None or np.array_equal(box, known.box))

    def _own_forces(self, gradients: Tensor) -> Array:
        """-dE/dx - Σ (dV/ds) ds/dx on the model's atoms, [N, 3]; ``gradients`` [K, N, 3]."""
        felt = self._session.value_forces
        factors = [float(felt[name][0]) if name in felt else 0.0 for name in self._gradients]
        if self.include_energy:
            factors[-1] -= 1.0
        slopes = gradients.to("cpu", torch.float64).numpy()
        return np.asarray(np.dot(factors, slopes.reshape(len(factors), -1))).reshape(-1, 3)


class _Callable:
    """What OpenMM calls; kept apart since OpenMM would copy a bridge by pickling it."""

    def __init__(self, bridge: PlumedBridge) -> None:
        self.bridge = bridge

    def __call__(self, state: Any) -> tuple[float, Array]:
        try:
            return self.bridge.evaluate(state)
        except BaseException as error:
            self.bridge.exception = error
            raise

    def __getstate__(self) -> Mapping[str, Any]:
        raise UqbiasError(
            "a force with a running PLUMED cannot be copied or serialised", "add the PlumedBridge to the copy"
        )


def _end(session: PlumedSession) -> None:
    with contextlib.suppress(UqbiasError):
        session.close()


def _chosen(particles: Sequence[int] | None, n_atoms: int, n_particles: int) -> NDArray[np.int64]:
    chosen = np.arange(n_particles) if particles is None else np.array([int(index) for index in particles])
    if len(chosen) != n_atoms:
        raise UqbiasError(
            f"a model of {n_atoms} atoms for {len(chosen)} particles", "give particles=[...], the model's atoms"
        )
    if len(set(chosen.tolist())) < n_atoms or chosen.min() < 0 or chosen.max() >= n_particles:
        raise UqbiasError(f"particles {chosen.tolist()} of a System of {n_particles}", "give each atom once, from 0")
    return chosen


def _charges(system: Any) -> Array:
    """Charges in e of the System's NonbondedForce, zeros without one."""
    import openmm

    charges = np.zeros(system.getNumParticles())
    for force in system.getForces():
        if isinstance(force, openmm.NonbondedForce):
            charges[:] = [force.getParticleParameters(index)[0]._value for index in range(len(charges))]
    return charges


def _compiled(
    model: torch.nn.Module,
    names: Sequence[str],
    inputs: list[Tensor],
    numbers: Sequence[str],
    gradients: Sequence[str],
    options: Mapping[str, Any],
) -> CompiledFunction:
    """From positions [1, N, 3] and weights, of these ``names``, to ``numbers`` and ``gradients`` [K, N, 3]."""
    how = {} if "judge" in numbers else {"judged": False}

    def function(given: list[Tensor]) -> tuple[Tensor, ...]:
        positions = given[0].detach().requires_grad_()
        values = by_name(functional_call(model, dict(zip(names, given[1:], strict=True)), (positions,), how))
        slopes = [
            torch.autograd.grad(values[name].sum(), positions, retain_graph=index + 1 < len(gradients))[0][0]
            for index, name in enumerate(gradients)
        ]
        return torch.cat([values[name] for name in numbers]), torch.stack(slopes)

    return compile_function(function, inputs, name="bridge-" + "-".join(gradients), **options)
