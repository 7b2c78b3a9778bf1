"""The command directions: where a model's error grows, against labels of an oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from uqbias.attacks.attack_options import DirectionOptions
from uqbias.cli.part_options import options_from
from uqbias.cli.printing import Json, Quiet, print_json, skipped_frames, tell_some
from uqbias.errors import printable
from uqbias.files import check_directory

OPTIONS = options_from(
    DirectionOptions,
    "zero",
    "relax_steps",
    "relax_every",
    epsilon="epsilons",
    random="n_random",
    ascent="ascents",
)


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
    options: dict[str, Any] = OPTIONS,
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

    from uqbias.attacks.direction_tables import lines_of, summary, write_tables
    from uqbias.attacks.directions import directions as measure
    from uqbias.attacks.directions import n_labels
    from uqbias.attacks.usable_frames import usable_frames
    from uqbias.campaign.contained_oracle import ContainedOracle
    from uqbias.campaign.progress import make_progress
    from uqbias.cli.models import set_key
    from uqbias.model.model import UncertaintyModel
    from uqbias.molecule.seen import is_in
    from uqbias.options import parameters_of
    from uqbias.registry import ORACLES
    from uqbias.report.direction_plots import save_direction_figure

    torch.set_num_threads(1)
    chosen = DirectionOptions(**options)
    check_directory(output)
    loaded = UncertaintyModel.load(model)
    frames = usable_frames(data, loaded.topology)
    indices, positions = frames.index[::every].tolist(), frames.positions[::every]
    section: dict[str, Any] = {}
    for entry in oracle_option or ():
        set_key({"oracle": section}, entry, "--oracle-option", within="oracle")
    if "numbers" in parameters_of(ORACLES.get(oracle)) and not {"numbers", "structure"} & set(section):
        section["numbers"] = list(loaded.numbers)
    truth = ContainedOracle(ORACLES.rebuild(oracle, section))
    with make_progress(quiet) as progress:
        progress.phase("label", n_labels(len(positions), chosen))
        result = measure(loaded, positions, truth, chosen, indices=indices, seed=seed, advance=progress.advance)
    files = [*write_tables(result, output), output / "directions.png"]
    save_direction_figure({str(model): result}, files[-1])
    facts = {
        "model": str(model),
        "data": str(data),
        "frames_trained_on": int(is_in(loaded.seen, positions).sum()) if len(loaded.seen) else None,
        **summary(result),
        "skipped": skipped_frames(frames.skipped),
        "files": [str(file) for file in files],
    }
    if json:
        print_json(facts)
        return
    tell_some(facts["skipped"], "frames skipped", "frame {frame}: {reason}")
    typer.echo(printable("\n".join([*lines_of(facts), f"files: {', '.join(facts['files'])}"])))
