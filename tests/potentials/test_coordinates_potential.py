"""Potential of particles in an external field: contract, standardisation, committee, training, a whole model.

The invariance that the contract test asks of a molecule in vacuum does not apply here: the field is fixed in space, and
`test_the_field_is_fixed_in_space` asks for the opposite.
"""

import json

import numpy as np
import pytest
import torch

from uqbias.errors import UqbiasError
from uqbias.model.fit import fit_model
from uqbias.model.inference import evaluate_frames
from uqbias.model.model import UncertaintyModel
from uqbias.model.training import train
from uqbias.molecule.frames import Frames
from uqbias.molecule.geometry import Geometry
from uqbias.molecule.seen import invariants, is_in
from uqbias.molecule.topology import Topology
from uqbias.oracles.analytic import DoubleWell
from uqbias.potentials.coordinates import Coordinates
from uqbias.potentials.prediction import predict
from uqbias.registry import POTENTIALS
from uqbias.settings.training_sections import TrainingOptions

NUMBERS = (1, 6)


@pytest.fixture
def potential() -> Coordinates:
    return Coordinates(NUMBERS, n_members=3, hidden=(12, 6), seed=1).double()


@pytest.fixture
def positions() -> torch.Tensor:
    """[4, 2, 3] nm."""
    return 0.3 * torch.randn(4, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def well_frames(n, dimensions=1, seed=0):
    """Labelled frames of a double well, [n, 1, 3] nm."""
    x = np.zeros((n, 1, 3))
    x[:, 0, :dimensions] = np.random.default_rng(seed).uniform(-1.2, 1.2, (n, dimensions))
    at = torch.tensor(x, requires_grad=True)
    energy = DoubleWell(dimensions)(at).energy
    (gradient,) = torch.autograd.grad(energy.sum(), at)
    return Frames(np.array([1]), x, energy.detach().numpy(), -gradient.numpy())


def test_shapes_and_registry(potential, positions):
    assert POTENTIALS.get("coordinates") is Coordinates
    energy, latents = potential(positions)
    assert energy.shape == (3, 4)
    assert latents.shape == (3, 4, 2, 6)
    copies = positions.expand(3, -1, -1, -1).clone()
    torch.testing.assert_close(potential(copies), (energy, latents))
    assert potential.n_latents == 6


def test_the_field_is_fixed_in_space(potential, positions):
    energy, _ = potential(positions)
    turn = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    for moved in (positions + 0.1, positions @ turn.T, positions.flip(1)):
        assert (potential(moved)[0] - energy).abs().min() > 1e-4
    assert Coordinates.invariant is False


@pytest.mark.parametrize("activation", ["tanh", "silu", "softplus"])
def test_forces_are_central_differences(activation, positions):
    potential = Coordinates(NUMBERS, n_members=2, hidden=(12, 6), activation=activation).double()
    forces = predict(potential, positions, forces="members").member_forces
    step = 1e-5
    for atom, axis in ((0, 0), (1, 2)):
        shift = torch.zeros_like(positions)
        shift[:, atom, axis] = step
        difference = (potential(positions + shift)[0] - potential(positions - shift)[0]) / (2 * step)
        torch.testing.assert_close(-difference.detach(), forces[:, :, atom, axis], rtol=1e-6, atol=1e-7)


def test_no_force_along_other_axes(positions):
    potential = Coordinates(NUMBERS, n_members=2, hidden=(8,), axes="zx").double()
    forces = predict(potential, positions, forces="members").member_forces
    assert torch.equal(forces[..., 1], torch.zeros_like(forces[..., 1]))
    assert forces[..., [0, 2]].abs().min() > 0


def test_members_differ_and_follow_their_seed(positions):
    pair = Coordinates(NUMBERS, n_members=2, hidden=(8,), seed=3).double()
    second = Coordinates(NUMBERS, n_members=1, hidden=(8,), seed=3 + 100_003).double()
    energy, _ = pair(positions)
    assert (energy[0] - energy[1]).abs().min() > 1e-4
    torch.testing.assert_close(energy[1:], second(positions)[0])


def test_standardised_inputs_do_not_depend_on_place_or_size():
    """Moved and blown up training frames give the same network inputs, and energies in their own scale."""
    frames = well_frames(30, 2)
    x, (e, f) = torch.tensor(frames.positions), map(torch.tensor, frames.labels())
    here, there = (Coordinates((1,), n_members=2, hidden=(8,), axes="xy").double() for _ in range(2))
    here.standardise(x, e, f)
    there.standardise(3 * x + 7, 10 * e - 400, 10 * f / 3)
    torch.testing.assert_close(10 * here(x)[0], there(3 * x + 7)[0])
    torch.testing.assert_close(here(x)[1], there(3 * x + 7)[1])
    assert float(there.energy_shift) == pytest.approx(10 * float(e.mean()) - 400)
    spread = (x - x.mean(0))[..., :2].square().mean().sqrt()
    assert float(here.inverse_length) == pytest.approx(1 / float(spread))


def test_a_given_length_stays():
    frames = well_frames(30)
    potential = Coordinates((1,), n_members=1, hidden=(8,), axes="x", length=0.5).double()
    potential.standardise(torch.tensor(frames.positions), *map(torch.tensor, frames.labels()))
    assert float(potential.inverse_length) == 2.0


def test_frames_that_are_all_one_place_are_finite():
    potential = Coordinates((1,), n_members=2, hidden=(8,)).double()
    x, zero = torch.ones(5, 1, 3, dtype=torch.float64), torch.zeros(5, 1, 3, dtype=torch.float64)
    potential.standardise(x, zero[:, 0, 0], zero)
    assert torch.isfinite(potential(x + 1e-3)[0]).all()


def test_options_rebuild_a_twin(positions):
    options = {"hidden": [7, 5], "activation": "silu", "axes": "xz", "length": 0.2}
    potential = Coordinates(NUMBERS, n_members=2, seed=9, **options).double()
    twin = Coordinates(**json.loads(json.dumps(potential.options()))).double()
    assert torch.equal(twin(positions)[0], potential(positions)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "relu"}, "activation 'relu'; input should be 'tanh', 'silu' or 'softplus'"),
        ({"axes": "xx"}, "axes 'xx'"),
        ({"axes": "w"}, "axes 'w'"),
        ({"length": 0.0}, "length 0.0; input should be greater than 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UqbiasError, match=message):
        POTENTIALS.build("coordinates", options, numbers=(1,))


def test_a_box_is_refused(potential, positions):
    with pytest.raises(UqbiasError, match="'coordinates' with a periodic box"):
        potential(positions, Geometry(torch.eye(3, dtype=torch.float64).expand(len(positions), 3, 3)))


def test_training_learns_the_double_well():
    potential = Coordinates((1,), n_members=3, hidden=(24, 24), activation="silu", axes="xy", length=0.5)
    options = TrainingOptions(steps=300, batch_size=32, learning_rate=0.01)
    train(potential, well_frames(200, 2), options=options, seed=0, runner="eager")
    test = well_frames(100, 2, seed=1)
    found = predict(potential, test.positions, forces="members")
    error = found.energy.mean(0).double().numpy() + float(potential.energy_shift) - test.labels()[0]
    assert np.sqrt(np.mean(error**2)) < 0.2 * test.labels()[0].std()
    # Members are trained each on its own: they do not come together.
    assert float(found.energy.std(0).mean()) > 1e-3


def test_a_lone_atom_is_remembered_by_its_place():
    x = np.zeros((3, 1, 3))
    x[:, 0, 0] = (0.1, 0.2, 0.2)
    record = invariants(x[:2])
    assert np.isfinite(record).all()
    assert is_in(record, x).tolist() == [True, True, True]
    assert is_in(invariants(x[:1]), x).tolist() == [True, False, False]


def test_a_whole_model_knows_where_it_knows_nothing(tmp_path):
    """Trained left of the barrier only: the members disagree right of it; a saved model is the same."""
    frames = well_frames(160)
    left = frames[np.flatnonzero(frames.positions[:, 0, 0] < -0.3)]
    committee = {"kind": "committee", "quantity": "forces"}
    settings = {
        "potential": {
            "kind": "coordinates",
            "n_members": 4,
            "activation": "silu",
            "hidden": [32, 32],
            "axes": "x",
            "length": 0.5,
        },
        "training": {"steps": 400, "batch_size": 16, "learning_rate": 0.01, "runner": "eager"},
        "driver": committee,
        "judge": committee,
    }
    model, facts = fit_model(left, Topology((1,), ()), settings)
    assert facts["calibration_frames"] >= 10
    known, unknown = np.zeros((2, 7, 1, 3))
    known[:, 0, 0], unknown[:, 0, 0] = np.linspace(-1.1, -0.4, 7), np.linspace(0.4, 1.1, 7)
    u = [evaluate_frames(model, x).judge for x in (known, unknown)]
    assert u[1].min() > 3 * u[0].max()
    model.save(tmp_path / "model.uqb")
    loaded = UncertaintyModel.load(tmp_path / "model.uqb")
    x = torch.tensor(unknown, dtype=torch.float32)
    assert torch.equal(loaded(x).judge, model(x).judge)
