"""Free energies of two variables under parallel-bias metadynamics, against those of a potential that is known."""

import numpy as np
import pytest
from scipy.special import logsumexp
from synthetic_runs import KT, Langevin, deviation, free_energy, make, slope_on_grid, well, well_slope, write_run

from uqbias.errors import UqbiasError
from uqbias.free_energy.weighted_frames import WeightedFrames, tiwary_parrinello_offset
from uqbias.runs.reader import RunFolder

RANGE = (-1.8, 1.8)
COUPLING = 1.5 * KT


def potential(x, y):
    """Two double wells, barriers of 6.5 and 3.6 kT in x and of 5 kT in y, which feel each other."""
    return well(x) + 5 * KT * (y**2 - 1) ** 2 + COUPLING * x * y


def marginal(axis, along):
    """F of each bin of x (along 0) or y (1), lowest 0."""
    inside, other = np.linspace(axis.edges[:-1], axis.edges[1:], 41), np.linspace(-2.2, 2.2, 1001)
    pair = (inside[..., None], other) if along == 0 else (other, inside[..., None])
    F = -KT * np.log(np.exp(-potential(*pair) / KT).sum(axis=-1).mean(axis=0))
    return F - F.min()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    options = {"variables": ["x", "y"], "height": 0.5 * KT, "sigma": 0.1, "pace": 50, "biasfactor": 10.0}
    part, entry = make("parallel_metadynamics", **options)
    md = Langevin(np.full((2, 20), -1.0), seed=1)
    seen, bias = [], []
    for step in range(14001):
        values = np.stack([one.value(at) for one, at in zip(part.metadynamics, md.x, strict=True)])
        weights = np.exp(-values / KT)
        if step % 10 == 0:
            seen.append(md.x)
            bias.append(-KT * np.log(weights.mean(axis=0)))
        part.update(step, md.x.T)
        x, y = md.x
        slopes = np.stack([slope_on_grid(one.grid, at) for one, at in zip(part.metadynamics, md.x, strict=True)])
        force = np.stack([-well_slope(x) - COUPLING * y, -20 * KT * y * (y**2 - 1) - COUPLING * x])
        md.move(force - weights / weights.sum(axis=0) * slopes)
    x, y = np.stack(seen, axis=1)
    folder = tmp_path_factory.mktemp("runs") / "parallel"
    return write_run(folder, {"x": x, "y": y}, [(part, entry)], bias=np.array(bias))


@pytest.mark.parametrize("along", [0, 1])
@pytest.mark.parametrize(("method", "most"), [("auto", 0.25), ("last-bias", 0.35), ("bias", 0.35)])
def test_each_variable_has_its_free_energy(run, along, method, most):
    surface = free_energy([run], ["xy"[along]], method=method, discard=0.2, ranges=[RANGE])
    reference = marginal(surface.axes[0], along)
    assert deviation(surface, reference) < most
    assert surface.method.startswith("tiwary-parrinello" if method == "auto" else method)
    assert "γ = 10, F = -γ/(γ-1) V = -1.11111 V" in surface.notes["biasfactor"]


def test_error_bars_cover_the_deviation(run):
    surface = free_energy([run], ["x"], discard=0.2, ranges=[RANGE], bins=[30])
    reference = marginal(surface.axes[0], 0)
    low = (reference < 8 * KT) & np.isfinite(surface.error)
    apart = (surface.values - reference)[low]
    assert np.median(np.abs(apart - np.median(apart)) / surface.error[low]) < 2


def test_both_variables_together(run):
    surface = free_energy([run], ["x", "y"], discard=0.2, bins=[24, 24], ranges=[RANGE, RANGE])
    x, y = (axis.centres for axis in surface.axes)
    reference = potential(x[:, None], y[None])
    reference -= reference.min()
    assert deviation(surface, reference, below=6.0) < 0.4
    with pytest.raises(UqbiasError, match=r"0 biases of .* act on x, y"):
        free_energy([run], ["x", "y"], method="bias")


def test_offset_is_the_mean_of_the_bias_over_the_unbiased_molecule(run):
    """At the end of the run exp(-C/kT) = ⟨exp(-V/kT)⟩, by integration over x and y."""
    folder = RunFolder(run)
    grid = np.linspace(-1.9, 1.9, 381)
    x, y = (values.ravel() for values in np.meshgrid(grid, grid, indexing="ij"))
    V = folder.energy_of(0, {"x": x, "y": y}.__getitem__)
    exponent = -potential(x, y) / KT
    expected = logsumexp(exponent) - logsumexp(exponent - V / KT)
    offset = tiwary_parrinello_offset(WeightedFrames(folder, 0.0, 5))
    assert 5 < expected < 40
    assert offset[-1] / KT == pytest.approx(expected, abs=0.3)
    assert (np.diff(offset) >= 0).all()
