"""Errors of the embedded potential on the ten molecules of revised MD17, beside published ones.

Official split 1: 950 of its 1000 training frames train and 50 choose among the weights (40 and 10 of the first 50 where
50 frames are all there are); the 1000 test frames test. Published values are those that Batatia et al., NeurIPS 2022
(arXiv:2206.07697), table 2, give for 1000 and 50 frames; FCHL and GAP were rerun by Kovács et al., J. Chem. Theory
Comput. 17, 7696 (2021). Finished rows in the output file are not run again.

    python tests/benchmarks/rmd17.py [--molecules NAME ...] [--frames 1000 50] [--steps 8000] [-o runs/rmd17.json]
    python tests/benchmarks/uq_kinds.py --parts rmd17 --seeds 1 -o runs/uq_rmd17      # what uncertainties know
    python tests/benchmarks/rmd17.py --uncertainties runs/uq_rmd17 --figure FILE      # the table of these
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from uq_sets import DATA, RMD17, rmd17_frames

from uqbias.files import write_text
from uqbias.model.training import force_and_energy_mae, train
from uqbias.potentials.power_spectrum import PowerSpectrum
from uqbias.settings.training_sections import TrainingOptions

#: Force MAE in meV/Å: GAP, ANI, FCHL, ACE, MACE with 1000 frames; ACE, NequIP, MACE with 50.
PUBLISHED = {
    "aspirin": ((44.9, 40.6, 20.9, 17.9, 6.6), (63.8, 52.0, 43.9)),
    "azobenzene": ((24.5, 35.4, 10.8, 10.9, 3.0), (28.8, 20.0, 17.7)),
    "benzene": ((6.0, 10.0, 2.6, 0.5, 0.3), (2.7, 2.9, 2.7)),
    "ethanol": ((18.1, 13.4, 6.2, 7.3, 2.1), (43.0, 40.2, 32.6)),
    "malonaldehyde": ((26.4, 24.5, 10.3, 11.1, 4.1), (63.5, 52.5, 43.3)),
    "naphthalene": ((16.5, 29.2, 6.5, 5.1, 1.6), (19.7, 10.0, 9.2)),
    "paracetamol": ((28.9, 30.4, 12.3, 12.7, 4.8), (45.7, 39.7, 31.5)),
    "salicylic": ((24.7, 29.7, 9.5, 9.3, 3.1), (41.7, 35.0, 28.4)),
    "toluene": ((17.8, 24.3, 8.8, 6.5, 1.5), (27.1, 15.1, 12.1)),
    "uracil": ((17.6, 21.4, 4.2, 6.6, 2.1), (36.2, 40.1, 25.9)),
}
METHODS = {1000: ("GAP", "ANI", "FCHL", "ACE", "MACE"), 50: ("ACE", "NequIP", "MACE")}
#: Held out of the training frames, to choose among the weights.
VALIDATION = {1000: 50, 50: 10}
#: Scores of an uncertainty, as `uq_kinds.py` names them: heading, number of digits, whether more is better.
SCORES = {
    "spearman": ("Spearman ρ", 2, True),
    "auroc": ("AUROC", 2, True),
    "miscalibration": ("miscalibration area", 3, False),
    "nll": ("calibrated NLL", 2, False),
}


def errors(molecule: str, n_frames: int, steps: int) -> dict[str, float]:
    """Force MAE in meV/Å, energy MAE in meV and seconds of the embedded potential with its defaults."""
    frames = rmd17_frames(molecule, "train")[:n_frames]
    n_training = n_frames - VALIDATION[n_frames]
    potential = PowerSpectrum(frames.numbers, seed=0)
    options = TrainingOptions(steps=steps, learning_rate=0.01, patience=steps)
    result = train(potential, frames[:n_training], frames[n_training:], options, seed=0)
    force, energy = force_and_energy_mae(potential, rmd17_frames(molecule, "test"))
    return {"force": force, "energy": energy * len(frames.numbers), "seconds": result.seconds}


def print_errors(rows: dict[str, dict[str, float]], n_frames: int) -> None:
    methods = METHODS[n_frames]
    print(f"\n| {n_frames} frames | embedded, E (meV) | embedded, F (meV/Å) | {' | '.join(methods)} |")
    print("|---" * (len(methods) + 3) + "|")
    for molecule in RMD17:
        if (row := rows.get(f"{molecule} {n_frames}")) is not None:
            published = PUBLISHED[molecule][n_frames == 50]
            print(
                f"| {molecule} | {row['energy']:.1f} | {row['force']:.1f} | {' | '.join(str(x) for x in published)} |"
            )


def uncertainties(folder: Path, figure: Path | None) -> None:
    """Print medians over the molecules for each kind, and draw the molecules."""
    found = {name: json.loads((folder / f"{name}.json").read_text())["scores"] for name in RMD17}
    kinds = list(found[RMD17[0]])
    values = {
        (kind, score): [statistics.median(seed[score] for seed in found[name][kind]) for name in RMD17]
        for kind in kinds
        for score in SCORES
    }
    print("\n| kind | " + " | ".join(heading for heading, _, _ in SCORES.values()) + " |")
    print("|---" * (len(SCORES) + 1) + "|")
    for kind in kinds:
        cells = []
        for score, (_, digits, _) in SCORES.items():
            here = sorted(values[kind, score])
            cells.append(f"{statistics.median(here):.{digits}f} ({here[0]:.{digits}f}, {here[-1]:.{digits}f})")
        print(f"| {kind} | " + " | ".join(cells) + " |")
    if figure is not None:
        draw(values, kinds, figure)


def draw(values: dict[tuple[str, str], list[float]], kinds: list[str], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(SCORES), figsize=(11, 0.32 * len(kinds) + 1.5), sharey=True)
    colours = plt.get_cmap("tab10").colors
    for axis, (score, (heading, _, better)) in zip(axes, SCORES.items(), strict=True):
        for row, kind in enumerate(kinds):
            here = values[kind, score]
            axis.scatter(here, [row] * len(here), s=16, c=colours[: len(here)], linewidths=0)
            axis.plot([statistics.median(here)] * 2, [row - 0.35, row + 0.35], color="0.2", linewidth=1.5)
        axis.set_xlabel(f"{heading}\n({'more' if better else 'less'} is better)", fontsize=9)
        axis.grid(axis="x", linewidth=0.4, color="0.85")
        axis.tick_params(labelsize=8)
    axes[0].set_yticks(range(len(kinds)), kinds)
    axes[0].invert_yaxis()
    handles = [
        plt.Line2D([], [], linestyle="", marker="o", markersize=4, color=colour, label=name)
        for name, colour in zip(RMD17, colours, strict=False)
    ]
    figure.legend(handles=handles, fontsize=8, frameon=False, loc="center right")
    figure.tight_layout(rect=(0, 0, 0.87, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--molecules", nargs="+", choices=RMD17, default=RMD17)
    parser.add_argument("--frames", nargs="+", type=int, choices=METHODS, default=list(METHODS))
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/rmd17.json"))
    parser.add_argument("--uncertainties", type=Path, help="folder of uq_kinds.py")
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    if options.uncertainties is not None:
        uncertainties(options.uncertainties, options.figure)
        return
    if not DATA.is_dir():
        raise SystemExit(f"no reference data in {DATA}")
    torch.set_num_threads(1)
    rows = json.loads(options.output.read_text()) if options.output.is_file() else {}
    for n_frames in options.frames:
        for molecule in options.molecules:
            name = f"{molecule} {n_frames}"
            if name not in rows:
                rows[name] = errors(molecule, n_frames, options.steps)
                options.output.parent.mkdir(parents=True, exist_ok=True)
                write_text(options.output, json.dumps(rows, indent=1) + "\n")
                print(name, {key: round(value, 2) for key, value in rows[name].items()}, flush=True)
        print_errors(rows, n_frames)


if __name__ == "__main__":
    main()
