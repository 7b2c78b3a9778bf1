"""Prediction rigidity of forces against its formula."""

import numpy as np
import pytest
import torch

from uqbias.errors import UqbiasError
from uqbias.model.model import UncertaintyModel
from uqbias.model.readouts import fit_uncertainty
from uqbias.molecule.neighbours import NeighbourList
from uqbias.potentials.module import FactoryModule
from uqbias.potentials.prediction import predict, with_member_forces
from uqbias.registry import UNCERTAINTIES
from uqbias.testing import molecule

ELEMENTS = (1, 6, 8)


@pytest.fixture(scope="module")
def potential():
    return FactoryModule(molecule.NUMBERS, factory="documented_module:make").double()


@pytest.fixture(scope="module")
def frames():
    return molecule.frames(20, turn=3.0)


def fitted(potential, frames, **options):
    topology = molecule.topology()
    part = UNCERTAINTIES.build("llpr_forces", options, topology=topology, n_latents=potential.n_latents).double()
    fit_uncertainty(potential, part, frames, 0)
    return UncertaintyModel(potential, part, topology).double().eval()


def slopes(potential, positions):
    """Derivatives [n, N, 3, D] of the latents summed over each element."""
    numbers, x = torch.tensor(potential.numbers), torch.tensor(positions).requires_grad_()
    latents = potential(x)[1][0]
    summed = torch.cat([latents[:, numbers == element].sum(1) for element in ELEMENTS], dim=-1)
    columns = [torch.autograd.grad(column.sum(), x, retain_graph=True)[0] for column in summed.T]
    return torch.stack(columns, dim=-1).numpy()


def test_the_whole_posterior(potential, frames):
    model, test = fitted(potential, frames, n_readouts=48, ridge=1e-4), molecule.frames(3, 7, turn=10.0).positions
    rows = slopes(potential, frames.positions).reshape(-1, 48)
    covariance = rows.T @ rows / len(rows)
    inverse = np.linalg.inv(covariance + 1e-4 * np.trace(covariance) / 48 * np.eye(48))
    phi = slopes(potential, test)
    expected = np.sqrt(np.einsum("wacd,de,wace->wa", phi, inverse, phi) / 3 + 1e-6)
    with torch.no_grad():
        atoms = model.judge.per_atom(torch.tensor(test), *model.terms(torch.tensor(test)))
        np.testing.assert_allclose(model(torch.tensor(test)).driver, atoms.mean(1))
    np.testing.assert_allclose(atoms, expected, rtol=1e-6)


def test_few_readouts_are_right_on_average(potential, frames):
    x = torch.tensor(molecule.frames(3, 7, turn=10.0).positions)
    with torch.no_grad():
        whole, few = (fitted(potential, frames, n_readouts=count, ridge=1e-4)(x).driver for count in (48, 12))
    np.testing.assert_allclose(few, whole, rtol=0.25)


def test_readouts_by_tables_and_in_blocks(potential, frames):
    readouts = fitted(potential, frames, n_readouts=3).readouts
    x = torch.tensor(frames.positions[:4])
    energy, latents, forces = with_member_forces(potential, x, None, readouts)
    table = NeighbourList(potential.numbers, potential.elements, potential.cutoff, 0.0).geometry(x)
    for one, other in zip((energy, latents, forces), with_member_forces(potential, x, table, readouts), strict=True):
        torch.testing.assert_close(one, other)
    said = predict(potential, x, 6, readouts=readouts)
    torch.testing.assert_close(said.member_forces, forces.detach())
    torch.testing.assert_close(said.forces, predict(potential, x).forces)


def test_two_that_need_other_forces(potential, frames):
    one, other = (fitted(potential, frames, n_readouts=count).judge for count in (2, 3))
    with pytest.raises(UqbiasError, match="judge and driver of llpr_forces that take different forces"):
        UncertaintyModel(potential, one, molecule.topology(), driver=other)


def test_without_the_potential(potential, frames):
    part = UNCERTAINTIES.build("llpr_forces", {}, topology=molecule.topology(), n_latents=potential.n_latents).double()
    x = torch.tensor(frames.positions)
    with pytest.raises(UqbiasError, match="'llpr_forces' without the potential; fit it with fit_model"):
        part.fit(x, *(value.detach() for value in potential(x)), seed=0)
