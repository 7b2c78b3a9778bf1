"""Training on energies alone: the forces leave the loss, and the best weights are those with the best energies."""

import dataclasses

import numpy as np
import pytest
import torch

from uqbias.errors import UqbiasError
from uqbias.model.fit import fit_model
from uqbias.model.score import score_model
from uqbias.model.training import force_and_energy_mae, train
from uqbias.molecule.topology import Topology
from uqbias.potentials.power_spectrum import PowerSpectrum
from uqbias.registry import UNCERTAINTIES
from uqbias.settings.file import check_campaign
from uqbias.settings.training_sections import TrainingOptions
from uqbias.units import EV

ENERGIES = TrainingOptions(steps=30, evaluate_every=10, force_weight=0.0, energy_weight=1.0)


def small(frames):
    return PowerSpectrum(frames.numbers.tolist(), n_radial=4, n_channels=3, l_max=0, hidden=(8, 4))


def weights_after(frames, options, **settings):
    potential = small(frames)
    train(potential, frames, None, options, runner="eager", **settings)
    return torch.cat([weight.detach().flatten() for weight in potential.parameters()])


@pytest.mark.slow
@pytest.mark.parametrize("force_weight", [0.0, 1.0])
def test_forces_leave_the_loss(alanine_frames, force_weight):
    """Labels with the forces of another sign have the same scale: only a loss with forces sees the difference."""
    options = ENERGIES.model_copy(update={"force_weight": force_weight, "steps": 5})
    wrong = dataclasses.replace(alanine_frames, forces=-alanine_frames.forces)
    same = torch.equal(weights_after(alanine_frames, options), weights_after(wrong, options))
    assert same == (force_weight == 0)


@pytest.mark.slow
def test_energies_alone_are_learned(alanine_frames):
    options = ENERGIES.model_copy(update={"steps": 200, "evaluate_every": 100})
    untrained = small(alanine_frames)
    train(untrained, alanine_frames, None, options.model_copy(update={"steps": 1}), runner="eager")
    potential = small(alanine_frames)
    train(potential, alanine_frames, None, options, runner="eager")
    before, after = (force_and_energy_mae(part, alanine_frames)[1] for part in (untrained, potential))
    assert after < 0.6 * before


def test_validation_energies_choose_the_weights(alanine_frames):
    held_out, rest = alanine_frames[:20], alanine_frames[20:]
    potential = small(alanine_frames)
    options = ENERGIES.model_copy(update={"steps": 120, "learning_rate": 0.05})
    result = train(potential, rest, held_out, options, runner="eager")
    errors = {entry["step"]: entry["validation_energy_mae"] for entry in result.history}
    assert result.best_step == min(errors, key=errors.get)
    assert force_and_energy_mae(potential, held_out)[1] == pytest.approx(min(errors.values()), rel=1e-6)


def test_nothing_to_learn_from(alanine_frames):
    nothing = ENERGIES.model_copy(update={"energy_weight": 0.0})
    with pytest.raises(UqbiasError, match=r"force_weight and training\.energy_weight are 0"):
        train(small(alanine_frames), alanine_frames, None, nothing, runner="eager")
    for name in ("force_weight", "energy_weight"):
        wrong = ENERGIES.model_copy(update={name: -1.0})
        with pytest.raises(UqbiasError, match=f"training.{name} -1.0"):
            train(small(alanine_frames), alanine_frames, None, wrong, runner="eager")
    training = {"force_weight": 0.0, "energy_weight": 0.0}
    with pytest.raises(UqbiasError, match="force_weight = 0 with energy_weight = 0"):
        check_campaign({"system": {"structure": "-", "start": "-"}, "training": training}, "test")


@pytest.mark.slow
def test_heads_beside_energies(alanine_frames):
    """A head on energies trains along; one on forces would bring them back in."""
    topology = Topology.from_positions(alanine_frames.numbers.tolist(), alanine_frames.positions[0])
    head = UNCERTAINTIES.build("mve", {"quantity": "energy"}, topology=topology, n_latents=4)
    wrong = dataclasses.replace(alanine_frames, forces=-alanine_frames.forces)
    options = ENERGIES.model_copy(update={"steps": 3})
    made = []
    for frames in (alanine_frames, wrong):
        head = UNCERTAINTIES.build("mve", {"quantity": "energy"}, topology=topology, n_latents=4)
        made.append(weights_after(frames, options, uncertainties=[head]))
    assert torch.allclose(made[0], made[1], rtol=1e-6, atol=1e-7)
    with pytest.raises(UqbiasError, match="uncertainty 'mve' learns from forces"):
        weights_after(
            alanine_frames, options, uncertainties=[UNCERTAINTIES.build("mve", {}, topology=topology, n_latents=4)]
        )


def test_settings_reach_the_training(alanine_frames):
    potential = {"kind": "power_spectrum", "n_radial": 4, "n_channels": 3, "l_max": 0, "hidden": [8, 4]}
    training = {"steps": 5, "evaluate_every": 5, "runner": "eager", "energy_weight": 1.0, "force_weight": 0.0}
    # Gradients in the place of all forces would be refused.
    sign = np.where(alanine_frames.numbers == 1, 1.0, -1.0)[:, None]
    wrong = dataclasses.replace(alanine_frames, forces=sign * alanine_frames.forces)
    energies = [
        fit_model(frames, None, {"potential": potential, "training": training})[0]
        .potential(torch.as_tensor(frames.positions[:5], dtype=torch.float32))[0]
        .detach()
        .numpy()
        for frames in (alanine_frames, wrong)
    ]
    assert np.array_equal(*energies)


def test_energies_alone(alanine_frames):
    """Frames without forces: the energies are learned, the judge is not calibrated."""
    bare = dataclasses.replace(alanine_frames, forces=None)
    potential = {"kind": "power_spectrum", "n_radial": 4, "n_channels": 3, "l_max": 0, "hidden": [8, 4]}
    training = {"steps": 100, "evaluate_every": 50, "runner": "eager", "energy_weight": 1.0, "force_weight": 0.0}
    model, facts = fit_model(bare, None, {"potential": potential, "training": training})
    assert not model.calibration.fitted
    assert facts["frames"] + facts["validation_frames"] == len(bare)
    assert facts["calibration_frames"] == 0
    assert "force_mae_meV_per_A" not in facts["validation"]
    assert facts["history"][-1]["train_loss"] < facts["history"][0]["train_loss"]
    scores, full = score_model(model, bare), score_model(model, alanine_frames)
    assert scores["energy_mae_meV_per_atom"] == pytest.approx(full["energy_mae_meV_per_atom"], rel=1e-6)
    assert "spearman" not in scores
    spread = np.abs(bare.energies - np.median(bare.energies)).mean() / EV / len(bare.numbers) * 1e3
    assert scores["energy_mae_meV_per_atom"] < spread
    with pytest.raises(UqbiasError, match=r"start\.xyz without forces; label them, or set training\.force_weight to 0"):
        fit_model(bare, None, {"potential": potential})
    with pytest.raises(UqbiasError, match="the frames carry no forces"):
        train(small(bare), bare, None, runner="eager")
