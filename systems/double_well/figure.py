"""Draw figure.png from campaigns with attacks and with random distortions, some seeds of each.

    python tests/benchmarks/samplers.py --systems double_well_1d double_well_2d --arms attack random
    python systems/double_well/figure.py runs/benchmark_samplers [-o systems/double_well/figure.png]

Upper row, one dimension: true energy, committee mean and spread, and labelled frames of attacks (first seed),
generation by generation. Middle row, two dimensions: frames chosen by attacks and by random distortions on the true
surface, and the error of both final models. Lower row: RMSE against generation and energy of the chosen frames, all
seeds.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from evaluate import REGION, errors, evaluate, region, true_energy
from numpy.typing import NDArray

from uqbias.errors import UqbiasError
from uqbias.model.model import UncertaintyModel
from uqbias.molecule.frames import read_frames
from uqbias.potentials.prediction import predict
from uqbias.report.style import BLACK, BLUE, GREY, ORANGE, WIDTH, styled

Array = NDArray[np.float64]
FOLDER = Path(__file__).resolve().parent
COLOURS = {"attack": BLUE, "random": ORANGE}
#: kJ/mol: the map in two dimensions, and the error on it, end here.
CEILING, WORST = 12.0, 1.0


def seeds(runs: Path, dimensions: int, sampler: str) -> list[Path]:
    """Directories of the campaigns with one sampler, by seed.

    Raises
    ------
    UqbiasError
        If there is none.
    """
    found = sorted((runs / f"double_well_{dimensions}d").glob(f"{sampler}_*/"), key=lambda path: path.name)
    if not found:
        raise UqbiasError(
            f"no double_well_{dimensions}d/{sampler}_* in {runs}", "run tests/benchmarks/samplers.py first"
        )
    return found


def labelled(run: Path) -> tuple[Array, NDArray[np.int64]]:
    """Places [n, 3] nm and rounds [n] of the labelled frames of a run."""
    frames = read_frames(run / "dataset.xyz")
    return frames.positions[:, 0], np.array([entry["round"] for entry in frames.info])


def committee(model: UncertaintyModel, x: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of the members' energies at ``x`` [n, 1, 3] nm, kJ/mol."""
    members = predict(model.potential, torch.from_numpy(x), 512, forces="none").energy.double().numpy()
    return members.mean(0) + float(model.potential.energy_shift), members.std(0, ddof=1)


def draw_generation(ax: Any, run: Path, index: int) -> None:
    """The well in one dimension, what the committee of one round makes of it, and the frames it was made from."""
    x = region(1)
    mean, spread = committee(UncertaintyModel.load(run / f"round_{index:02d}" / "model.uqb"), x)
    places, rounds = labelled(run)
    at = x[:, 0, 0]
    ax.fill_between(at, mean - spread, mean + spread, color=BLUE, alpha=0.25, lw=0, label="± spread")
    ax.plot(at, mean, color=BLUE, label="committee mean")
    ax.plot(at, true_energy(x, 1), color=BLACK, lw=1.0, ls="--", label="true")
    for chosen, colour, label in (
        (rounds == 0, GREY, "start frames"),
        ((rounds > 0) & (rounds <= index), ORANGE, "chosen by attacks"),
    ):
        if chosen.any():
            where = places[chosen]
            ax.scatter(where[:, 0], true_energy(where[:, None], 1), s=9, color=colour, zorder=3, label=label)
    ax.set(xlim=(-REGION[1], REGION[1]), ylim=(-9, 14), title=f"generation {index + 1}", xlabel="x (nm)")


def draw_chosen(ax: Any, run: Path, title: str) -> None:
    """Labelled frames on the true surface in two dimensions, the chosen ones coloured by round."""
    half, n = 1.6, 81
    axis = np.linspace(-half, half, n)
    x = np.zeros((n * n, 1, 3))
    x[:, 0, :2] = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    surface = np.minimum(true_energy(x, 2).reshape(n, n), CEILING)
    ax.contour(axis, axis, surface, levels=np.arange(-4, CEILING, 2), colors=GREY, linewidths=0.5)
    places, rounds = labelled(run)
    ax.scatter(*places[rounds == 0, :2].T, s=4, color=GREY, lw=0)
    shown = ax.scatter(*places[rounds > 0, :2].T, s=8, c=rounds[rounds > 0], cmap="viridis", lw=0)
    ax.set(xlim=(-half, half), ylim=(-half, half), aspect="equal", title=title, xlabel="x (nm)", ylabel="y (nm)")
    ax.figure.colorbar(shown, ax=ax, label="round", orientation="horizontal")


def draw_error(ax: Any, run: Path, title: str) -> None:
    """Absolute error of the last model of a run over the region in two dimensions."""
    last = sorted(run.glob("round_*/model.uqb"))[-1]
    error, _ = errors(UncertaintyModel.load(last), 2)
    n, half = round(len(error) ** 0.5), REGION[2]
    norm = mpl.colors.LogNorm(1e-3, WORST)
    values = np.clip(np.abs(error).reshape(n, n), 1e-3, None)
    shown = ax.imshow(values, origin="lower", extent=(-half, half, -half, half), norm=norm, cmap="magma")
    ax.set(title=title, xlabel="x (nm)", ylabel="y (nm)")
    ax.figure.colorbar(shown, ax=ax, label="|error| (kJ/mol)", orientation="horizontal")


def draw_curves(ax: Any, found: dict[str, Any], key: str) -> None:
    """A score against the generation: every seed, and the median."""
    for name, runs in found.items():
        rows = [[entry[key] for entry in run] for run in runs]
        length = min(len(row) for row in rows)
        values = np.array([row[:length] for row in rows], dtype=float)
        generation = np.arange(1, length + 1)
        first = 1 if key == "chosen_energy" else 0
        ax.plot(generation[first:], values[:, first:].T, color=COLOURS[name], lw=0.6, alpha=0.5)
        middle = np.nanmedian(values, axis=0)
        ax.plot(generation[first:], middle[first:], "o-", ms=4, color=COLOURS[name], label=name)
    ax.set_xlabel("generation")
    ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))


@styled
def draw(runs: Path) -> Any:
    """The whole figure."""
    figure = plt.figure(figsize=(WIDTH, 9.0), layout="constrained")
    rows = figure.subfigures(3, 1, height_ratios=[1, 1.2, 1])
    one, two = seeds(runs, 1, "attack")[0], [seeds(runs, 2, sampler)[0] for sampler in COLOURS]
    last = int(sorted(one.glob("round_*/model.uqb"))[-1].parent.name.removeprefix("round_"))
    shown = sorted({round(index) for index in np.linspace(0, last, 4)})
    axes = rows[0].subplots(1, len(shown), sharey=True)
    for ax, index in zip(axes, shown, strict=True):
        draw_generation(ax, one, index)
    axes[0].set_ylabel("E (kJ/mol)")
    axes[-1].legend(loc="upper center", fontsize=7)
    axes = rows[1].subplots(1, 4)
    for at, (run, name) in enumerate(zip(two, ("attack", "random"), strict=True)):
        draw_chosen(axes[at], run, f"frames: {name}")
        draw_error(axes[2 + at], run, f"error: {name}")
    axes = rows[2].subplots(1, 4)
    for dimensions in (1, 2):
        found = {
            sampler: [[asdict(entry) for entry in evaluate(run)] for run in seeds(runs, dimensions, sampler)]
            for sampler in COLOURS
        }
        curve, energy = axes[2 * dimensions - 2], axes[2 * dimensions - 1]
        draw_curves(curve, found, "rmse")
        curve.set(yscale="log", ylabel="RMSE (kJ/mol)", title=f"{dimensions}D, {len(found['attack'])} seeds")
        draw_curves(energy, found, "chosen_energy")
        energy.set(ylabel="mean E of the chosen (kJ/mol)", title=f"{dimensions}D")
    axes[0].legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description="figure of the double wells")
    parser.add_argument("runs", type=Path, help="output directory of the benchmark")
    parser.add_argument("-o", "--output", type=Path, default=FOLDER / "figure.png")
    options = parser.parse_args()
    try:
        draw(options.runs).savefig(options.output, dpi=110)
    except UqbiasError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
