"""A small made-up run in the format of a campaign: five atoms in a chain, two dihedrals."""

import json
from pathlib import Path

import numpy as np
import yaml

from uqbias.molecule.frames import Frames, write_frames
from uqbias.molecule.surface import ReferenceSurface

SYSTEM = Path(__file__).parents[2] / "systems/alanine_dipeptide"
SCORE = yaml.safe_load((SYSTEM / "campaign.yaml").read_text())["score"]
NUMBERS = np.array([6, 7, 6, 6, 7])
COORDINATES = {"phi": [0, 1, 2, 3], "psi": [1, 2, 3, 4]}
N_WALKERS = 8
N_OBSERVED = 120


def chain(phi, psi):
    """Five atoms in a chain, 0.15 nm apart, with the dihedrals ``phi`` and ``psi`` [...] in degrees."""
    phi, psi = np.broadcast_arrays(np.radians(phi), np.radians(psi))
    length, angle = 0.15, np.radians(111.0)
    atoms = [np.zeros((*phi.shape, 3)), np.zeros((*phi.shape, 3)), np.zeros((*phi.shape, 3))]
    atoms[1] = atoms[1] + [length, 0.0, 0.0]
    atoms[2] = atoms[1] + length * np.array([-np.cos(angle), np.sin(angle), 0.0])
    for torsion in (phi, psi):
        a, b, c = atoms[-3:]
        along = (c - b) / length
        normal = np.cross(b - a, along)
        normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
        across = np.cross(normal, along)
        local = np.stack(
            [
                np.full(torsion.shape, -np.cos(angle)),
                np.sin(angle) * np.cos(torsion),
                np.sin(angle) * np.sin(torsion),
            ],
            axis=-1,
        )
        step = local[..., :1] * along + local[..., 1:2] * across + local[..., 2:] * normal
        atoms.append(c + length * step)
    return np.stack(atoms, axis=-2)


def surface():
    """A rough alanine dipeptide: F(phi, psi) in kT on 15° bins."""
    centres = np.arange(-172.5, 180.0, 15.0)
    phi, psi = np.meshgrid(centres, centres, indexing="ij")

    def well(at_phi, at_psi, depth, width):
        near = np.cos(np.radians(phi - at_phi)) + np.cos(np.radians(psi - at_psi)) - 2
        return depth * np.exp(near / np.radians(width) ** 2)

    wells = well(-80, 75, 16, 45) + well(-150, 155, 14, 35) + well(-75, -20, 13, 35) + well(67, -37, 13, 30)
    return wells.max() - wells


def draw(rng, centre, spread, n):
    return (rng.normal(centre, spread, (n, 2)) + 180.0) % 360.0 - 180.0


def make_run(path, n_rounds=4, *, crossing=True, reference=True, seed=0):
    """Write a made-up run directory in the campaign's format."""
    rng = np.random.default_rng(seed)
    path.mkdir(parents=True)
    test_angles = rng.uniform(-180, 180, (1200, 2))
    config = {
        "name": "made_up",
        "seed": seed,
        "driver": {"kind": "kernel_density", "features": {"kind": "torsions"}},
        "judge": {"kind": "gmm"},
        "sampler": "metadynamics",
        "md": {"walkers": N_WALKERS, "temperature": 300.0, "timestep_fs": 0.5, "steps": 12000},
        "guards": {"driver_cap": 14.0},
        "score": None,
    }
    if reference:
        write_frames(path / "test_set.xyz", Frames(NUMBERS, chain(*test_angles.T)))
        free_energy = surface()
        ReferenceSurface(free_energy).save(path / "surface.csv", ("phi", "psi"))
        config["score"] = {
            "test_set": "test_set.xyz",
            "surface": "surface.csv",
            "coordinates": COORDINATES,
            "basins": SCORE["basins"],
            "regions": SCORE["regions"],
            "display_names": SCORE["display_names"],
        }
    (path / "campaign.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False))
    events, rows, n_labels, labelled = [{"event": "campaign", "versions": {"torch": "2.9.1"}}], [], 0, np.empty((0, 2))
    for index in range(n_rounds):
        folder = path / f"round_{index:02d}"
        folder.mkdir()
        n_right = int(50 * index / 5) if crossing and index else 0
        n_new = 100 if index == 0 else 50
        angles = np.concatenate(
            [
                draw(rng, (-90, 80), (20 + 18 * index, 30 + 22 * index), n_new - n_right),
                draw(rng, (67, -37), 22, n_right),
            ]
        )
        angles[:, 0] = np.where(np.arange(n_new) < n_new - n_right, -np.abs(angles[:, 0]), angles[:, 0])
        labelled = np.concatenate([labelled, angles])
        for row in chain(*angles.T):
            events.append(
                {
                    "event": "label",
                    "round": index,
                    "index": n_labels,
                    "positions": row.tolist(),
                    "energy": 1.0,
                    "forces": np.zeros((5, 3)).tolist(),
                    "info": {"reason": "start" if index == 0 else "farthest_point", "round": index},
                }
            )
            n_labels += 1
        for phase, wall in (("md", 22.0 if index else 0.0), ("label", 0.3), ("train", 16.0 - index), ("score", 1.2)):
            events.append({"event": "phase", "round": index, "phase": phase, "wall_s": wall})
        (folder / "training.json").write_text(
            json.dumps(
                {
                    "history": [{"epoch": 0, "validation_force_mae": 100.0}],
                    "wall_s": 16.0 - index,
                    "driver_story": ["auto chose local_densities", "it acts on torsion N6-C8"],
                }
            )
        )
        separation = (test_angles[:, None] - labelled[None] + 180) % 360 - 180
        distance = np.sqrt(((separation / 30.0) ** 2).sum(-1)).min(axis=1)
        error = (18.0 + 25.0 * distance**1.2) * rng.lognormal(0, 0.25, len(distance))
        driver = -np.log(np.exp(-0.5 * (separation / 30) ** 2).prod(-1).mean(-1) + 1e-6) - 1.5
        judge = (error / 1.0364) * rng.lognormal(0.3, 0.5, len(error))
        np.savez(
            folder / "scores.npz",
            force_mae_frame=error,
            energy_error_frame=error / 20,
            driver=driver,
            judge=np.where(judge < 1.5, 0.0, judge),
        )
        right = (test_angles[:, 0] > 15) & (test_angles[:, 0] < 135)
        row = {
            "labels": n_labels,
            "oracle_calls": n_labels + index,
            "md_steps": index * 12000 * N_WALKERS,
            "coverage": 0.21 + 0.15 * index,
            "basins": ["C5", "C7eq"] + (["C7ax"] if crossing and index else []),
            "force_mae_meV_per_A": float(error.mean()),
            "energy_mae_meV_per_atom": float(error.mean() / 20),
            "force_mae_phi_positive_meV_per_A": float(error[right].mean()),
            "energy_mae_phi_positive_meV_per_atom": float(error[right].mean() / 20),
            "rejected": 2 if index else 0,
            "wall_s": 18.0 + (22.0 if index else 0.0),
        }
        rows.append(
            row
            if reference
            else {k: v for k, v in row.items() if k in ("labels", "oracle_calls", "md_steps", "rejected", "wall_s")}
        )
        if index:
            make_exploration(folder, rng, index, crossing)
    labels = [event for event in events if event["event"] == "label"]
    verdicts = [{"verdict": "energy" if e["round"] and e["index"] % 50 < 2 else "accepted"} for e in labels]
    info = [{"round": e["round"], "index": e["index"], **v} for e, v in zip(labels, verdicts, strict=True)]
    positions = np.array([event["positions"] for event in labels])
    energies = np.array([event["energy"] for event in labels])
    write_frames(path / "dataset.xyz", Frames(NUMBERS, positions, energies, 0 * positions, info))
    (path / "ledger.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (path / "summary.json").write_text(
        json.dumps({"name": "made_up", "seed": seed, "stopped": f"all {n_rounds - 1} rounds are done", "rounds": rows})
    )
    return path


def make_exploration(folder, rng, index, crossing):
    (folder / "md").mkdir()
    step = np.arange(1, N_OBSERVED + 1) * 100
    angles = np.array([-85.0, 75.0]) + np.cumsum(rng.normal(0, 9 + 2 * index, (N_OBSERVED, N_WALKERS, 2)), axis=0)
    if crossing:
        angles[60:, : 2 * index] = np.array([67, -37]) + rng.normal(0, 18, (60, 2 * index, 2))
    angles = (angles + 180) % 360 - 180
    ramp = np.linspace(0, 5 + index, N_OBSERVED)[:, None]
    driver = np.abs(ramp + rng.normal(0, 1.2, (N_OBSERVED, N_WALKERS)))
    bias = 3 * ramp + rng.normal(0, 0.7, driver.shape) ** 2
    judge = 4 * driver + rng.normal(0, 1, driver.shape) ** 2
    np.savez(
        folder / "md" / "observations.npz",
        step=step,
        positions=chain(angles[..., 0], angles[..., 1]).astype(np.float32),
        energy=rng.normal(0, 15, driver.shape) + 4 * driver,
        driver=driver,
        judge=judge,
        bias=bias,
    )
    event = {"step": 4000, "walker": 3, "reason": "driver cap"}
    (folder / "md" / "events.jsonl").write_text(json.dumps(event) + "\n" + '{"step": 50')
    hills = "#! FIELDS time driver sigma_driver height biasf\n#! SET multivariate false\n"
    for i in range(300):
        hills += f"{0.025 * i} {abs(rng.normal(i / 60, 1.0)):.4f} 1.0 {np.exp(-i / 200) * 10 / 9:.5f} 10\n"
    (folder / "md" / "HILLS").write_text(hills)
    n = driver.size
    fate = rng.choice(
        [
            "taken",
            "refused: angle",
            "refused: clash",
            "refused: chirality",
            "refused: driver below window",
            "not taken: budget spent",
        ],
        n,
        p=[0.05, 0.1, 0.04, 0.02, 0.3, 0.49],
    )
    energy = rng.normal(0, 15, n) + 4 * driver.ravel()
    candidates = [
        {
            "walker": int(i % N_WALKERS),
            "step": int(step[i // N_WALKERS]),
            "driver": float(driver.ravel()[i]),
            "judge": float(judge.ravel()[i]),
            "energy": float(energy[i]),
            "taken": bool(fate[i] == "taken"),
            "reason": str(fate[i]),
        }
        for i in range(n)
    ]
    reasons, numbers = np.unique(fate, return_counts=True)
    counts = {str(reason): int(number) for reason, number in zip(reasons, numbers, strict=True)}
    (folder / "harvest.json").write_text(json.dumps({"candidates": candidates, "counts": counts}))
