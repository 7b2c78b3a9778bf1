import json
import os
import re
import resource
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from counting_oracle import CountingOracle, calls
from faulty_calculator import ALL, FAULTS, geometry, remove_folder, spring

from uqbias.campaign import contained
from uqbias.campaign.contained_oracle import ContainedOracle
from uqbias.campaign.executors.local import Local, Processes
from uqbias.campaign.label_requests import LabelRequest, label_key
from uqbias.campaign.labelling import OracleSpec, failure_reasons, label_all, label_one
from uqbias.campaign.ledger import open_ledger
from uqbias.errors import UqbiasError
from uqbias.oracles.base import OracleError
from uqbias.registry import EXECUTORS, ORACLES
from uqbias.units import ANGSTROM, EV, EV_PER_ANGSTROM

KINDS = ["process", "local"]
DASK = pytest.param(
    "dask", marks=[pytest.mark.slow, pytest.mark.skipif(not find_spec("distributed"), reason="no dask.distributed")]
)


def opened(folder):
    return open_ledger(folder, {"seed": 0}, np.array([1, 1]), {})


def requests(positions):
    return [LabelRequest(i, label_key(x, "test"), x, {}) for i, x in enumerate(positions)]


def faulty(folder, **bounds):
    options = {"calculator": "faulty_calculator:Faulty", "numbers": [1, 1]}
    return OracleSpec("ase", options, folder=folder / "labels", **bounds)


#: Places of faults that take little time, and all.
QUICK, ALL_PLACES = [0, 5, 7, 9, 23, 24, 26, *range(len(FAULTS), len(ALL))], list(range(len(ALL)))


@pytest.mark.parametrize(
    ("kind", "places"),
    [
        pytest.param("process", QUICK, id="process, quick"),
        *(pytest.param(kind, ALL_PLACES, id=kind, marks=pytest.mark.slow) for kind in KINDS),
        pytest.param(*DASK.values, ALL_PLACES, id="dask", marks=DASK.marks),
    ],
)
def test_every_fault_costs_its_own_label_and_no_other(tmp_path, monkeypatch, capfd, kind, places):
    assert len(FAULTS) >= 27
    monkeypatch.setattr(contained, "MOST_OUTPUT", 2**24)
    wanted = requests([geometry(i) for i in places])
    with opened(tmp_path) as ledger:
        executor = EXECUTORS.build(kind)
        spec = faulty(tmp_path, timeout=6.0, memory_gb=0.8)
        failures = label_all(executor, spec, wanted, ledger, 0, in_flight=1 if kind == "local" else 2)
        executor.shutdown()
        reasons = {places[event["index"]]: event["reason"] for event in ledger.events("failure")}
        labels = {places[event["index"]]: event for event in ledger.events("label")}
        assert sum(failure_reasons(ledger).values()) == failures
    faults = [place for place in places if place < len(FAULTS)]
    wrong = {place: reasons.get(place) for place in faults if not re.search(FAULTS[place][1], reasons.get(place, ""))}
    assert not wrong
    assert failures == len(faults)
    assert sorted(labels) == places[len(faults) :]
    for place, label in labels.items():
        energy, forces = spring(geometry(place) / ANGSTROM)
        assert label["energy"] == pytest.approx(energy * EV, rel=1e-9)
        np.testing.assert_allclose(label["forces"], forces * EV_PER_ANGSTROM, rtol=1e-9)
    assert capfd.readouterr().out == ""
    kept = {places[int(path.name.split("_")[1])] for path in (tmp_path / "labels").iterdir()}
    removing = {next(place for place in faults if FAULTS[place][0] is remove_folder)} if len(faults) > 20 else set()
    assert kept == set(faults) - removing, "the folders of failures stay, those of labels go"
    if kind != "dask":  # whose workers bound it by the real limit
        sizes = [path.stat().st_size for path in (tmp_path / "labels").rglob("output.txt")]
        assert max(sizes) <= contained.MOST_OUTPUT


def test_files_are_in_the_label_s_folder_and_stay_where_asked(tmp_path):
    chatter = len(ALL) - 1
    with opened(tmp_path) as ledger, Local() as executor:
        label_all(executor, faulty(tmp_path, keep_files=True), requests([geometry(chatter)]), ledger, 0)
    (folder,) = (tmp_path / "labels").iterdir()
    text = (folder / "output.txt").read_text()
    assert "SCF converged" in text
    assert "Fortran" in text
    assert "a warning" in text
    assert json.loads((folder / "label.json").read_text())["positions"] == geometry(chatter).tolist()


def test_a_finished_label_is_taken_from_its_folder_and_only_for_its_geometry(tmp_path, monkeypatch):
    monkeypatch.setenv("COUNTING_CALLS", str(tmp_path / "calls"))
    spec = OracleSpec(CountingOracle.kind, {"scale": 2.0}, folder=tmp_path / "labels")
    x = np.full((2, 3), 0.1)
    first = label_one(spec, x)
    again, other = label_one(spec, x), label_one(spec, x + 1)
    assert first[0] == again[0] == pytest.approx(1.2)
    assert other[0] == pytest.approx(13.2)
    assert calls() == [0.1, 1.1]
    changed = OracleSpec(CountingOracle.kind, {"scale": 3.0}, folder=tmp_path / "labels")
    assert label_one(changed, x)[0] == pytest.approx(1.8)
    for path in (tmp_path / "labels").rglob("label.json"):
        path.write_text('{"oracle": ')
    assert label_one(spec, x)[0] == first[0]
    assert len(calls()) == 4


@pytest.mark.parametrize("kind", [*KINDS, DASK])
def test_each_label_is_stored_before_its_worker_begins_another(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("COUNTING_CALLS", str(tmp_path / "calls"))
    spec = OracleSpec(CountingOracle.kind, {"scale": 1.0}, folder=tmp_path / "labels")
    workers, gaps = 1 if kind == "local" else 2, []
    with opened(tmp_path) as ledger:
        executor = EXECUTORS.build(kind)
        append = ledger.append

        def watched(event, **values):
            append(event, **values)
            gaps.append(len(calls("finished")) - len(ledger.events("label")))

        monkeypatch.setattr(ledger, "append", watched)
        label_all(executor, spec, requests([np.full((2, 3), 0.1 * i) for i in range(12)]), ledger, 0, in_flight=workers)
        executor.shutdown()
        assert len(calls("begun")) == len(calls("finished")) == len(ledger.events("label")) == 12
    assert max(gaps) < workers


def test_an_oracle_that_cannot_be_built_ends_the_campaign(tmp_path):
    spec = OracleSpec("ase", {"calculator": "faulty_calculator:Absent", "numbers": [1, 1]})
    with opened(tmp_path) as ledger, Processes() as executor:
        with pytest.raises(UqbiasError, match="has no 'Absent'"):
            label_all(executor, spec, requests([geometry(0)]), ledger, 0)
        assert not ledger.events("failure")


def test_no_process_stays_when_the_program_is_killed(tmp_path):
    hang = next(i for i, (fault, _) in enumerate(FAULTS) if fault.__name__ == "hang")
    program = (
        f"import sys; sys.path[:0] = {[str(Path(__file__).parents[1] / 'helpers')]!r}\n"
        "from faulty_calculator import geometry\n"
        "from uqbias.campaign.labelling import OracleSpec, label_one\n"
        "spec = OracleSpec('ase', {'calculator': 'faulty_calculator:Faulty', 'numbers': [1, 1]})\n"
        f"label_one(spec, geometry({hang}))\n"
    )
    running = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path)
    children = []
    while not children:
        time.sleep(0.05)
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    time.sleep(1.0)
    running.kill()
    running.wait()
    end = time.monotonic() + 10
    while time.monotonic() < end and any(alive(child) for child in children):
        time.sleep(0.05)
    assert not any(alive(child) for child in children)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_outside_a_campaign_a_fault_costs_its_label_too():
    oracle = ContainedOracle(ORACLES.rebuild("ase", {"calculator": "faulty_calculator:Faulty", "numbers": [1, 1]}))
    with pytest.raises(OracleError, match="exit code 3"):
        oracle.label(geometry(7))
    assert oracle.label(geometry(len(ALL) - 1)).energy == pytest.approx(spring(geometry(49) / ANGSTROM)[0] * EV)


def test_bound_of_memory_ends_with_its_label_and_processes_that_do_not_fit_end(tmp_path, monkeypatch):
    contained.CHILDREN.close()
    before = contained.CHILDREN.call(resource.getrlimit, resource.RLIMIT_DATA)
    spec = faulty(tmp_path, memory_gb=0.8)
    assert not isinstance(label_one(spec, geometry(len(FAULTS))), str)
    assert contained.CHILDREN.call(resource.getrlimit, resource.RLIMIT_DATA) == before
    for number in range(3):
        monkeypatch.setenv("SURROUNDINGS", str(number))
        assert contained.CHILDREN.call(os.getenv, "SURROUNDINGS") == str(number)
    assert len(contained.CHILDREN._idle) == 1
