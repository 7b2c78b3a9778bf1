"""The campaign: round after round, resumable at any moment."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import uqbias
from uqbias.campaign.dry_run import check_parts
from uqbias.campaign.ledger import differing_keys, open_ledger
from uqbias.campaign.phase_files import hashes, refuse_changed
from uqbias.campaign.progress import Progress, SilentProgress
from uqbias.campaign.work import Work, read_molecule, read_test_set
from uqbias.registry import SAMPLERS
from uqbias.settings.file import CampaignFile, digest
from uqbias.uncertainty.auto import driver_story

Phase = Callable[[Work, int], dict[str, Any]]


def run_campaign(file: CampaignFile, directory: str | Path, progress: Progress | None = None) -> dict[str, Any]:
    """Run a campaign, or continue it where it stopped.

    Round 0 labels the start frames and trains. Each later round explores with the last model, harvests, labels and
    trains again. A finished phase is never done again, an unfinished one is redone from its beginning with the same
    seeds, a label that is in the ledger is never paid again.

    Parameters
    ----------
    file : checked campaign file, from `uqbias.settings.file.load_campaign`.
    directory : run directory; made if it is not there.
    progress : told what is going on.

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
    topology, start = read_molecule(file)
    check_parts(file, topology, start)
    read_test_set(file, topology)  # before anything is paid
    identity = file.identity()
    facts: dict[str, Any] = {"digest": digest(identity), "seed": file.campaign.seed, "versions": versions()}
    ledger = open_ledger(directory, identity, np.array(topology.numbers, dtype=np.int64), facts)
    work = Work(file, directory, ledger, topology, start, progress or SilentProgress())
    try:
        if ledger.torn:
            work.progress.message(f"{ledger.path}: its last line was torn when it was written, and is left out")
        refuse_changed(directory, ledger.events())
        _note_versions(work, facts["versions"])
        if not ledger.phase_done(0, "train"):
            work.progress.message("driver: " + "; ".join(driver_story(file.campaign.driver, topology)))
        file.write(directory / "campaign.yaml")
        return _rounds(work)
    finally:
        work.close()
        ledger.close()


def _rounds(work: Work) -> dict[str, Any]:
    from uqbias.campaign.phases import explore_phase, harvest_phase, label_phase
    from uqbias.campaign.retraining import train_where_asked
    from uqbias.campaign.scoring import write_summary

    stop = work.campaign.stop
    reason = f"all {stop.rounds} rounds are done"
    for round_index in range(stop.rounds + 1):
        if round_index > 0:
            if not _has_labels(work, round_index) and stop.labels is not None:
                count = len(work.ledger.labels(round_index - 1))
                if count >= stop.labels:
                    reason = f"{count} labels reach stop.labels = {stop.labels}"
                    break
            _finish(work, round_index, "md", explore_phase)
            _finish(work, round_index, "harvest", harvest_phase)
            if (ending := _enough(work, round_index)) is not None:
                reason = ending
                break
        _finish(work, round_index, "label", label_phase)
        _finish(work, round_index, "train", train_where_asked)
        _finish(work, round_index, "score", _score)
        write_summary(work, stopped="")
    work.progress.message(f"campaign ends: {reason}")
    return write_summary(work, stopped=reason)


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
    facts = phase(work, round_index)
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
