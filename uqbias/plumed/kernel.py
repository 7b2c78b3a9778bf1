"""Find the PLUMED kernel, the shared library that PyPI's ``plumed`` wrapper loads and does not bring along."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from uqbias.errors import UqbiasError

MAJOR = "2"
LIBRARY = "libplumedKernel.dylib" if sys.platform == "darwin" else "libplumedKernel.so"
CURE = "conda install -c conda-forge plumed, and set PLUMED_KERNEL to its lib/" + LIBRARY
_LIBRARY_PATH = "DYLD_LIBRARY_PATH" if sys.platform == "darwin" else "LD_LIBRARY_PATH"


@dataclass(frozen=True)
class Kernel:
    """An installed PLUMED that loads."""

    #: The shared library.
    path: Path
    #: Such as ``2.10``.
    version: str
    #: Such as ``2.10.0``.
    long_version: str
    #: The command ``plumed`` of the same installation, or None.
    executable: Path | None
    #: Names of the modules that are compiled in; empty where they cannot be told.
    modules: tuple[str, ...]


def find_kernel() -> Kernel:
    """The kernel of ``PLUMED_KERNEL``, else of ``plumed`` on PATH, else of the interpreter's conda prefix.

    Raises
    ------
    UqbiasError
        If there is none, it does not load, or it is not PLUMED 2.
    """
    named = os.environ.get("PLUMED_KERNEL")
    if named:
        if not Path(named).is_file():
            raise UqbiasError(f"PLUMED_KERNEL is '{named}', no such file", f"set it to the path of {LIBRARY}")
        return _examine(Path(named).resolve())
    for path in _candidates():
        if path.is_file():
            return _examine(path.resolve())
    raise UqbiasError("no PLUMED kernel found", CURE)


def make_plumed(kernel: Kernel) -> Any:
    """A ``plumed.Plumed`` of this kernel, not initialised.

    Raises
    ------
    UqbiasError
        If the Python wrapper is not installed or cannot use the kernel.
    """
    try:
        import plumed
    except ImportError as error:
        raise UqbiasError("the Python wrapper of PLUMED is not installed", "pip install 'uqbias[plumed]'") from error
    if not hasattr(plumed, "Plumed"):
        raise UqbiasError(
            f"{getattr(plumed, '__file__', None) or 'a folder named plumed'} hides the Python wrapper of PLUMED",
            "rename it, or start elsewhere",
        )
    try:
        return plumed.Plumed(kernel=str(kernel.path))
    except Exception as error:
        raise UqbiasError(f"the Python wrapper cannot use {kernel.path} ({_one_line(error)})", CURE) from error


def environment(kernel: Path) -> dict[str, str]:
    """Environment variables with which the command ``plumed`` finds its kernel and the plugins find theirs."""
    paths = [str(kernel.parent), *filter(None, [os.environ.get(_LIBRARY_PATH)])]
    return {**os.environ, "PLUMED_KERNEL": str(kernel), _LIBRARY_PATH: os.pathsep.join(paths)}


def _candidates() -> Iterator[Path]:
    command = shutil.which("plumed")
    if command:
        yield Path(command).resolve().parents[1] / "lib" / LIBRARY
        root = _output([command, "--no-mpi", "info", "--root"], dict(os.environ)).strip()
        if root:
            yield Path(root).parent / LIBRARY
    for prefix in (sys.prefix, os.environ.get("CONDA_PREFIX")):
        if prefix:
            yield Path(prefix) / "lib" / LIBRARY


@lru_cache
def _examine(path: Path) -> Kernel:
    """Load the library, which a later use would do as well, and ask for its version."""
    try:
        ctypes.CDLL(str(path))
    except OSError as error:
        raise UqbiasError(f"the PLUMED kernel {path} does not load ({_one_line(error)})", CURE) from error
    executable, configuration = _configuration(path)
    match = re.search(r"^version long (\S+)", configuration, re.MULTILINE)
    long_version = match.group(1) if match else _logged_version(path)
    version = ".".join(long_version.split(".")[:2])
    if version.split(".")[0] != MAJOR:
        raise UqbiasError(
            f"{path} is PLUMED {long_version or 'of unknown version'}", f"PLUMED {MAJOR} is needed: {CURE}"
        )
    modules = tuple(re.findall(r"^module (\S+) on", configuration, re.MULTILINE))
    return Kernel(path, version, long_version, executable, modules)


def _configuration(path: Path) -> tuple[Path | None, str]:
    """The command of the kernel's installation and what its ``config show`` prints."""
    # <prefix>/lib/<kernel>, or one folder deeper as in Debian.
    for executable in (path.parents[1] / "bin" / "plumed", path.parents[min(2, len(path.parents) - 1)] / "bin/plumed"):
        if executable.is_file():
            text = _output([str(executable), "--no-mpi", "config", "show"], environment(path))
            if text:
                return executable, text
    return None, ""


def _logged_version(path: Path) -> str:
    """The version that the kernel writes to its log."""
    plumed = make_plumed(Kernel(path, "", "", None, ()))
    with tempfile.TemporaryDirectory(prefix="uqbias-") as folder, plumed:
        log = Path(folder) / "log"
        plumed.cmd("setNatoms", 0)
        plumed.cmd("setNoVirial")
        plumed.cmd("setLogFile", str(log))
        plumed.cmd("init")
        plumed.finalize()
        match = re.search(r"Version: (\S+)", log.read_text())
    return match.group(1) if match else ""


def _output(command: list[str], env: dict[str, str]) -> str:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=True, env=env, stdin=subprocess.DEVNULL
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
