"""Executors that compute labels and run groups of walkers: any `concurrent.futures.Executor`."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.campaign.child import LABEL, OUTPUT, Rejected, label_here
from uqbias.campaign.contained import CHILDREN, Died, Stopped
from uqbias.campaign.interrupts import blocked, deferred
from uqbias.campaign.ledger import Record
from uqbias.errors import UqbiasError

#: Small models run fastest on one thread.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENMM_CPU_THREADS": "1"}
#: s between two looks for a signal.
LOOK = 0.2


class SerialExecutor(Executor):
    """Runs each task at once; labels in a process of their own, one after another."""

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


class ThreadExecutor(ThreadPoolExecutor):
    """Runs tasks in threads; labels in processes of their own, each led by a thread."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes of labels; ``cancel_futures`` gives up those that work, too."""
        CHILDREN.stopped = cancel_futures
        super().shutdown(wait, cancel_futures=cancel_futures)
        CHILDREN.close()
        CHILDREN.stopped = cancel_futures and not wait


class ProcessExecutor(ThreadExecutor):
    """Runs each task in a process led by a thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Begin a task: labels find a process themselves."""
        if fn is label_one:
            spec, *rest = args
            return super().submit(fn, replace(spec, environment=ONE_THREAD), *rest)
        return super().submit(_in_process, fn, args, kwargs)


class DaskExecutor(Executor):
    """Runs tasks in the workers of dask; labels in a process of their own beside the worker.

    Parameters
    ----------
    client : connected client; a local cluster of its own ends with it.
    """

    def __init__(self, client: Any) -> None:
        self._client, self._executor = client, client.get_executor()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Begin a task; one that was done before is done again."""
        future: Future[Any] = self._executor.submit(fn, *args, pure=False, retries=0, **kwargs)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the scheduler; ``cancel_futures`` gives up tasks."""
        self._executor.shutdown(wait=wait and not cancel_futures)
        self._client.close()


def _in_process(fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    try:
        return CHILDREN.call(partial(fn, *args, **kwargs), environment=ONE_THREAD)
    except Died as error:
        raise UqbiasError(f"a process of the campaign died: {error}", "run again; see that memory suffices") from None


def make_executor(kind: str, workers: int, address: str | None = None) -> Executor:
    """Build an executor.

    Parameters
    ----------
    kind : ``process``, ``thread``, ``serial`` or ``dask``.
    workers : tasks at the same time.
    address : dask scheduler, or None for a local cluster.

    Raises
    ------
    UqbiasError
        If dask is asked for and not installed, or the scheduler does not answer.
    """
    CHILDREN.stopped = False
    if kind == "serial":
        return SerialExecutor()
    if kind == "thread":
        return ThreadExecutor(workers)
    if kind == "process":
        return ProcessExecutor(workers)
    if kind == "dask":
        return _dask_executor(workers, address)
    raise UqbiasError(f"unknown executor '{kind}'", "valid: dask, process, serial, thread")


def _dask_executor(workers: int, address: str | None) -> Executor:
    try:
        distributed = import_module("distributed")
    except ImportError:
        raise UqbiasError(
            "executor.kind = 'dask': dask.distributed is not installed", "pip install 'uqbias[distributed]'"
        ) from None
    local = {"n_workers": workers, "threads_per_worker": 1, "silence_logs": logging.CRITICAL}
    try:
        # A cluster half begun ends with tracebacks, and its workers leave the signals of the terminal to this process.
        with deferred(lambda: None), blocked():
            client = distributed.Client(address) if address else distributed.Client(**local)
    except OSError as error:
        raise UqbiasError(f"executor.address = {address}: {error}", "start a scheduler there") from None
    return DaskExecutor(client)


@dataclass(frozen=True)
class OracleSpec:
    """An oracle by name, so that another process can build its own, and the bounds of its labels.

    Attributes
    ----------
    kind : name in the registry.
    options : arguments.
    timeout : s that a label may take.
    memory_gb : gigabytes that a process of a label may allocate; None: four fifths of the machine's.
    keep_files : whether the folder of a label that succeeded stays.
    folder : where each label gets a folder of its own; None: temporary ones.
    name : beginning of the name of that folder.
    environment : variables of the process.
    """

    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    timeout: float = 21600.0
    memory_gb: float | None = None
    keep_files: bool = False
    folder: Path | None = None
    name: str = "label"
    environment: dict[str, str] = field(default_factory=dict)

    def folders(self) -> list[Path]:
        """Folders of this label that are there."""
        return sorted(self.folder.glob(f"{self.name}_*")) if self.folder is not None else []

    def tidy(self) -> None:
        """Remove the folders of this label, which is stored, unless they are to be kept."""
        for path in [] if self.keep_files else self.folders():
            shutil.rmtree(path, ignore_errors=True)


class LostLabel(str):
    """Why the process of a label did not survive it; alone, the label may succeed."""


def label_one(spec: OracleSpec, positions: NDArray[Any]) -> tuple[float, NDArray[np.float64]] | str:
    """Label one geometry, in a process and a folder of its own.

    A label that was finished when the program was killed lies in its folder, and is taken from there.

    Returns
    -------
    tuple or str
        Energy in kJ/mol and forces [N, 3] in kJ/mol/nm, or the reason why there are none: a `LostLabel` where the
        process was lost too.

    Raises
    ------
    UqbiasError
        If the oracle cannot be built.
    """
    name = json.dumps([spec.kind, spec.options], sort_keys=True)
    for path in spec.folders():
        with suppress(OSError, ValueError, KeyError, TypeError):
            facts = json.loads((path / LABEL).read_text(encoding="utf-8"))
            if facts["oracle"] == name and facts["positions"] == positions.tolist():
                return float(facts["energy"]), np.array(facts["forces"], dtype=np.float64)
    if spec.folder is None:
        with tempfile.TemporaryDirectory(prefix="uqbias-", ignore_cleanup_errors=True) as folder:
            return _label_in(Path(folder), name, spec, positions)
    return _label_in(_fresh(spec.folder, spec.name), name, spec, positions)


def _label_in(
    folder: Path, name: str, spec: OracleSpec, positions: NDArray[Any]
) -> tuple[float, NDArray[np.float64]] | str:
    memory = 1e9 * spec.memory_gb if spec.memory_gb is not None else 0.8 * _physical_memory()
    try:
        facts = CHILDREN.call(
            label_here,
            name,
            positions,
            str(folder.absolute()),
            {"timeout": spec.timeout, "memory": memory},
            output=folder / OUTPUT,
            timeout=spec.timeout,
            environment=spec.environment,
        )
    except Rejected as error:
        return LostLabel(error.args[0]) if error.died else str(error.args[0])
    except (UqbiasError, Stopped):
        raise
    except Died as error:
        return LostLabel(f"{spec.kind} oracle failed: {error}")
    except Exception as error:
        return LostLabel(f"{spec.kind} oracle failed: {type(error).__name__} ({' '.join(str(error).split())})")
    return facts["energy"], np.array(facts["forces"], dtype=np.float64)


def _fresh(parent: Path, name: str) -> Path:
    """A new folder."""
    number = 0
    while True:
        try:
            (path := parent / f"{name}_{number}").mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return path


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@dataclass(frozen=True)
class LabelRequest:
    """One frame to label.

    Attributes
    ----------
    index : place of the frame in its round.
    key : see `uqbias.campaign.ledger.label_key`.
    positions : [N, 3] nm.
    info : JSON-able facts kept with the label.
    """

    index: int
    key: str
    positions: NDArray[np.float64]
    info: dict[str, Any]


def label_all(
    executor: Executor,
    spec: OracleSpec,
    requests: Sequence[LabelRequest],
    ledger: Record,
    round_index: int,
    *,
    in_flight: int = 4,
    progress: Callable[[int, str], None] | None = None,
) -> int:
    """Label frames; each label is in the ledger, on disk, before another is begun in its place.

    Frames whose key has a label, or failed in this round, are not submitted. A label whose process was lost is tried
    once more when all others are done, alone. After a signal nothing new is begun, labels under way are given up, and
    what is finished is stored.

    Parameters
    ----------
    in_flight : labels at the same time.
    progress : called with (number of frames finished by this step, note).

    Returns
    -------
    int
        Number of frames the oracle failed on, in this call.

    Raises
    ------
    UqbiasError
        If the oracle cannot be built, or the executor is lost.
    """
    return _Labelling(executor, spec, ledger, round_index, progress or (lambda _count, _note: None)).run(
        requests, max(1, in_flight)
    )


class _Labelling:
    """Labels of one round under way."""

    def __init__(
        self, executor: Executor, spec: OracleSpec, ledger: Record, round_index: int, tell: Callable[[int, str], None]
    ) -> None:
        self.executor, self.spec, self.ledger, self.round_index, self.tell = executor, spec, ledger, round_index, tell
        self.pending: dict[Future[Any], LabelRequest] = {}
        self.lost: list[LabelRequest] = []
        self.failures = 0

    def run(self, requests: Sequence[LabelRequest], in_flight: int) -> int:
        """Label what has no label yet; the number of failures."""
        seen = self.ledger.failed(self.round_index)
        queue: list[LabelRequest] = []
        for request in requests:
            if request.key not in seen and not self.ledger.has_label(request.key):
                queue.append(request)
            seen.add(request.key)
        self.tell(len(requests) - len(queue), "")
        CHILDREN.stopped = False
        with deferred(CHILDREN.stop) as signals:
            try:
                self._finish(queue, in_flight, signals, last=False)
                self._finish(self.lost, 1, signals, last=True)
            finally:
                # A signal, or a fault: nothing that is finished may be lost.
                CHILDREN.stopped = bool(self.pending)
                running = [future for future in self.pending if not future.cancel()]
                for future in wait(running).done:
                    if future.exception() is None:
                        self._settle(future, last=False)
                CHILDREN.stopped = False
        return self.failures

    def _finish(self, queue: list[LabelRequest], in_flight: int, signals: list[int], *, last: bool) -> None:
        queue = queue[::-1]
        while (queue or self.pending) and not signals:
            while queue and len(self.pending) < in_flight and not any(future.done() for future in self.pending):
                self.ledger.check()
                request = queue.pop()
                spec = replace(self.spec, name=f"frame_{request.index:04d}")
                self.pending[self.executor.submit(label_one, spec, request.positions)] = request
            finished = wait(self.pending, LOOK, FIRST_COMPLETED).done
            for future in sorted(finished, key=lambda entry: self.pending[entry].index):
                self._settle(future, last=last)

    def _settle(self, future: Future[Any], *, last: bool) -> None:
        """Write the answer into the ledger."""
        request = self.pending[future]
        try:
            result = future.result()
        except Stopped:
            del self.pending[future]
            return
        except Exception as error:
            if type(error).__name__ != "KilledWorker":
                raise
            result = LostLabel(f"{self.spec.kind} oracle failed: dask lost its worker ({error})")
        common = {"round": self.round_index, "index": request.index, "key": request.key}
        if isinstance(result, LostLabel) and not last:
            self.lost.append(request)
        elif isinstance(result, str):
            self.failures += 1
            self.ledger.append("failure", **common, reason=str(result))
            self.tell(1, f"failed: {result}")
        else:
            energy, forces = result
            self.ledger.append(
                "label", **common, positions=request.positions, energy=energy, forces=forces, info=request.info
            )
            self.tell(1, "")
            replace(self.spec, name=f"frame_{request.index:04d}").tidy()
        del self.pending[future]


def failure_reasons(ledger: Record) -> dict[str, int]:
    """How often the oracle failed, by reason, most frequent first."""
    return dict(Counter(str(event["reason"]) for event in ledger.events("failure")).most_common())
