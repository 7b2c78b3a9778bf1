"""Campaigns ended by KILL, TERM, INT and HUP at random moments: finished labels lost, paid twice, tracebacks.

    python tests/benchmarks/random_signals.py --signals 100

Each executor has its share of the signals; a campaign is run again until it ends by itself, and then another begins.
With ``dask.distributed`` installed, dask has its share too.
"""

import argparse
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from peroxide_oracle import make_system
from signalled_runs import SIGNALS, SignalledRuns

COMMAND = "import sys; sys.argv[0] = 'uqbias'; from uqbias.cli import main; sys.exit(main())"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--signals", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    kinds = ["process", "serial", "thread", *(["dask"] if find_spec("distributed") else [])]
    random = np.random.default_rng(options.seed)
    totals = np.zeros(5, dtype=int)
    print("executor  signals  finished labels  lost  paid twice  tracebacks  other exit codes")
    for kind, share in zip(kinds, np.diff(np.linspace(0, options.signals, len(kinds) + 1).astype(int)), strict=True):
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
            arguments = ["run", str(make_system(folder, kind, 60)), "-o", str(folder / "run"), "-q"]
            runs = SignalledRuns([sys.executable, "-c", COMMAND, *arguments], folder / "run", folder, seconds=0.05)
            while not runs.done and row[0] + runs.signals.total() < share:
                runs.run(random.choice(SIGNALS), random.uniform(0, 6))
            for what in (*runs.tracebacks, *runs.wrong_ends):
                print(what, file=sys.stderr, flush=True)
            row += [
                runs.signals.total(),
                len(runs.finished()),
                runs.lost,
                runs.paid_twice(),
                len(runs.tracebacks),
                len(runs.wrong_ends),
            ]
    return row


if __name__ == "__main__":
    main()
