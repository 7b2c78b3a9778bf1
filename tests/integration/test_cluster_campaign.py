import json
import os
import re
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest
from cluster_marks import PARSL_S_OWN, needs_dask, needs_parsl, needs_slurm
from peroxide_oracle import make_system

COMMAND = "import sys; sys.argv[0] = 'uqbias'; from uqbias.cli import main; sys.exit(main())"


def run(folder, name, *options, **environment):
    """Run the campaign of a folder into one below it."""
    helpers = os.pathsep.join([str(Path(__file__).parents[1] / "helpers"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", COMMAND, "run", folder / "campaign.yaml", "-o", folder / name, "-q", *options],
        env={**os.environ, "PYTHONPATH": helpers, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def campaign(tmp_path):
    file = make_system(tmp_path, "process")
    text = file.read_text().replace("md: {walkers: 2,", "md: {walkers: 2, groups: 2,").replace("rounds: 2", "rounds: 1")
    file.write_text(text)
    return tmp_path


@pytest.mark.slow
@PARSL_S_OWN
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("slurm", marks=needs_slurm),
        pytest.param("parsl", marks=needs_parsl),
        pytest.param("dask", marks=needs_dask),
        "process",
    ],
)
def test_work_done_elsewhere_is_the_same_work(campaign, kind):
    cluster = campaign / "cluster.yaml"
    cluster.write_text("".join(f"{work}: {kind}\n" for work in ("label", "train", "explore")))
    here, there = run(campaign, "here"), run(campaign, "there", "--executors", cluster)
    assert (here.returncode, there.returncode) == (0, 0), here.stderr + there.stderr
    for name in ("dataset.xyz", "round_00/model.uqb", "round_01/model.uqb"):
        assert (campaign / "there" / name).read_bytes() == (campaign / "here" / name).read_bytes(), name
    assert (campaign / "there" / "jobs").is_dir() == (kind in ("slurm", "parsl"))
    assert f"kind: {kind}" in (campaign / "there" / "campaign.yaml").read_text()


@pytest.mark.slow
@PARSL_S_OWN
@needs_slurm
def test_cancelled_trainings_and_explorations_are_done_all_the_same(campaign):
    section = "{kind: slurm, poll: 2, walltime: '0:10:00'}"
    cluster = campaign / "cluster.yaml"
    cluster.write_text(f"label: local\ntrain: {section}\nexplore: {section}\n")
    cancelled, ended = set(), threading.Event()

    def cancel():
        while not ended.wait(0.5):
            for line in said("squeue", "--noheader", "--states=RUNNING", "--format=%i %j").splitlines():
                name = re.search(r"uqbias-\w+-(\w+)\.", line)
                if name and (work := name.group(1)) not in cancelled:
                    said("scancel", line.split()[0])
                    cancelled.add(work)

    disturber = threading.Thread(target=cancel)
    disturber.start()
    there = run(campaign, "there", "--executors", cluster)
    ended.set()
    disturber.join()
    here = run(campaign, "here")
    assert (here.returncode, there.returncode) == (0, 0), here.stderr + there.stderr
    assert cancelled == {"train", "explore"}
    for name in ("dataset.xyz", "round_00/model.uqb", "round_01/model.uqb"):
        assert (campaign / "there" / name).read_bytes() == (campaign / "here" / name).read_bytes(), name


def said(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout


@pytest.mark.slow
def test_a_campaign_ends_before_its_walltime_and_goes_on(campaign):
    noted = {"PEROXIDE_FINISHED": str(campaign / "finished"), "PEROXIDE_SECONDS": "5.0"}
    stopped = run(campaign, "run", "--walltime", "0:00:30", **noted)
    assert stopped.returncode == 3, stopped.stderr
    assert "the time is up (--walltime); every label is kept" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    events = [json.loads(line) for line in (campaign / "run" / "ledger.jsonl").read_text().splitlines()]
    labels = sum(event["event"] == "label" for event in events)
    assert 0 < labels < 24
    assert run(campaign, "run", "--walltime", "600", **{**noted, "PEROXIDE_SECONDS": "0"}).returncode == 0
    finished = (campaign / "finished").read_text().split()
    assert len(finished) == len(set(finished)) == 24 + 5


def test_what_was_one_executor_is_refused_with_the_cure(tmp_path):
    file = make_system(tmp_path, "process")
    text = file.read_text()
    file.write_text(
        text.replace("executors: {label: process, explore: process}", "executor: {kind: thread, workers: 4}")
    )
    done = run(tmp_path, "run")
    assert done.returncode == 2
    now = "{kind: process, jobs: 4}"
    assert f"write `executors: {{label: {now}, explore: {now}}}`" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("label: slrum", "label.kind = 'slrum': unknown kind 'slrum'; did you mean 'slurm'?"),
        ("label: {kind: slurm, walltime: 12h}", "label.walltime = '12h': write a time as h:mm:ss, d-hh:mm:ss or in s"),
        ("labels: local", "labels = 'local': unknown key 'labels'; did you mean 'label'?"),
        ("- local", "holds no mapping but ['local']; compare with `uqbias template --kinds executors`"),
        ("label: {kind: local, jobs: 3}", "label.jobs = 3: unknown key 'jobs'"),
        *([] if find_spec("parsl") else [("label: parsl", "pip install 'uqbias[parsl]'")]),
        *([] if find_spec("distributed") else [("label: dask", "pip install 'uqbias[dask]'")]),
    ],
)
def test_a_file_of_executors_with_a_fault_costs_nothing(tmp_path, text, said):
    make_system(tmp_path, "process")
    (tmp_path / "cluster.yaml").write_text(text)
    done = run(tmp_path, "run", "--executors", tmp_path / "cluster.yaml")
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("run/labels"))
