"""Frames and labels of silica, 72 atoms each (24 Si, then 48 O): what a campaign starts from, and what it is scored on.

    python systems/silica/make_reference.py                       # 5 minutes on one core
    python systems/silica/make_reference.py hot FOLDER            # 2 minutes; for tests/benchmarks/directions.py
    python systems/silica/make_reference.py glass MODEL FILE      # a melt and its glass, made with a model
    python systems/silica/make_reference.py density [MODEL]       # of α-quartz and of a glass, 300 K, 1 bar
    python systems/silica/make_reference.py strained DATA FILE    # frames of DATA, labelled with stress too
    python systems/silica/make_reference.py drift MODEL           # of the energy of 216 atoms of quartz, 10 ps at 1 fs

Start frames are MD at 300 K in the cells of α-quartz and β-cristobalite. Test frames, which no campaign sees, are
stishovite and coesite at 300 K, melts at 4000 and 3000 K, and the glasses that these become at 2·10¹⁴ K/s. Cells are
those of experiment: quartz Levien, Prewitt, Weidner, Am. Mineral. 65, 920 (1980); β-cristobalite Wright and
Leadbetter, Philos. Mag. 31, 1391 (1975), in its ideal form; stishovite Sinclair and Ringwood, Nature 272, 714 (1978);
coesite Levien and Prewitt, Am. Mineral. 66, 324 (1981). Melts fill cubes. The MD has a shorter cutoff than the labels:
it needs fewer copies of small cells. `hot` makes frames of both start crystals at 1000 K and of a melt at 3000 K.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from ase import Atoms, units
from ase.build import make_supercell
from ase.geometry import minkowski_reduce
from ase.io import write
from ase.spacegroup import crystal

from uqbias.compile.fused import FusedEvaluator
from uqbias.model.model import UncertaintyModel
from uqbias.molecule.frames import Frames, read_frames, write_frames
from uqbias.molecule.structure import from_distances
from uqbias.oracles.base import Label
from uqbias.oracles.openmm import OpenMMOracle

HERE = Path(__file__).parent
#: nm; as in the glasses of Vollmayr, Kob and Binder, Phys. Rev. B 54, 15808 (1996).
CUTOFF = 0.55
QUICK = {"cutoff": 0.49}
TIMESTEP, FRICTION = 0.0015, 5.0  # ps, 1/ps
KT, BAR = 8.31446e-3, 0.0602214  # kJ/mol/K, kJ/mol/nm³


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

    def run(
        self, picoseconds: float, kelvin: float, to: float | None = None, frames: int = 1, bar: float | None = None
    ) -> Iterator[np.ndarray]:
        """Positions [N, 3] nm at ``frames`` equal distances.

        The temperature goes from ``kelvin`` to ``to``; with ``bar`` the three lengths of the cell move, at 1 bar say.
        """
        steps = round(picoseconds / TIMESTEP)
        decay = np.exp(-FRICTION * TIMESTEP)
        for step in range(1, steps + 1):
            kt = KT * (kelvin + ((to or kelvin) - kelvin) * step / steps)
            if bar is not None and step % 20 == 0:
                self._stretch(kt, bar)
            self.v += TIMESTEP / 2 * self.forces / self.masses
            self.x = self.x + TIMESTEP / 2 * self.v
            noise = self.rng.normal(size=self.v.shape) * np.sqrt(kt / self.masses)
            self.v = decay * self.v + np.sqrt(1 - decay**2) * noise
            self.x = self.x + TIMESTEP / 2 * self.v
            self.forces = self.oracle.label(self.x, self.cell).forces
            self.v += TIMESTEP / 2 * self.forces / self.masses
            if step * frames // steps > (step - 1) * frames // steps:
                yield self.x.copy()

    def _stretch(self, kt: float, bar: float) -> None:
        """Monte Carlo of one length of the cell, atoms along; Chow, Ferguson, Comput. Phys. Commun. 91, 283 (1995)."""
        axis, scale = self.rng.integers(3), 1 + self.rng.normal() * 0.01
        cell = self.cell.copy()
        cell[axis] *= scale
        x = self.x @ np.linalg.inv(self.cell) @ cell
        before, after = self.oracle.label(self.x, self.cell).energy, self.oracle.label(x, cell)
        work = bar * BAR * abs(np.linalg.det(cell)) * (1 - 1 / scale)
        if np.log(self.rng.random()) < len(x) * np.log(scale) - (after.energy - before + work) / kt:
            self.x, self.cell, self.forces = x, cell, after.forces


def crystal_frames(atoms: Atoms, oracle: OpenMMOracle, seed: int, frames: int) -> list[np.ndarray]:
    """MD at 300 K from a crystal: 0.5 ps, then a frame every 0.1 ps."""
    dynamics = Dynamics(atoms, oracle, seed)
    list(dynamics.run(0.5, 300.0))
    return list(dynamics.run(0.1 * frames, 300.0, frames=frames))


def melt(crystal: Atoms, density: float, oracle: OpenMMOracle, seed: int) -> tuple[Atoms, Dynamics]:
    """A cube of one density in g/cm³, and what is left of a crystal in it after 3 ps at 6000 K."""
    atoms = crystal.copy()
    edge = (atoms.get_masses().sum() / units.mol / density * 1e24) ** (1 / 3)
    atoms.set_cell(np.eye(3) * edge, scale_atoms=True)
    dynamics = Dynamics(atoms, oracle, seed)
    list(dynamics.run(3.0, 6000.0))
    return atoms, dynamics


def melt_and_glass(crystal: Atoms, density: float, oracle: OpenMMOracle, seed: int) -> dict[str, tuple[Atoms, list]]:
    """Melts at 4000 and 3000 K and the glass of one density in g/cm³: cell and frames."""
    atoms, dynamics = melt(crystal, density, oracle, seed)
    liquid = []
    for before, now in ((6000.0, 4000.0), (4000.0, 3000.0)):
        list(dynamics.run(1.0, before, now))
        liquid += list(dynamics.run(2.0, now, frames=10))
    list(dynamics.run(13.5, 3000.0, 300.0))
    return {"liquid": (atoms, liquid), "glass": (atoms, list(dynamics.run(1.5, 300.0, frames=15)))}


def gathered(parts: list[tuple[Atoms, list[np.ndarray]]]) -> Frames:
    """Frames of one or more cells."""
    positions = np.concatenate([np.stack(frames) for _, frames in parts])
    cells = np.concatenate([np.tile(atoms.cell.array / 10, (len(frames), 1, 1)) for atoms, frames in parts])
    return Frames(parts[0][0].numbers, positions, cells=cells)


def labelled(parts: list[tuple[Atoms, list[np.ndarray]]], oracle: OpenMMOracle) -> Frames:
    """Frames of one or more cells with their labels."""
    frames = gathered(parts)
    labels = [oracle.label(*one) for one in zip(frames.positions, frames.cells, strict=True)]
    return replace(
        frames,
        energies=np.array([label.energy for label in labels]),
        forces=np.stack([label.forces for label in labels]),
        info=[{"cutoff_nm": oracle.cutoff} for _ in labels],
        stresses=np.stack([label.stress for label in labels]) if oracle.strain else None,
    )


def oracles() -> tuple[OpenMMOracle, OpenMMOracle]:
    """What labels, and what MD runs on."""
    options = {"structure": HERE / "quartz.xyz", "forcefield": [str(HERE / "bks.xml")]}
    return OpenMMOracle(**options, cutoff=CUTOFF, strain=1e-4), OpenMMOracle(**options, **QUICK)


def hot(folder: Path) -> None:
    """Write ``quartz.xyz``, ``cristobalite.xyz`` (1000 K) and ``melt.xyz`` (3000 K), labelled."""
    oracle, quick = oracles()
    oracle.strain = None
    crystals = polymorphs()
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("quartz", "cristobalite"):
        dynamics = Dynamics(crystals[name], quick, 4)
        list(dynamics.run(0.3, 1000.0))
        frames = list(dynamics.run(2.4, 1000.0, frames=60))
        write_frames(folder / f"{name}.xyz", labelled([(crystals[name], frames)], oracle))
    atoms, dynamics = melt(crystals["quartz"], 2.2, quick, 5)
    list(dynamics.run(1.0, 6000.0, 3000.0))
    frames = list(dynamics.run(9.6, 3000.0, frames=120))
    write_frames(folder / "melt.xyz", labelled([(atoms, frames)], oracle))


def main() -> None:
    """Write the structures, ``start.xyz`` and ``reference``."""
    crystals = polymorphs()
    (HERE / "reference").mkdir(exist_ok=True)
    for name in ("quartz", "cristobalite"):
        write(HERE / f"{name}.xyz", crystals[name], format="extxyz")
    oracle, quick = oracles()
    start = [(crystals[name], crystal_frames(crystals[name], quick, 0, 20)) for name in ("quartz", "cristobalite")]
    write_frames(HERE / "start.xyz", labelled(start, oracle))
    for name in ("stishovite", "coesite"):
        frames = labelled([(crystals[name], crystal_frames(crystals[name], quick, 1, 20))], oracle)
        write_frames(HERE / "reference" / f"{name}.xyz", frames)
    melts = [melt_and_glass(crystals["quartz"], density, quick, seed) for density, seed in ((2.2, 2), (2.5, 3))]
    for name in ("liquid", "glass"):
        write_frames(HERE / "reference" / f"{name}.xyz", labelled([one[name] for one in melts], oracle))


class Learned:
    """A model where an oracle is expected."""

    def __init__(self, path: str, atoms: Atoms | None = None) -> None:
        self.model = UncertaintyModel.load(path)
        if atoms is not None:  # others than it was trained on
            cell = atoms.cell.array / 10
            self.model = self.model.with_topology(from_distances(atoms.numbers.tolist(), atoms.positions / 10, cell))
        self.evaluator: FusedEvaluator | None = None

    def label(self, x: np.ndarray, cell: np.ndarray) -> Label:
        """Energy and forces of the model."""
        if self.evaluator is None:
            self.evaluator = FusedEvaluator(self.model, None, 1, box=cell, energy_only=True)
        result = self.evaluator.evaluate(torch.as_tensor(x)[None], box=torch.as_tensor(cell))
        return Label(float(result.energy), result.forces[0].double().numpy())


def glass(path: str, file: str) -> None:
    """Write the melts and glasses of a model, ``liquid`` and ``glass`` before the name of the file."""
    atoms = polymorphs()["quartz"]
    melts = [melt_and_glass(atoms, density, Learned(path), seed) for density, seed in ((2.2, 12), (2.5, 13))]
    for name in ("liquid", "glass"):
        write_frames(Path(file).with_name(f"{name}_{Path(file).name}"), gathered([one[name] for one in melts]))


def density(path: str | None) -> None:
    """Print densities at 1 bar, means over 6 ps after 2 ps, and their standard errors from six parts."""
    started = {"quartz": polymorphs()["quartz"]}
    frames = read_frames(HERE / "reference" / "glass.xyz", periodic=True)
    started["glass"] = Atoms(frames.numbers, positions=10 * frames.positions[0], cell=10 * frames.cells[0], pbc=True)
    for name, atoms in started.items():
        dynamics = Dynamics(atoms, Learned(path) if path else oracles()[0], 6)
        dynamics.oracle.strain = None
        list(dynamics.run(2.0, 300.0, bar=1.0))
        grams = atoms.get_masses().sum() / units.mol
        values = [
            grams / (1e-21 * abs(np.linalg.det(dynamics.cell))) for _ in dynamics.run(6.0, 300.0, frames=600, bar=1.0)
        ]
        parts = np.reshape(values, (6, 100)).mean(axis=1)
        print(f"{name}: {parts.mean():.3f} ± {parts.std(ddof=1) / 6**0.5:.3f} g/cm³", flush=True)


def strained(data: str, file: str) -> None:
    """Write the frames of a data set with energies, forces and stresses."""
    frames = read_frames(data, periodic=True)
    assert frames.cells is not None
    cells = [Atoms(frames.numbers, cell=10 * cell, pbc=True) for cell in frames.cells]
    parts = [(cell, [x]) for cell, x in zip(cells, frames.positions, strict=True)]
    write_frames(file, labelled(parts, oracles()[0]))


def drift(path: str, picoseconds: float = 10.0, timestep: float = 0.001) -> None:
    """Print how the total energy of 216 atoms of quartz drifts and wavers in velocity Verlet, after 2 ps at 300 K."""
    atoms = polymorphs()["quartz"]
    atoms = make_supercell(atoms, np.diag([3 if axis == np.argmin(atoms.cell.lengths()) else 1 for axis in range(3)]))
    atoms = atoms[np.argsort(-atoms.numbers, kind="stable")]
    dynamics = Dynamics(atoms, Learned(path, atoms), 7)
    list(dynamics.run(2.0, 300.0))
    kelvin, totals = [], []
    for _ in range(round(picoseconds / timestep)):
        dynamics.v += timestep / 2 * dynamics.forces / dynamics.masses
        dynamics.x = dynamics.x + timestep * dynamics.v
        label = dynamics.oracle.label(dynamics.x, dynamics.cell)
        dynamics.forces = label.forces
        dynamics.v += timestep / 2 * dynamics.forces / dynamics.masses
        kinetic = 0.5 * float((dynamics.masses * dynamics.v**2).sum())
        kelvin.append(2 * kinetic / (3 * len(atoms) * KT))
        totals.append(label.energy + kinetic)
    scale = KT * 300.0 * len(atoms)
    slope = np.polyfit(np.arange(len(totals)) * timestep, totals, 1)[0]
    print(
        f"{len(atoms)} atoms, {picoseconds:g} ps at {1000 * timestep:g} fs, {np.mean(kelvin):.0f} K: drift "
        f"{slope / scale:.2e} kT per atom and ps, total energy within {np.std(totals) / scale:.2e} kT per atom"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    commands = {
        "hot": lambda folder: hot(Path(folder)),
        "glass": glass,
        "strained": strained,
        "density": lambda model=None: density(model),
        "drift": drift,
    }
    if sys.argv[1:]:
        commands[sys.argv[1]](*sys.argv[2:])
    else:
        main()
