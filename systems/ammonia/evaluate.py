"""Score an ammonia campaign: inversion barrier round by round, and constant-energy dynamics of the final model.

    python systems/ammonia/evaluate.py RUN_DIR            # barrier of every round's model beside the oracle's
    python systems/ammonia/evaluate.py RUN_DIR --nve      # and 20 NVE runs of 5 ps at 1500 K with the last model

The oracle's own barrier needs tblite (`pip install 'uqbias[xtb]'`); without it the model's barriers stand alone.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Read by tblite and torch when they are imported; four atoms run slower on more threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from uqbias.compile.fused import FusedEvaluator
from uqbias.errors import UqbiasError
from uqbias.md.walkers import Walkers
from uqbias.model.inference import evaluate_frames
from uqbias.model.model import UncertaintyModel
from uqbias.molecule.frames import read_frames
from uqbias.oracles.base import Oracle
from uqbias.registry import ORACLES
from uqbias.runs.observation import Observation
from uqbias.units import ANGSTROM, KCAL, kt

Array = NDArray[np.float64]
#: Positions [n, N, 3] in nm -> energies [n] in kJ/mol, forces [n, N, 3] in kJ/mol/nm.
Surface = Callable[[Array], tuple[Array, Array]]
NUMBERS = (7, 1, 1, 1)
#: As in campaign.yaml.
CALCULATOR = {"calculator": "tblite.ase:TBLite", "calculator_options": {"method": "GFN2-xTB", "verbosity": 0}}
#: N-H distances of a run that counts as stable, nm.
N_H = (0.07, 0.225)
#: Largest force component of a relaxed geometry, kJ/mol/nm, and N-H distances, nm, at which it is still ammonia.
FORCE, RELAXED = 0.5, (0.08, 0.13)


def make_ammonia_oracle() -> Oracle:
    """The campaign's oracle.

    Raises
    ------
    UqbiasError
        If tblite is not installed.
    """
    return ORACLES.rebuild("ase", {**CALCULATOR, "numbers": list(NUMBERS)})


def oracle_surface(oracle: Oracle | None = None) -> Surface:
    """The oracle, one geometry after the other."""
    source = make_ammonia_oracle() if oracle is None else oracle

    def surface(positions: Array) -> tuple[Array, Array]:
        labels = [source.label(x) for x in positions]
        return np.array([label.energy for label in labels]), np.array([label.forces for label in labels])

    return surface


def model_surface(model: UncertaintyModel) -> Surface:
    """A model's energies and forces in double precision; the model itself is left as it is."""
    double = _double(model)

    def surface(positions: Array) -> tuple[Array, Array]:
        found = evaluate_frames(double, positions, forces=True)
        assert found.forces is not None
        return found.energy, found.forces

    return surface


def _double(model: UncertaintyModel) -> UncertaintyModel:
    """A copy in float64, so that the relaxation's line search sees a smooth energy."""
    import copy

    return copy.deepcopy(model).double().eval()


def starting_geometry(rise: float = 0.037, radius: float = 0.094) -> Array:
    """[4, 3] nm, threefold symmetric: N ``rise`` above the plane of the H, which are ``radius`` from its axis."""
    turn = 2 * np.pi / 3 * np.arange(3)
    hydrogens = np.stack([radius * np.cos(turn), radius * np.sin(turn), np.zeros(3)], axis=1)
    return np.concatenate([[[0.0, 0.0, rise]], hydrogens])


def height(positions: Array) -> Array:
    """Signed distance of N from the plane of the three H, [n] nm; its sign changes on inversion, zero is planar."""
    first, second, third = (positions[:, 0] - positions[:, i] for i in (1, 2, 3))
    normal = np.cross(first - second, first - third)
    return np.asarray((first * normal).sum(axis=1) / np.linalg.norm(normal, axis=1))


def hydrogen_angle(positions: Array) -> Array:
    """Mean H-N-H angle, [n] degrees; 120 in a planar molecule."""
    arms = positions[:, 1:] - positions[:, :1]
    arms = arms / np.linalg.norm(arms, axis=2, keepdims=True)
    cosines = [(arms[:, i] * arms[:, j]).sum(axis=1) for i, j in ((0, 1), (0, 2), (1, 2))]
    return np.asarray(np.degrees(np.arccos(np.clip(cosines, -1.0, 1.0))).mean(axis=0))


@dataclass(frozen=True)
class Relaxed:
    """A geometry at rest.

    Attributes
    ----------
    positions : [4, 3] nm.
    energy : kJ/mol.
    force : largest component that is left, kJ/mol/nm.
    """

    positions: Array
    energy: float
    force: float


def relax(surface: Surface, start: Array, *, planar: bool = False) -> Relaxed:
    """Relax a geometry by BFGS (`scipy.optimize.minimize`).

    Parameters
    ----------
    start : [4, 3] nm.
    planar : move the atoms within the x, y plane only; ``start`` must lie in it.
    """
    from scipy.optimize import minimize

    free = np.ones(3) if not planar else np.array([1.0, 1.0, 0.0])
    # Lengths of 10 pm: the optimiser's first step has the length of the gradient.
    scale = 0.01

    def function(flat: Array) -> tuple[float, Array]:
        energies, forces = surface((flat.reshape(1, 4, 3)) * scale)
        return float(energies[0]), (-forces[0] * free * scale).ravel()

    found = minimize(function, (start / scale).ravel(), jac=True, method="BFGS", options={"gtol": 1e-4, "maxiter": 200})
    positions = found.x.reshape(4, 3) * scale
    energies, forces = surface(positions[None])
    return Relaxed(positions, float(energies[0]), float(np.abs(forces[0] * free).max()))


@dataclass(frozen=True)
class Barrier:
    """The inversion of a surface.

    Attributes
    ----------
    kcal : planar less pyramidal energy, both relaxed, kcal/mol; NaN where ``fault`` is not empty.
    angle : H-N-H angle of the pyramidal minimum, degrees.
    bond : its mean N-H distance, Å.
    planar_bond : that of the planar geometry, Å.
    fault : why there is no barrier, or empty: the relaxation did not end at a pyramidal and at a planar ammonia.
    """

    kcal: float
    angle: float
    bond: float
    planar_bond: float
    fault: str = ""


def inversion_barrier(source: Surface | UncertaintyModel | Oracle) -> Barrier:
    """Energy of the planar molecule (D3h) above the pyramidal minimum (C3v), each relaxed on the surface itself."""
    if isinstance(source, UncertaintyModel):
        surface = model_surface(source)
    else:
        surface = oracle_surface(source) if isinstance(source, Oracle) else source
    low = relax(surface, starting_geometry())
    top = relax(surface, starting_geometry(0.0, 0.1), planar=True)
    bonds = [float(np.linalg.norm(x.positions[1:] - x.positions[0], axis=1).mean() / ANGSTROM) for x in (low, top)]
    angle = float(hydrogen_angle(low.positions[None])[0])
    fault = ""
    for name, found in (("pyramidal", low), ("planar", top)):
        lengths = np.linalg.norm(found.positions[1:] - found.positions[0], axis=1)
        if not (found.force < FORCE and RELAXED[0] < lengths.min() and lengths.max() < RELAXED[1]):
            fault = (
                f"the {name} geometry relaxes to N-H {lengths.min() / ANGSTROM:.2f} to {lengths.max() / ANGSTROM:.2f} Å"
                f", where a force of {found.force:.2g} kJ/mol/nm is left"
            )
            break
    if not fault and abs(height(low.positions[None])[0]) < 0.001:
        fault = "the pyramidal geometry relaxes to a planar one"
    kcal = float("nan") if fault else (top.energy - low.energy) / KCAL
    return Barrier(kcal, angle, bonds[0], bonds[1], fault)


def inversion_path(surface: Surface, heights: Array) -> Array:
    """Geometries [n, 4, 3] nm with N at ``heights`` [n] nm above the plane of the H, N-H relaxed at each height."""
    from scipy.optimize import minimize_scalar

    def energy(radius: float, rise: float) -> float:
        return float(surface(starting_geometry(rise, radius)[None])[0][0])

    found = [minimize_scalar(energy, bounds=(0.08, 0.115), args=(rise,), method="bounded") for rise in heights]
    return np.array([starting_geometry(rise, each.x) for rise, each in zip(heights, found, strict=True)])


@dataclass(frozen=True)
class Dynamics:
    """Runs at constant energy.

    Attributes
    ----------
    runs : number of them.
    stable : how many kept every N-H within `N_H`, from the first step of the equilibration on.
    shortest, longest : N-H distance of all runs, Å.
    temperature : mean kinetic temperature of the runs, K.
    drift : [runs] slope of the total energy, kJ/mol/ps.
    spread : [runs] standard deviation of the total energy about this line, kJ/mol.
    inversions : changes of the pyramid's side in all runs.
    seconds : wall time.
    """

    runs: int
    stable: int
    shortest: float
    longest: float
    temperature: float
    drift: list[float]
    spread: list[float]
    inversions: int
    seconds: float


def nve(
    model: UncertaintyModel,
    n: int = 20,
    *,
    temperature: float = 1500.0,
    timestep_fs: float = 1.0,
    duration_ps: float = 5.0,
    equilibration_ps: float = 0.5,
    seed: int = 0,
    runner: str = "torchscript",
) -> Dynamics:
    """Run ``n`` trajectories at constant energy (velocity Verlet), from the model's minimum heated by a thermostat.

    Parameters
    ----------
    temperature : of the Langevin thermostat (20/ps) of the equilibration, K.
    equilibration_ps : its length; without it half of the kinetic energy of the start would become potential energy.
    runner : of the compiled graph, see `uqbias.compile.fused.FusedEvaluator`.
    """
    began = time.perf_counter()
    low = relax(model_surface(model), starting_geometry())
    evaluator = FusedEvaluator(_double(model), None, n, dtype=torch.float64, energy_only=True, runner=runner)
    common: dict[str, Any] = {"temperature": temperature, "timestep_fs": timestep_fs, "platform": "Reference"}
    thermostat = Walkers(model.topology, evaluator, low.positions[None], **common, friction_per_ps=20.0, seed=seed)
    watch = _Watch(thermostat)
    thermostat.run(round(equilibration_ps * 1e3 / timestep_fs), pace=1, observers=[watch])
    free = Walkers(model.topology, evaluator, low.positions[None], **common, friction_per_ps=None, seed=seed)
    for walker in range(n):
        free.place(walker, *thermostat.snapshot(walker))
    watch.begin(free)
    free.run(round(duration_ps * 1e3 / timestep_fs), pace=1, observers=[watch])
    times, total, kinetic = (np.array(values) for values in (watch.times, watch.total, watch.kinetic))
    lines = [np.polynomial.Polynomial.fit(times, column, 1) for column in np.nan_to_num(total).T]
    signs = np.sign(np.array(watch.heights))
    return Dynamics(
        runs=n,
        stable=int(((watch.shortest > N_H[0]) & (watch.longest < N_H[1])).sum()),
        shortest=float(watch.shortest.min() / ANGSTROM),
        longest=float(watch.longest.max() / ANGSTROM),
        temperature=float(kinetic.mean() / (1.5 * len(NUMBERS) * kt(1.0))),
        drift=[float(line.convert().coef[1]) for line in lines],
        spread=[float((column - line(times)).std()) for column, line in zip(total.T, lines, strict=True)],
        inversions=int((signs[1:] != signs[:-1]).sum()),
        seconds=time.perf_counter() - began,
    )


class _Watch:
    """Records N-H extremes at every step, and energies since `begin`."""

    def __init__(self, walkers: Walkers) -> None:
        n = walkers.n_walkers
        self.shortest, self.longest = np.full(n, np.inf), np.zeros(n)
        self.masses = walkers.topology.masses()
        self.begin(walkers)

    def begin(self, walkers: Walkers) -> None:
        self.walkers = walkers
        self.times: list[float] = []
        self.total: list[Array] = []
        self.kinetic: list[Array] = []
        self.heights: list[Array] = []

    def __call__(self, observation: Observation) -> None:
        lengths = np.linalg.norm(observation.positions[:, 1:] - observation.positions[:, :1], axis=2)
        # A walker that left for infinity has distances that are not numbers: not stable.
        lengths = np.where(np.isfinite(lengths), lengths, np.inf)
        self.shortest = np.minimum(self.shortest, lengths.min(axis=1))
        self.longest = np.maximum(self.longest, lengths.max(axis=1))
        walkers = self.walkers
        assert walkers.evaluator.last is not None
        velocities = walkers.context.getState(velocities=True).getVelocities(asNumpy=True)._value
        # Verlet's velocities are half a step behind the positions.
        accelerations = walkers.evaluator.last.forces.numpy() / self.masses[:, None]
        velocities = velocities.reshape(observation.positions.shape) + 0.5e-3 * walkers.timestep_fs * accelerations
        kinetic = 0.5 * (self.masses[:, None] * velocities**2).sum(axis=(1, 2))
        self.times.append(observation.time_ps)
        self.kinetic.append(kinetic)
        self.total.append(observation.energy + kinetic)
        self.heights.append(height(observation.positions))


def models_of(directory: Path) -> dict[int, Path]:
    """Model files of a campaign's directory by round.

    Raises
    ------
    UqbiasError
        If there is none.
    """
    found = {int(path.parent.name.removeprefix("round_")): path for path in directory.glob("round_*/model.uqb")}
    if not found:
        raise UqbiasError(f"{directory} holds no round_*/model.uqb", "give the directory of a campaign that has run")
    return dict(sorted(found.items()))


def labels_by_round(directory: Path) -> dict[int, int]:
    """Labels paid for, by round."""
    rounds = [int(entry["round"]) for entry in read_frames(directory / "dataset.xyz").info]
    return {index: rounds.count(index) for index in range(max(rounds) + 1)}


def reference_of(directory: Path) -> float | None:
    """Barrier of the campaign's oracle, kcal/mol; None where the oracle is another one, or tblite is missing."""
    kept = directory / "campaign.yaml"
    if kept.is_file() and yaml.safe_load(kept.read_text(encoding="utf-8"))["oracle"].get("kind") != "ase":
        print("the oracle of this campaign is not GFN2-xTB: there is no barrier to compare with")
        return None
    try:
        return inversion_barrier(make_ammonia_oracle()).kcal
    except UqbiasError as error:
        print(f"no barrier of the oracle: {error}")
        return None


def evaluate(directory: Path, *, with_nve: bool = False, reference: float | None = None) -> dict[str, Any]:
    """What the command prints, as one JSON-able dictionary."""
    labels = labels_by_round(directory)
    rounds = []
    for index, path in models_of(directory).items():
        model = UncertaintyModel.load(path)
        added = sum(count for each, count in labels.items() if 0 < each <= index)
        rounds.append({"round": index, "added_labels": added, **asdict(inversion_barrier(model))})
    result: dict[str, Any] = {"oracle_kcal": reference, "rounds": rounds}
    if with_nve:
        result["nve"] = asdict(nve(model))
    return result


def main() -> None:
    """Print the scores of a campaign."""
    parser = argparse.ArgumentParser(description="Inversion barrier and NVE runs of an ammonia campaign's models")
    parser.add_argument("directory", type=Path, help="directory of the campaign")
    parser.add_argument("--nve", action="store_true", help="run the last model at 1500 K too")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    given = parser.parse_args()
    reference = reference_of(given.directory)
    result = evaluate(given.directory, with_nve=given.nve, reference=reference)
    print("round  added labels  barrier  error, kcal/mol   H-N-H    N-H, Å  planar")
    for row in result["rounds"]:
        error = f"{row['kcal'] - reference:+.2f}" if reference is not None and not row["fault"] else ""
        print(
            f"{row['round']:5d}  {row['added_labels']:12d}  {row['kcal']:7.2f}  {error:>15s}  {row['angle']:6.1f}  "
            f"{row['bond']:8.3f}  {row['planar_bond']:6.3f}  {row['fault']}"
        )
    if reference is not None:
        print(f"oracle {reference:21.2f}")
    if given.nve:
        found = Dynamics(**result["nve"])
        print(
            f"NVE: {found.stable} of {found.runs} runs stable, N-H {found.shortest:.2f} to {found.longest:.2f} Å, "
            f"{found.temperature:.0f} K, {found.inversions} inversions, energy drift at most "
            f"{np.abs(found.drift).max():.3f} kJ/mol/ps (median {np.median(np.abs(found.drift)):.3f}), "
            f"spread {np.median(found.spread):.2f} kJ/mol, {found.seconds:.0f} s"
        )
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except UqbiasError as error:
        raise SystemExit(f"error: {error}") from None
