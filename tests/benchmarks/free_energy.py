"""Free energies by every bias method: `double_wells.py`, `alanine_free_energy.py` and `bias_cost.py`, one by one.

Numbers and figures are written to the output directory.

    python tests/benchmarks/free_energy.py [--parts NAME ...] [--seeds 0 1 2] [--quick] [-o DIR]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
#: Part to its script, whether it takes seeds and draws a figure, and what makes it quick.
PARTS = {
    "double-wells": ("double_wells.py", True, ("--steps", "200000")),
    "alanine": ("alanine_free_energy.py", True, ("--quick",)),
    "cost": ("bias_cost.py", False, ("--quick",)),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="a small part of the work: a test, no result")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/free_energy"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in options.parts:
        script, sampled, quick = PARTS[name]
        command = [sys.executable, str(HERE / script), "--json", str(options.output / f"{name}.json")]
        if sampled:
            command += ["--figure", str(options.output / f"{name}.png"), "--seeds", *map(str, options.seeds)]
        # A process each: a part that fails leaves the others alone.
        if subprocess.run([*command, *(quick if options.quick else ())], check=False).returncode:
            failed.append(name)
    print(f"numbers and figures: {options.output}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
