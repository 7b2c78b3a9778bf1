"""The contract of an executor: where tasks of one kind run, and how a lost one shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from pathlib import Path
from typing import Any, ClassVar

from uqbias.campaign.home import Home
from uqbias.errors import UqbiasError

#: s between two looks for a signal.
LOOK = 0.2


class LostLabel(str):
    """Why the process of a task did not survive it; alone, the task may succeed."""


class LostJob(LostLabel):
    """Why a whole job was lost, which need not be the fault of a task in it."""


class TaskExecutor(Executor):
    """Runs tasks of one kind of work; the keyword-only parameters of its constructor are its options.

    Parameters
    ----------
    work : ``label``, ``train`` or ``explore``.
    home : run directory that the tasks belong to; None for tasks without one.
    slots : tasks at the same time.
    scratch : folder of a node in which labels are computed; None: in the run directory.
    retries : how often a task whose job was lost is put back.

    Attributes
    ----------
    here : whether tasks run in this program itself, which can show their progress.
    ahead : tasks that wait where the workers are, so that these need not wait for this program.
    near : whether the processes of labels are this program's own, so that it can give labels up.
    environment : variables of the processes of labels.
    """

    here: ClassVar[bool] = False
    near: ClassVar[bool] = False

    def __init__(
        self, work: str, home: Home | None, slots: int = 1, scratch: str | None = None, retries: int = 0
    ) -> None:
        self.work, self.home, self.slots, self.scratch, self.retries = work, home, slots, scratch, retries
        self.ahead = 0
        self.environment: dict[str, str] = {}

    @property
    def folder(self) -> Path | None:
        """Where outputs of jobs stay; None where there are no jobs."""
        return None if self.near or self.home is None else self.home.folder / "jobs" / self.work

    @property
    def outputs(self) -> str:
        """End of a message: where outputs of jobs are."""
        return f"; outputs in {self.folder}" if self.folder is not None and self.folder.is_dir() else ""

    def check(self) -> str:
        """See that tasks can still be done; called while they are waited for.

        Returns
        -------
        str
            What they wait for, where there is something to say.

        Raises
        ------
        UqbiasError
            If no task will ever be done here.
        """
        return ""

    def loss(self, error: Exception) -> LostLabel | None:
        """What was lost, where an exception of a future says that; None where the task itself raised it."""
        return None


def results_of(
    executor: TaskExecutor,
    task: Callable[..., Any],
    calls: Iterable[tuple[Any, ...]],
    tell: Callable[[int, str], None] = lambda _count, _note: None,
) -> Iterator[Any]:
    """Results of one task with various arguments, as they come; what was lost with its job is done again.

    ``tell`` is called with 0 and a note on what is waited for, or was lost.

    Raises
    ------
    UqbiasError
        If the executor fails, or a task is lost more often than ``executor.retries`` allows.
    """
    pending: dict[Future[Any], tuple[tuple[Any, ...], int]] = {
        executor.submit(task, *arguments): (arguments, 0) for arguments in calls
    }
    while pending:
        if note := executor.check():
            tell(0, note)
        for future in wait(pending, LOOK, FIRST_COMPLETED).done:
            arguments, count = pending.pop(future)
            try:
                result = future.result()
            except Exception as error:
                if (lost := executor.loss(error)) is None:
                    raise
                if count >= executor.retries:
                    fault = f"executors.{executor.work}: a task was lost {count + 1} times ({lost}){executor.outputs}"
                    raise UqbiasError(fault, "see that memory and walltime suffice, and run again") from None
                tell(0, f"put back: {lost}")
                pending[executor.submit(task, *arguments)] = arguments, count + 1
            else:
                yield result
