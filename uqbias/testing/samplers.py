"""The contract of a sampler, checked on one that is ready and a job for it."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.testing.measuring import counted
from uqbias.testing.report import Report

#: Columns of ``observations.npz``, with the number of axes.
COLUMNS = {"step": 1, "positions": 4, "energy": 2, "driver": 2, "judge": 2}


class _InterruptionError(Exception):
    """Raised in the middle of an exploration."""


def check_sampler(sampler: Any, job: Any) -> Report:
    """Check that a sampler's output has the format of a run, and that its seed alone decides what it finds.

    ``observations.npz`` holds ``step`` [K], ``positions`` [K, W, N, 3], ``energy``, ``driver`` and ``judge`` [K, W].
    A candidate, an observation after step 0, has finite numbers. A pickled copy finds the same with the same seed. What
    the sampler is given stays as it is. A sampler that walks goes on from its last snapshot when it was interrupted,
    and ends as if it had not been.

    Parameters
    ----------
    sampler : a `uqbias.campaign.samplers.base.Sampler`.
    job : a `uqbias.campaign.samplers.base.Exploration`, whose folder is empty; it is explored three or four times.

    Raises
    ------
    ContractError
        If a clause is violated.
    """
    report = Report(f"sampler {type(sampler).__name__}")
    frames = np.array(job.safe_frames)

    def explored(name: str, explorer: Any = sampler, **changes: Any) -> dict[str, NDArray[Any]]:
        folder = Path(job.folder) / name
        explorer.explore(dataclasses.replace(job, folder=folder, **changes))
        with np.load(folder / "observations.npz", allow_pickle=False) as arrays:
            return dict(arrays)

    facts = sampler.explore(dataclasses.replace(job, folder=Path(job.folder) / "facts"))
    missing = [name for name in ("steps", "stopped", "runner") if name not in facts]
    report.add("facts left out", *counted(missing))
    whole = explored("whole")
    count, walkers = whole["step"].shape[0], whole["positions"].shape[1]
    wrong = [name for name, axes in COLUMNS.items() if name not in whole or whole[name].ndim != axes]
    wrong += [name for name in COLUMNS if name not in wrong and len(whole[name]) != count]
    wrong += [name for name in COLUMNS if name not in wrong and name != "step" and whole[name].shape[1] != walkers]
    if "positions" not in wrong and whole["positions"].shape[2:] != frames.shape[1:]:
        wrong.append("positions")
    report.add("columns of another format", *counted(wrong))
    if wrong:
        return report.verified()
    later = whole["step"] > 0
    report.add("no observation after step 0", not later.any(), 0)
    infinite = [name for name in COLUMNS if not np.isfinite(whole[name][later]).all()]
    report.add("candidates that are not finite", *counted(infinite))
    again = explored("again", pickle.loads(pickle.dumps(sampler)))
    report.add("other observations with the same seed", *_different(whole, again))
    report.add("safe frames changed", not np.array_equal(frames, job.safe_frames), 0)
    if sampler.walks and job.snapshot_every and not report.violations:
        calls = 0

        def interrupt(*_: Any) -> None:
            nonlocal calls
            calls += 1
            if calls > count // 2:
                raise _InterruptionError

        try:
            sampler.explore(dataclasses.replace(job, folder=Path(job.folder) / "broken"), interrupt)
        except _InterruptionError:
            pass
        else:
            report.skipped["resumed"] = "it told its progress too rarely to be interrupted"
        report.add("other observations when resumed", *_different(whole, explored("broken", resume=True)))
    return report.verified()


def _different(one: dict[str, NDArray[Any]], other: dict[str, NDArray[Any]]) -> tuple[int, int, str]:
    """Number, limit and names of the columns that are not the same."""
    shared = {*one} & {*other}
    return counted(
        [name for name in {**one, **other} if name not in shared or one[name].tobytes() != other[name].tobytes()]
    )
