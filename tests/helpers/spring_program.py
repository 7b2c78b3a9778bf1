"""A program that labels: atoms on springs to the origin; the first atom's y beyond 9 Å brings it into trouble.

    python spring_program.py INPUT OUTPUT [charge]

It imports nothing but what comes with Python, and reads and writes extended XYZ itself.
"""

import re
import sys
import time
from pathlib import Path

ENERGY, STIFFNESS = 0.5, 0.3


def main():
    source, target = sys.argv[1:3]
    lines = Path(source).read_text().splitlines()
    atoms = [line.split() for line in lines[2 : 2 + int(lines[0])]]
    x = [[float(value) for value in atom[1:4]] for atom in atoms]
    energy = ENERGY + 0.5 * STIFFNESS * sum(value**2 for row in x for value in row)
    forces = [[-STIFFNESS * value for value in row] for row in x]
    cell = re.search(r'Lattice="[^"]*"', lines[1])
    extra, trouble = f"{cell[0]} " if cell else "", round(x[0][1])
    extra += 'pbc="T T T" stress="0.01 0 0 0 0.02 0 0 0 0.03" ' if cell else 'pbc="F F F" '
    print("iteration 1\niteration 2\nenergy", energy, flush=True)
    if trouble == 11:
        print("no memory for the integrals", file=sys.stderr)
        sys.exit(7)
    if trouble == 12:
        sys.exit(0)
    if trouble == 13:
        x[0][0] += 0.5
    if trouble == 14:
        extra += "converged=F "
    if trouble == 15:
        energy = float("nan")
    if trouble == 16:
        time.sleep(60)
    symbols = [atom[0] for atom in atoms]
    if trouble == 17:
        symbols[0] = "He"
    rows = [[symbol, *map(repr, row), *map(repr, force)] for symbol, row, force in zip(symbols, x, forces, strict=True)]
    header = f"{extra}Properties=species:S:1:pos:R:3:forces:R:3 energy={energy!r}"
    text = "\n".join([str(len(rows)), header, *map(" ".join, rows), ""])
    Path(target).write_text(text[:-40] if trouble == 18 else text)


if __name__ == "__main__":
    main()
