"""The command status: how far a campaign is."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from uqbias.cli.printing import Json, print_json
from uqbias.errors import printable
from uqbias.runs.status import status_of
from uqbias.units import duration

#: Columns of the table: key and heading.
COLUMNS = {
    "round": "round",
    "labelled": "labels",
    "failed": "failed",
    "rejected": "rejected",
    "force_mae_meV_per_A": "F MAE meV/Å",
    "energy_mae_meV_per_atom": "E MAE meV/atom",
    "stress_mae_GPa": "stress MAE GPa",
    "time": "time",
}
CLEAR = "\x1b[H\x1b[2J"


def status(
    directory: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show it again until nothing runs there.")] = False,
    every: Annotated[float, typer.Option(min=0.1, metavar="S", help="With --follow: seconds between two looks.")] = 5.0,
    json: Json = False,
) -> None:
    """How far a campaign is: rounds, labels, errors, time used and left, and what it waits for.

    It only reads, in a fraction of a second, and may be called at any time from another terminal or node. The time left
    is what the phases took so far times what remains; MD may become longer in later rounds (md.seconds_per_label). With
    --follow and --json it prints a line of JSON at each look.

    \b
    Examples:
      uqbias status runs/alanine_dipeptide
      uqbias status runs/alanine_dipeptide --follow
    """
    before = ""
    while True:
        facts = status_of(directory)
        text = "\n\n".join(_text(name, one) for name, one in facts.items())
        if json:
            print_json(facts.get("", {"systems": facts}), compact=follow)
        elif sys.stdout.isatty() and follow:
            typer.echo(CLEAR + printable(text))
        elif text != before:
            typer.echo(printable(text))
        before = text
        if not follow or all(one["state"] != "running" for one in facts.values()):
            return
        time.sleep(every)


def _text(name: str, facts: dict[str, Any]) -> str:
    labels, planned = facts["labels"], facts["rounds_planned"]
    of = "" if planned is None else f" of {planned}"
    share = "" if facts["share"] is None else f", {100 * facts['share']:.0f} %"
    where = f"round {facts['round']}{of}" + (f", {facts['phase']}{share}" if facts["phase"] else "")
    pid = f" (pid {facts['pid']})" if facts["pid"] else ""
    lines = [f"{name or facts['name']}: {facts['state']}{pid}, {facts['stopped'] or where}"]
    most = "" if labels["planned"] is None else f" of at most {labels['planned']}"
    pending = f", {labels['pending']} pending" if labels["pending"] else ""
    pairs = [("labels", f"{labels['labelled']}{most}, {labels['failed']} failed{pending}")]
    left = "" if facts["left_s"] is None else f", about {duration(facts['left_s'])} left"
    pairs.append(("time", f"{duration(facts['used_s'])} used{left if facts['phase'] else ''}"))
    pairs += [("waits for", facts["waits_for"])] if facts["waits_for"] else []
    pairs += [("ledger", f"{fault}; see `uqbias verify`") for fault in facts["faults"][:1]]
    width = max(len(key) for key, _ in pairs)
    lines += [f"{key:<{width}}  {value}" for key, value in pairs]
    rows = [{**one, "time": duration(sum(one["phases"].values()))} for one in facts["rounds"]]
    shown = {key: heading for key, heading in COLUMNS.items() if any(key in row for row in rows)}
    table = [[*shown.values()], *([_cell(row.get(key)) for key in shown] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines += ["  ".join(f"{cell:>{size}}" for cell, size in zip(row, widths, strict=True)) for row in table if rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)
