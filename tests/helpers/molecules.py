"""Molecules of the tests; every test takes them from here."""

from collections import Counter
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols

from uqbias.molecule.frames import Frames
from uqbias.molecule.topology import Topology
from uqbias.testing.peroxide import peroxide_geometries, peroxide_model
from uqbias.units import ANGSTROM, EV, EV_PER_ANGSTROM

__all__ = [
    "ALANINE",
    "ALANINE_PDB",
    "AMMONIA",
    "AMMONIA_FOLDER",
    "AMMONIA_POSITIONS",
    "HYDROGENS_LAST",
    "PEROXIDE",
    "emt_frames",
    "peroxide",
    "peroxide_geometries",
    "peroxide_model",
    "write_pdb",
]

ROOT = Path(__file__).parents[2]
#: Folder and structure of alanine dipeptide, whose frames and model are fixtures in conftest.py.
ALANINE = ROOT / "systems" / "alanine_dipeptide"
ALANINE_PDB = ALANINE / "structure.pdb"

#: Hydrogen peroxide along its chain, H-O-O-H, and in the order of `peroxide_geometries` and `peroxide_model`.
PEROXIDE = Topology((1, 8, 8, 1), ((0, 1), (1, 2), (2, 3)))
HYDROGENS_LAST = Topology((8, 8, 1, 1), ((0, 1), (0, 2), (1, 3)))

AMMONIA_FOLDER = ROOT / "systems" / "ammonia"
AMMONIA = Topology((7, 1, 1, 1), ((0, 1), (0, 2), (0, 3)))
#: nm
AMMONIA_POSITIONS = 0.1 * np.array([[0.0, 0.0, 0.0], [0.94, 0.0, -0.38], [-0.47, 0.81, -0.38], [-0.47, -0.81, -0.38]])


def peroxide(torsion=np.pi / 2):
    """Positions [4, 3] nm of H, O, O, H (`PEROXIDE`) at a torsion in rad."""
    bend = np.deg2rad(100)
    first = [0.97 * np.cos(bend), 0.97 * np.sin(bend), 0.0]
    last = [
        1.45 - 0.97 * np.cos(bend),
        0.97 * np.sin(bend) * np.cos(torsion),
        0.97 * np.sin(bend) * np.sin(torsion),
    ]
    return 0.1 * np.array([first, [0.0, 0.0, 0.0], [1.45, 0.0, 0.0], last])


def emt_frames(name, count, seed=0):
    """Distorted frames of one of ASE's molecules, labelled by its EMT."""
    from ase.build import molecule
    from ase.calculators.emt import EMT

    atoms, random = molecule(name), np.random.default_rng(seed)
    atoms.calc, rest, rows = EMT(), atoms.positions.copy(), []
    for _ in range(count):
        atoms.positions = rest + random.normal(scale=0.05, size=rest.shape)
        rows.append((atoms.positions.copy(), atoms.get_potential_energy(), atoms.get_forces()))
    x, energies, forces = (np.array(column) for column in zip(*rows, strict=True))
    units = ANGSTROM * x, EV * energies, EV_PER_ANGSTROM * forces
    return Frames(atoms.numbers.astype(np.int64), *units, source=f"{name}.xyz")


def write_pdb(path, topology, positions):
    """Write atoms at ``positions`` [N, 3] nm and their bonds; atoms are named by element and count."""
    count, lines = Counter(), []
    for index, (number, (x, y, z)) in enumerate(zip(topology.numbers, 10 * positions, strict=True), start=1):
        symbol = chemical_symbols[number]
        count[symbol] += 1
        atom = f"HETATM{index:5d}  {symbol}{count[symbol]:<2d} MOL A   1    "
        lines.append(f"{atom}{x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00          {symbol:>2s}")
    for index, neighbours in enumerate(topology.neighbours):
        lines.append("CONECT" + "".join(f"{atom + 1:5d}" for atom in (index, *sorted(neighbours))))
    path.write_text("\n".join([*lines, "END", ""]))


def malonaldehyde(moved=False):
    """Bond graph of the enol, its hydrogen on the first O, and positions [9, 3] nm of a frame; ``moved``: on the other.

    O, C, C, C, O, the mobile H, three H of the carbons; planar, symmetric about x = 0 but for the hydrogen.
    """
    from uqbias.molecule.protons import with_mobile_protons

    half = [(1.28, 1.30), (1.20, 0.0), (0.0, -0.70)]
    heavy = [*half, (-1.20, 0.0), (-1.28, 1.30)]
    rest = [(2.12, -0.60), (0.0, -1.78), (-2.12, -0.60)]
    proton = (-0.32 if moved else 0.32, 1.55)
    x = 0.1 * np.pad(np.array([*heavy, proton, *rest]), ((0, 0), (0, 1)))
    bonds = ((0, 1), (1, 2), (2, 3), (3, 4), (0, 5), (1, 6), (2, 7), (3, 8))
    return with_mobile_protons(Topology((8, 6, 6, 6, 8, 1, 1, 1, 1), bonds), x[None]), x
