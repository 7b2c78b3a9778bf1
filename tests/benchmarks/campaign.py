"""Campaigns with four ways to explore, at equal labels, MD steps and gates, over several seeds.

Arms: ``uncertainty`` (the shipped campaign), ``md_300K`` and ``md_500K`` (no bias), ``phi_psi`` (metadynamics on the
two dihedrals that an expert would choose). All else is the shipped campaign file: start frames, potential, training,
walkers, guards, filters, selection. Everything runs as a user would run it, through ``uqbias.campaign``; finished
campaigns in the output directory are not run again.

    python tests/benchmarks/campaign.py [--seeds 5] [--labels 300] [--arms ...] [--set key=value] [-o runs/benchmark]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
SYSTEM = ROOT / "systems" / "alanine_dipeptide"
ARMS = {
    "uncertainty": {},
    "md_300K": {"sampler": "md"},
    "md_500K": {"sampler": "md", "md.temperature": 500.0},
    "phi_psi": {
        "variables": {
            "phi": {"kind": "dihedral", "atoms": [4, 6, 8, 14]},
            "psi": {"kind": "dihedral", "atoms": [6, 8, 14, 16]},
        },
        "bias": [{"kind": "metadynamics", "variables": ["phi", "psi"], "sigma": 0.35}],
    },
}
COLUMNS = {
    "force_mae_meV_per_A": "force MAE, meV/Å",
    "force_mae_phi_positive_meV_per_A": "force MAE φ>0",
    "energy_mae_meV_per_atom": "energy MAE, meV/atom",
    "energy_mae_phi_positive_meV_per_atom": "energy MAE φ>0",
    "coverage": "coverage",
    "labels_phi_positive": "labels φ>0",
}
RUN = """
import sys
from uqbias.campaign.config import load_campaign
from uqbias.campaign.rounds import run_campaign
run_campaign(load_campaign(sys.argv[1]), sys.argv[2])
"""


def settings(arm: dict, seed: int, labels: int, changes: dict) -> dict:
    """The shipped campaign with this arm's changes; paths made absolute."""
    content = yaml.safe_load((SYSTEM / "campaign.yaml").read_text(encoding="utf-8"))
    for section, keys in (("system", ("structure", "start")), ("score", ("test_set", "surface"))):
        for key in keys:
            content[section][key] = str(SYSTEM / content[section][key])
    per_round = content.get("harvest", {}).get("labels_per_round", 50)
    dotted = {
        "seed": seed,
        "stop.labels": labels,
        "stop.rounds": -(-(labels - 100) // per_round),
        "executor": {"kind": "serial", "workers": 1},
        **changes,
        **arm,
    }
    for key, value in dotted.items():
        place = content
        *path, last = key.split(".")
        for part in path:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        place[last] = value
    return content


def run(directory: Path, content: dict) -> list[dict]:
    """Run one campaign in a process of its own, or read it if it is finished."""
    summary = directory / "summary.json"
    if not (summary.is_file() and json.loads(summary.read_text(encoding="utf-8")).get("stopped")):
        directory.mkdir(parents=True, exist_ok=True)
        file = directory.parent / f"{directory.name}.yaml"
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(file), str(directory)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{directory}: {done.stderr[-2000:]}")
    return json.loads(summary.read_text(encoding="utf-8"))["rounds"]


def quartiles(values: list[float]) -> str:
    """Median and quartiles as text."""
    if len(values) < 2:
        return f"{values[0]:.3g}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.3g} ({low:.3g}, {high:.3g})"


def report(results: dict[str, list[list[dict]]]) -> None:
    """Print medians and quartiles of the last round, and what the goals compare."""
    print(f"\n{'':22s}" + "".join(f"{arm:>24s}" for arm in results))
    for key, title in COLUMNS.items():
        print(f"{title:22s}" + "".join(f"{quartiles([r[-1][key] for r in runs]):>24s}" for runs in results.values()))
    counts = [f"{sum('C7ax' in r[-1]['basins'] for r in runs)} of {len(runs)}" for runs in results.values()]
    print(f"{'seeds with C7ax':22s}" + "".join(f"{count:>24s}" for count in counts))
    rejected = [quartiles([sum(e["rejected"] for e in r[1:]) for r in runs]) for runs in results.values()]
    print(f"{'labels rejected':22s}" + "".join(f"{count:>24s}" for count in rejected))
    wall = [quartiles([sum(entry["wall_s"] for entry in r) for r in runs]) for runs in results.values()]
    print(f"{'wall time, s':22s}" + "".join(f"{value:>24s}" for value in wall))
    ours = results.get("uncertainty")
    for other in [arm for arm in results if ours and arm != "uncertainty"]:
        ratios = []
        for key, title in list(COLUMNS.items())[:5]:
            medians = [statistics.median(r[-1][key] for r in results[arm]) for arm in ("uncertainty", other)]
            ratios.append(f"{title} {medians[0] / medians[1]:.2f}")
        print(f"uncertainty / {other}: " + ", ".join(ratios))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--labels", type=int, default=300, help="labels in all, the 100 start frames included")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes of the campaign file")
    parser.add_argument("--jobs", type=int, default=2, help="campaigns at the same time")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "runs" / "benchmark_campaign")
    parser.add_argument("--json", type=Path, help="write all rounds of all runs")
    arguments = parser.parse_args()
    changes = {key: yaml.safe_load(value) for key, _, value in (entry.partition("=") for entry in arguments.set)}
    jobs = {}
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            for arm in arguments.arms:
                content = settings(ARMS[arm], seed, arguments.labels, changes)
                jobs[pool.submit(run, arguments.output / f"{arm}_{seed}", content)] = (arm, seed)
        results: dict[str, dict[int, list[dict]]] = {arm: {} for arm in arguments.arms}
        for future in concurrent.futures.as_completed(jobs):
            arm, seed = jobs[future]
            results[arm][seed] = future.result()
            last = results[arm][seed][-1]
            print(f"{arm:12s} seed {seed}: " + ", ".join(f"{key} {last[key]:.3g}" for key in COLUMNS), flush=True)
    report({arm: [runs[seed] for seed in sorted(runs)] for arm, runs in results.items()})
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
