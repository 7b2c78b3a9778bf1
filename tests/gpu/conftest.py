"""The CUDA platform, or a loud skip; a table of step costs at the end of the run.

``UQBIAS_GPU_TESTS_PLATFORM=Reference`` is a dry run of the test code on the CPU, for machines without a GPU.
"""

import os
from pathlib import Path

import openmm
import pytest
import torch

DRY_RUN = os.environ.get("UQBIAS_GPU_TESTS_PLATFORM")
ROWS = pytest.StashKey[list]()


def missing():
    """What keeps these tests from running, or None."""
    if DRY_RUN:
        return None
    platforms = [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]
    if "CUDA" not in platforms:
        return f"OpenMM has no CUDA platform here, only {', '.join(platforms)}"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no GPU"
    return None


def pytest_configure(config):
    config.stash[ROWS] = []


def pytest_collection_modifyitems(items):
    reason = missing()
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.gpu)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def device():
    return "cpu" if DRY_RUN else "cuda"


@pytest.fixture(scope="session")
def make_context():
    """System and integrator to a Context on the platform under test, in mixed precision where it has that."""

    def make(system, integrator):
        platform = openmm.Platform.getPlatformByName(DRY_RUN or "CUDA")
        properties = {"Precision": "mixed"} if platform.getName() == "CUDA" else {}
        return openmm.Context(system, integrator, platform, properties)

    return make


@pytest.fixture
def table(request):
    """Rows (what, walkers, seconds a step) printed when the session ends."""
    return request.config.stash[ROWS]


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash[ROWS]
    if not rows:
        return
    where = DRY_RUN or torch.cuda.get_device_name()
    terminalreporter.section(f"cost of an MD step on {where}")
    terminalreporter.line(f"{'force':36s} {'walkers':>8s} {'us per step':>12s} {'walker-steps/s':>15s}")
    for what, walkers, seconds in rows:
        terminalreporter.line(f"{what:36s} {walkers:8d} {seconds * 1e6:12.0f} {walkers / seconds:15.0f}")
