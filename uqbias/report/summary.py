"""Summary of a campaign in numbers: sentences, a table of rounds, one terminal screen, JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from uqbias.errors import printable
from uqbias.report.map_axes import Region
from uqbias.report.run_data import RunData, is_number, section
from uqbias.units import duration

if TYPE_CHECKING:
    from rich.console import Console


#: Reasons of failures that are told.
REASONS = 3
#: Key in summary.json and heading; {} stands for each region of the campaign file.
HEADINGS = {
    "labels": "labels",
    "oracle_calls": "oracle calls",
    "rejected": "rejected",
    "md_steps": "MD steps",
    "jumps_passed": "jumps",
    "proposed": "proposed",
    "failed": "failed",
    "coverage": "coverage",
    "basins": "basins",
    "force_mae_meV_per_A": "force MAE\nmeV/Å",
    "force_mae_{}_meV_per_A": "… {}\nmeV/Å",
    "energy_mae_meV_per_atom": "energy MAE\nmeV/atom",
    "energy_mae_{}_meV_per_atom": "… {}\nmeV/atom",
    "wall_s": "wall time",
}
#: The same for a terminal of 80 columns.
NARROW = {
    "labels": "labels",
    "coverage": "cover",
    "basins": "new basins",
    "force_mae_meV_per_A": "F MAE",
    "force_mae_{}_meV_per_A": "{}",
    "energy_mae_meV_per_atom": "E MAE",
    "energy_mae_{}_meV_per_atom": "{}",
    "rejected": "reject",
    "wall_s": "time",
}


def _columns(run: RunData, headings: dict[str, str]) -> dict[str, str]:
    """Select the headings for which a round has a value, with the names of the regions put in."""
    named = {
        key.format(region.name): heading.format(region.title)
        for key, heading in headings.items()
        for region in (run.regions if "{}" in key else [Region("", "", "")])
    }
    return {key: heading for key, heading in named.items() if any(row.get(key) is not None for row in run.rows)}


#: Texts of the values of summary.json that are not plain numbers, by the beginning of the key.
FORMATS: dict[str, Callable[[Any], str]] = {
    "md_steps": lambda value: f"{value:,}".replace(",", "\u202f"),
    "coverage": lambda value: f"{100 * value:.0f} %",
    "basins": lambda value: ", ".join(value) or "none",
    "force_mae_": lambda value: f"{value:.1f}",
    "energy_mae_": lambda value: f"{value:.2f}",
    "wall_s": duration,
}


def _cell(key: str, value: Any) -> str:
    """Text of a value of summary.json."""
    if value is None:
        return "-"
    show = next((show for start, show in FORMATS.items() if key.startswith(start)), str)
    return show(value)


def round_table(run: RunData) -> tuple[list[str], list[list[str]]]:
    """Headings and one row of text per scored round; columns without any value are left out."""
    columns = _columns(run, HEADINGS)
    if run.proposing:
        columns.pop("md_steps", None)
    rows = [
        [str(row.get("round", index)), *(_cell(key, row.get(key)) for key in columns)]
        for index, row in enumerate(run.rows)
    ]
    return ["round", *columns.values()], rows


def campaign_story(run: RunData) -> list[str]:
    """Six sentences or fewer that say what happened; nothing that the data do not hold.

    They name a crossing only where labelled frames reached a basin that the start frames did not hold, and say so
    plainly where none did, where an error rose, or where the campaign is not finished.
    """
    if not run.rows:
        return ["No round is finished yet."]
    lines = [_what(run), _crossing(run), _errors(run), _coverage(run), _price(run), _failures(run)]
    return [line for line in lines if line]


def status(run: RunData) -> str:
    """``finished`` and why, or how far it is."""
    if run.finished:
        return f"finished: {run.summary['stopped']}"
    planned = section(run.config, "stop").get("rounds")
    of = f" of {planned}" if isinstance(planned, int) else ""
    if not run.rows:
        return "not finished: round 0 is under way"
    return f"not finished: {len(run.rows) - 1}{of} rounds of exploration done"


def summary_json(run: RunData) -> dict[str, Any]:
    """Content of ``summary.json`` with the campaign's name, status and story beside it."""
    return {
        "name": run.name,
        "directory": str(run.directory),
        "status": status(run),
        "story": campaign_story(run),
        **run.summary,
    }


def print_summary(run: RunData, console: Console | None = None) -> None:
    """Print one screen: a table of rounds (force MAE in meV/Å, energy MAE in meV/atom) and the story."""
    from rich.console import Console as RichConsole
    from rich.table import Table
    from rich.text import Text

    console = console or RichConsole()
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("round", justify="right")
    columns = _columns(run, NARROW)
    for key, heading in columns.items():
        table.add_column(heading, justify="left" if key == "basins" else "right", no_wrap=key != "basins")
    for index, (row, fresh) in enumerate(zip(run.rows, _new_basins(run), strict=True)):
        cells = {key: _cell(key, row.get(key)) for key in columns} | {"basins": printable(", ".join(fresh))}
        table.add_row(str(row.get("round", index)), *(cells[key] for key in columns))
    console.print(Text(printable(f"{run.name} ({status(run)})"), style="bold"))
    if run.rows:
        console.print(table)
    for line in campaign_story(run):
        console.print(Text(printable(f"• {line}")))


def _what(run: RunData) -> str:
    first, last = run.rows[0], run.rows[-1]
    n_start, n_end, n_rounds = first.get("labels"), last.get("labels"), len(run.rows) - 1
    start = f"The campaign began with {n_start} labelled frames"
    if first.get("basins"):
        start += f" in {_join(first['basins'])}"
    if n_rounds == 0:
        return f"{start}; no exploration round is finished yet."
    added = f" added {n_end - n_start} labels" if isinstance(n_start, int) and isinstance(n_end, int) else ""
    return f"{start}; {n_rounds} round{'s' * (n_rounds > 1)} of {_method(run)}{added}."


def _method(run: RunData) -> str:
    """What a round of exploration was."""
    sampler = run.config.get("sampler", "metadynamics")
    options = section(run.config, str(sampler))
    if sampler == "attack":
        part = "driver" if options.get("of") == "driver" else "judge"
        kind = str(section(run.config, part).get("kind", "")).replace("_", " ")
        where = _where(options)
        return (
            f"{options.get('count', 'some')} adversarial attacks on the model's uncertainty ({kind}){where} at "
            f"{options.get('temperature', 0):g} K"
        )
    if sampler == "random":
        return f"{options.get('count', 'some')} distortions at random{_where(options)}"
    if sampler == "pool":
        return f"choosing from the frames of {str(options.get('file', 'a pool')).rpartition('/')[2]}"
    if sampler == "md":
        method = f"unbiased MD at {section(run.config, 'md').get('temperature', 300)} K"
    else:
        driver = str(section(run.config, "driver").get("kind", "")).replace("_", " ")
        method = f"{sampler} on the model's uncertainty" + (f" ({driver})" if driver else "")
    walkers = section(run.config, "md").get("walkers")
    return method + (f" with {walkers} walkers" if isinstance(walkers, int) else "")


def _where(options: dict[str, Any]) -> str:
    """The space of distortions in words."""
    space = section(options, "space")
    if space.get("kind") == "variables":
        return f" in {_join([str(name) for name in space.get('names', [])])}"
    return {"cartesian": " of Cartesian coordinates", "internal": " of internal coordinates"}.get(
        str(space.get("kind")), ""
    )


def _crossing(run: RunData) -> str:
    if len(run.rows) < 2 or not any("basins" in row and row["basins"] is not None for row in run.rows):
        return ""
    first, *later = _new_basins(run)
    if reached := [f"{_join(new)} in round {index}" for index, new in enumerate(later, start=1) if new]:
        return f"Barriers were crossed: frames labelled by the oracle reached {'; '.join(reached)}."
    if not first:
        return "No barrier was crossed: no labelled frame lies in a named basin."
    return f"No barrier was crossed: every labelled frame that lies in a named basin lies in {_join(sorted(first))}."


def _new_basins(run: RunData) -> list[list[str]]:
    """Basins of each row that no row before it has."""
    known: set[str] = set()
    new = []
    for row in run.rows:
        new.append([name for name in row.get("basins") or [] if name not in known])
        known.update(new[-1])
    return new


def _errors(run: RunData) -> str:
    parts = []
    for key, name, unit in (
        ("force_mae_meV_per_A", "force MAE", "meV/Å"),
        *((f"force_mae_{region.name}_meV_per_A", f"force MAE at {region.text}", "meV/Å") for region in run.regions),
        ("energy_mae_meV_per_atom", "energy MAE", "meV/atom"),
    ):
        values = run.values(key)
        if len(values) == 1:
            parts.append(f"{name} is {values[0]:.3g} {unit}")
        elif values:
            ratio = values[-1] / values[0] if values[0] else float("nan")
            verb = "fell" if values[-1] < values[0] else "rose"
            parts.append(f"{name} {verb} from {values[0]:.3g} to {values[-1]:.3g} {unit} ({ratio:.2f} ×)")
    return f"On the test set, {'; '.join(parts)}." if parts else "No test set is configured: errors are unknown."


def _coverage(run: RunData) -> str:
    shares = [f"{100 * share:.0f} %" for share in run.values("coverage")]
    change = " → ".join([*shares[:1], *shares[1:][-1:]])
    return f"Labelled frames cover {change} of the accessible bins of the reference surface." if shares else ""


def _price(run: RunData) -> str:
    wall, last = sum(run.values("wall_s")), run.rows[-1]
    parts = [f"{last['oracle_calls']} oracle calls"] if is_number(last.get("oracle_calls")) else []
    if rejected := run.values("rejected"):
        parts.append(f"{sum(rejected)} labels rejected")
    if is_number(last.get("failed")) and run.proposing in ("attack", "random"):
        what = "attacks" if run.proposing == "attack" else "distortions"
        parts.append(f"{last['failed']} of {last.get('proposed', '?')} {what} failed")
    if wall:
        parts.append(f"{duration(wall)} of wall time")
    return f"It cost {_join(parts)}." if parts else ""


def _failures(run: RunData) -> str:
    """How many geometries have no label, and the most frequent reasons."""
    reasons = section(run.summary, "failure_reasons")
    if not reasons:
        return ""
    count = sum(reasons.values())
    told = [f"{reason} ({times})" for reason, times in list(reasons.items())[:REASONS]]
    more = [f"{len(reasons) - REASONS} other reasons"] if len(reasons) > REASONS else []
    return f"The oracle failed on {count} geometr{'y' if count == 1 else 'ies'}: {'; '.join([*told, *more])}."


def _join(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "none"
