"""From quartz and cristobalite to what has no crystal: samplers of silica at equal labels.

Every arm has the same 40 start frames (α-quartz and β-cristobalite at 300 K), training, filters, labels a round and,
where it runs MD, MD steps. Force errors are those on frames that no arm sees: melts, glasses, stishovite, coesite.
Campaigns run in processes of their own; finished ones in the output directory are not run again.

    python tests/benchmarks/silica.py [--arms ...] [--seeds 3] [--finished] [-o runs/benchmark_silica] [--json PATH]
        [--figures tests/benchmarks]
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import samplers
from sampler_arms import ROOT, Arm, Scores, System, summary_of

from uqbias.campaign.scoring import force_errors
from uqbias.model.model import UncertaintyModel
from uqbias.molecule.frames import read_frames

REFERENCE = ROOT / "systems" / "silica" / "reference"
TESTS = ("liquid", "glass", "stishovite", "coesite")
#: What differs from the campaign file, in which uncertainty pulls at MD at 1500 K.
ARMS: dict[str, Arm] = {
    "MD 300 K": {"sampler": "md", "md.temperature": 300.0},
    "MD 1500 K": {"sampler": "md", "md.temperature": 1500.0},
    "MD 3000 K": {"sampler": "md", "md.temperature": 3000.0},
    "random": {"sampler": "random", "md.start_from": "labelled"},
    "attack": {"sampler": "attack", "md.start_from": "labelled"},
    "uncertainty 300 K": {"md.temperature": 300.0},
    "uncertainty 1500 K": {},
    "uncertainty 1500 K, 1 bar": {"md.pressure": 1.0},
}


def scores(directory: Path) -> Scores:
    """Force errors on each of the test sets, what the judge says of them, and what a round cost."""
    from scipy.stats import spearmanr

    tests = {name: read_frames(REFERENCE / f"{name}.xyz", periodic=True) for name in TESTS}
    rows: Scores = []
    for entry in summary_of(directory):
        model = UncertaintyModel.load(directory / f"round_{int(entry['round']):02d}" / "model.uqb", trust=True)
        errors = {name: force_errors(frames, model) for name, frames in tests.items()}
        force = {name: each["force_mae_frame"] for name, each in errors.items()}
        judge = np.concatenate([each["judge"] for each in errors.values()])
        rows.append(
            {name: float(values.mean()) for name, values in force.items()}
            | {
                "energy": float(np.concatenate([errors[name]["energy_error_frame"] for name in TESTS[:2]]).mean()),
                "spearman": float(spearmanr(judge, np.concatenate(list(force.values()))).statistic),
                "minutes": sum(one["wall_s"] for one in summary_of(directory)[: len(rows) + 1]) / 60.0,
            }
        )
    return rows


def silica(_: Path) -> System:
    """Silica as a system of `samplers.py`."""
    return System(
        file="silica/campaign.yaml",
        arms=ARMS,
        columns={
            **{name: f"force MAE {name}, meV/Å" for name in TESTS},
            "energy": "energy MAE liquid and glass, meV/atom",
            "spearman": "Spearman of the judge",
            "minutes": "minutes",
        },
        score=scores,
        reference="MD 300 K",
        drawn=4,
        log=TESTS,
    )


if __name__ == "__main__":
    samplers.main({"silica": partial(silica)}, __doc__, output="benchmark_silica", figures="exploration", seeds=3)
