"""Parallel-bias metadynamics against its formulas, and against metadynamics where there is one variable."""

import math

import numpy as np
import pytest
import torch
from toy_walkers import make

from uqbias.bias.base import BiasSum
from uqbias.bias.metad import MetaD, metadynamics_parts, sum_of_hills
from uqbias.bias.parallel import ParallelMetaD
from uqbias.errors import UqbiasError
from uqbias.registry import BIASES
from uqbias.runs.hills import read_hills
from uqbias.runs.run_files import RunFiles
from uqbias.testing import check_bias
from uqbias.units import kt

torch.set_num_threads(1)
KT = kt(300.0)


def led(bias, steps=40, walkers=4, seed=0):
    random = np.random.default_rng(seed)
    for step in range(0, 10 * steps + 1, 5):
        bias.update(step, random.normal(1.0, 2.0, (walkers, len(bias.variables))))
    return bias


@pytest.mark.parametrize("options", [{}, {"biasfactor": None}, {"reflect_at": -1.0, "kernel": "stretched-gaussian"}])
def test_one_variable_is_metadynamics_to_the_digit(options):
    one, other = (
        led(cls(variables=["a"], sigma=0.7, pace=10, **options)).to(torch.float64) for cls in (ParallelMetaD, MetaD)
    )
    assert one.metadynamics[0].hills.tobytes() == other.hills.tobytes()
    x = torch.linspace(-6, 9, 500, dtype=torch.float64)[:, None].requires_grad_()
    values = [bias.energy(x, bias.state()) for bias in (one, other)]
    slopes = [torch.autograd.grad(value.sum(), x)[0] for value in values]
    assert float(values[0].max().detach()) > 10
    assert torch.equal(*values)
    assert torch.equal(*slopes)


@pytest.mark.parametrize("biasfactor", [None, 5.0])
def test_potential_and_heights_are_those_of_the_paper(biasfactor):
    bias = ParallelMetaD(variables=["a", "b"], height=1.5, sigma=[0.7, 1.1], biasfactor=biasfactor, pace=10)
    led(bias, steps=12)
    a, b = (part.hills for part in bias.metadynamics)
    assert len(a) == len(b) == 12 * 4
    visited = np.stack([a["centre"][:, 0], b["centre"][:, 0]], axis=1)

    def single(hills, before, at):
        taken = hills[hills["step"] < before]
        return sum_of_hills(at[:, None], taken["centre"], taken["sigma"], taken["height"], [None])

    for step in np.unique(a["step"]):
        now = a["step"] == step
        v = np.stack([single(hills, step, visited[now, i]) for i, hills in enumerate((a, b))])
        weights = np.exp(-v / KT) / np.exp(-v / KT).sum(axis=0)
        tempering = 1.0 if biasfactor is None else np.exp(-v / (KT * (biasfactor - 1)))
        for i, hills in enumerate((a, b)):
            np.testing.assert_allclose(hills["height"][now], (1.5 * tempering * weights)[i], rtol=1e-4)
    x = np.random.default_rng(1).normal(1.0, 2.0, (50, 2))
    v = np.stack([single(hills, np.inf, x[:, i]) for i, hills in enumerate((a, b))])
    expected = -KT * np.log(np.exp(-v / KT).mean(axis=0))
    found = bias.to(torch.float64).energy(torch.tensor(x), bias.state()).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_contract_with_many_variables_of_which_one_is_periodic():
    names = ["driver_1", "driver_2", "phi", "driver_3", "driver_4", "driver_5"]
    periods = [None, None, 2 * math.pi, None, None, None]
    report = check_bias(ParallelMetaD(variables=names, height=3.0, periods=periods), periods)
    assert "gradient" in str(report)


def test_without_hills_it_is_nothing_and_a_broken_walker_leaves_none():
    bias = ParallelMetaD(variables=["a", "b", "c"], pace=1).to(torch.float64)
    assert float(bias.energy(torch.zeros(2, 3, dtype=torch.float64), bias.state()).abs().max()) < 1e-12
    bias.update(1, np.array([[0.0, np.nan, 1.0], [1.0, 2.0, 3.0]]))
    assert [len(part.hills) for part in metadynamics_parts([bias])] == [1, 1, 1]
    assert sum(float(part.hills["height"][0]) for part in bias.metadynamics) == pytest.approx(3.0)


def test_options_are_those_of_the_run_and_are_refused_by_name():
    bias = ParallelMetaD(variables=["a", "b"], sigma=[0.2, 0.4], biasfactor=7.0)
    assert bias.options()["sigma"] == [0.2, 0.4]
    assert [part.sigma.tolist() for part in bias.metadynamics] == [[0.2], [0.4]]
    with pytest.raises(UqbiasError, match="parallel_metadynamics with 3 values of sigma for 2"):
        BIASES.build("parallel_metadynamics", {"variables": ["a", "b"], "sigma": [1.0, 1.0, 1.0]}, temperature=300.0)
    with pytest.raises(UqbiasError, match=r"parallel_metadynamics on the variables \['a', 'a'\]"):
        ParallelMetaD(variables=["a", "a"])
    other = ParallelMetaD(variables=["a", "b"], sigma=[0.2, 0.5], biasfactor=7.0)
    with pytest.raises(UqbiasError, match="checkpoint of metadynamics with sigma"):
        other.restore(led(bias).checkpoint())


def test_files_of_a_run_and_an_interrupted_one(tmp_path):
    """HILLS of each variable; a run that goes on from a snapshot has the same hills, bit for bit."""

    def walkers(**options):
        bias = ParallelMetaD(variables=["driver", "judge"], sigma=[0.3, 1.0], height=3.0, pace=10)
        return make(bias=BiasSum([bias]), **options)

    whole = walkers()
    files = RunFiles(tmp_path / "HILLS", tmp_path / "COLVAR", whole.bias.biases, whole.evaluator.names, n_walkers=4)
    files.open(whole.timestep_fs, append=False)
    whole.run(100, pace=10, observers=[files])
    whole.save(tmp_path / "snapshot.npz")
    whole.run(100, pace=10, observers=[files])
    files.close()
    parts = whole.bias.biases[0].metadynamics
    hills = [part.hills.copy() for part in parts]
    del whole
    assert sorted(path.name for path in tmp_path.glob("HILLS*")) == ["HILLS.driver", "HILLS.judge"]
    for part, there in zip(parts, hills, strict=True):
        assert len(there) == 4 * 20
        read = read_hills(tmp_path / f"HILLS.{part.variables[0]}", 0.5, bias=part)
        np.testing.assert_allclose(read["height"], there["height"], rtol=1e-12)
    again = walkers(seed=99)
    again.load(tmp_path / "snapshot.npz")
    again.run(100, pace=10)
    for part, there in zip(again.bias.biases[0].metadynamics, hills, strict=True):
        assert part.hills.tobytes() == there.tobytes()
