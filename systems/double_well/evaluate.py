"""Score a double-well campaign: error of every round's model on the true surface, and energy of the chosen frames.

    python systems/double_well/evaluate.py RUN_DIR

The error is the root mean square of (committee mean energy - true energy) over an even grid of the published region,
|x| <= 1.65 nm in one dimension and |x|, |y| <= 1.2 nm in two, the start frames' threshold left aside. Nothing here is
seen by sampling, selection or training.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from uqbias.errors import UqbiasError
from uqbias.model.inference import evaluate_frames
from uqbias.model.model import UncertaintyModel
from uqbias.molecule.frames import read_frames
from uqbias.oracles.analytic import DoubleWell

Array = NDArray[np.float64]
#: Half width of the published region in nm, and grid points along an axis, by dimensions.
REGION = {1: 1.65, 2: 1.2}
POINTS = {1: 331, 2: 61}


@dataclass(frozen=True)
class Generation:
    """One round of a run.

    Attributes
    ----------
    round : 0 for the start frames.
    labels : labels paid for, rejected ones included.
    rmse : kJ/mol over the region.
    low_rmse : kJ/mol over its points below the barrier's top.
    chosen_energy : mean true energy of the frames chosen in this round, kJ/mol; of the start frames in round 0.
    """

    round: int
    labels: int
    rmse: float
    low_rmse: float
    chosen_energy: float


def region(dimensions: int) -> Array:
    """Grid [n, 1, 3] nm over the published region, x running fastest."""
    axis = np.linspace(-REGION[dimensions], REGION[dimensions], POINTS[dimensions])
    x = np.zeros((len(axis) ** dimensions, 1, 3))
    x[:, 0, :dimensions] = np.stack(np.meshgrid(*[axis] * dimensions), axis=-1).reshape(-1, dimensions)
    return x


def true_energy(positions: Array, dimensions: int) -> Array:
    """[n] kJ/mol of ``positions`` [n, 1, 3] nm."""
    found: Array = DoubleWell(dimensions)(torch.from_numpy(positions)).energy.numpy()
    return found


def errors(model: UncertaintyModel, dimensions: int) -> tuple[Array, Array]:
    """Error of the committee's mean energy and the true energy on `region`, [n] kJ/mol each."""
    if len(model.numbers) != 1 or dimensions not in REGION:
        raise UqbiasError(
            f"a model of {len(model.numbers)} atoms scored on a double well in {dimensions} dimensions",
            "give a model of one particle, and 1 or 2 dimensions",
        )
    x = region(dimensions)
    truth = true_energy(x, dimensions)
    return evaluate_frames(model, x).energy - truth, truth


def rmse(model: UncertaintyModel, dimensions: int) -> float:
    """Root mean square error of the committee's mean energy over the published region, kJ/mol."""
    error, _ = errors(model, dimensions)
    return float(np.sqrt(np.square(error).mean()))


def low_rmse(model: UncertaintyModel, dimensions: int) -> float:
    """The same over the points of the region that lie below the barrier's top (E < 2 kJ/mol)."""
    error, truth = errors(model, dimensions)
    return float(np.sqrt(np.square(error[truth < 2.0]).mean()))


def dimensions_of(run: Path) -> int:
    """Dimensions of the well that a run was labelled by."""
    import yaml

    settings = yaml.safe_load((run / "campaign.yaml").read_text(encoding="utf-8"))
    if settings["oracle"]["kind"] != "double_well":
        raise UqbiasError(f"{run} has the oracle {settings['oracle']['kind']}", "give a run of a double well")
    return int(settings["oracle"]["dimensions"])


def evaluate(run: str | Path) -> list[Generation]:
    """All rounds of a run that have a model.

    Raises
    ------
    UqbiasError
        If there is no run, or it is of another system.
    """
    run = Path(run)
    if not (run / "dataset.xyz").is_file():
        raise UqbiasError(f"no run of a campaign in {run}", "give the directory that `uqbias run` wrote")
    dimensions = dimensions_of(run)
    frames = read_frames(run / "dataset.xyz")
    rounds = np.array([entry["round"] for entry in frames.info])
    energy = true_energy(frames.positions, dimensions)
    found = []
    for path in sorted(run.glob("round_*/model.uqb")):
        index = int(path.parent.name.removeprefix("round_"))
        model, chosen = UncertaintyModel.load(path), energy[rounds == index]
        mean = float(chosen.mean()) if len(chosen) else float("nan")
        labels = int((rounds <= index).sum())
        found.append(Generation(index, labels, rmse(model, dimensions), low_rmse(model, dimensions), mean))
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="RMSE and mean energy of the chosen frames, round by round")
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    try:
        found = evaluate(options.run)
    except UqbiasError as error:
        raise SystemExit(f"error: {error}") from None
    if options.json:
        rows: list[dict[str, Any]] = [asdict(generation) for generation in found]
        print(json.dumps(rows, indent=1))
        return
    print("round  labels  RMSE (kJ/mol)  RMSE below 2 kJ/mol  mean E of the chosen (kJ/mol)")
    for entry in found:
        print(
            f"{entry.round:5d}  {entry.labels:6d}  {entry.rmse:13.3f}  {entry.low_rmse:19.3f}  "
            f"{entry.chosen_energy:29.2f}"
        )


if __name__ == "__main__":
    main()
