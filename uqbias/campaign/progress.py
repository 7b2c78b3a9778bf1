"""Progress of a campaign: what is going on, how far it is, how long it takes."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol, Self, TextIO


class Progress(Protocol):
    """What a campaign tells while it runs."""

    def phase(self, name: str, total: int | None = None) -> None:
        """Begin a piece of work of ``total`` units (None: not known)."""

    def advance(self, n: int = 1, note: str = "") -> None:
        """Report ``n`` more units done, and optionally what was last seen."""

    def message(self, text: str) -> None:
        """Say something that stays on the screen."""


class Announced:
    """Begins a phase of a progress display when the first step is reported.

    What comes before it, such as compiling a model, is a phase of its own.

    Parameters
    ----------
    name, total : name of the phase and its units of work, see `Progress.phase`.

    Attributes
    ----------
    since : `time.perf_counter` when the phase began; before that, when this object was made.
    """

    def __init__(self, progress: Progress, name: str, total: int | None) -> None:
        self.progress, self.name, self.total, self.begun = progress, name, total, False
        self.since = time.perf_counter()

    def __call__(self, count: int, note: str) -> None:
        if not self.begun:
            self.begun, self.since = True, time.perf_counter()
            self.progress.phase(self.name, self.total)
        self.progress.advance(count, note)


class TrainingProgress:
    """Tells a progress display how far a training is, for `uqbias.model.training.train`.

    Parameters
    ----------
    name : name of the phase.
    """

    #: Steps between two reports.
    EVERY = 20

    def __init__(self, progress: Progress, name: str) -> None:
        self.progress, self.name, self.reported = progress, name, 0

    def __call__(self, step: int, steps: int, entry: dict[str, float]) -> None:
        if step == 0:
            self.progress.phase(self.name, steps)
        if step - self.reported >= self.EVERY or step == steps:
            error = entry.get("validation_force_mae")
            note = "" if error is None else f"validation force MAE {error:.1f} meV/Å"
            self.progress.advance(step - self.reported, note)
            self.reported = step


class OfSystem:
    """Tells another progress display of which of several systems it is.

    Parameters
    ----------
    name : name of the system.
    """

    def __init__(self, progress: Progress, name: str) -> None:
        self.progress, self.name = progress, name

    def phase(self, name: str, total: int | None = None) -> None:
        """Begin a piece of work."""
        self.progress.phase(f"{self.name}, {name}", total)

    def advance(self, n: int = 1, note: str = "") -> None:
        """Report units done."""
        self.progress.advance(n, note)

    def message(self, text: str) -> None:
        """Say something that stays."""
        self.progress.message(f"{self.name}: {text}")


class SilentProgress:
    """Says nothing."""

    def phase(self, name: str, total: int | None = None) -> None:
        """Do nothing."""

    def advance(self, n: int = 1, note: str = "") -> None:
        """Do nothing."""

    def message(self, text: str) -> None:
        """Do nothing."""


class PlainProgress:
    """Lines of text, at most one every few seconds: for log files and pipes.

    Parameters
    ----------
    stream : where to write; stderr if None.
    interval : s between two lines of one phase.
    """

    def __init__(self, stream: TextIO | None = None, interval: float = 10.0) -> None:
        self.stream = stream if stream is not None else sys.stderr
        self.interval = interval
        self._name, self._done, self._total = "", 0, 0
        self._begun = self._said = self._first = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._end()

    def phase(self, name: str, total: int | None = None) -> None:
        """Begin a phase; the one before it is ended with its time."""
        self._end()
        self._name, self._done, self._total = name, 0, total or 0
        self._begun = self._said = time.monotonic()
        self._write(f"{name} ...")

    def advance(self, n: int = 1, note: str = "") -> None:
        """Count, and write a line if the last one is old."""
        self._done += n
        now = time.monotonic()
        if now - self._said < self.interval:
            return
        self._said = now
        spent = now - self._begun
        text = f"{self._name}: {self._done}"
        if self._total:
            left = spent * (self._total - self._done) / max(self._done, 1)
            text += (
                f"/{self._total} ({100 * self._done // self._total} %), {spent:.0f} s, about {max(left, 0):.0f} s left"
            )
        self._write(f"{text}{'; ' + note if note else ''}")

    def message(self, text: str) -> None:
        """Write a line."""
        self._write(text)

    def _end(self) -> None:
        if self._name:
            self._write(f"{self._name}: done in {time.monotonic() - self._begun:.1f} s")
        self._name = ""

    def _write(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._first), 60)
        self.stream.write(f"[{minutes:02d}:{seconds:02d}] {text}\n")
        self.stream.flush()


class RichProgress:
    """A live bar: phase, share done, note, time spent and left; finished phases stay as lines."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bar

        self._console = Console(stderr=True)
        self._bar = Bar(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
        )
        self._task: Any = None
        self._begun = time.monotonic()
        self._name = ""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._end()
        with suppress(OSError):  # a terminal that is gone
            self._bar.stop()

    def phase(self, name: str, total: int | None = None) -> None:
        """Begin a phase; the one before it becomes a line with its time."""
        self._end()
        self._name, self._begun = name, time.monotonic()
        self._task = self._bar.add_task(name, total=total, note="")

    def advance(self, n: int = 1, note: str = "") -> None:
        """Move the bar."""
        if self._task is not None:
            self._bar.advance(self._task, n)
            if note:
                self._bar.update(self._task, note=note)

    def message(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, highlight=False)

    def _end(self) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._console.print(f"  {self._name}: {time.monotonic() - self._begun:.1f} s", highlight=False, style="dim")
        self._task = None


def make_progress(quiet: bool = False) -> Any:
    """A context manager that follows `Progress`: a live bar on a terminal, plain lines elsewhere."""
    if quiet:
        return _Quiet()
    return RichProgress() if sys.stderr.isatty() else PlainProgress()


class _Quiet(SilentProgress):
    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass
