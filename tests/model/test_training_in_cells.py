"""Training on frames in cells: tables as inputs of the step, stresses, a model that is saved and evaluated."""

import numpy as np
import pytest
import torch
from periodic_systems import CELLS, atoms, model

from uqbias.errors import UqbiasError
from uqbias.model.inference import evaluate_frames, residuals, selection_features
from uqbias.model.model import UncertaintyModel
from uqbias.model.score import score_model
from uqbias.model.training import force_and_energy_mae, train
from uqbias.molecule.cells import volume
from uqbias.molecule.frames import Frames
from uqbias.potentials.power_spectrum import PowerSpectrum
from uqbias.potentials.prediction import predict
from uqbias.settings.training_sections import TrainingOptions

CELL, PERIODIC = CELLS["narrow"]
OPTIONS = {"n_radial": 4, "n_channels": 3, "l_max": 1, "hidden": (8, 5), "cutoff": 0.3}


def frames(n=24):
    """Frames of cells that are strained, labelled by another potential of the same kind."""
    numbers, positions = atoms(CELL, PERIODIC)
    generator = np.random.default_rng(2)
    strains = np.eye(3) + 0.03 * generator.standard_normal((n, 3, 3))
    x = (positions.numpy() + 0.01 * generator.standard_normal((n, len(numbers), 3))) @ strains
    cells = CELL @ strains
    teacher = PowerSpectrum(numbers, seed=9, **OPTIONS).double()
    teacher.energy_scale.fill_(30.0)
    said = predict(teacher, x, cells=cells)
    stresses = said.virial.numpy() / volume(cells)[:, None, None]
    return Frames(
        np.array(numbers), x, said.energy[0].numpy() - 4e3, said.forces.numpy(), cells=cells, stresses=stresses
    )


def stress_mae(potential, labelled):
    said = predict(potential, labelled.positions, cells=labelled.cells, periodic=labelled.periodic)
    return float(np.abs(said.virial.numpy() / volume(labelled.cells)[:, None, None] - labelled.stresses).mean())


def trained(labelled, steps=150, **options):
    potential = PowerSpectrum(tuple(labelled.numbers.tolist()), n_members=2, seed=1, **OPTIONS)
    settings = TrainingOptions(steps=steps, batch_size=4, evaluate_every=steps, **options)
    result = train(potential, labelled[:16], labelled[16:], settings, runner="eager")
    return potential, result


def test_a_crystal_is_learned():
    labelled = frames()
    before, _ = trained(labelled, steps=1)
    potential, result = trained(labelled)
    assert force_and_energy_mae(potential, labelled)[0] < 0.5 * force_and_energy_mae(before, labelled)[0]
    assert result.history[-1]["validation_force_mae"] == pytest.approx(
        force_and_energy_mae(potential, labelled[16:])[0]
    )


def test_stresses_are_learned_where_asked_for():
    labelled = frames()
    before, without = trained(labelled, steps=1)[0], trained(labelled, force_weight=0.0)[0]
    within = trained(labelled, force_weight=0.0, stress_weight=1.0)[0]
    assert stress_mae(within, labelled) < 0.5 * stress_mae(before, labelled)
    assert stress_mae(within, labelled) < 0.7 * stress_mae(without, labelled)


def test_frames_without_stress_are_refused_where_it_is_learned():
    labelled = frames(17)
    bare = Frames(labelled.numbers, labelled.positions, *labelled.labels(), cells=labelled.cells)
    with pytest.raises(UqbiasError, match=r"training.stress_weight is 1, and not every training frame has a stress"):
        trained(bare, stress_weight=1.0)


def test_each_member_sees_its_own_frames():
    """A batch of each member is another, and so are its tables."""
    labelled = frames(4)
    potential = PowerSpectrum(tuple(labelled.numbers.tolist()), n_members=2, **OPTIONS).double()
    from uqbias.potentials.prediction import geometry_for

    x = torch.tensor(labelled.positions)
    geometry = geometry_for(potential, x, labelled.cells)
    index = torch.tensor([[0, 1], [3, 2]])
    energy, latents = potential(x[index], geometry.of(index))
    whole, all_latents = potential(x, geometry)
    torch.testing.assert_close(energy, torch.stack([whole[0, [0, 1]], whole[1, [3, 2]]]))
    torch.testing.assert_close(latents[1], all_latents[1, [3, 2]])


def test_a_model_of_a_crystal_is_saved_and_evaluated(tmp_path):
    labelled = frames(20)
    numbers, x = tuple(labelled.numbers.tolist()), torch.tensor(labelled.positions)
    whole = model(numbers, x, CELL, PERIODIC, n_members=1)
    whole.save(tmp_path / "model.uqb")
    loaded = UncertaintyModel.load(tmp_path / "model.uqb")
    evaluated, errors = residuals(loaded, labelled)
    said = predict(whole.potential, x, cells=labelled.cells)
    np.testing.assert_allclose(evaluated.energy, said.energy[0])
    np.testing.assert_allclose(errors, said.forces.numpy() - labelled.forces, atol=1e-9)
    off = evaluated.stress - labelled.stresses
    assert score_model(loaded, labelled)["stress_mae_GPa"] == pytest.approx(np.abs(off).mean() * 1.66054e-3, rel=1e-4)
    assert np.abs(off).mean() == pytest.approx(stress_mae(whole.potential, labelled))
    # Atoms may stand at any image; all frames in one cell are others.
    moved = labelled.positions + np.random.default_rng(1).integers(-1, 2, x.shape) @ CELL
    in_one = Frames(labelled.numbers, moved, cells=np.tile(CELL, (20, 1, 1)))
    at_home = Frames(labelled.numbers, labelled.positions, cells=np.tile(CELL, (20, 1, 1)))
    for one, other in ((in_one, at_home),):
        np.testing.assert_allclose(evaluate_frames(loaded, one).driver, evaluate_frames(loaded, other).driver)
        features = [selection_features(loaded, each, "latents") for each in (one, other)]
        np.testing.assert_allclose(*features, atol=1e-9)
    assert np.abs(evaluate_frames(loaded, at_home).energy - evaluated.energy).max() > 1e-3
