"""Samplers compared at equal labels: random distortions, MD, adversarial attacks, metadynamics on the uncertainty.

Every arm of a system is the shipped campaign with another sampler (see `sampler_arms.py`), over several seeds: the same
start frames, potential, training, filters, selection, labels a round and oracle calls. Each campaign runs as a user
would run it, in a process of its own; finished campaigns in the output directory are not run again.

Prints, for each system, medians and quartiles of the last round, their ratios, and draws every round.

    python tests/benchmarks/samplers.py [--systems ...] [--arms ...] [--seeds 5] [--labels N] [--set key=value]
        [-o runs/benchmark_samplers] [--json PATH] [--figures tests/benchmarks]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import yaml
from sampler_arms import ROOT, SYSTEMS, System, summary_of

from uqbias.files import write_text
from uqbias.settings.file import load_campaign

RUN = """
import sys
from uqbias.settings.file import load_campaign
from uqbias.campaign.rounds import run_campaign
from uqbias.md.guards import LostWalkerError
try:
    run_campaign(load_campaign(sys.argv[1]), sys.argv[2])
except LostWalkerError as error:
    print(error, file=sys.stderr)
    sys.exit(3)
"""
#: Exit code of a campaign whose sampler leads to where the model cannot go on.
EARLY = 3
#: Rounds of one campaign, campaigns by seed, seeds by arm.
Results = dict[str, dict[int, list[dict[str, float]]]]


def _shipped(name: str, _: Path) -> System:
    return SYSTEMS[name]


def settings(system: System, arm: str, seed: int, changes: dict) -> dict:
    """The shipped campaign with the changes of system, arm and command line; paths made absolute."""
    file = ROOT / "systems" / system.file
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    files = {key: str(path) for key, path in load_campaign(file).files().items()}
    dotted = {
        **files,
        "seed": seed,
        "executors": {"label": "local", "explore": "local"},
        **system.changes,
        **system.arms[arm],
    }
    for key, value in (dotted | changes).items():
        place = content
        *path, last = [int(part) if part.isdigit() else part for part in key.split(".")]
        for part in path:
            place = place[part] if isinstance(place, list) else place.setdefault(part, {})
        place[last] = value
    return content


def run(system: System, directory: Path, content: dict) -> list[dict[str, float]]:
    """Run one campaign in a process of its own, or read its scores if it has them.

    A sampler that leads to where the model cannot go on has its last round as its result, and is counted.
    """
    file, scores = directory.parent / f"{directory.name}.yaml", directory / "scores.json"
    text = yaml.safe_dump(content)
    if file.is_file() and file.read_text(encoding="utf-8") != text:
        raise SystemExit(f"error: {file} has other settings; give another directory by -o, or remove this one's runs")
    if not scores.is_file():
        directory.mkdir(parents=True, exist_ok=True)
        write_text(file, text)
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(file), str(directory)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode not in (0, EARLY):
            raise RuntimeError(f"{directory}: {done.stderr[-2000:]}")
        if done.returncode == EARLY:
            print(f"{directory.name} ended early: {done.stderr.strip().splitlines()[-1]}", flush=True)
        rounds = summary_of(directory)
        found = [{**basis, **entry} for basis, entry in zip(rounds, system.score(directory), strict=True)]
        found[-1]["early"] = float(done.returncode == EARLY)
        write_text(scores, json.dumps(found))
    return json.loads(scores.read_text(encoding="utf-8"))


def folder(arm: str) -> str:
    """An arm's name as that of a folder, in ASCII: not every library opens another."""
    return arm.replace("φ/ψ", "phi_psi").replace(" ", "_")


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the values that are finite; a seed without a value is left out."""
    good = [value for value in values if math.isfinite(value)]
    if len(good) < 2:
        return (good[0],) * 3 if good else (math.nan,) * 3
    low, middle, high = statistics.quantiles(good, n=4, method="inclusive")
    return low, middle, high


def written(values: list[float]) -> str:
    """Median and quartiles as text, and how many seeds have no value."""
    low, middle, high = quartiles(values)
    missing = sum(not math.isfinite(value) for value in values)
    text = f"{middle:.3g}" if len(values) == 1 else f"{middle:.3g} ({low:.3g}, {high:.3g})"
    return text + (f" [{missing} without]" if missing else "")


def last(runs: dict[int, list[dict[str, float]]], key: str) -> list[float]:
    """A score after the last round, of each seed."""
    return [math.nan if rounds[-1].get(key) is None else rounds[-1][key] for rounds in runs.values()]


def table(name: str, system: System, results: Results) -> list[str]:
    """Medians and quartiles of the last round as Markdown, an arm a line, and ratios against the reference arm."""
    titles = {**system.columns, "oracle_calls": "oracle calls", "failures": "failed", "rejected_all": "rejected"}
    early = {arm: sum(rounds[-1].get("early", 0) > 0 for rounds in runs.values()) for arm, runs in results.items()}
    lines = [f"{name}: {system.file}, {max(map(len, results.values()))} seeds", ""]
    lines += ["| sampler | " + " | ".join(titles.values()) + " |", "|" + "---|" * (len(titles) + 1)]
    for arm, runs in results.items():
        cells = []
        for key in titles:
            if key == "rejected_all":
                values = [float(sum(entry["rejected"] for entry in rounds)) for rounds in runs.values()]
            else:
                values = last(runs, key)
            cells.append(written(values))
        noted = f"{arm} [{early[arm]} ended early]" if early[arm] else arm
        noted += f" [{len(runs)} seeds]" if len(runs) < max(map(len, results.values())) else ""
        lines.append(f"| {noted} | " + " | ".join(cells) + " |")
    if system.reference in results:
        lines += ["", f"medians, divided by those of '{system.reference}':"]
        for arm, runs in results.items():
            ratios = [
                f"{title} {quartiles(last(runs, key))[1] / quartiles(last(results[system.reference], key))[1]:.2f}"
                for key, title in system.columns.items()
                if quartiles(last(results[system.reference], key))[1]
            ]
            lines.append(f"  {arm:24s} " + ", ".join(ratios))
    return lines


def draw(system: System, results: Results, path: Path) -> None:
    """The system's scores against the number of labels: medians, and quartiles as a band."""
    import matplotlib.pyplot as plt

    from uqbias.report.style import CYCLE

    keys = list(system.columns)[: system.drawn]
    figure, axes = plt.subplots(1, len(keys), figsize=(4.2 * len(keys), 3.6), layout="constrained", squeeze=False)
    for panel, key in zip(axes[0], keys, strict=True):
        for number, (arm, runs) in enumerate(results.items()):
            # A campaign that ended early stays where it was.
            rounds = range(max(len(entries) for entries in runs.values()))
            at = [[entries[min(i, len(entries) - 1)] for entries in runs.values()] for i in rounds]
            labels = [statistics.median(entry["labels"] for entry in entries) for entries in at]
            bands = [quartiles([math.nan if e.get(key) is None else e[key] for e in entries]) for entries in at]
            low, middle, high = zip(*bands, strict=True)
            colour, style = CYCLE[number % len(CYCLE)], "-" if number < len(CYCLE) else "--"
            panel.plot(labels, middle, style, color=colour, marker="o", markersize=3, label=arm)
            panel.fill_between(labels, low, high, color=colour, alpha=0.12, linewidth=0)
        panel.set(xlabel="labels", ylabel=system.columns[key], yscale="log" if key in system.log else "linear")
        if key in system.log:
            low, high = panel.get_ylim()
            panel.yaxis.set_major_formatter("{x:g}")
            # Within a decade hardly any tick is a power of ten.
            panel.yaxis.set_minor_formatter("{x:g}" if high < 10 * low else "")
    axes[0][-1].legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(
    systems: Mapping[str, Callable[[Path], System]],
    description: str | None,
    *,
    output: str,
    figures: str,
    seeds: int = 5,
) -> None:
    """The command line of a benchmark of samplers.

    Parameters
    ----------
    systems : what makes each system, in a folder for data that it may need.
    description : text of the help.
    output : folder of the runs, below ``runs``.
    figures : what the names of the figures begin with.
    seeds : how many seeds by default.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", choices=list(systems), default=list(systems))
    parser.add_argument("--arms", nargs="+", help="of each system that has them; all by default")
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes of every campaign file")
    parser.add_argument("--jobs", type=int, default=2, help="campaigns at the same time")
    parser.add_argument("--finished", action="store_true", help="run nothing: tables and figures of what has finished")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "runs" / output)
    parser.add_argument("--json", type=Path, help="write all rounds of all runs")
    parser.add_argument("--figures", type=Path, help=f"folder for {figures}_SYSTEM.png; default: the output")
    arguments = parser.parse_args()
    changes = {key: yaml.safe_load(value) for key, _, value in (entry.partition("=") for entry in arguments.set)}
    wanted = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    everything: dict[str, Results] = {}
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        for name in arguments.systems:
            system = systems[name](arguments.output / "data" / name)
            arms = [arm for arm in system.arms if not arguments.arms or arm in arguments.arms]
            jobs = {}
            begun = time.perf_counter()
            for seed in wanted:
                for arm in arms:
                    content = settings(system, arm, seed, changes)
                    place = arguments.output / name / f"{folder(arm)}_{seed}"
                    if (place / "scores.json").is_file() or not arguments.finished:
                        jobs[pool.submit(run, system, place, content)] = (arm, seed)
            found: Results = {arm: {} for arm in arms}
            for future in concurrent.futures.as_completed(jobs):
                arm, seed = jobs[future]
                found[arm][seed] = future.result()
                scores = ", ".join(f"{key} {last({0: found[arm][seed]}, key)[0]:.3g}" for key in system.columns)
                print(f"{name} {arm:20s} seed {seed}: {scores}", flush=True)
            results = {arm: {seed: runs[seed] for seed in sorted(runs)} for arm, runs in found.items() if runs}
            if not results:
                continue
            everything[name] = results
            report = [*table(name, system, results), f"({time.perf_counter() - begun:.0f} s)"]
            print("\n" + "\n".join(report) + "\n", flush=True)
            pictures = arguments.figures or arguments.output
            pictures.mkdir(parents=True, exist_ok=True)
            draw(system, results, pictures / f"{figures}_{name}.png")
            if arguments.json:
                write_text(arguments.json, json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    main({name: partial(_shipped, name) for name in SYSTEMS}, __doc__, output="benchmark_samplers", figures="samplers")
