"""Signals that end a campaign: what is finished is stored first, one line is said, and a second signal ends at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

#: Ctrl-C, the end of a job's time, the end of a terminal, and that of the time that the user gave (`end_in`).
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
#: Exit code where the time that the user gave is up.
TIME_IS_UP = 3
#: s; signals nearer than this are one: `timeout` sends each of its own twice.
ECHO = 0.1
SHOW_CURSOR = "\x1b[?25h"

Handler = Callable[[int, Any], None]


#: When the first signal came, and which, under `raise_on_signals`.
_arrived: dict[str, float] = {}


class Interrupted(KeyboardInterrupt):
    """End asked for by a signal.

    Attributes
    ----------
    code : exit code as shells count it, 128 and the number of the signal; `TIME_IS_UP` where no signal came.
    """

    def __init__(self, number: int) -> None:
        self.code = _code(number)
        super().__init__(signal.Signals(number).name)


def exit_code(error: BaseException) -> int | None:
    """Exit code of a program that ends for this; None where no signal is behind it.

    Others' code may turn an `Interrupted` into an exception of its own.
    """
    if isinstance(error, KeyboardInterrupt) and not isinstance(error, Interrupted):
        return 128 + signal.SIGINT
    if isinstance(error, Interrupted):
        return error.code
    return _code(int(_arrived["number"])) if _arrived and not isinstance(error, SystemExit) else None


def _code(number: int) -> int:
    return TIME_IS_UP if number == signal.SIGALRM else 128 + number


def end_in(seconds: float) -> None:
    """Have the program end as by a signal some time before ``seconds`` are over: a tenth of them, at most 2 minutes."""
    signal.setitimer(signal.ITIMER_REAL, seconds - min(0.1 * seconds, 120.0))


def raise_on_signals() -> None:
    """From now on the first signal raises `Interrupted` in the main thread, and the second ends the process."""
    _install(_after_the_first(_raise, _arrived))
    sys.unraisablehook = _raise_again


@contextmanager
def deferred(stop: Callable[[], None]) -> Iterator[list[int]]:
    """Signals within are kept in the list that is yielded, and take effect at the end; a second ends the process.

    Parameters
    ----------
    stop : called when the first arrives.
    """
    kept: list[int] = []

    def keep(number: int, _: Any) -> None:
        kept.append(number)
        stop()

    before = _install(_after_the_first(keep, {}))
    try:
        yield kept
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if kept and before:
            signal.raise_signal(kept[0])


@contextmanager
def blocked() -> Iterator[None]:
    """Threads and processes begun within never get the signals of a terminal."""
    from multiprocessing import resource_tracker

    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    resource_tracker.ensure_running()  # else its start, in the thread that begins a process, would unblock Ctrl-C
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _install(handler: Handler) -> dict[int, Any]:
    """Set a handler where signals are not ignored, as by nohup, and return the handlers before it."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    before: dict[int, Any] = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handler)
    return before


def _after_the_first(handler: Handler, arrived: dict[str, float]) -> Handler:
    def handle(number: int, frame: Any) -> None:
        now = time.monotonic()
        if not arrived:
            arrived.update(at=now, number=number)
            handler(number, frame)
        elif now - arrived["at"] > ECHO:
            if sys.stderr is not None and sys.stderr.isatty():
                os.write(2, SHOW_CURSOR.encode())
            os._exit(128 + number)

    return handle


def _raise(number: int, frame: Any) -> None:
    raise Interrupted(number)


def _raise_again(unraisable: Any) -> None:
    """What is raised in a finaliser or a callback goes no further; a signal must."""
    if not isinstance(unraisable.exc_value, Interrupted):
        sys.__unraisablehook__(unraisable)
        return
    number = int(_arrived["number"])
    _arrived.clear()
    threading.Timer(ECHO, os.kill, (os.getpid(), number)).start()
