"""Labels of a round, wherever they are computed: each is on disk before it is used."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from uqbias.campaign.child import OUTPUT, Rejected, finished_label, label_here
from uqbias.campaign.contained import CHILDREN, Died, Stopped
from uqbias.campaign.executors.base import LOOK, LostJob, LostLabel, TaskExecutor
from uqbias.campaign.home import Home, Superseded
from uqbias.campaign.interrupts import deferred
from uqbias.campaign.label_requests import LabelRequest, to_label
from uqbias.campaign.ledger import Record
from uqbias.errors import UqbiasError
from uqbias.oracles.base import Label


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
    scratch : folder in which it is computed, with variables such as $TMPDIR; None: in the label's own folder.
    home : run directory; None: labels of no campaign.
    """

    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    timeout: float = 21600.0
    memory_gb: float | None = None
    keep_files: bool = False
    folder: Path | None = None
    name: str = "label"
    environment: dict[str, str] = field(default_factory=dict)
    scratch: str | None = None
    home: Home | None = None

    def folders(self) -> list[Path]:
        """Folders of this label that are there."""
        return sorted(self.folder.glob(f"{self.name}_*")) if self.folder is not None else []

    def tidy(self) -> None:
        """Remove the folders of this label, which is stored, unless they are to be kept."""
        for path in [] if self.keep_files else self.folders():
            shutil.rmtree(path, ignore_errors=True)


def label_one(spec: OracleSpec, positions: NDArray[Any], cell: NDArray[Any] | None = None) -> Label | str:
    """Label one geometry, in a process and a folder of its own.

    A label that was finished when the program was killed lies in its folder, and is taken from there.

    Returns
    -------
    Label or str
        Energy, forces and stress, or the reason why there are none: a `LostLabel` where the process was lost too.

    Raises
    ------
    UqbiasError
        If the oracle cannot be built.
    """
    name = json.dumps([spec.kind, spec.options], sort_keys=True)
    if (facts := finished_label(spec.folders(), name, positions, cell)) is not None:
        return to_label(facts)
    if spec.folder is None:
        with tempfile.TemporaryDirectory(prefix="uqbias-", ignore_cleanup_errors=True) as folder:
            return _label_in(Path(folder), name, spec, positions, cell)
    return _label_in(_fresh(spec.folder, spec.name), name, spec, positions, cell)


def _label_in(
    folder: Path, name: str, spec: OracleSpec, positions: NDArray[Any], cell: NDArray[Any] | None
) -> Label | str:
    memory = 1e9 * spec.memory_gb if spec.memory_gb is not None else 0.8 * _physical_memory()
    try:
        facts = CHILDREN.call(
            label_here,
            name,
            positions,
            cell,
            str(folder.absolute()),
            {"timeout": spec.timeout, "memory": memory},
            spec.scratch,
            spec.home,
            output=folder / OUTPUT,
            timeout=spec.timeout,
            environment=spec.environment,
        )
    except Rejected as error:
        return LostLabel(error.args[0]) if error.died else str(error.args[0])
    except (UqbiasError, Stopped, Superseded):
        raise
    except Died as error:
        return LostLabel(f"{spec.kind} oracle failed: {error}")
    except Exception as error:
        return LostLabel(f"{spec.kind} oracle failed: {type(error).__name__} ({' '.join(str(error).split())})")
    return to_label(facts)


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


def label_all(
    executor: TaskExecutor,
    spec: OracleSpec,
    requests: Sequence[LabelRequest],
    ledger: Record,
    round_index: int,
    *,
    in_flight: int | None = None,
    progress: Callable[[int, str], None] | None = None,
) -> int:
    """Label frames; each is on disk before another is begun in its place, and in the ledger as soon as it arrives.

    Frames whose key has a label, or failed in this round, are not submitted. A label whose process was lost is tried
    once more when all others are done, alone; one whose job was lost is put back, ``executor.retries`` times. After a
    signal nothing new is begun, labels under way are given up, and what is finished is stored.

    Parameters
    ----------
    in_flight : labels at the same time; None: as many as the executor does.
    progress : called with (number of frames finished by this step, note).

    Returns
    -------
    int
        Number of frames the oracle failed on, in this call.

    Raises
    ------
    UqbiasError
        If the oracle cannot be built, or the executor fails.
    """
    return _Labelling(executor, spec, ledger, round_index, progress or (lambda _count, _note: None)).run(
        requests, in_flight or executor.slots + executor.ahead
    )


class _Labelling:
    """Labels of one round under way."""

    def __init__(
        self,
        executor: TaskExecutor,
        spec: OracleSpec,
        ledger: Record,
        round_index: int,
        tell: Callable[[int, str], None],
    ) -> None:
        self.executor, self.ledger, self.round_index, self.tell = executor, ledger, round_index, tell
        self.spec = replace(spec, environment=executor.environment, scratch=executor.scratch)
        self.pending: dict[Future[Any], LabelRequest] = {}
        self.queue: deque[LabelRequest] = deque()
        self.lost: list[LabelRequest] = []
        self.losses: Counter[str] = Counter()
        self.failures = 0

    def run(self, requests: Sequence[LabelRequest], in_flight: int) -> int:
        """Label what has no label yet; the number of failures."""
        seen = self.ledger.failed(self.round_index)
        for request in requests:
            if request.key not in seen and not self.ledger.has_label(request.key):
                self.queue.append(request)
            seen.add(request.key)
        self.tell(len(requests) - len(self.queue), "")
        CHILDREN.stopped = False
        with deferred(CHILDREN.stop) as signals:
            try:
                self._finish(in_flight, signals, last=False)
                self.queue.extend(self.lost)
                self._finish(1, signals, last=True)
            finally:
                # A signal, or a fault: nothing that is finished may be lost.
                CHILDREN.stopped = bool(self.pending)
                if self.executor.near:
                    wait([future for future in self.pending if not future.cancel()])
                # What others finish lies in the label's folder, where the next run takes it from.
                for future in [one for one in self.pending if one.done() and not one.cancelled()]:
                    if future.exception() is None:
                        self._settle(future, last=False)
                CHILDREN.stopped = False
        return self.failures

    def _finish(self, in_flight: int, signals: list[int], *, last: bool) -> None:
        while (self.queue or self.pending) and not signals:
            if note := self.executor.check():
                self.tell(0, note)
            while self.queue and len(self.pending) < in_flight and not any(one.done() for one in self.pending):
                self.ledger.check()
                request = self.queue.popleft()
                spec = replace(self.spec, name=f"frame_{request.index:04d}")
                self.pending[self.executor.submit(label_one, spec, request.positions, request.cell)] = request
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
            if (result := self.executor.loss(error)) is None:
                raise
        common = {"round": self.round_index, "index": request.index, "key": request.key}
        if isinstance(result, LostJob) and self.losses[request.key] < self.executor.retries:
            self.losses[request.key] += 1
            self.queue.append(request)
        elif isinstance(result, LostLabel) and not (last or isinstance(result, LostJob)):
            self.lost.append(request)
        elif isinstance(result, str):
            self.failures += 1
            if isinstance(result, LostLabel):
                result = f"{result}{self.executor.outputs}"
            self.ledger.append("failure", **common, reason=str(result))
            self.tell(1, f"failed: {result}")
        else:
            self.ledger.append_label(self.round_index, request, result)
            self.tell(1, "")
            replace(self.spec, name=f"frame_{request.index:04d}").tidy()
        del self.pending[future]


def failure_reasons(ledger: Record) -> dict[str, int]:
    """How often the oracle failed, by reason, most frequent first."""
    return dict(Counter(str(event["reason"]) for event in ledger.events("failure")).most_common())
