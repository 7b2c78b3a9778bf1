"""Writing files so that a reader never sees half of one, and reading arrays from files that may be cut."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from uqbias.errors import UqbiasError

#: Bytes; what is longer tells no format.
LONGEST_SUFFIX = 32


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success fsync it and rename it to ``path``.

    The temporary name keeps the suffix, since many writers choose the format by it. On an exception
    the temporary file is removed and ``path`` keeps its earlier content. A symbolic link stays one: the file that it
    names is written.

    Raises
    ------
    UqbiasError
        If ``path`` is something else than a file: a directory, a device, a pipe.
    """
    target = _destination(Path(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    # Cut, so that it is no longer than a file system allows wherever the name itself is not.
    suffix = target.suffix if len(os.fsencode(target.suffix)) <= LONGEST_SUFFIX else ""
    handle, name = tempfile.mkstemp(prefix=f".{target.stem[:16]}.", suffix=suffix, dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(target)
        sync_directory(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_arrays(path: str | Path, arrays: Mapping[str, Any], *, compressed: bool = False) -> None:
    """Write arrays by name to ``path``, in NumPy's ``.npz`` format, atomically; none may hold Python objects."""
    import numpy as np

    write = np.savez_compressed if compressed else np.savez
    # A stream, since NumPy would add its suffix to a name.
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        write(stream, **dict(arrays))


def read_arrays(path: Path, what: str, cure: str) -> dict[str, Any]:
    """All arrays of a ``.npz`` file, by name.

    Parameters
    ----------
    what, cure : for the message: what the file should be, and what to do where it is not.

    Raises
    ------
    UqbiasError
        If it is missing, cut short, or of another kind.
    """
    import numpy as np

    if not path.is_file():
        raise UqbiasError(f"no such {what}: {path}", cure)
    if not zipfile.is_zipfile(path):  # NumPy would take it for a pickle
        raise UqbiasError(f"{path} is not a whole {what}", cure)
    try:
        # Of an encrypted file zipfile makes a RuntimeError.
        with np.load(path, allow_pickle=False) as content:
            return dict(content)
    except (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise UqbiasError(f"{path} is not a whole {what} ({error})", cure) from error


def check_directory(path: Path) -> None:
    """Try to write where the directory is or would be, and leave nothing there: for before work that costs time.

    Raises
    ------
    UqbiasError
        If it is something else, cannot be made, or cannot be written to.
    """
    _try_to_write(path, path, "give another directory")


def check_file(path: Path) -> None:
    """Try to write where a file is or would be, and leave nothing there.

    Raises
    ------
    UqbiasError
        If it is a directory, a device or a pipe, or its directory cannot be made or written to.
    """
    _try_to_write(path, path.parent, "give another file name")
    target = _destination(path)
    if target != path:
        _try_to_write(path, target.parent, "give another file name")


def _destination(path: Path) -> Path:
    """The file to write for ``path``: itself, or what a symbolic link leads to."""
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    if target.is_dir():
        raise UqbiasError(f"cannot write to {path}: it is a directory", "give the name of a file")
    if target.is_symlink() or (target.exists() and not target.is_file()):
        raise UqbiasError(f"cannot write to {path}: it is not a regular file", "give another file name")
    return target


def _try_to_write(path: Path, directory: Path, cure: str) -> None:
    try:
        path.exists()  # raises for a name that is too long
        nearest = next(place for place in (directory, *directory.parents) if place.exists() or place.is_symlink())
        if not nearest.is_dir():
            raise UqbiasError(f"cannot write to {path}: {nearest} is not a directory", cure)
        # Only an attempt tells: permissions say nothing to root, nor of read-only and virtual file systems.
        with tempfile.TemporaryDirectory(prefix=".uqbias-", dir=nearest):
            pass
    except OSError as error:
        raise UqbiasError(f"cannot write to {path}: {error.strerror}", cure) from error


def sync_directory(path: Path) -> None:
    """Make a rename or a new file in ``path`` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
