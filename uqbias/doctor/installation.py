"""What is installed, which combinations work here, and whether the forces are the derivatives of the energy.

Each backend is tried in a process of its own (``python -m uqbias.doctor BACKEND``), since some combinations of
versions end the process instead of raising an error.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

# torch before OpenMM, whose plugin for torch links its libraries.
import torch

from uqbias.doctor.plumed_parts import examine_plumed
from uqbias.doctor.row import Row, shortened
from uqbias.errors import UqbiasError
from uqbias.testing.peroxide import peroxide_geometries, peroxide_model
from uqbias.testing.routes import context_of

if TYPE_CHECKING:
    from uqbias.model.model import UncertaintyModel

PACKAGES = (
    "uqbias",
    "torch",
    "openmm",
    "openmmtorch",
    "numpy",
    "scikit-learn",
    "ase",
    "mdtraj",
    "tblite",
    "rdkit",
    "plumed",
)
OPTIONAL = {
    "openmmtorch": "pip install 'uqbias[torchforce]' for the backend torchforce",
    "tblite": "pip install 'uqbias[xtb]' for labels by GFN2-xTB, without a force field",
    "rdkit": "pip install 'uqbias[smiles]' for uqbias new of a SMILES",
    "plumed": "pip install 'uqbias[plumed]' for PLUMED inside OpenMM",
}
#: Largest |F + dE/dx| as a share of the largest force: central differences in float64, and platforms in float32.
DIFFERENCES, PLATFORMS = 1e-5, 1e-3
#: nm
STEP = 5e-6
TIMEOUT = 600.0


def examine(*, quick: bool = False, timeout: float = TIMEOUT) -> Iterator[Row]:
    """Yield row after row as the checks are done.

    Parameters
    ----------
    quick : leave out the runner ``aoti``, whose first use compiles.
    timeout : s, for all checks of one backend.
    """
    yield Row("python", "ok", f"{platform.python_version()} on {platform.platform()}")
    yield from (_package(name) for name in PACKAGES)
    yield from _openmm_platforms()
    yield _compiler()
    yield _cache()
    yield from _stacks()
    yield from examine_plumed()
    from uqbias.md.stack import backend_faults

    for backend, fault in backend_faults().items():
        if fault is None:
            yield from _in_process(backend, quick, timeout)


def healthy(rows: Sequence[Row]) -> bool:
    """Whether a backend gives right forces and nothing failed."""
    works = any(row.status == "ok" and row.what.startswith("forces") for row in rows)
    return works and all(row.status != "failed" for row in rows)


def _package(name: str) -> Row:
    try:
        return Row(name, "ok", version(name))
    except PackageNotFoundError:
        if name in OPTIONAL:
            return Row(name, "absent", "not installed", OPTIONAL[name])
        return Row(name, "failed", "not installed", "pip install uqbias")


def _openmm_platforms() -> Iterator[Row]:
    import openmm

    from uqbias.md.stack import available_platforms

    names = available_platforms()
    yield Row("OpenMM platforms", "ok", ", ".join(names))
    # What did not load is for a GPU whose driver is not here, or says so itself.
    failures = list(openmm.Platform.getPluginLoadFailures())
    if failures:
        missing = sorted({failure.split(": ")[1] for failure in failures if failure.count(": ") > 1})
        reason = f"{len(failures)} not loaded, for want of {', '.join(missing)}" if missing else shortened(*failures)
        yield Row("OpenMM plugins", "absent", reason)


def _compiler() -> Row:
    from uqbias.compile.runners import find_compiler

    compiler = find_compiler()
    if compiler is not None:
        return Row("C++ compiler", "ok", compiler)
    slow = "none found: models run as TorchScript, about 3 times slower"
    return Row("C++ compiler", "limited", slow, "install g++, or set CXX")


def _cache() -> Row:
    from uqbias.compile.cache import default_cache_dir, make_private

    what, directory = "cache of compiled graphs", default_cache_dir()
    try:
        make_private(directory)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        fault = f"{directory} cannot be written ({error.strerror}): every run compiles again"
        return Row(what, "limited", fault, "set UQBIAS_CACHE to a directory that can be written")
    graphs = list(directory.glob("*.pt2"))
    size = sum(path.stat().st_size for path in graphs) / 1e6
    return Row(what, "ok", f"{directory}, {len(graphs)} graphs, {size:.0f} MB")


def _stacks() -> Iterator[Row]:
    """Combinations of versions that are known to fail."""
    from uqbias.md.stack import available_platforms, backend_faults, check_platform, check_torchforce_as_variable

    faults = backend_faults()
    for backend, fault in faults.items():
        if fault is None:
            yield Row(f"backend {backend}", "ok", "can be imported")
        elif backend == "torchforce" and _package("openmmtorch").status == "absent":
            yield Row("backend torchforce", "absent", fault.what, OPTIONAL["openmmtorch"])
        else:
            yield Row(f"backend {backend}", "failed", fault.what, fault.cure)
    if faults["torchforce"] is None:
        try:
            check_torchforce_as_variable()
        except UqbiasError as error:
            yield Row("torchforce as a CV of OpenMM", "limited", error.what, error.cure)
        else:
            yield Row("torchforce as a CV of OpenMM", "ok", "a TorchForce can go into a CustomCVForce")
        if "OpenCL" in available_platforms():
            try:
                check_platform("OpenCL", "torchforce")
            except UqbiasError as error:
                yield Row("torchforce on OpenCL", "limited", error.what, error.cure)


def _in_process(backend: str, quick: bool, timeout: float) -> Iterator[Row]:
    """Rows of ``python -m uqbias.doctor``; a process that died is a failed row."""
    command = [sys.executable, "-m", "uqbias.doctor", backend, *(["--quick"] if quick else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": ""}
    handed: dict[str, Any] = {"env": environment, "stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    try:
        done = subprocess.run(command, timeout=timeout, check=False, **handed)
    except subprocess.TimeoutExpired:
        yield Row(f"forces, {backend}", "failed", f"no answer within {timeout:g} s", "try `uqbias doctor --quick`")
        return
    doing = "loading"
    for line in done.stdout.splitlines():
        if line.startswith("doing "):
            doing = line.removeprefix("doing ")
        elif line.startswith("{"):
            doing = "ending"
            yield Row(**json.loads(line))
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        yield Row(doing, "failed", f"the process was ended by {name}", "use the other backend, see limits in README.md")
    elif done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        yield Row(doing, "failed", last[:200], "use the other backend, or report this")


def check_backend(backend: str, quick: bool) -> None:
    """In the process of one backend: print a line ``doing ...`` before and a JSON row after each check."""
    from uqbias.compile.runners import find_compiler
    from uqbias.md.stack import available_platforms, check_platform

    torch.set_num_threads(1)
    model = peroxide_model()
    runners = ["eager", "torchscript"]
    if not quick and find_compiler() is not None:
        runners.append("aoti")
    reference: Any = None
    for runner in runners:
        what = _begin(f"forces, {backend}, {runner}, Reference")
        reference, error = _differences(_context(model, backend, runner, "Reference", torch.float64))
        _tell(what, error, DIFFERENCES, "from finite differences")
    for name in available_platforms():
        if name == "Reference":
            continue
        try:
            check_platform(name, backend)
        except UqbiasError:
            continue
        what = _begin(f"forces, {backend}, torchscript, {name}")
        try:
            context = _context(model, backend, "torchscript", name, torch.float32)
        except Exception as failure:
            # A platform whose driver or hardware is not usable is not a fault of the installation.
            _hand_over(Row(what, "limited", shortened(failure), f"choose another platform than {name}"))
            continue
        forces = context.getState(forces=True).getForces(asNumpy=True)._value
        _tell(what, abs(forces - reference).max() / abs(reference).max(), PLATFORMS, f"from Reference on {name}")
    if backend == "torchforce":
        what = _begin("forces, torchforce, exported CV")
        _tell(what, _exported(model), 20 * PLATFORMS, "from finite differences (float32)")


def _tell(what: str, error: float, limit: float, against: str) -> None:
    row = Row(what, "ok", f"differ by {error:.1e} {against}")
    if not error <= limit:
        row = Row(what, "failed", f"differ by {error:.1e} {against}", "do not trust results of this combination")
    _hand_over(row)


def _begin(what: str) -> str:
    print(f"doing {what}", flush=True)
    return what


def _hand_over(row: Row) -> None:
    print(json.dumps(row._asdict()), flush=True)


def _context(model: UncertaintyModel, backend: str, runner: str, name: str, dtype: Any) -> Any:
    """A Context of two walkers, potential and bias fused, at a distorted geometry."""
    import numpy as np

    from uqbias.bias.base import BiasSum
    from uqbias.bias.metad import MetaD
    from uqbias.compile.fused import FusedEvaluator
    from uqbias.md.force import make_force

    x = peroxide_geometries(2, seed=3)
    metadynamics = MetaD(height=5.0, sigma=0.5, pace=1)
    with torch.no_grad():
        metadynamics.update(
            1, model(torch.as_tensor(x, dtype=torch.float64)).driver.numpy().astype(np.float64)[:, None] - 0.3
        )
    device = "cuda" if name == "CUDA" and torch.cuda.is_available() else "cpu"
    evaluator = FusedEvaluator(model, BiasSum([metadynamics]), 2, runner=runner, dtype=dtype, device=device)
    return context_of(make_force(evaluator, backend), x, name)


def _differences(context: Any, step: float = STEP) -> tuple[Any, float]:
    """Forces [n, 3] and their largest deviation from central differences of the energy, as a share of the largest."""
    import numpy as np

    state = context.getState(forces=True, positions=True)
    forces, x = (
        np.array(values._value) for values in (state.getForces(asNumpy=True), state.getPositions(asNumpy=True))
    )
    numeric = np.zeros_like(forces)
    for index in np.ndindex(*x.shape):
        for sign in (1, -1):
            moved = x.copy()
            moved[index] += sign * step
            context.setPositions(moved)
            energy = context.getState(energy=True).getPotentialEnergy()._value
            numeric[index] -= sign * energy / (2 * step)
    return forces, float(abs(forces - numeric).max() / abs(numeric).max())


def _exported(model: UncertaintyModel) -> float:
    """Largest deviation of the exported driver's force in a TorchForce from finite differences."""
    from openmmtorch import TorchForce

    from uqbias.model.export import export_torchscript

    with tempfile.TemporaryDirectory(prefix="uqbias-") as folder:
        path = Path(folder) / "driver.pt"
        export_torchscript(model, path, "driver")
        context = context_of(TorchForce(str(path)), peroxide_geometries(1, seed=3), "Reference")
        # Energies are float32 inside: a wide step balances their rounding.
        return _differences(context, 1e-3)[1]
