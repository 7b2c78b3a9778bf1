"""A model from a data set in one call, and how good it is: what a campaign does each round, without the campaign."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from uqbias.campaign.evaluation import evaluate_frames, latents_of
from uqbias.data import Frames
from uqbias.errors import UqbiasError
from uqbias.model import UncertaintyModel
from uqbias.potentials.training import Progress, TrainingOptions, train
from uqbias.registry import POTENTIALS
from uqbias.topology import Topology
from uqbias.uncertainty.base import Uncertainty, build_uncertainty
from uqbias.uncertainty.metrics import quality, spearman
from uqbias.units import EV, EV_PER_ANGSTROM

if TYPE_CHECKING:
    from uqbias.campaign.schema import Campaign
    from uqbias.campaign.sections import KindSection

#: Fewest frames left to train on.
FEWEST = 10


def fit_model(
    frames: Frames,
    topology: Topology | None = None,
    settings: dict[str, Any] | Campaign | None = None,
    *,
    begin: Callable[[], object] | None = None,
    progress: Progress | None = None,
) -> tuple[UncertaintyModel, dict[str, Any]]:
    """Train a potential, fit driver and judge, and calibrate the judge on frames held out.

    Parameters
    ----------
    frames : labelled frames of one molecule; give some tens at least.
    topology : bond graph; guessed from the distances in the first frame if None.
    settings : sections ``potential``, ``training``, ``cv``, ``uncertainty``, ``calibration`` and ``seed`` as in a
        campaign file; what is left out has its default.
    begin : called once the input is found to be in order, before the training step is loaded or compiled.
    progress : told ``(step, steps, last history entry)`` while the potential is trained.

    Returns
    -------
    model : the model.
    facts : JSON-able: frames used, training history, errors on the validation frames, seconds.

    Raises
    ------
    UqbiasError
        If the frames are not labelled, too few, or of another molecule than the topology.
    """
    campaign = _settings(settings)
    frames.labels()
    numbers = tuple(int(number) for number in frames.numbers)
    topology = Topology.from_positions(numbers, frames.positions[0]) if topology is None else topology
    if tuple(topology.numbers) != numbers:
        raise UqbiasError(
            f"the frames have atoms {list(numbers)}, the structure {list(topology.numbers)}",
            "use the same molecule, in the same order of atoms, in both",
        )
    training, validation, calibration = _deal(frames, campaign)
    section = campaign.potential
    options = section.arguments()
    if section.kind == "power_spectrum":
        options["seed"] = campaign.seed
    potential = POTENTIALS.get(section.kind)(numbers=numbers, **options)
    same = campaign.cv == campaign.uncertainty
    # Before the training: a wrong option is told at once.
    judge = _uncertainty(campaign.uncertainty, topology, potential, frames)
    driver = judge if same else _uncertainty(campaign.cv, topology, potential, frames)
    given = campaign.training.model_dump()
    if begin is not None:
        begin()
    result = train(
        potential,
        training,
        validation if len(validation) else None,
        TrainingOptions(**{field.name: given[field.name] for field in fields(TrainingOptions) if field.name in given}),
        seed=campaign.seed,
        runner=campaign.training.runner,
        progress=progress,
    )
    model = UncertaintyModel(potential, judge, topology, cv=None if same else driver).eval()
    # The judge must not know the frames that it is calibrated on; the driver is to be pushed away from every frame.
    _fit(model, judge, training, campaign.seed)
    if not same:
        _fit(model, driver, frames, campaign.seed)
    found = evaluate_frames(model, calibration.positions, forces=True)
    assert found.forces is not None
    error = np.sqrt(np.square(found.forces - calibration.labels()[1]).mean(axis=(1, 2)))
    model.calibration.fit(found.raw_uncertainty, error, campaign.calibration.alpha)
    lowest = frames.positions[int(frames.labels()[0].argmin())]
    model.provenance.update(
        frames=len(training),
        validation_frames=len(validation),
        calibration_frames=len(calibration),
        dataset_sha256=_digest(training),
        reference_positions_nm=np.round(lowest, 6).tolist(),
    )
    facts = {
        "frames": len(training),
        "validation_frames": len(validation),
        "calibration_frames": len(calibration),
        "steps": result.steps,
        "best_step": result.best_step,
        "wall_s": round(result.seconds, 3),
        "history": result.history,
    }
    if len(validation):
        facts["validation"] = score_model(model, validation) if len(validation) > 1 else {}
    return model, facts


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


def _settings(settings: dict[str, Any] | Campaign | None) -> Campaign:
    from uqbias.campaign.config import check_campaign

    if settings is None or isinstance(settings, dict):
        return check_campaign({"system": {"structure": "-", "start": "-"}, **(settings or {})}, "settings")
    return settings


def _deal(frames: Frames, campaign: Campaign) -> tuple[Frames, Frames, Frames]:
    """Training, validation and calibration frames."""
    n, options = len(frames), campaign.calibration
    # The conformal quantile of n frames exists for n of 1/α or more.
    n_calibration = max(math.ceil(options.fraction * n), math.ceil(1 / options.alpha - 1e-9))
    n_validation = math.ceil(campaign.training.validation_fraction * n)
    if n - n_calibration - n_validation < FEWEST:
        raise UqbiasError(
            f"{n} frames: {n_calibration} are kept for calibration and {n_validation} for validation, "
            f"fewer than {FEWEST} are left to train on",
            f"give {FEWEST + n_calibration + n_validation} frames or more, or raise calibration.alpha",
        )
    order = np.random.default_rng(campaign.seed).permutation(n)
    validation, calibration, rest = np.split(order, [n_validation, n_validation + n_calibration])
    return frames[np.sort(rest)], frames[np.sort(validation)], frames[np.sort(calibration)]


def _uncertainty(section: KindSection, topology: Topology, potential: Any, frames: Frames) -> Uncertainty:
    made = build_uncertainty(section.kind, section.arguments(), topology, potential.n_latents, len(potential.numbers))
    made.to(next(potential.parameters()).dtype)
    made.prepare(torch.as_tensor(frames.positions))
    return made


def _fit(model: UncertaintyModel, part: Uncertainty, frames: Frames, seed: int) -> None:
    energy, latents = latents_of(model, frames.positions)
    part.fit(torch.as_tensor(frames.positions, dtype=energy.dtype), energy, latents, seed=seed)


def _digest(frames: Frames) -> str:
    content = hashlib.sha256()
    for array in (frames.numbers, frames.positions, *frames.labels()):
        content.update(np.ascontiguousarray(array).tobytes())
    return content.hexdigest()
