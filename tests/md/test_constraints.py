"""Constraints that OpenMM's solver cannot hold are refused by name, before anything is paid."""

import numpy as np
import pytest
from command_line import refused
from molecules import ALANINE, PEROXIDE, peroxide

from uqbias.errors import UqbiasError
from uqbias.md.constraints import Projector, check_constraints, choose_constraints
from uqbias.molecule.frames import read_frames
from uqbias.molecule.topology import Topology


@pytest.fixture(scope="module")
def alanine():
    return Topology.from_pdb(ALANINE / "structure.pdb"), read_frames(ALANINE / "start.xyz", labelled=False).positions


@pytest.mark.parametrize("kind", ["none", "hbonds", "bonds"])
def test_bonds_of_a_chain_are_held(alanine, kind):
    topology, frames = alanine
    check_constraints(topology, frames, kind)
    held = choose_constraints(topology, frames, kind)
    x, _ = Projector(topology.masses(), held)(frames[0], np.zeros_like(frames[0]))
    for i, j, length in held:
        assert np.linalg.norm(x[i] - x[j]) == pytest.approx(length, rel=1e-5)


def test_angles_about_one_centre_are_held():
    check_constraints(PEROXIDE, np.array([peroxide(), peroxide(2.0)]), "bonds_angles")


def test_angles_along_a_chain_are_refused(alanine, tmp_path):
    with pytest.raises(UqbiasError, match="solver diverges with the 49 constraints of this molecule"):
        check_constraints(*alanine, "bonds_angles")
    text = (ALANINE / "campaign.yaml").read_text() + "\nmd:\n  constraints: bonds_angles\n"
    for file in ("structure.pdb", "start.xyz", "reference/test_set.xyz", "reference/surface.csv"):
        text = text.replace(f" {file}", f" {ALANINE / file}")
    campaign = tmp_path / "campaign.yaml"
    campaign.write_text(text)
    for command in (("validate", campaign), ("run", campaign, "-o", tmp_path / "run")):
        line = refused(*command)
        assert "md.constraints = bonds_angles: OpenMM's solver diverges" in line
        assert "take constraints: bonds" in line
    assert not (tmp_path / "run").exists()
