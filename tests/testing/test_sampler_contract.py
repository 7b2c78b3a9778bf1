"""The contract of a sampler: every built-in kind keeps it, broken ones are caught."""

import numpy as np
import pytest
from molecules import HYDROGENS_LAST, peroxide_geometries, peroxide_model

from uqbias.campaign.samplers.base import Exploration
from uqbias.campaign.samplers.md import MolecularDynamics
from uqbias.molecule.frames import Frames, write_frames
from uqbias.registry import SAMPLERS
from uqbias.settings.file import check_campaign
from uqbias.testing import ContractError, check_sampler


@pytest.fixture
def job(tmp_path):
    frames = peroxide_geometries(12)
    noise = np.random.default_rng(0)
    energies, forces = noise.normal(size=12), 100 * noise.normal(size=frames.shape)
    write_frames(tmp_path / "pool.xyz", Frames(np.array(HYDROGENS_LAST.numbers), frames, energies, forces))
    peroxide_model().save(tmp_path / "m.uqb")
    md = {"walkers": 2, "steps": 80, "pace": 10, "observe_every": 10, "trajectory_every": 40, "runner": "eager"}
    settings = check_campaign({"system": {"structure": "-", "start": "-"}, "md": {**md, "backend": "pythonforce"}})
    return Exploration(
        model=tmp_path / "m.uqb",
        folder=tmp_path / "md",
        biases=tuple((section.kind, section.arguments()) for section in settings.bias),
        md=settings.md,
        guards=settings.guards.model_copy(update={"driver_cap": None}),
        safe_frames=frames[:6],
        safe_weights=np.full(6, 1 / 6),
        reference=frames[0],
        seed=3,
        snapshot_every=20,
        energies=energies,
        names=tuple(f"0/{index}" for index in range(6)),
        known=frames[:6],
    )


def options_of(kind, job):
    few = {"count": 12, "amplitude": 0.005}
    options = {"pool": {"file": str(job.model.with_name("pool.xyz"))}, "random": few}
    attack = {"count": 12, "iterations": 5, "runner": "eager", "batch": 12}
    return {**options, "attack": attack}.get(kind, {})


@pytest.mark.slow
@pytest.mark.parametrize("kind", SAMPLERS.builtin)
def test_sampler(kind, job):
    if kind == "plumed":
        pytest.skip("it takes its biases from PLUMED's input; tests/integration/test_plumed_campaign.py runs it")
    check_sampler(SAMPLERS.build(kind, options_of(kind, job)), job)


class Unseeded(MolecularDynamics):
    """Every exploration is another."""

    explored = 0

    def explore(self, job, advance=None):
        Unseeded.explored += 1
        return super().explore(job.__class__(**{**vars(job), "seed": Unseeded.explored}), advance)


class Bare(MolecularDynamics):
    """Leaves a column out."""

    def explore(self, job, advance=None):
        facts = super().explore(job, advance)
        with np.load(job.folder / "observations.npz") as arrays:
            kept = {name: arrays[name] for name in arrays if name != "judge"}
        np.savez(job.folder / "observations.npz", **kept)
        return facts


@pytest.mark.slow
@pytest.mark.parametrize(("broken", "clause"), [(Unseeded, "same seed"), (Bare, "columns of another format")])
def test_broken_sampler(broken, clause, job):
    with pytest.raises(ContractError, match=clause):
        check_sampler(broken(), job)
