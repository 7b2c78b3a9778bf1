"""Small periodic systems, and their neighbours by brute force."""

import itertools

import numpy as np
import torch

SILICON, OXYGEN = 14, 8
#: Cells in nm by what is particular to them; the cutoff that goes with them is `CUTOFF`.
CUTOFF = 0.3
CELLS = {
    "wide": (np.diag([0.65, 0.7, 0.75]), (True, True, True)),
    "triclinic": (np.array([[0.7, 0, 0], [0.2, 0.65, 0], [-0.15, 0.3, 0.75]]), (True, True, True)),
    "left-handed": (np.array([[0.1, 0.6, 0], [0.6, 0.1, 0.1], [0, -0.2, 0.6]]), (True, True, True)),
    "skewed": (np.array([[0.4, 0, 0], [0.7, 0.4, 0], [-0.5, 0.6, 0.5]]), (True, True, True)),
    "narrow": (np.diag([0.22, 0.25, 0.6]), (True, True, True)),
    "slab": (np.array([[0.5, 0, 0], [0.1, 0.5, 0], [0.1, 0.2, 0.4]]), (True, True, False)),
    "wire": (np.array([[0.35, 0.1, 0], [0.0, 0.0, 0], [0, 0, 0]]), (True, False, False)),
}


def atoms(box, periodic, seed=0, n_walkers=1, spacing=0.19):
    """Numbers and positions [W, N, 3] of atoms that fill a cell and do not meet, some in images away from it."""
    generator = np.random.default_rng(seed)
    vectors = np.where(np.array(box).any(-1, keepdims=True), box, 0.4 * np.eye(3))
    counts = np.maximum(np.linalg.norm(vectors, axis=1) // spacing, 1).astype(int)
    grid = np.stack(np.meshgrid(*map(np.arange, counts), indexing="ij"), -1).reshape(-1, 3) / counts
    fractional = grid + 0.25 * (generator.random((n_walkers, *grid.shape)) - 0.5) / counts
    fractional = fractional + generator.integers(-1, 2, fractional.shape) * np.array(periodic)
    numbers = tuple(int(SILICON if index % 3 == 0 else OXYGEN) for index in range(len(grid)))
    return numbers, torch.tensor(fractional @ vectors)


def brute_force(positions, box, periodic, cutoff):
    """All (i, j, shift) with 0 < |x_j - x_i + shift @ box| < cutoff, as a set; every image that can matter is tried."""
    x = np.asarray(positions)
    if box is None:
        box, periodic = np.eye(3), (False, False, False)
    box = np.asarray(box)
    whole = np.where(box.any(-1, keepdims=True), box, np.eye(3))
    spread = np.ptp(x @ np.linalg.pinv(whole), axis=0)
    reach = cutoff * np.linalg.norm(np.linalg.pinv(whole), axis=0)
    ranges = [
        range(-n, n + 1) if repeats else range(1)
        for n, repeats in zip(np.ceil(spread + reach).astype(int) + 1, periodic, strict=True)
    ]
    pairs = set()
    for shift in itertools.product(*ranges):
        apart = np.linalg.norm(x[None] - x[:, None] + np.array(shift) @ box, axis=-1)
        pairs |= {(int(i), int(j), shift) for i, j in zip(*np.nonzero((apart < cutoff) & (apart > 0)), strict=True)}
    return pairs


def model(numbers, positions, cell, periodic, **options):
    """An untrained model of a solid in float64: a mixture on latents is driver and judge, fitted to some frames."""
    from uqbias.model.model import UncertaintyModel
    from uqbias.molecule.topology import Topology
    from uqbias.potentials.power_spectrum import PowerSpectrum
    from uqbias.potentials.prediction import predict
    from uqbias.registry import UNCERTAINTIES

    options = {"n_members": 2, "n_radial": 4, "n_channels": 3, "l_max": 2, "hidden": (8, 5)} | options
    potential = PowerSpectrum(numbers, cutoff=CUTOFF, seed=3, **options).double()
    potential.energy_scale.fill_(20.0)
    topology = Topology(numbers, ())
    part = UNCERTAINTIES.build(
        "gmm", {"features": "latents", "n_components": 1}, topology=topology, n_latents=potential.n_latents
    ).double()
    generator = torch.Generator().manual_seed(5)
    frames = positions[:1] + 0.01 * torch.randn(30, *positions.shape[1:], generator=generator, dtype=torch.float64)
    cells = None if cell is None else torch.tensor(cell).expand(30, 3, 3)
    prediction = predict(potential, frames, forces="none", cells=cells, periodic=periodic)
    part.prepare(frames)
    part.fit(frames, prediction.energy, prediction.latents, seed=0)
    return UncertaintyModel(potential, part, topology).double().eval()
