"""What a harvest asks a model of many frames."""

import numpy as np

from uqbias.model.inference import conformers
from uqbias.model.model import UncertaintyModel
from uqbias.molecule.measures import dihedral_angles
from uqbias.registry import UNCERTAINTIES


def test_conformers_are_the_soft_torsions_of_the_driver(alanine_model, alanine_frames):
    angles = dihedral_angles(alanine_frames.positions, alanine_model.driver.features.dihedrals)
    expected = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    np.testing.assert_allclose(conformers(alanine_model, alanine_frames.positions), expected, atol=1e-3)


def test_local_densities_have_conformers_too(alanine_model, alanine_frames):
    local = UNCERTAINTIES.build("local_densities", {}, topology=alanine_model.topology, n_latents=0).double()
    model = UncertaintyModel(alanine_model.potential, alanine_model.judge, alanine_model.topology, local)
    shape = conformers(model, alanine_frames.positions).shape
    assert shape == (len(alanine_frames), len(local.features.dihedrals), 2)


def test_without_angles_there_are_no_conformers(alanine_model, alanine_frames):
    model = UncertaintyModel(alanine_model.potential, alanine_model.judge, alanine_model.topology)
    assert conformers(model, alanine_frames.positions[:2]) is None
