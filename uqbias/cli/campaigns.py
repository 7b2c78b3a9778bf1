"""Campaign commands: template, validate, run, report."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError

from uqbias.campaign.interrupts import TIME_IS_UP, end_in, exit_code
from uqbias.cli.printing import Json, Quiet, fail, output_option, print_json, print_pairs
from uqbias.errors import UqbiasError, fault_text
from uqbias.options import Duration

#: Seconds between two reports of a run that goes on.
REPORT_EVERY = 60.0


def _time(text: str) -> float:
    try:
        return TypeAdapter(Duration).validate_python(text)
    except ValidationError as error:
        raise UqbiasError(f"--walltime {text}: {fault_text(error.errors()[0])}") from None


Executors = Annotated[
    Path | None,
    typer.Option(
        "--executors",
        metavar="FILE",
        help="File with `label`, `train` and `explore`, which stands in for `executors` of the campaign.",
    ),
]
CampaignPath = Annotated[Path, typer.Argument(metavar="CAMPAIGN.yaml", help="Campaign file.")]


def template(
    output: Annotated[Path | None, output_option("FILE", "Write it there; stdout if left out.")] = None,
    kinds: Annotated[
        str | None,
        typer.Option(
            metavar="SECTION",
            help="All kinds of one section with their keys instead: bias, variables, driver, judge, features, "
            "potential, oracle, sampler, space or executors.",
        ),
    ] = None,
) -> None:
    """Write a commented campaign file: every key, its default and its unit.

    A campaign needs two files of your molecule: a PDB file (names and bonds) and a file of frames to
    begin with (eV, Å). All other keys have defaults.

    \b
    Examples:
      uqbias template -o campaign.yaml
      uqbias template --kinds bias
    """
    from uqbias.files import write_text
    from uqbias.settings.template import campaign_template, kinds_template

    text = campaign_template() if kinds is None else kinds_template(kinds)
    if output is None:
        typer.echo(text, nl=False)
        return
    if output.exists():
        raise UqbiasError(f"{output} is there already", "remove it, or choose another name")
    write_text(output, text)
    then = f"; fill in system.structure and system.start, then: uqbias validate {output}" if kinds is None else ""
    typer.echo(f"wrote {output}{then}")


def validate(
    path: CampaignPath,
    label: Annotated[
        bool,
        typer.Option(
            "--label",
            help="Also send the first start frame through the oracle: energy, forces against differences, time, charge "
            "and spin.",
        ),
    ] = False,
    executors: Executors = None,
    json: Json = False,
) -> None:
    """Check a campaign file and the files it names, without running anything.

    Tells the first fault with its key, value and cure (unknown keys with "did you mean"), or what would be run.

    \b
    Examples:
      uqbias validate campaign.yaml
      uqbias validate campaign.yaml --label
    """
    from uqbias.campaign.dry_run import outlook
    from uqbias.campaign.together import check_together
    from uqbias.campaign.work import read_molecule
    from uqbias.settings.file import load_campaign

    file = load_campaign(path, executors)
    members = file.members()
    molecules = {name: read_molecule(member) for name, member in members.items()}
    if len(members) > 1:
        check_together(file.campaign, [topology for topology, _ in molecules.values()])
    facts = {name: outlook(member, *molecules[name], label=label) for name, member in members.items()}
    if json:
        print_json(facts.get("", {"campaign": file.campaign.name, "systems": facts}))
        return
    for each in facts.values():
        each["driver"] = "; ".join(each.pop("driver_story"))
        if label:
            each["label_energy_eV"] = f"{each['label_energy_eV']:.5f}"
            each |= {name: "not stated by the oracle" for name in ("charge", "spin") if each[name] is None}
        print_pairs((name.replace("_", " "), value) for name, value in each.items())
    if len(members) > 1:
        typer.echo(
            f"{len(members)} systems, one model; labels of a round, in all: {file.campaign.harvest.labels_per_round}"
        )
    typer.echo(f"{path} is in order: uqbias run {path}")


def run(
    path: CampaignPath,
    output: Annotated[Path | None, output_option("DIR", "Run directory; runs/NAME with the campaign's name.")] = None,
    executors: Executors = None,
    walltime: Annotated[
        float | None,
        typer.Option(
            metavar="TIME",
            parser=_time,
            help="End cleanly before this time is over (h:mm:ss, d-hh:mm:ss or s), with exit code 3.",
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a campaign, or continue it where it stopped.

    Of several systems (`systems:`) each has a run directory of its name in this one, and all have one model.

    Each round: train, sample with the bias on the uncertainty, harvest, have the oracle label, retrain. Labels are on
    disk before they are used: after Ctrl-C, a kill or a crash the same command goes on and pays no label twice. After
    the rounds it writes report.html into the run directory (a page that is open shows the new one within a minute), and
    prints a summary at the end.

    Where an exploration was no sampling (walkers mostly stopped, energy that drifts) the exit code is 2 when all is
    done. With --walltime it is 3 where the time was too short, and with the oracle handoff where labels are awaited:
    the same command goes on.

    \b
    Examples:
      uqbias run systems/alanine_dipeptide/campaign.yaml -o runs/alanine_dipeptide
      uqbias run campaign.yaml --executors cluster.yaml --walltime 23:30:00
    """
    from uqbias.campaign.handed_over import AwaitingLabels
    from uqbias.campaign.progress import make_progress
    from uqbias.campaign.rounds import run_campaign
    from uqbias.md.health import UnhealthyRunError
    from uqbias.settings.file import load_campaign

    file = load_campaign(path, executors)
    if walltime is not None:
        end_in(walltime)
    directory = Path("runs") / file.campaign.name if output is None else output
    try:
        with make_progress(quiet) as progress:
            summary = run_campaign(file, directory, progress, _now_and_then(directory))
        _tell_all(directory, None, None, json=json)
    except AwaitingLabels as error:
        fail(f"{error}: uqbias run {path} -o {directory}")
        raise SystemExit(TIME_IS_UP) from None
    except BaseException as error:
        if (code := exit_code(error)) is None:
            raise
        why = "the time is up (--walltime)" if code == TIME_IS_UP else "interrupted"
        fail(f"{why}; every label is kept, `uqbias run {path} -o {directory}` goes on where it stopped")
        raise SystemExit(code) from None
    if unhealthy := summary.get("unhealthy"):
        raise UnhealthyRunError(
            f"the campaign is done, but {unhealthy[0]} ({len(unhealthy)} such rounds)",
            "its labels are sound; the MD of these rounds is no sampling: change md, bias or guards in a new run",
        )


def _now_and_then(directory: Path) -> Callable[[], None]:
    """Function that writes the reports of a run that goes on, unless the last ones are younger than a minute."""
    written = time.monotonic()

    def write() -> None:
        nonlocal written
        from uqbias.report.page import write_report
        from uqbias.runs.ledger_lines import runs_of

        if time.monotonic() - written < REPORT_EVERY:
            return
        try:
            for folder in runs_of(directory).values():
                write_report(folder)
        except Exception as error:  # a picture that cannot be drawn ends no campaign
            fail(f"the report could not be written: {error}")
        written = time.monotonic()

    return write


def report(
    directory: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, finished or not.")],
    output: Annotated[Path | None, output_option("FILE", "The HTML file; RUN/report.html.")] = None,
    figures: Annotated[
        Path | None,
        typer.Option("--figures", metavar="DIR", help="Also write each figure as a PNG file there, and hero.png."),
    ] = None,
    json: Json = False,
) -> None:
    """Print the summary of a run and write its report, one HTML file that needs nothing else.

    Shows the visited map round by round, the learning curve, uncertainty against true error, bias and walkers in time,
    what was harvested and why, and what it cost. Errors are in meV/Å and meV/atom. Works while the run goes on.

    \b
    Example:
      uqbias report runs/alanine_dipeptide --figures figures/
    """
    _tell_all(directory, output, figures, json=json)
    if figures is not None and not json:
        typer.echo(f"figures in {figures}")


def _tell_all(directory: Path, output: Path | None, figures: Path | None, *, json: bool) -> None:
    """Write the report of a run, of several systems one of each, and print the summary."""
    from uqbias.report.page import write_figures, write_report
    from uqbias.report.run_data import RunData
    from uqbias.report.summary import print_summary, summary_json
    from uqbias.runs.ledger_lines import runs_of

    runs, facts = runs_of(directory), {}
    if output is not None and len(runs) > 1:
        what = f"-o {output} for the reports of {len(runs)} systems"
        raise UqbiasError(what, "leave it out, or give the directory of one")
    for name, folder in runs.items():
        data = RunData.load(folder)
        if figures is not None:
            write_figures(data, figures / name)
        target = output or folder / "report.html"
        write_report(data, target)
        facts[name] = {**summary_json(data), "report": str(target)}
        if not json:
            if name:
                typer.echo(f"\n{name}")
            print_summary(data)
            typer.echo(f"report: {target}")
    if json:
        print_json(facts.get("", {"name": directory.name, "systems": facts}))
