"""Frames and labels of silica, 72 atoms each (24 Si, then 48 O): what a campaign starts from, and what it is scored on.

    python systems/silica/make_reference.py      # 10 minutes on one core

Start frames are MD at 300 K in the cells of α-quartz and β-cristobalite. Test frames, which no campaign sees, are
stishovite and coesite at 300 K, melts at 4000 and 3000 K, and the glasses that these become at 2·10¹⁴ K/s. Cells are
those of experiment: quartz Levien, Prewitt, Weidner, Am. Mineral. 65, 920 (1980); β-cristobalite Wright and
Leadbetter, Philos. Mag. 31, 1391 (1975), in its ideal form; stishovite Sinclair and Ringwood, Nature 272, 714 (1978);
coesite Levien and Prewitt, Am. Mineral. 66, 324 (1981). Melts fill cubes. The MD has a shorter cutoff than the labels:
it needs fewer copies of small cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import make_supercell
from ase.geometry import minkowski_reduce
from ase.io import write
from ase.spacegroup import crystal

from uqbias.molecule.frames import Frames, write_frames
from uqbias.oracles.openmm import OpenMMOracle

HERE = Path(__file__).parent
#: nm; as in the glasses of Vollmayr, Kob and Binder, Phys. Rev. B 54, 15808 (1996).
CUTOFF = 0.55
QUICK = {"cutoff": 0.49, "tolerance": 1e-4}
TIMESTEP, FRICTION = 0.0015, 5.0  # ps, 1/ps
KT = 8.31446e-3  # kJ/mol/K


def polymorphs() -> dict[str, Atoms]:
    """The four crystals with 72 atoms each, silicon first."""
    cristobalite = crystal(
        ["Si", "O"],
        [(1 / 8,) * 3, (0, 0, 0)],
        spacegroup=227,
        setting=2,
        cellpar=[7.16] * 3 + [90] * 3,
        primitive_cell=True,
    )
    oxygens = [(0.0, 0.0, 0.0), (0.5, 0.1163, 0.75), (0.2661, 0.1234, 0.9401), (0.3114, 0.1038, 0.3281)]
    coesite = crystal(
        ["Si"] * 2 + ["O"] * 5,
        [(0.1403, 0.1083, 0.0723), (0.5068, 0.1580, 0.5407), *oxygens, (0.0172, 0.2118, 0.4784)],
        spacegroup=15,
        cellpar=[7.1356, 12.3692, 7.1736, 90, 120.34, 90],
        primitive_cell=True,
    )
    quartz = crystal(
        ["Si", "O"],
        [(0.4697, 0, 2 / 3), (0.4135, 0.2669, 0.7858)],
        spacegroup=154,
        cellpar=[4.916, 4.916, 5.4054, 90, 90, 120],
    )
    stishovite = crystal(
        ["Si", "O"],
        [(0, 0, 0), (0.3062, 0.3062, 0)],
        spacegroup=136,
        cellpar=[4.1773, 4.1773, 2.6655, 90, 90, 90],
    )
    built = {
        "quartz": make_supercell(quartz, np.diag([2, 2, 2])),
        "cristobalite": make_supercell(cristobalite, [[2, 0, 0], [0, 3, 0], [0, 1, 2]]),
        "stishovite": make_supercell(stishovite, np.diag([2, 2, 3])),
        "coesite": make_supercell(coesite, np.diag([1, 3, 1])),
    }
    return {name: _compact(atoms) for name, atoms in built.items()}


def _compact(atoms: Atoms) -> Atoms:
    """The same crystal in a cell of short vectors, silicon first."""
    sorted_atoms = Atoms(atoms[np.argsort(-atoms.numbers, kind="stable")], info={})
    cell = minkowski_reduce(atoms.cell)[0]
    sorted_atoms.set_cell(cell * np.sign(np.linalg.det(cell)))
    sorted_atoms.wrap()
    return sorted_atoms


class Dynamics:
    """Langevin dynamics (BAOAB) on an oracle's forces, in a fixed cell.

    Parameters
    ----------
    atoms : where it begins; its cell is the cell.
    oracle : its forces.
    """

    def __init__(self, atoms: Atoms, oracle: OpenMMOracle, seed: int) -> None:
        self.oracle, self.rng = oracle, np.random.default_rng(seed)
        self.cell, self.x = atoms.cell.array / 10, atoms.positions / 10
        self.masses = atoms.get_masses()[:, None]
        self.v = np.zeros_like(self.x)
        self.forces = oracle.label(self.x, self.cell).forces

    def run(self, picoseconds: float, kelvin: float, to: float | None = None, frames: int = 1) -> Iterator[np.ndarray]:
        """Positions [N, 3] nm at ``frames`` equal distances; the temperature goes from ``kelvin`` to ``to``."""
        steps = round(picoseconds / TIMESTEP)
        decay = np.exp(-FRICTION * TIMESTEP)
        for step in range(1, steps + 1):
            kt = KT * (kelvin + ((to or kelvin) - kelvin) * step / steps)
            self.v += TIMESTEP / 2 * self.forces / self.masses
            self.x = self.x + TIMESTEP / 2 * self.v
            noise = self.rng.normal(size=self.v.shape) * np.sqrt(kt / self.masses)
            self.v = decay * self.v + np.sqrt(1 - decay**2) * noise
            self.x = self.x + TIMESTEP / 2 * self.v
            self.forces = self.oracle.label(self.x, self.cell).forces
            self.v += TIMESTEP / 2 * self.forces / self.masses
            if step * frames // steps > (step - 1) * frames // steps:
                yield self.x.copy()


def crystal_frames(atoms: Atoms, oracle: OpenMMOracle, seed: int, frames: int) -> list[np.ndarray]:
    """MD at 300 K from a crystal: 0.5 ps, then a frame every 0.1 ps."""
    dynamics = Dynamics(atoms, oracle, seed)
    list(dynamics.run(0.5, 300.0))
    return list(dynamics.run(0.1 * frames, 300.0, frames=frames))


def melt(crystal: Atoms, density: float, oracle: OpenMMOracle, seed: int) -> dict[str, tuple[Atoms, list]]:
    """Melts at 4000 and 3000 K and the glass of one density in g/cm³: cell and frames."""
    atoms = crystal.copy()
    edge = (atoms.get_masses().sum() / units.mol / density * 1e24) ** (1 / 3)
    atoms.set_cell(np.eye(3) * edge, scale_atoms=True)  # nothing of the crystal is left at 6000 K
    dynamics = Dynamics(atoms, oracle, seed)
    list(dynamics.run(3.0, 6000.0))
    liquid = []
    for before, now in ((6000.0, 4000.0), (4000.0, 3000.0)):
        list(dynamics.run(1.0, before, now))
        liquid += list(dynamics.run(2.0, now, frames=10))
    list(dynamics.run(27.0 / 2, 3000.0, 300.0))
    return {"liquid": (atoms, liquid), "glass": (atoms, list(dynamics.run(1.5, 300.0, frames=15)))}


def labelled(parts: list[tuple[Atoms, list[np.ndarray]]], oracle: OpenMMOracle) -> Frames:
    """Frames of one or more cells with their labels."""
    positions = np.concatenate([np.stack(frames) for _, frames in parts])
    cells = np.concatenate([np.tile(atoms.cell.array / 10, (len(frames), 1, 1)) for atoms, frames in parts])
    labels = [oracle.label(*one) for one in zip(positions, cells, strict=True)]
    return Frames(
        parts[0][0].numbers,
        positions,
        np.array([label.energy for label in labels]),
        np.stack([label.forces for label in labels]),
        [{"cutoff_nm": CUTOFF} for _ in labels],
        cells,
        np.stack([label.stress for label in labels]),
    )


def main() -> None:
    """Write the structures, ``start.xyz`` and ``reference``."""
    crystals = polymorphs()
    (HERE / "reference").mkdir(exist_ok=True)
    for name in ("quartz", "cristobalite"):
        write(HERE / f"{name}.xyz", crystals[name], format="extxyz")
    options = {"forcefield": [str(HERE / "bks.xml")]}
    oracle = OpenMMOracle(HERE / "quartz.xyz", **options, cutoff=CUTOFF, strain=1e-4)
    quick = OpenMMOracle(HERE / "quartz.xyz", **options, **QUICK)
    start = [(crystals[name], crystal_frames(crystals[name], quick, 0, 20)) for name in ("quartz", "cristobalite")]
    write_frames(HERE / "start.xyz", labelled(start, oracle))
    for name in ("stishovite", "coesite"):
        frames = labelled([(crystals[name], crystal_frames(crystals[name], quick, 1, 20))], oracle)
        write_frames(HERE / "reference" / f"{name}.xyz", frames)
    melts = [melt(crystals["quartz"], density, quick, seed) for density, seed in ((2.2, 2), (2.5, 3))]
    for name in ("liquid", "glass"):
        write_frames(HERE / "reference" / f"{name}.xyz", labelled([one[name] for one in melts], oracle))


if __name__ == "__main__":
    main()
