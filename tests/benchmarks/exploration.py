"""What explores best: uncertainty-driven MD and jumps against the simplest things that a user would do instead.

Every arm has the same start frames (of few families of conformers), training, filters, labels and, where it runs MD,
MD steps; see `exploration_systems.py` for the molecules and `arms_of` for the arms. Force and energy errors are those
on an independent test set, "unseen" on the families that the start frames do not have. Campaigns run in processes of
their own; finished ones in the output directory are not run again, so that hours can be split.

    python tests/benchmarks/exploration.py [--systems ...] [--arms ...] [--seeds 3] [--finished]
        [-o runs/benchmark_exploration] [--json PATH] [--figures tests/benchmarks]
"""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import samplers
import yaml
from exploration_systems import MOLECULES, Molecule
from sampler_arms import Arm, Scores, System, summary_of

from uqbias.campaign.scoring import force_errors
from uqbias.files import write_text
from uqbias.model.model import UncertaintyModel
from uqbias.molecule.frames import read_frames, write_frames

COLUMNS = {
    "unseen": "force MAE unseen, meV/Å",
    "all": "force MAE, meV/Å",
    "energy": "energy MAE, meV/atom",
    "families": "families labelled",
    "garbage": "garbage labels, %",
    "spearman": "Spearman of the judge",
    "minutes": "minutes",
}
#: MD without jumps.
PLAIN: Arm = {"md.jumps.share": 0.0}
#: The scalar driver and its metadynamics, as shipped before there were local drivers, with the energy preference.
SHIPPED: Arm = {
    "driver": "kernel_density",
    "bias": ["metadynamics", "upper_wall"],
    "harvest.selection": {"kind": "farthest_point", "energy_temperature": 3000.0},
    **PLAIN,
}


def arms_of(molecule: Molecule, folder: Path) -> dict[str, Arm]:
    """The arms by name."""
    expert = {name: {"kind": "dihedral", "atoms": atoms} for name, atoms in molecule.expert.items()}
    turned: Arm = {"space": {"kind": "internal", "torsions": "soft"}, "amplitude": math.pi, "distribution": "uniform"}
    if not molecule.rotates:
        turned = {"amplitude": 0.02}
    each = [{"kind": "metadynamics", "variables": [f"driver_{k + 1}"]} for k in range(molecule.parts)]
    arms: dict[str, Arm] = {
        "MD 300 K": {"sampler": "md", **PLAIN},
        "MD 500 K": {"sampler": "md", "md.temperature": 500.0, **PLAIN},
        f"random {'torsions' if molecule.rotates else 'displacements'}": {
            "sampler": "random",
            "random": {**turned, "count": 3000},
        },
        "attack": {"sampler": "attack"},
        "shipped before": SHIPPED,
        "parallel bias": PLAIN,
        "sum of biases": {"bias": [*each, "upper_wall"], **PLAIN},
        "jumps": {"sampler": "md", "md.jumps.share": 1.0},
        "default": {},
        "HAL": {
            "driver": {"kind": "committee", "quantity": "energy"},
            "guards.driver_cap": None,
            "harvest.driver_window": [None, None],
            "bias": ["linear"],
            **PLAIN,
        },
        "ERBS": {
            "driver": {"kind": "erbs:PrincipalComponents"},
            "guards.driver_cap": None,
            "harvest.driver_window": [None, None],
            "bias": [{"kind": "opes", "variables": ["driver_1", "driver_2"], "exploratory": True}],
            **PLAIN,
        },
        "limit": {
            "sampler": "pool",
            "pool": {"file": str(folder / "pool.xyz")},
            "harvest.selection": {"kind": "random", "energy_temperature": None},
        },
    }
    if expert:
        bias = [{"kind": "parallel_metadynamics", "variables": list(expert)}]
        arms["expert"] = {"variables": expert, "bias": bias, **PLAIN}
    return arms


def system_of(name: str, folder: Path) -> System:
    """A molecule as a system of `samplers.py`; its data are made where they are not there."""
    molecule = MOLECULES[name]
    if not (folder / "campaign.yaml").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        molecule.make(folder)
        test = read_frames(folder / "test.xyz")
        chosen = np.random.default_rng(0).permutation(len(test))[: len(test) // 2]
        write_frames(folder / "pool.xyz", test[np.sort(chosen)])
        rounds = math.ceil((molecule.labels - len(read_frames(folder / "start.xyz"))) / molecule.per_round)
        content = {
            "name": name,
            "system": {"structure": "structure.pdb", "start": "start.xyz"},
            "oracle": molecule.oracle,
            "training": {"steps": 3000},
            "harvest": {"labels_per_round": molecule.per_round},
            "stop": {"rounds": rounds, "labels": molecule.labels},
        }
        write_text(folder / "campaign.yaml", yaml.safe_dump(content))
    return System(
        file=str(folder / "campaign.yaml"),
        arms=arms_of(molecule, folder),
        columns=COLUMNS,
        score=partial(explored, molecule, folder),
        reference="MD 500 K",
        drawn=3,
        log=("unseen", "all", "energy"),
    )


def explored(molecule: Molecule, folder: Path, directory: Path) -> Scores:
    """Errors on the test set, what was labelled and what it cost, after each round."""
    from scipy.stats import spearmanr

    test, labels = read_frames(folder / "test.xyz"), read_frames(directory / "dataset.xyz")
    # The arm that labels test frames is tested on the others.
    new = ~(np.abs(test.positions[:, None, 0] - labels.positions[None, :, 0]).max(-1) < 1e-5).any(axis=1)
    test = test[np.flatnonzero(new)]
    family, family_labelled = molecule.families(test.positions), molecule.families(labels.positions)
    info: list[dict[str, Any]] = labels.info
    begun = np.array([entry["round"] for entry in info])
    accepted = np.array([entry["verdict"] == "accepted" for entry in info])
    unseen = ~np.isin(family, family_labelled[begun == 0])
    rows: Scores = []
    for entry in summary_of(directory):
        this = int(entry["round"])
        errors = force_errors(test, UncertaintyModel.load(directory / f"round_{this:02d}" / "model.uqb", trust=True))
        force, energy = errors["force_mae_frame"], errors["energy_error_frame"]
        taken = begun <= this
        paid = entry["oracle_calls"]
        bad = int((taken & (begun > 0) & ~accepted).sum()) + entry["failures"]
        rows.append(
            {
                "unseen": float(force[unseen].mean()) if unseen.any() else math.nan,
                "all": float(force.mean()),
                "energy": float(energy.mean()),
                "families": float(len(Counter(family_labelled[taken & accepted].tolist()))),
                "garbage": 100.0 * bad / paid if paid else 0.0,
                "spearman": float(spearmanr(errors["judge"], force).statistic),
                "minutes": sum(one["wall_s"] for one in summary_of(directory)[: this + 1]) / 60.0,
            }
        )
    return rows


if __name__ == "__main__":
    samplers.main(
        {name: partial(system_of, name) for name in MOLECULES},
        __doc__,
        output="benchmark_exploration",
        figures="exploration",
        seeds=3,
    )
