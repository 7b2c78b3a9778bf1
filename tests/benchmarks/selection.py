"""Selections of a harvest at equal labels, offline: what a model learns from the frames that each takes.

From a finished run: the candidates of its last rounds are labelled, each selection takes as many of them, by the model
of an early round, a potential is trained from scratch on the labels of that round and these, and judged on the test set
of the campaign.

    python tests/benchmarks/selection.py RUN [--round 1] [--labels 100] [--seeds 3] [--steps 2500]
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
import torch

from uqbias.campaign.ledger import Record
from uqbias.campaign.phases import observed
from uqbias.campaign.progress import SilentProgress
from uqbias.campaign.selection import Candidates, select
from uqbias.campaign.work import Work, read_molecule, read_test_set
from uqbias.model.fit import make_potential
from uqbias.model.inference import conformers, evaluate_frames, selection_features
from uqbias.model.model import UncertaintyModel
from uqbias.model.training import force_and_energy_mae, train
from uqbias.molecule.frames import Frames
from uqbias.registry import ORACLES
from uqbias.runs.ledger_lines import read_ledger
from uqbias.settings.file import load_campaign
from uqbias.settings.harvest_sections import SelectionOptions

ARMS = {
    "random": {"kind": "random"},
    "farthest_point": {},
    "farthest_point, thermal share 0.3": {"thermal_share": 0.3},
    "farthest_point, judge": {"judge_power": 1.0},
    "farthest_point, latents": {"space": "latents"},
    "largest_cluster": {"kind": "largest_cluster"},
    "largest_cluster, judge": {"kind": "largest_cluster", "judge_power": 1.0},
    "largest_cluster, latents": {"kind": "largest_cluster", "space": "latents"},
    "highest_uncertainty": {"kind": "highest_uncertainty"},
    "cluster": {"kind": "cluster"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--round", type=int, default=1, help="the model of this round selects")
    parser.add_argument("--labels", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2500)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    file = load_campaign(arguments.run / "campaign.yaml")
    topology, start = read_molecule(file)
    record = Record(start.numbers, read_ledger(arguments.run, len(topology)).events)
    work = Work(file, arguments.run, record, topology, start, SilentProgress())
    test, known = read_test_set(file, topology), work.accepted(arguments.round)
    model = UncertaintyModel.load(work.model_path(arguments.round))
    positions = candidates(work, arguments.round)
    oracle = ORACLES.rebuild(work.oracle.kind, work.oracle.options)
    labels = [oracle.label(x) for x in positions]
    pool = Frames(known.numbers, positions, *map(np.array, zip(*((y.energy, y.forces) for y in labels), strict=True)))
    print(f"{len(pool)} candidates, {len(known)} frames labelled before, {len(test)} test frames", flush=True)
    for name, options in ARMS.items():
        settings = SelectionOptions(**options)
        scores = []
        for seed in range(arguments.seeds):
            picks = chosen(work, model, known.positions, positions, arguments.labels, settings, seed)
            taken = Frames.concatenate([Frames(known.numbers, known.positions, *known.labels()), pool[picks]])
            scores.append(learned(work, taken, test, arguments.steps, seed))
        force, energy = (statistics.median(column) for column in zip(*scores, strict=True))
        each = ", ".join(f"{score[0]:.1f}" for score in scores)
        print(f"{name:34s} force MAE {force:.1f} meV/Å ({each}), energy MAE {energy:.2f} meV/atom", flush=True)


def candidates(work, after):
    """Positions of the frames that passed the physical filters after a round."""
    parts = []
    for path in sorted(work.directory.glob("round_*/harvest.json")):
        index = int(path.parent.name.removeprefix("round_"))
        if index > after:
            reasons = [entry["reason"] for entry in json.loads(path.read_text())["candidates"]]
            passed = [not reason.startswith("refused") or "same as" in reason for reason in reasons]
            parts.append(observed(work, index)["positions"][passed])
    return np.concatenate(parts)


def chosen(work, model, known, positions, budget, settings, seed):
    spaces = (selection_features(model, x, settings.space) for x in (positions, known))
    said, (features, known_features) = evaluate_frames(model, positions), spaces
    frames = Candidates(
        said.driver,
        said.judge,
        said.energy,
        features,
        [""] * len(positions),
        conformers=conformers(model, positions),
        n_atoms=len(work.topology),
    )
    return select(frames, known_features, budget, settings, seed, known_conformers=conformers(model, known))[0]


def learned(work, frames, test, steps, seed):
    """Force and energy MAE on the test set, meV/Å and meV/atom, of a potential trained on ``frames``."""
    order = np.random.default_rng(seed).permutation(len(frames))
    potential = make_potential(work.campaign, work.topology, seed)
    options = work.campaign.training.model_copy(update={"steps": steps})
    train(potential, frames[order[len(order) // 10 :]], frames[order[: len(order) // 10]], options, seed=seed)
    return force_and_energy_mae(potential, test)


if __name__ == "__main__":
    main()
