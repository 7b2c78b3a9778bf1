"""Executors whose workers are pilot jobs, led by Parsl: each job does one task after another."""

from __future__ import annotations

import getpass
import hashlib
import logging
import math
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge
from typing_extensions import Doc

from uqbias.campaign.executors.base import LostJob, LostLabel, TaskExecutor
from uqbias.campaign.executors.dask import Retries
from uqbias.campaign.executors.local import Scratch, arrived
from uqbias.campaign.home import Home
from uqbias.campaign.interrupts import blocked, deferred
from uqbias.errors import UqbiasError
from uqbias.options import Count, Duration, Positive
from uqbias.registry import import_attribute
from uqbias.units import seconds_of

#: s between two signs of life of a job, and after which one that gives none is lost.
HEARTBEAT, SILENCE = 5, 30
#: Jobs in a row that end before they begin to work, after which the campaign ends.
MOST_FAILURES = 3
#: s that a scheduler may take to answer, and for which one that does not is asked again.
ANSWER, PATIENCE = 30.0, 120.0
#: What a scheduler says that will be back.
AWAY = re.compile("unable to contact|timed out|connection refused|temporarily|try again", re.IGNORECASE)
#: Reasons of SLURM for which a job waits for ever.
NEVER = re.compile(r"\((PartitionConfig|Partition\w*Limit|BadConstraints|\w*NotAllowed|Invalid\w+)\)")
#: Parsl's own command of a worker is looked for on PATH, which setup lines or a path to Python change.
WORKER = "-m parsl.executors.high_throughput.process_worker_pool"
#: The process between program and jobs: no signal of the terminal reaches it, and it ends with the program.
INTERCHANGE = (
    "import ctypes, os, runpy; os.setsid(); ctypes.CDLL(None).prctl(1, 9); "
    "runpy.run_module('parsl.executors.high_throughput.interchange', run_name='__main__')"
)
Jobs = Annotated[Count, Doc("most jobs at a time")]
Tasks = Annotated[Count, Doc("tasks at the same time in one job")]
Cores = Annotated[Count, Doc("cores of a task, and its threads")]
Setup = Annotated[
    Sequence[str], Doc("shell lines before the work of a job, such as `module load orca`; one that fails ends the job")
]
Python = Annotated[str | None, Doc("Python of the jobs, as a shell finds it after the setup lines; null: this one")]
Start = Annotated[
    Duration | None,
    Doc("time (h:mm:ss, d-hh:mm:ss or s) within which a job must start to work; null: as long as the queue takes"),
]


class _Pilots(TaskExecutor):
    """Tasks in pilot jobs of Parsl.

    Raises
    ------
    UqbiasError
        If Parsl is not installed.
    """

    def __init__(
        self,
        work: str,
        home: Home | None,
        slots: int,
        scratch: str | None,
        retries: int,
        start_within: float | None,
        poll: float = 30.0,
    ) -> None:
        super().__init__(work, home, slots, scratch, retries)
        if home is None:
            raise ValueError("jobs need a run directory")
        try:
            import_attribute("parsl:Config")
        except UqbiasError as error:
            raise UqbiasError(f"executors.{work}: {error.what}", "pip install 'uqbias[parsl]'") from None
        self.ahead = max(1, slots // 4)
        self.start_within, self.poll = seconds_of(start_within), poll
        self._waited = self._looked = self._asked = time.monotonic()
        self._pilots: Any = None
        self._log: logging.FileHandler | None = None

    def _start(self, **options: Any) -> None:
        """Start Parsl with one executor of pilot jobs."""
        import parsl
        from parsl.executors import HighThroughputExecutor
        from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD

        python = options.pop("python") or shlex.quote(sys.executable)
        pilots = HighThroughputExecutor(
            label=self.name,
            launch_cmd=DEFAULT_LAUNCH_CMD.replace("process_worker_pool.py", f"{python} {WORKER}", 1),
            interchange_launch_cmd=[sys.executable, "-c", INTERCHANGE],
            heartbeat_period=HEARTBEAT,
            heartbeat_threshold=SILENCE,
            block_error_handler=self._look,
            **options,
        )
        # Its strategy htex_auto_scale ends jobs that still wait to begin.
        config = {"max_idletime": 60.0, "strategy": "simple", "strategy_period": 1}
        self._load(parsl.Config(executors=[pilots], run_dir=str(self.folder), initialize_logging=False, **config))
        self._pilots = pilots
        # Parsl's own log says every detail, and is never closed.
        self._log = logging.FileHandler(Path(self._kernel.run_dir) / "parsl.log")
        logging.getLogger("parsl").addHandler(self._log)

    def _load(self, config: Any) -> None:
        from parsl import DataFlowKernel
        from parsl.concurrent import ParslPoolExecutor

        # Half of it begun would stay behind; and its threads and processes leave signals to this program.
        with deferred(lambda: None), blocked():
            self._kernel = DataFlowKernel(config)
            self._pool = ParslPoolExecutor(dfk=self._kernel, executors=[one.label for one in config.executors])

    @property
    def name(self) -> str:
        """Part of the names of all jobs of this run directory and kind of work, and of no others."""
        assert self.home is not None
        return f"uqbias-{hashlib.sha256(str(self.home.folder).encode()).hexdigest()[:10]}-{self.work}"

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Begin a task."""
        future: Future[Any] = self._pool.submit(arrived, self.home, partial(fn, *args, **kwargs))
        return future

    def check(self) -> str:
        """See that Parsl runs, and that a job has begun to work in time; what the scheduler says of those that wait."""
        now = time.monotonic()
        if self._pilots is None or now < self._looked + 1:
            return ""
        self._looked = now
        if self._pilots.bad_state_is_set:
            raise self._fault(self._pilots.executor_exception)
        if self._pilots.interchange_proc.poll() is not None:
            raise UqbiasError(f"executors.{self.work}: Parsl's interchange ended{self.outputs}", "run again")
        late = self.start_within is not None and now > self._waited + self.start_within
        if not late and now < self._asked + self.poll:
            return ""
        self._asked = now
        if self._pilots.connected_managers():
            self._waited = now
            return ""
        waiting = self._waiting()
        if late or NEVER.search(waiting):
            limit = f" within {self.start_within:g} s (start_within)" if late else ""
            fault = f"executors.{self.work}: no job began to work{limit}{waiting}{self.outputs}"
            raise UqbiasError(fault, "wait longer, or ask for less" if late else "ask for what the partition has")
        return f"no job works{waiting}"

    def _waiting(self) -> str:
        """What the scheduler says of jobs that wait."""
        return ""

    def loss(self, error: Exception) -> LostLabel | None:
        """Lost jobs and workers."""
        kind = type(error).__name__
        if kind == "ManagerLost":
            return LostJob(f"its job on {error.hostname} was lost")  # type: ignore[attr-defined]
        if kind == "WorkerLost":
            return LostLabel(f"its worker on {error.hostname} died")  # type: ignore[attr-defined]
        if kind == "BadStateException" and self._pilots is not None:
            raise self._fault(self._pilots.executor_exception) from None
        return None

    def _fault(self, error: Any) -> UqbiasError:
        if isinstance(error, UqbiasError):
            return error
        same = "give the jobs the same environment (python, setup)" if type(error).__name__ == "VersionMismatch" else ""
        return UqbiasError(f"executors.{self.work}: {' '.join(str(error).split())}{self.outputs}", same or "run again")

    def _look(self, pilots: Any, status: dict[str, Any]) -> None:
        """Give up where one job after another ended before it began to work; called by Parsl."""
        ended = [one for _, one in sorted(status.items(), key=lambda item: int(item[0])) if one.terminal]
        ended = [one for one in ended if one.state.name != "SCALED_IN" and not AWAY.search(one.message or "")]
        last = ended[-MOST_FAILURES:]
        if len(last) < MOST_FAILURES or not all(one.state.name in ("FAILED", "MISSING") for one in last):
            return
        refused = last[-1].message if last[-1].state.name == "FAILED" else ""
        text = last[-1].stderr_summary or refused or "no output: do all nodes see the run directory?"
        lines = [line.strip() for line in text.partition("stderr=")[2].splitlines() or text.splitlines()]
        said = " | ".join([line for line in lines if line][-3:])
        assert self.home is not None
        if "No such file" in text and str(self.home.folder) in text:
            said = f"a node does not see {self.home.folder}, which must lie on a shared drive: {said}"
        fault = f"executors.{self.work}: {MOST_FAILURES} jobs in a row ended before they began to work ({said})"
        cure = "mend what it says, in the sbatch or setup lines or in the environment, and run again"
        pilots.set_bad_state_and_fail_all(UqbiasError(f"{fault}{self.outputs}", cure))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the jobs."""

        def clean() -> None:
            with suppress(Exception):
                self._kernel.cleanup()

        cleaning = threading.Thread(target=clean, daemon=True)
        cleaning.start()
        cleaning.join(ANSWER)  # an interchange that died answers nothing
        if self._log is not None:
            logging.getLogger("parsl").removeHandler(self._log)
            self._log.close()


class Parsl(_Pilots):
    """Runs tasks in workers of Parsl: on this machine, or wherever a configuration of the user's says."""

    def __init__(
        self,
        work: str = "label",
        home: Home | None = None,
        *,
        config: Annotated[
            str | None,
            Doc("module:function that returns a parsl.Config, for any scheduler; null: workers on this machine"),
        ] = None,
        jobs: Annotated[Count, Doc("tasks at the same time; on this machine its workers")] = 2,
        cores: Cores = 1,
        setup: Setup = (),
        scratch: Scratch = None,
        start_within: Start = None,
        retries: Retries = 5,
    ) -> None:
        super().__init__(work, home, jobs, scratch, retries, start_within)
        if config is not None:
            self._load(import_attribute(config)())
            return
        from parsl.providers import LocalProvider

        provider = type("Here", (LocalProvider,), {"status_polling_interval": 2})
        self._start(
            provider=provider(init_blocks=0, max_blocks=1, worker_init=_worker_init(setup, cores)),
            python=None,
            max_workers_per_node=jobs,
            cores_per_worker=1e-3,  # that others work on this machine, too, is for its user to know
            address="127.0.0.1",
        )


class Slurm(_Pilots):
    """Runs tasks in jobs of SLURM, each of which does one after another until its walltime nears."""

    def __init__(
        self,
        work: str = "label",
        home: Home | None = None,
        longest: float = 3600.0,
        *,
        jobs: Jobs = 1,
        tasks: Tasks = 1,
        cores: Cores = 1,
        gpus: Annotated[int, Ge(0), Doc("GPUs of a task")] = 0,
        memory_gb: Annotated[Positive | None, Doc("GB of a job; null: what the partition gives")] = None,
        walltime: Annotated[
            Duration, Ge(60), Doc("time limit of a job: h:mm:ss, d-hh:mm:ss or s; work goes on in the next")
        ] = 3600.0,
        sbatch: Annotated[Sequence[str], Doc("further #SBATCH lines: [--partition=main, --account=chem]")] = (),
        setup: Setup = (),
        python: Python = None,
        scratch: Scratch = None,
        address: Annotated[str | None, Doc("name or address of this machine for the nodes; null: all it has")] = None,
        start_within: Start = None,
        poll: Annotated[Positive, Doc("s between two looks into the queue")] = 30.0,
        retries: Retries = 5,
    ) -> None:
        super().__init__(work, home, jobs * tasks, scratch, retries, start_within, poll)
        if shutil.which("sbatch") is None:
            raise UqbiasError(
                f"executors.{work}.kind = 'slurm': no `sbatch` on this machine",
                "run where jobs are submitted, such as a login node, or take kind: process",
            )
        self._cancel(PATIENCE)  # jobs of a program that was killed
        from parsl.providers import SlurmProvider

        walltime = seconds_of(walltime)
        lines = ["--no-requeue", *([f"--mem={math.ceil(1024 * memory_gb)}M"] if memory_gb is not None else [])]
        lines += [line.removeprefix("#SBATCH").strip() for line in sbatch]
        provider = type("Queue", (SlurmProvider,), {"status_polling_interval": poll})
        devices = [",".join(str(gpus * task + one) for one in range(gpus)) for task in range(tasks)]
        self._start(
            provider=provider(
                exclusive=False,
                cores_per_node=cores * tasks,
                gpus_per_node=gpus * tasks or None,
                init_blocks=0,
                max_blocks=jobs,
                walltime=f"{int(walltime // 3600):02d}:{math.ceil(walltime % 3600 / 60):02d}:00",
                scheduler_options="\n".join(f"#SBATCH {line}" for line in lines),
                worker_init=_worker_init(setup, cores),
                cmd_timeout=int(ANSWER),
            ),
            python=python,
            address=address,
            cores_per_worker=float(cores),
            max_workers_per_node=tasks,
            # A job begins no label that it could not finish, but uses half of its time however long labels are.
            drain_period=int(max(walltime - longest, walltime / 2)),
            available_accelerators=devices if gpus and tasks > 1 else [],
        )

    def _cancel(self, patience: float) -> None:
        """End all jobs of this run directory and kind of work."""
        end = time.monotonic() + patience
        while True:
            try:
                listed = _said_by("squeue", "--noheader", f"--user={getpass.getuser()}", "--format=%i %j").splitlines()
                if jobs := [line.split()[0] for line in listed if f"{self.name}." in line]:
                    _said_by("scancel", *jobs)
            except UqbiasError:
                if time.monotonic() > end:
                    raise
                time.sleep(2)
            else:
                return

    def _waiting(self) -> str:
        with suppress(UqbiasError):
            format_ = "--format=%j %i is %T (%r)"
            listed = _said_by("squeue", "--noheader", f"--user={getpass.getuser()}", format_).splitlines()
            jobs = [line.partition(" ")[2] for line in listed if f"{self.name}." in line]
            return f"; squeue: {', '.join(jobs[:3])}" if jobs else "; squeue lists none"
        return ""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the jobs, those that Parsl has given up on too."""
        super().shutdown(wait, cancel_futures=cancel_futures)
        with suppress(UqbiasError):  # jobs that nobody speaks to end themselves
            self._cancel(0)


def _worker_init(setup: Sequence[str], cores: int) -> str:
    """Shell lines of a job before its workers start."""
    trap = """trap 'echo "the setup line \\`$BASH_COMMAND\\` failed" >&2' ERR; set -e"""
    lines = [trap, *setup, "set +e; trap - ERR"] if setup else []
    return "\n".join([*lines, f"export OMP_NUM_THREADS={cores} OPENMM_CPU_THREADS={cores}"])


def _said_by(*command: str) -> str:
    """Output of a command of SLURM."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UqbiasError(f"`{command[0]}` does not answer ({error})", "wait for the scheduler") from None
    if result.returncode:
        said = " ".join(result.stderr.split())
        raise UqbiasError(f"`{command[0]}` says: {said}", "wait for the scheduler, and run again")
    return result.stdout
