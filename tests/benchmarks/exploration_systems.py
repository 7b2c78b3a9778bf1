"""Molecules of the benchmark `exploration.py`: start frames, independent test frames, and families of conformers.

Start frames are one family's, as a user's first trajectory is; test frames are of all families. What is not read from
the reference data is made here with GFN2-xTB once and kept in the output directory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.molecule.frames import Frames, read_frames, write_frames
from uqbias.molecule.measures import dihedral_angles
from uqbias.molecule.topology import Topology
from uqbias.oracles.openmm import OpenMMOracle
from uqbias.units import EV, EV_PER_ANGSTROM

Array = NDArray[np.float64]
Families = Callable[[Array], NDArray[np.int64]]
ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("UQBIAS_DATA", ROOT.parent / "shared" / "data"))
AMBER = {"kind": "openmm", "forcefield": ["amber14/protein.ff14SB.xml"]}
GFN2 = {"kind": "ase", "calculator": "tblite.ase:TBLite", "calculator_options": {"method": "GFN2-xTB", "verbosity": 0}}


@dataclass(frozen=True)
class Molecule:
    """One system of the benchmark.

    Attributes
    ----------
    make : writes ``structure.pdb``, ``start.xyz`` and ``test.xyz`` (labelled) into a folder.
    families : [n] family of frames [n, N, 3] nm, -1 for none.
    n_families : how many there are.
    oracle : section of the campaign file.
    expert : dihedrals by name that an expert would bias.
    parts : parts of the default driver.
    labels, per_round : labels in all, the start frames included, and in a round.
    rotates : whether there are soft bonds outside rings.
    """

    make: Callable[[Path], None]
    families: Families
    n_families: int
    oracle: dict[str, Any]
    expert: dict[str, list[int]]
    parts: int
    labels: int = 280
    per_round: int = 60
    rotates: bool = True


def dihedral_degrees(positions: Array, *quadruples: tuple[int, ...]) -> list[Array]:
    """Each dihedral of the frames, [n] degrees."""
    return list(np.degrees(dihedral_angles(positions, list(quadruples))).T)


# Alanine peptides: per residue αR (φ < 0, ψ from -120 to 40 degrees), β (φ < 0, else) and φ > 0.
DIPEPTIDE = [((4, 6, 8, 14), (6, 8, 14, 16))]
TETRAPEPTIDE = [
    ((4, 6, 8, 10), (6, 8, 10, 16)),
    ((10, 16, 18, 20), (16, 18, 20, 26)),
    ((20, 26, 28, 30), (26, 28, 30, 36)),
]


def backbone_families(residues: list[tuple[tuple[int, ...], tuple[int, ...]]], positions: Array) -> NDArray[np.int64]:
    """Combination of αR (0), β (1) and φ > 0 (2) over the residues, as a number to base 3."""
    family = np.zeros(len(positions), dtype=np.int64)
    for phi, psi in residues:
        phi_values, psi_values = dihedral_degrees(positions, phi, psi)
        helical = (psi_values > -120) & (psi_values < 40)
        family = 3 * family + np.where(phi_values > 0, 2, np.where(helical, 0, 1))
    return family


def labelled_by_amber(folder: Path, structure: Path, start: Path, test: Path) -> None:
    """Copy the structure, and label start and test frames by the force field."""
    topology = Topology.from_pdb(structure)
    (folder / "structure.pdb").write_bytes(structure.read_bytes())
    oracle = OpenMMOracle(structure, forcefield=["amber14/protein.ff14SB.xml"])
    for source, name in ((start, "start.xyz"), (test, "test.xyz")):
        frames = read_frames(source, labelled=False)
        labels = [oracle.label(x) for x in frames.positions]
        energies = np.array([label.energy for label in labels])
        forces = np.array([label.forces for label in labels])
        write_frames(folder / name, Frames(np.array(topology.numbers), frames.positions, energies, forces))


def tetrapeptide(folder: Path) -> None:
    """Ace-Ala3-Nme of the reference data."""
    source = DATA / "alanine_tetrapeptide"
    labelled_by_amber(folder, source / "structure.pdb", source / "start.xyz", source / "test.xyz")


def dipeptide(folder: Path) -> None:
    """Alanine dipeptide as shipped."""
    source = ROOT / "systems" / "alanine_dipeptide"
    for name, file in (("structure.pdb", "structure.pdb"), ("start.xyz", "start.xyz")):
        (folder / name).write_bytes((source / file).read_bytes())
    (folder / "test.xyz").write_bytes((source / "reference" / "test_set.xyz").read_bytes())


def gfn2(atoms: Any) -> Any:
    """The atoms with a GFN2-xTB calculator."""
    from tblite.ase import TBLite

    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    return atoms


def relaxed(atoms: Any) -> Any:
    """The next minimum of GFN2-xTB."""
    from ase.optimize import BFGS

    BFGS(gfn2(atoms), logfile=None).run(fmax=0.02, steps=400)
    return atoms


def thermal(atoms: Any, count: int, every: int, seed: int, temperature: float = 300.0) -> list[Any]:
    """Labelled frames of Langevin MD with GFN2-xTB, 0.5 fs a step, after 0.25 ps."""
    from ase import units
    from ase.md.langevin import Langevin
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

    atoms = gfn2(atoms)
    rng = np.random.default_rng(seed)
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=rng)
    md = Langevin(atoms, 0.5 * units.fs, temperature_K=temperature, friction=0.01 / units.fs, rng=rng)
    md.run(500)
    frames = []
    for _ in range(count):
        md.run(every)
        frames.append(labelled(atoms))
    return frames


def labelled(atoms: Any) -> Any:
    """A copy that keeps energy and forces."""
    from ase.calculators.singlepoint import SinglePointCalculator

    copy = atoms.copy()
    copy.calc = SinglePointCalculator(copy, energy=atoms.get_potential_energy(), forces=atoms.get_forces())
    return copy


def write_molecule(folder: Path, start: list[Any], test: list[Any], bonds_of: Any) -> None:
    """Write the files of a molecule from ASE frames; the bond graph is that of ``bonds_of``."""
    from openmm import app, unit

    topology = Topology.from_positions(bonds_of.numbers, bonds_of.positions * 0.1)
    with (folder / "structure.pdb").open("w") as stream:
        app.PDBFile.writeFile(topology.to_openmm(), bonds_of.positions * unit.angstrom, stream)
    for name, frames in (("start.xyz", start), ("test.xyz", test)):
        positions = np.array([frame.positions for frame in frames]) * 0.1
        energies = np.array([frame.get_potential_energy() for frame in frames]) * EV
        forces = np.array([frame.get_forces() for frame in frames]) * EV_PER_ANGSTROM
        write_frames(folder / name, Frames(np.array(topology.numbers), positions, energies, forces))


def from_data(name: str, count: int) -> list[Any]:
    """Frames at equal distances of a file of the reference data."""
    from ase.io import read

    frames = read(DATA / name, ":")
    return [frames[int(i)] for i in np.linspace(0, len(frames) - 1, count)]


#: Of 3BPA: C-C-O-C, C-O-C-C, O-C-C-C.
BPA = ((0, 1, 5, 13), (1, 5, 13, 14), (5, 13, 14, 17))


def bpa_families(positions: Array) -> NDArray[np.int64]:
    """Side of the pyridine ring, and trans or gauche ± about O-CH2; the phenyl group has one well."""
    first, second, _ = dihedral_degrees(positions, *BPA)
    side = np.where(np.abs(first) > 120, 2, np.where(first > 0, 1, 0))
    turn = np.where(np.abs(second) > 120, 2, np.where(second > 0, 1, 0))
    return np.asarray(3 * side + turn, dtype=np.int64)


def bpa(folder: Path) -> None:
    """3BPA: one conformer's MD to begin with, the published geometries at 300 to 1200 K to be tested on."""
    first = relaxed(from_data("3bpa_train_300K.xyz", 1)[0])
    write_molecule(folder, thermal(first, 100, 80, 1), tested("3bpa_train_mixedT.xyz", 250), first)


def tested(name: str, count: int) -> list[Any]:
    """Published geometries, labelled."""
    return [labelled(gfn2(frame)) for frame in from_data(name, count)]


#: Heights of a chair's carbon atoms; the other chair has the opposite ones; boats have two opposite carbons up.
CHAIR = (1.0, -1.0, 1.0, -1.0, 1.0, -1.0)
BOATS = tuple(tuple(1.0 if k % 3 == up else -0.5 for k in range(6)) for up in range(3))


def methylcyclohexane(heights: Sequence[float]) -> Any:
    """A ring of six carbons at these heights (quarters of an Å), with a methyl group below carbon 0; to be relaxed."""
    from ase import Atoms

    outward = [np.array([np.cos(np.pi / 3 * k), np.sin(np.pi / 3 * k), 0.0]) for k in range(6)]
    symbols = ["C"] * 6
    positions = [1.47 * outward[k] + [0, 0, 0.25 * heights[k]] for k in range(6)]
    for k, height in enumerate(heights):
        # Of the two substituents the axial one points where the carbon is, the equatorial one outwards.
        steep = np.array([0.0, 0.0, 1.0]) if abs(height) == 1 else 0.7 * outward[k] + [0, 0, 0.7]
        flat = 0.94 * outward[k] - [0, 0, 0.33] if abs(height) == 1 else 0.7 * outward[k] - [0, 0, 0.7]
        above, below = (steep, flat) if height == 1 else (flat * [1, 1, -1], steep * [1, 1, -1])
        for place, direction in enumerate((above, below)):
            methyl = k == 0 and place == 1
            symbols.append("C" if methyl else "H")
            positions.append(positions[k] + direction * (1.53 if methyl else 1.1))
            if methyl:
                centre, along = positions[-1], direction
    side = np.cross(along, outward[1])
    side /= np.linalg.norm(side)
    for turn in 2 * np.pi / 3 * np.arange(3):
        around = np.cos(turn) * side + np.sin(turn) * np.cross(along, side)
        symbols.append("H")
        positions.append(centre + 1.1 * (0.36 * along + 0.93 * around))
    return Atoms(symbols, positions)


RING = [tuple((k + step) % 6 for step in range(4)) for k in range(6)]


def ring_families(positions: Array) -> NDArray[np.int64]:
    """The one chair (0), the other (1), twist and boat (2): a chair's torsions are beyond 30° with signs in turn."""
    alternating = np.array(dihedral_degrees(positions, *RING)).T * (-1.0) ** np.arange(6)
    chairs = [(sign * alternating > 30).all(axis=1) for sign in (1, -1)]
    return np.select(chairs, [0, 1], 2)


def ring(folder: Path) -> None:
    """Methylcyclohexane: MD of one chair to begin with, of both chairs and the twist-boats to be tested on."""
    first, other = (relaxed(methylcyclohexane(sign * np.array(CHAIR))) for sign in (1, -1))
    start = thermal(first.copy(), 100, 80, 1)
    test = [frame for seed, atoms in enumerate((first, other), 2) for frame in thermal(atoms, 80, 80, seed)]
    for seed, heights in enumerate(BOATS, 4):
        test += thermal(relaxed(methylcyclohexane(heights)), 30, 80, seed)
    write_molecule(folder, start, test, first)


#: Acetylacetone's oxygen atoms and the hydrogen between them in the reference data.
OXYGENS, PROTON = (3, 5), 11


def acac_families(positions: Array) -> NDArray[np.int64]:
    """Which oxygen the proton is nearer to: 0 the one of the start frames, 1 the other."""
    first, second = (np.linalg.norm(positions[:, PROTON] - positions[:, o], axis=1) for o in OXYGENS)
    return np.asarray(second < first, dtype=np.int64)


def acac(folder: Path) -> None:
    """Acetylacetone: MD of one tautomer to begin with, the published geometries at 600 K to be tested on."""
    frames = from_data("acetylacetone_train_300K.xyz", 500)
    family = acac_families(np.array([frame.positions for frame in frames]))
    first = relaxed(frames[int(np.flatnonzero(family == 0)[0])])
    # GFN2-xTB's barrier is 13.6 kJ/mol: at 300 K the proton moves by itself now and then.
    frames = thermal(first, 200, 80, 1)
    family = acac_families(np.array([frame.positions for frame in frames]))
    start = [frame for frame, side in zip(frames, family, strict=True) if side == 0][:100]
    write_molecule(folder, start, tested("acetylacetone_train_600K.xyz", 250), first)


MOLECULES = {
    "alanine_dipeptide": Molecule(
        dipeptide,
        partial(backbone_families, DIPEPTIDE),
        3,
        AMBER,
        {"phi": [4, 6, 8, 14], "psi": [6, 8, 14, 16]},
        2,
    ),
    "alanine_tetrapeptide": Molecule(
        tetrapeptide,
        partial(backbone_families, TETRAPEPTIDE),
        27,
        AMBER,
        {
            f"{name}{place}": list(four)
            for place, pair in enumerate(TETRAPEPTIDE, 1)
            for name, four in zip(("phi", "psi"), pair, strict=True)
        },
        6,
    ),
    "3bpa": Molecule(bpa, bpa_families, 9, GFN2, dict(zip(("alpha", "beta", "gamma"), map(list, BPA), strict=True)), 3),
    "methylcyclohexane": Molecule(
        ring, ring_families, 3, GFN2, {f"ring{k}": list(RING[k]) for k in range(3)}, 1, rotates=False
    ),
    "acetylacetone": Molecule(acac, acac_families, 2, GFN2, {}, 1, labels=200, per_round=50),
}
