"""Make the files that the campaigns begin from: pyramidal frames only, the inversion is not among them.

    python systems/ammonia/build_start.py structure     # structure.pdb: the minimum by GFN2-xTB
    python systems/ammonia/build_start.py start         # start.xyz: 50 frames of MD at 300 K on GFN2-xTB
    python systems/ammonia/build_start.py pool POOL     # start_pool.xyz: 40 frames of a labelled pool, not kept here

The first two need tblite (`pip install 'uqbias[xtb]'`). Seeds are fixed.
"""

from __future__ import annotations

import argparse
import io
import os
from pathlib import Path

# Read by tblite when it is imported; four atoms run slower on more threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from evaluate import NUMBERS, height, oracle_surface, relax, starting_geometry

from uqbias.errors import UqbiasError
from uqbias.molecule.frames import Frames, read_frames, write_frames
from uqbias.molecule.topology import Topology
from uqbias.units import ANGSTROM, GAS_CONSTANT

HERE = Path(__file__).resolve().parent
TOPOLOGY = Topology(NUMBERS, ((0, 1), (0, 2), (0, 3)), ("N", "H1", "H2", "H3"), ("AMM1",) * 4)
#: MD of the start frames: K, fs, 1/ps, steps between frames and before the first.
TEMPERATURE, TIMESTEP, FRICTION, EVERY, BEFORE = 300.0, 0.5, 5.0, 400, 4000
N_START, N_POOL = 50, 40


def write_structure(path: Path) -> None:
    """The pyramidal minimum of the oracle."""
    from openmm import app, unit

    found = relax(oracle_surface(), starting_geometry())
    text = io.StringIO()
    positions = found.positions - found.positions.mean(axis=0)
    app.PDBFile.writeFile(TOPOLOGY.to_openmm(), positions * unit.nanometer, text, keepIds=True)
    lines = text.getvalue().splitlines(keepends=True)[1:]  # OpenMM's first line is the date
    path.write_text("REMARK   1 AMMONIA, GFN2-XTB MINIMUM\n" + "".join(lines), encoding="utf-8")


def write_start(path: Path) -> None:
    """Frames of Langevin dynamics on the oracle (BAOAB, Leimkuhler and Matthews 2013), with its labels."""
    surface, rng = oracle_surface(), np.random.default_rng(0)
    masses = TOPOLOGY.masses()[:, None]
    dt, decay = TIMESTEP * 1e-3, np.exp(-FRICTION * TIMESTEP * 1e-3)
    spread = np.sqrt(GAS_CONSTANT * TEMPERATURE / masses)
    x = relax(surface, starting_geometry()).positions
    v = spread * rng.normal(size=x.shape)
    forces = surface(x[None])[1][0]
    frames = []
    for step in range(1, BEFORE + N_START * EVERY + 1):
        v += 0.5 * dt * forces / masses
        x = x + 0.5 * dt * v
        v = decay * v + np.sqrt(1 - decay**2) * spread * rng.normal(size=x.shape)
        x = x + 0.5 * dt * v
        energies, labels = surface(x[None])
        forces = labels[0]
        v += 0.5 * dt * forces / masses
        if step > BEFORE and (step - BEFORE) % EVERY == 0:
            # The file holds ten-thousandths of a picometre; the label is that of the geometry in the file.
            frames.append(np.round((x - x.mean(axis=0)) / ANGSTROM, 8) * ANGSTROM)
    positions = np.array(frames)
    energies, labels = surface(positions)
    write_frames(path, Frames(np.array(NUMBERS), positions, energies, labels))
    _tell(path, positions)


def write_pool_start(pool: Path, path: Path) -> None:
    """The lowest in energy of a pool of labelled frames."""
    if not pool.is_file():
        raise UqbiasError(f"no such file: {pool}", "give the pool of campaign_pool.yaml, see README.md")
    frames = read_frames(pool)
    chosen = frames[np.sort(np.argsort(frames.labels()[0], kind="stable")[:N_POOL])]
    write_frames(path, chosen)
    _tell(path, chosen.positions)


def _tell(path: Path, positions: np.ndarray) -> None:
    rise = np.abs(height(positions)) / ANGSTROM
    print(f"{path.name}: {len(positions)} frames, N is {rise.min():.3f} to {rise.max():.3f} Å above the plane of the H")


def main() -> None:
    """Make what is asked for."""
    parser = argparse.ArgumentParser(description="Make the start files of the ammonia campaigns")
    parser.add_argument("what", choices=["structure", "start", "pool"])
    parser.add_argument("pool", type=Path, nargs="?", help="extended-XYZ file of labelled frames")
    parser.add_argument("-o", "--output", type=Path, help="file to write")
    given = parser.parse_args()
    if given.what == "structure":
        write_structure(given.output or HERE / "structure.pdb")
    elif given.what == "start":
        write_start(given.output or HERE / "start.xyz")
    else:
        write_pool_start(
            given.pool or HERE / "../../../shared/data/ammonia_dft_78.xyz", given.output or HERE / "start_pool.xyz"
        )


if __name__ == "__main__":
    try:
        main()
    except UqbiasError as error:
        raise SystemExit(f"error: {error}") from None
