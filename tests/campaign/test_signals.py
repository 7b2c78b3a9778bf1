import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from signalled_runs import SIGNALS, SignalledRuns, default_signals

from uqbias.campaign import interrupts

HELPERS = Path(__file__).parents[1] / "helpers"
#: Labels as a campaign does, and nothing else, so that a run takes a second.
PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from molecules import PEROXIDE, peroxide
from uqbias.campaign.label_requests import LabelRequest, label_key
from uqbias.campaign.labelling import OracleSpec, label_all
from uqbias.campaign.interrupts import exit_code, raise_on_signals
from uqbias.campaign.ledger import open_ledger
from uqbias.registry import EXECUTORS

if __name__ == "__main__":
    raise_on_signals()
    kind, directory = sys.argv[1], Path(sys.argv[2])
    frames = [peroxide(0.05 * index) for index in range(40)]
    options = {"calculator": "peroxide_oracle:Peroxide", "numbers": list(PEROXIDE.numbers)}
    spec = OracleSpec("ase", options, folder=directory / "labels" / "round_00")
    requests = [LabelRequest(index, label_key(x, "peroxide"), x, {}) for index, x in enumerate(frames)]
    with open_ledger(directory, {"seed": 0}, np.array(PEROXIDE.numbers), {}) as ledger:
        executor = None
        try:
            executor = EXECUTORS.build(kind)
            label_all(executor, spec, requests, ledger, 0, in_flight=2)
        except KeyboardInterrupt as error:
            sys.exit(exit_code(error))
        finally:
            if executor is not None:
                executor.shutdown(cancel_futures=True)
"""


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("process", 4),
        pytest.param("local", 8, marks=pytest.mark.slow),
        pytest.param(
            "dask", 8, marks=[pytest.mark.slow, pytest.mark.skipif(not find_spec("distributed"), reason="no dask")]
        ),
    ],
)
def test_random_signals_lose_no_finished_label_and_pay_none_twice(tmp_path, kind, count):
    (tmp_path / "program.py").write_text(PROGRAM)
    random = np.random.default_rng(int.from_bytes(os.urandom(4), "big"))
    sent = number = 0
    runs = None
    while sent < count or not runs.done:
        if runs is None or runs.done:
            directory, folder = tmp_path / f"run_{number}", tmp_path / f"notes_{number}"
            folder.mkdir()
            command = [sys.executable, str(tmp_path / "program.py"), kind, str(directory)]
            runs = SignalledRuns(command, directory, folder, seconds=0.03)
            number += 1
        before = runs.signals.total()
        runs.run(SIGNALS[sent % len(SIGNALS)], random.uniform(0, 1.5) if sent < count else 100)
        sent += runs.signals.total() - before
        assert runs.lost == runs.paid_twice() == 0
        assert not runs.tracebacks
        assert not runs.wrong_ends
        if runs.done:
            assert len(runs.finished()) == len(runs.stored()) == 40


def test_a_second_signal_ends_at_once():
    program = (
        "import time\n"
        "from uqbias.campaign.interrupts import deferred\n"
        "with deferred(lambda: print('stop', flush=True)):\n"
        "    print('ready', flush=True)\n"
        "    while True: time.sleep(0.01)\n"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=default_signals,  # noqa: PLW1509
    )
    assert running.stdout.readline() == "ready\n"
    running.send_signal(signal.SIGINT)
    running.send_signal(signal.SIGINT)  # the echo of the first
    assert running.stdout.readline() == "stop\n"
    time.sleep(2 * interrupts.ECHO)
    assert running.poll() is None
    running.send_signal(signal.SIGTERM)
    assert running.wait(5) == 143
    running.stdout.close()


def test_deferred_signals_come_at_the_end_and_ignored_ones_never():
    stopped = []
    wanted = {signal.SIGHUP: signal.SIG_IGN, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    try:
        with pytest.raises(KeyboardInterrupt), interrupts.deferred(lambda: stopped.append(True)) as kept:  # noqa: PT012
            signal.raise_signal(signal.SIGHUP)
            assert not kept
            signal.raise_signal(signal.SIGINT)
            assert kept == [signal.SIGINT]
            assert stopped == [True]
            kept_on = True
        assert kept_on
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
