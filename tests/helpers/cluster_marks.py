"""Marks of tests that need a cluster; what is missing is said in the summary of the tests."""

import shutil
import subprocess
from importlib.util import find_spec

import pytest


def _slurm_answers():
    if shutil.which("sbatch") is None:
        return False
    return subprocess.run(["sinfo", "--noheader"], capture_output=True, timeout=30, check=False).stdout != b""


PARSL, DASK = find_spec("parsl") is not None, find_spec("distributed") is not None
needs_parsl = pytest.mark.skipif(not PARSL, reason="NOT TESTED: parsl is not installed")
needs_dask = pytest.mark.skipif(not DASK, reason="NOT TESTED: dask.distributed is not installed")
needs_slurm = pytest.mark.skipif(
    not (PARSL and _slurm_answers()), reason="NOT TESTED: no SLURM (sbatch, sinfo) and parsl on this machine"
)
#: Parsl leaves it to the garbage collector to close sockets and files.
PARSL_S_OWN = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <(socket|_io):pytest.PytestUnraisableExceptionWarning"
)
#: An executor of each kind that is not of this program, as a campaign file has it.
ELSEWHERE = [
    pytest.param("{kind: slurm, jobs: 2, poll: 2, walltime: '0:10:00'}", id="slurm", marks=[needs_slurm, PARSL_S_OWN]),
    pytest.param("{kind: parsl, jobs: 2}", id="parsl", marks=[needs_parsl, PARSL_S_OWN]),
    pytest.param("{kind: dask, jobs: 2}", id="dask", marks=needs_dask),
]
