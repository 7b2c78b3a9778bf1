"""Zeolites with guests: how many runs from unseen host-guest pairs stay physical, by sampler, at equal labels.

The experiment of Schwalbe-Koda, Tan and Gómez-Bombarelli, Nat. Commun. 12, 5104 (2021), in small. Every arm is
`systems/zeolite/campaign.yaml` with another sampler; the start frames are the same. The models of round 0 and of the
last round each run every pair of `systems/zeolite/unseen` at constant energy: velocities of 2000 K on the relaxed
structure, which become 1000 K, 0.5 fs, 2 ps. A run has failed once a bond of the guest is shorter than 0.6 or longer
than 1.5 times what it was, a silicon has fewer than 3 or more than 5 oxygens within 2.3 Å, two atoms are nearer than
0.65 of the smallest distance of their elements, or energy or forces are not finite; looked for every 25 steps.

Prints the shares of all seeds with Wilson's intervals of 95 %. Finished campaigns and runs are not run again.

    python tests/benchmarks/zeolite.py [--arms ...] [--seeds 3] [--runs 5] [--finished] [-o runs/benchmark_zeolite]
        [--figure PATH]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import samplers
import torch
import yaml
from sampler_arms import ROOT, Arm

from uqbias.compile.fused import FusedEvaluator
from uqbias.files import write_text
from uqbias.md.guards import Guard, LostWalkerError
from uqbias.md.walkers import Walkers
from uqbias.model.model import UncertaintyModel
from uqbias.molecule.frames import read_frames
from uqbias.molecule.limits import CoordinationLimits
from uqbias.molecule.structure import from_distances

UNSEEN = ROOT / "systems" / "zeolite" / "unseen"
START = 40
STEPS, PACE, TIMESTEP, KELVIN = 4000, 25, 0.5, 2000.0
TETRAHEDRA = [CoordinationLimits(centre="Si", neighbour="O", within=0.23, least=3, most=5)]
#: What differs from the campaign file, in which uncertainty pulls at MD at 1000 K.
ARMS: dict[str, Arm] = {
    "uncertainty": {},
    "attack": {
        "sampler": "attack",
        "attack": {"count": 20, "iterations": 40, "batch": 20, "runner": "torchscript"},
        "md.start_from": "labelled",
    },
    "random": {"sampler": "random", "random": {"count": 40}, "md.start_from": "labelled"},
    "MD": {"sampler": "md"},
}


def survivors(file: Path, seed: int, runs: int) -> dict[str, int]:
    """Of ``runs`` runs from each unseen pair, those that stay physical to the end."""
    model, counts = UncertaintyModel.load(file), {}
    for path in sorted(UNSEEN.glob("*.xyz")):
        frames = read_frames(path, labelled=False, periodic=True)
        assert frames.cells is not None
        topology = from_distances(frames.numbers.tolist(), frames.positions[0], frames.cells[0])
        evaluator = FusedEvaluator(
            model.with_topology(topology), None, runs, box=frames.cells[0], energy_only=True, runner="torchscript"
        )
        guard = Guard(
            topology, frames.positions[0], bond_range=(0.6, 1.5), labelled=frames, coordination=TETRAHEDRA, clash=None
        )
        walkers = Walkers(
            topology,
            evaluator,
            frames.positions,
            temperature=KELVIN,
            timestep_fs=TIMESTEP,
            friction_per_ps=None,
            engine="torch",
            guard=guard,
            box=frames.cells,
            seed=seed,
        )
        try:
            for _ in range(STEPS // PACE):
                walkers.run(PACE, pace=PACE)
                if len({event.walker for event in walkers.events}) == runs:
                    break
        except LostWalkerError:
            pass
        counts[path.stem] = runs - len({event.walker for event in walkers.events})
    return counts


def wilson(good: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """Interval of a share, Wilson, J. Am. Stat. Assoc. 22, 209 (1927)."""
    share = good / of
    middle, width = share + z**2 / (2 * of), z * math.sqrt(share * (1 - share) / of + z**2 / (4 * of**2))
    return (middle - width) / (1 + z**2 / of), (middle + width) / (1 + z**2 / of)


def settings(arm: str, seed: int) -> dict[str, Any]:
    """The shipped campaign with the changes of an arm."""
    file = ROOT / "systems" / "zeolite" / "campaign.yaml"
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    for key, value in {"seed": seed, "systems": str(file.parent / "start"), **ARMS[arm]}.items():
        *path, last = key.split(".")
        place = content
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return content


def campaign(directory: Path, arm: str, seed: int) -> None:
    """Run a campaign in a process of its own, or go on with it."""
    if (directory / "done").is_file():
        return
    directory.mkdir(parents=True, exist_ok=True)
    file = directory.parent / f"{directory.name}.yaml"
    write_text(file, yaml.safe_dump(settings(arm, seed)))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", samplers.RUN, str(file), str(directory)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, samplers.EARLY):
        raise RuntimeError(f"{directory}: {done.stderr[-2000:]}")
    write_text(directory / "done", str(done.returncode))


def stable(directory: Path, which: int, seed: int, runs: int) -> dict[str, int]:
    """`survivors` of the first or last model of a campaign (0, -1), kept in its folder."""
    file = sorted(directory.glob("round_*/model.uqb"))[which]
    kept = file.with_name(f"stable_{runs}.json")
    if not kept.is_file():
        write_text(kept, json.dumps(survivors(file, seed, runs)))
    counts: dict[str, int] = json.loads(kept.read_text(encoding="utf-8"))
    return counts


def labels(directory: Path) -> int:
    """Labels of a campaign, the start frames among them."""
    return sum(len(read_frames(file, periodic=True)) for file in directory.glob("*/dataset.xyz"))


def table(results: dict[str, list[dict[str, int]]], sizes: dict[str, list[int]], runs: int) -> list[str]:
    """One line of Markdown an arm."""
    pairs = sorted(path.stem for path in UNSEEN.glob("*.xyz"))
    lines = ["| labels by | labels | stable runs | share, % | 95 % | " + " | ".join(pairs) + " |"]
    lines.append("|" + "---|" * (5 + len(pairs)))
    for arm, counts in results.items():
        each = [sum(one[pair] for one in counts) for pair in pairs]
        good, of = sum(each), runs * len(counts) * len(pairs)
        low, high = wilson(good, of)
        lines.append(
            f"| {arm} | {np.mean(sizes[arm]):.0f} | {good} of {of} | {100 * good / of:.0f} | {100 * low:.0f} to "
            f"{100 * high:.0f} | " + " | ".join(f"{n} of {runs * len(counts)}" for n in each) + " |"
        )
    return lines


def draw(results: dict[str, list[dict[str, int]]], runs: int, path: Path) -> None:
    """Shares and their intervals."""
    import matplotlib.pyplot as plt

    from uqbias.report.style import CYCLE

    figure, ax = plt.subplots(figsize=(5.6, 3.2), layout="constrained")
    for at, counts in enumerate(results.values()):
        good, of = sum(sum(one.values()) for one in counts), runs * sum(map(len, counts))
        low, high = wilson(good, of)
        share = good / of
        ax.bar(at, 100 * share, 0.6, color=CYCLE[at % len(CYCLE)])
        bars = [[100 * max(share - low, 0.0)], [100 * max(high - share, 0.0)]]
        ax.errorbar(at, 100 * share, bars, color="black", capsize=4)
    ax.set(xticks=range(len(results)), xticklabels=results, ylim=(0, 105), ylabel="stable runs of unseen pairs, %")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--runs", type=int, default=5, help="of each pair and seed")
    parser.add_argument("--finished", action="store_true", help="run nothing: the table of what has finished")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "runs" / "benchmark_zeolite")
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, list[dict[str, int]]] = {}
    sizes: dict[str, list[int]] = {}
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for arm in arguments.arms:
            directory = arguments.output / f"{arm}_{seed}"
            if arguments.finished and not list(directory.glob(f"round_*/stable_{arguments.runs}.json")):
                continue
            campaign(directory, arm, seed)
            rounds = {arm: -1} if arm != arguments.arms[0] else {"start": 0, arm: -1}
            for name, which in rounds.items():
                results.setdefault(name, []).append(stable(directory, which, seed, arguments.runs))
                sizes.setdefault(name, []).append(labels(directory) if which else START)
                print(f"{name} {seed}: {results[name][-1]}", flush=True)
    print("\n".join(table(results, sizes, arguments.runs)))
    if arguments.figure:
        draw(results, arguments.runs, arguments.figure)


if __name__ == "__main__":
    main()
