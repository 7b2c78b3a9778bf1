"""A tiny job to each executor of a file: whether it starts, where, and what it has there."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uqbias.campaign.child import working_in
from uqbias.campaign.executors.base import TaskExecutor, results_of
from uqbias.campaign.home import Home, shared_version
from uqbias.doctor.row import Row
from uqbias.errors import UqbiasError
from uqbias.registry import EXECUTORS
from uqbias.settings.file import load_executors

#: s that a job may wait where the file does not say so.
PATIENCE = 600.0


def examine_executors(path: Path, folder: Path) -> Iterator[Row]:
    """Yield a row for each kind of work, as the jobs answer.

    Parameters
    ----------
    path : file of executors.
    folder : folder on a drive that all nodes share; outputs of jobs that failed stay in one below it.

    Raises
    ------
    UqbiasError
        If the file is not in order, or the folder cannot be written to.
    """
    executors = load_executors(path)
    try:
        home = Home.take(Path(tempfile.mkdtemp(prefix="uqbias-doctor-", dir=folder)))
    except OSError as error:
        raise UqbiasError(f"{folder}: {error.strerror}", "run doctor in a folder on the shared drive") from None
    failed = False
    for work in type(executors).model_fields:
        section = getattr(executors, work)
        if getattr(section, "start_within", 0) is None:
            section = section.model_copy(update={"start_within": PATIENCE})
        begun, what, executor = time.monotonic(), f"executors.{work}: {section.kind}", None
        try:
            executor = EXECUTORS.build(section, work=work, home=home, longest=60.0)
            facts = next(results_of(executor, probe, [(home.folder, executor.scratch)]))
            yield Row(what, "ok", f"{facts} after {time.monotonic() - begun:.0f} s")
        except UqbiasError as error:
            failed = True
            yield Row(what, "failed", error.what, error.cure)
        finally:
            _end(executor)
    if not failed:
        shutil.rmtree(home.folder, ignore_errors=True)


def _end(executor: TaskExecutor | None) -> None:
    if executor is not None:
        executor.shutdown(cancel_futures=True)


def probe(folder: Path, scratch: str | None) -> str:
    """Facts about the process that runs this, which writes into the folders that a label would write into."""
    with working_in(Path(tempfile.mkdtemp(dir=folder)), scratch) as place:
        (place / "written").touch()
    cores, threads = len(os.sched_getaffinity(0)), os.environ.get("OMP_NUM_THREADS", "no limit of")
    facts: list[Any] = [f"{cores} cores", f"{threads} threads", f"torch {shared_version('torch')}"]
    if devices := os.environ.get("CUDA_VISIBLE_DEVICES"):
        facts.append(f"GPUs {devices}")
    return f"answered from {platform.node()} ({', '.join(facts)})"
