"""Make the start frames, the reference surface and the test set of alanine dipeptide with the oracle's force field.

    python systems/alanine_dipeptide/reference.py start               # start.xyz, 5 s
    python systems/alanine_dipeptide/reference.py surface             # reference/surface.csv, test_set.xyz; ~7 min
    python systems/alanine_dipeptide/reference.py figure              # reference/surface.png from these
    python systems/alanine_dipeptide/reference.py training-benchmark DIRECTORY   # train.xyz, test.xyz, 5 s

All runs: Amber ff14SB in vacuum, no cutoff, no constraints, LangevinMiddle with 0.5 fs, double precision.

start
    Unbiased MD at 300 K from structure.pdb (C7eq); 100 frames, 2 ps apart, with φ < 0.
surface
    Two independent runs, each of two stages: well-tempered metadynamics of φ and ψ builds a bias; then the bias is
    frozen and sampling goes on. F(φ, ψ) is the histogram of the second stage reweighted by exp(V/kT), which is exact
    for a constant bias and is not smeared by the hills. The test set is drawn from the second stage, an equal number
    of frames at random from each accessible 15° bin.
training-benchmark
    Unbiased MD at 500 K: 1000 frames 0.1 ps apart, and 500 later ones from the same trajectory.

Positions are rounded as they are written and labelled after rounding, so the files are exact labels of what they hold.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from uqbias.files import atomic_path, write_text
from uqbias.molecule.frames import read_frames
from uqbias.molecule.measures import chirality, dihedral_angles
from uqbias.molecule.surface import ReferenceSurface, in_box
from uqbias.molecule.topology import Topology, read_pdb
from uqbias.oracles.openmm import OpenMMOracle
from uqbias.units import ANGSTROM, EV, EV_PER_ANGSTROM, kt

HERE = Path(__file__).parent
STRUCTURE = HERE / "structure.pdb"
SCORE = yaml.safe_load((HERE / "campaign.yaml").read_text(encoding="utf-8"))["score"]
FORCEFIELD = ("amber14/protein.ff14SB.xml",)
PHI, PSI = (tuple(SCORE["coordinates"][name]) for name in ("phi", "psi"))
OMEGAS = ((1, 4, 6, 8), (8, 14, 16, 18))
TIMESTEP = 0.0005  # ps
L_ALANINE = -1  # sign of uqbias.molecule.topology.chirality at CA
SYMBOL = {1: "H", 6: "C", 7: "N", 8: "O"}
POSITION_DECIMALS, FORCE_DECIMALS, ENERGY_DECIMALS = 4, 5, 6  # Å, eV/Å, eV


@dataclass
class Records:
    """Snapshots of the frozen-bias stage: positions [n, 22, 3] nm and bias [n] kJ/mol."""

    positions: NDArray[np.float32]
    bias: NDArray[np.float64]


def simulation(temperature: float, seed: int, system: object | None = None) -> object:
    """OpenMM simulation at the minimum with fresh velocities."""
    import openmm
    from openmm import app, unit

    oracle = OpenMMOracle(STRUCTURE, forcefield=FORCEFIELD)
    integrator = openmm.LangevinMiddleIntegrator(
        temperature * unit.kelvin, 1.0 / unit.picosecond, TIMESTEP * unit.picosecond
    )
    integrator.setRandomNumberSeed(seed)
    platform = openmm.Platform.getPlatform("Reference")
    run = app.Simulation(oracle.pdb_topology, system or oracle.system, integrator, platform)
    run.context.setPositions(oracle.start_positions)
    run.context.setVelocitiesToTemperature(temperature * unit.kelvin, seed)
    return run


def snapshot(run: object) -> NDArray[np.float64]:
    """Current positions [22, 3] in nm."""
    return np.array(run.context.getState(positions=True).getPositions(asNumpy=True)._value)


def map_angles(positions: NDArray) -> tuple[NDArray, NDArray]:
    """φ and ψ [n] in degrees."""
    angles = np.degrees(dihedral_angles(positions, [PHI, PSI]))
    return angles[:, 0], angles[:, 1]


def is_physical(positions: NDArray) -> NDArray[np.bool_]:
    """[n] whether the frame is L, with trans peptide bonds and the bonds of the structure."""
    topology, reference = Topology.from_pdb(STRUCTURE), read_pdb(STRUCTURE)[1]
    i, j = np.array(topology.bonds).T
    stretch = np.linalg.norm(positions[:, i] - positions[:, j], axis=-1) / np.linalg.norm(
        reference[i] - reference[j], axis=-1
    )
    trans = (np.abs(dihedral_angles(positions, OMEGAS)) > np.radians(120)).all(axis=1)
    left = (chirality(positions, topology.chiral_centres()) == L_ALANINE).all(axis=1)
    return trans & left & (np.abs(stretch - 1) < 0.25).all(axis=1)


def write_labelled(path: Path, positions: NDArray, comment: str) -> None:
    """Round, label and write frames as extended XYZ (eV, Å), with no more decimals than float32 can use."""
    oracle = OpenMMOracle(STRUCTURE, forcefield=FORCEFIELD)
    rounded = np.round(positions.astype(float) / ANGSTROM, POSITION_DECIMALS)
    lines = []
    for frame in rounded:
        label = oracle.label(frame * ANGSTROM)
        lines.append(f"{len(frame)}")
        lines.append(
            f'Properties=species:S:1:pos:R:3:forces:R:3 energy={label.energy / EV:.{ENERGY_DECIMALS}f} pbc="F F F"'
        )
        for number, x, force in zip(oracle.numbers, frame, label.forces / EV_PER_ANGSTROM, strict=True):
            values = [f"{value:.{POSITION_DECIMALS}f}" for value in x]
            values += [f"{value:.{FORCE_DECIMALS}f}" for value in force]
            lines.append(" ".join([SYMBOL[number], *values]))
    write_text(path, "\n".join(lines) + "\n")
    print(f"{path}: {len(rounded)} frames {comment} ({path.stat().st_size / 1e6:.2f} MB)")


def start_frames(output: Path, n_frames: int, seed: int) -> None:
    """Frames of unbiased 300 K MD in the basin of the structure."""
    run = simulation(300.0, seed)
    run.step(round(20 / TIMESTEP))
    frames: list[NDArray] = []
    while len(frames) < n_frames:
        run.step(round(2 / TIMESTEP))
        frame = snapshot(run)[None]
        phi, _ = map_angles(frame)
        if in_box({"phi": phi}, SCORE["regions"]["phi_positive"])[0]:
            raise SystemExit("the unbiased run left the basin: choose another seed")
        if phi[0] < 0:
            frames.append(frame[0])
    write_labelled(output, np.array(frames), "at 300 K, φ < 0")


def training_benchmark(directory: Path, seed: int) -> None:
    """Frames of unbiased 500 K MD for training, and later ones for testing."""
    run = simulation(500.0, seed)
    run.step(round(20 / TIMESTEP))
    frames = []
    for _ in range(1600):
        run.step(round(0.1 / TIMESTEP))
        frames.append(snapshot(run))
    write_labelled(directory / "train.xyz", np.array(frames[:1000]), "at 500 K, 0.1 ps apart")
    write_labelled(directory / "test.xyz", np.array(frames[1100:]), "at 500 K, 10 ps after the last training frame")


def sample_map(seed: int, build_ns: float, sample_ns: float) -> Records:
    """Well-tempered metadynamics of φ and ψ for ``build_ns``, then sampling with the bias frozen for ``sample_ns``."""
    import openmm
    from openmm import app, unit

    def periodic(quadruple: tuple[int, ...]) -> object:
        torsion = openmm.CustomTorsionForce("theta")
        torsion.addTorsion(*quadruple, [])
        return app.BiasVariable(torsion, -np.pi, np.pi, 0.25, periodic=True, gridWidth=73)

    system = OpenMMOracle(STRUCTURE, forcefield=FORCEFIELD).system
    hills = app.Metadynamics(
        system,
        [periodic(PHI), periodic(PSI)],
        300.0 * unit.kelvin,
        biasFactor=15.0,
        height=1.0 * unit.kilojoule_per_mole,
        frequency=200,
    )
    group = next(force.getForceGroup() for force in system.getForces() if isinstance(force, openmm.CustomCVForce))
    run = simulation(300.0, seed, system)
    blocks = 20
    began = time.monotonic()
    for block in range(blocks):
        hills.step(run, round(build_ns * 1000 / TIMESTEP / blocks))
        report(f"seed {seed}: building the bias", (block + 1) / blocks, began)
    n_records = round(sample_ns * 1000 / 0.05)  # one every 50 fs
    positions = np.empty((n_records, 22, 3), dtype=np.float32)
    bias = np.empty(n_records)
    began = time.monotonic()
    for index in range(n_records):
        run.step(round(0.05 / TIMESTEP))
        positions[index] = snapshot(run)
        state = run.context.getState(energy=True, groups={group})
        bias[index] = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
        if (index + 1) % max(1, n_records // blocks) == 0:
            report(f"seed {seed}: sampling", (index + 1) / n_records, began)
    return Records(positions, bias)


def report(what: str, done: float, began: float) -> None:
    """Progress on one line."""
    elapsed = time.monotonic() - began
    print(f"{what} {100 * done:.0f} %, {elapsed * (1 / done - 1):.0f} s left", file=sys.stderr, flush=True)


def probability(records: Records, edges: NDArray) -> NDArray:
    """Unbiased probability of each bin, [24, 24]."""
    phi, psi = map_angles(records.positions)
    weight = np.exp((records.bias - records.bias.max()) / kt(300.0))
    histogram, _, _ = np.histogram2d(phi, psi, bins=[edges, edges], weights=weight)
    return histogram / histogram.sum()


def surface(directory: Path, seeds: list[int], build_ns: float, sample_ns: float, per_bin: int) -> None:
    """Write surface.csv and test_set.xyz from independent runs."""
    with ProcessPoolExecutor(len(seeds)) as pool:
        runs = list(pool.map(partial(sample_map, build_ns=build_ns, sample_ns=sample_ns), seeds))
    edges = np.linspace(-180, 180, 25)
    probabilities = np.array([probability(run, edges) for run in runs])
    with np.errstate(divide="ignore"):
        each = -np.log(probabilities)
        free_energy = -np.log(probabilities.mean(axis=0))
    free_energy -= free_energy.min()
    accessible = free_energy <= 10
    both = accessible & np.isfinite(each).all(axis=0)
    difference = each[0][both] - each[1][both]
    difference -= difference.mean()
    comments = [
        "free energy of alanine dipeptide in kT at 300 K, 15 degree bins",
        f"python systems/alanine_dipeptide/reference.py surface --seeds {' '.join(map(str, seeds))} "
        f"--build-ns {build_ns:g} --sample-ns {sample_ns:g} --per-bin {per_bin}",
        f"{', '.join(FORCEFIELD)}, vacuum, no cutoff, no constraints, LangevinMiddle 0.5 fs, 1/ps",
        f"{len(seeds)} runs of {build_ns:g} ns well-tempered metadynamics and {sample_ns:g} ns with the bias frozen, "
        "reweighted",
        f"the runs differ over the {both.sum()} bins with F <= 10 kT by {np.sqrt((difference**2).mean()):.3f} kT "
        f"(root mean square), {np.abs(difference).max():.3f} kT (largest)",
    ]
    found = ReferenceSurface(free_energy)
    found.save(directory / "surface.csv", ("phi", "psi"), comments)
    print("\n".join(comments))

    positions = np.concatenate([run.positions for run in runs])
    positions = positions[is_physical(positions)]
    cell = found.bins(*map_angles(positions))
    generator = np.random.default_rng(seeds[0])
    picked: list[int] = []
    for row, column in np.argwhere(found.accessible()):
        inside = np.flatnonzero((cell == (row, column)).all(axis=1))
        picked += sorted(generator.choice(inside, size=per_bin, replace=False))
    write_labelled(directory / "test_set.xyz", positions[picked], f"at 300 K, {per_bin} in each accessible bin")


def figure(directory: Path) -> None:
    """Draw the surface with its basins and the start frames."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    values = ReferenceSurface.load(directory / "surface.csv").free_energy
    start = map_angles(read_frames(HERE / "start.xyz").positions)
    figure, axes = plt.subplots(figsize=(4.6, 3.8), layout="constrained")
    image = axes.imshow(
        np.where(values <= 20, values, np.nan).T, origin="lower", extent=(-180, 180, -180, 180), cmap="viridis", vmin=0
    )
    axes.contour(np.linspace(-172.5, 172.5, 24), np.linspace(-172.5, 172.5, 24), values.T, levels=[10], colors="white")
    axes.plot(*start, ".", color="crimson", markersize=3, label="start frames")
    for name, box in SCORE["basins"].items():
        centre = [low + ((high - low) % 360) / 2 for low, high in (box["phi"], box["psi"])]
        x, y = ((angle + 180) % 360 - 180 for angle in centre)
        axes.text(x, y, name, color="black", ha="center", va="center", fontsize=8, bbox={"fc": "white", "alpha": 0.6})
    ticks = [-180, -90, 0, 90, 180]
    axes.set(xlabel="φ (°)", ylabel="ψ (°)", xticks=ticks, yticks=ticks)
    axes.legend(loc="lower right", fontsize=8)
    figure.colorbar(image, label="F (kT at 300 K); white line 10 kT")
    with atomic_path(directory / "surface.png") as temporary:
        figure.savefig(temporary, dpi=110)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("start", help="100 labelled start frames")
    start.add_argument("--output", type=Path, default=HERE / "start.xyz")
    start.add_argument("--frames", type=int, default=100)
    start.add_argument("--seed", type=int, default=1)
    bench = commands.add_parser("training-benchmark", help="500 K frames to time the training on")
    bench.add_argument("directory", type=Path)
    bench.add_argument("--seed", type=int, default=500)
    reference = commands.add_parser("surface", help="reference surface and test set")
    reference.add_argument("--directory", type=Path, default=HERE / "reference")
    reference.add_argument("--seeds", type=int, nargs=2, default=[11, 12])
    reference.add_argument("--build-ns", type=float, default=4.0)
    reference.add_argument("--sample-ns", type=float, default=8.0)
    reference.add_argument("--per-bin", type=int, default=7)
    drawing = commands.add_parser("figure", help="surface.png from surface.csv and start.xyz")
    drawing.add_argument("--directory", type=Path, default=HERE / "reference")
    given = parser.parse_args()
    if given.command == "start":
        start_frames(given.output, given.frames, given.seed)
    elif given.command == "training-benchmark":
        training_benchmark(given.directory, given.seed)
    elif given.command == "figure":
        figure(given.directory)
    else:
        surface(given.directory, given.seeds, given.build_ns, given.sample_ns, given.per_bin)


if __name__ == "__main__":
    main()
