"""Writing files so that a reader never sees half of one, and reading arrays from files that may be cut."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
import secrets
import stat
import tempfile
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from uqbias.errors import UqbiasError, fault_text

#: Memory in bytes that a file may ask for: so much, and so many times its own size for a part and for its own arrays.
SPARE, TIMES, UNPACKED = 1 << 27, 1 << 11, 1 << 6
#: Bytes; what is longer tells no format.
LONGEST_SUFFIX = 32
#: Names that `atomic_path` writes under.
TEMPORARY = re.compile(r"\..{0,16}\.tmp[0-9a-f]{8}(\..*)?", re.DOTALL)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success fsync it and rename it to ``path``.

    The temporary name keeps the suffix, since many writers choose the format by it. On an exception
    the temporary file is removed and ``path`` keeps its earlier content. A symbolic link stays one: the file that it
    names is written. A file that was there keeps its permissions, a new one has those of the user's umask.

    Raises
    ------
    UqbiasError
        If ``path`` is something else than a file: a directory, a device, a pipe.
    """
    target = _destination(Path(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    # Cut, so that it is no longer than a file system allows wherever the name itself is not.
    suffix = target.suffix if len(os.fsencode(target.suffix)) <= LONGEST_SUFFIX else ""
    temporary = target.with_name(f".{target.stem[:16]}.tmp{secrets.token_hex(4)}{suffix}")
    temporary.touch(exist_ok=False)
    mode = stat.S_IMODE((target if target.exists() else temporary).stat().st_mode)
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(mode)
        temporary.replace(target)
        sync_directory(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def clear_temporaries(*places: Iterable[Path]) -> None:
    """Remove, among files, those that a killed process was writing by `atomic_path`: nobody may be writing them now."""
    for path in (path for place in places for path in place):
        if TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink()


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


def parse_json(text: str | bytes, schema: Any, what: str, cure: str) -> Any:
    """The value that JSON text stands for, checked against a schema: any type that pydantic knows.

    Parameters
    ----------
    what, cure : for the message: where the text stands, and what to do where it is not so.

    Raises
    ------
    UqbiasError
        If it is not JSON, is nested too deep, or does not fit; the message names the key and its value.
    """
    try:
        value = from_json(text)
    except ValueError as error:
        raise UqbiasError(f"{what}: not whole JSON ({error})", cure) from error
    check_json(value, schema, what, cure)
    return value


def check_json(value: Any, schema: Any, what: str, cure: str) -> None:
    """Second part of `parse_json`."""
    try:
        _adapter(schema).validate_python(value, strict=True)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"])) or "content"
        shown = "" if fault["type"] == "missing" else f" = {repr(fault['input'])[:60]}"
        raise UqbiasError(f"{what}: {where}{shown}: {fault_text(fault)}", cure) from error


def read_json(path: Path, schema: Any, what: str, cure: str) -> Any:
    """`parse_json` of a file; ``what`` says what it should be."""
    if not path.is_file():
        raise UqbiasError(f"no such {what}: {path}", cure)
    return parse_json(path.read_bytes(), schema, str(path), cure)


@contextmanager
def content_of(path: str | Path, cure: str, fault: str = "is damaged") -> Iterator[None]:
    """Name the file in whatever goes wrong with its content: parsers and parts fail on nonsense in any way."""
    try:
        yield
    except UqbiasError as error:
        raise UqbiasError(f"{path}: {error.what}", error.cure or cure) from error
    except Exception as error:
        raise UqbiasError(f"{path} {fault} ({' '.join(repr(error).split())[:200]})", cure) from error


@contextmanager
def memory_for(path: Path) -> Iterator[None]:
    """Refuse tensors that ask for more memory than the size of the file explains that they are made for.

    Raises
    ------
    UqbiasError
        Before such a tensor is made.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    left = SPARE + TIMES * path.stat().st_size

    class Bounded(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal left
            names = (argument.name for argument in func._schema.arguments)
            given = dict(zip(names, args, strict=False)) | (kwargs or {})
            asked = math.prod(given["size"]) if isinstance(given.get("size"), list | tuple) else 0
            for sides in (("n", "m"), ("row", "col"), ("end",)):  # eye, triu_indices, arange
                if all(isinstance(given.get(side), int | float) for side in sides):
                    asked = max(asked, math.prod(given[side] for side in sides))
            if 8 * asked > left:
                raise UqbiasError(f"{asked:.3g} numbers in a file of {path.stat().st_size} bytes", "it is damaged")
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and not (func.is_view or func._schema.is_mutable):
                left -= result.numel() * result.element_size()
            return result

    with Bounded():  # type: ignore[no-untyped-call]
        yield


@cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    return TypeAdapter(schema)


def read_array(path: Path, cure: str) -> Any:
    """The array of a ``.npy`` file.

    Raises
    ------
    UqbiasError
        If it is missing, cut short, or of another kind.
    """
    import numpy as np

    with content_of(path, cure, "is not a whole NumPy array (.npy)"), path.open("rb") as stream:
        _check_array(stream, path.name, path.stat().st_size)
        stream.seek(0)
        return np.lib.format.read_array(stream, allow_pickle=False)


def read_arrays(path: Path, what: str, cure: str, only: Collection[str] | None = None) -> dict[str, Any]:
    """All arrays of a ``.npz`` file, by name.

    Parameters
    ----------
    what, cure : for the message: what the file should be, and what to do where it is not.
    only : names of those that are read and checked, the others are None; None for all.

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
    with content_of(path, cure, f"is not a whole {what}"):
        with zipfile.ZipFile(path) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
            if claimed > SPARE + UNPACKED * path.stat().st_size:
                raise UqbiasError(f"it would unpack to {claimed} bytes")
            for entry in archive.infolist():
                if only is None or entry.filename.removesuffix(".npy") in only:
                    with archive.open(entry) as stream:
                        _check_array(stream, entry.filename, entry.file_size)
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] if only is None or name in only else None for name in content.files}


def _check_array(stream: Any, name: str, size: int) -> None:
    """NumPy takes the memory that the header of an array asks for before it looks at what follows."""
    from numpy.lib import format as npy

    version = npy.read_magic(stream)
    shape, _, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(stream)
    if dtype.kind not in "biufUS":
        raise UqbiasError(f"'{name}' holds {dtype} in place of numbers or names")
    if any(side < 0 for side in shape) or math.prod(shape) * dtype.itemsize != size - stream.tell():
        raise UqbiasError(f"'{name}' is shorter or longer than its header says")


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
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a drive that syncs files alone
            raise
    finally:
        os.close(descriptor)


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
