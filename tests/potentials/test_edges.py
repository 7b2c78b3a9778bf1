"""Potentials of edges: the documented torch module of a user's, in vacuum, in cells, padded, in a model file."""

import copy

import numpy as np
import pytest
import torch
from documented_module import PairNet as Documented
from periodic_systems import CELLS, atoms, brute_force

from uqbias.errors import UqbiasError
from uqbias.model.wrapping import check_frozen
from uqbias.molecule.geometry import Geometry
from uqbias.molecule.neighbours import NeighbourList
from uqbias.potentials.module import FactoryModule
from uqbias.potentials.prediction import geometry_for, predict, with_member_forces
from uqbias.registry import POTENTIALS, named_paths, names_of_file
from uqbias.testing import check_potential, molecule
from uqbias.units import EV

FACTORY = "documented_module:make"
FORWARD = Documented.forward


def documented(numbers=molecule.NUMBERS):
    return FactoryModule(numbers, factory=FACTORY).double()


def test_the_documented_module_keeps_the_contract():
    check_potential(documented())


@pytest.mark.parametrize("name", CELLS)
def test_edges_are_the_pairs_of_brute_force(name):
    box, periodic = CELLS[name]
    numbers, positions = atoms(box, periodic)
    potential = documented([{8: 8, 14: 6}.get(number, number) for number in numbers])
    cells = torch.tensor(box)[None]
    near = potential._neighbours(positions, geometry_for(potential, positions, cells, periodic))
    i, j, vectors = near.edges()
    inside = vectors.norm(dim=1) < 10 * potential.cutoff - 1e-9  # images at the cutoff are in or out by rounding
    pairs = brute_force(positions[0].numpy(), np.asarray(box), periodic, potential.cutoff)

    def rows(i, j, vectors):
        return sorted([int(a), int(b), *np.round(v, 6) + 0.0] for a, b, v in zip(i, j, vectors.numpy(), strict=True))

    a, b, shifts = (torch.tensor(column) for column in zip(*pairs, strict=True))
    expected = rows(a, b, 10 * (positions[0, b] - positions[0, a] + shifts.double() @ cells[0]))
    np.testing.assert_allclose(rows(i[inside], j[inside], vectors[inside]), expected, atol=2e-6)
    assert int(inside.sum()) == len(pairs) > 0


def test_places_that_are_empty_and_members_with_their_own_positions():
    potential, frames = documented(), molecule.frames(3)
    x = torch.tensor(frames.positions)
    energy, latents, forces = with_member_forces(potential, x)
    torch.testing.assert_close(forces[0], predict(potential, x).forces)
    # An empty place, as of a system padded to the layout of a larger one, adds nothing.
    larger = potential.with_numbers((*molecule.NUMBERS, 6))
    table = NeighbourList(molecule.NUMBERS, potential.elements, potential.cutoff, 0.0).geometry(x)
    ghost = torch.where(table.neighbours == 12, 13, table.neighbours)
    neighbours = torch.cat([ghost, torch.full_like(ghost[:, :1], 13)], dim=1)
    present = torch.cat([torch.ones(3, 12), torch.zeros(3, 1)], dim=1).double()
    padded = Geometry(None, neighbours, None, present, table.blocks)
    got, there = larger(torch.cat([x, x[:, :1]], dim=1), padded)
    torch.testing.assert_close(got, energy)
    torch.testing.assert_close(there[:, :, :12], latents)


def test_energies_of_elements_are_added_in_double_precision():
    potential = documented().float()
    shift = EV * sum(potential.module.atomic_energies[number] for number in molecule.NUMBERS)
    assert float(potential.energy_shift) == pytest.approx(shift, rel=1e-15)
    carbon = float(potential.with_numbers((*molecule.NUMBERS, 6)).energy_shift)
    assert carbon - shift == pytest.approx(EV * -1029.5)


def test_differences_of_large_energies_are_exact_in_single_precision():
    """Of 96 atoms at -3·10⁶ kJ/mol, of which the network gives -46000."""
    frames = molecule.frames(20, turn=0.1)
    places = torch.cartesian_prod(*[torch.arange(2)] * 3)
    x = torch.cat([torch.tensor(frames.positions) + place for place in places], dim=1).float().double()
    exact = documented(molecule.NUMBERS * 8)
    exact.module.readout.bias += -5.0
    single = copy.deepcopy(exact).float()
    single.centre(x[:1].float(), geometry_for(single, x[:1].float()))
    both = []
    for potential in (exact, single):
        energy = predict(potential, x, forces="none").energy[0].double() + potential.energy_shift
        both.append(energy[1:] - energy[0])
    assert float(energy[0]) < -3e6
    assert float(both[0].abs().min()) > 1e-2
    error = float((both[0] - both[1]).abs().max())
    assert error < 1e-3, error


def test_options_describe_it_and_a_file_alone_imports_nothing(monkeypatch):
    potential = documented()
    description = potential.describe()
    assert description["options"]["sha256"] == potential.sha256
    with names_of_file():
        POTENTIALS.restore(description)  # named by this process
        monkeypatch.setattr("uqbias.registry.named_paths", named_paths - {FACTORY})
        with pytest.raises(UqbiasError, match="nothing is imported; give --trust"):
            POTENTIALS.restore(description)
    with names_of_file(trust=True):
        POTENTIALS.restore(description)
    description["options"]["sha256"] = "0" * 64
    with pytest.raises(UqbiasError, match="has changed since its model was wrapped"):
        POTENTIALS.restore(description)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("no_such_module:make", "cannot be imported"),
        ("documented_module:PairNet.forward", "does not make a module"),
        ("math:sqrt", "is no function in a file"),
        ("torch.nn:ReLU", "does not make a module with cutoff"),
    ],
)
def test_what_makes_no_potential(factory, message):
    with pytest.raises(UqbiasError, match=message):
        FactoryModule((6, 1), factory=factory)


def _no_gradient(model, *inputs):
    energies, latents = FORWARD(model, *inputs)
    return energies + energies.detach(), latents


def _beyond(model, numbers, i, j, vectors):
    energies, latents = FORWARD(model, numbers, i, j, vectors)
    return energies.index_add(0, i, 0.1 / vectors.norm(dim=-1)), latents


def _not_invariant(model, numbers, i, j, vectors):
    energies, latents = FORWARD(model, numbers, i, j, vectors)
    near = vectors.norm(dim=-1, keepdim=True) < 3.0
    return energies, latents.index_add(0, i, (0.1 * near * vectors[:, :1]).expand(-1, 16))


def _single(model, numbers, i, j, vectors):
    return FORWARD(model, numbers, i, j, vectors.float())


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (_no_gradient, "along which its energy falls by"),
        (_beyond, "other energies without neighbours beyond its cutoff"),
        (_not_invariant, "other latents when it is turned"),
        (_single, r"fails on the first frame of .* \(RuntimeError: "),
    ],
)
def test_modules_that_break_the_contract_are_not_wrapped(monkeypatch, forward, message):
    potential, frames = documented(), molecule.frames(2)
    check_frozen(potential, frames)
    monkeypatch.setattr(type(potential.module), "forward", forward)
    with pytest.raises(UqbiasError, match=message):
        check_frozen(potential, frames)
