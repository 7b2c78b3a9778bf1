"""Data sets that `uq_kinds.py` judges uncertainties on: frames to learn from, and frames to be judged on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import yaml

from uqbias.molecule.frames import Frames, read_frames
from uqbias.molecule.seen import invariants, is_in
from uqbias.molecule.structure import from_distances
from uqbias.molecule.topology import Topology
from uqbias.units import ANGSTROM, KCAL

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
ALANINE, SILICA = ROOT / "systems" / "alanine_dipeptide", ROOT / "systems" / "silica"
#: Frames of silica that are made where they are not there, in two minutes.
HOT = ROOT / "runs" / "silica_hot"
#: Revised MD17 (Christensen and von Lilienfeld, arXiv:2007.09593), by the names of its files.
RMD17 = (
    *("aspirin", "azobenzene", "benzene", "ethanol", "malonaldehyde"),
    *("naphthalene", "paracetamol", "salicylic", "toluene", "uracil"),
)


class Task(NamedTuple):
    """Frames to learn from and frames to be judged on; several folds for a small set."""

    name: str
    topology: Topology
    folds: list[tuple[Frames, Frames]]
    potential: Mapping[str, Any] = MappingProxyType({})


def acetylacetone() -> Task:
    train_frames, test = (read_frames(DATA / f"acetylacetone_train_{kelvin}K.xyz") for kelvin in (300, 600))
    return Task("acetylacetone", guessed(train_frames), [(train_frames, test)])


def ammonia(n_blocks: int = 5) -> Task:
    frames = read_frames(DATA / "ammonia_dft_78.xyz")
    blocks = np.array_split(np.arange(len(frames)), n_blocks)
    folds = []
    for block in blocks:
        rest = frames[np.setdiff1d(np.arange(len(frames)), block)]
        # Some geometries are others with hydrogens exchanged: what the rest holds too is no test.
        folds.append((rest, frames[block[~is_in(invariants(rest.positions), frames.positions[block])]]))
    return Task("ammonia", guessed(frames), folds)


def alanine() -> Task:
    topology = Topology.from_pdb(ALANINE / "structure.pdb")
    test = read_frames(ALANINE / "reference" / "test_set.xyz")
    return Task("alanine dipeptide", topology, [(read_frames(ALANINE / "start.xyz"), test)])


def guessed(frames: Frames) -> Topology:
    return Topology.from_positions([int(number) for number in frames.numbers], frames.positions[0])


def rmd17_frames(molecule: str, part: str) -> Frames:
    """The 1000 frames of ``part``, train or test, of the official split 1."""
    with np.load(DATA / "rmd17" / f"{molecule}_{part}_01.npz") as file:
        return Frames(
            file["nuclear_charges"].astype(np.int64),
            file["coords"] * ANGSTROM,
            file["energies"].astype(np.float64) * KCAL,
            file["forces"].astype(np.float64) * KCAL / ANGSTROM,
            source=f"rMD17 {molecule}, {part}",
        )


def rmd17(molecule: str) -> Task:
    training = rmd17_frames(molecule, "train")
    return Task(molecule, guessed(training), [(training, rmd17_frames(molecule, "test"))])


def silica() -> Task:
    """Trained on α-quartz and β-cristobalite at 300 and 1000 K, judged on melts, glasses and coesite."""
    if not HOT.is_dir():
        subprocess.run([sys.executable, SILICA / "make_reference.py", "hot", HOT], check=True)
    files = (SILICA / "start.xyz", HOT / "quartz.xyz", HOT / "cristobalite.xyz")
    training = Frames.concatenate([read_frames(path, periodic=True) for path in files])
    tests = [read_frames(SILICA / f"reference/{name}.xyz", periodic=True) for name in ("liquid", "glass", "coesite")]
    potential = yaml.safe_load((SILICA / "campaign.yaml").read_text())["potential"]
    cells = training.cells
    topology = from_distances(training.numbers.tolist(), training.positions[0], None if cells is None else cells[0])
    return Task("silica", topology, [(training, Frames.concatenate(tests))], potential)


SETS: dict[str, Callable[[], Task]] = {
    "acetylacetone": acetylacetone,
    "ammonia": ammonia,
    "alanine": alanine,
    "silica": silica,
    **{molecule: partial(rmd17, molecule) for molecule in RMD17},
}
