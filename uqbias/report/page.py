"""One self-contained HTML page about a run: figures and their data inlined, nothing loaded from elsewhere.

The page needs no script. While the run goes on it has one that loads it anew; the 3D view is a page of its own in it.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from uqbias.files import write_text
from uqbias.report import maps, plots
from uqbias.report.attack_plots import attacks_in_time
from uqbias.report.bias_plots import final_bias
from uqbias.report.figure_data import csv_link, figure_csv, inline_svg
from uqbias.report.frames_view import frames_csv, harvested_frames, viewer
from uqbias.report.run_data import RunData, is_number
from uqbias.report.style import save
from uqbias.report.summary import campaign_story, round_table, status
from uqbias.units import duration

PACKAGES = ("uqbias", "torch", "openmm", "openmmtorch", "numpy", "scikit-learn", "mdtraj", "matplotlib")


@dataclass(frozen=True)
class PageSection:
    """One figure of the report.

    Attributes
    ----------
    key : anchor, and file name in `write_figures`.
    title : heading.
    draw : figure of a run, or None while its data are not there.
    caption : how to read it.
    waiting : what is missing while there is no figure.
    """

    key: str
    title: str
    draw: Callable[[RunData], Figure | None]
    caption: str
    waiting: str


SECTIONS = (
    PageSection(
        "maps",
        "Where the molecule went",
        maps.ramachandran,
        "Each panel is one round, titled with the labels before it and those it added. "
        "Blue shows where the walkers were (darker: more often), orange dots are the "
        "frames bought from the oracle in that round, grey dots those bought before. A campaign that works spreads "
        "over the contoured area; orange dots in a region without grey ones are new discoveries.",
        "no frame is labelled yet",
    ),
    PageSection(
        "learning",
        "What was learned per label",
        plots.learning_curve,
        "Errors on a test set that the campaign never sees, against the number of labelled frames. "
        "The curves should fall; the gap between that of a region and that of the whole map is what the model does not "
        "know there. "
        "Coverage counts the accessible bins of the reference surface that hold at least one labelled frame.",
        "no round is scored yet, or no test set is configured",
    ),
    PageSection(
        "error-maps",
        "Where the model is unsure, and where it is wrong",
        maps.error_maps,
        "Test frames averaged in bins: the driver u that the bias acts on, the calibrated uncertainty of the judge, "
        "and the true force error, each on one colour scale for all rounds. A good uncertainty is bright where the "
        "error is red, and both fade as labels arrive. Grey bins hold no test frame.",
        "no round is scored on a test set, or no coordinates are known for it",
    ),
    PageSection(
        "calibration",
        "Uncertainty against true error",
        plots.uncertainty_against_error,
        "One dot a test frame, before and after the campaign. Spearman's ρ says how well the judge ranks frames by "
        "their error (1: perfectly, 0: not at all). Dots below the dashed line have a smaller error than predicted; "
        "dots far above it are overconfident predictions.",
        "no round is scored on a test set yet",
    ),
    PageSection(
        "walkers",
        "The walkers in time",
        plots.walkers_in_time,
        "One colour a walker. The bias grows under the walkers and pushes u up; a walker that changes basin jumps in "
        "the lowest row (shaded: the regions of the campaign file). Crosses mark walkers that a guard stopped "
        "and restarted from a safe frame; the dotted line is the cap on u.",
        "no exploration round has been observed yet",
    ),
    PageSection(
        "bias",
        "The bias",
        final_bias,
        "Left: the sum of hills on each variable at the end of each round; on two variables, of the last round. Right: "
        "how often each value was visited under it. The bias is high where the walkers would stay by themselves; a "
        "visited density that reaches to large u means that the walkers were driven to geometries unlike the labelled "
        "ones.",
        "no hills are written yet",
    ),
    PageSection(
        "harvest",
        "What was harvested, and why",
        plots.harvest_reasons,
        "Left: every frame that the walkers offered, by what became of it. Refusals for bonds, angles, clashes or "
        "chirality are unphysical geometries caught before they cost a label. Right: the candidates of the last "
        "harvest; a taken set that spans u at moderate energy is what a retraining needs.",
        "nothing is harvested yet",
    ),
    PageSection(
        "cost",
        "What it cost",
        plots.cost,
        "Wall time of each phase. Labels by a force field are almost free; with an expensive oracle the label bar "
        "is the one that matters, and the number of labels the price.",
        "no phase is finished yet",
    ),
)

#: In place of the walkers and their bias, where the sampler makes adversarial attacks.
ATTACKS = PageSection(
    "attacks",
    "The attacks",
    attacks_in_time,
    "Each attack distorts a labelled frame uphill in ln L, the logarithm of uncertainty times Boltzmann factor. A line "
    "that ends while the others still rise has converged. Uncertainty that rises at a moderate price in energy is what "
    "an attack is for; energies of hundreds of kJ/mol mean that its temperature is too high for this molecule.",
    "no attack was made yet",
)
#: What captions say of walkers, and in its place where a sampler proposes geometries without MD.
PROPOSED = {
    "where the walkers were (darker: more often)": "the geometries that were proposed (darker: more of them)",
    "every frame that the walkers offered": "every geometry that the sampler proposed",
    "the driver u that the bias acts on": "the driver u",
}


def sections_of(run: RunData) -> list[PageSection]:
    """Sections of the page that a run's sampler gives something to show in."""
    if not run.proposing:
        return [*SECTIONS]
    sections = []
    for part in SECTIONS:
        if part.key == "walkers":
            sections += [ATTACKS] * (run.proposing == "attack")
        elif part.key != "bias":
            caption = part.caption
            for walkers, proposed in PROPOSED.items():
                caption = caption.replace(walkers, proposed)
            sections.append(replace(part, caption=caption))
    return sections


def write_report(run: RunData | str | Path, path: str | Path | None = None) -> Path:
    """Write the report of a run, finished or not.

    Parameters
    ----------
    run : a loaded run or its directory.
    path : the HTML file; default ``report.html`` in the run directory.

    Returns
    -------
    Path
        The file; it is replaced as a whole, so a reader never sees half of it.

    Raises
    ------
    UqbiasError
        If the directory is not a run directory.
    """
    data = run if isinstance(run, RunData) else RunData.load(run)
    target = Path(path) if path is not None else data.directory / "report.html"
    write_text(target, render(data))
    return target


def write_figures(run: RunData | str | Path, folder: str | Path, *, suffix: str = "png", dpi: int = 160) -> list[Path]:
    """Write each figure that the data allow, and ``hero``, as a file of its own; beside each its data as CSV.

    Parameters
    ----------
    suffix : ``png``, ``svg`` or ``pdf``.
    """
    data = run if isinstance(run, RunData) else RunData.load(run)
    written = []
    drawn = {part.key: part.draw(data) for part in sections_of(data)}
    drawn["hero"] = maps.hero_figure(data) if data.label_points is not None and data.rounds else None
    for key, figure in drawn.items():
        if figure is not None:
            target = Path(folder) / f"{key}.{suffix}"
            save(figure, target, dpi)
            write_text(target.with_suffix(".csv"), figure_csv(figure))
            written.append(target)
    return written


def render(run: RunData) -> str:
    """HTML of the report."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("uqbias.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    headings, rows = round_table(run)
    parts = []
    for part in sections_of(run):
        figure = part.draw(run)
        entry: dict[str, Any] = {"part": part, "source": None, "fact": _fact(part.key, run)}
        if figure is not None:
            entry |= {"source": inline_svg(figure), "width": round(figure.get_figwidth() * 100)}
            entry |= {"csv": csv_link(figure_csv(figure))}
        parts.append(entry)
    frames = harvested_frames(run)
    return environment.get_template("report.html").render(
        name=run.name,
        status=status(run),
        finished=run.finished,
        story=campaign_story(run),
        tiles=_tiles(run),
        counted="geometries that the sampler proposed and that failed"
        if run.proposing
        else "MD steps (of all walkers)",
        headings=headings,
        rows=rows,
        parts=parts,
        notes=run.notes,
        frames=frames,
        viewer=viewer(frames, environment) if frames else "",
        frames_csv=csv_link(frames_csv(frames))[1] if frames else "",
        regions=run.regions,
        driver="; ".join(run.rounds[0].training.get("driver_story", [])) if run.rounds else "",
        configuration=run.config_text,
        versions=_versions(run),
    )


def _tiles(run: RunData) -> list[tuple[str, str, str]]:
    """(value, what it is, beside it) of the numbers at the top."""
    if not run.rows:
        return []
    first, last = run.rows[0], run.rows[-1]
    tiles = []
    if is_number(last.get("labels")):
        tiles.append((str(last["labels"]), "labels", f"{first.get('labels')} at the start"))
    for key, what in (
        ("force_mae_meV_per_A", "meV/Å force MAE"),
        *((f"force_mae_{region.name}_meV_per_A", f"meV/Å force MAE, {region.text}") for region in run.regions),
    ):
        if is_number(last.get(key)):
            tiles.append((f"{last[key]:.1f}", what, f"{first[key]:.1f} after round 0" if first.get(key) else ""))
    if is_number(last.get("coverage")):
        before = f"{100 * first['coverage']:.0f} % at the start" if is_number(first.get("coverage")) else ""
        tiles.append((f"{100 * last['coverage']:.0f} %", "of accessible bins", before))
    if last.get("basins") is not None:
        tiles.append((str(len(last["basins"])), "named basins", ", ".join(last["basins"])))
    if wall := sum(run.values("wall_s")):
        tiles.append((duration(wall), "wall time", f"{last.get('oracle_calls', '?')} oracle calls"))
    return tiles


def _fact(key: str, run: RunData) -> str:
    """A sentence with this run's numbers to go with a figure."""
    stops = sum(len(entry.guard_events) for entry in run.rounds)
    if key == "harvest":
        offered = [one for entry in run.rounds for one in entry.harvest.get("candidates") or []]
        taken = sum(bool(candidate.get("taken")) for candidate in offered)
        return f"Here {taken} of {len(offered)} candidates were taken." if offered else ""
    if key == "walkers" and any(entry.observations is not None for entry in run.rounds):
        return f"Guards stopped {stops} walker{'' if stops == 1 else 's'} in all rounds together."
    if key == "attacks":
        attacks = sum(len(entry.attacks.get("status", ())) for entry in run.rounds)
        return f"Here {stops} of {attacks} attacks failed; none of them is a candidate." if attacks else ""
    if key == "maps" and run.surface is None and run.coordinates is not None and not run.coordinates.periodic:
        return (
            "Two coordinates are not configured: the axes are the first two principal components of the heavy-atom "
            "pair distances of the labelled frames."
        )
    if key == "cost":
        each = [pair for phases in plots.phase_times(run).values() for pair in phases.items()]
        seconds = {name: sum(time for phase, time in each if phase == name) for name, _ in each}
        if total := sum(seconds.values()):
            longest = max(seconds, key=lambda name: seconds[name])
            return f"Here {longest} took most: {100 * seconds[longest] / total:.0f} % of the time."
    return ""


def _versions(run: RunData) -> dict[str, Any]:
    """Versions noted when the campaign began, else those of this machine."""
    for event in run.events:
        if event.get("event") == "campaign" and isinstance(event.get("versions"), dict):
            return dict(event["versions"])
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions
