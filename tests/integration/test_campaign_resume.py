import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from peroxide_oracle import make_system

from uqbias.campaign.verification import verify
from uqbias.units import ANGSTROM

HELPERS = Path(__file__).parents[1] / "helpers"
RUN = """
import sys
from uqbias.settings.file import load_campaign
from uqbias.campaign.rounds import run_campaign
run_campaign(load_campaign(sys.argv[1]), sys.argv[2])
"""


class Attempt:
    """One process that runs the campaign in a directory; its oracle calls go to a file of their own."""

    def __init__(self, campaign, directory, calls):
        self.directory, self.calls = directory, calls
        path = os.pathsep.join([str(HELPERS), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PEROXIDE_CALLS": str(calls), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(campaign), str(directory)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait(self):
        _, errors = self.process.communicate(timeout=600)
        assert self.process.returncode == 0, errors

    def kill_after(self, delay):
        """Kill -9 some time after the campaign itself began; returns whether it was still running."""
        lock = self.directory / "ledger.lock"
        while self.process.poll() is None:
            if lock.is_file() and lock.read_text().strip() == str(self.process.pid):
                break
            time.sleep(0.01)
        time.sleep(delay)
        running = self.process.poll() is None
        self.process.kill()
        _, errors = self.process.communicate(timeout=60)
        assert running or self.process.returncode == 0, errors
        return running

    def called(self):
        return self.calls.read_text().split() if self.calls.is_file() else []


def events(directory, kind):
    path = directory / "ledger.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []  # what follows the last newline is torn
    # The checksum covers the lines before, and with them how long phases took.
    return [{k: v for k, v in e.items() if k != "sum"} for e in map(json.loads, lines) if e["event"] == kind]


def stored(directory):
    """What the oracle was given for each label in the ledger."""
    return {(np.array(event["positions"]) / ANGSTROM).tobytes().hex() for event in events(directory, "label")}


def label_set(directory):
    return sorted(json.dumps(event, sort_keys=True) for event in events(directory, "label"))


def check_kills(folder, executor, kills):
    campaign = make_system(folder, executor)
    reference = folder / "reference"
    attempt = Attempt(campaign, reference, folder / "reference.calls")
    attempt.wait()
    assert len(attempt.called()) == len(label_set(reference)) == 24 + 2 * 5
    active = sum(event["wall_s"] for event in events(reference, "phase"))

    random = np.random.default_rng(int.from_bytes(os.urandom(4), "big"))
    finished = number = killed = 0
    while killed < kills or not finished:
        directory = folder / f"run_{finished}"
        paid = stored(directory)
        attempt = Attempt(campaign, directory, folder / f"{number}.calls")
        number += 1
        if killed < kills and attempt.kill_after(random.uniform(0, 0.5 * active)):
            killed += 1
        elif attempt.process.poll() is None:
            attempt.wait()
        assert not paid & set(attempt.called()), "a label in the ledger was paid again"
        assert len(attempt.called()) == len(set(attempt.called()))
        assert paid <= stored(directory), "a paid label was lost"
        assert verify(directory).faults == []
        if (directory / "summary.json").is_file() and json.loads((directory / "summary.json").read_text())["stopped"]:
            assert label_set(directory) == label_set(reference)
            assert (directory / "dataset.xyz").read_bytes() == (reference / "dataset.xyz").read_bytes()
            finished += 1


def test_three_kills(tmp_path):
    check_kills(tmp_path, "local", 3)


@pytest.mark.slow
def test_twenty_kills(tmp_path):
    check_kills(tmp_path, "process", 20)
