"""Run the double-well campaigns with attacks and with random distortions, some seeds of each, and compare them.

    python systems/double_well/compare.py runs/double_well                 # 1D and 2D, 5 seeds, both samplers
    python systems/double_well/compare.py runs/double_well --dimensions 2 --amplitudes 0.3 0.6 1.2 1.8

Same potential, same start frames, same selection, same labels a round; only the sampler differs. Runs that are there
are continued, or only scored. `figure.py` draws them.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

# One thread a process: the networks are small.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from evaluate import Generation, evaluate

from uqbias.campaign.config import CampaignFile, check_campaign, load_campaign
from uqbias.campaign.rounds import run_campaign

FOLDER = Path(__file__).resolve().parent


def changed(file: CampaignFile, changes: dict[str, Any]) -> CampaignFile:
    """The campaign with other values at dotted keys, such as ``attack.temperature``."""
    settings = file.campaign.model_dump()
    for key, value in changes.items():
        *parents, last = key.split(".")
        section = settings
        for parent in parents:
            section = section[parent]
        section[last] = value
    return CampaignFile(check_campaign(settings), file.folder)


def run(dimensions: int, changes: dict[str, Any], directory: Path) -> list[Generation]:
    """Run one campaign, or continue it, and score it."""
    file = changed(load_campaign(FOLDER / f"campaign_{dimensions}d.yaml"), changes)
    run_campaign(file, directory)
    return evaluate(directory)


def arms(amplitudes: list[float]) -> dict[str, dict[str, Any]]:
    """Name and changes of each sampler that is compared."""
    found: dict[str, dict[str, Any]] = {"attack": {"sampler": "attack"}}
    if not amplitudes:
        found["random"] = {"sampler": "random"}
    for amplitude in amplitudes:
        found[f"random_{amplitude:g}"] = {"sampler": "random", "random.amplitude": amplitude}
    return found


def table(found: dict[str, list[list[Generation]]]) -> str:
    """Medians and quartiles of the last generation, one line a sampler."""
    lines = ["sampler        seeds  labels         RMSE (quartiles), kJ/mol   mean E of all chosen, kJ/mol   ratio"]
    best = np.median([rows[-1].rmse for rows in found["attack"]]) if "attack" in found else np.nan
    for name, seeds in found.items():
        last = np.array([rows[-1].rmse for rows in seeds])
        low, middle, high = np.quantile(last, [0.25, 0.5, 0.75])
        labels = [rows[-1].labels for rows in seeds]
        energies = [mean_chosen(rows) for rows in seeds]
        lines.append(
            f"{name:14s} {len(seeds):5d}  {min(labels):4d}-{max(labels):4d}  {middle:8.4f} ({low:.4f} to {high:.4f})"
            f"  {np.median(energies):20.2f}  {middle / best:14.2f}"
        )
    return "\n".join(lines)


def mean_chosen(rows: list[Generation]) -> float:
    """Mean true energy of all frames that a run has chosen, kJ/mol; the start frames left out."""
    counts = np.diff([row.labels for row in rows])
    energies = np.array([row.chosen_energy for row in rows[1:]])
    return float((counts * energies)[counts > 0].sum() / max(counts.sum(), 1))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="attacks against random distortions on the double wells")
    parser.add_argument("output", type=Path, help="directory of the runs")
    parser.add_argument("--dimensions", type=int, nargs="+", default=[1, 2], choices=[1, 2])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--amplitudes", type=float, nargs="*", default=[], help="half widths of random, nm")
    parser.add_argument("--only", nargs="+", help="names of the samplers to run, such as attack")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=JSON", help="other settings for all of them")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(arguments)
    common = {key: json.loads(value) for key, _, value in (entry.partition("=") for entry in options.set)}
    for dimensions in options.dimensions:
        chosen = {k: v for k, v in arms(options.amplitudes).items() if options.only is None or k in options.only}
        jobs = {
            (name, seed): (dimensions, {**changes, **common, "seed": seed}, f"{dimensions}d/{name}/seed_{seed}")
            for name, changes in chosen.items()
            for seed in range(options.seeds)
        }
        with ProcessPoolExecutor(options.workers) as pool:
            pending = {
                key: pool.submit(run, size, changes, options.output / place)
                for key, (size, changes, place) in jobs.items()
            }
            done = {key: future.result() for key, future in pending.items()}
        found = {name: [done[name, seed] for seed in range(options.seeds)] for name in chosen}
        content = {name: [[asdict(row) for row in rows] for rows in seeds] for name, seeds in found.items()}
        target = options.output / f"comparison_{dimensions}d.json"
        target.write_text(json.dumps(content, indent=1), encoding="utf-8")
        print(f"{dimensions}D\n{table(found)}\n", flush=True)


if __name__ == "__main__":
    main()
