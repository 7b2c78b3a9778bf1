"""What `samplers.py` compares: systems, the ways to sample each of them, and how a round is scored.

A system is its shipped campaign file; an arm is the keys in which it differs from that file. Everything else, the start
frames, potential, training, filters, selection and labels a round, is the same for every arm of a system.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
Arm = dict[str, Any]
Scores = list[dict[str, float]]


@dataclass(frozen=True)
class System:
    """One system of the benchmark.

    Attributes
    ----------
    file : campaign file that every arm starts from, below ``systems``.
    arms : changes of that file by the arm's name, keys with dots.
    columns : title of each score, by its key.
    score : run directory to one dict a round.
    changes : of all arms, against the campaign file.
    reference : arm that the others are divided by below the table.
    drawn : how many of the scores are drawn, from the first.
    log : scores drawn on a logarithmic axis.
    """

    file: str
    arms: dict[str, Arm]
    columns: dict[str, str]
    score: Callable[[Path], Scores]
    changes: dict[str, Any] = field(default_factory=dict)
    reference: str = "random"
    drawn: int = 3
    log: tuple[str, ...] = ()


def summary_of(directory: Path) -> Scores:
    """Rounds of ``summary.json``."""
    found: Scores = json.loads((directory / "summary.json").read_text(encoding="utf-8"))["rounds"]
    return found


@functools.cache
def script(path: str) -> ModuleType:
    """A script of a system as a module; ``systems`` is no package."""
    file = ROOT / "systems" / path
    specification = importlib.util.spec_from_file_location(f"{file.parent.name}_{file.stem}", file)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up there
    specification.loader.exec_module(module)
    return module


def alanine_scores(directory: Path) -> Scores:
    """Rounds of ``summary.json``, with 1 where C7ax has been labelled."""
    return [{**entry, "c7ax": float("C7ax" in entry["basins"])} for entry in summary_of(directory)]  # type: ignore[operator]


def keys_of(path: str, *sections: str) -> Arm:
    """Some top-level keys of a shipped campaign file, as the changes of an arm."""
    content = yaml.safe_load((ROOT / "systems" / path).read_text(encoding="utf-8"))
    return {section: content[section] for section in sections}


#: Driver of MD and metadynamics where there are no torsions: its unit is that of kT, which the default bias, guards and
#: filters are made for. The spread of the forces, which attacks raise, grows by 1e4 within a bond length.
SPREAD = {"kind": "committee", "quantity": "energy"}


def on(variables: list[str] | str, sigma: float) -> list[Arm]:
    """Metadynamics on other variables than the uncertainty."""
    names = [variables] if isinstance(variables, str) else variables
    return [{"kind": "metadynamics", "variables": names, "sigma": sigma}]


PHI_PSI = {
    "phi": {"kind": "dihedral", "atoms": [4, 6, 8, 14]},
    "psi": {"kind": "dihedral", "atoms": [6, 8, 14, 16]},
}
ALANINE = System(
    file="alanine_dipeptide/campaign.yaml",
    # MD as in the tables of docs/benchmarks.md, without jumps; `exploration.py` compares those.
    changes={"stop.rounds": 4, "stop.labels": 300, "md.jumps.share": 0.0},
    arms={
        # 0.003 nm an atom is what 300 K does to the stiff modes; much more, and no frame passes the filters.
        "random": {"sampler": "random", "random": {"amplitude": 0.003}},
        "MD 300 K": {"sampler": "md"},
        "MD 500 K": {"sampler": "md", "md.temperature": 500.0},
        "attack": keys_of("alanine_dipeptide/attack_cartesian.yaml", "sampler", "attack"),
        "uncertainty metadynamics": {},
        "φ/ψ metadynamics": {
            "variables": PHI_PSI,
            "bias": on(["phi", "psi"], 0.35),
        },
        "φ/ψ attack": keys_of("alanine_dipeptide/attack_phi_psi.yaml", "sampler", "attack", "variables"),
        "φ/ψ random": {
            "sampler": "random",
            "variables": PHI_PSI,
            "random": {
                "space": {"kind": "variables", "names": ["phi", "psi"]},
                "amplitude": math.pi,
                "distribution": "uniform",
            },
        },
    },
    columns={
        "force_mae_meV_per_A": "force MAE, meV/Å",
        "force_mae_phi_positive_meV_per_A": "force MAE φ>0, meV/Å",
        "coverage": "coverage",
        "energy_mae_meV_per_atom": "energy MAE, meV/atom",
        "energy_mae_phi_positive_meV_per_atom": "energy MAE φ>0, meV/atom",
        "labels_phi_positive": "labels φ>0",
        "c7ax": "C7ax labelled",
    },
    score=alanine_scores,
    log=("force_mae_meV_per_A", "force_mae_phi_positive_meV_per_A"),
)


def well_scores(directory: Path) -> Scores:
    """RMSE over the region, mean energy of all frames chosen so far; a round without a model has the last one's."""
    found, previous = {}, None
    for entry in script("double_well/evaluate.py").evaluate(directory):
        found[entry.round] = entry
    rows: Scores = []
    chosen = energy = 0.0
    for entry in summary_of(directory):
        this = found.get(int(entry["round"]), previous)
        if this is not previous and this.round > 0 and math.isfinite(this.chosen_energy):
            added = this.labels - previous.labels
            chosen, energy = chosen + added, energy + added * this.chosen_energy
        rows.append({"rmse": this.rmse, "low_rmse": this.low_rmse, "energy": energy / chosen if chosen else math.nan})
        previous = this
    return rows


def double_well(dimensions: int) -> System:
    """The double well in 1 or 2 dimensions."""
    axes, edge = "xyz"[:dimensions], script("double_well/evaluate.py").REGION[dimensions]
    # Walls at the border of the region, for a learned field has an outside that a particle never comes back from; and
    # no way into the dimensions that the field does not have.
    walls = [
        {"kind": f"{side}_wall", "variables": [axis], "at": sign * edge, "kappa": 200.0}
        for axis in axes
        for side, sign in (("upper", 1), ("lower", -1))
    ] + [{"kind": "restraint", "variables": [axis], "at": 0.0, "kappa": 1000.0} for axis in "xyz"[dimensions:]]
    dynamics = {
        "driver": SPREAD,
        "variables": {axis: {"kind": "position", "axis": axis} for axis in "xyz"},
        # A hundredth of the particle's period in the wells.
        "md.timestep_fs": 5.0,
        "sampler": "metadynamics",
        "bias": walls,
    }
    return System(
        file=f"double_well/campaign_{dimensions}d.yaml",
        arms={
            # The published control: distortions of any labelled frame.
            "random": {"sampler": "random", "md.start_from": "labelled"},
            "MD 300 K": dynamics,
            "MD 1000 K": {**dynamics, "md.temperature": 1000.0},
            "attack": {"sampler": "attack"},
            "uncertainty metadynamics": {**dynamics, "bias": [*on("driver", 0.3), *walls]},
            "x metadynamics": {**dynamics, "bias": [*on("x", 0.1), *walls]},
        },
        columns={
            "rmse": "RMSE, kJ/mol",
            "energy": "mean E of the chosen, kJ/mol",
            "low_rmse": "RMSE below 2 kJ/mol",
            "labels": "labels",
        },
        score=well_scores,
        drawn=2,
        log=("rmse",),
    )


def ammonia_scores(directory: Path) -> Scores:
    """Barrier and its error against GFN2-xTB; NaN in a round whose model has no barrier."""
    module = script("ammonia/evaluate.py")
    exact = module.inversion_barrier(module.make_ammonia_oracle()).kcal
    found = {row["round"]: row for row in module.evaluate(directory)["rounds"]}
    rows: Scores = []
    for entry in summary_of(directory):
        kcal = found[int(entry["round"])]["kcal"] if int(entry["round"]) in found else rows[-1]["barrier"]
        rows.append({"barrier": kcal, "barrier_error": abs(kcal - exact)})
    return rows


AMMONIA = System(
    file="ammonia/campaign.yaml",
    arms={
        "random": {"sampler": "random", "random": {"amplitude": 0.01}},
        "MD 300 K": {"sampler": "md", "driver": SPREAD},
        "MD 1500 K": {"sampler": "md", "md.temperature": 1500.0, "driver": SPREAD},
        "attack": {},
        "uncertainty metadynamics": {"sampler": "metadynamics", "driver": SPREAD},
        "umbrella metadynamics": {
            "sampler": "metadynamics",
            "driver": SPREAD,
            "variables": {"umbrella": {"kind": "dihedral", "atoms": [1, 2, 3, 0]}},
            "bias": on("umbrella", 0.1),
        },
    },
    columns={
        "barrier_error": "error of the barrier, kcal/mol",
        "barrier": "barrier, kcal/mol",
        "labels": "labels",
    },
    score=ammonia_scores,
    drawn=1,
    log=("barrier_error",),
)
SYSTEMS = {
    "alanine_dipeptide": ALANINE,
    "ammonia": AMMONIA,
    "double_well_1d": double_well(1),
    "double_well_2d": double_well(2),
}
