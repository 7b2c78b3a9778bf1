"""Models of others: judges on a frozen ANI-1x and SevenNet-0, the cost of a MACE and of SevenNet-0 against their own.

Part ``judges``: kinds of judge on ANI-1x, fitted and calibrated on 250 frames of acetylacetone at 300 K. AUROC of 600 K
against other 300 K frames, coverage of the bound of 90 % on these, seconds to make each. Needs torchani 2.2.4.

Part ``mace``: alanine dipeptide, one walker, one thread, a MACE of random weights (64x0e+64x1o, two layers, 5 Å). An
evaluation by MACE's calculator (with its list of neighbours), by its TorchScript with autograd (list made beforehand),
and by ours: E, and E with driver, judge and metadynamics, in turns. Needs mace-torch.

Part ``sevennet``, in an environment of its own: judges on SevenNet-0, fitted to 10 frames of α-quartz at 300 K: AUROC
of 40 frames of molten silica against 10 other frames of quartz. Then 216 atoms of quartz: an evaluation by SevenNet's
calculator, and by ours, E alone and with driver, judge and metadynamics. Needs sevenn.

    python tests/benchmarks/models.py [--parts judges mace] [--runner aoti]
    python tests/benchmarks/models.py --parts sevennet [--runner torchscript]
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from sampler_arms import ROOT
from sklearn.metrics import roc_auc_score
from step_cost import Side, evaluator_for, measure, repeat
from uq_sets import ALANINE, DATA

sys.path.append(str(Path(__file__).parents[1] / "helpers"))

from uqbias.model.fit import fit_model
from uqbias.model.inference import evaluate_frames, residuals
from uqbias.model.wrapping import open_model
from uqbias.molecule.frames import read_frames
from uqbias.molecule.structure import from_distances
from uqbias.potentials.ani import Ani, ani_1x
from uqbias.potentials.edges import optional_package
from uqbias.potentials.mace import Mace, mace_modules
from uqbias.units import ANGSTROM, EV_PER_ANGSTROM

SILICA = ROOT / "systems" / "silica"
JUDGES = [
    {"kind": "gmm"},
    {"kind": "distance"},
    {"kind": "llpr"},
    {"kind": "llpr", "scope": "structure"},
    {"kind": "llpr_forces"},
    {"kind": "mve"},
    {"kind": "evidential"},
    {"kind": "shallow_ensemble"},
    {"kind": "committee"},
]
SIZE = {
    "r_max": 5.0,
    "num_bessel": 8,
    "max_ell": 3,
    "hidden_irreps": "64x0e+64x1o",
    "MLP_irreps": "16x0e",
    "correlation": 3,
}
ELEMENTS = {"atomic_numbers": [1, 6, 7, 8], "num_elements": 4, "atomic_energies": [-13.6, -1029.5, -1485.3, -2041.8]}


def judges() -> None:
    cool, hot = (read_frames(DATA / f"acetylacetone_train_{kelvin}K.xyz") for kelvin in (300, 600))
    order = np.random.default_rng(0).permutation(len(cool))
    fitted, kept = cool[np.sort(order[:250])], cool[np.sort(order[250:])]
    print("judge                AUROC  coverage 300 K  600 K  made in s")
    for judge in JUDGES:
        begin = time.perf_counter()
        potential = Ani.of(ani_1x(), fitted.numbers)
        model, _ = fit_model(fitted, None, {"judge": judge, "calibration": {"fraction": 0.25}}, potential=potential)
        seconds = time.perf_counter() - begin
        u, inside = [], []
        for frames in (kept, hot):
            evaluated, errors = residuals(model, frames)
            u.append(evaluated.judge)
            inside.append((np.sqrt(np.square(errors).mean((1, 2))) <= evaluated.judge).mean())
        auroc = roc_auc_score(np.repeat([0, 1], [len(kept), len(hot)]), np.concatenate(u))
        name = " ".join(judge.values())
        print(f"{name:20} {auroc:.3f}  {inside[0]:14.3f}  {inside[1]:.3f}  {seconds:9.1f}", flush=True)


def mace(runner: str, turns: int) -> None:
    from tiny_mace import tiny_mace

    frames = read_frames(ALANINE / "start.xyz")
    model = tiny_mace(**SIZE, **ELEMENTS).float()
    wrapped, _ = fit_model(frames, potential=Mace.of([model], frames.numbers))
    positions = frames.positions[0]
    points = torch.tensor(positions[None], dtype=torch.float32)
    alone, biased = (evaluator_for(wrapped, 1, biased=each, runner=runner) for each in (False, True))
    with mace_modules():
        from e3nn.util import jit
        from mace.calculators import MACECalculator

        scripted = jit.compile(copy.deepcopy(model))
        structure = Atoms(frames.numbers, positions / ANGSTROM)
        structure.calc = MACECalculator(models=[model], device="cpu", default_dtype="float32")

    def calculator(n: int) -> None:
        for step in range(n):
            structure.positions[0, 0] = positions[0, 0] / ANGSTROM + 1e-6 * (step % 2)
            structure.get_forces()

    pairs = _pairs(positions / ANGSTROM, SIZE["r_max"])
    twin = wrapped.potential
    near = twin._neighbours(points, None)
    data = twin.inputs(near, 0) | {"edge_index": pairs, "shifts": torch.zeros(pairs.shape[1], 3)}
    data["unit_shifts"] = data["shifts"]

    def autograd(n: int) -> torch.Tensor:
        for _ in range(n):
            data["positions"] = torch.tensor(positions / ANGSTROM, dtype=torch.float32).requires_grad_()
            forces = scripted(data, compute_force=True)["forces"]
        return forces

    sides = [
        Side("calculator", calculator, 20),
        Side("torchscript", autograd, 20),
        Side("E", repeat(alone, points), 20),
        Side("E + V", repeat(biased, points), 20),
    ]
    times = measure(sides, turns)
    print(f"runner {alone.runner}")
    tell(times)
    off = alone.evaluate(points).forces[0].numpy() / EV_PER_ANGSTROM - autograd(1).detach().numpy()
    print(f"forces off by {np.abs(off).max() / np.abs(autograd(1).detach().numpy()).max():.1e}")


def tell(times: dict[str, float]) -> None:
    for name, seconds in times.items():
        print(
            f"{name:12} {1e3 * seconds:7.2f} ms, {seconds / times['E']:5.2f} E, {seconds / times['E + V']:5.2f} (E + V)"
        )


def sevennet(runner: str, turns: int) -> None:
    quartz = read_frames(SILICA / "start.xyz", periodic=True)[:20]
    liquid = read_frames(SILICA / "reference" / "liquid.xyz", periodic=True)
    # What they are labelled with is another energy.
    fitted, kept, liquid = (replace(each, energies=None, forces=None) for each in (quartz[::2], quartz[1::2], liquid))
    print("judge                AUROC  made in s")
    for judge in JUDGES[:4]:
        begin = time.perf_counter()
        potential = open_model(["7net-0"], fitted.numbers.tolist())
        settings = {"judge": judge, "driver": {"kind": "gmm"}, "training": {"validation_fraction": 0.0}}
        model, _ = fit_model(fitted, None, settings, potential=potential)
        seconds = time.perf_counter() - begin
        u = np.concatenate([evaluate_frames(model, frames).judge for frames in (kept, liquid)])
        auroc = roc_auc_score(np.repeat([0, 1], [len(kept), len(liquid)]), u)
        print(f"{' '.join(judge.values()):20} {auroc:.3f}  {seconds:9.1f}", flush=True)
    structure = Atoms(quartz.numbers, quartz.positions[0] / ANGSTROM, cell=quartz.cells[0] / ANGSTROM, pbc=True)
    structure *= [3 if axis == structure.cell.lengths().argmin() else 1 for axis in range(3)]
    positions, cell = structure.positions * ANGSTROM, structure.cell.array * ANGSTROM
    wrapped = model.with_topology(from_distances(structure.numbers.tolist(), positions, cell))
    points = torch.tensor(positions[None], dtype=torch.float32)
    alone, biased = (evaluator_for(wrapped, 1, biased=each, runner=runner, box=cell) for each in (False, True))
    with optional_package("sevenn.calculator", "sevennet") as sevenn:
        structure.calc = sevenn.SevenNetCalculator("7net-0", device="cpu")

    def calculator(n: int) -> None:
        for step in range(n):
            structure.positions[0, 0] = positions[0, 0] / ANGSTROM + 1e-6 * (step % 2)
            structure.get_forces()

    sides = [Side("calculator", calculator, 1), Side("E", repeat(alone, points), 1)]
    times = measure([*sides, Side("E + V", repeat(biased, points), 1)], turns)
    print(f"{len(structure)} atoms, runner {alone.runner}")
    tell(times)


def _pairs(x: np.ndarray, cutoff: float) -> torch.Tensor:
    apart = np.linalg.norm(x[:, None] - x[None], axis=-1)
    i, j = np.nonzero((apart < cutoff) & (apart > 0))
    return torch.tensor(np.stack([j, i]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["judges", "mace", "sevennet"], default=["judges", "mace"])
    parser.add_argument("--runner", default="aoti")
    parser.add_argument("--turns", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if "judges" in arguments.parts:
        judges()
    if "mace" in arguments.parts:
        mace(arguments.runner, arguments.turns)
    if "sevennet" in arguments.parts:
        sevennet(arguments.runner, arguments.turns)


if __name__ == "__main__":
    main()
