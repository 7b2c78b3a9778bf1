"""The CUDA platform, or a loud skip; a table of step costs at the end of the run.

``UQBIAS_GPU_TESTS_PLATFORM=Reference`` is a dry run of the test code on the CPU, for machines without a GPU.
"""

import importlib.util
import os
from pathlib import Path

import torch  # isort: skip  (before OpenMM, whose plugin for torch links its libraries)

import openmm
import pytest

from uqbias.compile.runners import RUNNERS, find_compiler
from uqbias.errors import UqbiasError
from uqbias.md.stack import BACKENDS, available_platforms, check_platform, choose_backend

DRY_RUN = os.environ.get("UQBIAS_GPU_TESTS_PLATFORM")
PLATFORM = DRY_RUN or "CUDA"
ROWS = pytest.StashKey[list]()
SKIPPED = pytest.StashKey[str]()


def missing():
    """What keeps these tests from running, or None."""
    if DRY_RUN:
        return None
    if "CUDA" not in (platforms := available_platforms()):
        return f"OpenMM {openmm.version.short_version} has no platform CUDA here, only {', '.join(platforms)}"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no GPU"
    return None


def runner_fault(runner):
    """Why a runner cannot be tested here, or None."""
    if runner != "aoti":
        return None
    if find_compiler() is None:
        return "aoti: no C++ compiler"
    if not DRY_RUN:
        from torch.utils.cpp_extension import CUDA_HOME

        if CUDA_HOME is None:
            return "aoti: no CUDA toolkit (headers); install it or set CUDA_HOME"
    return None


def pytest_configure(config):
    config.stash[ROWS] = []


def pytest_collection_modifyitems(config, items):
    reason = missing()
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if reason:
                config.stash[SKIPPED] = reason
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def device():
    return "cpu" if DRY_RUN else "cuda"


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Each backend that works on the platform."""
    try:
        check_platform(PLATFORM, choose_backend(request.param))
    except UqbiasError as error:
        pytest.skip(f"{request.param}: {error}")
    return request.param


@pytest.fixture(params=RUNNERS)
def runner(request):
    """Each runner that can run here."""
    if fault := runner_fault(request.param):
        pytest.skip(fault)
    return request.param


@pytest.fixture(scope="session")
def make_context():
    """System and integrator to a Context on the platform under test, in mixed precision where it has that."""

    def make(system, integrator):
        platform = openmm.Platform.getPlatformByName(PLATFORM)
        properties = {"Precision": "mixed"} if "Precision" in platform.getPropertyNames() else {}
        return openmm.Context(system, integrator, platform, properties)

    return make


@pytest.fixture(scope="session")
def platform():
    return PLATFORM


@pytest.fixture(scope="session")
def step_cost():
    """The module of ``make bench``: its model, its walkers, its clock."""
    path = Path(__file__).parents[1] / "benchmarks" / "step_cost.py"
    spec = importlib.util.spec_from_file_location("step_cost", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def table(request):
    """Rows (what, walkers, seconds a step) printed when the session ends."""
    return request.config.stash[ROWS]


def pytest_terminal_summary(terminalreporter, config):
    if reason := config.stash.get(SKIPPED, None):
        terminalreporter.section("tests/gpu did not run")
        terminalreporter.line(reason)
    if not (rows := config.stash[ROWS]):
        return
    where = f"{PLATFORM} (dry run)" if DRY_RUN else torch.cuda.get_device_name()
    terminalreporter.section(f"cost on {where}, OpenMM {openmm.version.short_version}, torch {torch.__version__}")
    terminalreporter.line(f"{'':46s} {'walkers':>8s} {'us':>10s} {'steps/s':>10s} {'walker-steps/s':>15s}")
    for what, walkers, seconds in rows:
        line = f"{what:46s} {walkers:8d} {seconds * 1e6:10.0f} {1 / seconds:10.0f} {walkers / seconds:15.0f}"
        terminalreporter.line(line)
