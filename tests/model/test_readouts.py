"""Kinds with weights of their own on a frozen potential: trained on its latents and errors."""

import numpy as np
import pytest
import torch

from uqbias.errors import UqbiasError
from uqbias.model import readouts
from uqbias.model.fit import fit_model
from uqbias.model.inference import residuals
from uqbias.model.metrics import spearman
from uqbias.molecule.frames import Frames
from uqbias.potentials.module import FactoryModule
from uqbias.registry import UNCERTAINTIES
from uqbias.testing import molecule

MODULE = "documented_module:make"


@pytest.fixture(autouse=True)
def fewer_steps(monkeypatch):
    monkeypatch.setattr(readouts, "STEPS", 300)


class Larger(FactoryModule):
    """The same with latents of another size and zero."""

    def atoms(self, near):
        energies, latents = super().atoms(near)
        return energies, 1e3 * latents + 50.0


def wrapped(potential, kind, frames):
    settings = {"judge": {"kind": kind}, "driver": {"kind": "auto"}}
    return fit_model(frames, None, settings, potential=potential)[0]


@pytest.mark.parametrize("kind", ["mve", "evidential", "shallow_ensemble"])
def test_trained_on_errors_whatever_the_size_of_latents(kind):
    frames, test = molecule.frames(80, turn=3.0), molecule.frames(40, 5, turn=20.0)
    models = [wrapped(make(frames.numbers.tolist(), factory=MODULE), kind, frames) for make in (FactoryModule, Larger)]
    (one, errors), (other, _) = (residuals(model, test) for model in models)
    np.testing.assert_allclose(other.raw_judge, one.raw_judge, rtol=2e-2)
    alike = molecule.frames(40, 6, turn=3.0)
    fresh = UNCERTAINTIES.build(kind, {}, topology=molecule.topology(), n_latents=models[0].potential.n_latents)
    fresh.set_force_unit(float(models[0].judge.force_unit))
    said = readouts._errors(models[0].potential, alike, float(fresh.force_unit))
    with torch.no_grad():
        assert models[0].judge.loss(*said) < fresh.loss(*said)
    if kind == "mve":
        assert spearman(one.raw_judge, np.sqrt(np.square(errors).mean((1, 2)))) > 0.5
        # The bound is of frames like those that it was calibrated on.
        evaluated, errors = residuals(models[0], alike)
        assert (np.sqrt(np.square(errors).mean((1, 2))) <= evaluated.judge).mean() > 0.75


def test_the_same_seed_gives_the_same_weights():
    frames = molecule.frames(60, turn=3.0)
    potential = FactoryModule(frames.numbers.tolist(), factory=MODULE)
    one, other = (wrapped(potential, "mve", frames).judge.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_no_labels_to_learn_from():
    frames = molecule.frames(40, turn=3.0)
    bare = Frames(frames.numbers, frames.positions)
    potential = FactoryModule(frames.numbers.tolist(), factory=MODULE)
    with pytest.raises(
        UqbiasError, match=r"without labels for the weights of 'mve', which learns from errors; give 10"
    ):
        wrapped(potential, "mve", bare)
