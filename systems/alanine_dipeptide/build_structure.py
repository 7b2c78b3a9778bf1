"""Build structure.pdb: acetyl-L-alanine N-methylamide in its C7eq minimum (Amber ff14SB, vacuum).

    python systems/alanine_dipeptide/build_structure.py

Atoms are placed from idealised internal coordinates (Engh and Huber 1991 bond lengths and angles) with the
side chain on the L side, then the energy is minimised.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PHI, PSI = -80.0, 75.0

#: Residue, name, element and (bonded to, angle to, dihedral to; length Å, angle °, dihedral °), in output order.
#: The names repeat between residues, so references carry the residue number.
ATOMS: list[tuple[str, str, str]] = [
    *(("ACE1", name, name[0]) for name in ("H1", "CH3", "H2", "H3", "C", "O")),
    *(("ALA2", name, name[0]) for name in ("N", "H", "CA", "HA", "CB", "HB1", "HB2", "HB3", "C", "O")),
    *(("NME3", name, name[0]) for name in ("N", "H", "C", "H1", "H2", "H3")),
]
INTERNAL: dict[str, tuple[str, str, str, float, float, float]] = {
    "N2": ("C1", "CH31", "O1", 1.33, 116.0, 180.0),
    "H2": ("N2", "C1", "O1", 1.01, 120.0, 180.0),
    "CA2": ("N2", "C1", "CH31", 1.46, 121.7, 180.0),
    "C2": ("CA2", "N2", "C1", 1.52, 111.0, PHI),
    # L-alanine: seen along N to CA, the side chain comes 120° before the carbonyl, HA 120° after it.
    "CB2": ("CA2", "N2", "C1", 1.53, 110.4, PHI - 122.0),
    "HA2": ("CA2", "N2", "C1", 1.09, 109.0, PHI + 119.0),
    "HB12": ("CB2", "CA2", "N2", 1.09, 109.5, 60.0),
    "HB22": ("CB2", "CA2", "N2", 1.09, 109.5, 180.0),
    "HB32": ("CB2", "CA2", "N2", 1.09, 109.5, -60.0),
    "N3": ("C2", "CA2", "N2", 1.33, 116.2, PSI),
    "O2": ("C2", "CA2", "N2", 1.23, 120.8, PSI + 180.0),
    "H3": ("N3", "C2", "O2", 1.01, 120.0, 180.0),
    "C3": ("N3", "C2", "CA2", 1.46, 121.7, 180.0),
    "H13": ("C3", "N3", "C2", 1.09, 109.5, 60.0),
    "H23": ("C3", "N3", "C2", 1.09, 109.5, 180.0),
    "H33": ("C3", "N3", "C2", 1.09, 109.5, -60.0),
    "H11": ("CH31", "C1", "O1", 1.09, 109.5, 0.0),
    "H21": ("CH31", "C1", "O1", 1.09, 109.5, 120.0),
    "H31": ("CH31", "C1", "O1", 1.09, 109.5, -120.0),
}


def place(a: NDArray, b: NDArray, c: NDArray, length: float, angle: float, dihedral: float) -> NDArray:
    """Position bonded to ``a`` at ``length``, with ``angle`` to a-b and ``dihedral`` to a-b-c (degrees)."""
    axis = (a - b) / np.linalg.norm(a - b)
    normal = np.cross(b - c, axis)
    normal /= np.linalg.norm(normal)
    theta, phi = np.radians([angle, dihedral])
    frame = np.stack([axis, np.cross(normal, axis), normal])
    return a + length * np.array([-np.cos(theta), np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi)]) @ frame


def build() -> NDArray:
    """[22, 3] idealised positions in Å."""
    x = {"C1": np.zeros(3), "O1": np.array([1.23, 0, 0])}
    x["CH31"] = 1.50 * np.array([np.cos(np.radians(120.5)), np.sin(np.radians(120.5)), 0])
    for atom, (a, b, c, length, angle, dihedral) in INTERNAL.items():
        x[atom] = place(x[a], x[b], x[c], length, angle, dihedral)
    return np.array([x[name + residue[-1]] for residue, name, _ in ATOMS])


def main() -> None:
    """Build, minimise and write the structure."""
    import openmm
    from openmm import app, unit

    from uqbias.molecule.measures import chirality, dihedral_angles
    from uqbias.molecule.topology import Topology

    parser = argparse.ArgumentParser(description="Build L-alanine dipeptide in C7eq")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("structure.pdb"))
    output = parser.parse_args().output

    topology = app.Topology()
    chain = topology.addChain("A")
    residues: dict[str, app.topology.Residue] = {}
    for label, name, symbol in ATOMS:
        if label not in residues:
            residues[label] = topology.addResidue(label[:3], chain, id=label[3:])
        topology.addAtom(name, app.Element.getBySymbol(symbol), residues[label])
    topology.createStandardBonds()

    system = app.ForceField("amber14/protein.ff14SB.xml").createSystem(topology, constraints=None, rigidWater=False)
    platform = openmm.Platform.getPlatform("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    context.setPositions(build() * unit.angstrom)
    openmm.LocalEnergyMinimizer.minimize(context, tolerance=1e-3)
    state = context.getState(positions=True, energy=True)
    positions = state.getPositions(asNumpy=True)

    molecule = Topology.from_openmm(topology)
    x = positions.value_in_unit(unit.nanometer)[None]
    phi, psi = np.degrees(dihedral_angles(x, [(4, 6, 8, 14), (6, 8, 14, 16)]))[0]
    print(f"phi {phi:.1f} psi {psi:.1f} energy {state.getPotentialEnergy()}")
    print(f"chiral centres {molecule.chiral_centres()} sign {chirality(x, molecule.chiral_centres()).tolist()}")
    text = io.StringIO()
    app.PDBFile.writeFile(topology, positions - positions.mean(axis=0), text, keepIds=True)
    lines = text.getvalue().splitlines(keepends=True)[1:]  # OpenMM's first line is the date
    output.write_text("REMARK   1 ACETYL-L-ALANINE N-METHYLAMIDE, C7EQ, AMBER FF14SB MINIMUM\n" + "".join(lines))


if __name__ == "__main__":
    main()
