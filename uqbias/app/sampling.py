"""Biases in the user's OpenMM System: one force, and one reporter that keeps the biases up to date."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from uqbias.app import host, integrator
from uqbias.app.computation import Computation, Recipe, load_for
from uqbias.app.external import ForceVariables
from uqbias.app.simulation_loop import SimulationLoop
from uqbias.bias.base import Array, Bias, BiasSum
from uqbias.compile.fused import FusedEvaluator
from uqbias.errors import UqbiasError, did_you_mean
from uqbias.files import check_file
from uqbias.md.extended import ExtendedVariables
from uqbias.md.force import make_force
from uqbias.model.reference import in_a_cell
from uqbias.runs.run_files import RunFiles

DRIVES = ("model", "bias")
NOT_BY_ITSELF = ("a force with biases, as XmlSerializer wrote it", "write it by Sampling.serialize(system)")


class Sampling:
    """Biases on one molecule of an ``openmm.System``: on a model's uncertainty, or on anything else.

    ::

        hills = uqbias.bias.MetaD(height=1.0, sigma=1.0, pace=50)
        sampling = uqbias.Sampling(system, "model.uqb", [hills], temperature=300)  # before the Simulation is made
        simulation.reporters.append(sampling)  # or sampling.step(simulation, 1000)

    It adds one force to the System. As a reporter it asks, every ``pace`` steps, for the variables at the current
    positions, updates the biases, and writes HILLS and COLVAR. That is one evaluation of its own force, which the
    integrator's next step uses again: nothing is evaluated twice, and hills act from the next step on. With a barostat
    or another Monte Carlo move, which compares energies before and after, hills act at once, for one evaluation more.

    Extended variables (eABF) are particles that are added to the System: call `extend` before the Simulation is made.

    Parameters
    ----------
    system : openmm.System, with its forces.
    model : the model, or the path of its file; None for biases that need none. One of atoms in a cell takes that of the
        System, which must have one; for another number of atoms see `UncertaintyModel.with_topology`.
    biases : biases of any kinds, each on named variables.
    variables : variables beside the model's ``driver``, ``judge`` and ``energy``, by name: a `CollectiveVariable` of
        the model's atoms, or what `ForceVariables` takes (an openmm.Force, several, a System) on any particles.
    atoms : indices of the model's atoms in the System, in the model's order; all particles if None. A molecule that
        periodic boundaries have split is made whole along its bonds.
    drive : ``bias``: only the biases act, on top of the System's own forces. ``model``: the model's energy too.
    temperature : K, of the thermostat and of the biases.
    pace : steps between updates of the biases, a divisor of their own paces; None for the greatest.
    stride : steps between rows of COLVAR, a multiple of ``pace``; None for ``pace``.
    hills, colvar : files in PLUMED's format, None to write none. With more than one metadynamics
        ``HILLS.driver``, ``HILLS.phi-psi``, ...
    restart : begin with the hills in these HILLS files and append to the files. ``cut``: without what they have from
        later than the Simulation's time, as behind a checkpoint; the whole files are kept, as ``bck.0.HILLS``.
    snapshot, snapshot_every : write a snapshot to this file every so many steps, a multiple of ``pace``; see `save`.
    backend, runner, dtype, device, cache_dir : see `make_force` and `FusedEvaluator`. Backend ``torchforce`` works
        without periodic boundaries and without Forces as variables only.
    force_platform : OpenMM platform of Forces as variables, see `ForceVariables`.

    Attributes
    ----------
    bias : sum of the biases; ``bias.frozen = True`` stops all updates.
    evaluator : ``evaluator.last`` holds E, u and V of the last evaluation.
    names : names of the variables of the biases.
    force : the openmm.Force in the System; in a force group of its own if there is a free one.

    Raises
    ------
    UqbiasError
        If something does not fit together; the System is then as it was.
    """

    def __init__(
        self,
        system: Any,
        model: torch.nn.Module | str | Path | None,
        biases: Sequence[Bias],
        *,
        variables: Mapping[str, Any] | None = None,
        atoms: Sequence[int] | None = None,
        drive: str = "bias",
        temperature: Any,
        pace: int | None = None,
        stride: int | None = None,
        hills: str | Path | None = "HILLS",
        colvar: str | Path | None = "COLVAR",
        restart: bool | Literal["cut"] = False,
        snapshot: str | Path | None = None,
        snapshot_every: int | None = None,
        backend: str = "auto",
        runner: str = "auto",
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        cache_dir: Path | None = None,
        force_platform: str = "auto",
    ) -> None:
        if drive not in DRIVES:
            raise UqbiasError(f"unknown drive '{drive}'", did_you_mean(drive, DRIVES))
        if drive == "model" and model is None:
            raise UqbiasError("drive='model' without a model", "give the model, or drive='bias'")
        self.temperature = host.value(temperature)
        self.bias = BiasSum(biases)
        if drive == "bias" and not self.bias.biases:
            raise UqbiasError("no biases, and drive='bias': nothing would act", "give biases, or drive='model'")
        self.names: tuple[str, ...] = self.bias.variables if self.bias.biases else ()
        host.check_temperatures(self.bias, self.temperature)
        host.check_boosts(self.bias, drive)
        self.pace, self.stride = host.choose_paces(self.bias, pace, stride)
        self._snapshot = host.choose_snapshot(snapshot, snapshot_every, self.pace)
        self._output, self._restart = RunFiles(hills, colvar, self.bias.biases, self.names, stride=self.stride), restart
        paths = [*self._output.paths, *([] if snapshot is None else [Path(snapshot)])]
        for path in paths:
            check_file(path)
        graph, forces = host.sort_variables(self.bias, variables or {}, with_model=model is not None)
        self._atoms, module = load_for(system, model, atoms if model is not None or graph else ())
        use = host.use_once(system, self.bias.biases, paths, drive)
        # Copied before the extended variables join the System.
        external = ForceVariables(system, forces, force_platform) if forces else None
        told = bool(system.usesPeriodicBoundaryConditions()) or (external is not None and external.periodic)
        periodic = told or in_a_cell(module)
        chosen = host.choose_backend_for(backend, periodic=periodic, external=external is not None)
        options: dict[str, Any] = {
            "runner": runner,
            "dtype": dtype,
            "device": device,
            "cache_dir": cache_dir,
            "include_energy": drive == "model",
            "box": host.default_box(system) if in_a_cell(module) else None,
        }
        self.evaluator = FusedEvaluator(module, self.bias, 1, variables=graph, **options)

        host.check_restart(restart, self._output.hills)
        if restart:
            self._output.load_hills()
        self._reported = self._begun = -1
        #: Those whose System has the force, and their number of forces: a Context may be made anew.
        self._contexts: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        #: Time of the latest report in each, ps.
        self._times: WeakKeyDictionary[Any, float] = WeakKeyDictionary()
        self._in_memory = isinstance(model, torch.nn.Module)
        self._system = system
        self._extended = ExtendedVariables(self.evaluator, self.temperature, elsewhere=tuple(forces))
        self._extended.add_particles(system)
        recipe = Recipe(
            model=Path(model).resolve() if isinstance(model, str | Path) else None,
            atoms=self._atoms,
            n_atoms=self.evaluator.n_atoms,
            bias=self.bias,
            variables=graph,
            external=external,
            extended=self._extended.of_first_walker,
            periodic=periodic,
            box=host.default_box(system) if periodic else None,
            options=options,
            fault=NOT_BY_ITSELF,
        )
        self._computation = Computation(self.evaluator, module, recipe)
        self._loop = SimulationLoop(self._computation, self.names, self.pace, self.temperature)
        if chosen == "torchforce":
            everything = None if self._atoms is None else [*self._atoms, *self._extended.particles[0].tolist()]
            self.force = make_force(self.evaluator, chosen, everything)
        else:
            self.force = self._computation.force()
        self._loop.force = self.force
        self.force.setName(host.FORCE_NAME)
        self.force.setForceGroup(host.free_group(system))
        system.addForce(self.force)
        host.USES[self._computation] = use

    # What OpenMM's Simulation calls.

    def describeNextReport(self, simulation: Any) -> dict[str, Any]:  # noqa: N802
        """When the biases are updated next: at multiples of ``pace``.

        Raises
        ------
        UqbiasError
            If the elements of the simulation's atoms are not the model's; if the force does not act there; if the
            Simulation was put back to an earlier time.
        """
        self._check(simulation)
        step = simulation.currentStep
        host.refuse_going_back(self.bias, self._begun, step)
        integrator.refuse_rewound(integrator.time_ps(simulation), self._times.get(simulation.context, 0.0))
        if step == self._begun:
            # No step since; it was a minimisation that tried geometries nobody will simulate.
            self.evaluator.broken[:] = False
        context, n_forces = simulation.context, simulation.system.getNumForces()
        if self._contexts.get(context) != n_forces:
            self._loop.evaluate(context)
            # At the first positions of the integrator, which then need no evaluation of their own.
            self.evaluator.arm_memo()
            self._contexts[context] = n_forces
        if not self._output.opened:
            self._open(simulation)
        if step != self._reported:  # another Simulation, or one that begins again
            self._reported = -1
        self._begun = step
        return {"steps": self.pace - step % self.pace, "periodic": None, "include": []}

    def report(self, simulation: Any, state: Any) -> None:
        """Update the biases, write HILLS and COLVAR.

        Raises
        ------
        UqbiasError
            If the molecule or a variable broke since the last report, or the force is not part of the simulation. What
            was written before is on disk.
        """
        step = simulation.currentStep
        if step == self._reported:
            return  # it is among the reporters twice
        if not self._output.opened:
            raise UqbiasError("a report before describeNextReport", "append this object to simulation.reporters")
        self._loop.observe_in(simulation, state.getTime()._value, [self._output])
        self._reported = self._begun = step
        self._times[simulation.context] = self._loop.time_ps
        if self._snapshot is not None and step % self._snapshot[1] == 0:
            self.save(simulation, self._snapshot[0])

    # What a script calls.

    def step(self, simulation: Any, steps: int) -> None:
        """Advance the simulation with updates of the biases, whether or not this object is among the reporters.

        Raises
        ------
        UqbiasError
            What stopped an evaluation, with its message; elsewhere that reaches a script as an OpenMMException.
        """
        import openmm

        if not (appended := any(reporter is self for reporter in simulation.reporters)):
            simulation.reporters.append(self)
        try:
            simulation.step(steps)
        except openmm.OpenMMException as error:
            self.evaluator.reraise()
            # A coordinate that is NaN is what OpenMM sees of it.
            self._loop.refuse_broken(simulation.currentStep)
            if "NaN" in str(error):
                raise UqbiasError(f"after step {simulation.currentStep}: {error}", host.BROKEN) from error
            raise
        finally:
            if not appended:
                simulation.reporters[:] = [reporter for reporter in simulation.reporters if reporter is not self]

    def getCollectiveVariables(self, simulation: Any) -> tuple[float, ...]:  # noqa: N802
        """Values of the variables of the biases at the current positions, in the order of ``names``."""
        self._check(simulation)
        self._loop.evaluate(simulation.context)
        return tuple(self._loop.variables().tolist())

    def free_energy(self, x: NDArray[Any] | None = None) -> tuple[Array, Array]:
        """Free energy that the first bias with an estimate gives, kJ/mol; see its ``free_energy``."""
        for bias in self.bias.biases:
            if hasattr(bias, "free_energy"):
                estimate: tuple[Array, Array] = bias.free_energy(x)
                return estimate
        raise UqbiasError("none of the biases estimates a free energy", "reweight the COLVAR file")

    def extend(self, topology: Any, positions: Any) -> tuple[Any, Any]:
        """Topology and positions with the extended variables, each where the variable is that it follows.

        Parameters
        ----------
        topology : openmm.app.Topology of the System as it was.
        positions : Quantity, or [P, 3] nm.

        Returns
        -------
        topology : a copy with one atom more, without element, for each extended variable; for the Simulation and its
            reporters. The temperature that a StateDataReporter tells counts three degrees of freedom for each.
        positions : Quantity [P + K, 3].
        """
        from openmm import unit

        added = self._extended
        x = np.asarray(host.value(positions), dtype=np.float64)
        if len(x) + len(added) != self._system.getNumParticles():
            raise UqbiasError(
                f"{len(x)} positions for a System of {self._system.getNumParticles() - len(added)} particles",
                "give those of the System without the extended variables",
            )
        x = np.concatenate([x, np.zeros((len(added), 3))])
        if not added:
            return topology, x * unit.nanometer
        self._computation.evaluate(x, self._computation.box, narrow=False)
        added.put(x, self._loop.variables()[None])
        return added.extend_topology(topology), x * unit.nanometer

    def save(self, simulation: Any, path: str | Path) -> None:
        """Write a snapshot: one file, atomically, with all that `load` needs to go on.

        Positions, velocities, box, extended variables, state of integrator and random numbers, biases, the step.
        """
        self._check(simulation)
        check_file(Path(path))
        if not self._output.opened:
            self._open(simulation)
        self._loop.step = int(simulation.currentStep)
        self._loop.save_state(path, simulation.context, host.atomic_numbers(simulation), {})

    def load(self, simulation: Any, path: str | Path) -> None:
        """Go on from a snapshot, with Simulation and biases made the same way; HILLS and COLVAR are put back to it.

        A HILLS file that is not of this run is kept, as ``bck.0.HILLS``.

        On the Reference platform the trajectory is then bit for bit that of a run without interruption, hills
        included; not with a barostat, whose step size OpenMM does not keep.

        Raises
        ------
        UqbiasError
            If the file is not a whole snapshot, or one of another system, other settings or other biases, or COLVAR is
            bad or has other columns; then nothing was changed.
        """
        self._check(simulation)
        timestep = self._loop.timestep_fs

        def look_back(arrays: Mapping[str, Any]) -> None:
            self._output.look_back(float(arrays["time"]), timestep)

        step = self._loop.load_state(path, simulation.context, host.atomic_numbers(simulation), {}, look_back)["step"]
        self._reported = self._begun = step
        self._times.pop(simulation.context, None)
        self._output.rewind(timestep)

    def serialize(self, system: Any) -> str:
        """XML of a System with this force, to be deserialised in any process, with the biases as they are now.

        There the biases stay so: nothing updates them. In this process the force that is read is the live one. OpenMM
        pickles the function of a force when the force is made, so its own ``XmlSerializer.serialize(system)`` writes
        one that knows the biases in this process only, and elsewhere stops with an error at the first evaluation. In
        its place a force made now is written, as the last of the System.

        Raises
        ------
        UqbiasError
            If the model is one in memory, or the force is not in the System or a TorchForce.
        """
        import openmm

        if self._in_memory:
            raise UqbiasError("a force of a model in memory cannot be written", "give the model's file")
        write = openmm.XmlSerializer.serialize
        # OpenMM may crash where it copies a TorchForce.
        texts = [write(force) if type(force).__name__ == "PythonForce" else None for force in system.getForces()]
        text = write(self.force) if type(self.force).__name__ == "PythonForce" else ""
        if text not in texts:
            raise UqbiasError("the System does not have the force of these biases", "give the one they were made with")
        written = openmm.XmlSerializer.clone(system)
        written.removeForce(texts.index(text))
        force = self._computation.force(to_be_written=True)
        force.setForceGroup(self.force.getForceGroup())
        written.addForce(force)
        return str(write(written))

    def _check(self, simulation: Any) -> None:
        """What can only be seen once there is a Simulation, which may be another one, or changed, each time."""
        self._loop.timestep_fs = integrator.timestep_fs(simulation)
        self._loop.at_once = integrator.compares_energies(simulation)
        integrator.refuse_idle(simulation, self.force.getForceGroup())
        self._extended.refuse_company(simulation.system)
        if simulation.system.usesPeriodicBoundaryConditions() and not self._computation.periodic:
            raise UqbiasError(
                "the System has become periodic since it got its biases", "make the biases when it has all its forces"
            )
        if simulation.context in self._contexts:
            return
        host.check_elements(simulation, self._atoms, self.evaluator.numbers)
        if self._computation.box is not None:
            vectors = simulation.context.getState().getPeriodicBoxVectors(asNumpy=True)
            self._computation.box = np.asarray(vectors._value, dtype=np.float64)
        self.evaluator.broken[:] = False

    def _open(self, simulation: Any) -> None:
        timestep = self._loop.timestep_fs
        if self._restart:
            self._output.go_on_at(integrator.time_ps(simulation), timestep, cut=self._restart == "cut")
            self.evaluator.arm_memo(False)  # the bias may be another now
        else:
            self._output.back_up()
        self._output.open(timestep, append=bool(self._restart))
