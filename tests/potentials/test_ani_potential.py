"""ANI-1x against torchani itself: members, forces, cells."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from ase import Atoms
from tiny_ani import CONSTANTS

from uqbias.errors import UqbiasError
from uqbias.potentials.ani import HARTREE, Ani, ani_1x
from uqbias.potentials.edges import optional_package
from uqbias.potentials.prediction import predict
from uqbias.testing import check_potential, molecule
from uqbias.units import ANGSTROM, EV

needs_torchani = pytest.mark.skipif(find_spec("torchani") is None, reason="not installed: pip install uqbias[ani]")


@needs_torchani
@pytest.mark.parametrize("cell", [None, [[1.1, 0, 0], [0.2, 1.2, 0], [0.1, 0.3, 1.3]]])
def test_members_and_forces_of_torchani(cell):
    model, x = ani_1x().double(), torch.tensor(molecule.frames(3).positions)
    potential = Ani.of(model, molecule.NUMBERS)
    assert potential.n_members == 8
    cells = None if cell is None else np.array([cell] * 3)
    got = predict(potential, x, forces="members", cells=cells)
    for frame in range(3):
        coordinates = (x[frame : frame + 1] / ANGSTROM).requires_grad_()
        inputs = torch.tensor([molecule.NUMBERS]), coordinates
        box = {} if cells is None else {"cell": torch.tensor(cells[0]) / ANGSTROM, "pbc": torch.tensor([True] * 3)}
        energies = model.members_energies(inputs, **box).energies[:, 0] * HARTREE * EV
        expected = (potential.energy_shift + got.energy[:, frame]).numpy()
        np.testing.assert_allclose(energies.detach().numpy(), expected, rtol=1e-10)
        (gradient,) = torch.autograd.grad(energies.mean(), coordinates)
        forces = got.member_forces[:, frame].mean(0)
        np.testing.assert_allclose(-gradient[0] / ANGSTROM, forces, atol=1e-9 * float(forces.abs().max()))
    if cells is None:
        check_potential(potential)
        structure = Atoms(molecule.NUMBERS, x[0].numpy() / ANGSTROM)
        with optional_package("torchani", "ani"):
            structure.calc = model.ase()
            energy = structure.get_potential_energy()
        assert float(got.energy[:, 0].mean() + potential.energy_shift) / EV == pytest.approx(energy, rel=1e-7)


@needs_torchani
def test_other_networks_are_refused():
    model = ani_1x()
    next(iter(model.neural_networks[0].values()))[1].alpha = 0.2
    with pytest.raises(UqbiasError, match="an ANI network with"):
        Ani.of(model, molecule.NUMBERS)


def test_several_latents_are_refused():
    with pytest.raises(UqbiasError, match="an ANI model of several"):
        Ani(molecule.NUMBERS, constants=CONSTANTS, hidden=[[8, 5], [8, 4], [8, 5]])
    with pytest.raises(UqbiasError, match="atoms of element 7"):
        Ani((7,), constants=CONSTANTS, hidden=[[8, 5]] * 3)
