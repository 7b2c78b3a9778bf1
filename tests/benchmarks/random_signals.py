"""Campaigns that are killed at random moments: finished labels lost, paid twice, tracebacks; and what executors cost.

    python tests/benchmarks/random_signals.py --signals 100
    python tests/benchmarks/random_signals.py --cluster 40
    python tests/benchmarks/random_signals.py --cluster 40 --everything
    python tests/benchmarks/random_signals.py --rates
    python tests/benchmarks/random_signals.py --handoff 20

Each executor of this machine has its share of the signals (KILL, TERM, INT and HUP to the program); a campaign is run
again until it ends by itself, and then another begins. ``--cluster`` does the same with labels on a SLURM of this
machine, and kills workers, cancels jobs and restarts slurmctld as well; the data set must be that of a run without
kills. With ``--everything`` training and explorations run there, too. ``--rates`` prints what the executors that are
installed need for labels of 0.5 and 0.1 s. ``--handoff`` ends campaigns whose labels are handed over and come back in
part, in any order; the data set must be that of a run without.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from counting_oracle import CountingOracle
from label_desk import finish, finish_disturbed, handoff_system
from peroxide_oracle import make_system
from signalled_runs import SIGNALS, SignalledRuns

from uqbias.campaign.home import Home
from uqbias.campaign.label_requests import LabelRequest, label_key
from uqbias.campaign.labelling import OracleSpec, label_all
from uqbias.campaign.ledger import open_ledger
from uqbias.campaign.verification import verify
from uqbias.registry import EXECUTORS

COMMAND = "import sys; sys.argv[0] = 'uqbias'; from uqbias.cli import main; sys.exit(main())"
SLURM = "{kind: slurm, jobs: 2, poll: 2, walltime: '0:10:00', retries: 20}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--signals", type=int, default=100)
    parser.add_argument("--cluster", type=int, default=0, metavar="KILLS", help="on SLURM, in place of --signals")
    parser.add_argument("--everything", action="store_true", help="of --cluster: training and exploration as well")
    parser.add_argument("--rates", action="store_true", help="in place of --signals")
    parser.add_argument("--handoff", type=int, default=0, metavar="INTERRUPTIONS", help="in place of --signals")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random = np.random.default_rng(options.seed)
    if options.rates:
        rates()
    elif options.handoff:
        handoff(options.handoff, random)
    elif options.cluster:
        cluster(options.cluster, random, options.everything)
    else:
        local(options.signals, random)


def local(signals, random):
    kinds = ["process", "local", *(["dask"] if find_spec("distributed") else [])]
    totals = np.zeros(5, dtype=int)
    print("executor  signals  finished labels  lost  paid twice  tracebacks  other exit codes")
    for kind, share in zip(kinds, np.diff(np.linspace(0, signals, len(kinds) + 1).astype(int)), strict=True):
        row = campaigns(kind, share, random)
        totals += row[1:]
        print(f"{kind:8} {row[0]:8} {row[1]:16} {row[2]:5} {row[3]:11} {row[4]:11} {row[5]:17}", flush=True)
    print(f"lost {totals[1]}, paid twice {totals[2]}, tracebacks {totals[3]}, other exit codes {totals[4]}")
    sys.exit(bool(totals[1:].any()))


def campaigns(kind, share, random):
    """Signals sent, and the counts of what went wrong."""
    row = np.zeros(6, dtype=int)
    while row[0] < share:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            runs = runs_of(folder, kind, 60, 0.05)
            while not runs.done and row[0] + runs.signals.total() < share:
                runs.run(random.choice(SIGNALS), random.uniform(0, 6))
            row += result_of(runs)
    return row


def runs_of(folder, executor, frames, seconds, rounds=2):
    """Runs of a small campaign whose work is done by an executor."""
    arguments = ["run", str(make_system(folder, executor, frames)), "-o", str(folder / "run"), "-q"]
    text = (folder / "campaign.yaml").read_text().replace("rounds: 2", f"rounds: {rounds}")
    if rounds == 1:
        text = text.replace("walkers: 2, steps: 100", "walkers: 2, groups: 2, steps: 400")
    if executor == SLURM and rounds:
        text = text.replace("executors: {", f"executors: {{train: {executor}, ")
    (folder / "campaign.yaml").write_text(text)
    return SignalledRuns([sys.executable, "-c", COMMAND, *arguments], folder / "run", folder, seconds=seconds)


def result_of(runs):
    for what in (*runs.tracebacks, *runs.wrong_ends):
        print(what, file=sys.stderr, flush=True)
    wrong = [len(runs.tracebacks), len(runs.wrong_ends)]
    return np.array([runs.signals.total(), len(runs.finished()), runs.lost, runs.paid_twice(), *wrong])


def cluster(kills, random, everything):
    """Work on SLURM with the program, workers, jobs and slurmctld killed at random."""
    assert shutil.which("sbatch"), "no sbatch on this machine: nothing was tested"
    frames, rounds, patience = (30, 1, (20, 90)) if everything else (150, 0, (10, 40))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "undisturbed").mkdir()
        reference = runs_of(folder / "undisturbed", "process", frames, 0.01, rounds)
        reference.run(signal.SIGTERM, 1200)
        wanted = (reference.directory / "dataset.xyz").read_bytes()
        others = {"worker": kill_worker, "job": cancel_job, "slurmctld": restart_slurmctld}
        done, row, number, same = Counter(), np.zeros(6, dtype=int), 0, True
        while done.total() < kills:
            (folder / str(number)).mkdir()
            runs = runs_of(folder / str(number), SLURM, frames, 0.3, rounds)
            number += 1
            while not runs.done:
                left = kills - done.total()
                ended, before = threading.Event(), runs.signals.total()
                disturber = threading.Thread(target=disturb, args=(ended, others, done, left - 1, random, runs))
                disturber.start()
                runs.run(random.choice(SIGNALS), random.uniform(*patience) if left > 0 else 1200)
                ended.set()
                disturber.join()
                done["program", under_way(runs)] += runs.signals.total() - before
                print(f"{done.total()} kills {told(done)}, {len(set(runs.finished()))} labels finished", flush=True)
            row += result_of(runs)
            same &= (runs.directory / "dataset.xyz").read_bytes() == wanted
    print(f"kills {told(done)}; {row[1]} labels in {number} campaigns, lost {row[2]}, paid twice {row[3]}, ", end="")
    print(f"tracebacks {row[4]}, other exit codes {row[5]}; same data set as without kills: {same}")
    sys.exit(bool(row[2:].any() or not same))


def under_way(runs):
    """The phase that is under way, by the ledger."""
    path = runs.directory / "ledger.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    phases = [event["phase"] for event in map(json.loads, lines) if event["event"] == "phase"]
    return {"label": "train", "train": "explore", "score": "explore"}.get(phases[-1], "label") if phases else "label"


def told(done):
    return ", ".join(f"{what} during {phase} {count}" for (what, phase), count in sorted(done.items()) if count)


def handoff(interruptions, random):
    """Labels handed over, in processes that are ended at random moments."""
    with tempfile.TemporaryDirectory() as name:
        campaign, directory = handoff_system(Path(name))
        finish(campaign, directory)
        wanted, row, same, number = (directory / "dataset.xyz").read_bytes(), np.zeros(3, dtype=int), True, 0
        while row[0] < interruptions:
            other = Path(name) / f"run_{number}"
            row += finish_disturbed(campaign, other, random, interruptions - row[0], 12.0)
            same &= (other / "dataset.xyz").read_bytes() == wanted and not verify(other).faults
            number += 1
    print(f"{row[0]} interruptions and {row[1]} half-filled files in {number} campaigns, {row[2]} geometries ", end="")
    print(f"handed over twice; same data set as without: {same}")
    sys.exit(bool(row[2] or not same))


def disturb(ended, others, done, most, random, runs):
    """Kill something every few seconds until the program has ended."""
    while most > 0 and not ended.wait(random.uniform(4, 12)):
        what, phase = str(random.choice(list(others))), under_way(runs)
        if others[what](random):
            done[what, phase] += 1
            most -= 1


def kill_worker(random):
    """Kill a worker of a job, which leads labels; the first of its processes leads the job."""
    names = [path.name for path in Path("/proc").iterdir() if path.name.isdigit()]
    spawned = [name for name in names if b"--multiprocessing-fork" in read(name, "cmdline")]
    workers = [name for name in spawned if b"PARSL_CORES=" in read(name, "environ")]
    return bool(workers) and kill(random.choice(workers))


def read(pid, name):
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def kill(pid):
    try:
        os.kill(int(pid), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def cancel_job(random):
    listed = ["squeue", "--noheader", "--states=RUNNING", "--format=%i %j"]
    lines = subprocess.run(listed, capture_output=True, text=True, timeout=60, check=False).stdout.splitlines()
    jobs = [line.split()[0] for line in lines if "uqbias-" in line]
    return bool(jobs) and not subprocess.run(["scancel", random.choice(jobs)], timeout=60, check=False).returncode


def restart_slurmctld(random):
    """End SLURM's controller, and start it again some seconds later."""
    pids = subprocess.run(["pidof", "slurmctld"], capture_output=True, text=True, check=False).stdout.split()
    for pid in pids:
        os.kill(int(pid), signal.SIGTERM)
    time.sleep(random.uniform(1, 5))
    return bool(pids) and not subprocess.run(["slurmctld"], timeout=60, check=False).returncode


def rates():
    """Time of labels with each executor that is installed: in all, and a label and worker once all work."""
    sections = ["{kind: process, jobs: 2}", *(["{kind: dask, jobs: 2}"] if find_spec("distributed") else [])]
    if find_spec("parsl"):
        sections += ["{kind: parsl, jobs: 2}", *([SLURM] if shutil.which("sbatch") else [])]
    for count, seconds in ((80, 0.5), (200, 0.1)):
        print(
            f"{count} labels of {seconds} s, 2 workers: executor, s in all, s a label and worker, overhead to process"
        )
        first = None
        for section in sections:
            whole, each = rate(yaml.safe_load(section), count, seconds)
            first = first or each
            print(
                f"{yaml.safe_load(section)['kind']:8} {whole:6.1f} {each:8.4f} {100 * (each / first - 1):6.1f} %",
                flush=True,
            )


def rate(section, count, seconds):
    with tempfile.TemporaryDirectory() as name, open_ledger(name, {}, np.array([1, 1]), {}) as ledger:
        os.environ |= {"COUNTING_SECONDS": str(seconds), "COUNTING_CALLS": str(Path(name) / "calls")}
        home, stamps = Home.take(Path(name)), []
        spec = OracleSpec(CountingOracle.kind, folder=home.folder / "labels" / "round_00", home=home)
        frames = [np.full((2, 3), 0.001 * index) for index in range(count)]
        requests = [LabelRequest(index, label_key(x, "counting"), x, {}) for index, x in enumerate(frames)]
        begun = time.monotonic()
        executor = EXECUTORS.build(section, home=home)
        note = lambda finished, _: stamps.append(time.monotonic()) if finished else None  # noqa: E731
        label_all(executor, spec, requests, ledger, 0, progress=note)
        whole = time.monotonic() - begun
        executor.shutdown()
        assert len(ledger.events("label")) == count
    # The first fifth leaves out how long workers take to begin.
    return whole, 2 * (stamps[-1] - stamps[count // 5]) / (count - 1 - count // 5)


if __name__ == "__main__":
    main()
