"""Estimators against free energies that are known exactly."""

import sys

import numpy as np
import pytest
from scipy.special import logsumexp
from synthetic_runs import (
    KT,
    Langevin,
    deviation,
    exact,
    free_energy,
    independent,
    make,
    metadynamics_run,
    slope_on_grid,
    umbrella_run,
    values_of,
    well,
    well_slope,
    write_run,
)

from uqbias.errors import UqbiasError
from uqbias.free_energy.multistate import mbar, overlap, solve_mbar, window_log_weights
from uqbias.free_energy.reweighting import (
    HillHistory,
    anharmonicity,
    cumulant_log_factors,
    free_energy_of,
    jackknife_error,
    kish,
    log_density,
    reweighting_offset,
)
from uqbias.free_energy.weighted_frames import WeightedFrames, deposition_steps, tiwary_parrinello_offset
from uqbias.runs.reader import RunFolder

RANGE = [(-1.8, 1.8)]


def hills_at(centres, heights, *, sigma=0.1, biasfactor=10.0, period=None, lowest=None, together=1):
    n = len(centres)
    return HillHistory(
        step=np.arange(n) // together * 50 + 50,
        centre=np.reshape(centres, (n, -1)),
        sigma=np.full((n, np.reshape(centres, (n, -1)).shape[1]), sigma),
        height=np.asarray(heights, dtype=float),
        biasfactor=biasfactor,
        periods=[period] * np.reshape(centres, (n, -1)).shape[1],
        lowest=[lowest] * np.reshape(centres, (n, -1)).shape[1],
    )


def test_kish_counts_equal_weights_and_sees_one_that_dominates():
    assert kish(np.full(50, 700.0)) == pytest.approx(50)
    assert kish(np.array([0.0, -800.0, -900.0])) == pytest.approx(1)
    assert kish(np.log([1.0, 2.0, 3.0])) == pytest.approx(36 / 14)


def test_density_of_weights_far_apart():
    density = log_density(np.array([0, 0, 2, -1]), 3, np.array([-2000.0, -2000.0, -2001.0, 0.0]))
    assert density.tolist() == pytest.approx([-2000 + np.log(2), -np.inf, -2001])
    F = free_energy_of(density, 2.0)
    assert F[2] - F[0] == pytest.approx(2.0 * (1 + np.log(2)))
    assert np.isinf(F[1])
    assert np.exp(-F / 2.0).sum() == pytest.approx(1)
    assert np.isinf(free_energy_of(np.full(3, -np.inf), 2.0)).all()


def test_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).normal(size=(20, 3))
    replicates = np.array([np.delete(values, block, axis=0).mean(axis=0) for block in range(20)])
    assert jackknife_error(replicates) == pytest.approx(values.std(axis=0, ddof=1) / np.sqrt(20))
    replicates[3, 1] = np.inf
    assert np.isnan(jackknife_error(replicates)).tolist() == [False, True, False]


@pytest.mark.parametrize("biasfactor", [8.0, None])
def test_offset_is_the_ratio_of_integrals(biasfactor):
    """c(t) after each step against quadrature on a fine grid over the same domain."""
    centres = np.array([0.0, 0.05, 0.1, 0.6, 0.3, 0.45, 0.2, -0.1, 0.15, 0.5])
    heights = np.linspace(2.0, 1.0, 10)
    steps, c = reweighting_offset(hills_at(centres, heights, biasfactor=biasfactor, together=2), KT)
    assert steps.tolist() == [50, 100, 150, 200, 250]
    assert c[0] == 0
    s = np.linspace(-2, 2, 40001)
    kernels = np.exp(-0.5 * ((s - centres[:, None]) / 0.1) ** 2)
    domain = kernels.sum(axis=0) >= np.exp(-0.5)
    factor = 1.0 if biasfactor is None else biasfactor / (biasfactor - 1)
    for done in range(1, 6):
        V = (heights[: 2 * done, None] * kernels[: 2 * done]).sum(axis=0)[domain]
        lower = V * (factor - 1) / KT
        expected = KT * (logsumexp(factor * V / KT) - logsumexp(lower))
        assert c[done] == pytest.approx(expected, abs=0.02 * KT)


def test_offset_of_periodic_hills_does_not_depend_on_where_the_seam_is():
    centres = np.random.default_rng(3).uniform(-np.pi, np.pi, size=(60, 2))
    heights = np.ones(60)
    wrap = (centres + 1.0 + np.pi) % (2 * np.pi) - np.pi
    first, second = (
        reweighting_offset(hills_at(one, heights, sigma=0.5, period=2 * np.pi), KT)[1] for one in (centres, wrap)
    )
    assert first[-1] > KT
    assert first == pytest.approx(second, abs=0.01 * KT)


def test_offset_leaves_out_what_lies_beyond_a_bound():
    """Hills beyond the bound shape V, but the molecule cannot go there."""
    centres, heights = np.array([-0.2, -0.1, 0.05, 0.3, 0.35]), np.array([3.0, 3.0, 1.0, 2.0, 2.0]) * KT
    s = np.linspace(-1, 1, 20001)
    kernels = np.exp(-0.5 * ((s - centres[:, None]) / 0.1) ** 2)
    V, domain = heights @ kernels, kernels.sum(axis=0) >= np.exp(-0.5)
    found = {}
    for lowest, inside in ((None, domain), (0.0, domain & (s >= 0))):
        found[lowest] = reweighting_offset(hills_at(centres, heights, together=5, lowest=lowest), KT)[1][-1]
        expected = KT * (logsumexp(10 / 9 * V[inside] / KT) - logsumexp(1 / 9 * V[inside] / KT))
        assert found[lowest] == pytest.approx(expected, abs=0.03 * KT)
    assert found[None] > found[0.0] + 0.3 * KT


def test_offset_refuses_an_absurd_bias():
    with pytest.raises(UqbiasError, match="kT cannot be reweighted"):
        reweighting_offset(hills_at(np.zeros(10), np.full(10, 200 * KT)), KT)
    with pytest.raises(UqbiasError, match="take a grid of"):
        reweighting_offset(hills_at(np.array([0.0, 1e6]), np.ones(2)), KT)


def test_cumulants_of_a_gaussian_boost_are_exact():
    """⟨exp(v)⟩ = exp(μ + s²/2) for Gaussian v, in each bin; order 3 adds the skewness, which is 0."""
    random = np.random.default_rng(0)
    bins = np.repeat([0, 1, -1], 200_000)
    v = np.concatenate([random.normal(3.0, 1.5, 200_000), random.normal(1.0, 0.5, 200_000), np.full(200_000, 99.0)])
    for order in (2, 3):
        factors, skew = cumulant_log_factors(bins, 3, v * KT, KT, np.zeros(len(v)), order)
        assert factors == pytest.approx([3.0 + 1.125, 1.0 + 0.125, 0.0], abs=0.02)
        assert np.abs(skew).max() < 0.02


def test_third_cumulant_follows_a_skewed_boost():
    v = np.random.default_rng(1).gamma(16.0, 0.1, 400_000)  # ln ⟨e^v⟩ = -16 ln(1 - 0.1)
    second, third = (
        cumulant_log_factors(np.zeros(len(v), dtype=int), 1, v * KT, KT, np.zeros(len(v)), order)[0][0]
        for order in (2, 3)
    )
    assert third == pytest.approx(-16 * np.log(0.9), abs=3e-3)
    assert third - second == pytest.approx(2 * 16 * 0.1**3 / 6, rel=0.1)


def test_cumulants_are_weighted():
    v = np.array([0.0, 1.0])
    factors, _ = cumulant_log_factors(np.zeros(2, dtype=int), 1, v * KT, KT, np.log([3.0, 1.0]), 2)
    assert factors[0] == pytest.approx(0.25 + 0.5 * 0.1875)


def test_anharmonicity_is_zero_for_a_gaussian_only():
    random = np.random.default_rng(2)
    assert anharmonicity(random.normal(5.0, 3.0, 200_000)) == pytest.approx(0.0, abs=1e-3)
    uniform = 0.5 * np.log(2 * np.pi * np.e / 12)  # entropy of a uniform distribution of variance 1: ln √12
    assert anharmonicity(random.uniform(0, 1, 200_000)) == pytest.approx(uniform, abs=0.03)
    assert anharmonicity(np.ones(5)) == 0


def harmonic_states(n=4000):
    """Samples of three harmonic states, whose free energies are -½ ln(2π/k)."""
    stiffness, centre = np.array([1.0, 4.0, 2.0]), np.array([0.0, 0.8, -0.6])
    random = np.random.default_rng(4)
    counts = np.array([n, n // 2, 2 * n])
    x = np.concatenate(
        [random.normal(c, k**-0.5, count) for c, k, count in zip(centre, stiffness, counts, strict=True)]
    )
    return 0.5 * stiffness[:, None] * (x - centre[:, None]) ** 2, counts, 0.5 * np.log(stiffness)


def test_own_solver_and_pymbar_agree_with_theory_and_each_other():
    reduced, counts, f = harmonic_states()
    own = solve_mbar(reduced, counts.astype(float), np.ones(reduced.shape[1]), np.zeros(3))
    assert own == pytest.approx(f - f[0], abs=0.03)
    log_weights, theirs = mbar(reduced, counts)
    assert own == pytest.approx(theirs - theirs[0], abs=1e-6)
    expected = -logsumexp((np.log(counts) + theirs)[:, None] - reduced, axis=0)
    assert log_weights == pytest.approx(expected)


def test_overlap_of_runs_alike_and_apart():
    for apart, low, high in ((0.0, 0.99, 1.01), (2.0, 0.2, 0.8), (20.0, -1e-9, 1e-6)):
        x = np.concatenate(
            [np.random.default_rng(0).normal(size=2000), np.random.default_rng(1).normal(apart, 1, 1000)]
        )
        reduced, counts = 0.5 * np.stack([x, x - apart]) ** 2, np.array([2000, 1000])
        log_weights, f = mbar(reduced, counts)
        assert low < overlap(reduced, counts, f, log_weights) < high


def test_runs_that_do_not_overlap_are_refused(tmp_path):
    runs = [umbrella_run(tmp_path / str(at), at, 5000 * KT) for at in (-1.0, 1.0)]
    with pytest.raises(UqbiasError, match="do not overlap"):
        free_energy(runs, ["x"])


def test_pymbar_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymbar", None)
    with pytest.raises(UqbiasError, match=r"needs pymbar .*; pip install"):
        mbar(np.zeros((1, 4)), np.array([4]))


def test_weights_of_windows_are_those_of_mbar_over_them():
    """Windows of one λ each: the histogram of ξ changes nothing that matters."""
    random = np.random.default_rng(5)
    lam = np.repeat(np.arange(-2.0, 2.01, 0.5), 400)
    xi = random.normal(lam / 2, 0.5**0.5)  # under ξ²/2 and a spring (ξ-λ)²/2
    found = window_log_weights(xi, lam, 1.0)
    centres, counts = np.unique(lam, return_counts=True)
    expected, _ = mbar(0.5 * (xi - centres[:, None]) ** 2, counts)
    difference = found - expected
    assert difference == pytest.approx(np.full(len(xi), difference.mean()), abs=5e-3)
    weights = np.exp(found - logsumexp(found))
    assert weights @ xi**2 == pytest.approx(1.0, abs=0.06)


def test_windows_of_a_periodic_variable_wrap():
    """A uniform angle that any λ holds on to: all weights alike, the seam included."""
    random = np.random.default_rng(6)
    lam = random.uniform(-9.0, 9.0, 20_000)  # not wrapped, as OpenMM leaves it
    xi = (lam + random.normal(0, 0.5, len(lam)) + np.pi) % (2 * np.pi) - np.pi
    log_weights = window_log_weights(xi, lam, 0.5, 2 * np.pi)
    assert kish(log_weights) > 0.97 * len(xi)


def test_static_bias_is_taken_off_exactly(tmp_path):
    """Two umbrella runs and MBAR over them; one alone sees only its side well."""
    runs = [umbrella_run(tmp_path / name, at, seed=seed) for name, at, seed in (("l", -0.5, 2), ("r", 0.5, 3))]
    both = free_energy(runs, ["x"], ranges=RANGE)
    assert both.method.startswith("mbar")
    assert 0.05 < float(both.notes["overlap"].split(";")[0]) < 0.9
    reference = exact(both.axes[0])
    assert deviation(both, reference) < 0.25
    one = free_energy(runs[:1], ["x"], ranges=RANGE)
    assert one.method.startswith("last-bias")
    near = (both.axes[0].centres < -0.2) & (both.axes[0].centres > -1.3)
    assert (one.values - reference)[near].std() < 0.15 * KT
    difference, error = both.difference(both.region([-1.5], [0.0]), both.region([0.0], [1.5]))
    populations = np.exp(-reference / KT)
    left = both.axes[0].centres < 0
    expected = KT * np.log(populations[left].sum() / populations[~left].sum())
    assert 0.003 * KT < error < 0.1 * KT
    assert abs(difference - expected) < 3 * error


@pytest.fixture(scope="module")
def tempered(tmp_path_factory):
    return metadynamics_run(tmp_path_factory.mktemp("runs") / "wt", biasfactor=10.0, height=0.5 * KT)


@pytest.mark.parametrize(
    ("method", "most"), [("tiwary-parrinello", 0.2), ("last-bias", 0.35), ("quasi-static", 0.35), ("bias", 0.35)]
)
def test_well_tempered_metadynamics(tempered, method, most):
    found = free_energy([tempered], ["x"], method=method, discard=0.2, ranges=RANGE)
    reference = exact(found.axes[0])
    assert deviation(found, reference) < most
    low = reference < 8 * KT
    assert 0.01 * KT < np.median(found.error[low]) < 0.4 * KT
    assert found.values.min() == 0
    assert found.method.startswith(method)
    assert "γ = 10, F = -γ/(γ-1) V = -1.11111 V" in found.notes["biasfactor"]


def test_auto_takes_tiwary_parrinello_which_is_the_better_for_early_frames(tempered):
    auto, last = (
        free_energy([tempered], ["x"], method=method, discard=0.02, ranges=RANGE) for method in ("auto", "last-bias")
    )
    assert auto.method.startswith("tiwary-parrinello")
    reference = exact(auto.axes[0])
    assert deviation(auto, reference) < deviation(last, reference)


def test_untempered_metadynamics(tmp_path):
    run = metadynamics_run(tmp_path, biasfactor=None, height=0.05 * KT)
    found = free_energy([run], ["x"], discard=0.5, ranges=RANGE)
    assert found.method.startswith("tiwary-parrinello")
    assert deviation(found, exact(found.axes[0])) < 0.3
    assert found.notes["biasfactor"].startswith("none (untempered), F = -V")


def test_frozen_bias_of_an_earlier_run_is_static(tempered, tmp_path):
    """Hills from a run before, none added: c(t) must not be read from their steps, which are another clock's."""
    arrays = dict(np.load(tempered / "bias.npz"))
    part, entry = make("metadynamics", variables=["x"], height=0.5 * KT, sigma=0.1, pace=50, biasfactor=10.0)
    part.restore({name.removeprefix("0."): array for name, array in arrays.items()})
    md = Langevin(np.random.default_rng(0).choice([-1.0, 1.0], size=(1, 100)))
    seen = []
    for step in range(6001):
        if step % 10 == 0:
            seen.append(md.x[0])
        md.move(-well_slope(md.x) - slope_on_grid(part.grid, md.x))
    run = write_run(tmp_path, {"x": np.array(seen)}, [(part, entry)])
    found = free_energy([run], ["x"], method="tiwary-parrinello", ranges=RANGE)
    assert deviation(found, exact(found.axes[0])) < 0.15
    assert np.allclose(found.values, free_energy([run], ["x"], method="last-bias", ranges=RANGE).values)


def test_run_that_goes_on_with_the_bias_of_another(tempered, tmp_path):
    """Its own clock begins at 0 again: the hills that were there count from the beginning."""
    arrays = dict(np.load(tempered / "bias.npz"))
    part, entry = make("metadynamics", variables=["x"], height=0.5 * KT, sigma=0.1, pace=50, biasfactor=10.0)
    part.restore({name.removeprefix("0."): array for name, array in arrays.items()})
    before = len(part.hills)
    x = independent(well, (100, 20), seed=5)
    bias = []
    for row in range(100):
        bias.append(part.value(x[row][:, None]))
        part.update(row * 10, x[row][:, None])
    assert deposition_steps(part)[[0, before - 1, before, -1]].tolist() == [-1, -1, 50, 950]
    run = write_run(tmp_path, {"x": x}, [(part, entry)], bias=np.array(bias))
    frames = WeightedFrames(RunFolder(run), 0.0, 2)
    offset = tiwary_parrinello_offset(frames)
    first = tiwary_parrinello_offset(WeightedFrames(RunFolder(tempered), 0.0, 2))[-1]
    assert offset[0] == pytest.approx(first, abs=0.1 * KT)
    assert offset[-1] > offset[0] + 0.1 * KT


def test_runs_are_pooled_whatever_constant_their_bias_has(tmp_path):
    """Weights have a mean of one in each run: exp(V/kT) of another constant must not drown the others."""
    part, entry = make("opes", variables=["x"], barrier=20.0, sigma=0.2, pace=10)
    part.update(10, np.zeros((4, 1)))
    x = independent(lambda x: 0.5 * well(x), (1000, 20), seed=7)
    runs = [
        write_run(tmp_path / name, {"x": part_of_x}, [(part, entry)], bias=-0.5 * well(part_of_x) + constant)
        for name, part_of_x, constant in (("a", x[:500], 0.0), ("b", x[500:], 50 * KT))
    ]
    found = free_energy(runs, ["x"], method="quasi-static", discard=0.0, ranges=RANGE)
    assert deviation(found, exact(found.axes[0]), below=8.0) < 0.2
    assert found.effective > 1.5 * free_energy(runs[:1], ["x"], discard=0.0, ranges=RANGE).effective


def test_czar_and_windows_of_an_angle(tmp_path):
    """U = 2 kT cos(φ - 1) in rad, bins in degrees; λ uniform and not wrapped."""
    random = np.random.default_rng(11)
    sigma, fine = 0.2, np.linspace(-np.pi, np.pi, 720, endpoint=False)
    lam = random.uniform(-3 * np.pi, 3 * np.pi, (300, 100))
    apart = (fine - lam[..., None] + np.pi) % (2 * np.pi) - np.pi
    odds = np.cumsum(np.exp(-2 * np.cos(fine - 1) - 0.5 * (apart / sigma) ** 2), axis=-1)
    chosen = (odds < random.uniform(size=(300, 100, 1)) * odds[..., -1:]).sum(axis=-1)
    part = make("eabf", variables=["phi"], periods=[2 * np.pi], sigma=sigma, bin_width=0.1, pace=10)
    run = write_run(
        tmp_path,
        {"phi": fine[chosen], "extended_phi": lam},
        [part],
        bias=np.zeros(lam.shape),
        variables={"phi": {"kind": "dihedral", "options": {"atoms": [0, 1, 2, 3]}, "period": 2 * np.pi, "unit": "rad"}},
    )
    for method, most in (("czar", 0.1), ("mbar", 0.1)):
        found = free_energy([run], ["phi"], method=method, bins=[36])
        reference = exact(found.axes[0], lambda degrees: 2 * KT * np.cos(np.radians(degrees) - 1))
        assert np.isfinite(found.values).all()
        assert deviation(found, reference) < most


def coupled(x, y):
    """A second variable that follows sin 2x with a spread of 0.35."""
    return well(x) + 4 * KT * (y - np.sin(2 * x)) ** 2


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """eABF on x of a system of x and y, with a wall on y and walls that keep λ in range."""
    main = make("eabf", variables=["x"], sigma=0.1, bin_width=0.05, full_samples=100, pace=5)
    limits = [
        make(kind, at=at, kappa=200 * KT, variables=["extended_x"])
        for kind, at in (("upper_wall", 1.7), ("lower_wall", -1.7))
    ]
    wall = make("upper_wall", at=0.8, kappa=2 * KT, variables=["y"])
    part, walkers = main[0], 40
    md = Langevin(np.stack([np.full(walkers, -1.0), np.zeros(walkers), np.full(walkers, -1.0)]), seed=3)
    seen = []
    for step in range(40_001):
        x, y, lam = md.x
        if step % 20 == 0:
            seen.append(md.x)
        part.update(step, np.stack([x, lam], axis=1))
        pull, apart = part.coupling * (x - lam), 8 * KT * (y - np.sin(2 * x))
        outside = 400 * KT * (np.maximum(lam - 1.7, 0) - np.maximum(-1.7 - lam, 0))
        md.move(
            np.stack(
                [
                    -well_slope(x) + 2 * np.cos(2 * x) * apart - pull,
                    -apart - 4 * KT * np.maximum(y - 0.8, 0),
                    pull - slope_on_grid(part.grid, lam) - outside,
                ]
            )
        )
    x, y, lam = np.array(seen).transpose(1, 0, 2)
    columns = {"x": x, "extended_x": lam, "y": y}
    return write_run(tmp_path_factory.mktemp("runs") / "eabf", columns, [main, *limits, wall])


@pytest.mark.slow
def test_czar_along_the_biased_variable(extended):
    found = free_energy([extended], ["x"], ranges=RANGE)
    assert found.method.startswith("czar")
    assert deviation(found, exact(found.axes[0])) < 0.25


def test_windows_of_eabf_give_any_variable(extended):
    """Along x as CZAR does, along y, on which nothing but a wall acts."""
    along = free_energy([extended], ["x"], method="mbar", ranges=RANGE)
    assert "Hulm" in along.method
    assert deviation(along, exact(along.axes[0])) < 0.25
    found = free_energy([extended], ["y"], ranges=[(-1.8, 1.8)])
    grid = np.linspace(-2, 2, 1601)
    other = exact(
        found.axes[0],
        lambda y: -KT * np.log(np.exp(-coupled(grid, np.asarray(y)[..., None]) / KT).sum(axis=-1)),
    )
    assert deviation(found, other, below=6.0) < 0.3


@pytest.mark.parametrize("method", ["tiwary-parrinello", "last-bias", "bias"])
def test_a_restraint_beside_metadynamics_is_taken_off(tmp_path_factory, method):
    """The hills fill F and the restraint; the restraint shifts the left well by 12 kT."""
    run = metadynamics_run(
        tmp_path_factory.getbasetemp() / "restrained", biasfactor=8.0, height=0.15 * KT, kappa=6 * KT
    )
    found = free_energy([run], ["x"], method=method, discard=0.2, bins=[24], ranges=[(-1.2, 1.2)])
    assert deviation(found, exact(found.axes[0])) < 0.35


@pytest.fixture(scope="module")
def boosted(tmp_path_factory):
    """GaMD on the energy of a shallow double well with twenty oscillators beside it."""
    part, entry = make(
        "gamd", sigma0=1.0 * KT, preparation_steps=100, conventional_steps=1000, equilibration_steps=2000, pace=10
    )
    stiff, walkers, shallow = 20 * KT, 200, 0.4
    random = np.random.default_rng(8)
    md = Langevin(np.concatenate([random.choice([-1.0, 1.0], size=(1, walkers)), np.zeros((20, walkers))]), seed=8)
    seen, energies, bias, times = [], [], [], []
    for step in range(8001):
        x, y = md.x[0], md.x[1:]
        energy = shallow * well(x) + 0.5 * stiff * (y**2).sum(axis=0)
        if step % 10 == 0:
            seen.append(x)
            energies.append(energy)
            bias.append(part.value(energy))
            times.append(step)
        part.update(step, energy[:, None])
        below = np.maximum(part.parameters["threshold"] - energy, 0.0)
        forces = np.concatenate([shallow * well_slope(x)[None], stiff * y])
        md.move(-forces * (1.0 - part.parameters["k"] * below))
    return write_run(
        tmp_path_factory.mktemp("runs") / "gamd",
        {"x": np.array(seen)},
        [(part, entry)],
        bias=np.array(bias),
        step=np.array(times),
        energy=np.array(energies),
    )


@pytest.mark.parametrize("order", [2, 3])
def test_cumulant_expansion_for_gamd(boosted, order):
    found = free_energy([boosted], ["x"], order=order, discard=0.0, ranges=RANGE)
    assert found.method.startswith(f"cumulant of order {order}")
    reference = exact(found.axes[0], lambda x: 0.4 * well(x))
    assert deviation(found, reference, below=6.0) < 0.2
    # The boost settles with the update of step 3000, after that frame.
    assert "of which 100000 are left" in found.notes["runs"]
    assert "γ of ΔV = 0.0" in found.notes["anharmonicity"]


@pytest.fixture(scope="module")
def boosted_and_extended(tmp_path_factory):
    """eABF on x and GaMD on the energy of the double well with ten oscillators beside it."""
    limits = [
        make(kind, at=at, kappa=200 * KT, variables=["extended_x"])
        for kind, at in (("upper_wall", 1.7), ("lower_wall", -1.7))
    ]
    main = make("eabf", variables=["x"], sigma=0.1, bin_width=0.05, full_samples=100, pace=5)
    gamd = make(
        "gamd", sigma0=0.8 * KT, preparation_steps=100, conventional_steps=2000, equilibration_steps=4000, pace=10
    )
    (force, _), (boost, _), stiff, walkers = main, gamd, 20 * KT, 60
    md = Langevin(np.concatenate([np.full((1, walkers), -1.0), np.zeros((10, walkers)), np.full((1, walkers), -1.0)]))
    seen, energies, times = [], [], []
    for step in range(30_001):
        x, y, lam = md.x[0], md.x[1:-1], md.x[-1]
        energy = well(x) + 0.5 * stiff * (y**2).sum(axis=0)
        if step % 20 == 0:
            seen.append((x, lam))
            energies.append(energy)
            times.append(step)
        force.update(step, np.stack([x, lam], axis=1))
        boost.update(step, energy[:, None])
        left = 1.0 - boost.parameters["k"] * np.maximum(boost.parameters["threshold"] - energy, 0.0)
        pull = force.coupling * (x - lam)
        outside = 400 * KT * (np.maximum(lam - 1.7, 0) - np.maximum(-1.7 - lam, 0))
        md.move(
            np.concatenate(
                [
                    (-well_slope(x) * left - pull)[None],
                    -stiff * y * left,
                    (pull - slope_on_grid(force.grid, lam) - outside)[None],
                ]
            )
        )
    x, lam = np.array(seen).transpose(1, 0, 2)
    return write_run(
        tmp_path_factory.mktemp("runs") / "both",
        {"x": x, "extended_x": lam},
        [main, gamd, *limits],
        bias=np.zeros(x.shape),
        step=np.array(times),
        energy=np.array(energies),
    )


def test_gamd_with_eabf(boosted_and_extended):
    """CZAR for the boosted energy, the cumulants of the boost on top; without them F is flatter by what was added."""
    found = free_energy([boosted_and_extended], ["x"], discard=0.0, ranges=RANGE)
    assert found.method.startswith("cumulant of order 2")
    assert "Lesage" in found.method
    reference = exact(found.axes[0])
    assert deviation(found, reference) < 0.3
    exponential = free_energy([boosted_and_extended], ["x"], method="czar", discard=0.2, ranges=RANGE)
    assert deviation(exponential, reference) < 0.4
    energy = free_energy([boosted_and_extended], ["energy"], discard=0.0)
    assert "Hulm" in energy.method


def test_extended_runs_are_pooled_if_they_are_alike(extended, tmp_path):
    arrays = dict(np.load(extended / "observations.npz"))
    middle = len(arrays["step"]) // 2
    for name, part in (("first", slice(0, middle)), ("second", slice(middle, None))):
        (tmp_path / name).mkdir()
        np.savez(
            tmp_path / name / "observations.npz",
            **{key: array if key == "variable_names" else array[part] for key, array in arrays.items()},
        )
        for file in ("run.json", "bias.npz"):
            (tmp_path / name / file).write_bytes((extended / file).read_bytes())
    both = free_energy([tmp_path / "first", tmp_path / "second"], ["x"], discard=0.0, ranges=RANGE)
    whole = free_energy([extended], ["x"], discard=0.0, ranges=RANGE)
    np.testing.assert_allclose(both.values, whole.values)
    text = (extended / "run.json").read_text()
    (tmp_path / "second" / "run.json").write_text(text.replace('"kappa": 4', '"kappa": 5'))
    with pytest.raises(UqbiasError, match="act on the molecule differently"):
        free_energy([tmp_path / "first", tmp_path / "second"], ["x"])


def test_every_static_bias_is_taken_off(tmp_path):
    """Restraints belong to V."""
    restraint = make("restraint", at=0.2, kappa=2 * KT, variables=["x"])
    run = umbrella_run(tmp_path, -0.5, more=[restraint])
    found = free_energy([run], ["x"], ranges=RANGE, discard=0.3)
    # Sampled without the second restraint, so that it is seen in F with its sign turned.
    near = (found.axes[0].centres < 0.0) & (found.axes[0].centres > -1.4)
    reference = exact(found.axes[0], lambda x: well(x) - KT * (x - 0.2) ** 2)
    assert (found.values - reference)[near].std() < 0.25 * KT


def test_error_bars_cover_the_deviation_of_white_noise(tmp_path):
    """Independent samples of the double well: |deviation| < error in about two of three bins."""
    ratios = []
    for trial in range(8):
        x = independent(well, (400, 50), seed=trial)
        found = free_energy([write_run(tmp_path / str(trial), {"x": x})], ["x"], discard=0.0, bins=[25], ranges=RANGE)
        reference = exact(found.axes[0])
        often = found.counts > 50
        shift = -KT * np.log(np.exp(-found.values / KT).sum() / np.exp(-reference / KT).sum())
        ratios.append((found.values - reference - shift)[often] / found.error[often])
    ratio = np.concatenate(ratios)
    assert len(ratio) > 80
    assert 0.5 < np.mean(np.abs(ratio) < 1) < 0.8
    assert 0.85 < np.mean(np.abs(ratio) < 2) < 0.99
    assert 0.7 < np.sqrt(np.mean(ratio**2)) < 1.5
    assert found.effective == pytest.approx(20_000)


def test_values_of_a_rebuilt_bias_are_those_of_the_run(tempered):
    """The last bias is rebuilt from run.json and bias.npz alone."""
    run = RunFolder(tempered)
    x = np.linspace(-1.5, 1.5, 7)
    found = run.energy_of(0, lambda name: {"x": x}[name])
    assert found == pytest.approx(values_of(run.parts[0], {"x": x}))
    assert found.max() > 5 * KT


def test_a_third_partys_bias_names_its_estimator(tmp_path):
    x = independent(lambda x: well(x) + 3 * KT * x**2, (300, 20), 3)
    options = {"variables": ["x"], "at": 0.0, "kappa": 6 * KT}
    run = write_run(tmp_path / "drifting", {"x": x}, [make("synthetic_runs:Drifting", **options)])
    assert free_energy([run], ["x"]).method.startswith("last-bias:")
    run = write_run(tmp_path / "unknown", {"x": x}, [make("synthetic_runs:Unknown", **options)])
    with pytest.raises(UqbiasError, match=r"names the method 'last-bia'; .*last-bias"):
        free_energy([run], ["x"])


def test_a_run_under_plumed_is_weighted_by_the_bias_that_acted(tmp_path):
    """Flat under V = -F of ½ k x², of which only the values on the frames are known."""
    x = np.random.default_rng(5).uniform(-1, 1, size=(2000, 4))
    run = write_run(tmp_path, {"x": x}, bias=-0.5 * 20.0 * x**2, plumed="hash")
    (tmp_path / "bias.npz").unlink()
    found = free_energy([run], ["x"], bins=[10], ranges=[(-1.0, 1.0)])
    assert found.method.startswith("quasi-static")
    centres = found.axes[0].centres
    assert found.values - found.values[5] == pytest.approx(10.0 * (centres**2 - centres[5] ** 2), abs=0.4)
    with pytest.raises(UqbiasError, match="last-bias takes the bias itself, which PLUMED holds"):
        free_energy([run], ["x"], method="last-bias")
