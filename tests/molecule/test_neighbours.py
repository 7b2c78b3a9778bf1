"""Lists of neighbours against brute force over all images, and when they are made again."""

import numpy as np
import pytest
import torch
from periodic_systems import CELLS, CUTOFF, OXYGEN, SILICON, atoms, brute_force

from uqbias.errors import UqbiasError
from uqbias.molecule.neighbours import NeighbourList

ELEMENTS = (OXYGEN, SILICON)


def tabled(geometry, positions, walker, cutoff):
    """Pairs within the cutoff of a walker's table, and the largest difference of their vectors to brute force."""
    x, table = positions[walker], geometry.neighbours[walker]
    i, slot = torch.nonzero(table < len(x), as_tuple=True)
    j = table[i, slot]
    r, shifts = x[j] - x[i], torch.zeros(len(i), 3, dtype=torch.int64)
    if geometry.shifts is not None:
        r = r + geometry.shifts[walker][i, slot] @ geometry.box[walker]
        shifts = geometry.shifts[walker][i, slot].long()
    within = r.norm(dim=-1) < cutoff
    columns = (i[within].tolist(), j[within].tolist(), map(tuple, shifts[within].tolist()))
    return list(zip(*columns, strict=True))


def check(geometry, positions, box, periodic, numbers):
    for walker in range(len(positions)):
        pairs = tabled(geometry, positions, walker, CUTOFF)
        expected = brute_force(positions[walker], box, periodic, CUTOFF)
        assert len(pairs) == len(set(pairs))
        assert set(pairs) == expected
        assert expected
    edges = np.concatenate([[0], np.cumsum(geometry.blocks)])
    for block, element in enumerate(ELEMENTS):
        part = geometry.neighbours[..., edges[block] : edges[block + 1]]
        assert {numbers[j] for j in part[part < len(numbers)].tolist()} <= {element}


@pytest.mark.parametrize("name", CELLS)
def test_tables_hold_the_pairs_of_brute_force(name):
    box, periodic = CELLS[name]
    numbers, positions = atoms(box, periodic, n_walkers=2)
    boxes = torch.tensor(box).expand(2, 3, 3)
    table = NeighbourList(numbers, ELEMENTS, CUTOFF, 0.1, periodic)
    check(table.geometry(positions, boxes), positions, box, periodic, numbers)
    assert table.builds == 2
    # Within the skin a table holds all pairs still, and each walker gets its own when it does not.
    generator = torch.Generator().manual_seed(1)
    moves = torch.nn.functional.normalize(torch.randn(positions.shape, generator=generator).double(), dim=-1)
    check(table.geometry(positions + 0.0499 * moves, boxes), positions + 0.0499 * moves, box, periodic, numbers)
    assert table.builds == 2
    assert not table.grown
    positions[1] += 0.0501 * moves[1]
    check(table.geometry(positions, boxes), positions, box, periodic, numbers)
    assert table.builds == 3


def test_a_molecule_in_vacuum():
    numbers, positions = atoms(CELLS["wide"][0], (False,) * 3, n_walkers=2)
    geometry = NeighbourList(numbers, ELEMENTS, CUTOFF, 0.0).geometry(positions)
    assert geometry.box is None
    assert geometry.shifts is None
    check(geometry, positions, None, None, numbers)


def test_a_cell_that_is_deformed():
    """The table stays while it must hold all pairs, and is made again in a cell that brings atoms closer."""
    box, periodic = CELLS["triclinic"]
    numbers, positions = atoms(box, periodic)
    table = NeighbourList(numbers, ELEMENTS, CUTOFF, 0.1, periodic)
    table.geometry(positions, torch.tensor(box)[None])
    for scale, builds in ((1.02, 1), (0.76, 1), (0.74, 2), (1.3, 2)):
        scaled = torch.tensor(scale * box)[None]
        geometry = table.geometry(scale * positions, scaled)
        check(geometry, scale * positions, scale * box, periodic, numbers)
        assert table.builds == builds
    # Under a cell that shrinks around atoms that stay, they move.
    table.geometry(1.3 * positions, torch.tensor(1.15 * box)[None])
    assert table.builds == 3


@pytest.mark.parametrize("name", [None, *CELLS])
def test_what_a_gpu_asks_of_a_table_is_what_the_host_asks(name):
    box, periodic = CELLS[name] if name else (next(iter(CELLS.values()))[0], (False, False, False))
    numbers, positions = atoms(box, periodic, n_walkers=2)
    boxes = None if name is None else torch.tensor(box).expand(2, 3, 3)
    table = NeighbourList(numbers, ELEMENTS, CUTOFF, 0.1, periodic)
    assert not table._holds(positions, boxes)
    table.geometry(positions, boxes)
    generator, answers = torch.Generator().manual_seed(1), []
    for size in torch.linspace(0.005, 0.04, 12).tolist():
        moved = positions + size * torch.randn(positions.shape, generator=generator, dtype=positions.dtype)
        answers.append(table._holds(moved, boxes))
        assert answers[-1] != table._is_stale(moved.numpy()).any()
    assert set(answers) == {True, False}
    assert table._holds(positions, boxes)
    assert not table._holds(positions.clone().fill_(torch.nan), boxes)
    assert not table._holds(positions.float(), boxes)
    if boxes is not None:
        assert not table._holds(positions, 1.001 * boxes)


def test_an_overflow_grows_and_loses_nothing():
    box, periodic = np.eye(3) * 0.7, (True, True, True)
    numbers, positions = atoms(box, periodic)
    table = NeighbourList(numbers, ELEMENTS, CUTOFF, 0.05, periodic)
    before = table.geometry(positions, torch.tensor(box)[None])
    narrow = table.capacities
    kept = before.neighbours.clone()
    dense, small = positions * 0.7, box * 0.7
    check(table.geometry(dense, torch.tensor(small)[None]), dense, small, periodic, numbers)
    assert table.grown
    grown = [new for new, old in zip(table.capacities, narrow, strict=True) if new >= 1.25 * old]
    assert grown
    assert all(new >= old for new, old in zip(table.capacities, narrow, strict=True))
    assert all(width % 16 == 0 for width in table.capacities)
    assert torch.equal(before.neighbours, kept)
    check(table.geometry(positions, torch.tensor(box)[None]), positions, box, periodic, numbers)
    assert not table.grown


def test_a_restored_list_has_the_same_tables():
    box, periodic = CELLS["triclinic"]
    numbers, positions = atoms(box, periodic, n_walkers=2)
    boxes = torch.tensor(box).expand(2, 3, 3)
    table, twin = (NeighbourList(numbers, ELEMENTS, CUTOFF, 0.1, periodic) for _ in range(2))
    table.geometry(positions, boxes)
    twin.restore(table.state())
    for moved in (positions + 0.02, positions + 0.03):
        one, other = table.geometry(moved, 1.01 * boxes), twin.geometry(moved, 1.01 * boxes)
        assert all(map(torch.equal, one.tensors(), other.tensors()))


def test_a_walker_that_is_not_finite_keeps_its_table():
    box, periodic = CELLS["triclinic"]
    numbers, positions = atoms(box, periodic, n_walkers=2)
    boxes = torch.tensor(box).expand(2, 3, 3)
    table = NeighbourList(numbers, ELEMENTS, CUTOFF, 0.1, periodic)
    before = table.geometry(positions, boxes)
    broken = positions + 0.2
    broken[0, 3, 1] = torch.nan
    after = table.geometry(broken, boxes)
    assert torch.equal(after.neighbours[0], before.neighbours[0])
    check(after.of(slice(1, 2)), broken[1:], box, periodic, numbers)
    lone = NeighbourList(numbers, ELEMENTS, CUTOFF, 0.1, periodic).geometry(broken, boxes)
    assert (lone.neighbours[0] == len(numbers)).all()


def test_bad_input_is_refused():
    def refused(message, box=None, periodic=(True, True, True), elements=ELEMENTS, **options):
        def make():
            table = NeighbourList((8, 14), elements, **{"cutoff": 0.5, "skin": 0.1, **options}, periodic=periodic)
            return table.geometry(torch.zeros(1, 2, 3), None if box is None else torch.tensor(box)[None])

        with pytest.raises(UqbiasError, match=message):
            make()

    refused("atoms of element 14; the potential knows the elements", elements=(8,))
    refused("neighbours within 0 nm", cutoff=0)
    refused("unknown provider of neighbours 'scypi'; did you mean 'scipy'", provider="scypi")
    refused("a cell 0 nm high, where neighbours are looked for within 0.6 nm", [[1.0, 0, 0], [2, 0, 0], [0, 0, 1]])
    refused("a cell 0.01 nm high", np.diag([0.01, 1.0, 1.0]))
    refused("a periodic direction without a vector", np.diag([0.0, 1.0, 1.0]))
    refused("not of finite numbers", np.diag([np.nan, 1.0, 1.0]))
