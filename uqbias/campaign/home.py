"""The run directory as tasks elsewhere see it: who leads there, and which task is under way."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from uqbias.errors import UqbiasError
from uqbias.registry import named_paths

#: Holds the token of the program that leads; its bytes beyond are what tasks lock.
LEADER = "leader.lock"
#: First of the bytes that are locked.
FIRST = 1024
#: Packages whose version a worker must share.
SHARED = ("uqbias", "torch")


@cache
def shared_version(name: str) -> str:
    """Version of a package, as installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


class Superseded(Exception):  # noqa: N818 - said of a task
    """A task of a program that leads no longer: another took the run directory over."""


@dataclass(frozen=True)
class Home:
    """A run directory and the program that leads there; picklable, so that it travels with each task.

    Attributes
    ----------
    folder : run directory, absolute.
    token : text that no other program writes.
    paths : where the program finds modules.
    versions : of the packages in `SHARED`.
    named : import paths that the campaign file names, which its model files may name too.
    """

    folder: Path
    token: str
    paths: tuple[str, ...] = field(default_factory=lambda: tuple(str(Path(path).absolute()) for path in sys.path))
    versions: tuple[str, ...] = field(default_factory=lambda: tuple(map(shared_version, SHARED)))
    named: frozenset[str] = field(default_factory=lambda: frozenset(named_paths))

    @classmethod
    def take(cls, folder: Path) -> Home:
        """Take the lead in a run directory, whose ledger this program holds."""
        home = cls(folder, f"{platform.node()} {os.getpid()} {uuid.uuid4().hex}")
        descriptor = os.open(folder / LEADER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, home.token.encode(), 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        home.arrive()
        return home

    def arrive(self) -> None:
        """Prepare the process of a worker for a task.

        Raises
        ------
        UqbiasError
            If the worker does not see the run directory, or has other packages.
        Superseded
            If another program leads there now.
        """
        node = platform.node()
        try:
            with self.claim(f"{node} {os.getpid()}"):
                pass
        except OSError as error:
            raise UqbiasError(
                f"node {node} does not see the run directory {self.folder}, or no locks there ({error.strerror})",
                "run in a directory on a drive that all nodes share, mounted with locks",
            ) from None
        if (here := tuple(map(shared_version, SHARED))) != self.versions:
            both = zip(SHARED, here, self.versions, strict=True)
            other = ", ".join(f"{name} {this} there, {that} here" for name, this, that in both if this != that)
            raise UqbiasError(f"the worker on node {node} has other packages: {other}", "give it the same environment")
        sys.path += [path for path in self.paths if path not in sys.path]
        named_paths.update(self.named)

    @contextmanager
    def claim(self, name: str) -> Iterator[None]:
        """Hold a piece of work; where another process does it, wait for that one's end.

        The lock is one byte of `LEADER`, held by this process: the kernel, or the server of a shared drive, releases it
        when the process ends, however it ends.

        Raises
        ------
        Superseded
            If another program leads the campaign.
        """
        place = FIRST + int.from_bytes(hashlib.sha256(name.encode()).digest()[:5], "big")
        descriptor = os.open(self.folder / LEADER, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX, 1, place)
            if (token := os.pread(descriptor, FIRST, 0).decode()) != self.token:
                raise Superseded(f"{self.folder} is led by {token}")
            yield
        finally:
            os.close(descriptor)
