"""Harvested frames of a run: a table that says why each was taken, and a 3D view that needs no network."""

from __future__ import annotations

import base64
from dataclasses import asdict, dataclass
from importlib.resources import files

import numpy as np
from jinja2 import Environment

from uqbias.report.run_data import RunData, is_number
from uqbias.report.style import spread
from uqbias.units import ANGSTROM

#: Most frames, and most atoms of all frames together that a report carries.
FRAMES, ATOMS = 200, 20_000


@dataclass(frozen=True)
class HarvestedFrame:
    """A frame that the oracle labelled after round 0; numbers are as in the ledger, None where it says nothing.

    Attributes
    ----------
    index : index of its label in the round.
    energy : kJ/mol above the lowest label of the run.
    xyz : the file format XYZ, Å.
    """

    round: int
    index: int
    reason: str
    driver: float | None
    judge: float | None
    energy: float
    xyz: str

    @property
    def story(self) -> str:
        """One line on why it was harvested."""
        facts = [f"round {self.round}, label {self.index}: {self.reason}"]
        facts += [] if self.driver is None else [f"driver {self.driver:.3g}"]
        facts += [] if self.judge is None else [f"judge {self.judge:.3g} kJ/mol/nm"]
        return "; ".join([*facts, f"oracle energy {self.energy:.1f} kJ/mol above the lowest label"])


def harvested_frames(run: RunData) -> list[HarvestedFrame]:
    """Labelled frames of the rounds after 0, evenly thinned to what a page can hold."""
    from ase.data import chemical_symbols

    paid = {(e["round"], e["index"]): e for e in run.events if e.get("event") == "label" and "positions" in e}
    later = [paid[key] for key in sorted(paid) if key[0] > 0]
    if not later or run.numbers is None or (most := min(FRAMES, ATOMS // len(run.numbers))) == 0:
        return []
    symbols = [chemical_symbols[number] for number in run.numbers]
    lowest = min(event["energy"] for event in paid.values())
    frames = []
    for event in spread(later, most):
        info = event.get("info") or {}
        driver, judge = (value if is_number(value := info.get(name)) else None for name in ("driver", "judge"))
        rows = zip(symbols, np.asarray(event["positions"]) / ANGSTROM, strict=True)
        atoms = "\n".join(f"{symbol} {x:.3f} {y:.3f} {z:.3f}" for symbol, (x, y, z) in rows)
        reason = str(info.get("reason", "no reason noted"))
        energy = float(event["energy"] - lowest)
        xyz = f"{len(symbols)}\n\n{atoms}\n"
        frames.append(HarvestedFrame(event["round"], event["index"], reason, driver, judge, energy, xyz))
    return frames


def viewer(frames: list[HarvestedFrame], environment: Environment) -> str:
    """``data:`` address of a page that shows the frames with 3Dmol.js, to be put into a frame of its own.

    Its policy forbids it to load anything.
    """
    library = files("uqbias.report").joinpath("static/3Dmol-min.js").read_text(encoding="utf-8")
    stories = [{"story": frame.story, "xyz": frame.xyz} for frame in frames]
    page = environment.get_template("frames.html").render(library=library, frames=stories)
    return "data:text/html;charset=utf-8;base64," + base64.b64encode(page.encode()).decode("ascii")


def frames_csv(frames: list[HarvestedFrame]) -> str:
    """The table of the frames as CSV, without their atoms."""
    import csv
    import io

    buffer = io.StringIO()
    rows = [{key: value for key, value in asdict(frame).items() if key != "xyz"} for frame in frames]
    table = csv.DictWriter(buffer, [*rows[0]], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return buffer.getvalue()
