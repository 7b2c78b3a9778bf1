"""Committees and the kinds with weights of their own: formulas, training, options, bad input."""

import numpy as np
import pytest
import torch
from torch import nn

from uqbias.errors import UqbiasError
from uqbias.model.batches import _Order
from uqbias.model.fit import fit_model, make_potential
from uqbias.model.model import UncertaintyModel
from uqbias.model.training import train
from uqbias.molecule.topology import Topology
from uqbias.potentials.power_spectrum import PowerSpectrum
from uqbias.potentials.prediction import predict, with_member_forces
from uqbias.registry import UNCERTAINTIES
from uqbias.settings.training_sections import TrainingOptions
from uqbias.uncertainty.heads import ElementNetwork

SMALL = {"kind": "power_spectrum", "n_radial": 4, "n_channels": 3, "l_max": 1, "hidden": [8, 4]}
QUICK = {"steps": 6, "evaluate_every": 3, "runner": "eager"}


@pytest.fixture(scope="module")
def topology(alanine_frames):
    return Topology.from_positions(alanine_frames.numbers.tolist(), alanine_frames.positions[0])


@pytest.fixture(scope="module")
def committee(alanine_frames):
    numbers = alanine_frames.numbers.tolist()
    potential = PowerSpectrum(numbers, n_members=3, n_radial=4, n_channels=3, l_max=1, hidden=(8, 4))
    energies, forces = alanine_frames.labels()
    potential.double().standardise(*(torch.tensor(x) for x in (alanine_frames.positions, energies, forces)))
    return potential


def quick_model(frames, topology, kind, **options):
    section = {"kind": kind, **options}
    settings = {"potential": SMALL, "training": QUICK, "judge": section, "driver": section}
    return fit_model(frames, topology, settings)[0]


def test_committee_is_the_standard_deviation(committee, topology, alanine_frames):
    x = torch.tensor(alanine_frames.positions[:6])
    energy, latents, forces = with_member_forces(committee, x)
    one_by_one = []
    for member in range(3):
        moved = x.clone().requires_grad_()
        one_by_one.append(-torch.autograd.grad(committee(moved)[0][member].sum(), moved)[0])
    torch.testing.assert_close(forces, torch.stack(one_by_one), rtol=1e-9, atol=1e-9)
    energy_spread = UNCERTAINTIES.build("committee", {}, topology=topology, n_latents=4).double()
    expected = energy.detach().numpy().std(axis=0, ddof=1)
    assert energy_spread(x, energy, latents).detach().numpy() == pytest.approx(np.hypot(expected, 1e-2), rel=1e-9)
    force_spread = UNCERTAINTIES.build("committee", {"quantity": "forces"}, topology=topology, n_latents=4).double()
    atoms = np.sqrt(forces.detach().numpy().var(axis=0, ddof=1).mean(axis=-1) + 1e-2)
    assert force_spread.per_atom(x, energy, latents, forces).detach().numpy() == pytest.approx(atoms, rel=1e-9)
    assert force_spread(x, energy, latents, forces).detach().numpy() == pytest.approx(atoms.mean(axis=1), rel=1e-9)


def test_predictions_with_and_without_members(committee, alanine_frames):
    x = alanine_frames.positions[:5]
    plain, each, bare = (predict(committee, x, 2, forces=wanted) for wanted in ("mean", "members", "none"))
    torch.testing.assert_close(each.member_forces.mean(0), plain.forces, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(each.energy, bare.energy, rtol=1e-12, atol=1e-9)
    assert bare.forces is None
    assert plain.member_forces is None
    assert not each.member_forces.requires_grad


@pytest.mark.slow
def test_energies_inside_are_small_whatever_the_total(alanine_frames, topology):
    """Totals of 10⁶ kJ/mol, as from DFT, must not drown the committee's spread in single precision."""
    shifted = alanine_frames[:]
    object.__setattr__(shifted, "energies", alanine_frames.energies - 9e5)
    for frames in (alanine_frames, shifted):
        model = quick_model(frames, topology, "committee")
        x = torch.tensor(frames.positions[:4], dtype=torch.float32)
        assert model.potential(x)[0].abs().max() < 1e4
        double = model.driver.double()(x.double(), *model.potential.double()(x.double()))
        single = model.driver.float()(x, *model.potential.float()(x))
        assert single.detach().numpy() == pytest.approx(double.detach().numpy(), rel=1e-3)


def test_bootstrap_resamples_for_each_member():
    plain, resampled, other = _Order(50, 0, False), _Order(50, 0, True), _Order(50, 1000, True)
    assert sorted(plain.next(50).tolist()) == list(range(50))
    first, second = set(resampled.next(50).tolist()), set(other.next(50).tolist())
    assert 20 < len(first) < 45  # 1 − 1/e of 50 are expected
    assert first != second
    assert {*resampled.next(50).tolist()} == first


@pytest.mark.slow
def test_members_see_the_frames_in_their_own_order(alanine_frames, topology):
    """With bootstrap the members differ more than by their seeds alone; each run repeats itself."""
    made = []
    for bootstrap in (False, False, True):
        potential = PowerSpectrum(topology.numbers, n_members=2, n_radial=4, n_channels=3, l_max=1, hidden=(8, 4))
        part = UNCERTAINTIES.build("committee", {"bootstrap": bootstrap}, topology=topology, n_latents=4)
        train(potential, alanine_frames, None, TrainingOptions(steps=5), uncertainties=[part], runner="eager")
        made.append(potential.readout.detach().clone())
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_element_network_is_a_network_per_element():
    numbers = (6, 1, 8, 1)
    network = ElementNetwork(numbers, 5, 7, 2).double()
    latents = torch.randn(3, 4, 5, dtype=torch.float64)
    found = network(latents)
    for atom, number in enumerate(numbers):
        e = [1, 6, 8].index(number)
        hidden = nn.functional.silu(latents[:, atom] @ network.weights[0][e] + network.biases[0][e])
        expected = hidden @ network.weights[1][e] + network.biases[1][e]
        torch.testing.assert_close(found[:, atom], expected)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("mve", {}),
        ("mve", {"beta": 0.5}),
        ("mve", {"quantity": "energy"}),
        ("evidential", {}),
        ("evidential", {"part": "total"}),
        ("evidential", {"quantity": "energy"}),
        ("shallow_ensemble", {}),
        ("shallow_ensemble", {"score": "nll", "aggregation": "max"}),
    ],
)
def test_heads_learn_the_size_of_the_error(kind, options, topology):
    """Latents say how large an error is; after some steps of its own loss u must say it too."""
    torch.manual_seed(0)
    n_atoms = len(topology.numbers)
    part = UNCERTAINTIES.build(kind, options, topology=topology, n_latents=3)
    part.set_force_unit(1000.0)
    optimiser = torch.optim.Adam(part.parameters(), lr=0.02)
    for _ in range(300):
        latents = torch.rand(1, 32, 1, 3).expand(-1, -1, n_atoms, -1)
        sigma = 0.02 + 0.3 * latents[..., 0]
        loss = part.loss(sigma[..., 0] * torch.randn(1, 32), sigma[..., None] * torch.randn(1, 32, n_atoms, 3), latents)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    probe = torch.linspace(0.05, 0.95, 10)[None, :, None, None].expand(1, 10, n_atoms, 3)
    with torch.no_grad():
        u = part(torch.zeros(10, n_atoms, 3), torch.zeros(1, 10), probe)
    assert u[-1] > 1.5 * u[0]
    if kind == "mve" and "quantity" not in options:
        assert u[2:].numpy() == pytest.approx(1000.0 * (0.02 + 0.3 * probe[0, 2:, 0, 0].numpy()), rel=0.35)


def test_gaussian_crps_is_the_closed_form(topology):
    """The trained score against numerical integration of (Φ(x) − 1[x ≥ Δ])²."""
    part = UNCERTAINTIES.build("shallow_ensemble", {"loss_weight": 1.0}, topology=topology, n_latents=3).double()
    latents = torch.randn(1, 1, len(topology.numbers), 3, dtype=torch.float64)
    sigma = float(part._spread(part._deviations(latents).sum(-2)).squeeze().detach())
    error = 0.7 * sigma
    x = torch.linspace(-12 * sigma, 12 * sigma, 200001, dtype=torch.float64)
    integrand = (0.5 * (1 + torch.erf(x / (sigma * 2**0.5))) - (x >= error).double()) ** 2
    expected = float(torch.trapezoid(integrand, x))
    found = part.loss(torch.full((1, 1), error, dtype=torch.float64), torch.zeros(1), latents)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["mve", "evidential", "shallow_ensemble", "committee"])
def test_from_one_call_to_a_file(kind, alanine_frames, topology, tmp_path):
    model = quick_model(alanine_frames, topology, kind)
    assert model.potential.n_members == (4 if kind == "committee" else 1)
    model.save(tmp_path / "model.uqb")
    loaded = UncertaintyModel.load(tmp_path / "model.uqb")
    x = torch.tensor(alanine_frames.positions[:4], dtype=torch.float32)
    for ours, theirs in zip(model(x), loaded(x), strict=True):
        assert torch.equal(ours, theirs)


def test_weights_of_heads_are_trained(alanine_frames, topology):
    potential = PowerSpectrum(topology.numbers, n_radial=4, n_channels=3, l_max=1, hidden=(8, 4))
    part = UNCERTAINTIES.build("mve", {}, topology=topology, n_latents=4)
    before = [weight.detach().clone() for weight in part.parameters()]
    train(potential, alanine_frames, None, TrainingOptions(steps=5), uncertainties=[part], runner="eager")
    assert all(not torch.equal(new, old) for new, old in zip(part.parameters(), before, strict=True))
    assert float(part.force_unit) == pytest.approx(np.sqrt(np.square(alanine_frames.forces).mean()), rel=1e-4)


def test_committee_of_one(alanine_frames, topology):
    settings = {"potential": SMALL | {"n_members": 1}, "training": QUICK, "judge": {"kind": "committee"}}
    with pytest.raises(UqbiasError, match=r"'committee' with a potential of 1 member\(s\); set potential.n_members"):
        fit_model(alanine_frames, topology, settings)


def test_head_on_a_committee(alanine_frames, topology):
    settings = {"potential": SMALL | {"n_members": 3}, "training": QUICK, "judge": {"kind": "mve"}}
    with pytest.raises(UqbiasError, match="'mve' with a committee of 3"):
        fit_model(alanine_frames, topology, settings)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("committee", {"quantity": "force"}, "quantity 'force'; input should be 'energy' or 'forces'"),
        ("committee", {"aggregation": "max"}, "aggregation 'max' of a committee's energy"),
        ("mve", {"beta": 2.0}, "'mve' with beta 2.0; input should be less than or equal to 1"),
        ("mve", {"hidden": 0}, "'mve' with hidden 0; input should be greater than or equal to 1"),
        ("mve", {"quantity": "energy", "aggregation": "max"}, "aggregation 'max' of an energy"),
        ("evidential", {"part": "epistemc"}, "part 'epistemc'; input should be 'epistemic'"),
        ("evidential", {"regularisation": -1.0}, "regularisation -1.0; input should be greater"),
        ("shallow_ensemble", {"n_heads": 1}, "n_heads 1; input should be greater than or equal to 2"),
        ("shallow_ensemble", {"score": "crpz"}, "score 'crpz'; input should be 'crps' or 'nll'"),
        ("shallow_ensemble", {"heads": 4}, "did you mean 'n_heads'"),
        ("comittee", {}, "did you mean 'committee'"),
    ],
)
def test_bad_options(kind, options, message, topology):
    with pytest.raises(UqbiasError, match=message):
        UNCERTAINTIES.build(kind, options, topology=topology, n_latents=4)


def test_committee_size_follows_the_kinds():
    from uqbias.settings.file import check_campaign

    def members(**sections):
        campaign = check_campaign({"system": {"structure": "-", "start": "-"}, **sections}, "test")
        return make_potential(campaign, Topology((1, 8, 1), ((0, 1), (1, 2))), 0).n_members

    assert members() == 1
    assert members(driver={"kind": "committee"}) == 4
    assert members(judge={"kind": "committee"}, potential={"n_members": 2}) == 2
