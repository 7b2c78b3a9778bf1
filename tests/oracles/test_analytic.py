"""The double wells: published numbers, forces, free energies by other ways, MD through the real stack."""

import pickle

import numpy as np
import pytest
import torch
from scipy import integrate

from uqbias.bias.metad import MetaD
from uqbias.compile.fused import FusedEvaluator
from uqbias.errors import UqbiasError
from uqbias.md.walkers import Walkers
from uqbias.molecule.topology import Topology
from uqbias.oracles.analytic import DoubleWell, DoubleWellOracle
from uqbias.oracles.base import OracleError
from uqbias.units import kt
from uqbias.variables.position import Position


def test_energies_are_the_published_polynomials():
    generator = np.random.default_rng(0)
    x, y, z = generator.uniform(-1.5, 1.5, size=(3, 20))
    positions = torch.tensor(np.stack([x, y, z], axis=1)[:, None])
    one = DoubleWell(1, scale=2.0, confinement=7.0)(positions).energy.numpy()
    assert one == pytest.approx(2 * (5 * x**4 - 10 * x**2 + 1.5 * x) + 3.5 * (y**2 + z**2))
    two = DoubleWell(2, confinement=7.0)(positions).energy.numpy()
    assert two == pytest.approx(10 * x**4 - 10 * x**2 + 2 * x + 4 * y**4 + 3.5 * z**2)


@pytest.mark.parametrize("dimensions", [1, 2])
def test_wells_top_and_barrier(dimensions):
    well = DoubleWell(dimensions)
    x = torch.tensor([*well.wells, well.top], dtype=torch.float64, requires_grad=True)
    energy = well(torch.stack([x, 0 * x, 0 * x], dim=1)[:, None]).energy
    (slope,) = torch.autograd.grad(energy.sum(), x)
    assert slope.abs().max() < 1e-9
    energy = energy.detach()
    assert energy[0] < energy[1] < energy[2]
    assert well.barrier == pytest.approx(float(energy[2] - energy[0]))
    assert kt(well.temperature(10.0)) == pytest.approx(well.barrier / 10)


def test_free_energy_is_the_marginal_of_the_boltzmann_distribution():
    well, T = DoubleWell(2), 80.0

    def density(z, y, x):
        return float(torch.exp(-well(torch.tensor([[[x, y, z]]], dtype=torch.float64)).energy[0] / kt(T)))

    at = np.array([-0.9, -0.2, 0.5])
    whole = [integrate.dblquad(density, -1.6, 1.6, -0.5, 0.5, args=(x,), epsrel=1e-7)[0] for x in at]
    expected = -kt(T) * np.log(whole)
    found = well.free_energy(at, T)
    assert found - found[0] == pytest.approx(expected - expected[0], abs=1e-4)
    plane = well.free_energy(np.array([[well.wells[0], 0.0], [0.5, 0.4]]), T, axes="xy")
    assert plane == pytest.approx([0.0, 0.625 - 2.5 + 1.0 + 4 * 0.4**4 - (DoubleWell(2)._lowest(0))], abs=1e-9)


def test_free_energy_of_a_bin_is_that_of_its_mean_density():
    well, T, width = DoubleWell(1), 79.0, 0.3
    x = np.linspace(0.35, 0.65, 20001)
    mean = np.trapezoid(np.exp(-well.free_energy(x, T) / kt(T)), x) / width
    found = well.free_energy(np.array([0.5]), T, widths=width)
    assert found == pytest.approx([-kt(T) * np.log(mean)], abs=1e-6)
    assert abs(found[0] - well.free_energy(0.5, T)) > 0.1


def test_difference_between_the_wells():
    well, T = DoubleWell(1), 79.0
    sides = [
        integrate.quad(lambda x: np.exp(-float(well.free_energy(x, T)) / kt(T)), *ends)[0]
        for ends in ((-4.0, well.top), (well.top, 4.0))
    ]
    assert well.difference(T) == pytest.approx(kt(T) * np.log(sides[0] / sides[1]), rel=1e-6)
    assert well.difference(5.0) == pytest.approx(float(np.diff(well.free_energy(well.wells, 5.0))[0]), abs=0.05)


def test_oracle_labels_are_energy_and_its_gradient():
    oracle = DoubleWellOracle(dimensions=2, scale=3.0)
    x, h = np.array([[0.4, -0.3, 0.1]]), 1e-5
    label = oracle.label(x)
    for d in range(3):
        shift = h * np.eye(3)[None, d]
        slope = (oracle.label(x + shift).energy - oracle.label(x - shift).energy) / (2 * h)
        assert label.forces[0, d] == pytest.approx(-slope, rel=1e-6)
    again = pickle.loads(pickle.dumps(oracle))
    assert again.label(x).energy == label.energy == pytest.approx(float(DoubleWell(2, scale=3.0)(as_input(x)).energy))
    with pytest.raises(OracleError, match=r"\(2, 3\)"):
        oracle.label(np.zeros((2, 3)))


def as_input(x):
    return torch.tensor(x[None])


def test_bad_input():
    for bad in ({"dimensions": 3}, {"scale": 0.0}, {"confinement": -1.0}):
        with pytest.raises(UqbiasError):
            DoubleWell(**bad)
    with pytest.raises(UqbiasError, match="'q'"):
        DoubleWell(1).free_energy(np.zeros(3), 300.0, axes="q")
    with pytest.raises(UqbiasError, match=r"\(4, 3\)"):
        DoubleWell(1).free_energy(np.zeros((4, 3)), 300.0, axes="xy")
    with pytest.raises(UqbiasError, match="'xy'"):
        Position("xy")


@pytest.mark.slow
def test_dynamics_samples_the_boltzmann_distribution():
    """Unbiased walkers in a well of 3 kT: the histogram of x is that of F, within its noise."""
    well = DoubleWell(1)
    T = well.temperature(3.0)
    bias = MetaD(variables=["x", "y"], height=1e-9, sigma=0.1)
    bias.frozen = True
    evaluator = FusedEvaluator(well, bias, 16, variables={"x": Position("x"), "y": Position("y")}, runner="torchscript")
    start = np.zeros((2, 1, 3))
    start[:, 0, 0] = well.wells
    walkers = Walkers(
        Topology((1,), ()), evaluator, start, temperature=T, timestep_fs=20.0, friction_per_ps=5.0, seed=3
    )
    seen = []
    walkers.run(6000, pace=20, observers=[lambda observation: seen.append(observation.variables)])
    x, y = np.concatenate(seen[15:]).T
    counts, edges = np.histogram(x, bins=np.linspace(-1.4, 1.3, 10))
    centres = 0.5 * (edges[1:] + edges[:-1])
    F = well.free_energy(centres, T, widths=edges[1] - edges[0]) / kt(T)
    found = -np.log(counts)
    error = found - F - np.mean(found - F)
    assert np.sqrt(np.mean(error**2)) < 0.3
    assert np.mean(y**2) == pytest.approx(kt(T) / well.confinement, rel=0.1)
