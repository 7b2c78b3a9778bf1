"""Whole campaigns of a crystal in a skewed cell: random distortions and a pool, labelled by an ASE calculator."""

import json

import ase.io
import numpy as np
import pytest
import yaml
from ase.build import bulk
from ase.calculators.emt import EMT

from uqbias.campaign.rounds import run_campaign
from uqbias.campaign.verification import verify
from uqbias.errors import UqbiasError
from uqbias.model.model import UncertaintyModel
from uqbias.molecule.frames import read_frames
from uqbias.report.page import render
from uqbias.report.run_data import RunData
from uqbias.settings.file import load_campaign

SHEAR = np.array([[1.0, 0.05, 0.0], [0.0, 1.0, 0.1], [0.0, 0.0, 1.0]])
SMALL = {"kind": "power_spectrum", "cutoff": 0.42, "n_radial": 4, "n_channels": 3, "l_max": 1, "hidden": [8, 5]}


def crystal():
    atoms = bulk("Cu", cubic=True)
    atoms[0].symbol = "Au"
    atoms.set_cell(atoms.cell.array @ SHEAR, scale_atoms=True)
    return atoms


def frames(count, seed, scale=0.08):
    """Distorted and strained crystals with EMT's labels, atoms at any of their images."""
    random, images = np.random.default_rng(seed), []
    for _ in range(count):
        atoms = crystal()
        strain = random.normal(scale=0.02, size=(3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain + strain.T), scale_atoms=True)
        atoms.positions += random.normal(scale=scale, size=(4, 3))
        atoms.positions += random.integers(-2, 3, size=(4, 3)) @ atoms.cell.array
        atoms.calc = EMT()
        atoms.get_stress()
        images.append(atoms)
    return images


def campaign(folder, **changes):
    ase.io.write(folder / "structure.cif", crystal())
    ase.io.write(folder / "start.xyz", [image.copy() for image in frames(20, 0)])
    ase.io.write(folder / "test.xyz", frames(6, 1))
    content = {
        "name": "crystal",
        "system": {"structure": "structure.cif", "start": "start.xyz"},
        "oracle": {"kind": "ase", "calculator": "ase.calculators.emt.EMT"},
        "potential": SMALL,
        "training": {"steps": 60, "evaluate_every": 30, "batch_size": 4, "stress_weight": 1.0, "runner": "eager"},
        "driver": {"kind": "committee"},
        "judge": {"kind": "committee"},
        "sampler": "random",
        "random": {"count": 12, "amplitude": 0.01},
        "harvest": {
            "labels_per_round": 4,
            "selection": {"space": "latents", "duplicates": "rmsd", "minimum_rmsd": 1e-3},
        },
        "executors": {"label": "local", "explore": "local"},
        "score": {"test_set": "test.xyz"},
        "stop": {"rounds": 2},
        **changes,
    }
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def labels(directory):
    events = map(json.loads, (directory / "ledger.jsonl").read_text().splitlines())
    return [event for event in events if event["event"] == "label"]


@pytest.mark.parametrize("sampler", ["random", "attack"])
def test_distortions_of_a_crystal(tmp_path, sampler):
    attack = {"count": 12, "iterations": 4, "batch": 12, "runner": "eager"}
    changes = {"sampler": "attack", "attack": attack, "random": {}} if sampler == "attack" else {}
    run_campaign(load_campaign(campaign(tmp_path, **changes)), tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [entry["labels"] for entry in summary["rounds"]] == [20, 24, 28]
    for event in labels(tmp_path / "run"):
        atoms = crystal()
        atoms.set_cell(np.array(event["cell"]) * 10)
        atoms.set_positions(np.array(event["positions"]) * 10)
        atoms.calc = EMT()
        assert event["energy"] / 96.48533 == pytest.approx(atoms.get_potential_energy(), abs=1e-5)
        np.testing.assert_allclose(np.array(event["stress"]) / 96.48533e3, atoms.get_stress(voigt=False), atol=1e-6)
    data = read_frames(tmp_path / "run" / "dataset.xyz", periodic=True)
    assert data.stresses.shape == (28, 3, 3)
    assert len(np.unique(data.cells.reshape(28, 9), axis=0)) == 20
    model = UncertaintyModel.load(tmp_path / "run" / "round_02" / "model.uqb")
    assert model.topology.network == frozenset(range(4))
    assert not verify(tmp_path / "run").faults
    report = RunData.load(tmp_path / "run")
    assert report.test_positions.shape == (6, 4, 3)
    assert "crystal" in render(report)


def test_a_pool_of_a_crystal(tmp_path):
    pool = frames(16, 2)
    ase.io.write(tmp_path / "pool.xyz", pool)
    oracle = {"kind": "pool", "file": "pool.xyz"}
    path = campaign(tmp_path, oracle=oracle, sampler="pool", pool={"file": "pool.xyz"})
    ase.io.write(tmp_path / "start.xyz", frames(20, 0))
    run_campaign(load_campaign(path), tmp_path / "run")
    taken = [event for event in labels(tmp_path / "run") if event["round"]]
    assert len(taken) == 8
    assert len({event["info"]["source"] for event in taken}) == 8
    for event in taken:
        image = pool[int(event["info"]["source"])]
        assert event["energy"] / 96.48533 == pytest.approx(image.get_potential_energy(), abs=1e-5)
        np.testing.assert_allclose(np.array(event["cell"]) * 10, image.cell.array, atol=1e-6)


def test_bad_input_of_periodic_campaigns(tmp_path):
    path = campaign(tmp_path)
    isolated = [image.copy() for image in frames(20, 0)]
    for image in isolated:
        image.pbc = False
    ase.io.write(tmp_path / "start.xyz", isolated)
    with pytest.raises(UqbiasError, match=r"start.xyz has pbc \[False, False, False\], system.structure \[True"):
        run_campaign(load_campaign(path), tmp_path / "run")
    path = campaign(tmp_path, oracle={"kind": "double_well"})
    with pytest.raises(UqbiasError, match="the start frames have cells, and the oracle 'double_well' labels molecules"):
        run_campaign(load_campaign(path), tmp_path / "run")
    assert not (tmp_path / "run" / "ledger.jsonl").exists()
