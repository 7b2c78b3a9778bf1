"""Calls in processes of their own: one that hangs, crashes or prints for ever harms nothing but itself."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from uqbias.oracles.shell import last_lines_of

#: s between two looks at a process that works, and s that one may take to end when it is let go.
LOOK, PATIENCE = 0.05, 2.0
#: Bytes that a label may print, and what is kept where it printed more.
MOST_OUTPUT, KEPT_OUTPUT = 2**28, 2**20
PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[3]); from uqbias.campaign.child import main; "
    "main(int(sys.argv[1]), int(sys.argv[2]))"
)


class Died(Exception):  # noqa: N818 - said of a process
    """End of the process that did a call, with the reason."""


class Stopped(Exception):  # noqa: N818
    """Call given up because the program ends."""


class Child:
    """One process, which does one call after another.

    Parameters
    ----------
    surroundings : environment, paths of modules, and working directory, see `_surroundings`.
    """

    def __init__(self, surroundings: tuple[dict[str, str], str, str]) -> None:
        self.surroundings = surroundings
        environment, paths, directory = surroundings
        self.connection, there = multiprocessing.Pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(there.fileno()), str(os.getpid()), paths],
            pass_fds=[there.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=2,
            start_new_session=True,
            env=environment,
            cwd=directory,
        )
        there.close()
        # Also at the end of the program, and where nobody holds this any longer.
        self._end = weakref.finalize(self, _end, self.process, self.connection)

    def call(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        output: Path | None,
        timeout: float | None,
        limit: str = "oracle.timeout",
    ) -> Any:
        """Do a call and return what it returns, or raise what it raises.

        Parameters
        ----------
        output : file for what it prints.
        timeout : s.
        limit : what the timeout is called, for messages.

        Raises
        ------
        Died
            If the process ends, or is ended because it takes too long or prints too much.
        Stopped
            If the program ends meanwhile.
        """
        try:
            self.connection.send((function, arguments, None if output is None else str(output)))
            end = None if timeout is None else time.monotonic() + timeout
            while not self.connection.poll(LOOK):
                if self.process.poll() is not None and not self.connection.poll(0):
                    break  # which `recv` tells, too
                if end is not None and time.monotonic() > end:
                    raise Died(f"no answer within {timeout:g} s ({limit}){last_lines_of(output)}")
                _look(output)
            done, answer = self.connection.recv()
        except (EOFError, ConnectionError):
            raise Died(self._ending()) from None
        if done:
            return answer
        raise answer

    def _ending(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(PATIENCE)
        code = self.process.returncode
        if code is None:
            return "its process closed the connection"
        if code < 0:
            name = signal.Signals(-code).name
            return f"its process was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        return f"its process ended itself with exit code {code}"

    def close(self, *, patient: bool) -> None:
        """End the process and all that it started; ``patient`` lets it do so itself."""
        self.connection.close()
        if patient:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(PATIENCE)
        self._end()


def _end(process: subprocess.Popen[bytes], connection: Any) -> None:
    connection.close()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _look(output: Path | None) -> None:
    """Raise where a call is to be ended."""
    if CHILDREN.stopped:
        raise Stopped
    if output is not None and output.is_file() and output.stat().st_size > MOST_OUTPUT:
        raise Died(f"printed more than {MOST_OUTPUT // 2**20} MB")


def _surroundings(environment: dict[str, str]) -> tuple[dict[str, str], str, str]:
    """Surroundings of this process as they are now, with some variables of the environment beside."""
    paths = json.dumps([str(Path(path).absolute()) for path in sys.path])
    return {**os.environ, **environment}, paths, str(Path.cwd())


class Children:
    """The processes of this program that wait for a call.

    Attributes
    ----------
    stopped : whether all calls are to be given up.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._idle: list[Child] = []
        self._lock = threading.Lock()

    def call(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        output: Path | None = None,
        timeout: float | None = None,
        limit: str = "oracle.timeout",
        environment: dict[str, str] | None = None,
    ) -> Any:
        """Do a call in a process that waits for one, or in a new one; see `Child.call`."""
        surroundings = _surroundings(environment or {})
        with self._lock:
            self._idle = [child for child in self._idle if child.process.poll() is None]
            fitting = (child for child in self._idle if child.surroundings == surroundings)
            idle = next(fitting, None) or next(iter(self._idle), None)
            if idle is not None:
                self._idle.remove(idle)
        if idle is not None and (self.stopped or idle.surroundings != surroundings):
            idle.close(patient=False)
            idle = None
        if self.stopped:
            raise Stopped
        child = idle or Child(surroundings)
        keep = patient = False
        try:
            result = child.call(function, *arguments, output=output, timeout=timeout, limit=limit)
        except Exception as error:
            keep = not (isinstance(error, Died | Stopped) or getattr(error, "died", False))
            patient = isinstance(error, Stopped)  # it may be about to write a finished label
            raise
        else:
            keep = True
            return result
        finally:
            if keep:
                with self._lock:
                    self._idle.append(child)
            else:
                child.close(patient=patient)
                if output is not None and output.is_file() and output.stat().st_size > MOST_OUTPUT:
                    os.truncate(output, KEPT_OUTPUT)

    def stop(self) -> None:
        """Give up all calls."""
        self.stopped = True

    def close(self) -> None:
        """End the processes that wait."""
        with self._lock:
            idle, self._idle = self._idle, []
        for child in idle:
            child.connection.close()
        for child in idle:
            child.close(patient=True)


CHILDREN = Children()
