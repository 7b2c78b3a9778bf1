"""A judge that takes the forces of a committee: left out of each step, the same numbers wherever it is looked at."""

import numpy as np
import openmm
import plumed_kernel
import pytest
import torch
from openmm import app

import uqbias
from uqbias.bias.base import BiasSum
from uqbias.bias.linear import Linear
from uqbias.bias.metad import MetaD
from uqbias.compile.fused import FusedEvaluator
from uqbias.md.walkers import Walkers
from uqbias.model.export import export_torchscript
from uqbias.model.model import UncertaintyModel
from uqbias.potentials.prediction import predict
from uqbias.registry import UNCERTAINTIES

W = 2


@pytest.fixture(scope="module")
def model(alanine_model):
    """A committee's forces as the judge of the model whose driver is a density of torsions; float64."""
    twin = UncertaintyModel(
        alanine_model.potential,
        UNCERTAINTIES.build(
            "committee",
            {"quantity": "forces"},
            topology=alanine_model.topology,
            n_latents=alanine_model.potential.n_latents,
        ),
        alanine_model.topology,
        alanine_model.driver,
    )
    return twin.double().eval()


@pytest.fixture
def positions(alanine_frames):
    return torch.tensor(alanine_frames.positions[:W])


def make(model, **options):
    bias = BiasSum([MetaD(sigma=0.5, pace=5, height=3.0)])
    return FusedEvaluator(model, bias, W, **{"runner": "eager", "dtype": torch.float64, **options})


def walkers_of(model, positions, evaluator):
    return Walkers(
        model.topology, evaluator, positions.numpy(), temperature=300.0, timestep_fs=0.1, platform="Reference", seed=3
    )


@pytest.fixture
def judged(monkeypatch):
    """Positions at which a judge by itself was evaluated."""
    places, call = [], uqbias.compile.judging.Judge.__call__

    def noted(self, inputs, *rest, **options):
        places.append(inputs[0].clone())
        return call(self, inputs, *rest, **options)

    monkeypatch.setattr("uqbias.compile.judging.Judge.__call__", noted)
    return places


@pytest.mark.parametrize("runner", ["eager", "torchscript"])
def test_energy_forces_and_judge_are_those_of_one_graph(model, positions, runner, monkeypatch):
    evaluator = make(model, runner=runner)
    hot = evaluator.evaluate(positions, judged=False)
    assert hot.judge.isnan().all()
    whole = evaluator.judged()
    evaluator.verify(0)
    monkeypatch.setattr(UncertaintyModel, "judge_apart", False)
    together = make(model, runner=runner).evaluate(positions)
    for name, value in whole._asdict().items():
        torch.testing.assert_close(value, getattr(together, name), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(whole.forces, hot.forces, rtol=0, atol=0)
    shown = predict(model.potential, positions, forces="mean")
    torch.testing.assert_close(make(model, energy_only=True).evaluate(positions).forces, shown.forces)
    torch.testing.assert_close(whole.judge, model(positions).judge.detach())


def test_no_forces_of_members_before_something_looks(model, positions, monkeypatch):
    def refuse(*_):
        raise AssertionError("forces of members")

    monkeypatch.setattr("uqbias.model.model.with_member_forces", refuse)
    evaluator = make(model)
    evaluator.evaluate(positions, judged=False)
    evaluator.verify(0)
    with pytest.raises(AssertionError, match="forces of members"):
        evaluator.judged()


def test_a_bias_on_the_judge_has_it_in_the_graph(model, positions, judged):
    evaluator = FusedEvaluator(model, Linear(tau=-1.0, variables=["judge"]), W, runner="eager", dtype=torch.float64)
    hot = evaluator.evaluate(positions, judged=False)
    torch.testing.assert_close(hot.bias, hot.judge)
    torch.testing.assert_close(hot.judge, model(positions).judge.detach())
    assert not judged


def test_walkers_judge_where_they_are_observed_and_resume_to_the_last_bit(model, positions, judged, tmp_path):
    evaluator, seen = make(model), []
    walkers = walkers_of(model, positions, evaluator)
    walkers.run(10, pace=5, observers=[seen.append])
    walkers.save(tmp_path / "snapshot.npz")
    walkers.run(10, pace=5, observers=[seen.append])
    assert evaluator.n_evaluations == 21
    assert len(judged) == len(seen) == 5
    for observation in seen:
        expected = model(torch.tensor(observation.positions)).judge.detach()
        np.testing.assert_allclose(observation.judge, expected, rtol=1e-9)
    again, later = walkers_of(model, positions, make(model)), []
    again.load(tmp_path / "snapshot.npz")
    again.run(10, pace=5, observers=[later.append])
    for one, other in zip(seen[3:], later, strict=True):
        for name in ("positions", "energy", "driver", "judge", "bias"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def simulation_of(model, positions, system):
    integrator = openmm.LangevinMiddleIntegrator(300, 1.0, 0.0001)
    platform = openmm.Platform.getPlatformByName("Reference")
    simulation = app.Simulation(model.topology.to_openmm(), system, integrator, platform)
    simulation.context.setPositions(positions[0].numpy())
    return simulation


def empty_system(model):
    system = openmm.System()
    for mass in model.topology.masses():
        system.addParticle(float(mass))
    return system


def test_in_the_users_simulation(model, positions, judged):
    system = empty_system(model)
    sampling = uqbias.Sampling(
        system, model, [MetaD(sigma=0.5, pace=10)], temperature=300, runner="eager", hills=None, colvar=None
    )
    sampling.step(simulation_of(model, positions, system), 30)
    assert len(judged) == 3
    assert torch.isfinite(sampling.evaluator.last.judge).all()


@pytest.mark.plumed
@plumed_kernel.needs_kernel()
def test_under_plumed(model, positions, judged, tmp_path):
    system = empty_system(model)
    options = {"runner": "eager", "dtype": torch.float64, "timestep": 0.0001, "temperature": 300}
    lines = ["u: EXTRACV NAME=driver", "METAD ARG=u SIGMA=0.3 HEIGHT=1 PACE=5"]
    with uqbias.PlumedBridge(system, lines, model, output_dir=tmp_path, **options) as bridge:
        simulation = simulation_of(model, positions, system)
        bridge.step(simulation, 10)
        assert not judged
        state = simulation.context.getState(positions=True, forces=True)
        expected = model(torch.tensor(state.getPositions(asNumpy=True)._value)[None]).judge.detach()
        assert bridge.last.judge == pytest.approx(float(expected), rel=1e-9)
        assert len(judged) == 1
        assert bridge.last.step == 10


def test_exported(model, positions, tmp_path, monkeypatch):
    bias = Linear(tau=-2.0)
    values = []
    for name in ("apart", "together"):
        export_torchscript(model, tmp_path / name, "biased", with_forces=True, bias=bias)
        values.append(torch.jit.load(tmp_path / name)(positions[0]))
        monkeypatch.setattr(UncertaintyModel, "judge_apart", False)
    for one, other in zip(*values, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)
