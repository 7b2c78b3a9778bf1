"""Scores of a model on labelled frames: its errors, and what its uncertainty knows of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uqbias.errors import UqbiasError
from uqbias.model.inference import atoms_with_values, evaluate_frames, residuals
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
from uqbias.molecule.sense import check_molecule
from uqbias.uncertainty.calibration import VarianceScaling
from uqbias.uncertainty.conformal import Conformal
from uqbias.units import EV, EV_PER_ANGSTROM, GPA

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
    frames : labelled frames of the model's molecule, two or more; without forces only the energies are scored.
    large : errors above this quantile of the errors count as large in ``auroc``.

    Returns
    -------
    dict
        Flat and JSON-able; what the model has no values for is left out.

        - ``frames``; ``frames_trained_on``, how many of them the model was made from (left out if it does not know);
          ``force_mae_meV_per_A``, ``force_rmse_meV_per_A``, ``energy_mae_meV_per_atom``,
          ``energy_rmse_meV_per_atom``; in cells, of labels with stress, ``stress_mae_GPa`` and
          ``stress_rmse_GPa``;
        - ``judge``, kind of the judge; ``large``; ``driver_spearman`` of the driver; ``spearman``, ``auroc``;
        - of a calibrated model ``calibration``, its kind, ``alpha``, ``calibration_frames``, and ``coverage``, the
          share of frames whose error is not above the calibrated uncertainty, ``coverage_low``, ``coverage_middle`` and
          ``coverage_high``, the same of the thirds of six or more frames by their uncertainty; ``coverage_0.05`` and
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
    check_molecule(frames, model.numbers, "the model")
    if frames.energies is None:
        frames.labels()
    if len(frames) < 2:
        raise UqbiasError(f"{len(frames)} labelled frame to evaluate on", "give two or more")
    if frames.forces is None:
        return _energy_scores(model, frames)
    evaluated, error = residuals(model, frames)
    for name, values in (("force", error), ("judge", evaluated.raw_judge)):
        finite = np.isfinite(values.reshape(len(frames), -1)).all(axis=1)
        if not finite.all():
            raise UqbiasError(f"the model's {name} of frame {int(finite.argmin())} is not finite", "leave it out")
    error = error / MEV_PER_ANGSTROM
    calibration, raw_atoms = model.calibration, evaluated.raw_atom_uncertainty
    scores = {
        **_overlap(model, frames),
        "force_mae_meV_per_A": float(np.abs(error).mean()),
        "force_rmse_meV_per_A": float(np.sqrt(np.square(error).mean())),
        **_energy_errors(evaluated.energy, frames),
        **_stress_error(evaluated.stress, frames),
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
        valued = atoms_with_values(raw_atoms)
        scores["atoms"] = int(valued.sum())
        maps = calibration.atom_bound, calibration.atom_deviation
        of_atoms = _uncertainty_scores(raw_atoms, error, *maps, calibration.kind, large, valued)
        scores |= {f"atom_{name}": value for name, value in of_atoms.items()}
    return scores


def _stress_error(stress: Array | None, frames: Frames) -> dict[str, float]:
    """Errors of the components of the stress, where there are labels of it."""
    if stress is None or frames.stresses is None:
        return {}
    off = (stress - frames.stresses) / GPA
    return {"stress_mae_GPa": float(np.abs(off).mean()), "stress_rmse_GPa": float(np.sqrt(np.square(off).mean()))}


def _overlap(model: UncertaintyModel, frames: Frames) -> dict[str, Any]:
    """How many frames there are, and how many of them the model knows."""
    counts = {"frames": len(frames)}
    for name, record in (("frames_trained_on", model.seen), ("frames_calibrated_on", model.calibrated_on)):
        if len(record):
            counts[name] = int(is_in(record, frames).sum())
    return counts


def _energy_errors(energy: Array, frames: Frames) -> dict[str, float]:
    assert frames.energies is not None
    error = (energy - frames.energies) / EV / len(frames.numbers) * 1e3
    mean, square = float(np.abs(error).mean()), float(np.square(error).mean())
    return {"energy_mae_meV_per_atom": mean, "energy_rmse_meV_per_atom": square**0.5}


def _energy_scores(model: UncertaintyModel, frames: Frames) -> dict[str, Any]:
    """Scores on frames without forces; the uncertainty is about forces, and not scored."""
    energy = evaluate_frames(model, frames).energy
    if not np.isfinite(energy).all():
        raise UqbiasError(
            f"the model's energy of frame {int(np.isfinite(energy).argmin())} is not finite", "leave it out"
        )
    return {**_overlap(model, frames), **_energy_errors(energy, frames), "judge": model.judge.kind}


def _uncertainty_scores(
    raw: Array,
    components: Array,
    bound: Conformal,
    deviation: VarianceScaling,
    kind: str,
    large: float,
    valued: NDArray[np.bool_] | None = None,
) -> dict[str, float]:
    """Scores of frames, or of atoms.

    Parameters
    ----------
    raw : [...] uncertainties before calibration.
    components : [..., k] the errors of the k force components that each is about, meV/Å.
    bound, deviation : the conformal map and the variance scaling of these uncertainties, fitted or not.
    kind : which of the two the model uses.
    valued : [N] which atoms have uncertainties of their own; None for frames.
    """

    def mapped(function: Callable[[Tensor], Tensor]) -> Array:
        return _mapped(function, raw)[..., every]

    every: Any = slice(None) if valued is None else valued
    if valued is not None:
        components = components[:, valued]
    error = np.sqrt(np.square(components).mean(axis=-1))
    chosen = bound if kind == "conformal" else deviation
    # Of structures no map changes ranks; of atoms each element has a bound of its own.
    ranked = raw[..., every] if valued is None or not chosen.fitted else mapped(chosen)
    scores = {"spearman": spearman(ranked, error), "auroc": auroc(ranked, error, large)}
    if chosen.fitted:
        scores["coverage"] = coverage(mapped(chosen), error)
        thirds = np.array_split(np.argsort(raw), 3) if valued is None and len(raw) >= 6 else []
        for name, rows in zip(("low", "middle", "high"), thirds, strict=False):
            scores[f"coverage_{name}"] = coverage(mapped(chosen)[rows], error[rows])
    if bound.fitted:
        for alpha in ALPHAS:
            if alpha in bound.quantiles:
                scores[f"coverage_{alpha:g}"] = coverage(mapped(partial(bound.at, alpha)), error)
    if deviation.fitted:
        sigma = mapped(deviation)
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
