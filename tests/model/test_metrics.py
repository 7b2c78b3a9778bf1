"""Distribution metrics against closed forms, numerical integrals and uncertainty-toolbox; bad input."""

import time

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from sklearn.metrics import roc_auc_score

from uqbias.errors import UqbiasError
from uqbias.model import metrics

ROOT_PI = np.sqrt(np.pi)


@pytest.fixture(scope="module")
def samples():
    """Errors that are samples of N(0, σ²), and their σ over a wide range."""
    rng = np.random.default_rng(3)
    sigma = np.exp(rng.normal(0.0, 1.0, 20_000))
    return rng.normal(0.0, sigma), sigma


@pytest.mark.parametrize("factor", [0.3, 1.0, 2.5])
def test_against_uncertainty_toolbox(samples, factor):
    toolbox = pytest.importorskip("uncertainty_toolbox")
    error, sigma = samples[0][:3000], factor * samples[1][:3000]
    args = np.zeros_like(error), sigma, error
    assert metrics.gaussian_crps(error, sigma) == pytest.approx(toolbox.crps_gaussian(*args), rel=1e-12)
    assert metrics.gaussian_nll(error, sigma) == pytest.approx(toolbox.nll_gaussian(*args), rel=1e-12)
    assert metrics.sharpness(sigma) == pytest.approx(toolbox.sharpness(sigma), rel=1e-12)
    for levels in (100, metrics.LEVELS):
        expected = toolbox.miscalibration_area(*args, num_bins=levels)
        assert metrics.miscalibration_area(error, sigma, levels) == pytest.approx(expected, rel=1e-9)


def test_nll_is_the_mean_of_scipys_logpdf(samples):
    expected = -scipy.stats.norm(scale=samples[1]).logpdf(samples[0]).mean()
    assert metrics.gaussian_nll(*samples) == pytest.approx(expected, rel=1e-12)


def test_crps_is_the_integral_of_its_definition():
    for error, sigma in ((0.0, 2.0), (3.0, 0.5), (-1.2, 1.0)):

        def squared(x, error=error, sigma=sigma):
            return (scipy.stats.norm.cdf(x, scale=sigma) - (x >= error)) ** 2

        parts = [scipy.integrate.quad(squared, *ends, epsabs=1e-12)[0] for ends in ((-30, error), (error, 30))]
        assert metrics.gaussian_crps(np.array([error]), np.array([sigma])) == pytest.approx(sum(parts), rel=1e-9)


def test_values_of_a_perfect_prediction(samples):
    error, sigma = samples
    # Standard errors of these means over 20,000 samples are below 1 %, 0.01 and 0.005.
    assert metrics.gaussian_crps(error, sigma) == pytest.approx((sigma / ROOT_PI).mean(), rel=0.03)
    entropy = (np.log(sigma) + 0.5 * np.log(2 * np.pi * np.e)).mean()
    assert metrics.gaussian_nll(error, sigma) == pytest.approx(entropy, abs=0.03)
    assert metrics.miscalibration_area(error, sigma) < 0.01
    assert metrics.sharpness(sigma) == pytest.approx(np.sqrt((error**2).mean()), rel=0.1)


def test_a_wrong_sigma_costs(samples):
    error, sigma = samples
    for score in (metrics.gaussian_nll, metrics.gaussian_crps, metrics.miscalibration_area):
        assert all(score(error, factor * sigma) > score(error, sigma) for factor in (0.6, 1.6))


def test_miscalibration_area_of_a_known_curve(samples):
    """With σ too large by k, an interval of level p covers 2Φ(kz) − 1 where 2Φ(z) − 1 = p."""
    error, sigma = samples
    p = np.linspace(0, 1, 20_001)[:-1]
    for k in (0.5, 2.0):
        observed = 2 * scipy.stats.norm.cdf(k * scipy.stats.norm.ppf((1 + p) / 2)) - 1
        assert metrics.miscalibration_area(error, k * sigma) == pytest.approx(np.abs(observed - p).mean(), abs=0.01)


def test_limits(samples):
    error, sigma = samples
    # All errors outside, or inside, every interval; the curve jumps within one level.
    for factor in (1e-9, 1e9):
        assert metrics.miscalibration_area(error, factor * sigma) == pytest.approx(0.5, abs=0.01)
    assert metrics.gaussian_crps(error, 1e-9 * sigma) == pytest.approx(np.abs(error).mean(), rel=1e-6)
    assert metrics.gaussian_crps(np.zeros(5), np.ones(5)) == pytest.approx((np.sqrt(2) - 1) / ROOT_PI, rel=1e-12)


def test_units(samples):
    error, sigma = samples
    assert metrics.gaussian_nll(10 * error, 10 * sigma) == pytest.approx(
        metrics.gaussian_nll(error, sigma) + np.log(10), rel=1e-12
    )
    assert metrics.gaussian_crps(10 * error, 10 * sigma) == pytest.approx(10 * metrics.gaussian_crps(error, sigma))
    # Rounding may move an error across a level.
    area = metrics.miscalibration_area(error, sigma)
    assert metrics.miscalibration_area(10 * error, 10 * sigma) == pytest.approx(area, abs=1e-4)


def test_one_sigma_for_all_components_of_a_frame():
    rng = np.random.default_rng(0)
    sigma, error = rng.uniform(1, 2, (6, 4, 1)), rng.normal(size=(6, 4, 3))
    each = np.repeat(sigma, 3, axis=2)
    for score in (metrics.gaussian_nll, metrics.gaussian_crps, metrics.miscalibration_area):
        assert score(error, sigma) == score(error.ravel(), each.ravel())
    assert metrics.sharpness(sigma) == pytest.approx(metrics.sharpness(each), rel=1e-12)


def test_auroc_at_other_quantiles():
    rng = np.random.default_rng(1)
    u = rng.integers(0, 30, 400).astype(float)
    error = u + rng.normal(0, 20, 400)
    for quantile in (0.5, 0.95):
        expected = roc_auc_score(error > np.quantile(error, quantile), u)
        assert metrics.auroc(u, error, quantile) == pytest.approx(expected, abs=1e-12)


def test_refusals():
    ones = np.ones(4)
    for bad in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(UqbiasError, match=f"a standard deviation of {bad:g}"):
            metrics.gaussian_nll(ones, np.array([1.0, 1.0, bad, 1.0]))
    with pytest.raises(UqbiasError, match=r"shape \(3,\) for errors of shape \(4,\)"):
        metrics.gaussian_crps(ones, np.ones(3))
    with pytest.raises(UqbiasError, match="error is not finite"):
        metrics.miscalibration_area(np.array([1.0, np.nan]), np.ones(2))
    with pytest.raises(UqbiasError, match="no error"):
        metrics.gaussian_nll(np.empty(0), np.empty(0))
    for quantile in (0.0, 1.0, np.nan):
        with pytest.raises(UqbiasError, match="between 0 and 1"):
            metrics.auroc(ones, ones, quantile)


def test_a_million_components_take_no_time():
    rng = np.random.default_rng(2)
    sigma = rng.uniform(1, 2, 1_000_000)
    error = rng.normal(0.0, sigma)
    start = time.process_time()
    metrics.miscalibration_area(error, sigma)
    metrics.gaussian_nll(error, sigma)
    metrics.gaussian_crps(error, sigma)
    metrics.spearman(sigma, np.abs(error))
    metrics.auroc(sigma, np.abs(error))
    # 0.6 s; comparing pairs, or looping over errors in Python, would take far longer than the limit.
    assert time.process_time() - start < 10
