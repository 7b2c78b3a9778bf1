"""The embedded potential with tables of neighbours: brute force over images, all pairs, other atoms of its elements."""

import pytest
import torch
from periodic_systems import CELLS, CUTOFF, OXYGEN, SILICON, atoms, brute_force

from uqbias.errors import UqbiasError
from uqbias.molecule.geometry import Geometry
from uqbias.molecule.neighbours import NeighbourList
from uqbias.potentials.power_spectrum import PowerSpectrum

ELEMENTS = (OXYGEN, SILICON)
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def make(numbers, **options):
    options = {"n_members": 2, "n_radial": 4, "n_channels": 3, "hidden": (8, 5), "cutoff": CUTOFF, "seed": 3} | options
    return PowerSpectrum(numbers, **options).double()


def energies(potential, latents):
    """Energies [M, W] of the last layer."""
    kinds = [potential.elements.index(number) for number in potential.numbers]
    readout, bias = potential.readout[:, kinds, :, 0], potential.readout_bias[:, kinds, 0, 0]
    return ((latents * readout[:, None]).sum(-1) + bias[:, None]).sum(-1) * potential.energy_scale


def brute(potential, positions, box, periodic):
    """Energy [M, 1] and latents of one walker as of a cluster of all images in reach, without table, box or cell."""
    x, cell = positions.detach().numpy(), box.detach().numpy()
    pairs = brute_force(x, cell, periodic, CUTOFF)
    latents = []
    for atom in range(len(x)):
        # An image of an atom around each atom, so that neighbours count as often as they are seen.
        images = [(atom, (0, 0, 0)), *((j, shift) for i, j, shift in sorted(pairs) if i == atom)]
        index = [j for j, _ in images]
        shifts = torch.tensor([shift for _, shift in images], dtype=torch.float64)
        cluster = potential.with_numbers([potential.numbers[j] for j in index])
        latents.append(cluster((positions[index] + shifts @ box)[None])[1][:, :, :1])
    latents = torch.cat(latents, dim=2)
    return energies(potential, latents), latents


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("name", CELLS)
def test_energies_forces_and_virial_of_brute_force(name, members):
    box, periodic = CELLS[name]
    numbers, positions = atoms(box, periodic)
    potential = make(numbers, elements=ELEMENTS, n_members=members)
    table = NeighbourList(numbers, ELEMENTS, CUTOFF, 0.1, periodic)
    inputs = positions, torch.tensor(box)[None]
    results = []
    for way in ("table", "brute force"):
        x, cell = (tensor.clone().requires_grad_() for tensor in inputs)
        if way == "table":
            energy, latents = potential(x, table.geometry(x, cell)._replace(box=cell))
            torch.testing.assert_close(energies(potential, latents), energy, **EXACT)
        else:
            energy, latents = brute(potential, x[0], cell[0], periodic)
        gradients = torch.autograd.grad(energy.sum(), (x, cell))
        results.append((energy, latents, *gradients))
    scale = results[1][2].abs().max()
    for one, other, unit in zip(*results, (1.0, 1.0, scale, scale), strict=True):
        torch.testing.assert_close(one / unit, other / unit, **EXACT)
    assert scale > 1e-3


@pytest.mark.parametrize("shared", [False, True])
def test_a_molecule_in_vacuum_has_the_numbers_of_all_pairs(shared):
    numbers = (6, 1, 8, 1, 1, 7)
    positions = 0.15 * torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    potential = make(numbers, shared_density=shared, cutoff=0.4)
    table = NeighbourList(numbers, potential.elements, 0.4, 0.0)
    copies = positions.expand(2, -1, -1, -1)  # one of each member
    for x in (positions, copies):
        for one, other in zip(potential(x, table.geometry(positions)), potential(x), strict=True):
            torch.testing.assert_close(one, other, **EXACT)
    # In a cell over twice the cutoff wide, too.
    box = torch.tensor([[1.4, 0, 0], [0.3, 1.5, 0], [0.2, 0.1, 1.6]], dtype=torch.float64).expand(4, 3, 3)
    tabled = NeighbourList(numbers, potential.elements, 0.4, 0.0).geometry(positions, box)
    for one, other in zip(potential(positions, tabled), potential(positions, Geometry(box)), strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_a_cell_too_narrow_for_the_nearest_image_is_refused():
    potential = make((14, 8, 8), cutoff=0.45).requires_grad_(False)
    x = torch.rand(1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # As long as twice the cutoff along each vector, but not as high.
    box = torch.tensor([[[1.0, 0, 0], [0.6, 0.85, 0], [0, 0, 1.0]]], dtype=torch.float64)
    with pytest.raises(UqbiasError, match=r"nearest image alone, in a cell 0.817 nm high, not over twice the cutoff"):
        potential(x, Geometry(box))
    # A graph cannot refuse: it gives no number.
    traced = torch.jit.trace(lambda x, box: potential(x, Geometry(box))[0], (x, 2 * box), check_trace=False)
    assert torch.isnan(traced(x, box)).all()
    torch.testing.assert_close(traced(x, 2 * box), potential(x, Geometry(2 * box))[0])


def test_weights_are_of_elements_and_shared():
    potential = make((14, 8, 8), elements=(1, 8, 14))
    assert potential.elements == (1, 8, 14)
    water = potential.with_numbers((8, 1, 1))
    assert (water.numbers, water.elements, potential.numbers) == ((8, 1, 1), (1, 8, 14), (14, 8, 8))
    assert [id(one) for one in water.parameters()] == [id(one) for one in potential.parameters()]
    x = 0.1 * torch.eye(3, dtype=torch.float64)[None]
    before = water(x)[0]
    alone = make((8, 1, 1), elements=(1, 8, 14))
    torch.testing.assert_close(before, alone(x)[0], rtol=0, atol=0)
    with torch.no_grad():
        potential.readout.mul_(2.0)
    torch.testing.assert_close(water(x)[0], 2 * before)
    twin = type(potential)(**water.options())
    assert (twin.numbers, twin.elements) == (water.numbers, water.elements)
    with pytest.raises(UqbiasError, match=r"of the elements \[1, 8, 14\], atoms of element 6"):
        potential.with_numbers((6, 1))


def test_empty_places_have_no_energy():
    box, periodic = CELLS["triclinic"]
    numbers, positions = atoms(box, periodic)
    boxes = torch.tensor(box)[None]
    potential = make(numbers)
    geometry = NeighbourList(numbers, ELEMENTS, CUTOFF, 0.0, periodic).geometry(positions, boxes)
    n = len(numbers)
    padded_numbers = (14, *numbers, 8)
    table = torch.where(geometry.neighbours == n, n + 2, geometry.neighbours + 1)
    empty = torch.full_like(table[:, :1], n + 2)
    shifts = torch.nn.functional.pad(geometry.shifts, (0, 0, 0, 0, 1, 1))
    present = torch.ones(1, n + 2, dtype=torch.float64)
    present[:, [0, -1]] = 0.0
    padded = geometry._replace(neighbours=torch.cat([empty, table, empty], 1), shifts=shifts, present=present)
    x = torch.nn.functional.pad(positions, (0, 0, 1, 1))
    energy, latents = potential.with_numbers(padded_numbers)(x, padded)
    expected = potential(positions, geometry)
    torch.testing.assert_close(energy, expected[0], **EXACT)
    torch.testing.assert_close(latents[:, :, 1:-1], expected[1], **EXACT)
    with pytest.raises(UqbiasError, match="empty places and without a table"):
        potential(x, Geometry(None, present=present))


def test_tables_of_other_elements_are_refused():
    box, periodic = CELLS["triclinic"]
    numbers, positions = atoms(box, periodic)
    geometry = NeighbourList(numbers, ELEMENTS, CUTOFF, 0.0, periodic).geometry(positions, torch.tensor(box)[None])
    with pytest.raises(UqbiasError, match=r"for the elements \[1, 8, 14\]; make it by a NeighbourList"):
        make(numbers, elements=(1, 8, 14))(positions, geometry)
    with pytest.raises(UqbiasError, match="in blocks None"):
        make(numbers)(positions, geometry._replace(blocks=None))


def test_what_is_best_evaluated_with_a_table():
    assert not make((14, 8)).uses_table(box=False)
    assert make((14, 8)).uses_table(box=True)
    assert make((8,) * 101).uses_table(box=False)
