"""A process that does calls for the program, so that whatever happens in a call harms nothing else.

It runs in a session of its own: no signal of the terminal reaches it, and it is ended with all that it started.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from uqbias.errors import UqbiasError

#: Files in the folder of a label: the label, and what the calculation printed.
LABEL, OUTPUT = "label.json", "output.txt"
#: s between two looks at whether the program is still there, and still wants an answer.
LOOK = 0.05

#: s; a longer time is none to a timer.
LONGEST = 1e9

_oracles: dict[str, Any] = {}
#: Held while a finished label is written: not even the end of the program stops that.
_storing = threading.Lock()
_working = threading.Event()


class Rejected(Exception):  # noqa: N818 - an answer, not a fault
    """A label that the oracle says it cannot give; ``died`` where the calculation tried to end the process."""

    def __init__(self, reason: str, died: bool) -> None:
        self.died = died
        super().__init__(reason, died)


def main(descriptor: int, parent: int) -> None:
    """Do calls until the program closes the connection: function, arguments, file of output; (done, answer) back."""
    os.set_inheritable(descriptor, False)
    threading.Thread(target=_end_with, args=(parent, descriptor), daemon=True).start()
    faulthandler.enable()
    # Where memory is short this process is ended, not the program.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    connection = Connection(descriptor)
    while True:
        try:
            function, arguments, output = connection.recv()
        except (EOFError, OSError):
            return
        answer: tuple[bool, Any]
        _working.set()
        with _output_to(output):
            try:
                answer = (True, function(*arguments))
            except BaseException as error:
                answer = (False, _portable(error))
        _working.clear()
        try:
            connection.send(answer)
        except OSError:
            return


def is_of(facts: Mapping[str, Any], oracle: str, positions: Any, cell: Any) -> bool:
    """Whether the file of a label is that of an oracle, by its name, and of a geometry."""
    box = None if cell is None else cell.tolist()
    return bool(facts["oracle"] == oracle and facts["positions"] == positions.tolist() and facts.get("cell") == box)


def finished_label(folders: Iterable[Path], name: str, positions: Any, cell: Any) -> dict[str, Any] | None:
    """The label that lies in one of the folders, if an oracle of this name finished this geometry there."""
    for path in folders:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            facts: dict[str, Any] = json.loads((path / LABEL).read_text(encoding="utf-8"))
            if is_of(facts, name, positions, cell):
                return facts
    return None


def label_here(
    name: str,
    positions: Any,
    cell: Any,
    folder: str,
    limits: dict[str, float],
    scratch: str | None = None,
    home: Any = None,
) -> dict[str, Any]:
    """Label one geometry in a folder, and write the label there before it is returned.

    In a campaign no two processes, wherever they are, label the same frame: the second waits, and takes the first's
    label.

    Parameters
    ----------
    name : JSON text of [kind, options] of the oracle.
    positions : [N, 3] nm.
    cell : [3, 3] nm, or None.
    limits : ``timeout`` in s, after which the process ends even if the program is gone, and ``memory`` in bytes.
    scratch : folder in which it is computed; None: in ``folder``.
    home : `uqbias.campaign.home.Home` of the campaign, if there is one.

    Raises
    ------
    Rejected
        If the oracle could not label this frame.
    """
    from uqbias.oracles.base import OracleError, OracleExitError
    from uqbias.registry import ORACLES

    faulthandler.dump_traceback_later(min(limits["timeout"] + 60, LONGEST), exit=True)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        if name not in _oracles:
            _oracles.clear()
            kind, options = json.loads(name)
            _oracles[name] = ORACLES.rebuild(kind, options)
        _limit_memory(limits["memory"])
        oracle, target = _oracles[name], Path(folder)
        frame = target.name.rpartition("_")[0]
        with contextlib.nullcontext() if home is None else home.claim(f"{target.parent.name}/{frame}"):
            if (facts := finished_label(target.parent.glob(f"{frame}_*"), name, positions, cell)) is not None:
                return facts
            with working_in(target, scratch) as place:
                oracle.folder = place
                try:
                    label = oracle.label(positions, cell)
                except OracleError as error:
                    raise Rejected(str(error), isinstance(error, OracleExitError)) from None
            with _storing:
                facts = {
                    "oracle": name,
                    "positions": positions.tolist(),
                    "energy": label.energy,
                    "forces": label.forces.tolist(),
                    "charge": getattr(oracle, "charge", None),
                    "spin": getattr(oracle, "spin", None),
                }
                for key, value in (("cell", cell), ("stress", label.stress)):
                    if value is not None:
                        facts[key] = value.tolist()
                draft = target / f".{LABEL}"
                draft.write_text(json.dumps(facts), encoding="utf-8")
                draft.replace(draft.with_name(LABEL))
            return facts
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)  # the next call may be no label
        faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def working_in(folder: Path, scratch: str | None) -> Iterator[Path]:
    """Work in a folder, or in one below ``scratch`` whose files end up there."""
    home, place = Path.cwd(), folder
    if scratch is not None:
        try:
            parent = Path(os.path.expandvars(scratch)).expanduser()
            parent.mkdir(parents=True, exist_ok=True)
            place = Path(tempfile.mkdtemp(prefix="uqbias-", dir=parent))
        except OSError as error:
            raise UqbiasError(f"scratch = {scratch}: {error}", "name a folder that can be written to") from None
    os.chdir(place)
    try:
        yield place
    finally:
        os.chdir(home)
        if place != folder:
            with contextlib.suppress(OSError, shutil.Error):
                shutil.copytree(place, folder, dirs_exist_ok=True)
            shutil.rmtree(place, ignore_errors=True)


def _limit_memory(limit: float) -> None:
    with contextlib.suppress(ValueError, OSError):
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        soft = int(limit) if hard == resource.RLIM_INFINITY else min(int(limit), hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@contextlib.contextmanager
def _output_to(path: str | None) -> Iterator[None]:
    """Whatever this process and its children print goes to a file; None: where it goes anyway."""
    if path is None:
        yield
        return
    _flush()
    kept = os.dup(1), os.dup(2)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    try:
        yield
    finally:
        _flush()
        for descriptor, old in zip((1, 2), kept, strict=True):
            os.dup2(old, descriptor)
            os.close(old)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    with contextlib.suppress(Exception):
        ctypes.CDLL(None).fflush(None)  # what C and Fortran hold back


def _portable(error: BaseException) -> BaseException:
    """The error, in a form that arrives; where it came from goes with it."""
    import pickle

    if not isinstance(error, Exception):  # it ends no program but this
        return RuntimeError(f"{type(error).__name__}: {error}")
    if not isinstance(error, UqbiasError | Rejected):
        error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _end_with(parent: int, descriptor: int) -> None:
    """End where the program has ended, or has given up the call that is under way."""
    connection = select.poll()
    connection.register(descriptor, 0)  # tells when the other side closes it
    while os.getppid() == parent and not (_working.is_set() and connection.poll(0)):
        time.sleep(LOOK)
    with _storing:
        os.killpg(0, signal.SIGKILL)
