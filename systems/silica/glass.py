"""What silica looks like: pair distances, coordination and rings of frames.

    python systems/silica/glass.py FRAMES.xyz ... [--figure FIGURE.png]

Prints, for each file, the first peak of g(r) of Si-O, O-O and Si-Si in Å, the share of silicon with four, five and six
oxygens, and the shares of shortest rings (King, Nature 213, 1112, 1967): for each silicon and two of the silicons that
share an oxygen with it, the number of silicons in the shortest ring through the three.
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.neighborlist import neighbor_list

from uqbias.molecule.frames import Frames, read_frames

#: Å; the first minimum of g(r) of Si-O in the melt.
BOND = 2.2
#: No ring that silica has is longer.
LONGEST = 12
PAIRS = {"Si-O": (14, 8), "O-O": (8, 8), "Si-Si": (14, 14)}


def images(frames: Frames) -> list[Atoms]:
    """Frames with cells as ASE sees them, in Å."""
    assert frames.cells is not None
    return [
        Atoms(frames.numbers, positions=10 * x, cell=10 * cell, pbc=True)
        for x, cell in zip(frames.positions, frames.cells, strict=True)
    ]


def pair_distribution(atoms: list[Atoms], pair: str, cutoff: float = 8.0, bins: int = 160) -> np.ndarray:
    """Mean g(r) [2, bins] of a pair of elements: r in Å, g. Distances beyond half the cell are there, too."""
    first, second = PAIRS[pair]
    edges = np.linspace(0.0, cutoff, bins + 1)
    shells = 4 / 3 * np.pi * np.diff(edges**3)
    g = np.zeros(bins)
    for one in atoms:
        i, j, d = neighbor_list("ijd", one, cutoff)
        wanted = (one.numbers[i] == first) & (one.numbers[j] == second)
        pairs = (one.numbers == first).sum() * (one.numbers == second).sum() / one.get_volume()
        g += np.histogram(d[wanted], edges)[0] / (pairs * shells)
    return np.stack([(edges[1:] + edges[:-1]) / 2, g / len(atoms)])


def coordination(atoms: list[Atoms]) -> Counter[int]:
    """How many silicon atoms have how many oxygens within `BOND`."""
    counts: Counter[int] = Counter()
    for one in atoms:
        i = neighbor_list("i", one, {("Si", "O"): BOND})
        counts.update(np.bincount(i, minlength=len(one))[one.numbers == 14].tolist())
    return counts


def rings(atoms: Atoms) -> Counter[int]:
    """Numbers of shortest rings by their size; rings go on through the borders of the cell, and end in no image."""
    i, j, shift = neighbor_list("ijS", atoms, {("Si", "O"): BOND})
    oxygens: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
    for one, two, vector in zip(i.tolist(), j.tolist(), shift.tolist(), strict=True):
        if atoms.numbers[one] == 8:
            oxygens.setdefault(one, []).append((two, tuple(vector)))
    near: dict[int, set[tuple[int, ...]]] = {}
    for bridges in oxygens.values():
        for (a, s), (b, t) in itertools.permutations(bridges, 2):
            near.setdefault(a, set()).add((b, t[0] - s[0], t[1] - s[1], t[2] - s[2]))
    counts: Counter[int] = Counter()
    for centre, neighbours in near.items():
        for begin, end in itertools.combinations(sorted(neighbours), 2):
            size = _way(near, begin, end, (centre, 0, 0, 0))
            if size:
                counts[size + 2] += 1
    return counts


def _way(near: dict, begin: tuple[int, ...], end: tuple[int, ...], without: tuple[int, ...]) -> int:
    """Steps from one silicon to another, breadth first, without a third; 0 where there is no short way."""
    seen, front = {begin, without}, [begin]
    for steps in range(1, LONGEST - 1):
        further = []
        for atom, x, y, z in front:
            for other, dx, dy, dz in near[atom]:
                place = (other, x + dx, y + dy, z + dz)
                if place == end:
                    return steps
                if place not in seen:
                    seen.add(place)
                    further.append(place)
        front = further
    return 0


def table(files: dict[str, list[Atoms]]) -> list[str]:
    """One line of Markdown a file."""
    sizes = range(3, 10)
    titles = [*(f"{pair}, Å" for pair in PAIRS), "4 O, %", "5 O, %", "6 O, %", *(f"{size}-rings, %" for size in sizes)]
    lines = ["| frames | " + " | ".join(titles) + " |", "|" + "---|" * (len(titles) + 1)]
    for name, atoms in files.items():
        peaks = [g[0][g[1].argmax()] for g in (pair_distribution(atoms, pair, 4.0, 200) for pair in PAIRS)]
        bonds = coordination(atoms)
        counted = sum((rings(one) for one in atoms), Counter())
        values = [f"{peak:.2f}" for peak in peaks]
        values += [f"{100 * bonds[n] / bonds.total():.0f}" for n in (4, 5, 6)]
        values += [f"{100 * counted[size] / max(counted.total(), 1):.0f}" for size in sizes]
        lines.append(f"| {name} | " + " | ".join(values) + " |")
    return lines


def draw(files: dict[str, list[Atoms]], path: Path) -> None:
    """g(r) of the three pairs, and the rings."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(14, 3.2), layout="constrained")
    for name, atoms in files.items():
        for panel, pair in zip(axes[:3], PAIRS, strict=True):
            panel.plot(*pair_distribution(atoms, pair), label=name)
            panel.set(xlabel="r, Å", title=f"g(r), {pair}")
        counted = sum((rings(one) for one in atoms), Counter())
        sizes = list(range(3, LONGEST))
        shares = [100 * counted[size] / max(counted.total(), 1) for size in sizes]
        axes[3].plot(sizes, shares, marker="o", markersize=3, label=name)
    axes[3].set(xlabel="silicons in a ring", ylabel="%", title="shortest rings")
    axes[3].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frames", nargs="+", type=Path)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    files = {path.stem: images(read_frames(path, labelled=False, periodic=True)) for path in arguments.frames}
    print("\n".join(table(files)))
    if arguments.figure:
        draw(files, arguments.figure)


if __name__ == "__main__":
    main()
