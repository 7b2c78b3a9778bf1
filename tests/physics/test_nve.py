"""Constant-energy dynamics of a real model with a frozen bias: forces belong to the energy, and stay so."""

import numpy as np
import pytest
import torch
from molecules import ALANINE, ALANINE_PDB

from uqbias.bias.base import BiasSum
from uqbias.bias.fixed import UpperWall
from uqbias.bias.metad import MetaD
from uqbias.compile.fused import FusedEvaluator
from uqbias.md.walkers import Walkers
from uqbias.model.model import UncertaintyModel
from uqbias.model.training import train
from uqbias.molecule.frames import Frames, read_frames
from uqbias.molecule.topology import Topology
from uqbias.potentials.power_spectrum import PowerSpectrum
from uqbias.potentials.prediction import predict
from uqbias.registry import UNCERTAINTIES
from uqbias.settings.training_sections import TrainingOptions
from uqbias.units import kt


@pytest.fixture(scope="module")
def trained():
    """Potential of alanine dipeptide and the demo's driver, trained just well enough to hold the molecule."""
    # The test set spreads over the whole map, so that the molecule finds no hole in the surface.
    frames = Frames.concatenate([read_frames(ALANINE / name) for name in ("start.xyz", "reference/test_set.xyz")])
    topology = Topology.from_pdb(ALANINE_PDB)
    potential = PowerSpectrum(topology.numbers)
    train(potential, frames, options=TrainingOptions(steps=1200, batch_size=8), runner="torchscript")
    driver = UNCERTAINTIES.build(
        "kernel_density", {"features": "torsions"}, topology=topology, n_latents=potential.n_latents
    )
    x = torch.as_tensor(frames.positions[:100])
    driver.prepare(x)
    with torch.no_grad():
        energy, latents = potential(x.float())
    driver.fit(x.float(), energy, latents, seed=0)
    return UncertaintyModel(potential, driver, topology).float().eval(), frames


@pytest.mark.slow
def test_energy_is_conserved_with_a_frozen_bias(trained):
    model, frames = trained
    assert len(predict(model.potential, frames.positions).energy) == 1
    metadynamics = MetaD(height=1.0, sigma=0.2, pace=1, biasfactor=10.0)
    rng = np.random.default_rng(0)
    for step in range(1, 61):
        metadynamics.update(step, rng.normal(0.3, 0.6, (2, 1)))
    metadynamics.frozen = True
    n_walkers, temperature = 2, 300.0
    evaluator = FusedEvaluator(model, BiasSum([metadynamics, UpperWall(at=1.0, kappa=5.0)]), n_walkers)
    walkers = Walkers(
        model.topology,
        evaluator,
        frames.positions[:n_walkers],
        temperature=temperature,
        timestep_fs=0.5,
        friction_per_ps=None,
        seed=2,
    )
    seen, total = [], []

    def record(observation):
        kinetic = walkers.context.getState(energy=True).getKineticEnergy()._value
        seen.append(observation)
        total.append(observation.energy.sum() + observation.bias.sum() + kinetic)

    walkers.run(20000, pace=20, observers=[record])
    time = np.array([o.time_ps for o in seen])
    assert time[-1] == pytest.approx(10.0)
    per_atom = np.array(total) / (kt(temperature) * n_walkers * len(model.numbers))
    drift = np.polyfit(time, per_atom, 1)[0]
    bias, potential = np.stack([o.bias for o in seen]), np.stack([o.energy for o in seen])
    print(f"drift {drift:.1e} kT/atom/ps, spread {per_atom.std():.1e} kT/atom, bias over {np.ptp(bias):.1f} kJ/mol")
    assert abs(drift) <= 1e-3
    # The energy was exchanged with the bias, not conserved for want of one.
    assert np.ptp(bias) > 3.0
    assert np.ptp(potential) > 20.0
    assert len(metadynamics.hills) == 120
