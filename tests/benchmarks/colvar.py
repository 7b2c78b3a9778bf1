"""Seconds and peak memory of reading a COLVAR file of 1e7 rows; ``python tests/benchmarks/colvar.py [rows]``."""

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from uqbias.runs.series import colvar_header, read_colvar


def main() -> None:
    rows = int(float(sys.argv[1])) if len(sys.argv) > 1 else 10_000_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "COLVAR"
        template = f"%14.6f {' '.join(['%16.9g'] * 4)} 0\n"
        values = np.random.default_rng(0).normal(size=(100_000, 4)) * [3, 100, 200, 10]
        with path.open("w", encoding="utf-8") as stream:
            stream.write(colvar_header(("driver",)))
            for first in range(0, rows, len(values)):
                for row, each in enumerate(values[: rows - first].tolist(), start=first):
                    stream.write(template % (row * 0.0005, *each))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        table = read_colvar(path)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert len(table["time"]) == rows
        assert abs(table["bias"][-1] - values[(rows - 1) % len(values), 3]) < 1e-6
        print(f"{rows:.3g} rows, {path.stat().st_size / 1e6:.0f} MB: {seconds:.1f} s, peak memory {peak / 1e3:.0f} MB")
        print(f"(before reading {before / 1e3:.0f} MB)")


if __name__ == "__main__":
    main()
