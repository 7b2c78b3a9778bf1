"""How good a model is on labelled frames: its errors, and what its uncertainty knows of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from uqbias.data import Frames
from uqbias.errors import UqbiasError
from uqbias.evaluation import evaluate_frames
from uqbias.model import UncertaintyModel
from uqbias.uncertainty.metrics import quality, spearman
from uqbias.units import EV, EV_PER_ANGSTROM


def score_model(model: UncertaintyModel, frames: Frames) -> dict[str, Any]:
    """Errors of a model on labelled frames, and how well its uncertainty ranks and bounds them.

    The error of a frame is the root mean square over its force components, which the judge is calibrated to bound.

    Returns
    -------
    dict
        ``frames``; ``force_mae_meV_per_A``, ``force_rmse_meV_per_A``, ``energy_mae_meV_per_atom``,
        ``energy_rmse_meV_per_atom``; for the judge ``spearman``, ``auroc`` (of the fifth of the frames with the
        largest error), ``coverage`` (share of frames whose error is not above the calibrated uncertainty);
        ``cv_spearman`` for the driver.

    Raises
    ------
    UqbiasError
        If the frames are of another molecule, fewer than two or not labelled.
    """
    if tuple(int(number) for number in frames.numbers) != tuple(model.numbers):
        raise UqbiasError(
            f"the frames have atoms {frames.numbers.tolist()}, the model {list(model.numbers)}",
            "give frames of the model's molecule, in the same order of atoms",
        )
    energies, forces = frames.labels()
    found = evaluate_frames(model, frames.positions, forces=True)
    assert found.forces is not None
    force_error = (found.forces - forces) / EV_PER_ANGSTROM * 1e3
    energy_error = (found.energy - energies) / EV / len(frames.numbers) * 1e3
    frame_error = np.sqrt(np.square(found.forces - forces).mean(axis=(1, 2)))
    return {
        "frames": len(frames),
        "force_mae_meV_per_A": float(np.abs(force_error).mean()),
        "force_rmse_meV_per_A": float(np.sqrt(np.square(force_error).mean())),
        "energy_mae_meV_per_atom": float(np.abs(energy_error).mean()),
        "energy_rmse_meV_per_atom": float(np.sqrt(np.square(energy_error).mean())),
        **quality(found.uncertainty, frame_error),
        "cv_spearman": spearman(found.cv, frame_error),
    }
