import errno
import os
import signal
import threading
from concurrent.futures import Future
from contextlib import contextmanager

import numpy as np
import pytest
import yaml
from cluster_marks import ELSEWHERE, PARSL_S_OWN, needs_parsl, needs_slurm
from counting_oracle import CountingOracle, calls
from faulty_calculator import spring

from uqbias.campaign.executors.base import LostJob, LostLabel, TaskExecutor, results_of
from uqbias.campaign.executors.local import Processes
from uqbias.campaign.home import LEADER, Home, Superseded
from uqbias.campaign.label_requests import LabelRequest, label_key
from uqbias.campaign.labelling import OracleSpec, label_all, label_one
from uqbias.campaign.ledger import open_ledger
from uqbias.errors import UqbiasError
from uqbias.registry import EXECUTORS
from uqbias.units import ANGSTROM, EV


def opened(folder):
    return open_ledger(folder, {"seed": 0}, np.array([1, 1]), {})


def requests(count):
    frames = [np.array([[0.0, 0, 0], [0.1 + 0.001 * i, 0, 0]]) for i in range(count)]
    return [LabelRequest(i, label_key(x, "test"), x, {}) for i, x in enumerate(frames)]


def faulty(folder, home, calculator="faulty_calculator:KillsItsParent"):
    options = {"calculator": calculator, "numbers": [1, 1]}
    return OracleSpec("ase", options, folder=folder / "labels" / "round_00", home=home)


class Fragile(TaskExecutor):
    """Loses the job of each task as often as a list says."""

    def __init__(self, losses, retries=2, kind=LostJob):
        super().__init__("label", None, slots=2, retries=retries)
        self.losses, self.kind = losses, kind

    def submit(self, fn, /, *args):
        future = Future()
        index = int(args[0].name.removeprefix("frame_")) if isinstance(args[0], OracleSpec) else args[0]
        if self.losses.get(index, 0):
            self.losses[index] -= 1
            future.set_exception(ConnectionError(f"node {index} fell over"))
        else:
            future.set_result(fn(*args))
        return future

    def loss(self, error):
        return self.kind(str(error)) if isinstance(error, ConnectionError) else None


@pytest.fixture
def spec(monkeypatch, tmp_path):
    monkeypatch.setenv("COUNTING_CALLS", str(tmp_path / "calls"))
    return OracleSpec(CountingOracle.kind, {"scale": 2.0}, folder=tmp_path / "labels")


def test_work_of_a_lost_job_is_put_back_and_fails_after_that(tmp_path, spec):
    with opened(tmp_path) as ledger:
        assert label_all(Fragile({1: 2, 3: 3}), spec, requests(6), ledger, 0) == 1
        (failure,) = ledger.events("failure")
        assert (failure["index"], failure["reason"]) == (3, "node 3 fell over")
        assert [event["index"] for event in ledger.events("label")] == [0, 2, 4, 5, 1]
    assert len(calls()) == 5


def test_a_geometry_that_takes_its_worker_along_has_a_second_try_alone(tmp_path, spec):
    with opened(tmp_path) as ledger:
        assert label_all(Fragile({0: 1, 2: 2}, kind=LostLabel), spec, requests(4), ledger, 0) == 1
        assert [event["index"] for event in ledger.events("failure")] == [2]
        assert [event["index"] for event in ledger.events("label")] == [1, 3, 0]


def test_other_tasks_are_done_again_too():
    notes = []
    tell = lambda *note: notes.append(note)  # noqa: E731
    assert sorted(results_of(Fragile({0: 2}), lambda index: 10 * index, [(0,), (1,)], tell)) == [0, 10]
    assert notes == 2 * [(0, "put back: node 0 fell over")]
    with pytest.raises(UqbiasError, match=r"executors\.label: a task was lost 3 times \(node 0 fell over\)"):
        list(results_of(Fragile({0: 3}), lambda index: index, [(0,)]))


def test_no_two_processes_label_one_frame(tmp_path, spec, monkeypatch):
    monkeypatch.setenv("COUNTING_SECONDS", "1.0")
    spec = OracleSpec(spec.kind, spec.options, folder=spec.folder, name="frame_0000", home=Home.take(tmp_path))
    x, answers = np.full((2, 3), 0.1), []
    threads = [threading.Thread(target=lambda: answers.append(label_one(spec, x))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls() == [0.1]
    assert answers[0].energy == answers[1].energy == pytest.approx(1.2)


def test_tasks_of_a_program_that_leads_no_longer_begin_nothing(tmp_path, spec):
    before = Home.take(tmp_path)
    now = Home.take(tmp_path)
    now.arrive()
    with pytest.raises(Superseded):
        before.arrive()
    old = OracleSpec(spec.kind, spec.options, folder=spec.folder, home=before)
    with pytest.raises(Superseded):
        label_one(old, np.full((2, 3), 0.1))
    assert calls() == []


def test_a_worker_that_does_not_fit_is_refused(tmp_path, monkeypatch):
    home = Home.take(tmp_path)
    other = Home(tmp_path, home.token, versions=(home.versions[0], "1.0"))
    with pytest.raises(UqbiasError, match=rf"other packages: torch {home.versions[1]} there, 1\.0 here"):
        other.arrive()
    with monkeypatch.context() as patch:
        patch.setattr("fcntl.lockf", unlockable)
        with pytest.raises(UqbiasError, match=r"no locks there \(No locks available\)"):
            home.arrive()
    (tmp_path / LEADER).unlink()
    with pytest.raises(UqbiasError, match=r"does not see the run directory .*drive that all nodes share"):
        home.arrive()


def unlockable(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def test_labels_in_a_scratch_folder_leave_their_files_in_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("NODE_SCRATCH", str(tmp_path / "scratch"))
    home = Home.take(tmp_path)
    with opened(tmp_path) as ledger, ended(Processes(home=home, jobs=1, scratch="$NODE_SCRATCH/x")) as executor:
        spec = faulty(tmp_path, home, "faulty_calculator:LeavesFiles")
        assert label_all(executor, spec, requests(2), ledger, 0) == 1
    (folder,) = spec.folder.iterdir()
    assert (folder.name, (folder / "log").read_text()) == ("frame_0001_0", str(tmp_path / "scratch" / "x"))
    assert list((tmp_path / "scratch" / "x").iterdir()) == []


@contextmanager
def ended(executor):
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


@pytest.mark.slow
@pytest.mark.parametrize("section", ELSEWHERE)
def test_a_geometry_that_kills_its_worker_costs_its_own_label(tmp_path, section):
    home = Home.take(tmp_path)
    executor = EXECUTORS.build(yaml.safe_load(section), home=home)
    with opened(tmp_path) as ledger, ended(executor):
        assert label_all(executor, faulty(tmp_path, home), requests(8), ledger, 0) == 1
        (failure,) = ledger.events("failure")
        assert failure["index"] == 3
        assert sorted(event["index"] for event in ledger.events("label")) == [0, 1, 2, 4, 5, 6, 7]
        for event in ledger.events("label"):
            x = np.array(event["positions"]) / ANGSTROM
            assert event["energy"] == pytest.approx(spring(x)[0] * EV, rel=1e-9)


@pytest.mark.slow
@PARSL_S_OWN
@needs_slurm
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sbatch": ["--partition=nope"]}, r"invalid partition specified: nope"),
        (
            {"setup": ["true", "cat no_such_file"]},
            r"the setup line `cat no_such_file` failed\); outputs in",
        ),
        ({"python": "/usr/bin/false"}, "no output: do all nodes see the run directory"),
        ({"cores": 4096}, r"no job began to work; squeue: \d+ is PENDING \(PartitionConfig\)"),
        ({"sbatch": ["--begin=now+1hour"], "start_within": 3}, r"within 3 s \(start_within\); squeue: \d+ is PENDING"),
    ],
    ids=["partition", "setup", "python", "cores", "start"],
)
def test_jobs_that_never_begin_to_work_end_the_campaign_with_one_line(tmp_path, options, said):
    home = Home.take(tmp_path)
    executor = EXECUTORS.build({"kind": "slurm", "poll": 2, **options}, home=home)
    with opened(tmp_path) as ledger, ended(executor), pytest.raises(UqbiasError, match=said) as told:
        label_all(executor, faulty(tmp_path, home), requests(2), ledger, 0)
    assert "\n" not in str(told.value)


@needs_parsl
def test_slurm_needs_its_commands(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UqbiasError, match=r"executors\.label\.kind = 'slurm': no `sbatch` on this machine; run where"):
        EXECUTORS.build("slurm", home=Home.take(tmp_path))
    assert os.listdir(tmp_path) == [LEADER]  # noqa: PTH208


@pytest.mark.slow
@PARSL_S_OWN
@needs_parsl
def test_labels_under_way_in_a_lost_job_are_put_back(tmp_path, monkeypatch):
    monkeypatch.setenv("COUNTING_CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("COUNTING_SECONDS", "0.2")
    home = Home.take(tmp_path)
    spec = OracleSpec(CountingOracle.kind, {"scale": 2.0}, folder=tmp_path / "labels" / "round_00", home=home)
    executor = EXECUTORS.build("parsl", home=home)
    killed = []

    def kill(count, note):
        if count and not killed and len(calls("finished")) > 2:
            (pid,) = [int(name) for name in os.listdir("/proc") if name.isdigit() and leads(name, executor.name)]  # noqa: PTH208
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    with opened(tmp_path) as ledger, ended(executor):
        assert label_all(executor, spec, requests(20), ledger, 0, progress=kill) == 0
        assert len(ledger.events("label")) == 20
    assert killed
    assert len(calls("finished")) == 20


def leads(pid, name):
    """Whether a process is the first of a job, whose workers are its children."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123
            words = file.read().split(b"\0")
    except OSError:
        return False
    return b"parsl.executors.high_throughput.process_worker_pool" in words and name.encode() in b" ".join(words)
