"""Draw the rooms of the package, floor by floor, with the imports between them: ``python docs/rooms.py``."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from test_rooms import FLOORS, MODULES, imports_of, room_of  # noqa: E402


def main() -> None:
    """Write ``docs/rooms.svg``."""
    lines: Counter[str] = Counter()
    arrows: Counter[tuple[str, str]] = Counter()
    for module, path in MODULES.items():
        if module != "uqbias":
            lines[room_of(module)] += len(path.read_text(encoding="utf-8").splitlines())
            arrows.update((room_of(module), room_of(target)) for target in imports_of(module))
    places = {}
    for floor, rooms in enumerate(FLOORS):
        # Rooms that have a floor to themselves alternate, so that the arrows between them are seen.
        columns = (
            [0.5 + 0.25 * (-1) ** floor] if len(rooms) == 1 else [(i + 0.5) / len(rooms) for i in range(len(rooms))]
        )
        places |= {room: (x, floor) for room, x in zip(rooms, columns, strict=True)}
    figure, ax = plt.subplots(figsize=(7, 9), layout="constrained")
    for (user, used), count in arrows.items():
        # Every room imports the lowest three floors: arrows to them would hide the others.
        if user != used and places[used][1] > 2:
            style = {"arrowstyle": "-|>", "connectionstyle": "arc3,rad=0.12", "shrinkA": 14, "shrinkB": 14}
            style |= {"color": "#4a6f96", "lw": 0.4 + 0.1 * min(count, 20), "alpha": 0.45, "mutation_scale": 6}
            ax.annotate("", places[used], places[user], arrowprops=style)
    for room, (x, y) in places.items():
        ax.text(
            x, y, f"{room}\n{lines[room]:,} lines", ha="center", va="center", fontsize=8, linespacing=1.3,
            bbox={"boxstyle": "round,pad=0.35", "facecolor": "#f3f6fa", "edgecolor": "#33475b"},
        )  # fmt: skip
    ax.set(xlim=(0, 1), ylim=(-0.6, len(FLOORS) - 0.4))
    ax.axis("off")
    plt.rcParams["svg.hashsalt"] = "uqbias"
    figure.savefig(ROOT / "docs" / "rooms.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
