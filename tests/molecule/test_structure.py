"""Structures of crystals: bonds through images, networks and molecules, and molecules made whole."""

import ase.build
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.spacegroup import crystal

from uqbias.errors import UqbiasError
from uqbias.molecule.cells import ISOLATED
from uqbias.molecule.measures import distances
from uqbias.molecule.structure import from_distances, made_whole, read_structure
from uqbias.molecule.topology import Topology
from uqbias.units import ANGSTROM

ALL = (True, True, True)


def quartz():
    return crystal(
        ["Si", "O"],
        [(0.4697, 0.0, 2 / 3), (0.4133, 0.2672, 0.7856)],
        spacegroup=154,
        cellpar=[4.916, 4.916, 5.405, 90, 90, 120],
    )


def filled():
    """Quartz with a water molecule in a cavity made for it."""
    host = quartz().repeat((3, 3, 3))
    centre = host.cell.array.sum(axis=0) / 2
    host = host[np.linalg.norm(host.positions - centre, axis=1) > 3.5]
    water = ase.build.molecule("H2O")
    water.positions += centre - water.positions.mean(axis=0)
    return host + water


def write(tmp_path, atoms, name, **options):
    ase.io.write(tmp_path / name, atoms, **options)
    return tmp_path / name


@pytest.mark.parametrize("name", ["quartz.xyz", "quartz.cif", "POSCAR", "quartz.vasp"])
def test_quartz_is_a_network(tmp_path, name):
    found = read_structure(write(tmp_path, quartz(), name))
    assert found.periodic == ALL
    np.testing.assert_allclose(found.cell, quartz().cell.array * ANGSTROM, atol=1e-6)
    assert sorted(found.topology.numbers) == [8] * 6 + [14] * 3
    assert found.topology.network == frozenset(range(9))
    assert not found.topology.bonds
    assert not found.topology.chiral_centres()
    assert not found.topology.proper_dihedrals(heavy_only=False)
    assert Topology.from_dict(found.topology.to_dict()) == found.topology


def test_a_guest_keeps_its_bonds():
    atoms = filled()
    graph = from_distances(atoms.numbers, atoms.positions * ANGSTROM, atoms.cell.array * ANGSTROM)
    n = len(atoms)
    assert graph.bonds == ((n - 3, n - 2), (n - 3, n - 1))
    assert graph.network == frozenset(range(n - 3))
    assert graph.residues[-3:] == ("MOL1",) * 3
    assert graph.residues[0] == "Si1"
    chains = list(graph.to_openmm().residues())
    assert len(chains) == n - 3 + 1


def test_wrapped_molecules_are_made_whole():
    generator = np.random.default_rng(0)
    water = ase.build.molecule("H2O")
    cell = np.array([[8.0, 0, 0], [1.0, 9.0, 0], [-2.0, 1.0, 7.5]])
    atoms = Atoms(cell=cell, pbc=True)
    for centre in np.array([[0.1, 0.1, 0.1], [0.6, 0.1, 0.9], [0.1, 0.6, 0.4], [0.6, 0.6, 0.7]]) @ cell:
        water.positions += centre - water.positions[0]
        atoms += water
    x = atoms.positions * ANGSTROM
    cells = np.stack([cell, 1.05 * cell]) * ANGSTROM
    shifts = generator.integers(-2, 3, size=(2, 12, 3)) @ cells
    wrapped = np.stack([x, x]) + shifts
    graph = from_distances(atoms.numbers, wrapped[0], cells[0])
    assert len(graph.bonds) == 8
    assert not graph.network
    whole = made_whole(graph, wrapped, cells, ALL)
    bonds = np.array(graph.bonds)
    np.testing.assert_allclose(distances(whole, bonds), distances(x[None], bonds).repeat(2, axis=0), atol=1e-9)
    np.testing.assert_array_equal(made_whole(graph, whole, cells, ALL), whole)
    steps = (whole - wrapped) @ np.linalg.inv(cells)
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-9)


def test_a_chain_through_one_boundary_is_a_network_only_where_that_repeats():
    x = np.array([[0.5, 0.5, 0.5], [2.0, 0.5, 0.5]]) * ANGSTROM
    cell = np.diag([3.0, 9.0, 9.0]) * ANGSTROM
    assert from_distances([6, 6], x, cell).network == {0, 1}
    assert from_distances([6, 6], x, cell, (False, True, True)).bonds == ((0, 1),)
    assert from_distances([6, 6], x).bonds == ((0, 1),)


def pdb(path, atoms, cell):
    lines = [f"CRYST1{cell[0]:9.3f}{cell[1]:9.3f}{cell[2]:9.3f}{cell[3]:7.2f}{cell[4]:7.2f}{cell[5]:7.2f} P 1"]
    for i, (symbol, x) in enumerate(zip(atoms.symbols, atoms.positions, strict=True), start=1):
        place = "".join(f"{value:8.3f}" for value in x)
        lines.append(f"HETATM{i:5d} {symbol + str(i):<4s} MOL A   1    {place}  1.00  0.00          {symbol:>2s}")
    path.write_text("\n".join([*lines, "END", ""]))
    return read_structure(path)


def test_a_pdb_file_with_a_cell(tmp_path):
    network = pdb(tmp_path / "quartz.pdb", quartz(), quartz().cell.cellpar())
    assert network.periodic == ISOLATED
    assert network.topology.network == frozenset(range(9))
    assert network.topology.names[0] == "Si1"
    water = ase.build.molecule("H2O")
    assert pdb(tmp_path / "water.pdb", water, [1, 1, 1, 90, 90, 90]).topology.bonds == ((0, 1), (0, 2))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.cif", None, "no such file"),
        ("a.xyz", "1\nProperties=species:S:1:pos:R:3\nXx 0 0 0\n", "a.xyz: no element is called 'Xx'"),
        ("dummy.xyz", "1\nProperties=species:S:1:pos:R:3\nX 0 0 0\n", "dummy.xyz: no element is called 'X'"),
        ("b.xyz", "1\nProperties=species:S:1:pos:R:3\nSi 0 0\n", "is no structure that ASE reads"),
        (
            "c.xyz",
            '1\nProperties=species:S:1:pos:R:3 pbc="T T T"\nH 0 0 0\n',
            "is periodic .* its cell has no vector a",
        ),
        (
            "d.xyz",
            '1\nLattice="5 0 0 0 5 0 5 5 0" Properties=species:S:1:pos:R:3 pbc="T T T"\nH 0 0 0\n',
            "its cell is degenerate",
        ),
        ("POSCAR", "x\n1\n", "is no structure that ASE reads"),
    ],
)
def test_what_is_no_structure(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UqbiasError, match=message):
        read_structure(tmp_path / name)
