"""Cost of tables of neighbours on silica: linear in the number of atoms, faster than all pairs, seldom made again.

Ideal cristobalite, atoms displaced by 0.01 nm, the default potential with a cutoff of 0.49 nm (all pairs of the 216
atoms see the nearest image alone, which takes a cell 0.98 nm high) and untrained weights, on which the cost does not
depend; one thread. Evaluators take turns; a ratio is the median over the turns, so that what else the machine does
touches both sides. How often tables are made again is that of molecular dynamics with BKS.

    python tests/benchmarks/neighbours.py [--quick] [--json PATH]
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
from ase.io import read, write

from uqbias.bias.metad import MetaD
from uqbias.compile.fused import FusedEvaluator
from uqbias.model.model import UncertaintyModel
from uqbias.molecule.neighbours import NeighbourList
from uqbias.molecule.topology import Topology
from uqbias.oracles.openmm import OpenMMOracle
from uqbias.potentials.power_spectrum import PowerSpectrum
from uqbias.potentials.prediction import predict
from uqbias.registry import UNCERTAINTIES

SILICA = Path(__file__).parents[2] / "systems" / "silica"
CUTOFF, SKIN, DISPLACEMENT = 0.49, 0.1, 0.01  # nm
SIZES = {216: (3, 1, 1), 1728: (2, 3, 4)}
#: Goals of the project: per atom at 1728 against 216 atoms, all pairs against the table, E + V(u) against E, rebuilds.
LINEAR, FASTER, UNCERTAIN, REBUILDS = 1.1, 3.0, 1.2, 0.05


def silica(n_atoms):
    """Atoms of cristobalite, displaced, in nm: numbers, positions [1, N, 3] and cell."""
    atoms = read(SILICA / "cristobalite.xyz").repeat(SIZES[n_atoms])
    atoms.rattle(10 * DISPLACEMENT, seed=1)
    return tuple(atoms.numbers.tolist()), torch.tensor(atoms.positions / 10)[None], atoms.cell.array / 10


def model_of(numbers, positions, cell):
    """Default potential, a mixture on latents as driver and judge."""
    potential = PowerSpectrum(numbers, cutoff=CUTOFF).requires_grad_(False)
    topology = Topology(numbers, ())
    mixture = UNCERTAINTIES.build("gmm", {"features": "latents"}, topology=topology, n_latents=potential.n_latents)
    generator = torch.Generator().manual_seed(0)
    frames = (positions + 0.01 * torch.randn(40, *positions.shape[1:], generator=generator)).float()
    said = predict(potential, frames, forces="none", cells=torch.tensor(cell).expand(40, 3, 3))
    mixture.prepare(frames)
    mixture.fit(frames, said.energy, said.latents, seed=0)
    return UncertaintyModel(potential, mixture, topology).eval()


def turns(evaluators, n_turns):
    """Milliseconds of an evaluation in each turn, by name; a turn is as many evaluations as take about 0.1 s."""
    calls, times = {}, {name: [] for name in evaluators}
    for name, (evaluator, positions) in evaluators.items():
        evaluator.evaluate(positions)
        begin = time.perf_counter()
        evaluator.evaluate(positions)
        calls[name] = max(1, round(0.1 / (time.perf_counter() - begin)))
    for _ in range(n_turns):
        for name, (evaluator, positions) in evaluators.items():
            begin = time.perf_counter()
            for _ in range(calls[name]):
                evaluator.evaluate(positions)
            times[name].append(1e3 * (time.perf_counter() - begin) / calls[name])
    return times


def ratio(times, one, other):
    """Median over the turns."""
    return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))


def rebuilds(kelvin, steps):
    """Tables made in MD of 216 atoms with BKS, a step, and milliseconds of making one."""
    sys.path.insert(0, str(SILICA))
    from make_reference import QUICK, TIMESTEP, Dynamics

    atoms = read(SILICA / "cristobalite.xyz").repeat(SIZES[216])
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "silica.xyz", atoms, format="extxyz")
        oracle = OpenMMOracle(structure=Path(folder) / "silica.xyz", forcefield=[str(SILICA / "bks.xml")], **QUICK)
        dynamics = Dynamics(atoms, oracle, seed=0)
    table = NeighbourList(atoms.numbers.tolist(), (8, 14), CUTOFF, SKIN)
    box = torch.tensor(dynamics.cell)[None]
    list(dynamics.run(200 * TIMESTEP, kelvin))
    for x in dynamics.run(steps * TIMESTEP, kelvin, frames=steps):
        table.geometry(torch.tensor(x)[None], box)
    fresh = NeighbourList(atoms.numbers.tolist(), (8, 14), CUTOFF, SKIN)
    times = []
    for place in range(20):
        begin = time.perf_counter()
        fresh.geometry(torch.tensor(dynamics.x)[None] + 0.1 * place, box)
        times.append(1e3 * (time.perf_counter() - begin))
    return table.builds / steps, statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few turns, for a test of the script")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    parser.add_argument("--runner", default="auto")
    options = parser.parse_args()
    torch.set_num_threads(1)
    evaluators = {}
    for n_atoms in SIZES:
        numbers, positions, cell = silica(n_atoms)
        model = model_of(numbers, positions, cell)
        common = {"runner": options.runner, "box": cell, "skin": SKIN}
        evaluators[f"table {n_atoms}"] = FusedEvaluator(model, None, 1, energy_only=True, **common), positions
        if n_atoms == 216:
            bias = MetaD(sigma=1.0, pace=1, height=1.0)
            bias.update(1, np.zeros((1, 1)))
            evaluators["E + V(u)"] = FusedEvaluator(model, bias, 1, **common), positions
            all_pairs = model_of(numbers, positions, cell)
            all_pairs.potential.needs = "dense"
            evaluators["all pairs 216"] = FusedEvaluator(all_pairs, None, 1, energy_only=True, **common), positions
    times = turns(evaluators, 3 if options.quick else 30)
    results = {"ms": {name: statistics.median(each) for name, each in times.items()}}
    for name, value in results["ms"].items():
        print(f"{name:15s} {value:8.2f} ms, {min(times[name]):8.2f} at best")
    results["linear"] = ratio(times, "table 1728", "table 216") * 216 / 1728
    results["faster"] = ratio(times, "all pairs 216", "table 216")
    results["uncertain"] = ratio(times, "E + V(u)", "table 216")
    print(f"time per atom, 1728 against 216 atoms: {results['linear']:.2f} (goal {LINEAR} or less)")
    print(f"all pairs against the table, 216 atoms: {results['faster']:.2f} (goal {FASTER} or more)")
    print(f"E + V(u) against E, 216 atoms: {results['uncertain']:.2f} (goal {UNCERTAIN} or less)")
    for kelvin in (300.0, 3000.0):
        share, cost = rebuilds(kelvin, 50 if options.quick else 400)
        spent = share * cost / results["ms"]["table 216"]
        results[f"rebuilds {kelvin:.0f} K"] = spent
        print(
            f"MD at {kelvin:.0f} K: a table every {1 / max(share, 1e-9):.0f} steps of 1.5 fs, {cost:.2f} ms each: "
            f"{spent:.1%} of the time of the model (goal {REBUILDS:.0%} or less)"
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
