"""Combinations of torch, OpenMM and openmm-torch that work, and those that fail late or silently."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
from pathlib import Path
from typing import Any

from uqbias.errors import UqbiasError, did_you_mean

BACKENDS = ("torchforce", "pythonforce")
#: openmmtorch 1.5 is compiled against this torch; with another it loads and then fails in every evaluation.
TORCHFORCE_TORCH = (2, 9)


def check_pythonforce() -> None:
    """Raise UqbiasError where OpenMM has no PythonForce."""
    import openmm

    if not hasattr(openmm, "PythonForce"):
        raise UqbiasError(
            f"OpenMM {openmm.version.version} has no PythonForce", "install openmm>=8.5, or use backend 'torchforce'"
        )


def check_torchforce() -> None:
    """Raise UqbiasError where a TorchForce would be missing, fail to import, or fail in every evaluation."""
    import torch

    if importlib.util.find_spec("openmmtorch") is None:
        raise UqbiasError("openmmtorch is not installed", "pip install 'uqbias[torchforce]', or backend 'pythonforce'")
    _refuse_torch(torch.__version__, torch.version.cuda)
    # openmmtorch imports simtk.openmm, whose deprecation warning would also set up logging for the whole process.
    quiet, disabled = logging.NullHandler(), logging.root.manager.disable
    logging.root.addHandler(quiet)
    logging.disable(logging.WARNING)
    try:
        importlib.import_module("openmmtorch")
    except (ImportError, OSError) as error:
        raise UqbiasError(f"openmmtorch does not import ({error})", "use backend 'pythonforce'") from error
    finally:
        logging.disable(disabled)
        logging.root.removeHandler(quiet)
    _load_missing_plugins()


def _load_missing_plugins() -> None:
    """Load what failed when OpenMM was imported before torch, whose CUDA libraries the plugin links."""
    import openmm

    plugins = Path(openmm.version.openmm_library_path) / "plugins"
    for library in sorted(plugins.glob("*OpenMMTorch*")):
        if any(str(library) in failure for failure in openmm.Platform.getPluginLoadFailures()):
            # One that fails again is for a platform whose driver is not here.
            with contextlib.suppress(openmm.OpenMMException):
                openmm.Platform.loadPluginLibrary(str(library))


def _refuse_torch(version: str, cuda: str | None) -> None:
    """Raise for a torch that openmmtorch cannot work with."""
    if tuple(int(part) for part in version.split(".")[:2]) != TORCHFORCE_TORCH:
        raise UqbiasError(
            f"openmmtorch is compiled against torch 2.9 and fails in every evaluation with torch {version}",
            "pip install 'torch==2.9.*', or use backend 'pythonforce'",
        )
    if cuda is None:
        raise UqbiasError(
            f"openmmtorch cannot be imported with the CPU-only torch {version}: it links CUDA libraries",
            "install torch 2.9 from PyPI (not the +cpu build), or use backend 'pythonforce'",
        )


def check_torchforce_as_variable() -> None:
    """Raise UqbiasError where OpenMM cannot copy a TorchForce, as it must for a CustomCVForce or from XML.

    OpenMM 8.6 changed the return type of ``SerializationNode::getStringProperty``, which openmmtorch 1.5 calls when a
    TorchForce is copied: the process dies of a segmentation fault.
    """
    import openmm

    if _version(openmm) >= (8, 6):
        raise UqbiasError(
            f"a TorchForce inside a CustomCVForce kills the process with OpenMM {openmm.version.version}",
            "use backend 'pythonforce', or pip install 'openmm>=8.5,<8.6'",
        )


def check_platform(platform: str, backend: str) -> None:
    """Raise UqbiasError for a platform that is not there, or that kills the process with this backend.

    Parameters
    ----------
    platform : name of an OpenMM platform.
    backend : ``torchforce`` or ``pythonforce``.
    """
    import openmm

    names = available_platforms()
    if platform not in names:
        raise UqbiasError(f"no OpenMM platform '{platform}' on this machine", did_you_mean(platform, names))
    if platform == "OpenCL" and backend == "torchforce" and _version(openmm) >= (8, 5):
        raise UqbiasError(
            f"openmmtorch kills the process on platform OpenCL with OpenMM {openmm.version.version}",
            "choose platform CPU, Reference or CUDA, or backend 'pythonforce'",
        )
    if platform == "CUDA" and backend == "torchforce" and not _has_plugin(openmm, "libOpenMMTorchCUDA.so"):
        raise UqbiasError(
            "openmmtorch has no plugin for platform CUDA here",
            "pip install 'uqbias[torchforce,cuda12]' 'openmmtorch[cuda12]==1.5', or use backend 'pythonforce'",
        )


def available_platforms() -> list[str]:
    """Names of the OpenMM platforms that loaded."""
    import openmm

    return [openmm.Platform.getPlatform(index).getName() for index in range(openmm.Platform.getNumPlatforms())]


def backend_faults() -> dict[str, UqbiasError | None]:
    """Each backend, and why it does not work here (None where it does)."""
    faults: dict[str, UqbiasError | None] = {}
    for name, check in (("pythonforce", check_pythonforce), ("torchforce", check_torchforce)):
        try:
            check()
        except UqbiasError as error:
            faults[name] = error
        else:
            faults[name] = None
    return faults


def choose_backend(backend: str = "auto") -> str:
    """Resolve ``auto`` to the faster backend that works here, and check one that is named.

    Raises
    ------
    UqbiasError
        If the name is unknown, or the backend does not work with the installed versions.
    """
    if backend == "auto":
        try:
            check_pythonforce()
        except UqbiasError:
            check_torchforce()
            return "torchforce"
        return "pythonforce"
    if backend not in BACKENDS:
        raise UqbiasError(f"unknown backend '{backend}'", did_you_mean(backend, ["auto", *BACKENDS]))
    (check_pythonforce if backend == "pythonforce" else check_torchforce)()
    return backend


def _has_plugin(openmm: Any, library: str) -> bool:
    return (Path(openmm.version.openmm_library_path) / "plugins" / library).is_file()


def _version(openmm: Any) -> tuple[int, int]:
    major, minor = openmm.version.version.split(".")[:2]
    return int(major), int(minor)
