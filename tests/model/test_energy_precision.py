"""Differences of energies are exact however far from zero the energies are."""

import dataclasses

import numpy as np
import torch

from uqbias.compile.fused import FusedEvaluator
from uqbias.model.fit import fit_model
from uqbias.model.inference import evaluate_frames
from uqbias.model.model import UncertaintyModel
from uqbias.molecule.frames import read_frames, write_frames
from uqbias.testing import molecule

#: kJ/mol; all-electron energies of heavy elements.
OFFSET = -3e8
SETTINGS = {
    "potential": {"n_radial": 4, "n_channels": 3, "l_max": 0, "hidden": [8, 4]},
    "training": {"steps": 20, "runner": "eager"},
    "driver": {"kind": "gmm", "n_components": 1},
    "judge": {"kind": "gmm", "n_components": 1},
}


def test_an_offset_changes_no_difference(tmp_path):
    frames = molecule.frames(60, seed=3)
    energies = []
    for offset in (0.0, OFFSET):
        write_frames(tmp_path / "data.xyz", dataclasses.replace(frames, energies=frames.energies + offset))
        read = read_frames(tmp_path / "data.xyz")
        np.testing.assert_allclose(read.energies - offset, frames.energies, atol=1e-3)
        model, facts = fit_model(read, molecule.topology(), SETTINGS)
        model.save(tmp_path / "model.uqb")
        model = UncertaintyModel.load(tmp_path / "model.uqb")
        evaluator = FusedEvaluator(model, None, 5, runner="eager")
        fused = evaluator.evaluate(torch.tensor(frames.positions[:5]))
        assert evaluator.total_energy.dtype == torch.float64
        energies.append(
            [
                evaluate_frames(model, frames.positions).energy - offset,
                model(torch.tensor(frames.positions, dtype=torch.float32)).energy.detach().numpy() - offset,
                fused.energy.numpy() - offset,
                [float(evaluator.total_energy) - 5 * offset],
                [facts["validation"]["energy_mae_meV_per_atom"]],
            ]
        )
    for zero, far in zip(*energies, strict=True):
        np.testing.assert_allclose(far, zero, atol=1e-3)


def test_the_zero_of_energies_stays_exact_where_weights_are_converted():
    model = molecule.topology()
    potential = fit_model(molecule.frames(60, seed=3), model, SETTINGS)[0].potential
    potential.energy_shift.fill_(OFFSET + 1 / 3)
    for converted in (potential.double().float(), potential.to(torch.float32)):
        assert float(converted.energy_shift) == OFFSET + 1 / 3
        assert next(converted.parameters()).dtype == torch.float32
