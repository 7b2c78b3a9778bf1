"""Shared fixtures and the seed of every test: one torch thread, a tiny model, one cache of compiled graphs."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from molecules import ALANINE, ALANINE_PDB
from tiny_model import TinyModel

torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--seed", type=int, default=0, help="seed of the global random numbers of every test (default: 0)")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Set what a test or its fixtures draw without a generator of their own, whatever ran before."""
    seed = item.config.getoption("seed")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if report.failed:
        seed = item.config.getoption("seed")
        report.sections.append(("Random numbers", f"pytest --seed {seed} '{item.nodeid}' draws the same ones"))
    return report


@pytest.fixture
def tiny_model() -> TinyModel:
    return TinyModel()


@pytest.fixture
def tiny_positions() -> torch.Tensor:
    """[3, 5, 3] nm."""
    generator = torch.Generator().manual_seed(7)
    return 0.15 * torch.randn(3, 5, 3, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="session")
def graph_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cache directory of the session, shared by its processes: each graph is compiled once."""
    base = tmp_path_factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "graphs"
    directory.mkdir(exist_ok=True)
    return directory


@pytest.fixture(scope="session")
def alanine_frames():
    """Labelled start frames of alanine dipeptide."""
    from uqbias.molecule.frames import read_frames

    return read_frames(ALANINE / "start.xyz")


@pytest.fixture(scope="session")
def alanine_model(alanine_frames):
    """Small untrained potential, torsion density as driver, mixture on latents as judge, float64."""
    from uqbias.model.model import UncertaintyModel
    from uqbias.molecule.topology import Topology
    from uqbias.potentials.power_spectrum import PowerSpectrum
    from uqbias.registry import UNCERTAINTIES

    frames = alanine_frames
    numbers = tuple(int(number) for number in frames.numbers)
    topology = Topology.from_pdb(ALANINE_PDB)
    potential = PowerSpectrum(numbers, n_members=2, n_radial=5, n_channels=4, l_max=2, hidden=(16, 8)).double()
    energies, forces = frames.labels()
    positions = torch.tensor(frames.positions)
    potential.standardise(positions, torch.tensor(energies), torch.tensor(forces))
    judge = UNCERTAINTIES.build(
        "gmm", {"features": "latents"}, topology=topology, n_latents=potential.n_latents
    ).double()
    driver = UNCERTAINTIES.build(
        "kernel_density", {"capacity": 128}, topology=topology, n_latents=potential.n_latents
    ).double()
    with torch.no_grad():
        energy, latents = potential(positions)
    for part in (judge, driver):
        part.prepare(positions)
        part.fit(positions, energy, latents, seed=0)
    return UncertaintyModel(potential, judge, topology, driver).double().eval()
