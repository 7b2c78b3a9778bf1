"""Compile the PLUMED plugin for the PLUMED and the torch of this environment."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from filelock import FileLock

import uqbias
from uqbias.compile.cache import default_cache_dir
from uqbias.compile.runners import find_compiler
from uqbias.errors import UqbiasError
from uqbias.files import atomic_path, write_text
from uqbias.plumed.kernel import Kernel, environment, find_kernel

PLUGIN_NAME = "libuqbias.dylib" if sys.platform == "darwin" else "libuqbias.so"
#: Beside the library: what it was compiled against.
FACTS_NAME = "libuqbias.json"
LOG_NAME = "libuqbias.build.log"
#: The library itself says what it was compiled against, see Uncertainty.cpp.
_MARKER = re.compile(rb"uqbias-plumed-plugin torch=(\S+) plumed=(\S+) end")
_TIMEOUT = 1800.0


def build_plugin(directory: Path, kernel: Kernel | None = None) -> Path:
    """Put the plugin, ``libuqbias.json`` and the build log into ``directory``; return the path of the plugin.

    A build for the same sources, torch and PLUMED is taken from the cache.

    Parameters
    ----------
    directory : created if missing.
    kernel : PLUMED to compile for; `uqbias.plumed.kernel.find_kernel` if None.

    Raises
    ------
    UqbiasError
        If cmake, make, a C++ compiler, the headers of PLUMED or its kernel is missing, or the compilation fails.
    """
    kernel = kernel or find_kernel()
    cached = _cached_directory(kernel)
    for place in (default_cache_dir(), cached):
        place.mkdir(mode=0o755, parents=True, exist_ok=True)
    with FileLock(str(cached) + ".lock"):
        if not (cached / FACTS_NAME).is_file() or not (cached / PLUGIN_NAME).is_file():
            _compile(cached, kernel)
    for name in (LOG_NAME, PLUGIN_NAME, FACTS_NAME):
        with atomic_path(Path(directory) / name) as temporary:
            shutil.copyfile(cached / name, temporary)
    return Path(directory) / PLUGIN_NAME


def plugin_status(path: Path | None = None) -> dict[str, str | bool | None]:
    """What a built plugin was compiled against, and whether that is this environment.

    Parameters
    ----------
    path : the library; if None, the build for this environment in the cache, else the latest build there.

    Returns
    -------
    dict
        ``path`` (None if nothing was built), ``torch`` and ``plumed`` (versions compiled against, None if they cannot
        be told), ``matches``, and ``fault`` (one line, None if there is none).
    """
    import torch

    plugin = Path(path) if path is not None else _latest_build()
    status: dict[str, str | bool | None] = {
        "path": str(plugin) if plugin else None,
        "torch": None,
        "plumed": None,
        "matches": False,
        "fault": None,
    }
    if plugin is None:
        status["fault"] = "the plugin is not built"
        return status
    if not plugin.is_file():
        status["fault"] = f"no such file: {plugin}"
        return status
    versions = _MARKER.search(plugin.read_bytes())
    if versions is None:
        status["fault"] = f"{plugin} is not the plugin of uqbias"
        return status
    status["torch"], status["plumed"] = (version.decode() for version in versions.groups())
    try:
        kernel = find_kernel()
    except UqbiasError as error:
        status["fault"] = error.what
        return status
    if _minor(str(status["torch"])) != _minor(torch.__version__):
        status["fault"] = f"compiled against torch {status['torch']}, this is torch {torch.__version__}"
    elif _minor(str(status["plumed"])) != _minor(kernel.long_version):
        status["fault"] = f"compiled against PLUMED {status['plumed']}, {kernel.path} is {kernel.long_version}"
    elif _facts(plugin).get("sources", _sources_digest()) != _sources_digest():
        status["fault"] = f"compiled from the sources of another uqbias ({_facts(plugin).get('uqbias')})"
    status["matches"] = status["fault"] is None
    return status


def source_directory() -> Path:
    """Folder with the plugin's CMakeLists.txt: in the package, or in the source tree.

    Raises
    ------
    UqbiasError
        If the installation lacks it.
    """
    for directory in (Path(__file__).parent / "plugin", Path(__file__).parents[2] / "plugins" / "plumed"):
        if (directory / "CMakeLists.txt").is_file():
            return directory
    raise UqbiasError("the sources of the plugin are not installed", "pip install --force-reinstall uqbias")


def _compile(target: Path, kernel: Kernel) -> None:
    """Write the plugin, its log and, last, its facts into ``target``."""
    import torch

    command, generator = _tools()
    compiler = find_compiler()
    if compiler is None:
        raise UqbiasError("no C++ compiler found", "install g++, or set CXX")
    sources = source_directory()
    env = environment(kernel.path)
    log = target / LOG_NAME
    with tempfile.TemporaryDirectory(prefix="uqbias-plumed-") as scratch:
        configure = [command, "-S", str(sources), "-B", scratch, *generator, "-DCMAKE_BUILD_TYPE=Release"]
        configure += [
            f"-DCMAKE_CXX_COMPILER={compiler}",
            f"-DPYTHON={sys.executable}",
            f"-DPLUMED_KERNEL={kernel.path}",
        ]
        if kernel.executable is not None:
            configure.append(f"-DPLUMED_EXECUTABLE={kernel.executable}")
        with log.open("w", encoding="utf-8") as stream:
            for step in (configure, [command, "--build", scratch]):
                print("$", *step, file=stream, flush=True)
                try:
                    status = subprocess.run(
                        step,
                        stdout=stream,
                        stderr=subprocess.STDOUT,
                        env=env,
                        stdin=subprocess.DEVNULL,
                        timeout=_TIMEOUT,
                        check=False,
                    ).returncode
                except (OSError, subprocess.SubprocessError) as error:
                    raise UqbiasError(f"the plugin's build stopped ({error})", f"see {log}") from error
                if status != 0:
                    raise UqbiasError(_first_fault(log), f"the whole log is {log}")
        with atomic_path(target / PLUGIN_NAME) as temporary:
            shutil.copyfile(Path(scratch) / PLUGIN_NAME, temporary)
    facts = {
        "uqbias": uqbias.__version__,
        "torch": torch.__version__,
        "plumed": kernel.long_version,
        "kernel": str(kernel.path),
        "compiler": compiler,
        "sources": _sources_digest(),
    }
    write_text(target / FACTS_NAME, json.dumps(facts, indent=2) + "\n")


def _tools() -> tuple[str, list[str]]:
    """Path of cmake, and its options that choose a build tool."""
    # The cmake of `pip install cmake` lies beside the interpreter, which need not be on PATH.
    places = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
    cmake = shutil.which("cmake", path=places)
    if cmake is None:
        raise UqbiasError("no cmake found", "pip install cmake, or conda install -c conda-forge cmake")
    if shutil.which("make", path=places):
        return cmake, ["-G", "Unix Makefiles"]
    ninja = shutil.which("ninja", path=places)
    if ninja is None:
        raise UqbiasError("neither make nor ninja found", "pip install ninja, or install make")
    return cmake, ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]


def _first_fault(log: Path) -> str:
    """One line of a failed build's log that says most."""
    text = log.read_text(encoding="utf-8", errors="replace")
    # cmake wraps its messages and ends them with an empty line.
    if said := re.search(r"^\s*uqbias: ((?:(?!\n\s*\n).)*)", text, re.MULTILINE | re.DOTALL):
        return " ".join(said.group(1).split())
    if "CMake Error" in text:
        return "cmake failed: " + " ".join(text[text.index("CMake Error") :].split())[:200]
    fault = re.search(r"^.*\berror\b.*$", text, re.MULTILINE | re.IGNORECASE)
    return "the plugin does not compile: " + (fault.group(0).strip()[:200] if fault else "no reason given")


def _cached_directory(kernel: Kernel) -> Path:
    """Entry of the cache for this torch, this PLUMED and these sources."""
    import torch

    digest = hashlib.sha256(f"{_sources_digest()} {kernel.path} {kernel.long_version}".encode())
    # The plugin carries the path of torch's libraries.
    digest.update(f"{torch.__version__} {torch.__file__} {find_compiler()}".encode())
    return default_cache_dir() / "plumed" / digest.hexdigest()[:16]


def _latest_build() -> Path | None:
    try:
        fitting = _cached_directory(find_kernel()) / PLUGIN_NAME
        if fitting.is_file():
            return fitting
    except UqbiasError:
        pass
    builds = (default_cache_dir() / "plumed").glob(f"*/{PLUGIN_NAME}")
    return max(builds, key=lambda path: path.stat().st_mtime, default=None)


def _sources_digest() -> str:
    digest = hashlib.sha256()
    directory = source_directory()
    for path in sorted([*directory.glob("*.cpp"), *directory.glob("*.h"), directory / "CMakeLists.txt"]):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _facts(library: Path) -> dict[str, str]:
    try:
        facts: dict[str, str] = json.loads(library.with_name(FACTS_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts


def _minor(version: str) -> list[str]:
    """``["2", "9"]`` of ``2.9.1+cu128``."""
    return re.findall(r"\d+", version)[:2]
