"""Hydrogen peroxide: the smallest molecule with a torsion, and a small untrained model of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from uqbias.model.model import UncertaintyModel
from uqbias.molecule.topology import Topology
from uqbias.potentials.power_spectrum import PowerSpectrum
from uqbias.registry import UNCERTAINTIES


def peroxide_geometries(count: int, seed: int = 0) -> Any:
    """Distorted hydrogen peroxide molecules with any torsion, [count, 4, 3] nm."""
    random = np.random.default_rng(seed)
    turn = random.uniform(-np.pi, np.pi, count)
    half, radial, rise = 0.0725, 0.0945, 0.019
    x = np.zeros((count, 4, 3))
    x[:, 0, 2], x[:, 1, 2] = -half, half
    x[:, 2] = [radial, 0.0, -half - rise]
    x[:, 3] = np.stack([radial * np.cos(turn), radial * np.sin(turn), np.full(count, half + rise)], axis=1)
    return x + random.normal(scale=0.004, size=x.shape)


def peroxide_model() -> UncertaintyModel:
    """A small untrained model of hydrogen peroxide with a driver on its torsion and a judge on latents, float64."""
    topology = Topology((8, 8, 1, 1), ((0, 1), (0, 2), (1, 3)))
    potential = PowerSpectrum(topology.numbers, n_radial=4, n_channels=2, l_max=1, hidden=(8, 4)).double()
    positions = torch.as_tensor(peroxide_geometries(60), dtype=torch.float64)
    noise = torch.Generator().manual_seed(1)
    labels = 200.0 * torch.randn(60, 4, 3, generator=noise, dtype=torch.float64)
    potential.standardise(positions, 20.0 * labels[:, 0, 0] / 200.0, labels)
    driver = UNCERTAINTIES.build(
        "kernel_density",
        {"features": {"kind": "torsions", "heavy_only": False}, "capacity": 64},
        topology=topology,
        n_latents=4,
    ).double()
    judge = UNCERTAINTIES.build("gmm", {"n_components": 1}, topology=topology, n_latents=potential.n_latents).double()
    with torch.no_grad():
        energy, latents = potential(positions)
    for part in (driver, judge):
        part.fit(positions, energy, latents, seed=0)
    return UncertaintyModel(potential, judge, topology, driver).double().eval()
