"""Densities against scikit-learn and direct sums, shapes under refit, calibration, metrics, bad input."""

import json

import numpy as np
import pytest
import scipy.stats
import torch
from ase.build import molecule
from scipy.spatial.transform import Rotation
from scipy.special import logsumexp
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture as Mixture

from uqbias.errors import UqbiasError
from uqbias.model import metrics
from uqbias.model.model import UncertaintyModel
from uqbias.molecule.measures import dihedral_angles
from uqbias.molecule.topology import Topology
from uqbias.potentials.power_spectrum import PowerSpectrum
from uqbias.registry import UNCERTAINTIES
from uqbias.uncertainty.aggregation import Aggregation
from uqbias.uncertainty.base import rebuild_uncertainty
from uqbias.uncertainty.conformal import Conformal

N_LATENTS = 3
TORSIONS = {"kind": "torsions", "heavy_only": False}
OPTIONS = {
    "kernel": ("kernel_density", {"features": TORSIONS, "capacity": 128}),
    "gaussian": ("kernel_density", {"features": "pair_distances", "kernel": "gaussian", "capacity": 128}),
    "gmm_distances": (
        "gmm",
        {"features": {"kind": "pair_distances", "min_separation": 2}, "dims": 3, "squash": "softplus_sqrt"},
    ),
    "gmm_latents": ("gmm", {"features": {"kind": "latents", "atoms": "heavy"}, "aggregation": "max"}),
    "gmm_elements": ("gmm", {"per_element": True, "samples_per_component": 100, "choose_components": "bic"}),
    "mahalanobis": ("distance", {"aggregation": "local_mean_max"}),
    "knn": ("distance", {"metric": "knn", "capacity": 64}),
    "knn_geometry": (
        "distance",
        {"features": {"kind": "pair_distances", "min_separation": 2}, "metric": "knn", "capacity": 64},
    ),
    "llpr": ("llpr", {}),
    "llpr_structure": ("llpr", {"scope": "structure"}),
}


@pytest.fixture(scope="module")
def butane():
    atoms = molecule("trans-butane")
    return Topology.from_positions(atoms.numbers.tolist(), atoms.positions * 0.1), atoms.positions * 0.1


def inputs(positions, n, scale=0.015, seed=0):
    """Positions, energies and stand-in latents of n frames."""
    rng = np.random.default_rng(seed)
    x = torch.tensor(positions + rng.normal(0.0, scale, (n, *positions.shape)))
    return x, *potential(x)


def potential(x):
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    latents = torch.stack([torch.exp(-((distances / s) ** 2)).sum(-1) for s in (0.1, 0.2, 0.4)], -1)[None]
    return latents.sum((-1, -2)), latents


def fitted(butane, name, n=100, **changes):
    topology, positions = butane
    kind, options = OPTIONS[name]
    made = UNCERTAINTIES.build(kind, options | changes, topology=topology, n_latents=N_LATENTS).double()
    made.prepare(inputs(positions, 60, 0.05, seed=9)[0])
    made.fit(*inputs(positions, n), seed=0)
    return made


@pytest.mark.parametrize("name", OPTIONS)
def test_rebuilt_from_json(butane, name):
    made = fitted(butane, name)
    twin = rebuild_uncertainty(json.loads(json.dumps({"kind": made.kind, "options": made.options()}))).double()
    twin.load_state_dict(made.state_dict())
    frames = inputs(butane[1], 4, seed=1)
    torch.testing.assert_close(twin(*frames), made(*frames), rtol=0, atol=0)
    assert twin.options() == made.options()


@pytest.mark.parametrize("name", OPTIONS)
def test_refit_keeps_shapes_and_is_deterministic(butane, name):
    made = fitted(butane, name, n=60)
    shapes = {key: (tensor.shape, tensor.data_ptr()) for key, tensor in made.state_dict().items()}
    before = made(*inputs(butane[1], 4, seed=1))
    made.fit(*inputs(butane[1], 120, seed=2), seed=0)
    assert {key: (tensor.shape, tensor.data_ptr()) for key, tensor in made.state_dict().items()} == shapes
    assert not torch.equal(made(*inputs(butane[1], 4, seed=1)), before)
    made.fit(*inputs(butane[1], 60), seed=0)
    torch.testing.assert_close(made(*inputs(butane[1], 4, seed=1)), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", OPTIONS)
def test_median_is_zero_and_far_frames_are_higher(butane, name):
    made = fitted(butane, name)
    inside = made(*inputs(butane[1], 100))
    outside = made(*inputs(butane[1], 100, scale=0.06, seed=3))
    if made.unit == "nats":
        assert abs(inside.median().item()) < 0.2
    assert outside.median() > inside.quantile(0.95)


@pytest.mark.parametrize(("name", "components"), [("gmm_distances", 1), ("gmm_distances", 6), ("gmm_latents", 4)])
def test_likelihood_is_that_of_sklearn(butane, name, components):
    made = fitted(butane, name, n_components=components, samples_per_component=20)
    train, test = inputs(butane[1], 100), inputs(butane[1], 30, seed=5)
    samples = [made.features(x, latents).numpy().reshape(-1, made.features.dim) for x, _, latents in (train, test)]
    z = [made.densities[0].whitening.transform(sample) for sample in samples]
    used = max(1, min(components, len(z[0]) // 20))
    expected = Mixture(used, reg_covar=made.reg_covar, max_iter=500, random_state=0).fit(z[0]).score_samples(z[1])
    found = -made.atom_values(*test).numpy().reshape(-1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)
    assert int((made.densities[0].log_weights > -1e8).sum()) == used


@pytest.mark.parametrize("per_element", [False, True])
def test_ten_thousand_random_latents(butane, per_element):
    """u per atom is −score_samples of scikit-learn to 1e-8 in float64."""
    topology, positions = butane
    rng = np.random.default_rng(0)
    options = {"n_components": 4, "per_element": per_element, "whitening": "none"}
    made = UNCERTAINTIES.build("gmm", options, topology=topology, n_latents=8).double()
    n = 720  # of 14 atoms: 10 080 latents
    x = torch.tensor(positions) + 0.01 * torch.randn(n, 14, 3)
    train, test = (torch.tensor(rng.normal(size=(1, n, 14, 8)) @ rng.normal(size=(8, 8))) for _ in range(2))
    made.fit(x, torch.zeros(1, n), train, seed=0)
    found = made.atom_values(x, torch.zeros(1, n), test).numpy()
    numbers = np.array(topology.numbers)
    groups = [numbers == 1, numbers == 6] if per_element else [numbers > 0]
    for density, group in zip(made.densities, groups, strict=True):
        z = [density.whitening.transform(latents[0].numpy()[:, group].reshape(-1, 8)) for latents in (train, test)]
        mixture = Mixture(4, reg_covar=1e-3, max_iter=500, random_state=0).fit(z[0])
        expected = -mixture.score_samples(z[1])
        # One mixture per element: each NLL is counted from its lower median over the training atoms.
        start = np.sort(-mixture.score_samples(z[0]))[(len(z[0]) - 1) // 2] if per_element else 0.0
        np.testing.assert_allclose(found[:, group].reshape(-1), expected - start, rtol=1e-11, atol=1e-8)


def test_components_by_bic(butane):
    """Three clouds are found to be three, and the choice is that of a loop over scikit-learn."""
    topology, positions = butane
    rng = np.random.default_rng(2)
    centres = np.array([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0]])
    clouds = centres[rng.integers(0, 3, (60, 14))] + rng.normal(0, 0.5, (60, 14, 2))
    made = UNCERTAINTIES.build(
        "gmm", {"choose_components": "bic", "whitening": "none"}, topology=topology, n_latents=2
    ).double()
    x = torch.tensor(positions) + 0.01 * torch.randn(60, 14, 3)
    made.fit(x, torch.zeros(1, 60), torch.tensor(clouds)[None], seed=0)
    flat = clouds.reshape(-1, 2) - clouds.reshape(-1, 2).mean(axis=0)
    bic = [Mixture(k, reg_covar=1e-3, max_iter=500, random_state=0).fit(flat).bic(flat) for k in range(1, 7)]
    assert int((made.densities[0].log_weights > -1e8).sum()) == int(np.argmin(bic)) + 1 == 3


def test_bic_does_not_count_directions_that_the_data_do_not_have(butane):
    topology, positions = butane
    rng = np.random.default_rng(3)
    centres = np.array([[0.0, 0.0], [8.0, 0.0], [0.0, 8.0]])
    flat = centres[rng.integers(0, 3, (60, 14))] + rng.normal(0, 0.5, (60, 14, 2))
    found = []
    for latents in (flat, flat @ rng.normal(size=(2, 12))):
        made = UNCERTAINTIES.build(
            "gmm", {"choose_components": "bic"}, topology=topology, n_latents=latents.shape[-1]
        ).double()
        x = torch.tensor(positions) + 0.01 * torch.randn(60, 14, 3)
        made.fit(x, torch.zeros(1, 60), torch.tensor(latents)[None], seed=0)
        found.append(int((made.densities[0].log_weights > -1e8).sum()))
    assert found == [3, 3]


def test_elements_are_comparable(butane):
    """Each element's NLL is counted from its median, whatever the size and the rank of its latents."""
    topology, positions = butane
    rng = np.random.default_rng(4)
    numbers = np.array(topology.numbers)
    latents = rng.normal(size=(80, 14, 6))
    latents[:, numbers == 6] = 100 * rng.normal(size=(80, 4, 2)) @ rng.normal(size=(2, 6))
    made = UNCERTAINTIES.build("gmm", {"per_element": True}, topology=topology, n_latents=6).double()
    x = torch.tensor(positions) + 0.01 * torch.randn(80, 14, 3)
    made.fit(x, torch.zeros(1, 80), torch.tensor(latents)[None], seed=0)
    values = made.per_atom(x, torch.zeros(1, 80), torch.tensor(latents)[None]).numpy()
    for element in (1, 6):
        assert abs(np.median(values[:, numbers == element])) < 0.1


def test_one_geometry_is_refused_however_it_is_turned(butane):
    topology, positions = butane
    turned = np.array([positions @ rotation.T for rotation in Rotation.random(30, random_state=0).as_matrix()])
    x = torch.tensor(turned)
    for kind in ("gmm", "llpr", "distance"):
        with pytest.raises(UqbiasError, match="are one geometry, moved or turned"):
            UNCERTAINTIES.build(kind, {}, topology=topology, n_latents=N_LATENTS).double().fit(x, *potential(x), seed=0)


def test_latents_of_a_member_that_is_not_there(butane):
    made = UNCERTAINTIES.build(
        "gmm", {"features": {"kind": "latents", "member": 3}}, topology=butane[0], n_latents=N_LATENTS
    )
    made.check_members(4)
    with pytest.raises(UqbiasError, match=r"features of member 3 of a potential of 1 member"):
        made.check_members(1)


def test_mahalanobis_distance(butane):
    made = fitted(butane, "mahalanobis")
    train, test = inputs(butane[1], 100), inputs(butane[1], 20, seed=5)
    found = made.per_atom(*test).numpy()
    numbers = np.array(butane[0].numbers)
    for element in (1, 6):
        flat = train[2][0].numpy()[:, numbers == element].reshape(-1, N_LATENTS)
        covariance = np.cov(flat.T, bias=True)
        inverse = np.linalg.inv(covariance + 1e-5 * np.trace(covariance) / N_LATENTS * np.eye(N_LATENTS))
        off = test[2][0].numpy()[:, numbers == element] - flat.mean(axis=0)
        expected = np.sqrt(np.einsum("wai,ij,waj->wa", off, inverse, off) + 0.1**2)
        np.testing.assert_allclose(found[:, numbers == element], expected, rtol=1e-6)


def test_nearest_neighbours_are_about_k(butane):
    """The smooth mean lies between the nearest distance and the mean over the 2 k nearest, and grows off the data."""
    made = fitted(butane, "knn", capacity=512)
    inside, outside = inputs(butane[1], 30, seed=5), inputs(butane[1], 30, scale=0.06, seed=3)
    references = made.references[0][made.offsets[0] > -1.0].numpy()
    hydrogens = np.array(butane[0].numbers) == 1
    z = ((inside[2][0][:, hydrogens] - made.mean[0]) @ made.matrix[0]).numpy().reshape(-1, N_LATENTS)
    distances = np.sort(np.sqrt(((z[:, None] - references) ** 2).sum(-1) + 0.1**2), axis=1)
    found = made.per_atom(*inside).numpy()[:, hydrogens].reshape(-1)
    assert (found >= distances[:, 0] - 1e-9).all()
    assert np.median(found) < np.median(distances[:, :20].mean(axis=1))
    assert np.median(made(*outside)) > np.quantile(made(*inside), 0.95)


def test_rigidity_is_the_posterior_variance(butane):
    """u² of a structure and of an atom against the inverse of the regularised covariance."""
    whole, atoms = fitted(butane, "llpr_structure"), fitted(butane, "llpr")
    train, test = inputs(butane[1], 100)[2][0].numpy(), inputs(butane[1], 20, seed=5)
    numbers = np.array(butane[0].numbers)

    def summed(latents):
        return np.concatenate([latents[:, numbers == element].sum(axis=1) for element in (1, 6)], axis=1)

    covariance = np.cov(summed(train).T, bias=True)
    regularised = covariance + 1e-4 * np.trace(covariance) / 6 * np.eye(6)
    inverse = np.linalg.inv(regularised)
    f = summed(test[2][0].numpy()) - summed(train).mean(axis=0)
    expected = np.sqrt(np.einsum("wi,ij,wj->w", f, inverse, f) + 1e-6)
    np.testing.assert_allclose(whole(*test).numpy(), expected, rtol=1e-6)
    block = np.linalg.inv(regularised[3:, 3:])
    h = test[2][0].numpy()[:, numbers == 6] - summed(train).mean(axis=0)[3:] / (numbers == 6).sum()
    np.testing.assert_allclose(
        atoms.per_atom(*test).numpy()[:, numbers == 6],
        np.sqrt(np.einsum("wai,ij,waj->wa", h, block, h) + 1e-6),
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("distance", {"metric": "knn", "k": 300}, "k = 300 of 'distance' with capacity 256"),
        ("distance", {"metric": "knnn"}, "metric 'knnn'; input should be 'mahalanobis' or 'knn'"),
        ("distance", {"features": "pair_distances", "per_element": True}, "not per atom; set it to false"),
        ("llpr", {"scope": "atom"}, "scope 'atom'; input should be 'atoms' or 'structure'"),
        ("llpr", {"ridge": 0.0}, "'llpr' with ridge 0.0; input should be greater than 0"),
        ("llpr", {"features": "torsions"}, "features 'torsions' of 'llpr'"),
        (
            "llpr",
            {"features": {"kind": "latents", "atoms": "heavy"}, "scope": "structure"},
            "scope 'structure' of 'llpr' with 4 of 14 atoms",
        ),
        ("gmm", {"choose_components": "aic"}, "choose_components 'aic'; input should be 'fixed'"),
        ("gmm", {"features": "pair_distances", "per_element": True}, "not per atom; set it to false"),
    ],
)
def test_bad_options_of_latent_kinds(butane, kind, options, message):
    with pytest.raises(UqbiasError, match=message):
        UNCERTAINTIES.build(kind, options, topology=butane[0], n_latents=N_LATENTS)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("distance", {}, "features of the H atoms have no variance"),
        ("llpr", {}, "the latents of the H atoms have no variance"),
        ("gmm", {"per_element": True}, "the H atoms: the features have no variance"),
    ],
)
def test_latents_without_variance(butane, kind, options, message):
    x, energy, latents = inputs(butane[1], 20)
    made = UNCERTAINTIES.build(kind, options, topology=butane[0], n_latents=N_LATENTS).double()
    with pytest.raises(UqbiasError, match=message):
        made.fit(x, energy, torch.ones_like(latents), seed=0)


def test_squash_follows_the_recipe(butane):
    made = fitted(butane, "gmm_distances")
    x, energy, latents = inputs(butane[1], 100)
    nll = made.atom_values(x, energy, latents).numpy()
    median, upper = np.quantile(nll, (0.5, 0.95))
    u0 = np.sqrt(np.log1p(np.exp((nll - median) / (upper - median))) + 0.1)
    expected = (u0 - np.median(u0)) / (1.3 * (np.median(u0) - np.quantile(u0, 0.1)))
    np.testing.assert_allclose(made(x, energy, latents).numpy(), expected, atol=1e-9)


def test_kernel_density_is_the_direct_sum(butane):
    made = fitted(butane, "kernel", n=50)
    references, test = inputs(butane[1], 50)[0].numpy(), inputs(butane[1], 20, seed=4)
    weights = made.features.weights.numpy()
    angles = [dihedral_angles(x, made.features.dihedrals) for x in (references, test[0].numpy())]

    def density(theta):
        cosines = np.cos(theta[:, None] - angles[0][None])
        return -logsumexp(5.0 * (weights * (cosines - 1.0)).sum(-1), axis=1) + np.log(50)

    expected = density(angles[1]) - np.median(density(angles[0]))
    np.testing.assert_allclose(made(*test).numpy(), expected, atol=5e-3)


def test_gaussian_kernel_is_the_direct_sum(butane):
    made = fitted(butane, "gaussian", n=50, bandwidth=0.3)
    z = [
        made.whitening.transform(made.features(x, latents).numpy())
        for x, _, latents in (inputs(butane[1], 50), inputs(butane[1], 20, seed=4))
    ]

    def density(points):
        squares = ((points[:, None] - z[0][None]) ** 2).sum(-1)
        return -logsumexp(-squares / (2 * 0.3**2), axis=1) + np.log(50)

    expected = density(z[1]) - np.median(density(z[0]))
    np.testing.assert_allclose(made(*inputs(butane[1], 20, seed=4)).numpy(), expected, atol=1e-9)


def test_capacity_grows_to_the_next_power_of_two(butane):
    made = fitted(butane, "kernel", n=100, capacity=100)
    assert made.capacity == 128
    made.fit(*inputs(butane[1], 150), seed=0)
    assert made.capacity == made.options()["capacity"] == 256
    assert made.references.dtype == torch.float64
    assert torch.isfinite(made(*inputs(butane[1], 4))).all()


def test_unprepared_features_are_prepared_by_fit_and_then_kept(butane):
    topology, positions = butane
    made = UNCERTAINTIES.build("kernel_density", {"features": TORSIONS}, topology=topology, n_latents=0).double()
    made.fit(*inputs(positions, 60, 0.05), seed=0)
    weights = made.features.weights.clone()
    assert made.features.is_prepared
    made.fit(*inputs(positions, 60, 0.01), seed=0)
    assert torch.equal(made.features.weights, weights)


def test_per_atom_values(butane):
    topology, positions = butane
    made = fitted(butane, "gmm_latents", aggregation="mean")
    frames = inputs(positions, 3, seed=1)
    values = made.per_atom(*frames)
    carbons = [i for i, number in enumerate(topology.numbers) if number == 6]
    assert values.shape == (3, 14)
    torch.testing.assert_close(values[:, carbons].mean(1) - made.nll_median, made(*frames))
    assert (values[:, [i for i in range(14) if i not in carbons]] == 0).all()
    assert fitted(butane, "kernel").per_atom(*frames) is None


def test_aggregation(butane):
    topology, _ = butane
    values = torch.randn(5, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def aggregate(spec):
        return Aggregation.build(topology, range(14), spec).double()(values)

    torch.testing.assert_close(aggregate("mean"), values.mean(1))
    torch.testing.assert_close(aggregate("sum"), values.sum(1))
    torch.testing.assert_close(aggregate({"kind": "sum", "atoms": [2, 5]}), values[:, [2, 5]].sum(1))
    torch.testing.assert_close(aggregate({"kind": "max", "sharpness": 200.0}), values.amax(1), atol=0.02, rtol=0)
    assert (aggregate("max") >= values.amax(1)).all()
    local = torch.stack([values[:, [i, *topology.neighbours[i]]].mean(1) for i in range(14)], 1)
    found = aggregate({"kind": "local_mean_max", "sharpness": 200.0})
    torch.testing.assert_close(found, local.amax(1), atol=0.02, rtol=0)
    carbons = [i for i, number in enumerate(topology.numbers) if number == 6]
    found = aggregate({"kind": "local_mean_max", "sharpness": 200.0, "atoms": "heavy"})
    torch.testing.assert_close(found, local[:, carbons].amax(1), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("kde", {}, "unknown uncertainty 'kde'"),
        ("kernel_density", {"kapa": 5}, "unknown option 'kapa'.*did you mean 'kappa'"),
        ("kernel_density", {"kappa": -1}, "'kernel_density' with kappa -1; input should be greater than 0"),
        ("kernel_density", {"features": "latents"}, "per atom"),
        ("kernel_density", {"features": "pair_distances"}, "set kernel: gaussian"),
        ("gmm", {"squash": "softplus"}, "squash 'softplus'; input should be 'none' or 'softplus_sqrt'"),
        ("gmm", {"whitening": "pac"}, "whitening 'pac'; input should be 'none', 'standard' or 'pca'"),
        ("gmm", {"aggregation": "maximum"}, "aggregation 'maximum'; input should be 'mean', 'max'"),
        ("gmm", {"features": "pair_distances", "aggregation": "max"}, "not per atom"),
        ("gmm", {"n_components": 0}, "n_components 0; input should be greater than or equal to 1"),
    ],
)
def test_bad_options(butane, kind, options, message):
    with pytest.raises(UqbiasError, match=message):
        UNCERTAINTIES.build(kind, options, topology=butane[0], n_latents=N_LATENTS)


def test_other_molecule_is_refused(butane):
    with pytest.raises(UqbiasError, match="14 atoms, the potential 22"):
        UncertaintyModel(PowerSpectrum([1] * 22), fitted(butane, "gmm_latents"), butane[0])


@pytest.mark.parametrize(
    ("name", "changes", "frames", "message"),
    [
        ("gmm_distances", {}, {"n": 30, "scale": 0.0}, "30 training frames .* are one geometry"),
        ("gmm_distances", {"samples_per_component": None, "n_components": 9}, {"n": 5}, "5 training samples for 9"),
        ("gmm_distances", {"max_iter": 1, "samples_per_component": 5}, {"n": 100}, "did not converge in 1 iter"),
        ("gmm_latents", {}, {"n": 1}, "1 training frames"),
        ("gaussian", {}, {"n": 30, "scale": 0.0}, "are one geometry"),
    ],
)
def test_degenerate_training_sets(butane, name, changes, frames, message):
    kind, options = OPTIONS[name]
    made = UNCERTAINTIES.build(kind, options | changes, topology=butane[0], n_latents=N_LATENTS).double()
    with pytest.raises(UqbiasError, match=message):
        made.fit(*inputs(butane[1], **frames), seed=0)


def test_frames_that_are_not_finite_are_named(butane):
    x, energy, latents = inputs(butane[1], 60)
    latents[0, 17, 3, 1] = float("nan")
    made = UNCERTAINTIES.build("gmm", {}, topology=butane[0], n_latents=N_LATENTS).double()
    with pytest.raises(UqbiasError, match="training frame 17 are not finite"):
        made.fit(x, energy, latents, seed=0)


def test_conformal_coverage_and_unit():
    """Errors above the calibrated uncertainty: α, over many draws of exchangeable data."""
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(200):
        u = rng.gamma(2.0, size=240)
        error = 30.0 * u * np.abs(rng.normal(size=240))
        made = Conformal().double()
        made.fit(u[:40], error[:40], alpha=0.2)
        calibrated = made(torch.tensor(u[40:])).numpy()
        assert (calibrated > 0).all()
        assert np.array_equal(np.argsort(calibrated), np.argsort(u[40:]))
        covered.append(metrics.coverage(calibrated, error[40:]))
    # 1 − α ≤ coverage ≤ 1 − α + 1/(n + 1) in the mean.
    assert 0.795 < np.mean(covered) < 0.835


def test_conformal_before_fit_is_the_identity():
    u = torch.linspace(-2, 2, 9)
    torch.testing.assert_close(Conformal()(u), u)


def test_conformal_refuses():
    with pytest.raises(UqbiasError, match=r"9 calibration frames for alpha 0\.1; hold out at least 10"):
        Conformal().fit(np.arange(9.0), np.ones(9), alpha=0.1)
    with pytest.raises(UqbiasError, match="not finite"):
        Conformal().fit(np.arange(10.0), np.full(10, np.nan))
    with pytest.raises(UqbiasError, match="10 uncertainties and 11 errors"):
        Conformal().fit(np.arange(10.0), np.ones(11))


def test_metrics_against_scipy_and_sklearn():
    rng = np.random.default_rng(1)
    u = rng.integers(0, 12, 200).astype(float)  # ties
    error = u + rng.normal(0, 3, 200)
    assert metrics.spearman(u, error) == pytest.approx(scipy.stats.spearmanr(u, error).statistic, abs=1e-12)
    expected = roc_auc_score(error > np.quantile(error, 0.8), u)
    assert metrics.auroc(u, error) == pytest.approx(expected, abs=1e-12)
    assert metrics.coverage(np.array([1.0, 2.0]), np.array([0.5, 3.0])) == 0.5
    assert np.isnan(metrics.spearman(np.ones(5), np.arange(5.0)))
    assert np.isnan(metrics.auroc(np.arange(5.0), np.ones(5)))
