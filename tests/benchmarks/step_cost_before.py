"""Cost of an MD step with metadynamics now, over that of an earlier commit: both sides in turns, in one script.

Each side is a process of its own, in a checkout of its own, and runs the walkers of that checkout's ``step_cost.py``;
CPU time of a chunk of steps, medians and ratio of the turns. More than 1.02 is a step that became dearer.

    python tests/benchmarks/step_cost_before.py [REVISION] [--walkers 1] [--turns 20] [--runner auto]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHUNK = 1000
SIDE = """
import sys, time
import torch
torch.set_num_threads(1)
import step_cost
n_walkers, runner, chunk = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
frames = step_cost.read_frames(step_cost.SYSTEM / "start.xyz")
model = step_cost.demo_model(frames)
side = step_cost.walkers_side("", model, frames.positions[0], "pythonforce", n_walkers, chunk, runner=runner)
side.run(chunk)
print("ready", flush=True)
for _ in sys.stdin:
    begin = time.process_time()
    side.run(chunk)
    print((time.process_time() - begin) / chunk, flush=True)
"""


def start(tree, arguments):
    """The process of one side, ready to be timed."""
    path = os.pathsep.join([str(tree), str(tree / "tests" / "benchmarks")])
    process = subprocess.Popen(
        [sys.executable, "-c", SIDE, str(arguments.walkers), arguments.runner, str(CHUNK)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        cwd=tree,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line == "ready\n":
            return process
    raise SystemExit(f"{tree} gave no walkers")


def turn(process):
    """Seconds of CPU time a step."""
    process.stdin.write("turn\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", nargs="?", default="HEAD~1", help="commit to compare with")
    parser.add_argument("--walkers", type=int, default=1)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--runner", default="auto")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        subprocess.run(
            ["git", "-C", ROOT, "worktree", "add", "--quiet", "--detach", before, arguments.revision], check=True
        )
        try:
            sides = [start(before, arguments), start(ROOT, arguments)]
            times = [[turn(side) for side in sides] for _ in range(arguments.turns)]
            for side in sides:
                side.stdin.close()
                side.wait()
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", before], check=True)
    old, new = (1e6 * statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(new / old for old, new in times)
    print(f"{arguments.revision}: {old:.0f} µs a step; now: {new:.0f} µs; ratio of the turns {ratio:.3f}")


if __name__ == "__main__":
    main()
