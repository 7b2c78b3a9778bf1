"""Scores of a model on labelled frames: its errors, and what its uncertainty knows of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uqbias.errors import UqbiasError
from uqbias.model.inference import atoms_with_values, residuals
from uqbias.model.metrics import (
    LARGE,
    auroc,
    check_quantile,
    coverage,
    gaussian_crps,
    gaussian_nll,
    miscalibration_area,
    sharpness,
    spearman,
)
from uqbias.model.model import UncertaintyModel
from uqbias.molecule.frames import Frames
from uqbias.molecule.seen import is_in
from uqbias.uncertainty.calibration import Conformal, VarianceScaling
from uqbias.units import EV, EV_PER_ANGSTROM

Array = NDArray[np.float64]
#: Miscoverages at which the conformal bound is checked.
ALPHAS = (0.05, 0.32)
#: kJ/mol/nm per meV/Å.
MEV_PER_ANGSTROM = EV_PER_ANGSTROM / 1e3


def score_model(model: UncertaintyModel, frames: Frames, large: float = LARGE) -> dict[str, Any]:
    """Errors of a model on labelled frames, and how well its uncertainty ranks, bounds and predicts them.

    The error of a frame, or of an atom of a frame, is the root mean square over its force components, which the judge
    is calibrated for. Scores per atom pool the atoms of all frames.

    Parameters
    ----------
    frames : labelled frames of the model's molecule, two or more.
    large : errors above this quantile of the errors count as large in ``auroc``.

    Returns
    -------
    dict
        Flat and JSON-able; what the model has no values for is left out.

        - ``frames``; ``frames_trained_on``, how many of them the model was made from (left out if it does not know);
          ``force_mae_meV_per_A``, ``force_rmse_meV_per_A``, ``energy_mae_meV_per_atom``,
          ``energy_rmse_meV_per_atom``;
        - ``judge``, kind of the judge; ``large``; ``driver_spearman`` of the driver; ``spearman``, ``auroc``;
        - of a calibrated model ``calibration``, its kind, ``alpha``, ``calibration_frames``, and ``coverage``, the
          share of frames whose error is not above the calibrated uncertainty; ``coverage_0.05`` and
          ``coverage_0.32``, the same of the conformal bound at that miscoverage, if the calibration frames sufficed;
        - of the signed force components as samples of N(0, σ²), σ from the variance scaling: ``miscalibration_area``;
          ``nll``, nats per component with errors in meV/Å; ``crps_meV_per_A``; ``sharpness_meV_per_A``;
        - ``atoms``, the number of atoms with values of their own, and the scores from ``spearman`` on with the prefix
          ``atom_`` for them.

    Raises
    ------
    UqbiasError
        If the frames are of another molecule, fewer than two or not labelled, or a prediction is not finite.
    """
    check_quantile(large)
    if tuple(int(number) for number in frames.numbers) != tuple(model.numbers):
        raise UqbiasError(
            f"the frames have atoms {frames.numbers.tolist()}, the model {list(model.numbers)}",
            "give frames of the model's molecule, in the same order of atoms",
        )
    if len(frames) < 2:
        raise UqbiasError(f"{len(frames)} labelled frame to evaluate on", "give two or more")
    evaluated, error = residuals(model, frames)
    for name, values in (("force", error), ("judge", evaluated.raw_judge)):
        finite = np.isfinite(values.reshape(len(frames), -1)).all(axis=1)
        if not finite.all():
            raise UqbiasError(f"the model's {name} of frame {int(finite.argmin())} is not finite", "leave it out")
    error = error / MEV_PER_ANGSTROM
    energy_error = (evaluated.energy - frames.labels()[0]) / EV / len(frames.numbers) * 1e3
    calibration, raw_atoms = model.calibration, evaluated.raw_atom_uncertainty
    scores: dict[str, Any] = {"frames": len(frames)}
    if len(model.seen):
        scores["frames_trained_on"] = int(is_in(model.seen, frames.positions).sum())
    if len(model.calibrated_on):
        scores["frames_calibrated_on"] = int(is_in(model.calibrated_on, frames.positions).sum())
    scores |= {
        "force_mae_meV_per_A": float(np.abs(error).mean()),
        "force_rmse_meV_per_A": float(np.sqrt(np.square(error).mean())),
        "energy_mae_meV_per_atom": float(np.abs(energy_error).mean()),
        "energy_rmse_meV_per_atom": float(np.sqrt(np.square(energy_error).mean())),
        "judge": model.judge.kind,
        "large": large,
        "driver_spearman": spearman(evaluated.driver, np.sqrt(np.square(error).mean(axis=(1, 2)))),
    }
    if calibration.fitted:
        scores |= {
            "calibration": calibration.kind,
            "alpha": calibration.alpha,
            "calibration_frames": calibration.frames,
        }
    components = error.reshape(len(frames), -1)
    maps = calibration.structure_bound, calibration.structure_deviation
    scores |= _uncertainty_scores(evaluated.raw_judge, components, *maps, calibration.kind, large)
    if raw_atoms is not None:
        has_value = atoms_with_values(raw_atoms)
        scores["atoms"] = int(has_value.sum())
        maps = calibration.atom_bound, calibration.atom_deviation
        of_atoms = _uncertainty_scores(raw_atoms[:, has_value], error[:, has_value], *maps, calibration.kind, large)
        scores |= {f"atom_{name}": value for name, value in of_atoms.items()}
    return scores


def _uncertainty_scores(
    raw: Array, components: Array, bound: Conformal, deviation: VarianceScaling, kind: str, large: float
) -> dict[str, float]:
    """Scores of frames, or of atoms.

    Parameters
    ----------
    raw : [...] uncertainties before calibration.
    components : [..., k] the errors of the k force components that each is about, meV/Å.
    bound, deviation : the conformal map and the variance scaling of these uncertainties, fitted or not.
    kind : which of the two the model uses.
    """
    error = np.sqrt(np.square(components).mean(axis=-1))
    # Calibration maps do not change ranks.
    scores = {"spearman": spearman(raw, error), "auroc": auroc(raw, error, large)}
    chosen = bound if kind == "conformal" else deviation
    if chosen.fitted:
        scores["coverage"] = coverage(_mapped(chosen, raw), error)
    if bound.fitted:
        positive = _mapped(bound.positive, raw)
        for alpha in ALPHAS:
            if alpha in bound.quantiles:
                scores[f"coverage_{alpha:g}"] = coverage(bound.quantiles[alpha] * positive, error)
    if deviation.fitted:
        sigma = _mapped(deviation, raw)
        scores |= {
            "miscalibration_area": miscalibration_area(components, sigma[..., None]),
            "nll": gaussian_nll(components, sigma[..., None]),
            "crps_meV_per_A": gaussian_crps(components, sigma[..., None]),
            "sharpness_meV_per_A": sharpness(sigma),
        }
    return scores


def _mapped(function: Callable[[Tensor], Tensor], raw: Array) -> Array:
    """A map to kJ/mol/nm of uncertainties before calibration, in meV/Å, computed in float64."""
    with torch.no_grad():
        mapped: Array = function(torch.as_tensor(raw, dtype=torch.float64)).numpy()
    return mapped / MEV_PER_ANGSTROM
