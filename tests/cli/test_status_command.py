import fcntl
import json
import os
import subprocess
import sys

import pytest
from command_line import call, refused

from uqbias.runs.ledger_lines import NAME, to_line
from uqbias.runs.status import status_of

CAMPAIGN = "name: peroxide\nstop: {rounds: 2, labels: null}\nharvest: {labels_per_round: 5}\n"


def events():
    """What the ledger of two rounds on 24 start frames holds."""
    yield {"event": "campaign", "identity": {}}
    for index, (count, failed) in enumerate([(24, 0), (5, 0), (4, 1)]):
        if index:
            yield {"event": "phase", "round": index, "phase": "md", "wall_s": 60.0}
            yield {"event": "phase", "round": index, "phase": "harvest", "taken": 5, "wall_s": 2.0}
        for place in range(count):
            label = {"positions": [[0.0] * 3], "energy": 1.0, "forces": [[0.0] * 3], "info": {}}
            yield {"event": "label", "round": index, "index": place, "key": f"{index}{place}", **label}
        for place in range(count, count + failed):
            yield {"event": "failure", "round": index, "index": place, "key": f"{index}{place}", "reason": "none"}
        yield {"event": "phase", "round": index, "phase": "label", "wall_s": 10.0, "rejected": 0}
        yield {"event": "phase", "round": index, "phase": "train", "wall_s": 30.0}
        yield {
            "event": "phase",
            "round": index,
            "phase": "score",
            "wall_s": 3.0,
            "entry": {"force_mae_meV_per_A": 50.0},
        }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder, before = tmp_path_factory.mktemp("status"), ""
    with (folder / NAME).open("wb") as stream:
        for event in events():
            line, before = to_line(event, before)
            stream.write(line)
    (folder / "campaign.yaml").write_text(CAMPAIGN)
    (folder / "summary.json").write_text(json.dumps({"stopped": "all 2 rounds are done"}))
    return folder


def part_of(run, folder, phases):
    """The run as it was when so many phases were done, and two labels more where labels come next."""
    folder.mkdir()
    (folder / "campaign.yaml").write_text((run / "campaign.yaml").read_text())
    lines, kept = (run / NAME).read_text().splitlines(True), []
    for place, line in enumerate(lines):
        kept.append(line)
        if json.loads(line)["event"] == "phase":
            phases -= 1
        if phases <= 0:
            kept += [one for one in lines[place + 1 : place + 3] if json.loads(one)["event"] == "label"]
            break
    (folder / NAME).write_text("".join(kept))
    return folder


def test_a_finished_run(run):
    (facts,) = status_of(run).values()
    assert (facts["state"], facts["phase"], facts["left_s"], facts["waits_for"]) == ("finished", None, 0.0, None)
    counts = [(one["round"], one["labelled"], one["failed"]) for one in facts["rounds"]]
    assert counts == [(0, 24, 0), (1, 5, 0), (2, 4, 1)]
    assert facts["labels"] == {"labelled": 33, "failed": 1, "pending": 0, "planned": 34}
    assert facts["used_s"] == 43 + 2 * 105
    done = call("status", run)
    assert done.exit_code == 0, done.output
    assert "peroxide: finished, all 2 rounds are done" in done.stdout
    assert "33 of at most 34, 1 failed" in done.stdout
    assert "50.0" in done.stdout


@pytest.mark.parametrize(
    ("phases", "at", "phase"), [(1, 0, "train"), (3, 1, "md"), (5, 1, "label"), (6, 1, "train"), (8, 2, "md")]
)
def test_where_a_run_is(run, tmp_path, phases, at, phase):
    folder = part_of(run, tmp_path / "part", phases)
    (facts,) = status_of(folder).values()
    assert (facts["state"], facts["round"], facts["phase"]) == ("stopped", at, phase)
    assert "uqbias run" in facts["waits_for"]
    # What was never done has no time yet; a label that is there is not waited for.
    assert facts["left_s"] == (105.0 if at == 2 else None)
    if phase == "label":
        assert facts["labels"]["pending"] == 3
        assert facts["share"] == pytest.approx(2 / 5)


def test_one_that_runs_is_told_by_its_lock(run, tmp_path):
    folder = part_of(run, tmp_path / "part", 3)
    with (folder / "ledger.lock").open("w") as lock:
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        (facts,) = status_of(folder).values()
    assert (facts["state"], facts["pid"]) == ("running", os.getpid())
    assert facts["waits_for"] == "the exploration, round 1"
    assert status_of(folder)[""]["state"] == "stopped"


def test_share_of_md_by_the_time_in_colvar(run, tmp_path):
    folder = part_of(run, tmp_path / "part", 3)
    md = folder / "round_01" / "md"
    md.mkdir(parents=True)
    (md / "run.json").write_text(json.dumps({"steps": 1000, "timestep_fs": 0.5}))
    (md / "COLVAR.0").write_text("#! FIELDS time driver\n 0.0 1.0\n 0.125 1.0\n")
    assert status_of(folder)[""]["share"] == pytest.approx(0.25)
    (md / "COLVAR.0").write_text("#! FIELDS time driver\n")
    assert status_of(folder)[""]["share"] is None


def test_labels_that_are_awaited(run, tmp_path):
    folder = part_of(run, tmp_path / "part", 5)
    (folder / "to_label.xyz").write_text(
        "1\nrequest=r01_0000_ab pbc=F\nH 0 0 0\n1\nrequest=r01_0001_cd pbc=F\nH 0 0 0\n"
    )
    facts = status_of(folder)[""]
    assert facts["state"] == "awaiting labels"
    assert facts["waits_for"].startswith("labels of 2 geometries in ")


def test_a_damaged_ledger_is_told(run, tmp_path):
    folder = part_of(run, tmp_path / "part", 6)
    text = (folder / NAME).read_text().replace('"wall_s": ', '"wall_s": 1', 1)
    (folder / NAME).write_text(text)
    done = call("status", folder)
    assert done.exit_code == 0
    assert "ledger" in done.stdout
    assert "uqbias verify" in done.stdout


def test_json_follow_and_refusals(run, tmp_path):
    assert json.loads(call("status", run, "--json").stdout)["state"] == "finished"
    lines = call("status", run, "--json", "--follow").stdout.splitlines()
    assert [json.loads(line)["state"] for line in lines] == ["finished"]
    assert f"{tmp_path} is no run directory" in refused("status", tmp_path)
    assert "nothing is not there" in refused("status", tmp_path / "nothing")


def test_nothing_heavy_is_imported(run):
    code = "import sys; from uqbias.cli import app\ntry: app(['status', sys.argv[1]])\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'numpy', 'openmm', 'ase'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code, run], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
