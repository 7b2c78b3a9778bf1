"""On-disk cache of compiled graphs, safe against several processes and against damaged files."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import platform
import stat
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
from filelock import FileLock
from torch import Tensor
from torch.fx import GraphModule

from uqbias.files import sha256, write_text

FORMAT = 1
logger = logging.getLogger(__name__)
T = TypeVar("T")


def default_cache_dir() -> Path:
    """`private_part` of ``$UQBIAS_CACHE``, or of ``uqbias`` in the platform's cache directory; not created here."""
    if chosen := os.environ.get("UQBIAS_CACHE"):
        return private_part(Path(chosen).expanduser())
    if sys.platform == "darwin":
        return private_part(Path.home() / "Library" / "Caches" / "uqbias")
    return private_part(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "uqbias")


def graph_key(
    graph_module: GraphModule,
    example_inputs: Sequence[Tensor],
    *,
    dynamic: Mapping[int, int],
    options: Mapping[str, object],
) -> str:
    """Hexadecimal key of everything that the machine code depends on.

    That is: the graph and its constants, the inputs' shapes (dynamic lengths left out), strides, dtypes and devices,
    compiler options, and the versions of torch and of the processor.
    """
    digest = hashlib.sha256()
    digest.update(f"format {FORMAT}\n{graph_module.code}\n".encode())
    for name, constant in sorted({**graph_module.state_dict(), **_attributes(graph_module)}.items()):
        array = constant.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    for index, tensor in enumerate(example_inputs):
        shape = ["*" if dynamic.get(index) == dim else str(size) for dim, size in enumerate(tensor.shape)]
        digest.update(f"{shape} {tensor.stride()} {tensor.dtype} {_device_name(tensor.device)}\n".encode())
    digest.update(f"{sorted(options.items())} torch {torch.__version__} {_processor()}".encode())
    return digest.hexdigest()


def load_or_build(directory: Path, name: str, build: Callable[[Path], None], load: Callable[[Path], T]) -> T:
    """Load the entry ``name``; build it first where it is missing or damaged.

    Parameters
    ----------
    directory : cache directory, created here at the first write. Where it cannot be written, or others can write
        there, the entry is built in a temporary directory and lost at exit.
    name : file name of the entry, unique for its content.
    build : writes the entry to the path given.
    load : reads the entry from the path given. It may raise for a damaged entry, which is then rebuilt once.
    """
    target = directory / name
    if (loaded := _load_valid(target, load)) is not None:
        return loaded
    try:
        make_private(directory)
        lock = FileLock(target.with_name(target.name + ".lock"))
        lock.acquire()
    except OSError as error:
        _say_once(f"cannot use the compilation cache {directory} ({error}); compiling without it")
        with tempfile.TemporaryDirectory(prefix="uqbias-") as scratch:
            build(Path(scratch) / name)
            return load(Path(scratch) / name)
    try:
        # Another process may have built it while this one waited for the lock.
        if (loaded := _load_valid(target, load)) is not None:
            return loaded
        temporary = target.with_name(f".{os.getpid()}.{target.name}")
        try:
            build(temporary)
            temporary.chmod(0o644)
            digest = sha256(temporary)
            _digest_path(target).unlink(missing_ok=True)  # written over, it would keep its permissions
            temporary.replace(target)
            write_text(_digest_path(target), digest + "\n")
        finally:
            temporary.unlink(missing_ok=True)
        return load(target)
    finally:
        lock.release()


def is_cached(directory: Path, name: str) -> bool:
    """Whether a whole entry ``name`` that no other user can have written is in the cache."""
    target = directory / name
    try:
        if not all(map(is_private, (directory, target, _digest_path(target)))):
            return False
        return _digest_path(target).read_text().strip() == sha256(target)
    except OSError:
        return False


def is_private(path: Path) -> bool:
    """Whether only this user and root can write to a path: loading a library runs its code before any check."""
    status = path.stat()
    return status.st_uid in {os.geteuid(), 0} and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def private_part(directory: Path) -> Path:
    """The directory, or where others may write to it a folder of this user in it, if they cannot put away that one."""
    try:
        status = directory.stat()
    except OSError:
        return directory
    safe = status.st_uid in {os.geteuid(), 0} and (status.st_mode & stat.S_ISVTX or not status.st_mode & stat.S_IWOTH)
    return directory if is_private(directory) or not safe else directory / f"uqbias-{os.geteuid()}"


def make_private(directory: Path) -> None:
    """Make a directory that `is_private`; one that is there keeps its permissions.

    Raises
    ------
    PermissionError
        If it is there, and another user's or open to others.
    """
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    if not is_private(directory):
        raise PermissionError(errno.EPERM, "others can write there; name a directory of yours", str(directory))


@cache
def _say_once(warning: str) -> None:
    logger.warning(warning)


def _load_valid(target: Path, load: Callable[[Path], T]) -> T | None:
    if not is_cached(target.parent, target.name):
        return None
    try:
        return load(target)
    except Exception as error:
        logger.warning("rebuilding the cached graph %s (%s)", target, error)
        return None


def _digest_path(target: Path) -> Path:
    return target.with_name(target.name + ".sha256")


def _attributes(graph_module: GraphModule) -> dict[str, Tensor]:
    """Constants that make_fx stores as plain attributes."""
    names = {str(node.target) for node in graph_module.graph.nodes if node.op == "get_attr"}
    return {name: value for name in names if isinstance(value := getattr(graph_module, name, None), Tensor)}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)} {torch.cuda.get_device_capability(device)}"
    return str(device)


@cache
def _processor() -> str:
    """Instruction sets: machine code compiled for one processor may kill the process on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    except OSError:
        flags = ""
    return f"{platform.machine()} {platform.processor()} {torch.backends.cpu.get_cpu_capability()} {flags}"
