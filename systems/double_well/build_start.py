"""Build structure.pdb, start_1d.xyz and start_2d.xyz: one particle, and labelled frames below a threshold energy.

    python systems/double_well/build_start.py

The published start sets (Schwalbe-Koda, Tan and Gómez-Bombarelli, Nat. Commun. 12, 5104 (2021), and the notebooks of
github.com/learningmatter-mit/Atomistic-Adversarial-Attacks): of 500 evenly spaced points with |x| <= 1.65 those with
E < -5.5, and of 800 uniformly random points with |x|, |y| <= 1.2 those with E < -2. Both thresholds lie below the other
well, so that no frame is in it or on the barrier.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from evaluate import REGION
from numpy.typing import NDArray

from uqbias.files import write_text
from uqbias.molecule.frames import Frames, write_frames
from uqbias.oracles.analytic import DoubleWellOracle

FOLDER = Path(__file__).parent
#: Threshold energy, kJ/mol, and points before it, by dimensions.
THRESHOLD = {1: -5.5, 2: -2.0}
POINTS = {1: 500, 2: 800}
SEED = 0


def points(dimensions: int) -> NDArray[np.float64]:
    """[n, 1, 3] nm, before the threshold; the axes that the energy does not name are zero."""
    half, n = REGION[dimensions], POINTS[dimensions]
    x = np.zeros((n, 1, 3))
    if dimensions == 1:
        x[:, 0, 0] = np.linspace(-half, half, n)
    else:
        x[:, 0, :2] = np.random.default_rng(SEED).uniform(-half, half, (n, 2))
    return x


def start(dimensions: int) -> Frames:
    """Labelled frames below the threshold."""
    oracle, x = DoubleWellOracle(dimensions=dimensions), points(dimensions)
    labels = [oracle.label(place) for place in x]
    energies = np.array([label.energy for label in labels])
    forces = np.stack([label.forces for label in labels])
    below = np.flatnonzero(energies < THRESHOLD[dimensions])
    return Frames(np.array(oracle.numbers), x, energies, forces)[below]


def main() -> None:
    pdb = (
        "REMARK   1 ONE PARTICLE IN A DOUBLE WELL\n"
        "HETATM    1  H   PAR A   1       0.000   0.000   0.000  1.00  0.00           H  \n"
        "END\n"
    )
    write_text(FOLDER / "structure.pdb", pdb)
    for dimensions in (1, 2):
        frames = start(dimensions)
        write_frames(FOLDER / f"start_{dimensions}d.xyz", frames)
        energies, _ = frames.labels()
        print(
            f"{dimensions}D: {len(frames)} frames, x {frames.positions[..., 0].min():.3f} to "
            f"{frames.positions[..., 0].max():.3f} nm, E {energies.min():.2f} to {energies.max():.2f} kJ/mol"
        )


if __name__ == "__main__":
    main()
