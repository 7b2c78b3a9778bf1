"""The training phase: potential, driver, judge and its calibration from all labels so far, in one model file."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np

from uqbias.campaign.executors.base import results_of
from uqbias.campaign.home import Home
from uqbias.campaign.ledger import Record
from uqbias.campaign.outside_training import at_zero_of, check_untrained, given_potential, train_by_command
from uqbias.campaign.progress import SilentProgress, TrainingProgress
from uqbias.campaign.work import Work
from uqbias.files import write_text
from uqbias.model.fit import complete_model, distinct, make_uncertainties
from uqbias.model.model import UncertaintyModel
from uqbias.model.splitting import Dealt, check_calibration_frames
from uqbias.model.training import TrainingResult, train
from uqbias.molecule.frames import Frames
from uqbias.potentials.base import Potential
from uqbias.uncertainty.base import Uncertainty


def train_phase(work: Work, round_index: int) -> dict[str, Any]:
    """Train on the accepted labels; writes ``round_XX/model.uqb`` and ``training.json``."""
    campaign = work.campaign
    split = work.deal(work.accepted(round_index))
    check_calibration_frames([split], campaign.calibration.alpha)
    ours, last, history = campaign.training.kind == "adam", _last_model(work, round_index), course(TrainingResult())
    if campaign.training.kind == "command":
        potential = train_by_command(work, round_index, split)
    elif last is None:
        potential = given_potential(campaign, work.topology, work.seed(0, "potential"))
    else:
        potential = last.potential
    # What counts as a stiff coordinate is learned once, from the start frames, and stays.
    known = split.training[np.flatnonzero([entry["round"] == 0 for entry in split.training.info])]
    judge, driver = make_uncertainties(campaign, work.topology, potential, work.ledger.labels(0), known)
    if last is not None:
        go_on_from(last, judge, driver)
    parts = distinct(judge, driver)
    if ours:
        history = _train(work, round_index, potential, parts, split.training, split.validation, last is not None)
    else:
        check_untrained(parts, campaign.training.kind, potential)
    if campaign.training.kind == "none":
        history["energy_offset"] = at_zero_of(potential, work.ledger.labels(0))
    seeds = (work.seed(round_index, "judge"), work.seed(round_index, "driver"))
    dealt = {"": Dealt(work.topology, split)}
    model, facts = complete_model(campaign, potential, judge, driver, dealt, seeds)
    model.provenance.update(campaign=campaign.name, round=round_index)
    model.save(work.model_path(round_index))
    write_text(work.folder(round_index) / "training.json", json.dumps({**facts, **history}, indent=1))
    return {name: count for name, count in facts.items() if name.endswith("frames")}


def go_on_from(last: UncertaintyModel, judge: Uncertainty, driver: Uncertainty) -> None:
    """Let the trained weights of judge and driver be those of the last model; all else is fitted anew."""
    for part, before in ((judge, last.judge), (driver, last.driver)):
        for (name, weight), (old_name, old) in zip(part.named_parameters(), before.named_parameters(), strict=True):
            assert name == old_name
            weight.data.copy_(old.data)


def train_where_asked(work: Work, round_index: int) -> dict[str, Any]:
    """`train_phase`, by the executor of training."""
    executor = work.executor("train")
    if executor.here:
        return train_phase(work, round_index)
    work.progress.phase(f"round {round_index}: train by executors.train", None)
    record = Record(work.ledger.numbers, work.ledger.events())
    elsewhere = replace(work, ledger=record, progress=SilentProgress(), _executors={})
    calls = [(work.home, elsewhere, round_index)]
    result: dict[str, Any] = next(results_of(executor, _train_there, calls, work.progress.advance))
    return result


def _train_there(home: Home, work: Work, round_index: int) -> dict[str, Any]:
    """The training phase in the process of a worker."""
    import torch

    torch.set_num_threads(1)  # sums in one order make training repeatable
    with home.claim(f"train {round_index}"):
        return train_phase(work, round_index)


def _last_model(work: Work, round_index: int) -> UncertaintyModel | None:
    """The model that this round starts from; None where it starts from nothing."""
    if round_index > 0 and work.campaign.training.warm_start and work.campaign.training.kind == "adam":
        return UncertaintyModel.load(work.model_path(round_index - 1))
    return None


def _train(
    work: Work,
    round_index: int,
    potential: Potential,
    parts: tuple[Uncertainty, ...],
    training: Frames,
    validation: Frames,
    warm_start: bool,
) -> dict[str, Any]:
    work.progress.phase(f"round {round_index}: load or compile the training step", None)
    result = train(
        potential,
        training,
        validation if len(validation) else None,
        work.campaign.training.of_round(round_index, warm=warm_start),
        seed=work.seed(round_index, "training"),
        uncertainties=parts,
        warm_start=warm_start,
        progress=TrainingProgress(work.progress, f"round {round_index}: train on {len(training)} frames"),
    )
    return course(result)


def course(result: TrainingResult) -> dict[str, Any]:
    """What ``training.json`` holds of a training."""
    return {
        "history": result.history,
        "steps": result.steps,
        "best_step": result.best_step,
        "wall_s": round(result.seconds, 3),
    }
