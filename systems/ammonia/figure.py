"""Draw what a campaign of attacks finds: the inversion path by round, the frames labelled, the barrier by labels.

    python systems/ammonia/figure.py RUN_DIR [RUN_DIR ...] [-o figure.png]

The first run is drawn in full, of all of them the barrier. Needs tblite (`pip install 'uqbias[xtb]'`).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from evaluate import (
    evaluate,
    height,
    hydrogen_angle,
    inversion_barrier,
    inversion_path,
    make_ammonia_oracle,
    model_surface,
    models_of,
    oracle_surface,
)
from matplotlib.figure import Figure

from uqbias.errors import UqbiasError
from uqbias.model.model import UncertaintyModel
from uqbias.molecule.frames import read_frames
from uqbias.report.style import BLACK, FAINT, GREY, grid, panels, styled
from uqbias.units import ANGSTROM, KCAL

#: Heights of N over the plane of the H, nm, and the energies that are drawn, kcal/mol.
HEIGHTS = np.linspace(-0.055, 0.055, 45)
LIMITS = (-0.5, 9.0)
#: An error of the barrier, kcal/mol, that counts as right.
RIGHT = 0.3


@styled
def draw(runs: list[Path]) -> Figure:
    """The figure of these run directories."""
    from matplotlib import colormaps

    oracle = oracle_surface()
    path = inversion_path(oracle, HEIGHTS)
    exact = oracle(path)[0]
    barrier = inversion_barrier(make_ammonia_oracle()).kcal
    models = models_of(runs[0])
    frames = read_frames(runs[0] / "dataset.xyz")
    frames = frames[np.array([entry["verdict"] == "accepted" for entry in frames.info])]
    round_of = np.array([entry["round"] for entry in frames.info])
    colours = {index: colormaps["viridis"](0.9 * index / max(models)) for index in models}
    figure, ((left, middle, right),) = panels(1, 3, 3.6)

    rise = HEIGHTS / ANGSTROM
    shown = height(frames.positions[round_of == 0]) / ANGSTROM
    left.axvspan(shown.min(), shown.max(), color=FAINT, lw=0)
    for index, file in models.items():
        energies = model_surface(UncertaintyModel.load(file))(path)[0]
        left.plot(rise, (energies - exact.min()) / KCAL, color=colours[index], label=f"round {index}")
    left.plot(rise, (exact - exact.min()) / KCAL, color=BLACK, ls="--", label="GFN2-xTB")
    left.set(xlabel="N above the plane of the H, Å", ylabel="energy, kcal/mol", ylim=LIMITS, title="Inversion path")
    left.text(shown.mean(), LIMITS[1] - 0.5, "start\nframes", ha="center", va="top", fontsize=8, color=GREY)

    angle, energy = hydrogen_angle(frames.positions), (frames.labels()[0] - exact.min()) / KCAL
    for index in models:
        at = round_of == index
        middle.scatter(angle[at], energy[at], s=14, color=colours[index])
    middle.axvline(120, color=GREY, lw=0.8, ls=":")
    middle.set(xlabel="mean H-N-H angle, degrees", ylabel="oracle energy, kcal/mol", title="Labelled frames by round")

    rows = [evaluate(run)["rounds"] for run in runs]
    right.axhspan(-RIGHT, RIGHT, color=FAINT, lw=0)
    for run in rows:
        right.plot(*_errors(run, barrier), color=GREY, lw=1, marker="o", ms=3)
    for row in rows[0]:
        right.plot(row["added_labels"], row["kcal"] - barrier, "o", ms=6, color=colours[row["round"]], zorder=3)
    right.set(xlabel="labels added", ylabel="error of the barrier, kcal/mol", title=f"Barrier, {len(runs)} seeds")
    right.set_ylim(-2.2, 0.6)
    for axes in (left, middle, right):
        grid(axes)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles))
    return figure


def _errors(rounds: list[dict[str, Any]], barrier: float) -> tuple[list[int], list[float]]:
    return [row["added_labels"] for row in rounds], [row["kcal"] - barrier for row in rounds]


def main() -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(description="Draw ammonia campaigns")
    parser.add_argument("runs", type=Path, nargs="+", help="directories of campaigns that differ by their seed")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_name("figure.png"))
    given = parser.parse_args()
    draw(given.runs).savefig(given.output, dpi=110)


if __name__ == "__main__":
    try:
        main()
    except UqbiasError as error:
        raise SystemExit(f"error: {error}") from None
