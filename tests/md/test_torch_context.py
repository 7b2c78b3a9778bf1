"""MD on tensors against OpenMM's: the same trajectories, the same temperature, snapshots to the last bit."""

import numpy as np
import openmm
import pytest
import toy_crystal
import toy_walkers
from molecules import PEROXIDE, peroxide

from uqbias.bias.base import BiasSum
from uqbias.bias.eabf import ExtendedABF
from uqbias.bias.fixed import UpperWall
from uqbias.bias.metad import MetaD
from uqbias.errors import UqbiasError
from uqbias.md.guards import Guard
from uqbias.settings.md_sections import MD

#: Narrower than usual, so that walkers are stopped.
NARROW = (0.93, 1.07)


def observed(walkers, steps, pace=10):
    seen = []
    walkers.run(steps, pace=pace, observers=[seen.append])
    return seen


def metadynamics():
    return BiasSum([MetaD(pace=10, sigma=0.3, height=2.0), UpperWall(at=5.5)])


@pytest.mark.parametrize(
    "make",
    [
        lambda engine: toy_walkers.make(engine=engine, bias=metadynamics(), friction_per_ps=None, timestep_fs=0.2),
        lambda engine: toy_walkers.make(
            engine=engine, bias=ExtendedABF(pace=10, temperature=300.0), friction_per_ps=None, timestep_fs=0.2
        ),
        lambda engine: toy_crystal.make(engine=engine, bias=metadynamics(), friction_per_ps=None),
    ],
    ids=["metadynamics", "extended variable", "cells"],
)
def test_verlet_trajectories_are_those_of_openmm(make):
    runs = [observed(make(engine), 200) for engine in ("openmm", "torch")]
    for one, other in zip(*runs, strict=True):
        for name in ("positions", "energy", "driver", "bias", "variables"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-7, atol=1e-8)
    assert np.ptp([o.energy for o in runs[0]]) > 1.0
    assert max(o.bias.max() for o in runs[0]) > 0.1


def test_energy_is_conserved():
    walkers = toy_walkers.make(n_walkers=8, engine="torch", friction_per_ps=None, timestep_fs=0.2)
    total = []

    def record(observation):
        kinetic = 0.5 * 12 * 300.0 * 8.314462618e-3 * walkers.kinetic_temperatures() / 300.0
        total.append(observation.energy + kinetic)

    walkers.run(3000, pace=20, observers=[record])
    per_atom = np.mean(total, axis=1) / (300.0 * 8.314462618e-3 * len(PEROXIDE))
    drift = np.polyfit(0.004 * np.arange(len(per_atom)), per_atom, 1)[0]
    assert abs(drift) <= 1e-2, f"{drift:.1e} kT/atom/ps"


@pytest.mark.parametrize("case", ["molecule", "extended", "cells"])
def test_an_interrupted_run_is_an_uninterrupted_one(case, tmp_path):
    def make():
        if case == "cells":
            return toy_crystal.make(engine="torch", bias=metadynamics(), pressure=1000.0)
        bias = ExtendedABF(pace=10, temperature=300.0) if case == "extended" else metadynamics()
        guard = Guard(PEROXIDE, peroxide(), bond_range=NARROW)
        return toy_walkers.make(engine="torch", bias=bias, guard=guard)

    first, second = make(), make()
    before = observed(first, 100)
    first.save(tmp_path / "snapshot.npz")
    expected = observed(first, 200)
    second.load(tmp_path / "snapshot.npz")
    for one, other in zip(expected, observed(second, 200), strict=True):
        for name in ("positions", "energy", "driver", "judge", "bias", "restarted"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        if one.boxes is not None:
            np.testing.assert_array_equal(one.boxes, other.boxes)
    assert np.abs(expected[-1].positions - before[-1].positions).max() > 1e-3
    if case == "molecule":
        assert any(o.restarted.any() for o in expected)
    if case == "cells":
        assert np.ptp([o.boxes for o in expected], axis=0).max() > 1e-4


def test_same_seed_same_noise_and_each_engine_reads_the_others_snapshot(tmp_path):
    runs = [observed(toy_walkers.make(engine="torch", seed=seed), 50)[-1].positions for seed in (3, 3, 4)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert np.abs(runs[0] - runs[2]).max() > 1e-4
    for one, other in (("torch", "openmm"), ("openmm", "torch")):
        walkers, after = toy_walkers.make(engine=one), toy_walkers.make(engine=other)
        walkers.run(20, pace=10)
        walkers.save(tmp_path / "snapshot.npz")
        after.load(tmp_path / "snapshot.npz")
        for here, there in zip(walkers.snapshot(1), after.snapshot(1), strict=True):
            np.testing.assert_array_equal(here, there)
        assert after.context.getStepCount() == after.step == 20


def test_a_checkpoint_of_something_else_changes_nothing():
    context, smaller = (toy_walkers.make(n_walkers=n, engine="torch").context for n in (2, 1))
    before = context.createCheckpoint()
    for bad in (b"", before[:-100], smaller.createCheckpoint()):
        with pytest.raises(openmm.OpenMMException, match="not a checkpoint"):
            context.loadCheckpoint(bad)
    assert context.createCheckpoint() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"constraints": "hbonds"}, "engine 'torch' with constraints 'hbonds'; take constraints: none, or engine"),
        ({"platform": "Reference"}, "engine 'torch' with platform 'Reference'"),
        ({"platform": "CUDA"}, "platform 'CUDA' with an evaluator on the CPU"),
        ({"backend": "pythonforce"}, "engine 'torch' with backend 'pythonforce'"),
        ({"engine": "torsh"}, "unknown engine 'torsh'"),
    ],
)
def test_what_it_does_not_have_is_refused(options, message):
    with pytest.raises(UqbiasError) as caught:
        toy_walkers.make(**{"engine": "torch"} | options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"constraints": "hbonds"}, "engine = torch with constraints = hbonds: take constraints: none"),
        ({"platform": "CPU"}, "engine = torch with platform = CPU: take platform: auto, or CUDA for a GPU"),
        ({"backend": "torchforce"}, "engine = torch with backend = torchforce: take backend: auto"),
    ],
)
def test_a_campaign_file_says_so_early(options, message):
    with pytest.raises(ValueError, match=message):
        MD(engine="torch", **options)
    assert MD(engine="torch").in_campaign().jumps.share == 0.5
