"""Several systems in one campaign: each has a run of its own, and all have one potential and one judge.

A driver that carries over to other systems is one for all, too. A density of torsions or distances is of one molecule:
each system then has a driver of its own, fitted to its own frames.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from uqbias.campaign.phase_files import folder_name
from uqbias.campaign.progress import TrainingProgress
from uqbias.campaign.retraining import course, go_on_from
from uqbias.campaign.work import Work
from uqbias.errors import UqbiasError
from uqbias.files import read_json, write_text
from uqbias.model.fit import complete_model, distinct, make_potential, make_uncertainties
from uqbias.model.model import UncertaintyModel
from uqbias.model.padded import check_padded
from uqbias.model.readouts import fit_uncertainty
from uqbias.model.several import layout_of
from uqbias.model.splitting import Dealt, check_calibration_frames
from uqbias.model.training import train
from uqbias.molecule.frames import Frames
from uqbias.molecule.topology import Topology
from uqbias.potentials.base import Potential
from uqbias.runs.ledger_lines import CURE
from uqbias.settings.schema import Campaign
from uqbias.uncertainty.auto import driver_story
from uqbias.uncertainty.base import Uncertainty, at_wall


def check_together(campaign: Campaign, graphs: Sequence[Topology]) -> None:
    """See that one model can be made for all systems, before anything is paid.

    Raises
    ------
    UqbiasError
        If the potential or the judge is of one molecule, or training is to be done elsewhere.
    """
    if campaign.executors.train.kind != "local":
        raise UqbiasError(
            f"executors.train = {campaign.executors.train.kind} with several systems", "leave it out: local"
        )
    if campaign.training.kind != "adam":
        raise UqbiasError(f"training.kind = {campaign.training.kind} with several systems", "leave it out: adam")
    potential = make_potential(campaign, layout_of(graphs), 0)
    check_padded(potential)
    judge, driver = _parts(campaign, graphs, potential)
    for graph in graphs:
        potential.with_numbers(graph.numbers)
        for part in (judge, driver):
            if part is not None:
                part.with_topology(graph)


def train_together(work: Work, round_index: int) -> dict[str, Any]:
    """The training phase of a system: the first one trains a model on the accepted labels of all.

    It writes that into the folder of the round, and ``model.uqb`` and ``training.json`` of each system into that of its
    own; what is left to the others is to note it.
    """
    if not any(other.ledger.phase_done(round_index, "train") for other in work.all_systems):
        _train(work.all_systems, round_index)
    told = read_json(work.folder(round_index) / "training.json", dict[str, Any], "training", CURE)
    return {name: count for name, count in told.items() if name.endswith("frames")}


def _parts(
    campaign: Campaign, graphs: Sequence[Topology], potential: Potential
) -> tuple[Uncertainty, Uncertainty | None]:
    """Unfitted judge and driver of the first system; the driver is None where each system is to have its own."""
    layout = layout_of(graphs)

    def shared(name: str) -> Uncertainty:
        section = getattr(campaign, name)
        alone = campaign.model_copy(update={"judge": section, "driver": section})
        return make_uncertainties(alone, layout, potential, None, None)[0].with_topology(graphs[0])

    judge = shared("judge")
    if campaign.driver == campaign.judge:
        return judge, judge
    if campaign.driver.kind == "auto":
        return judge, None
    try:
        return judge, shared("driver")
    except UqbiasError:
        return judge, None


def _train(works: Sequence[Work], round_index: int) -> None:
    first, graphs = works[0], [work.topology for work in works]
    campaign, parent = first.campaign, first.directory.parent
    splits = [work.deal(work.accepted(round_index)) for work in works]
    check_calibration_frames(splits, campaign.calibration.alpha)
    last = None
    if round_index > 0 and campaign.training.warm_start:
        last = UncertaintyModel.load(parent / folder_name(round_index - 1) / "model.uqb")
    if last is None:
        made = make_potential(campaign, layout_of(graphs), first.seed(0, "potential"))
        potential = made.with_numbers(graphs[0].numbers)
    else:
        potential = last.potential
    judge, driver = _parts(campaign, graphs, potential)
    of_all = judge if driver is None else driver
    if last is not None:
        go_on_from(last, judge, of_all)
    count, progress = sum(len(split.training) for split in splits), first.progress.progress  # type: ignore[attr-defined]
    progress.phase(f"round {round_index}: load or compile the training step", None)
    result = train(
        potential,
        [split.training for split in splits],
        [split.validation for split in splits if len(split.validation)] or None,
        campaign.training.of_round(round_index, warm=last is not None),
        seed=first.seed(round_index, "training"),
        uncertainties=distinct(judge, of_all),
        warm_start=last is not None,
        progress=TrainingProgress(progress, f"round {round_index}: train on {count} frames of {len(works)} systems"),
    )
    seeds = (first.seed(round_index, "judge"), first.seed(round_index, "driver"))
    dealt = {work.campaign.name: Dealt(work.topology, split) for work, split in zip(works, splits, strict=True)}
    model, facts = complete_model(campaign, potential, judge, of_all, dealt, seeds)
    model.provenance.update(campaign=parent.name, round=round_index)
    folder = parent / folder_name(round_index)
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder / "model.uqb")
    for work, one in zip(works, dealt.values(), strict=True):
        twin, story = model.with_topology(work.topology), facts["driver_story"]
        if driver is None:
            twin, story = _with_own_driver(work, twin, one, seeds[1])
        counts = model.provenance["frames_of_systems"][work.campaign.name]
        twin.provenance.update(counts, campaign=work.campaign.name, driver_choice="; ".join(story))
        work.folder(round_index).mkdir(parents=True, exist_ok=True)
        twin.save(work.model_path(round_index))
        told = {**facts, **counts, "driver_story": story, "driver_wall": at_wall("wall", twin.driver), **course(result)}
        write_text(work.folder(round_index) / "training.json", json.dumps(told, indent=1))


def _with_own_driver(
    work: Work, model: UncertaintyModel, dealt: Dealt, seed: int
) -> tuple[UncertaintyModel, list[str]]:
    """The model of a system with a driver that is made for it, and what is said of that."""
    campaign, frames = work.campaign, dealt.split.training
    known = frames[np.flatnonzero([entry["round"] == 0 for entry in frames.info])]
    driver = make_uncertainties(campaign, work.topology, model.potential, work.ledger.labels(0), known)[1]
    fit_uncertainty(model.potential, driver, Frames.concatenate(list(dealt.split)), seed)
    twin = UncertaintyModel(model.potential, model.judge, work.topology, driver, model.calibration, model.provenance)
    twin.calibrated_on, twin.systems = model.calibrated_on, model.systems
    return twin.eval(), driver_story(campaign.driver, work.topology)
