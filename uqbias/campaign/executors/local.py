"""Executors on this machine."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any, ClassVar

from typing_extensions import Doc

from uqbias.campaign.contained import CHILDREN, Died
from uqbias.campaign.executors.base import TaskExecutor
from uqbias.campaign.home import Home
from uqbias.campaign.labelling import label_one
from uqbias.errors import UqbiasError
from uqbias.options import Count

Scratch = Annotated[
    str | None,
    Doc(
        "folder in which labels are computed, such as /scratch/$USER: its files come back into the run directory when "
        "a label is done or has failed; null: labels are computed in the run directory"
    ),
]


class Local(TaskExecutor):
    """Runs each task at once, in this program; labels in a process of their own, one after another."""

    here: ClassVar[bool] = True
    near: ClassVar[bool] = True

    def __init__(self, work: str = "label", home: Home | None = None, *, scratch: Scratch = None) -> None:
        super().__init__(work, home, scratch=scratch)
        CHILDREN.stopped = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run the task and return its finished future."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes of labels."""
        CHILDREN.close()


class Processes(TaskExecutor):
    """Runs each task in a process of this machine."""

    near: ClassVar[bool] = True

    def __init__(
        self,
        work: str = "label",
        home: Home | None = None,
        *,
        jobs: Annotated[Count, Doc("tasks at the same time")] = 2,
        cores: Annotated[Count, Doc("threads of a task")] = 1,  # small models run fastest on one
        scratch: Scratch = None,
    ) -> None:
        super().__init__(work, home, slots=jobs, scratch=scratch)
        self.environment = {"OMP_NUM_THREADS": str(cores), "OPENMM_CPU_THREADS": str(cores)}
        self._threads = ThreadPoolExecutor(jobs)
        CHILDREN.stopped = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Begin a task, led by a thread: labels find a process themselves."""
        if fn is label_one:
            return self._threads.submit(fn, *args, **kwargs)
        return self._threads.submit(self._in_process, partial(fn, *args, **kwargs))

    def _in_process(self, call: Callable[[], Any]) -> Any:
        try:
            return CHILDREN.call(arrived, self.home, call, environment=self.environment)
        except Died as error:
            fault = f"a process of the campaign died: {error}"
            raise UqbiasError(fault, "run again; see that memory suffices") from None

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes; ``cancel_futures`` gives up those that work, too."""
        CHILDREN.stopped = cancel_futures
        self._threads.shutdown(wait, cancel_futures=cancel_futures)
        CHILDREN.close()
        CHILDREN.stopped = cancel_futures and not wait


def arrived(home: Home | None, call: Callable[[], Any]) -> Any:
    """Result of a call in the process of a worker."""
    if home is not None:
        home.arrive()
    return call()
