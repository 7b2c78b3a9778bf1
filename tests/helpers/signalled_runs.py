"""A program that labels, ended again and again by a signal at a random moment; what is lost, paid twice, or printed."""

import json
import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import numpy as np

from uqbias.units import ANGSTROM

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
HELPERS = Path(__file__).parent


def default_signals():
    """Run in a child before its program: what is begun in the background or by nohup inherits ignored signals."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class SignalledRuns:
    """Runs of one command over one directory, until it ends by itself.

    Parameters
    ----------
    command : program and arguments; its oracle is that of `peroxide_oracle`.
    directory : run directory, with ledger and labels.
    folder : for notes of the calls.
    seconds : what a label takes.
    """

    def __init__(self, command, directory, folder, *, seconds, **environment):
        self.command, self.directory, self.finished_file = command, directory, folder / "finished"
        path = os.pathsep.join([str(HELPERS), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.environment = {
            **os.environ,
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": "1",
            "PEROXIDE_FINISHED": str(self.finished_file),
            "PEROXIDE_SECONDS": str(seconds),
            **environment,
        }
        self.lost, self.tracebacks, self.wrong_ends, self.signals = 0, [], [], Counter()
        self.done = False

    def run(self, number, delay):
        """Run the command; send it a signal some time after it took the directory."""
        process = subprocess.Popen(
            self.command,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=default_signals,  # noqa: PLW1509
        )
        lock = self.directory / "ledger.lock"
        while process.poll() is None and not (lock.is_file() and lock.read_text().strip() == str(process.pid)):
            time.sleep(0.01)
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            if number in (signal.SIGINT, signal.SIGHUP):
                os.killpg(process.pid, number)  # as a terminal does
            else:
                process.send_signal(number)
            self.signals[signal.Signals(number).name] += 1
        _, errors = process.communicate(timeout=120)
        if "Traceback" in errors:
            self.tracebacks.append(errors)
        codes = (0, -number) if number == signal.SIGKILL else (0, 128 + number)
        if process.returncode not in codes:
            self.wrong_ends.append((signal.Signals(number).name, process.returncode, errors))
        if number == signal.SIGKILL:
            time.sleep(0.5)  # until processes of labels have noticed
        self.done = process.returncode == 0
        self.lost += len(set(self.finished()) - self.stored())

    def finished(self):
        """Geometries of the calculations that came to their end, each as often as it did."""
        return self.finished_file.read_text().split() if self.finished_file.is_file() else []

    def paid_twice(self):
        """Number of calculations whose geometry had been finished before."""
        return len(self.finished()) - len(set(self.finished()))

    def stored(self):
        """Geometries of the labels on disk: in the ledger, or whole in a folder."""
        path = self.directory / "ledger.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.is_file() else []
        labels = [event for event in map(json.loads, lines) if event["event"] == "label"]
        labels += [json.loads(file.read_text()) for file in self.directory.glob("labels/**/label.json")]
        return {(np.array(label["positions"]) / ANGSTROM).tobytes().hex() for label in labels}
