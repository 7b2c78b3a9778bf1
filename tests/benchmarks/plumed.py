"""Cost of PLUMED: the bridge beyond its evaluation of the model, and the plugin against the exported model.

The model is that of the demo (default sizes, alanine dipeptide) with untrained weights; the cost does not depend on
them. All sides run in this process, in turns, one thread; medians over the turns, so that what else the machine does
falls on all of them. Where no plugin was built (``uqbias plumed --build``) its rows are left out, and said to be.

    python tests/benchmarks/plumed.py [--quick] [--runner aoti] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch  # isort: skip  (before OpenMM, whose plugin for torch links its libraries)

import numpy as np
import openmm
from openmm import app
from step_cost import SYSTEM, demo_model

from uqbias.bias.base import BiasSum
from uqbias.bias.metad import MetaD
from uqbias.compile.fused import FusedEvaluator
from uqbias.errors import UqbiasError
from uqbias.md.force import make_force
from uqbias.model.export import export_torchscript
from uqbias.molecule.frames import read_frames
from uqbias.plumed.bridge import PlumedBridge
from uqbias.plumed.compile_plugin import plugin_status
from uqbias.plumed.kernel import find_kernel
from uqbias.plumed.session import PlumedSession

TIMESTEP = 0.0005
#: Goals of the project: µs a step, and times the exported model.
BRIDGE_GOAL, PLUGIN_GOAL = 60.0, 1.3
METAD = "METAD ARG={} SIGMA=1.0 HEIGHT=0.001 PACE=500 BIASFACTOR=10 GRID_MIN=-50 GRID_MAX=200 GRID_BIN=2500"


class AtPositions:
    """What the bridge reads of an openmm.State, one MD step further each time."""

    def __init__(self, x):
        self._value, self.step = np.array(x), 0

    def getStepCount(self):  # noqa: N802
        self.step += 1
        return self.step

    def getPositions(self, asNumpy=True):  # noqa: N802
        return self

    def getTime(self):  # noqa: N802
        return self.Time(self.step * TIMESTEP)

    class Time:
        def __init__(self, value):
            self._value = value


def sprung_system(model, x):
    """Springs to the start positions that OpenMM evaluates itself hold the untrained model's molecule."""
    system = openmm.System()
    springs = openmm.CustomExternalForce("20000*((x-x0)^2+(y-y0)^2+(z-z0)^2)")
    for name in ("x0", "y0", "z0"):
        springs.addPerParticleParameter(name)
    for number, place in zip(model.numbers, x, strict=True):
        springs.addParticle(system.addParticle(app.Element.getByAtomicNumber(number).mass), place)
    system.addForce(springs)
    return system


def context_of(system, x):
    context = openmm.Context(system, openmm.VerletIntegrator(TIMESTEP), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(x)
    return context


def microseconds(call, calls):
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - begin) / calls * 1e6


def bridge_sides(model, x, runner, folder):
    """Name to a function that does one step's work."""
    options = {"timestep": TIMESTEP, "temperature": 300, "runner": runner}
    lines = ["c: EXTRACV NAME=driver", METAD.format("c")]
    bridge = PlumedBridge(sprung_system(model, x), lines, model, output_dir=folder / "a", **options)
    biased = sprung_system(model, x)
    in_md = PlumedBridge(biased, lines, model, output_dir=folder / "b", **options)
    metadynamics = MetaD(height=0.001, sigma=1.0, pace=500)
    evaluator = FusedEvaluator(model, BiasSum([metadynamics]), 1, runner=runner)
    fused = sprung_system(model, x)
    fused.addForce(make_force(evaluator, "pythonforce"))
    state, positions = AtPositions(x), torch.tensor(x)[None]
    contexts = context_of(biased, x), context_of(fused, x)
    sides = {
        "graph": lambda: bridge._graph.unchecked(bridge._inputs),
        "bridge": lambda: bridge.evaluate(state),
        "fused": lambda: evaluator.evaluate(positions),
        "md_bridge": lambda: contexts[0].getIntegrator().step(1),
        "md_fused": lambda: contexts[1].getIntegrator().step(1),
    }
    return sides, (bridge, in_md)


def plugin_sides(model, x, folder):
    """The exported model's value and gradient by torch, and the plugin in PLUMED; empty where no plugin was built."""
    status = plugin_status()
    if not status["path"] or status["fault"]:
        return {}, status["fault"] or "no plugin was built: uqbias plumed --build", ()
    load = f"LOAD FILE={Path(str(status['path'])).absolute()}"
    steps = iter(range(10**9))

    def session(name, *lines):
        n = len(x)
        return PlumedSession(
            [*lines, "RESTRAINT ARG=u KAPPA=1 AT=0"], (), masses=np.ones(n), charges=np.zeros(n), timestep=TIMESTEP,
            temperature=300.0, output_dir=folder / name, log="plumed.log", restart=False, flush=None,
        )  # fmt: skip

    def caller(one):
        def call():
            one.begin(next(steps))
            one.calculate(x, {})

        return call

    sessions = {"empty": session("empty", "u: DISTANCE ATOMS=1,2")}
    sides = {}
    for form in ("flat", "autograd"):
        path = folder / f"{form}.pt"
        export_torchscript(model, path, "driver", with_forces=form == "flat")
        action = f"u: UNCERTAINTY ATOMS=1-{len(x)} MODEL={path} NOPBC"
        sessions[f"plugin_{form}"] = session(form, load, action)
        sides[f"exported_{form}"] = by_torch(torch.jit.load(str(path)), x, form)
    sides |= {name: caller(one) for name, one in sessions.items()}
    return sides, "", tuple(sessions.values())


def by_torch(module, x, form):
    """The exported model's own value and gradient, float32."""
    positions = torch.tensor(x, dtype=torch.float32, requires_grad=form == "autograd")

    def call():
        if form == "autograd":
            torch.autograd.grad(module(positions), positions)
        else:
            with torch.no_grad():
                module(positions)

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer turns")
    parser.add_argument("--runner", default="aoti", help="aoti, torchscript or eager")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # Python looks for modules beside the script first, where this file would hide the wrapper of the same name.
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]
    try:
        kernel = find_kernel()
    except UqbiasError as error:
        raise SystemExit(f"error: {error}") from error
    frames = read_frames(SYSTEM / "start.xyz")
    x, model = frames.positions[0], demo_model(frames)
    with tempfile.TemporaryDirectory(prefix="uqbias-") as name:
        folder = Path(name)
        sides, to_end = bridge_sides(model, x, arguments.runner, folder)
        plugin, fault, sessions = plugin_sides(model, x, folder)
        sides |= plugin
        turns, calls = (10, 40) if arguments.quick else (40, 100)
        samples = {side: [] for side in sides}
        for call in sides.values():
            microseconds(call, 50)
        for _ in range(turns):
            for side, call in sides.items():
                samples[side].append(microseconds(call, calls))
        for bridge in to_end:
            bridge.finalize()
        for session in sessions:
            session.close()
    cost = {side: statistics.median(values) for side, values in samples.items()}
    table(cost, kernel, arguments.runner, fault)
    if arguments.json:
        arguments.json.write_text(json.dumps({"runner": arguments.runner, "us": cost}, indent=1) + "\n")


def table(cost, kernel, runner, fault) -> None:
    print(f"PLUMED {kernel.long_version}, torch {torch.__version__}, OpenMM {openmm.version.version}, runner {runner}")
    print("alanine dipeptide, 22 atoms, float32, one thread, medians, µs\n")
    row("fused evaluation, E + V, one gradient", cost["fused"])
    row("the bridge's graph, E and u with a gradient each", cost["graph"])
    row("the bridge's evaluation with METAD on a grid", cost["bridge"])
    row("bridge beyond its graph", cost["bridge"] - cost["graph"], BRIDGE_GOAL)
    row("MD step, fused evaluation as PythonForce", cost["md_fused"])
    row("MD step, bridge", cost["md_bridge"])
    row("difference of these", cost["md_bridge"] - cost["md_fused"])
    if "plugin_flat" not in cost:
        print(f"\nplugin not measured: {fault}")
        return
    row("PLUMED with one distance", cost["empty"])
    for form, what in (("flat", "with forces (as `uqbias plumed` writes it)"), ("autograd", "by autograd")):
        row(f"exported {what}", cost[f"exported_{form}"])
        row("  PLUMED with the plugin", cost[f"plugin_{form}"])
        row("  plugin / exported model", cost[f"plugin_{form}"] / cost[f"exported_{form}"], PLUGIN_GOAL, "")


def row(what, value, goal=None, unit=" µs") -> None:
    held = "" if goal is None else f"   goal <= {goal:g}{unit}: {'held' if value <= goal else 'MISSED'}"
    print(f"{what:58s} {value:9.2f}{unit}{held}")


if __name__ == "__main__":
    main()
