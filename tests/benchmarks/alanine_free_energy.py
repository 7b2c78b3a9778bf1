"""F(φ, ψ) of alanine dipeptide from runs that are biased on the uncertainty alone, against φ/ψ metadynamics.

Uncertainty: the driver of a model that knows nothing but the 100 start frames (φ < 0): a density over the soft
torsions, which it finds by itself. Two dynamics:

forcefield  Amber ff14SB drives, the model only gives u. Reference: systems/alanine_dipeptide/reference/surface.csv.
model       the trained potential drives. Reference: φ/ψ metadynamics of the force field, made here, whose frames are
            weighed by exp(-(E_model - E_forcefield)/kT) too: the potential's own surface, without a walker in the holes
            that a potential has beyond its data. Its training frames come from φ/ψ metadynamics of the force field at
            300 and 600 K.

Each run: well-tempered metadynamics builds the bias, which is then frozen; after a while in which the walkers forget
how it was built, frames are weighed by exp(V/kT), exact for a bias that stands still. Several walkers of one Context
share the bias; bonds with hydrogen are rigid (2 fs). F is compared over the 15° bins with F <= 8 kT of the reference,
after a constant shift.

    python tests/benchmarks/alanine_free_energy.py [--quick] [--seeds 0 1 2] [--dynamics forcefield model]
        [--json PATH] [--figure PATH]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch  # isort: skip  (before OpenMM, whose plugin for torch links its libraries)

import numpy as np
import openmm
import yaml
from openmm import app

from uqbias.bias.base import BiasSum
from uqbias.bias.fixed import UpperWall
from uqbias.bias.metad import MetaD
from uqbias.compile.fused import FusedEvaluator
from uqbias.files import write_text
from uqbias.md.guards import Guard
from uqbias.md.walkers import Walkers
from uqbias.model.fit import fit_model
from uqbias.model.inference import evaluate_frames
from uqbias.model.model import UncertaintyModel
from uqbias.model.readouts import fit_uncertainty
from uqbias.molecule.frames import Frames, read_frames
from uqbias.molecule.measures import dihedral_angles
from uqbias.molecule.surface import ReferenceSurface, in_box
from uqbias.molecule.topology import Topology
from uqbias.oracles.openmm import OpenMMOracle
from uqbias.registry import UNCERTAINTIES
from uqbias.units import kt
from uqbias.variables.dihedral import Dihedral

SYSTEM = Path(__file__).parents[2] / "systems" / "alanine_dipeptide"
BASINS = yaml.safe_load((SYSTEM / "campaign.yaml").read_text())["score"]["basins"]
PHI_PSI = ((4, 6, 8, 14), (6, 8, 14, 16))
TEMPERATURE, TIMESTEP_FS, PACE = 300.0, 2.0, 50
#: Of each bias. In the time t that a walker needs to cross (1 ns on the uncertainty) a bias of W walkers, built for the
#: time T of them all, grows by kT (γ - 1) W t / T: a wrong bias freezes if that is large. φ/ψ crosses in a hundredth.
WALKERS = {"driver": 4, "phi_psi": 8}
KT = kt(TEMPERATURE)
#: Frozen run of all walkers together. There are 0.5 to 0.8 arrivals a nanosecond on the force field, 1 to 2 on the
#: potential, and it takes some thirty for 1 kJ/mol.
SAMPLE_NS = {"forcefield": 60.0, "model": 12.0}
#: Part of the frozen run that is left out at its beginning.
SETTLE = 1 / 6
#: Frames that the potential learns the map from, by the temperature (K) of the run that gives them, and its steps.
TRAINING_FRAMES, MAP_STEPS = {300.0: 1000, 600.0: 1500}, 40000
#: Goals of the project.
RMSE_GOAL, DELTA_GOAL, HIGHEST = 1.0, 1.0, 8.0
BIASES = {
    "driver": {"variables": ["driver"], "sigma": 0.5, "height": 1.0, "biasfactor": 6.0},
    "phi_psi": {
        "variables": ["phi", "psi"],
        "periods": [2 * np.pi] * 2,
        "sigma": 0.3,
        "height": 1.0,
        "biasfactor": 10.0,
    },
}


class ForceFieldWalkers:
    """Amber ff14SB on W copies of the molecule that do not see each other, for `Walkers(external=...)`."""

    def forces(self, topology, n_walkers):
        pdb = app.PDBFile(str(SYSTEM / "structure.pdb"))
        many = app.Modeller(pdb.topology, pdb.positions)
        for _ in range(n_walkers - 1):
            many.add(pdb.topology, pdb.positions)
        system = app.ForceField("amber14/protein.ff14SB.xml").createSystem(
            many.topology, nonbondedMethod=app.NoCutoff, removeCMMotion=False
        )
        return [self._apart(force, len(topology), n_walkers) for force in system.getForces()]

    def _apart(self, force, n_atoms, n_walkers):
        """Nonbonded pairs of one molecule as exceptions; particles themselves have no charge and no size."""
        if not isinstance(force, openmm.NonbondedForce):
            return openmm.XmlSerializer.clone(force)
        apart = openmm.NonbondedForce()
        apart.setNonbondedMethod(openmm.NonbondedForce.NoCutoff)
        own = [force.getParticleParameters(i) for i in range(n_atoms)]
        known = {}
        for index in range(force.getNumExceptions()):
            i, j, *parameters = force.getExceptionParameters(index)
            if max(i, j) < n_atoms:
                known[min(i, j), max(i, j)] = parameters
        for _ in range(n_walkers * n_atoms):
            apart.addParticle(0.0, 0.1, 0.0)
        for walker in range(n_walkers):
            for j in range(n_atoms):
                for i in range(j):
                    product = own[i][0] * own[j][0]
                    mixed = [product, 0.5 * (own[i][1] + own[j][1]), (own[i][2] * own[j][2]).sqrt()]
                    shift = walker * n_atoms
                    apart.addException(i + shift, j + shift, *known.get((i, j), mixed))
        return apart

    def update(self, context, step, positions):
        pass


def fitted(frames, topology, start, potential, steps):
    """A model of ``frames`` whose driver knows the start frames only."""
    model, facts = fit_model(frames, topology, {"potential": potential, "training": {"steps": steps}})
    driver = UNCERTAINTIES.build("kernel_density", {}, topology=topology, n_latents=model.potential.n_latents)
    driver.prepare(torch.tensor(start.positions, dtype=torch.float32))
    fit_uncertainty(model.potential, driver, start, 0)
    error = facts["validation"]["force_mae_meV_per_A"]
    print(f"{len(frames)} frames: force MAE {error:.1f} meV/Å on held-out frames", flush=True)
    return UncertaintyModel(model.potential, model.judge, topology, driver, model.calibration).eval()


def frames_over_the_map(small, topology, start, temperature, count, steps):
    """Labelled frames of φ/ψ metadynamics with the force field; all bonds are free, so that none is unknown."""
    options = {**BIASES["phi_psi"], "biasfactor": 20.0, "pace": PACE, "temperature": temperature}
    n_walkers = WALKERS["phi_psi"]
    walkers = Walkers(
        topology,
        FusedEvaluator(small, MetaD(**options), n_walkers, variables=dihedrals(), include_energy=False),
        start.positions[:n_walkers],
        temperature=temperature,
        timestep_fs=1.0,
        safe_frames=start.positions,
        external=ForceFieldWalkers(),
        seed=int(temperature),
    )
    kept = []
    walkers.run(steps, pace=PACE, observers=[lambda o: kept.append(o.positions.copy())])
    positions = np.concatenate(kept)
    chosen = np.random.default_rng(0).choice(len(positions), min(count, len(positions)), replace=False)
    oracle = OpenMMOracle(SYSTEM / "structure.pdb")
    energies, forces = zip(*(oracle.label(x) for x in positions[chosen]), strict=True)
    return Frames(start.numbers, positions[chosen], np.array(energies), np.array(forces), [{} for _ in chosen])


def dihedrals():
    return {name: Dihedral(atoms) for name, atoms in zip(("phi", "psi"), PHI_PSI, strict=True)}


def labelled(steps, dynamics, scale):
    """The models asked for: a small one that only gives u, and one trained over the map."""
    topology = Topology.from_pdb(SYSTEM / "structure.pdb")
    start = read_frames(SYSTEM / "start.xyz")
    small = fitted(start, topology, start, {"n_radial": 4, "n_channels": 3, "l_max": 1, "hidden": [8, 8]}, 200)
    found = {"forcefield": small}
    if "model" in dynamics:
        parts = [start, read_frames(SYSTEM / "reference" / "test_set.xyz")]
        for temperature, count in TRAINING_FRAMES.items():
            length = max(20 * PACE, int(MAP_STEPS * scale) // PACE * PACE)
            parts.append(frames_over_the_map(small, topology, start, temperature, count, length))
        large = {"n_radial": 8, "n_channels": 6, "l_max": 2, "hidden": [32, 16]}
        found["model"] = fitted(Frames.concatenate(parts), topology, start, large, steps)
    return topology, start, found


def walkers_of(dynamics, on, model, topology, start, seed):
    """Walkers, and their metadynamics."""
    metadynamics = MetaD(**BIASES[on], pace=PACE, temperature=TEMPERATURE)
    # The potential knows F up to about 10 kT; beyond u = 14 lie geometries that neither dynamics needs.
    bias = BiasSum([metadynamics, UpperWall(at=14.0)])
    n_walkers = WALKERS[on]
    evaluator = FusedEvaluator(
        model, bias, n_walkers, variables=dihedrals(), include_energy=dynamics == "model", dtype=torch.float32
    )
    walkers = Walkers(
        topology,
        evaluator,
        start.positions[:: max(1, len(start.positions) // n_walkers)][:n_walkers],
        temperature=TEMPERATURE,
        timestep_fs=TIMESTEP_FS,
        constraints="hbonds",
        guard=Guard(topology, start.positions[0], driver_cap=20.0),
        safe_frames=start.positions,
        external=ForceFieldWalkers() if dynamics == "forcefield" else None,
        seed=seed,
    )
    return walkers, metadynamics


def run(dynamics, on, model, topology, start, seed, build_ns, sample_ns, correct=None):
    """Angles [T, W, 2] in degrees, bias [T, W] in kJ/mol and u [T, W] of the frames kept, and facts.

    ``correct`` gives from positions [W, N, 3] what the energy of another potential is higher by; it is taken off.
    """
    walkers, metadynamics = walkers_of(dynamics, on, model, topology, start, seed)
    kept = []

    def keep(o):
        angles = np.degrees(dihedral_angles(o.positions, PHI_PSI))
        bias = o.bias if correct is None else o.bias - correct(o.positions)
        kept.append((angles, np.where(o.restarted, np.nan, bias), o.driver))

    def steps(ns):
        return int(ns * 1e6 / TIMESTEP_FS / WALKERS[on]) // PACE * PACE

    begin = time.perf_counter()
    walkers.run(steps(build_ns), pace=PACE)
    metadynamics.frozen = True
    walkers.run(steps(SETTLE * sample_ns), pace=PACE)
    walkers.run(steps((1 - SETTLE) * sample_ns), pace=PACE, observers=[keep])
    seconds = time.perf_counter() - begin
    angles, bias, driver = (np.array(values) for values in zip(*kept, strict=True))
    facts = {
        "seconds": seconds,
        "arrivals": arrivals(angles),
        "stopped": len(walkers.events),
        "hills": len(metadynamics.hills),
    }
    return angles, bias, driver, facts


def in_basin(name, phi, psi):
    """Whether each point, in degrees, lies in a basin of the campaign file."""
    return in_box({"phi": phi, "psi": psi}, BASINS[name])


def arrivals(angles):
    """How often a walker went from the basins at φ < 0 to C7ax, or back, and arrived; from angles [T, W, 2]."""
    place = np.zeros(angles.shape[:2], dtype=int)
    for name, side in {"C7eq": 1, "C5": 1, "alphaR": 1, "C7ax": 2}.items():
        inside = in_basin(name, angles[..., 0].ravel(), angles[..., 1].ravel())
        place[inside.reshape(place.shape)] = side
    return sum(int(np.count_nonzero(np.diff(own[own > 0]))) for own in place.T)


def difference(model):
    """From positions [W, N, 3] to E of the model less E of the force field in kJ/mol, [W]."""
    oracle = OpenMMOracle(SYSTEM / "structure.pdb")

    def energies(positions):
        return evaluate_frames(model, positions).energy - [oracle.label(x)[0] for x in positions]

    return energies


def reference_of(models, topology, start, build_ns, sample_ns, n_bins, seeds=(100, 101)):
    """F [B, B] in kT and C7eq -> C7ax in kJ/mol of the trained model.

    One run after the other, each with weights that add up to one, is the average of their distributions.
    """
    angles, bias = [], []
    for seed in seeds:
        one, weighed, _, facts = run(
            "forcefield",
            "phi_psi",
            models["forcefield"],
            topology,
            start,
            seed,
            build_ns,
            sample_ns,
            difference(models["model"]),
        )
        good = np.where(np.isfinite(weighed), weighed, -np.inf)
        highest = good.max()
        weights = np.exp((good - highest) / KT)
        effective = weights.sum() ** 2 / (weights**2).sum()
        print(f"reference {seed}: ΔF {delta(one, weighed):.2f} ± {blocks(one, weighed):.2f} kJ/mol, {facts}")
        print(f"effective frames {effective:.0f} of {weights.size}", flush=True)
        angles.append(one)
        bias.append(weighed - highest - KT * np.log(weights.sum()))
    angles, bias = np.concatenate(angles), np.concatenate(bias)
    return surface(angles, bias, n_bins), delta(angles, bias)


def surface(angles, bias, n_bins):
    """F [B, B] in kT by exp(V/kT), lowest 0."""
    good = np.isfinite(bias)
    weights = np.exp((bias[good] - bias[good].max()) / KT)
    edges = np.linspace(-180, 180, n_bins + 1)
    histogram = np.histogram2d(angles[good][:, 0], angles[good][:, 1], bins=[edges, edges], weights=weights)[0]
    with np.errstate(divide="ignore"):
        return -np.log(histogram / histogram.max())


def delta(angles, bias):
    """F(C7ax) - F(C7eq) in kJ/mol."""
    good = np.isfinite(bias)
    weights = np.exp((bias[good] - bias[good].max()) / KT)
    inside = [in_basin(name, *angles[good].T) for name in ("C7eq", "C7ax")]
    populations = [weights[place].sum() for place in inside]
    return float(KT * np.log(populations[0] / populations[1])) if min(populations) > 0 else float("nan")


def delta_of_surface(energy):
    """F(C7ax) - F(C7eq) in kJ/mol from bins."""
    centres = (np.arange(len(energy)) + 0.5) * 360 / len(energy) - 180
    phi, psi = (grid.ravel() for grid in np.meshgrid(centres, centres, indexing="ij"))
    weights = np.exp(-energy.ravel())
    eq, ax = (weights[in_basin(name, phi, psi)].sum() for name in ("C7eq", "C7ax"))
    return float(KT * np.log(eq / ax))


def blocks(angles, bias, count=5):
    """Standard error of F(C7ax) - F(C7eq) over blocks of time."""
    values = [delta(a, b) for a, b in zip(np.array_split(angles, count), np.array_split(bias, count), strict=True)]
    return float(np.std(values, ddof=1) / np.sqrt(count))


def compare(energy, reference):
    """Root mean square difference over the bins with F <= 8 kT of the reference, and how many of these were seen."""
    low = reference <= HIGHEST
    both = low & np.isfinite(energy)
    return float(np.std(energy[both] - reference[both])), float(both.sum() / low.sum())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the time, to see that it runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--dynamics", nargs="+", default=["forcefield", "model"], choices=["forcefield", "model"])
    parser.add_argument("--build-ns", type=float, default=8.0, help="of all walkers together")
    parser.add_argument("--sample-ns", type=float, help="60 (force field), 12 (model); the first sixth is left out")
    parser.add_argument("--training-steps", type=int, default=10000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    scale = 0.01 if options.quick else 1.0
    build = options.build_ns * scale
    topology, start, models = labelled(max(100, int(options.training_steps * scale)), options.dynamics, scale)
    known = ReferenceSurface.load(SYSTEM / "reference" / "surface.csv").free_energy
    results, surfaces = [], {}
    for dynamics in options.dynamics:
        arguments = (models[dynamics], topology, start)
        sample = scale * (SAMPLE_NS[dynamics] if options.sample_ns is None else options.sample_ns)
        if dynamics == "forcefield":
            reference, expected = known, delta_of_surface(known)
        else:
            reference, expected = reference_of(models, topology, start, build, sample, len(known))
            rmse, seen = compare(reference, known)
            print(
                f"model's reference: ΔF {expected:.2f}; against the force field {rmse:.2f} kT over {seen:.0%}",
                flush=True,
            )
        surfaces[dynamics] = {"reference": reference.tolist()}
        for seed in options.seeds:
            angles, bias, driver, facts = run(dynamics, "driver", *arguments, seed, build, sample)
            energy = surface(angles, bias, len(known))
            rmse, seen = compare(energy, reference)
            row = {
                "dynamics": dynamics,
                "seed": seed,
                "rmse_kt": rmse,
                "seen": seen,
                "delta": delta(angles, bias),
                "delta_error": blocks(angles, bias),
                "delta_reference": expected,
                "highest_u": float(np.nanmax(driver)),
                **facts,
            }
            results.append(row)
            surfaces[dynamics][str(seed)] = energy.tolist()
            print(json.dumps(row), flush=True)
            if options.json:
                write_text(options.json, json.dumps({"results": results, "surfaces": surfaces}))
    report(results)
    if options.figure:
        draw(surfaces, options.figure)


def report(results):
    print(f"\nF(φ, ψ) over the bins with F <= {HIGHEST:g} kT, and C7eq -> C7ax, runs biased on u only")
    print("dynamics     seed  RMSE/kT  bins seen  ΔF/(kJ/mol)        reference  arrivals")
    for row in results:
        print(
            f"{row['dynamics']:12} {row['seed']:4}  {row['rmse_kt']:7.2f}  {row['seen']:9.0%}  "
            f"{row['delta']:6.2f} ± {row['delta_error']:4.2f}      {row['delta_reference']:9.2f}  {row['arrivals']:8}"
        )
    for dynamics in dict.fromkeys(row["dynamics"] for row in results):
        rows = [row for row in results if row["dynamics"] == dynamics]
        rmse = [row["rmse_kt"] for row in rows]
        off = [row["delta"] - row["delta_reference"] for row in rows]
        met = max(rmse) <= RMSE_GOAL and abs(np.mean(off)) <= DELTA_GOAL
        spread = np.std(off, ddof=1) if len(off) > 1 else float("nan")
        print(
            f"{dynamics}: RMSE {np.mean(rmse):.2f} kT (goal {RMSE_GOAL:g}), ΔF off by {np.mean(off):+.2f} ± "
            f"{spread:.2f} kJ/mol over seeds (goal {DELTA_GOAL:g}): {'met' if met else 'MISSED'}"
        )


def draw(surfaces, path):
    import matplotlib.pyplot as plt

    columns = max(len(found) for found in surfaces.values())
    figure, axes = plt.subplots(
        len(surfaces), columns, figsize=(3.1 * columns, 3.0 * len(surfaces)), squeeze=False, layout="constrained"
    )
    for row, (dynamics, found) in zip(axes, surfaces.items(), strict=True):
        for panel, (name, energy) in zip(row, found.items(), strict=False):
            title = f"{dynamics}: φ/ψ metadynamics" if name == "reference" else f"u only, seed {name}"
            image = panel.imshow(
                np.array(energy).T, origin="lower", extent=(-180, 180, -180, 180), vmin=0, vmax=12, cmap="viridis_r"
            )
            panel.set(title=title, xlabel="φ (°)", ylabel="ψ (°)", xticks=[-180, 0, 180], yticks=[-180, 0, 180])
        figure.colorbar(image, ax=row.tolist(), label="F (kT)")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
