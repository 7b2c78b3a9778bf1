"""The campaign: round after round, resumable at any moment."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import uqbias
from uqbias.campaign.dry_run import check_parts
from uqbias.campaign.handed_over import AwaitingLabels
from uqbias.campaign.ledger import Ledger, differing_keys, open_ledger
from uqbias.campaign.phase_files import hashes, refuse_changed
from uqbias.campaign.progress import OfSystem, Progress, SilentProgress
from uqbias.campaign.together import check_together, train_together
from uqbias.campaign.work import Work, read_molecule, read_test_set
from uqbias.errors import UqbiasError
from uqbias.files import write_text
from uqbias.registry import SAMPLERS
from uqbias.runs.ledger_lines import SYSTEMS
from uqbias.settings.file import CampaignFile, digest
from uqbias.settings.schema import Campaign
from uqbias.uncertainty.auto import driver_story

Phase = Callable[[Work, int], dict[str, Any]]


def run_campaign(
    file: CampaignFile,
    directory: str | Path,
    progress: Progress | None = None,
    after_round: Callable[[], object] | None = None,
) -> dict[str, Any]:
    """Run a campaign, or continue it where it stopped.

    Round 0 labels the start frames and trains. Each later round explores with the last model, harvests, labels and
    trains again. A finished phase is never done again, an unfinished one is redone from its beginning with the same
    seeds, a label that is in the ledger is never paid again.

    Parameters
    ----------
    file : checked campaign file, from `uqbias.settings.file.load_campaign`.
    directory : run directory; made if it is not there. Of several systems each has a run of its own in a folder of its
        name there; the model of all lies in ``round_XX``.
    progress : told what is going on.
    after_round : called after each round but the last, when its summary is written.

    Returns
    -------
    dict
        Content of ``summary.json``; with ``unhealthy``, a line each, where explorations were no sampling.

    Raises
    ------
    UqbiasError
        For bad input, a directory that is in use or of another campaign; what is on disk stays as it is.
    """
    import torch

    # Small models run fastest on one thread, and sums in one order make training repeatable.
    torch.set_num_threads(1)
    directory = Path(directory).absolute()  # workers may have another working directory
    if file.campaign.together is not None:
        raise UqbiasError(
            f"a campaign file of {file.campaign.name} alone, whose model is one of {', '.join(file.campaign.together)}",
            "run the campaign of all of them",
        )
    molecules = {name: (member, *read_molecule(member)) for name, member in file.members().items()}
    if several := len(molecules) > 1:
        check_together(file.campaign, [topology for _, topology, _ in molecules.values()])
    for member, topology, start in molecules.values():
        check_parts(member, topology, start)
        read_test_set(member, topology)  # before anything is paid
    works: list[Work] = []
    ledgers: list[Ledger] = []
    try:
        for name, (member, topology, start) in molecules.items():
            identity, numbers = member.identity(), np.array(topology.numbers, dtype=np.int64)
            facts = {"digest": digest(identity), "seed": file.campaign.seed, "versions": versions()}
            ledgers.append(open_ledger(directory / name, identity, numbers, facts))
            told = progress or SilentProgress()
            told = OfSystem(told, name) if several else told
            works.append(Work(member, directory / name, ledgers[-1], topology, start, told, works if several else []))
        for work, ledger in zip(works, ledgers, strict=True):
            _begin(work, ledger)
        if several:
            write_text(directory / SYSTEMS, json.dumps({"name": file.campaign.name, "systems": [*molecules]}) + "\n")
        return _rounds(works, file.campaign, after_round or (lambda: None))
    finally:
        for work in works:
            work.close()
        for ledger in ledgers:
            ledger.close()


def _begin(work: Work, ledger: Ledger) -> None:
    """See that a run directory is as it was left, say what is to be known of it, and write its campaign file."""
    if ledger.torn:
        work.progress.message(f"{ledger.path}: its last line was torn when it was written, and is left out")
    refuse_changed(work.directory, ledger.events())
    _note_versions(work, versions())
    if not ledger.phase_done(0, "train"):
        work.progress.message("driver: " + "; ".join(driver_story(work.campaign.driver, work.topology)))
    work.file.write(work.directory / "campaign.yaml")


def _rounds(works: list[Work], campaign: Campaign, after_round: Callable[[], object]) -> dict[str, Any]:
    from uqbias.campaign.exploring import explore_phase
    from uqbias.campaign.phases import harvest_phase
    from uqbias.campaign.retraining import train_where_asked

    stop = campaign.stop
    reason = f"all {stop.rounds} rounds are done"
    for round_index in range(stop.rounds + 1):
        if round_index > 0:
            if stop.labels is not None and not any(_has_labels(work, round_index) for work in works):
                count = sum(len(work.ledger.labels(round_index - 1)) for work in works)
                if count >= stop.labels:
                    reason = f"{count} labels reach stop.labels = {stop.labels}"
                    break
            for work in works:
                _finish(work, round_index, "md", explore_phase)
                _finish(work, round_index, "harvest", harvest_phase)
            if (ending := _all_enough(works, round_index)) is not None:
                reason = ending
                break
        _label(works, round_index)
        for work in works:
            _finish(work, round_index, "train", train_together if work.all_systems else train_where_asked)
        for work in works:
            _finish(work, round_index, "score", _score)
        _summary(works, campaign, stopped="")
        if round_index < stop.rounds:
            after_round()
    works[0].progress.message(f"campaign ends: {reason}")
    return _summary(works, campaign, stopped=reason)


def _all_enough(works: list[Work], round_index: int) -> str | None:
    """Why the campaign ends after this round's harvest: there is enough of each system; or None."""
    endings = [_enough(work, round_index) for work in works]
    if None in endings:
        return None
    return "; ".join(dict.fromkeys(map(str, endings)))


def _label(works: list[Work], round_index: int) -> None:
    """Label the frames of all systems; what others are to label is handed out for all before it is awaited."""
    from uqbias.campaign.phases import label_phase

    awaited = None
    for work in works:
        try:
            _finish(work, round_index, "label", label_phase)
        except AwaitingLabels as error:
            if work.all_systems:
                work.progress.message(str(error))
            awaited = awaited or error
    if awaited is not None:
        raise awaited


def _summary(works: list[Work], campaign: Campaign, **facts: Any) -> dict[str, Any]:
    """Write the summary of each system and, where there are several, that of all."""
    from uqbias.campaign.scoring import write_summary

    summaries = {work.campaign.name: write_summary(work, **facts) for work in works}
    if len(works) == 1:
        return summaries[campaign.name]
    unhealthy = [f"{name}: {line}" for name, each in summaries.items() for line in each.get("unhealthy", [])]
    summary = {
        "name": campaign.name,
        "seed": campaign.seed,
        **facts,
        **({"unhealthy": unhealthy} if unhealthy else {}),
        "systems": {name: each["rounds"] for name, each in summaries.items()},
    }
    write_text(works[0].directory.parent / "summary.json", json.dumps(summary, indent=1) + "\n")
    return summary


def _score(work: Work, round_index: int) -> dict[str, Any]:
    from uqbias.campaign.scoring import score_phase

    return {"entry": score_phase(work, round_index)}


def _finish(work: Work, round_index: int, name: str, phase: Phase) -> None:
    """Run a phase unless the ledger says that it is done; it is done once its files and its event are on disk."""
    if work.ledger.phase_done(round_index, name):
        return
    work.folder(round_index).mkdir(parents=True, exist_ok=True)
    refuse_changed(work.directory, work.ledger.events(), (round_index - 1, round_index))
    begun = time.monotonic()
    try:
        facts = phase(work, round_index)
    finally:
        if work.all_systems:  # another system's turn: workers that wait cost time
            work.close()
    facts |= {"wall_s": round(time.monotonic() - begun, 3), "files": hashes(work.directory, round_index, name)}
    work.ledger.append("phase", round=round_index, phase=name, **facts)


def _note_versions(work: Work, now: dict[str, str]) -> None:
    """Say once that the campaign goes on with other packages than it was begun with, and note it in the ledger."""
    before = [event["versions"] for event in work.ledger.events() if event.get("versions")]
    if before and (other := differing_keys(before[-1], now)):
        changes = ", ".join(f"{name} {before[-1].get(name)} before, {now.get(name)} now" for name in other)
        work.progress.message(f"other versions than so far ({changes}): what follows may differ in its last digits")
        work.ledger.append("versions", versions=now)


def _has_labels(work: Work, round_index: int) -> bool:
    """Whether labelling of this round was begun: then the round is finished, whatever the budget says now."""
    return any(event["round"] == round_index for event in work.ledger.events("label"))


def _enough(work: Work, round_index: int) -> str | None:
    """Why the campaign ends after this round's harvest, or None."""
    harvest = next(
        event for event in work.ledger.events("phase") if event["round"] == round_index and event["phase"] == "harvest"
    )
    threshold, visited = work.campaign.stop.judge_below, harvest["visited_judge"]
    if threshold is not None and visited is not None and visited < threshold:
        return (
            f"95 % of the frames visited in round {round_index} have an uncertainty below {visited:.3g} kJ/mol/nm, "
            f"under stop.judge_below = {threshold:g}"
        )
    if harvest["candidates"] == 0:
        sampler = SAMPLERS.build(work.campaign.sampling)
        events = f"{work.folder(round_index).name}/md/events.jsonl"
        if (reason := sampler.why_nothing(round_index, events)) is not None:
            return str(reason)
    if harvest["taken"] == 0:
        return f"round {round_index} found no frame worth a label"
    return None


def versions() -> dict[str, str]:
    """Versions of the packages that compute, by name."""
    versions = {"uqbias": uqbias.__version__, "python": platform.python_version()}
    for name in ("torch", "openmm", "openmmtorch", "numpy", "scikit-learn", "ase"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions
