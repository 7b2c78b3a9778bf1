"""Cost of one MD step with uncertainty metadynamics, against the energy alone and against the ordinary way.

Ordinary way: an autograd TorchForce for the energy, and openmm.app.Metadynamics on an autograd TorchForce of the CV.
OpenMM 8.6 cannot copy a TorchForce into the CustomCVForce that this takes; there the CV is a PythonForce around the
same TorchScript module and autograd, and the table says so.

All sides run in this process, in turns, one thread; medians over the turns. The model is that of the demo (default
sizes, alanine dipeptide) with untrained weights, held together by springs that OpenMM evaluates itself; the cost does
not depend on the weights. ``--model`` takes a trained one.

    python tests/benchmarks/step_cost.py [--quick] [--json PATH] [--model FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch  # isort: skip  (before OpenMM, whose plugin for torch links its libraries)

import numpy as np
import openmm
import openmm.app
from openmm import unit

from uqbias.bias.base import BiasSum
from uqbias.bias.fixed import UpperWall
from uqbias.bias.metad import MetaD
from uqbias.compile.fused import FusedEvaluator
from uqbias.errors import UqbiasError
from uqbias.md.stack import backend_faults, check_torchforce_as_variable
from uqbias.md.walkers import Walkers
from uqbias.model.export import export_torchscript
from uqbias.model.model import UncertaintyModel
from uqbias.molecule.frames import read_frames
from uqbias.molecule.topology import Topology
from uqbias.potentials.power_spectrum import PowerSpectrum
from uqbias.registry import UNCERTAINTIES

SYSTEM = Path(__file__).parents[2] / "systems" / "alanine_dipeptide"
TEMPERATURE, TIMESTEP_FS, FRICTION = 300.0, 0.5, 1.0
HEIGHT, SIGMA, BIASFACTOR, PACE = 1.0, 1.0, 10.0, 50
#: Goals of the project.
FUSED_GOAL, ORDINARY_GOAL = 1.15, 4.0


def demo_model(frames):
    """The demo's model before its first training, with forces scaled down so that the springs decide."""
    topology = Topology.from_pdb(SYSTEM / "structure.pdb")
    potential = PowerSpectrum(tuple(int(number) for number in frames.numbers))
    positions = torch.tensor(frames.positions, dtype=torch.float32)
    energies, forces = (torch.tensor(values, dtype=torch.float32) for values in frames.labels())
    potential.standardise(positions, energies, forces)
    judge = UNCERTAINTIES.build("gmm", {"features": "latents"}, topology=topology, n_latents=potential.n_latents)
    driver = UNCERTAINTIES.build(
        "kernel_density", {"features": "torsions"}, topology=topology, n_latents=potential.n_latents
    )
    with torch.no_grad():
        potential.energy_scale.mul_(1e-3)
        energy, latents = potential(positions)
    for part in (judge, driver):
        part.prepare(positions)
        part.fit(positions, energy, latents, seed=0)
    return UncertaintyModel(potential, judge, topology, driver).eval()


def springs(positions, n_walkers):
    """Harmonic springs to the start positions, 2e4 kJ/mol/nm²; OpenMM evaluates them in microseconds."""
    force = openmm.CustomExternalForce("1e4*((x-x0)^2+(y-y0)^2+(z-z0)^2)")
    for name in ("x0", "y0", "z0"):
        force.addPerParticleParameter(name)
    for walker in range(n_walkers):
        for index, place in enumerate(positions):
            force.addParticle(walker * len(positions) + index, place)
    return force


class Side:
    """Something to be timed in turns with others; ``run(n)`` does n units of work."""

    def __init__(self, name, run, chunk):
        self.name, self.run, self.chunk, self.times = name, run, chunk, []

    def turn(self):
        begin = time.perf_counter()
        self.run(self.chunk)
        self.times.append((time.perf_counter() - begin) / self.chunk)

    @property
    def median(self):
        return statistics.median(self.times)


def measure(sides, turns):
    """Time the sides in turns, the first (warm-up) turn left out."""
    for turn in range(turns + 1):
        for side in sides:
            side.turn()
            if turn == 0:
                side.times.clear()
    return {side.name: side.median for side in sides}


def evaluator_for(model, n_walkers, *, biased=True, **options):
    """``options`` as of FusedEvaluator."""
    bias = BiasSum([MetaD(height=HEIGHT, sigma=SIGMA, pace=PACE), UpperWall(at=14.0)]) if biased else None
    return FusedEvaluator(model, bias, n_walkers, energy_only=not biased, **options)


def walkers_side(
    name, model, positions, backend, n_walkers, chunk, *, biased=True, held=True, platform="Reference", **options
):
    """Our walkers with hills deposited every PACE steps; ``options`` as of FusedEvaluator."""
    evaluator = evaluator_for(model, n_walkers, biased=biased, **options)
    start = np.repeat(positions[None], n_walkers, axis=0)
    walkers = Walkers(
        model.topology,
        evaluator,
        start,
        temperature=TEMPERATURE,
        timestep_fs=TIMESTEP_FS,
        friction_per_ps=FRICTION,
        backend=backend,
        platform=platform,
    )
    if held:
        walkers._system.addForce(springs(positions, n_walkers))
        walkers.context.reinitialize(preserveState=True)
    return Side(name, lambda steps: walkers.run(steps, pace=PACE), chunk)


def ordinary_side(name, model, positions, folder, chunk, *, held=True):
    """An autograd TorchForce for E, and OpenMM's metadynamics on the CV."""
    from openmmtorch import TorchForce

    export_torchscript(model, folder / "energy.pt", "energy")
    export_torchscript(model, folder / "driver.pt", "driver")
    system = openmm.System()
    for mass in model.topology.masses():
        system.addParticle(float(mass))
    if held:
        system.addForce(springs(positions, 1))
    system.addForce(TorchForce(str(folder / "energy.pt")))
    try:
        check_torchforce_as_variable()
        variable_force, way = TorchForce(str(folder / "driver.pt")), "TorchForce"
    except UqbiasError:
        variable_force, way = openmm.PythonForce(AutogradVariable(str(folder / "driver.pt"))), "PythonForce"
    with torch.no_grad():
        start = float(model(torch.tensor(positions[None], dtype=torch.float32)).driver)
    variable = openmm.app.BiasVariable(variable_force, start - 20 * SIGMA, start + 20 * SIGMA, SIGMA)
    metadynamics = openmm.app.Metadynamics(
        system, [variable], TEMPERATURE * unit.kelvin, BIASFACTOR, HEIGHT * unit.kilojoules_per_mole, PACE
    )
    simulation = openmm.app.Simulation(
        model.topology.to_openmm(),
        system,
        openmm.LangevinMiddleIntegrator(TEMPERATURE, FRICTION, TIMESTEP_FS * 1e-3),
        openmm.Platform.getPlatformByName("Reference"),
    )
    simulation.context.setPositions(positions)
    simulation.context.setVelocitiesToTemperature(TEMPERATURE, 1)
    return Side(name, lambda steps: metadynamics.step(simulation, steps), chunk), way


class AutogradVariable:
    """A CV and its derivative by autograd, as a script would write it; OpenMM pickles it, so it holds the path."""

    def __init__(self, path):
        self.path = path
        self.module = torch.jit.freeze(torch.jit.load(path).eval())

    def __call__(self, state):
        positions = torch.tensor(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer), requires_grad=True)
        value = self.module(positions)
        value.backward()
        return float(value.detach()), -positions.grad.numpy()

    def __reduce__(self):
        return AutogradVariable, (self.path,)


def repeat(evaluator, points):
    def run(count):
        for _ in range(count):
            evaluator.evaluate(points)

    return run


def compare_evaluations(model, positions, runner, turns, chunk):
    """E + V(u) against E alone, one evaluation of one walker."""
    points = torch.tensor(positions[None], dtype=torch.float32)
    evaluators = {
        name: evaluator_for(model, 1, biased=biased, runner=runner)
        for name, biased in (("energy", False), ("fused", True))
    }
    # More and shorter turns than elsewhere: the difference is small.
    sides = [Side(name, repeat(evaluator, points), chunk // 2) for name, evaluator in evaluators.items()]
    medians = measure(sides, 3 * turns)
    ratio = medians["fused"] / medians["energy"]
    print(f"one evaluation, 1 walker, runner {evaluators['fused'].runner}")
    print(f"  energy only {medians['energy'] * 1e6:7.0f} us")
    print(f"  E + V(u)    {medians['fused'] * 1e6:7.0f} us   ratio {ratio:.2f} (goal <= {FUSED_GOAL})\n", flush=True)
    return {
        "runner": evaluators["fused"].runner,
        "evaluation_us": {name: value * 1e6 for name, value in medians.items()},
        "fused_over_energy_only": ratio,
    }


def compare_steps(model, positions, runner, turns, chunk, *, held):
    """MD steps of one walker with hills, by backend, against the ordinary way."""
    backends = [name for name, fault in backend_faults().items() if fault is None]
    kinds = {"energy": False, "biased": True}
    with tempfile.TemporaryDirectory() as folder:
        sides = [
            walkers_side(
                f"{backend} {kind}", model, positions, backend, 1, chunk, biased=biased, held=held, runner=runner
            )
            for backend in backends
            for kind, biased in kinds.items()
        ]
        way = None
        if "torchforce" in backends:
            side, way = ordinary_side("ordinary", model, positions, Path(folder), chunk, held=held)
            sides.append(side)
        medians = measure(sides, turns)
    print(f"one MD step, 1 walker, a hill every {PACE} steps")
    if way:
        print(f"  ordinary way             {medians['ordinary'] * 1e6:7.0f} us   (E: TorchForce, CV: {way})")
    gains = {}
    for backend in backends:
        bare, biased = (medians[f"{backend} {kind}"] for kind in kinds)
        print(f"  {backend:11s} energy only  {bare * 1e6:7.0f} us")
        print(f"  {'':11s} E + V(u)     {biased * 1e6:7.0f} us", end="")
        if way:
            gains[backend] = medians["ordinary"] / biased
            print(f"   {gains[backend]:.1f} times faster than ordinary (goal >= {ORDINARY_GOAL:.0f})", end="")
        print(flush=True)
    return {
        "step_us": {name: value * 1e6 for name, value in medians.items()},
        "ordinary_cv_force": way,
        "ordinary_over_fused": gains,
    }


def scale_walkers(model, positions, runner, turns, chunk, counts, *, held):
    """Aggregate steps per second by number of walkers."""
    print("\nwalkers   us per step   walker-steps/s")
    results = {}
    for n_walkers in counts:
        size = max(PACE, chunk // n_walkers // PACE * PACE)
        side = walkers_side("walkers", model, positions, "auto", n_walkers, size, held=held, runner=runner)
        median = measure([side], turns)["walkers"]
        results[n_walkers] = {"step_us": median * 1e6, "walker_steps_per_s": n_walkers / median}
        print(f"{n_walkers:7d} {median * 1e6:13.0f} {n_walkers / median:16.0f}", flush=True)
    return {"walkers": results}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--model", type=Path, help="model file of alanine dipeptide to use")
    parser.add_argument("--runner", default="auto", help="auto, aoti, torchscript or eager")
    parser.add_argument("--quick", action="store_true", help="fewer turns, walkers 1 and 4 only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    frames = read_frames(SYSTEM / "start.xyz")
    positions = frames.positions[0]
    held = options.model is None
    model = demo_model(frames) if held else UncertaintyModel.load(options.model)
    turns, chunk, counts = (3, 100, (1, 4)) if options.quick else (9, 200, (1, 4, 16, 64))
    results = {"torch": torch.__version__, "openmm": openmm.version.version, "model": str(options.model or "untrained")}
    print(f"torch {torch.__version__}, OpenMM {openmm.version.version}, Reference platform, one thread")
    print(f"model: {'of the demo, untrained' if held else options.model}\n", flush=True)
    results |= compare_evaluations(model, positions, options.runner, turns, chunk)
    results |= compare_steps(model, positions, options.runner, turns, chunk, held=held)
    results |= scale_walkers(model, positions, options.runner, turns, chunk, counts, held=held)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
