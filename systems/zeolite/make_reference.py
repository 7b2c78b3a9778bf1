"""Zeolites with guests: start frames of the pairs that are trained on, structures of those that are not.

    python systems/zeolite/make_reference.py zeolites.json       # 2 minutes on one core; needs chgnet

``zeolites.json`` is the data set of Schwalbe-Koda, Tan and Gómez-Bombarelli, Nat. Commun. 12, 5104 (2021), geometries
relaxed by DFT (https://github.com/learningmatter-mit/Atomistic-Adversarial-Attacks, ``data/zeolites.json``, MIT
licence). Start frames are these with random displacements, labelled by CHGNet.
"""

from __future__ import annotations

import io
import json
import sys
import warnings
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

HERE = Path(__file__).parent
#: Pairs by host and guest, and their id in the data set.
TRAINED = {
    "DFT_dimethylamine": 84751796,
    "SBN_methylamine": 87220809,
    "DFT_propanediamine": 84715864,
    "DFT_piperazine": 84786139,
    "THO_ethylenediamine": 84761889,
}
UNSEEN = {
    "THO_propanediamine": 84734463,
    "THO_diaminopropane": 84704459,
    "SOD_ethylamine": 84761225,
    "MVY_ethylamine": 84762375,
}
#: Start frames of a pair, and their displacements in Å.
FRAMES, DISPLACEMENTS = 8, (0.02, 0.05)


def structure(entry: dict[str, str]) -> Atoms:
    """One pair of the data set, in Å."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the files name no setting of the space group P 1
        atoms = read(io.StringIO(entry["cif"]), format="cif")
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True, info={"id": entry["id"]})


def main(path: str) -> None:
    """Write ``start`` and ``unseen``."""
    from chgnet.model.dynamics import CHGNetCalculator

    entries = {entry["id"]: entry for entry in json.loads(Path(path).read_text(encoding="utf-8"))}
    calculator = CHGNetCalculator(use_device="cpu")
    for folder in ("start", "unseen"):
        (HERE / folder).mkdir(exist_ok=True)
    for name, number in UNSEEN.items():
        write(HERE / "unseen" / f"{name}.xyz", structure(entries[number]), format="extxyz")
    for name, number in TRAINED.items():
        atoms, draws = structure(entries[number]), np.random.default_rng(number)
        frames = []
        for index in range(FRAMES):
            frame = atoms.copy()
            frame.positions += draws.normal(0.0, DISPLACEMENTS[index % 2], atoms.positions.shape)
            frame.calc = calculator
            # Results of its own: the calculator keeps those of the last frame only.
            frame.calc = SinglePointCalculator(
                frame, energy=frame.get_potential_energy(), forces=frame.get_forces(), stress=frame.get_stress()
            )
            frames.append(frame)
        write(HERE / "start" / f"{name}.xyz", frames, format="extxyz")


if __name__ == "__main__":
    main(*sys.argv[1:])
