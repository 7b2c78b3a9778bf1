"""Scores of the ammonia system on surfaces whose barrier is known, without an oracle."""

import importlib.util
import sys

import numpy as np
import pytest
import torch
from molecules import AMMONIA, AMMONIA_FOLDER

from uqbias.errors import UqbiasError
from uqbias.model.model import UncertaintyModel
from uqbias.potentials.base import Potential
from uqbias.registry import UNCERTAINTIES
from uqbias.units import ANGSTROM, KCAL

BARRIER, RISE, BOND = 25.0, 0.037, 0.101


@pytest.fixture(scope="module")
def scores():
    specification = importlib.util.spec_from_file_location("ammonia_evaluate", AMMONIA_FOLDER / "evaluate.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    yield module
    del sys.modules[specification.name]


class Umbrella(Potential):
    """N-H bonds, a double well in the height of N over the plane of the H, equal distances between the H.

    The last cost nothing in a threefold symmetric molecule, so the barrier is ``barrier``.
    """

    kind = "umbrella"

    def __init__(self, barrier=BARRIER, stiffness=2e5, depth=None):
        super().__init__()
        self.numbers, self.n_members, self.n_latents, self.cutoff = AMMONIA.numbers, 2, 1, 1.0
        self.barrier, self.stiffness, self.depth = barrier, stiffness, depth
        self.one = torch.nn.Parameter(torch.ones(2, 1))
        self.register_buffer("energy_shift", torch.tensor(-100.0))

    def options(self):
        return {}

    def standardise(self, positions, energies, forces):
        pass

    def forward(self, positions, geometry=None):
        x = positions if positions.dim() == 4 else positions[None]
        arms = x[..., 1:, :] - x[..., :1, :]
        sides = arms.roll(1, -2) - arms
        lengths = sides.square().sum(-1).sqrt()
        normal = torch.linalg.cross(sides[..., 0, :], sides[..., 1, :])
        rise = (arms[..., 0, :] * normal).sum(-1) / normal.square().sum(-1).sqrt()
        stretch = arms.square().sum(-1).sqrt() - BOND
        bonds = 0.5 * self.stiffness * stretch.square()
        if self.depth is not None:
            width = (0.5 * self.stiffness / self.depth) ** 0.5
            bonds = self.depth * (1 - torch.exp(-width * stretch)).square()
        ring = 0.5e5 * (lengths - lengths.mean(-1, keepdim=True)).square()
        energy = (bonds + ring).sum(-1) + self.barrier * ((rise / RISE).square() - 1).square()
        return self.one * energy, x[..., :1] * torch.ones(2, 1, 1, 1, dtype=x.dtype)


def umbrella(**options):
    judge = UNCERTAINTIES.build("committee", {"quantity": "energy"}, topology=AMMONIA, n_latents=1)
    return UncertaintyModel(Umbrella(**options), judge, AMMONIA).eval()


def test_barrier_of_a_known_surface(scores):
    model = umbrella()
    before = model.potential.one.dtype
    found = scores.inversion_barrier(model)
    assert found.fault == ""
    assert found.kcal == pytest.approx(BARRIER / KCAL, abs=1e-3)
    assert found.bond == pytest.approx(BOND / ANGSTROM, abs=1e-4)
    assert found.planar_bond == pytest.approx(BOND / ANGSTROM, abs=1e-4)
    ring = np.sqrt(3 * (BOND**2 - RISE**2))
    assert found.angle == pytest.approx(np.degrees(2 * np.arcsin(0.5 * ring / BOND)), abs=0.05)
    # Relaxed in double precision, on a copy.
    assert model.potential.one.dtype is before


@pytest.mark.parametrize(
    ("surface", "fault"),
    [
        # No bonds of ammonia, in either geometry: the pyramidal one is named first.
        (lambda x: _spring(x, 0.5), "pyramidal geometry"),
        (lambda x: _spring(x, 0.1), "relaxes to a planar one"),
        (lambda x: _spring(x, 0.2), "N-H 2.00"),
    ],
)
def test_a_surface_without_ammonia_has_no_barrier(scores, surface, fault):
    found = scores.inversion_barrier(surface)
    assert np.isnan(found.kcal)
    assert fault in found.fault


def _spring(x, length):
    """Bonds of ``length`` and N drawn to the plane of the H; the H repel each other until they form a plane with it."""
    y = torch.tensor(x, requires_grad=True)
    arms = y[:, 1:] - y[:, :1]
    energy = 1e5 * (arms.norm(dim=2) - length).square().sum(1) + 1e5 * arms.sum(1).square().sum(1)
    (gradient,) = torch.autograd.grad(energy.sum(), y)
    return energy.detach().numpy(), -gradient.numpy()


def test_height_changes_its_sign_on_inversion(scores):
    x = np.stack([scores.starting_geometry(rise) for rise in (0.037, 0.0, -0.02)])
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turn *= np.linalg.det(turn)
    np.testing.assert_allclose(scores.height(x @ turn.T + 0.3), [0.037, 0.0, -0.02], atol=1e-12)
    np.testing.assert_allclose(scores.hydrogen_angle(x)[1], 120.0)


def test_path_relaxes_the_bonds(scores):
    rise = np.array([-0.03, 0.0, 0.03])
    path = scores.inversion_path(scores.model_surface(umbrella()), rise)
    np.testing.assert_allclose(scores.height(path), rise, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(path[:, 1:] - path[:, :1], axis=2), BOND, atol=1e-5)


@pytest.mark.slow
def test_dynamics_conserve_energy_at_the_temperature(scores):
    found = scores.nve(umbrella(), 4, duration_ps=1.0, equilibration_ps=0.5, timestep_fs=0.5, runner="eager")
    assert (found.runs, found.stable) == (4, 4)
    # Five standard deviations of a bond at 1500 K: sqrt(kT / stiffness) is 0.08 Å.
    assert 0.6 < found.shortest < 1.0 < found.longest < 1.42
    assert 800 < found.temperature < 2200
    # A total energy without its kinetic part, or at another time than the potential part, swings by tens of kJ/mol.
    assert max(found.spread) < 2.0
    assert np.abs(found.drift).max() < 2.0
    assert found.inversions > 0


def test_runs_that_fall_apart_are_counted(scores):
    found = scores.nve(umbrella(depth=20.0), 4, duration_ps=0.2, equilibration_ps=0.2, runner="eager")
    assert found.stable < found.runs
    assert found.longest > 2.25


def test_directory_without_models(scores, tmp_path):
    with pytest.raises(UqbiasError, match="holds no round_"):
        scores.models_of(tmp_path)
