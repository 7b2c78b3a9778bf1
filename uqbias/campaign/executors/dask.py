"""Executor in the workers of dask."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from importlib import import_module
from typing import Annotated, Any

from annotated_types import Ge
from typing_extensions import Doc

from uqbias.campaign.executors.base import LostJob, LostLabel, TaskExecutor
from uqbias.campaign.executors.local import Scratch, arrived
from uqbias.campaign.home import Home
from uqbias.campaign.interrupts import blocked, deferred
from uqbias.errors import UqbiasError
from uqbias.options import Count

Retries = Annotated[int, Ge(0), Doc("times that a task whose job was lost is put back, before it has failed")]


class Dask(TaskExecutor):
    """Runs tasks in the workers of dask: those of a scheduler of the user's, or of a cluster on this machine.

    Raises
    ------
    UqbiasError
        If dask is not installed, or the scheduler does not answer.
    """

    def __init__(
        self,
        work: str = "label",
        home: Home | None = None,
        *,
        address: Annotated[str | None, Doc("scheduler to connect to; null: a cluster on this machine")] = None,
        jobs: Annotated[Count, Doc("tasks at the same time; of a cluster on this machine its workers")] = 2,
        scratch: Scratch = None,
        retries: Retries = 5,
    ) -> None:
        super().__init__(work, home, jobs, scratch, retries)
        self.ahead = max(1, jobs // 4)
        try:
            distributed, dask = import_module("distributed"), import_module("dask")
        except ImportError:
            raise UqbiasError(
                f"executors.{work}.kind = 'dask': dask.distributed is not installed", "pip install 'uqbias[dask]'"
            ) from None
        local = {"n_workers": jobs, "threads_per_worker": 1, "silence_logs": logging.CRITICAL}
        try:
            # A cluster half begun ends with tracebacks, and its workers leave the terminal's signals to this program.
            # Losses are counted here, so that dask itself is to try nothing again.
            with deferred(lambda: None), blocked(), dask.config.set({"distributed.scheduler.allowed-failures": 0}):
                self._client = distributed.Client(address) if address else distributed.Client(**local)
        except OSError as error:
            raise UqbiasError(f"executors.{work}.address = {address}: {error}", "start a scheduler there") from None
        self._executor = self._client.get_executor()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Begin a task; one that was done before is done again."""
        call = partial(fn, *args, **kwargs)
        future: Future[Any] = self._executor.submit(arrived, self.home, call, pure=False, retries=0)
        return future

    def check(self) -> str:
        """See that the scheduler is there."""
        if self._client.status not in ("running", "connecting"):
            raise UqbiasError(f"executors.{self.work}: the dask scheduler is gone", "start it, and run again")
        return ""

    def loss(self, error: Exception) -> LostLabel | None:
        """Lost workers."""
        if type(error).__name__ == "KilledWorker":
            return LostLabel(f"dask lost its worker ({error})")
        return LostJob(f"dask gave it up ({error})") if type(error).__name__ == "FutureCancelledError" else None

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the scheduler; ``cancel_futures`` gives up tasks."""
        self._executor.shutdown(wait=wait and not cancel_futures)
        self._client.close()
