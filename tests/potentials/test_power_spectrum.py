"""The embedded potential: invariance, forces, committee axis, options; training."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from scipy.special import sph_harm_y

from uqbias.errors import UqbiasError
from uqbias.model.training import force_and_energy_mae, train
from uqbias.molecule.frames import Frames
from uqbias.molecule.geometry import Geometry
from uqbias.potentials.power_spectrum import PowerSpectrum, radial_basis, spherical_harmonics
from uqbias.potentials.prediction import predict
from uqbias.settings.training_sections import TrainingOptions

NUMBERS = (6, 1, 8, 1, 1, 7)


@pytest.fixture
def potential():
    return PowerSpectrum(NUMBERS, n_members=2, n_channels=5, hidden=(12, 6), seed=3).double()


@pytest.fixture
def positions():
    return 0.15 * torch.randn(4, len(NUMBERS), 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_shapes(potential, positions):
    energy, latents = potential(positions)
    assert energy.shape == (2, 4)
    assert latents.shape == (2, 4, len(NUMBERS), 6)


@pytest.mark.parametrize("mirror", [False, True])
def test_energy_and_latents_are_invariant(potential, positions, mirror):
    rotation = torch.tensor(Rotation.random(random_state=5).as_matrix()) * (-1 if mirror else 1)
    energy, latents = potential(positions)
    moved_energy, moved_latents = potential(positions @ rotation.T + 3.0)
    torch.testing.assert_close(moved_energy, energy, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moved_latents, latents, rtol=1e-9, atol=1e-9)


def test_permuting_like_atoms_permutes_latents(potential, positions):
    order = [0, 4, 2, 1, 3, 5]  # the three hydrogens
    energy, latents = potential(positions)
    moved_energy, moved_latents = potential(positions[:, order])
    torch.testing.assert_close(moved_energy, energy)
    torch.testing.assert_close(moved_latents, latents[:, :, order])


def test_committee_that_shares_its_density(positions):
    """Members are then networks on one power spectrum; with the same networks they are the same."""
    shared = PowerSpectrum(NUMBERS, n_members=3, n_channels=5, hidden=(12, 6), seed=3, shared_density=True).double()
    assert shared.mixing.shape[0] == 1
    energy, latents = shared(positions)
    assert energy.shape == (3, 4)
    assert latents.shape == (3, 4, len(NUMBERS), 6)
    assert torch.var(energy, dim=0).min() > 0
    single = PowerSpectrum(NUMBERS, n_members=1, n_channels=5, hidden=(12, 6), seed=3).double()
    torch.testing.assert_close(single(positions)[0][0], energy[0])
    copies = positions.expand(3, -1, -1, -1)
    torch.testing.assert_close(shared(copies)[0], energy)


def test_unlike_atoms_are_told_apart(potential, positions):
    exchanged, _ = potential(positions[:, [2, 1, 0, 3, 4, 5]])
    assert (exchanged - potential(positions)[0]).abs().min() > 1e-3


def test_forces_are_central_differences(potential, positions):
    moved = positions.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(potential(moved)[0].sum(), moved)
    step, worst = 1e-6, 0.0
    for atom in range(len(NUMBERS)):
        for axis in range(3):
            shift = torch.zeros_like(positions)
            shift[:, atom, axis] = step
            with torch.no_grad():
                up, down = potential(positions + shift)[0], potential(positions - shift)[0]
            difference = (up - down).sum(0) / (2 * step)
            worst = max(worst, float((difference - gradient[:, atom, axis]).abs().max()))
    assert worst <= 1e-6 * float(gradient.abs().max())


def test_an_atom_that_leaves_does_so_smoothly(potential):
    line = torch.zeros(201, len(NUMBERS), 3, dtype=torch.float64)
    line[:, :, 0] = torch.arange(len(NUMBERS)) * 0.12
    line[:, -1, 1] = torch.linspace(0.3, 1.2, 201, dtype=torch.float64)
    energy = potential(line)[0][0].detach()
    curvature = (energy[2:] - 2 * energy[1:-1] + energy[:-2]).abs()
    assert float(curvature[-40:].max()) == 0.0  # beyond the cutoff nothing changes
    assert float(curvature.max()) < 0.05 * float(energy.max() - energy.min())


def test_box_gives_the_nearest_image(potential, positions):
    box = (torch.eye(3, dtype=torch.float64) * 2.5).expand(len(positions), 3, 3)
    shifted = positions.clone()
    shifted[:, 2] += torch.tensor([2.5, -5.0, 0.0])
    torch.testing.assert_close(potential(shifted, Geometry(box))[0], potential(positions)[0])


def test_geometries_of_another_contract_are_refused(potential, positions):
    neighbours = torch.zeros(len(positions), len(NUMBERS), 3, dtype=torch.int64)
    with pytest.raises(UqbiasError, match="a table of 3 neighbours in blocks None for the elements"):
        potential(positions, Geometry(None, neighbours))
    potential.needs = "dense"
    with pytest.raises(UqbiasError, match="'power_spectrum' with a table of neighbours, but it takes all pairs"):
        potential(positions, Geometry(None, neighbours))
    with pytest.raises(UqbiasError, match=r"a box of 2 dimension\(s\); give \[W, 3, 3\]"):
        potential(positions, Geometry(torch.eye(3)))
    potential.needs = "table"
    with pytest.raises(UqbiasError, match="without a table of neighbours"):
        potential(positions)


def test_a_frozen_potential_is_not_trained(potential):
    potential.frozen = True
    frames = Frames(np.array(NUMBERS), np.zeros((2, len(NUMBERS), 3)))
    with pytest.raises(UqbiasError, match="'power_spectrum', which is frozen"):
        train(potential, frames)


def test_members_differ_and_follow_their_seed(positions):
    pair = PowerSpectrum(NUMBERS, n_members=2, seed=3).double()
    second = PowerSpectrum(NUMBERS, n_members=1, seed=3 + 100_003).double()
    energy, _ = pair(positions)
    assert (energy[0] - energy[1]).abs().min() > 1e-3
    torch.testing.assert_close(energy[1:], second(positions)[0])


def test_options_rebuild_a_twin(potential, positions):
    twin = PowerSpectrum(**potential.options()).double()
    torch.testing.assert_close(twin(positions)[0], potential(positions)[0], rtol=0, atol=0)


def test_spherical_harmonics_span_each_l():
    """Scalar products within an l equal those of SciPy's: the same space with the stated normalisation."""
    unit = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    unit /= unit.norm(dim=-1, keepdim=True)
    ours = spherical_harmonics(unit, 3).numpy()
    theta, phi = np.arccos(unit[:, 2].numpy()), np.arctan2(unit[:, 1].numpy(), unit[:, 0].numpy())
    for degree in range(4):
        block = ours[:, degree**2 : (degree + 1) ** 2]
        theirs = np.stack([sph_harm_y(degree, m, theta, phi) for m in range(-degree, degree + 1)], axis=-1)
        np.testing.assert_allclose(block @ block.T, 4 * np.pi * (theirs @ theirs.conj().T).real, atol=1e-10)


def test_radial_basis_vanishes_at_the_cutoff():
    at = torch.tensor([0.4999999, 0.5, 0.7], dtype=torch.float64)
    assert float(radial_basis(at, 0.5, 6).abs().max()) < 1e-12


def harmonic_frames(n, seed):
    """A triatomic molecule with harmonic pair distances, labelled exactly."""
    generator = np.random.default_rng(seed)
    reference = np.array([[0.0, 0.0, 0.0], [0.1, 0.0, 0.0], [-0.03, 0.09, 0.0]])
    positions = reference + 0.006 * generator.standard_normal((n, 3, 3))
    x = torch.tensor(positions, requires_grad=True)
    energy = sum(
        2e4 * ((x[:, i] - x[:, j]).norm(dim=-1) - float(np.linalg.norm(reference[i] - reference[j]))) ** 2
        for i, j in ((0, 1), (0, 2), (1, 2))
    )
    (gradient,) = torch.autograd.grad(energy.sum(), x)
    return Frames(np.array([8, 1, 1]), positions, energy.detach().numpy() - 7e4, -gradient.numpy())


OPTIONS = TrainingOptions(steps=400, batch_size=8, evaluate_every=100)


def trained(tmp_path, **changes):
    potential = PowerSpectrum((8, 1, 1), n_channels=4, hidden=(16, 8))
    frames = harmonic_frames(80, 0)
    arguments = {"seed": 0, "runner": "eager", "cache_dir": tmp_path} | changes
    result = train(potential, frames[:60], frames[60:], OPTIONS, **arguments)
    return potential, result


@pytest.mark.slow
def test_training_learns(tmp_path):
    potential, result = trained(tmp_path)
    test = harmonic_frames(50, 1)
    untrained = PowerSpectrum((8, 1, 1), n_channels=4, hidden=(16, 8))
    untrained.standardise(*(torch.tensor(a, dtype=torch.float32) for a in (test.positions, *test.labels())))
    before, _ = force_and_energy_mae(untrained, test)
    after, energy_mae = force_and_energy_mae(potential, test)
    assert after < 0.1 * before
    assert energy_mae < 5
    assert result.history[-1]["validation_force_mae"] < 0.1 * before


@pytest.mark.slow
def test_training_repeats_bit_by_bit(tmp_path):
    first, _ = trained(tmp_path)
    second, _ = trained(tmp_path)
    other, _ = trained(tmp_path, seed=1)
    assert torch.equal(first.mixing, second.mixing)
    assert not torch.equal(first.mixing, other.mixing)


@pytest.mark.slow
def test_training_refuses_nan_and_strangers(tmp_path):
    frames = harmonic_frames(20, 0)
    frames.labels()[1][3, 0, 0] = np.nan
    with pytest.raises(UqbiasError, match="loss is nan"):
        train(PowerSpectrum((8, 1, 1), hidden=(4,)), frames, None, OPTIONS, runner="eager")
    with pytest.raises(UqbiasError, match="training frames have atoms"):
        train(PowerSpectrum((6, 1, 1), hidden=(4,)), frames, None, OPTIONS, runner="eager")


def test_predictions_do_not_depend_on_the_batch(potential, positions):
    whole, parts = predict(potential, positions), predict(potential, positions, batch_size=3)
    for left, right in zip(whole, parts, strict=True):
        torch.testing.assert_close(left, right)
