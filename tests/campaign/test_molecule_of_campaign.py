"""Mobile protons of a campaign: found in the start frames, listed, or none; they go into the model file."""

import numpy as np
import pytest
import yaml
from command_line import call, refused
from molecules import malonaldehyde, write_pdb

from uqbias.campaign.work import read_molecule
from uqbias.errors import UqbiasError
from uqbias.model.fit import fit_model
from uqbias.model.model import UncertaintyModel
from uqbias.molecule.frames import Frames, write_frames
from uqbias.settings.file import load_campaign


@pytest.fixture
def campaign(tmp_path):
    """Writes a campaign of malonaldehyde with options of ``system`` and ``md``, and reads it."""
    topology, x = malonaldehyde()
    moved = malonaldehyde(moved=True)[1]
    frames = np.array([x, moved]) + 0.001 * np.random.default_rng(0).normal(size=(10, 2, 9, 3))
    write_pdb(tmp_path / "structure.pdb", topology, x)
    write_frames(tmp_path / "start.xyz", Frames(np.array(topology.numbers), frames.reshape(-1, 9, 3)))

    def write(system=None, md=None):
        settings = {
            "system": {"structure": "structure.pdb", "start": "start.xyz", **(system or {})},
            "oracle": {"kind": "ase", "calculator": "ase.calculators.emt:EMT"},
            "driver": {"kind": "gmm"},
            "md": md or {},
        }
        (tmp_path / "campaign.yaml").write_text(yaml.safe_dump(settings))
        return tmp_path / "campaign.yaml"

    return write


@pytest.mark.parametrize(
    ("system", "md", "protons"),
    [
        ({}, {}, ((0, 5, 4),)),
        ({"mobile_protons": []}, {}, ()),
        ({"mobile_protons": [[0, 5, 4]]}, {}, ((0, 5, 4),)),
        ({}, {"constraints": "hbonds"}, ()),
    ],
)
def test_protons_of_a_campaign(campaign, system, md, protons):
    topology, start = read_molecule(load_campaign(campaign(system, md)))
    assert topology.mobile == protons
    assert len(start) == 20


@pytest.mark.parametrize("entry", [[0, 5, 9], [1, 5, 4], [0, 6, 4]])
def test_a_proton_that_is_none_is_refused(campaign, entry):
    file = load_campaign(campaign({"mobile_protons": [entry]}))
    with pytest.raises(UqbiasError, match="mobile proton"):
        read_molecule(file)


def test_validate_lists_them_and_refuses_constraints_on_them(campaign):
    done = call("validate", campaign())
    assert done.exit_code == 0, done.output
    assert "mobile protons         [[0, 5, 4]]" in done.stdout
    line = refused("validate", campaign({"mobile_protons": [[0, 5, 4]]}, {"constraints": "bonds"}))
    assert "md.constraints = bonds: constraints 'bonds' would hold hydrogen 5, which may move to atom 4" in line


def test_validate_refuses_a_pressure_in_vacuum(campaign):
    line = refused("validate", campaign({}, {"pressure": 1.0}))
    assert "md.pressure = 1 on a molecule in vacuum; leave it out, or give frames with cells" in line


def test_a_model_file_keeps_them(tmp_path):
    topology, x = malonaldehyde()
    random = np.random.default_rng(1)
    positions = x + 0.002 * random.normal(size=(40, 9, 3))
    forces = random.normal(size=positions.shape)
    frames = Frames(np.array(topology.numbers), positions, random.normal(size=40), forces)
    settings = {"training": {"steps": 2, "runner": "eager"}, "driver": {"kind": "gmm"}}
    model, _ = fit_model(frames, settings=settings)
    model.save(tmp_path / "model.uqb")
    assert UncertaintyModel.load(tmp_path / "model.uqb").topology.mobile == ((0, 5, 4),)
    done = call("info", tmp_path / "model.uqb")
    assert "((0, 5, 4),) (donor, hydrogen, acceptor)" in done.stdout
