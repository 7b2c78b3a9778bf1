"""Executors that compute labels and run groups of walkers: any `concurrent.futures.Executor`."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.campaign.ledger import Ledger
from uqbias.errors import UqbiasError

_oracles = threading.local()


class SerialExecutor(Executor):
    """Runs each task at once in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run the task and return its finished future."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


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
    if kind == "serial":
        return SerialExecutor()
    if kind == "thread":
        return ThreadPoolExecutor(workers)
    if kind == "process":
        # Fork copies the locks of OpenMM's and torch's threads in whatever state they are; spawn does not.
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    if kind == "dask":
        return _dask_executor(workers, address)
    raise UqbiasError(f"unknown executor '{kind}'", "valid: dask, process, serial, thread")


def _dask_executor(workers: int, address: str | None) -> Executor:
    try:
        Client = import_module("distributed").Client
    except ImportError:
        raise UqbiasError(
            "executor.kind = 'dask': dask.distributed is not installed", "pip install 'uqbias[distributed]'"
        ) from None
    try:
        client = Client(address) if address else Client(n_workers=workers, threads_per_worker=1)
    except OSError as error:
        raise UqbiasError(f"executor.address = {address}: {error}", "start a scheduler there") from None
    executor: Executor = client.get_executor()
    return executor


def _start_worker() -> None:
    """One thread a process (small models run fastest so), and no orphan when the campaign is killed."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["OPENMM_CPU_THREADS"] = "1"
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


@dataclass(frozen=True)
class OracleSpec:
    """An oracle by name, so that a worker process can build its own.

    Attributes
    ----------
    kind : name in the registry.
    options : arguments.
    """

    kind: str
    options: dict[str, Any] = field(default_factory=dict)


def label_one(spec: OracleSpec, positions: NDArray[Any]) -> tuple[float, NDArray[np.float64]] | str:
    """Label one geometry with this thread's oracle, built at first use.

    Returns
    -------
    tuple or str
        Energy in kJ/mol and forces [N, 3] in kJ/mol/nm, or the reason why the oracle could not label this frame.
    """
    from uqbias.oracles.base import OracleError
    from uqbias.registry import ORACLES

    name = json.dumps([spec.kind, spec.options], sort_keys=True)
    if getattr(_oracles, "name", None) != name:
        _oracles.oracle, _oracles.name = ORACLES.rebuild(spec.kind, spec.options), name
    try:
        label = _oracles.oracle.label(positions)
    except OracleError as error:
        return str(error)
    return label.energy, label.forces


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
    ledger: Ledger,
    round_index: int,
    *,
    in_flight: int = 4,
    progress: Callable[[int, str], None] | None = None,
) -> int:
    """Label frames; each label is in the ledger, on disk, as soon as it arrives.

    Frames whose key has a label, or failed in this round, are not submitted. Only a few are in flight at a time, so
    that a crash loses few unpaid results.

    Parameters
    ----------
    progress : called with (number of frames finished by this step, note).

    Returns
    -------
    int
        Number of frames the oracle failed on, in this call.

    Raises
    ------
    UqbiasError
        If the oracle cannot be built, or a worker process dies.
    """
    seen = ledger.failed(round_index)
    queue: list[LabelRequest] = []
    for request in requests:
        if request.key not in seen and not ledger.has_label(request.key):
            queue.append(request)
        seen.add(request.key)
    tell = progress or (lambda _count, _note: None)
    tell(len(requests) - len(queue), "")
    queue.reverse()
    pending: dict[Future[Any], LabelRequest] = {}
    failures = 0
    try:
        while queue or pending:
            while queue and len(pending) < max(1, in_flight):
                request = queue.pop()
                pending[executor.submit(label_one, spec, request.positions)] = request
            finished = wait(pending, return_when=FIRST_COMPLETED).done
            for future in sorted(finished, key=lambda entry: pending[entry].index):
                request, result = pending.pop(future), future.result()
                common = {"round": round_index, "index": request.index, "key": request.key}
                if isinstance(result, str):
                    failures += 1
                    ledger.append("failure", **common, reason=result)
                    tell(1, f"failed: {result}")
                    continue
                energy, forces = result
                ledger.append(
                    "label", **common, positions=request.positions, energy=energy, forces=forces, info=request.info
                )
                tell(1, "")
    except BrokenProcessPool as error:
        raise UqbiasError(
            f"a labelling process died ({error})", "run again: finished labels are kept; see that memory suffices"
        ) from None
    finally:
        for future in pending:
            future.cancel()
    return failures
