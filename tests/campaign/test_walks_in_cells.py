"""The MD phase with frames in cells: where walkers begin, constant pressure, files, going on, what is refused."""

import json

import numpy as np
import pytest
from periodic_systems import CELLS, atoms, model

from uqbias.campaign.samplers.base import Exploration
from uqbias.campaign.samplers.md import BiasedDynamics
from uqbias.campaign.samplers.plumed_md import PlumedDynamics
from uqbias.errors import UqbiasError
from uqbias.runs.reader import RunFolder
from uqbias.settings.md_sections import MD, Guards, Jumps


@pytest.fixture(scope="module")
def crystal(tmp_path_factory):
    box, periodic = CELLS["wide"]
    numbers, positions = atoms(box, periodic, spacing=0.26)
    path = tmp_path_factory.mktemp("crystal") / "model.uqb"
    model(numbers, positions, box, periodic, n_members=1).save(path)
    return path, positions.numpy(), box, periodic


def job(crystal, folder, steps=40, **changes):
    path, positions, box, periodic = crystal
    scales = np.array([1.0, 1.01, 1.02])[:, None, None]
    options = {
        "md": {"runner": "eager", "jumps": Jumps(share=0.5), "backend": "pythonforce"},
        "biases": (("metadynamics", {"variables": ["driver"], "pace": 10, "sigma": 0.5, "height": 0.5}),),
    } | changes
    md = {"walkers": 2, "steps": steps, "pace": 10, "observe_every": 10, "trajectory_every": 20} | options.pop("md")
    settings = {
        "model": path,
        "folder": folder,
        "guards": Guards(driver_cap=None),
        "safe_frames": positions * scales,
        "safe_weights": np.ones(3) / 3,
        "reference": positions[0],
        "seed": 5,
        "safe_boxes": box * scales,
        "periodic": periodic,
        "md": MD(**md),
        "snapshot_every": 20,
    }
    return Exploration(**settings | options)


def test_walkers_move_in_the_cells_of_their_frames(crystal, tmp_path):
    facts = BiasedDynamics().explore(job(crystal, tmp_path / "run"))
    assert facts["jumps"] == {"none": "walkers in cells do not jump"}
    run, cells = RunFolder(tmp_path / "run"), job(crystal, tmp_path).safe_boxes
    assert run.boxes.shape == (5, 2, 3, 3)
    assert (np.ptp(run.boxes, axis=0) == 0).all()
    begins = [int(np.abs(cells - box).sum((1, 2)).argmin()) for box in run.boxes[0]]
    np.testing.assert_array_equal(run.boxes[0], cells[begins])
    assert len(set(begins)) == 2
    with np.load(tmp_path / "run" / "observations.npz") as seen:
        np.testing.assert_allclose(seen["positions"][0], job(crystal, tmp_path).safe_frames[begins], atol=1e-6)
    assert "CRYST1" in (tmp_path / "run" / "topology.pdb").read_text()


def test_constant_pressure_and_a_run_that_goes_on(crystal, tmp_path):
    pressed = {"md": {"runner": "eager", "pressure": 3e3, "barostat": "anisotropic"}}
    BiasedDynamics().explore(job(crystal, tmp_path / "whole", 80, **pressed))
    BiasedDynamics().explore(job(crystal, tmp_path / "run", 40, **pressed))
    BiasedDynamics().explore(job(crystal, tmp_path / "run", 80, resume=True, **pressed))
    whole, run = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "run")
    np.testing.assert_array_equal(whole.boxes, run.boxes)
    np.testing.assert_array_equal(whole.column("energy").values, run.column("energy").values)
    assert np.ptp(whole.boxes, axis=0).max() > 0
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert settings["md.pressure"] == 3e3
    other = {"md": {"runner": "eager", "pressure": 1.0}}
    with pytest.raises(UqbiasError, match=r"md\.pressure = 3000\.0, this one 1\.0"):
        BiasedDynamics().explore(job(crystal, tmp_path / "run", 80, resume=True, **other))


def test_what_is_refused(crystal, tmp_path):
    with pytest.raises(UqbiasError, match="engine plumed with frames in cells"):
        PlumedDynamics().explore(job(crystal, tmp_path / "plumed"))
    with pytest.raises(ValueError, match="backend = torchforce with pressure = 1: take backend: pythonforce"):
        MD(pressure=1.0, backend="torchforce")
    with pytest.raises(ValueError, match="engine = plumed with pressure = 1"):
        MD(pressure=1.0, engine="plumed", plumed="plumed.dat")
