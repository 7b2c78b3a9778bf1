import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from uqbias.data import Frames, write_frames
from uqbias.units import ANGSTROM

HERE = Path(__file__).parent
RUN = """
import sys
from uqbias.campaign.config import load_campaign
from uqbias.campaign.rounds import run_campaign
run_campaign(load_campaign(sys.argv[1]), sys.argv[2])
"""
CAMPAIGN = """
name: peroxide
seed: 3
system: {structure: structure.pdb, start: start.xyz}
oracle: {kind: ase, calculator: "peroxide_oracle:Peroxide"}
potential: {n_channels: 3, n_radial: 4, l_max: 1, hidden: [8, 4]}
training: {steps: 12, evaluate_every: 4, runner: eager}
cv: {kind: kernel_density, features: {kind: torsions, heavy_only: false}, capacity: 64}
uncertainty: {kind: gmm, n_components: 1}
calibration: {alpha: 0.5}
md: {walkers: 2, steps: 100, pace: 10, observe_every: 10, trajectory_every: 50, runner: eager, backend: pythonforce}
bias: [{kind: metadynamics, pace: 10}, {kind: upper_wall, at: 8.0}]
guards: {bond_low: 0.2, bond_high: 5.0}
harvest:
  {labels_per_round: 5, cv_window: [null, null], bond_low: 0.2, bond_high: 5.0, angle_tolerance: 180.0,
   energy_window: 1e4, clash: 0.01, label_energy_window: 1e5, label_force_limit: 1e7}
stop: {rounds: 2}
executor: {kind: %s, workers: 2}
score: {coordinates: {torsion: [0, 1, 2, 3]}, basins: {trans: {torsion: [90.0, -90.0]}}}
"""


def make_system(folder, executor):
    sys.path.insert(0, str(HERE))
    try:
        from peroxide_oracle import geometry, write_structure
    finally:
        sys.path.remove(str(HERE))
    random = np.random.default_rng(0)
    frames = [geometry(torsion) + random.normal(0, 0.003, (4, 3)) for torsion in random.normal(2.0, 0.6, 24)]
    write_structure(folder / "structure.pdb")
    write_frames(folder / "start.xyz", Frames(np.array([1, 8, 8, 1]), np.array(frames)))
    (folder / "campaign.yaml").write_text(CAMPAIGN % executor)
    return folder / "campaign.yaml"


class Attempt:
    """One process that runs the campaign in a directory; its oracle calls go to a file of their own."""

    def __init__(self, campaign, directory, calls):
        self.directory, self.calls = directory, calls
        path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
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
    return [event for event in map(json.loads, lines) if event["event"] == kind]


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
        if (directory / "summary.json").is_file() and json.loads((directory / "summary.json").read_text())["stopped"]:
            assert label_set(directory) == label_set(reference)
            assert (directory / "dataset.xyz").read_bytes() == (reference / "dataset.xyz").read_bytes()
            finished += 1


def test_three_kills(tmp_path):
    check_kills(tmp_path, "serial", 3)


@pytest.mark.slow
def test_twenty_kills(tmp_path):
    check_kills(tmp_path, "process", 20)
