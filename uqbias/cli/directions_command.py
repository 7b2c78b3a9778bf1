"""The command directions: where a model's error grows, against labels of an oracle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from uqbias.cli.printing import Json, Quiet, print_json, skipped_frames, tell_some
from uqbias.errors import UqbiasError
from uqbias.files import check_directory


def directions(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model file (.uqb).")],
    data: Annotated[Path, typer.Argument(metavar="FRAMES.xyz", help="Frames in eV and Å; labels are not needed.")],
    oracle: Annotated[str, typer.Option(metavar="KIND", help="What gives the labels: openmm, ase, double_well, ...")],
    oracle_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An option of the oracle, as structure=molecule.pdb; repeatable."),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="For CSV files and figure.")] = Path(
        "directions"
    ),
    every: Annotated[int, typer.Option(min=1, metavar="K", help="Take every K-th usable frame only.")] = 1,
    epsilon: Annotated[
        str, typer.Option(metavar="E,...", help="Squared lengths of the displacement of the whole molecule, Å².")
    ] = "0.01,0.03,0.1,0.3,0.5",
    random: Annotated[int, typer.Option(min=1, help="Random directions for each frame.")] = 8,
    ascent: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="Follow the gradient of the judge, the driver, both (judge,driver), or none.",
        ),
    ] = "judge",
    zero: Annotated[
        str,
        typer.Option(help="Zero of the energy error: frames (their mean difference), none, or a difference in eV."),
    ] = "frames",
    relax_steps: Annotated[int, typer.Option(min=0, help="Steps of relaxation on the model; 0: none.")] = 100,
    relax_every: Annotated[int, typer.Option(min=1, help="Steps of relaxation between two labels.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Of the random directions.")] = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Adversarial directions of a model: where its energy error grows fastest, and whether its forces lead there.

    The adversarial direction A is the gradient of the squared energy error against the oracle. cos θ is the cosine
    between A and the model's force: above 0, the first step of the model's own dynamics makes the error larger. The
    energy error is then measured at displacements of equal length √ε along A, along random directions and along the
    gradient of the model's uncertainty, and while each frame is relaxed on the model. Geometries that the oracle
    cannot label, and frames that are not finite or of another molecule, are counted and left out. Give frames that the
    model was not made from.

    Writes directions.csv, frames.csv, relaxation.csv (eV, Å) and directions.png.

    \b
    Examples:
      uqbias directions model.uqb test.xyz --oracle openmm --oracle-option structure=molecule.pdb -o directions/
      uqbias directions model.uqb test.xyz --oracle ase --oracle-option calculator=tblite.ase:TBLite --every 10
    """
    import torch

    from uqbias.attacks.direction_tables import summary, write_tables
    from uqbias.attacks.directions import DirectionOptions, n_labels
    from uqbias.attacks.directions import directions as measure
    from uqbias.attacks.usable_frames import usable_frames
    from uqbias.campaign.progress import make_progress
    from uqbias.model.model import UncertaintyModel
    from uqbias.report.direction_plots import save_direction_figure

    torch.set_num_threads(1)
    options = DirectionOptions(
        epsilons=_numbers(epsilon),
        n_random=random,
        ascents=() if ascent == "none" else tuple(name.strip() for name in ascent.split(",")),
        zero=_zero(zero),
        relax_steps=relax_steps,
        relax_every=relax_every,
    )
    check_directory(output)
    loaded = UncertaintyModel.load(model)
    frames = usable_frames(data, loaded.numbers)
    indices, positions = frames.index[::every].tolist(), frames.positions[::every]
    truth = _oracle(oracle, oracle_option or (), loaded.numbers)
    with make_progress(quiet) as progress:
        progress.phase("label", n_labels(len(positions), options))
        result = measure(loaded, positions, truth, options, indices=indices, seed=seed, advance=progress.advance)
    files = write_tables(result, output)
    files.append(output / "directions.png")
    save_direction_figure({str(model): result}, files[-1])
    facts = summary(result) | {"skipped": skipped_frames(frames.skipped)}
    known = _trained_on(loaded, positions)
    if json:
        print_json(
            {"model": str(model), "data": str(data), "frames_trained_on": known, **facts, "files": [*map(str, files)]}
        )
    else:
        _tell(facts, known, files)


def _tell(facts: dict[str, Any], known: int | None, files: Sequence[Path]) -> None:
    from uqbias.attacks.direction_tables import table

    tell_some(facts["skipped"], "frames skipped", "frame {frame}: {reason}")
    typer.echo(f"{facts['frames_used']} of {facts['frames']} frames, {facts['failed']} geometries failed")
    if facts["failures"]:
        first = facts["failures"][0]
        typer.echo(f"the first: frame {first['frame']}, {first['place']}: {first['reason']}")
    if known:
        typer.echo(f"warning: the model was made from {known} of these frames, on which it looks better than it is")
    cos = facts["cos_theta"]
    typer.echo(
        f"\ncos θ of adversarial direction and model's force: {cos['mean']:+.3f} ± {cos['std']:.3f} (chance: 0 ± "
        f"{cos['std_of_chance']:.3f}), above 0 in {100 * cos['positive']:.0f} % of the frames"
    )
    for name in ("judge", "driver"):
        if cosines := facts.get(f"cos_{name}"):
            typer.echo(
                f"mean |cos| of adversarial direction and gradient of '{name}': {cosines['mean_size']:.3f} (chance: "
                f"{cosines['mean_size_of_chance']:.3f})"
            )
    typer.echo(
        f"\nmean |energy error| in meV at displacements of length √ε, standard error over the frames; zero of the "
        f"error {facts['zero_eV']:.6g} eV"
    )
    for line in table(facts):
        typer.echo(line)
    if relaxed := facts.get("relaxation"):
        error, step = relaxed["energy_error_meV"]["mean"], facts["first_step"]
        typer.echo(
            f"\nrelaxation on the model: mean |energy error| {error[0]:.3g} meV at the start, {error[-1]:.3g} meV "
            f"after {relaxed['steps'][-1]} steps ({100 * relaxed['converged']:.0f} % converged, {relaxed['failed']} "
            "broken off at forces that are not finite)"
        )
        typer.echo(
            f"first step: Spearman ρ of cos θ and the change of |energy error| {step['spearman']:.2f}, one sign in "
            f"{100 * step['agreement']:.0f} % of the frames"
        )
    typer.echo("files: " + ", ".join(str(file) for file in files))


def _trained_on(model: Any, positions: Any) -> int | None:
    from uqbias.molecule.seen import is_in

    return int(is_in(model.seen, positions).sum()) if len(model.seen) else None


def _oracle(kind: str, entries: Sequence[str], numbers: Sequence[int]) -> Any:
    from uqbias.options import parameters_of
    from uqbias.registry import ORACLES
    from uqbias.settings.file import read_yaml

    options: dict[str, Any] = {}
    for entry in entries:
        key, separator, text = entry.partition("=")
        if not (key.strip() and separator):
            raise UqbiasError(f"--oracle-option {entry}", "write --oracle-option KEY=VALUE")
        try:
            options[key.strip()] = read_yaml(text)
        except UqbiasError as error:
            raise UqbiasError(f"--oracle-option {entry}: '{text}' is not a YAML value", "quote it") from error
    if "numbers" in parameters_of(ORACLES.get(kind)) and not {"numbers", "structure"} & set(options):
        options["numbers"] = list(numbers)
    return ORACLES.rebuild(kind, options)


def _numbers(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise UqbiasError(f"--epsilon {text}", "give numbers in Å², as 0.1,0.3,0.5") from None


def _zero(text: str) -> str | float:
    """EV on the command line, kJ/mol inside."""
    from uqbias.units import EV

    if text in ("frames", "none"):
        return text
    try:
        value = float(text) * EV
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UqbiasError(f"--zero {text}", "choose frames, none, or a finite difference in eV")
    return value
