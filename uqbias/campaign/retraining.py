"""The training phase: potential, driver, judge and its calibration from all labels so far, in one model file."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import torch

from uqbias.campaign.evaluation import evaluate_frames, latents_of
from uqbias.campaign.sections import KindSection
from uqbias.campaign.work import Work
from uqbias.data import Frames
from uqbias.errors import UqbiasError
from uqbias.files import write_text
from uqbias.model import UncertaintyModel
from uqbias.potentials.base import Potential
from uqbias.potentials.training import TrainingOptions, train
from uqbias.registry import POTENTIALS
from uqbias.uncertainty.base import Uncertainty, build_uncertainty
from uqbias.uncertainty.calibration import Conformal


def train_phase(work: Work, round_index: int) -> dict[str, Any]:
    """Train on the accepted labels; writes ``round_XX/model.uqb`` and ``training.json``."""
    campaign = work.campaign
    frames = work.accepted(round_index)
    training, validation, calibration = work.deal(frames)
    potential = _potential(work, round_index)
    history = _train(work, round_index, potential, training, validation)
    driver, judge = (_uncertainty(work, section, potential) for section in (campaign.cv, campaign.uncertainty))
    same = campaign.cv == campaign.uncertainty
    model = UncertaintyModel(
        potential, judge, work.topology, cv=None if same else driver, calibration=Conformal()
    ).eval()
    # The judge must not know the frames that it is calibrated on; the driver is to be pushed away from every label.
    _fit(work, model, judge, training, work.seed(round_index, "judge"))
    if not same:
        _fit(work, model, driver, frames, work.seed(round_index, "driver"))
    facts = _calibrate(work, model, calibration)
    model.provenance.update(
        campaign=campaign.name, round=round_index, frames=len(training), dataset_sha256=_digest(training), **facts
    )
    model.save(work.model_path(round_index))
    write_text(
        work.folder(round_index) / "training.json",
        json.dumps({"frames": len(training), "validation_frames": len(validation), **facts, **history}, indent=1),
    )
    return {"frames": len(training), "validation_frames": len(validation), "calibration_frames": len(calibration)}


def _potential(work: Work, round_index: int) -> Potential:
    """An untrained potential, or that of the last round."""
    if round_index > 0 and work.campaign.training.warm_start:
        return UncertaintyModel.load(work.model_path(round_index - 1)).potential
    section = work.campaign.potential
    options = section.arguments()
    if section.kind == "power_spectrum":
        options["seed"] = work.seed(0, "potential")
    potential: Potential = POTENTIALS.get(section.kind)(numbers=work.topology.numbers, **options)
    return potential


def _train(work: Work, round_index: int, potential: Potential, training: Frames, validation: Frames) -> dict[str, Any]:
    settings = work.campaign.training
    later = round_index > 0
    options = TrainingOptions(
        steps=settings.later_steps if later and settings.later_steps is not None else settings.steps,
        batch_size=settings.batch_size,
        learning_rate=settings.later_learning_rate
        if later and settings.warm_start and settings.later_learning_rate is not None
        else settings.learning_rate,
        energy_weight=settings.energy_weight,
        ema=settings.ema,
        evaluate_every=settings.evaluate_every,
        patience=settings.patience,
        max_seconds=settings.max_seconds,
    )
    work.progress.phase(f"round {round_index}: load or compile the training step", None)
    told = 0

    def tell(step: int, steps: int, entry: dict[str, float]) -> None:
        nonlocal told
        if step == 0:
            work.progress.phase(f"round {round_index}: train on {len(training)} frames", steps)
        error = entry.get("validation_force_mae")
        if step - told >= 20 or step == steps:
            work.progress.advance(step - told, "" if error is None else f"validation force MAE {error:.1f} meV/Å")
            told = step

    result = train(
        potential,
        training,
        validation if len(validation) else None,
        options,
        seed=work.seed(round_index, "training"),
        warm_start=round_index > 0 and settings.warm_start,
        runner=settings.runner,
        progress=tell,
    )
    return {
        "history": result.history,
        "steps": result.steps,
        "best_step": result.best_step,
        "wall_s": round(result.seconds, 3),
    }


def _uncertainty(work: Work, section: KindSection, potential: Potential) -> Uncertainty:
    made = build_uncertainty(
        section.kind, section.arguments(), work.topology, potential.n_latents, len(potential.numbers)
    )
    made.to(next(potential.parameters()).dtype)
    # What counts as a stiff coordinate is learned once, from the start frames, and stays.
    made.prepare(torch.as_tensor(work.ledger.labels(0).positions))
    return made


def _fit(work: Work, model: UncertaintyModel, part: Uncertainty, frames: Frames, seed: int) -> None:
    energy, latents = latents_of(model, frames.positions)
    part.fit(torch.as_tensor(frames.positions, dtype=energy.dtype), energy, latents, seed=seed)


def _calibrate(work: Work, model: UncertaintyModel, frames: Frames) -> dict[str, Any]:
    """Fit the conformal scale; the error of a frame is the root mean square of its force components."""
    alpha = work.campaign.calibration.alpha
    if not len(frames):
        raise UqbiasError("no frame is left for calibration", "give more start frames")
    found = evaluate_frames(model, frames.positions, forces=True)
    assert found.forces is not None
    error = np.sqrt(np.square(found.forces - frames.labels()[1]).mean(axis=(1, 2)))
    model.calibration.fit(found.raw_uncertainty, error, alpha)
    return {"calibration_force_rmse": float(np.sqrt(np.square(error).mean())), "calibration_frames": len(frames)}


def _digest(frames: Frames) -> str:
    energies, forces = frames.labels()
    content = hashlib.sha256()
    for array in (frames.numbers, frames.positions, energies, forces):
        content.update(np.ascontiguousarray(array).tobytes())
    return content.hexdigest()
