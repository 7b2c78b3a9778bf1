"""The md command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uqbias.cli.part_options import options_from
from uqbias.cli.printing import Json, ModelPath, Quiet, output_option, print_json, split_names
from uqbias.errors import UqbiasError
from uqbias.registry import BIASES
from uqbias.settings.md_sections import MD

if TYPE_CHECKING:
    from uqbias.model.model import UncertaintyModel
    from uqbias.molecule.frames import Frames
    from uqbias.settings.schema import Campaign

#: Steps and walkers of one run. On purpose not those of a round of a campaign, which is shorter and has more walkers.
OTHERWISE = {"steps": 20_000, "walkers": 4}
DYNAMICS = options_from(
    MD,
    *("steps", "temperature", "walkers", "pressure"),
    timestep="timestep_fs",
    friction="friction_per_ps",
    defaults=OTHERWISE,
)
MACHINERY = options_from(MD, "constraints", "engine", "backend", "runner", "platform")
#: nats; how far above the wall a walker is stopped.
CAP_ABOVE_WALL = 2.0


def md(
    model: ModelPath,
    output: Annotated[Path, output_option("DIR", "For the files; must be empty or new.")] = Path("md"),
    start: Annotated[
        Path | None,
        typer.Option(metavar="FRAMES.xyz", help="Where walkers begin and begin again; eV, Å, labels not needed."),
    ] = None,
    dynamics: dict[str, Any] = DYNAMICS,
    bias: Annotated[
        str,
        typer.Option(
            metavar="KIND,...",
            help=f"{', '.join(BIASES.builtin)}, or none; several as wtm_eabf,gamd.",
        ),
    ] = "parallel_metadynamics",
    on: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...", help="Variables that are biased: by default the driver or its parts; any --variable."
        ),
    ] = None,
    variable: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=KIND:ATOMS", help="A collective variable, as phi=dihedral:4,6,8,14; repeatable."),
    ] = None,
    height: Annotated[float | None, typer.Option(help="Of a new hill, kJ/mol.")] = None,
    sigma: Annotated[float | None, typer.Option(help="Width of a hill or kernel, in units of the variable.")] = None,
    biasfactor: Annotated[float | None, typer.Option(help="γ of well-tempered metadynamics; > 1.")] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KIND.KEY=VALUE",
            help="Any key of a bias (see 'uqbias template --kinds bias'), or of md, guards, a variable; repeatable.",
        ),
    ] = None,
    pace: Annotated[
        int, typer.Option(help="Steps between hills, rows of COLVAR, trajectory frames and looks at the walkers.")
    ] = MD.model_fields["pace"].default,
    wall: Annotated[
        float | None,
        typer.Option(help="Driver value where a wall begins; by default that of the driver's kind, if it is biased."),
    ] = None,
    cap: Annotated[
        float | None,
        typer.Option(
            help=f"Driver value at which a walker is restarted; {CAP_ABOVE_WALL:g} above the wall by default."
        ),
    ] = None,
    machinery: dict[str, Any] = MACHINERY,
    seed: Annotated[int, typer.Option(min=0, help="Of velocities, noise and restarts.")] = 0,
    snapshot_every: Annotated[
        int | None, typer.Option(min=0, help="Steps between snapshots; a tenth of --steps by default; 0: none.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in DIR: the same command; --steps may be more.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Molecular dynamics with a model, biased on its uncertainty or on collective variables.

    Writes HILLS and COLVAR in PLUMED's format (ps, kJ/mol), walker_N.xtc with topology.pdb (read by mdtraj as they
    are), observations.npz, bias.npz and run.json (for `uqbias fes`) and events.jsonl (walkers that were stopped, and
    why). A walker whose geometry breaks is restarted from a start frame; the others run on. After a kill the same
    command with --resume goes on from the last snapshot.

    \b
    Examples:
      uqbias md model.uqb --start data.xyz --steps 20000 -o md/      # of this system, if the model is of several
      uqbias md model.uqb --bias wtm_eabf,gamd --set wtm_eabf.mass=1 -o md/
      uqbias md model.uqb --bias opes --variable phi=dihedral:4,6,8,14 --on driver,phi -o md/
      uqbias md model.uqb --bias none --temperature 500 -o md500/
    """
    import numpy as np

    from uqbias.campaign.progress import Announced, make_progress
    from uqbias.campaign.samplers.base import Exploration
    from uqbias.campaign.samplers.md import BiasedDynamics
    from uqbias.cli.sampling_options import choose_kinds
    from uqbias.md.health import UnhealthyRunError
    from uqbias.model.inference import evaluate_frames
    from uqbias.model.model import UncertaintyModel

    kinds = choose_kinds(bias)
    if pace > 0 and (steps := dynamics["steps"]) % pace:
        raise UqbiasError(f"{steps} steps with pace {pace}", "give a number of steps that is a multiple of --pace")
    if output.exists() and (not output.is_dir() or (any(output.iterdir()) and not resume)):
        going_on = ", or give --resume to go on with the run there" if (output / "run.json").is_file() else ""
        raise UqbiasError(
            f"{output} is not an empty directory", f"choose another with -o{going_on}; nothing there was touched"
        )
    loaded = UncertaintyModel.load(model)
    loaded, frames, another = _begin(loaded, model, start)
    if cap is None and (begins := loaded.driver.wall if wall is None else wall) is not None:
        cap = begins + CAP_ABOVE_WALL
    settings = _settings(
        loaded,
        kinds,
        None if on is None else split_names(on),
        variable or (),
        {"height": height, "sigma": sigma, "biasfactor": biasfactor},
        wall,
        change or (),
        {
            "md": {**dynamics, **machinery, **dict.fromkeys(("pace", "observe_every", "trajectory_every"), pace)},
            "guards": {"driver_cap": cap},
        },
    )
    if snapshot_every is None:
        snapshot_every = min(10_000, max(pace, dynamics["steps"] // 10))
    for warning in (hints := _hints(settings)):
        typer.echo(f"warning: {warning}", err=True)
    if another:
        output.mkdir(parents=True, exist_ok=True)
        model = output / "model.uqb"
        loaded.save(model)
    job = Exploration(
        model=model,
        folder=output,
        biases=tuple((section.kind, section.arguments()) for section in settings.bias),
        md=settings.md,
        guards=settings.guards,
        safe_frames=frames.positions,
        safe_weights=np.full(len(frames), 1.0 / len(frames)),
        safe_boxes=frames.cells,
        periodic=frames.periodic,
        # Bond lengths and chirality are those of the geometry that is lowest in energy.
        reference=frames.positions[int(evaluate_frames(loaded, frames).energy.argmin())],
        seed=seed,
        variables={name: {"kind": section.kind, **section.arguments()} for name, section in settings.variables.items()},
        snapshot_every=snapshot_every or None,
        resume=resume,
    )
    with make_progress(quiet) as progress:
        progress.phase("load or compile the model")
        facts = BiasedDynamics().explore(job, Announced(progress, "MD", settings.md.steps))
    if facts["fault"] is not None:
        raise UnhealthyRunError(*facts["fault"])
    _tell(output, facts, settings.md, hints, json=json)


def _hints(settings: Campaign) -> list[str]:
    """What the user may not expect of a run like this: that it gives no free energy."""
    hints = []
    extended = sum(BIASES.part(section.kind).follows for section in settings.bias)
    if extended > 1:
        hints.append(f"a run with {extended} extended variables explores; uqbias fes takes runs with one of them")
    for section in settings.bias:
        before, steps = BIASES.part(section.kind).adapts_for(section.arguments()), settings.md.steps
        if before and steps <= before:
            hints.append(
                f"{section.kind} is in production after {before} steps; uqbias fes takes none of these {steps}"
            )
    return hints


def _settings(
    model: UncertaintyModel,
    kinds: Sequence[str],
    names: Sequence[str] | None,
    variables: Sequence[str],
    short: dict[str, float | None],
    wall: float | None,
    changes: Sequence[str],
    sections: dict[str, dict[str, Any]],
) -> Campaign:
    """The options as a campaign, whose checks and defaults hold here too.

    Parameters
    ----------
    wall : as asked for; where none was, a bias on the driver has the usual one of the driver's kind.
    sections : ``md`` and ``guards`` as a campaign file would have them.

    Raises
    ------
    UqbiasError
        One line with the option or key that is wrong.
    """
    from uqbias.campaign.dry_run import check_exploration
    from uqbias.cli.sampling_options import apply_changes, bias_sections, needs_width, parse_variables
    from uqbias.settings.file import check_campaign

    defined = parse_variables(variables)
    biases = bias_sections(kinds, names, defined, sections["md"]["pace"], short, len(model.local_names))
    if wall is not None and "upper_wall" in kinds:
        raise UqbiasError(f"--wall {wall:g} with a bias upper_wall", "leave one out")
    on_driver = any({"driver", *model.local_names} & {*section["variables"]} for section in biases)
    if wall is None and on_driver and "upper_wall" not in kinds:
        wall = model.driver.wall
    if wall is not None:
        biases.append({"kind": "upper_wall", "at": wall})
    apply_changes(changes, kinds, biases, sections, defined)
    for section in biases:
        if (key := needs_width(section)) is not None:
            raise UqbiasError(
                f"no width is known for {section['kind']} on {', '.join(section['variables'])}",
                f"give --set {section['kind']}.{key}=VALUE",
            )
    try:
        settings = check_campaign(
            {"system": {"structure": "-", "start": "-"}, "variables": defined, "bias": biases, **sections},
            "options",
        )
        check_exploration(settings, model.topology, len(model.local_names))
    except UqbiasError as error:
        what, cure = error.what, error.cure
        for index, section in enumerate(biases):
            # A message of the bias itself begins with its kind.
            what = what.replace(f"bias.{index}: {section['kind']}", section["kind"])
            what = what.replace(f"bias.{index}", section["kind"])
        raise UqbiasError(what, cure) from None
    return settings


def _begin(model: UncertaintyModel, path: Path, start: Path | None) -> tuple[UncertaintyModel, Frames, bool]:
    """The model of the system that start frames are of, these frames, and whether it is another than the file's."""
    import numpy as np

    from uqbias.model.reference import CELL, POSITIONS, REPEATS
    from uqbias.model.several import of_system, whole_and_checked
    from uqbias.molecule.cells import EVERYWHERE
    from uqbias.molecule.frames import Frames, read_frames

    if start is None:
        kept = model.provenance.get(POSITIONS)
        if kept is None:
            raise UqbiasError(f"{path} holds no geometry to begin with", "give --start FRAMES.xyz")
        cell = model.provenance.get(CELL)
        cells = None if cell is None else np.array([cell], dtype=np.float64)
        repeats = tuple(model.provenance.get(REPEATS, EVERYWHERE))
        kept = np.array([kept], dtype=np.float64)
        return model, Frames(np.array(model.numbers), kept, cells=cells, periodic=repeats), False
    frames = read_frames(start, labelled=False, periodic=True)
    twin = of_system(model, frames)
    return twin, whole_and_checked(model, twin, frames), twin is not model


def _tell(folder: Path, facts: dict[str, Any], md: MD, hints: Sequence[str], *, json: bool) -> None:
    """Print what was sampled."""
    import numpy as np

    from uqbias.md.health import OFTEN

    with np.load(folder / "observations.npz") as seen:
        # Where a walker was stopped, its values are those of a broken geometry.
        stopped = seen["restarted"]
        driver, judge, bias = (seen[name][~stopped] for name in ("driver", "judge", "bias"))
        first = seen["driver"][0][~stopped[0]]
    share = float(stopped.mean())
    broken = [] if share < OFTEN else [f"walkers were stopped at {share:.0%} of the observations: see events.jsonl"]

    def of(function: Any, values: Any) -> float:
        return float(function(values)) if len(values) else float("nan")

    summary = {
        "directory": str(folder),
        "walkers": md.walkers,
        "time_ps": md.steps * md.timestep_fs * 1e-3,
        **{name: facts[name] for name in ("runner", "evaluations", "stopped", "was_finished")},
        "driver": {"first": of(np.mean, first), "highest": of(np.max, driver)},
        "judge_kJ_per_mol_nm": {"median": of(np.median, judge), "highest": of(np.max, judge)},
        "bias_kJ_per_mol": {"highest": of(np.max, bias)},
        "warnings": [*hints, *broken],
    }
    if json:
        print_json(summary)
        return
    typer.echo(
        f"{md.walkers} walker(s), {summary['time_ps']:g} ps each, runner {facts['runner']}, {facts['stopped']} stopped "
        "by guards"
    )
    if facts["was_finished"]:
        typer.echo(f"the run in {folder} was finished already; --resume with more --steps makes it longer")
    typer.echo("driver: {first:.3g} at the start, up to {highest:.3g}".format(**summary["driver"]))
    typer.echo("judge: median {median:.3g}, up to {highest:.3g} kJ/mol/nm".format(**summary["judge_kJ_per_mol_nm"]))
    typer.echo("bias: up to {highest:.3g} kJ/mol".format(**summary["bias_kJ_per_mol"]))
    for warning in broken:
        typer.echo(f"warning: {warning}")
    typer.echo(f"files: {folder} (mdtraj.load('{folder}/walker_0.xtc', top='{folder}/topology.pdb'))")
