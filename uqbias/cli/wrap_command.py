"""The command wrap: a model that is not uqbias's becomes a model file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from uqbias.cli.evaluate import LABEL_KEYS, print_errors
from uqbias.cli.models import FeatureSpace, choose, sections_of, set_key
from uqbias.cli.printing import Json, output_option, print_json
from uqbias.errors import UqbiasError
from uqbias.files import check_file
from uqbias.kinds import UNCERTAINTIES
from uqbias.molecule.labels import FORMATS, LabelKeys


def wrap(
    model: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="The model; what it may be is in docs/models.md.")
    ],
    data: Annotated[Path, typer.Option(metavar="DATA", help=f"Frames, labelled for a calibration: {FORMATS}.")],
    output: Annotated[Path, output_option("FILE", "Model file to write.")] = Path("model.uqb"),
    kind: Annotated[
        str | None, typer.Option(help="Kind of model: mace, ani, sevennet, module; guessed if left out.")
    ] = None,
    head: Annotated[
        list[str] | None, typer.Option(help="Head of a MACE model that has several; repeated: a committee of heads.")
    ] = None,
    structure: Annotated[
        Path | None,
        typer.Option(metavar="PDB", help="Atom names and bonds; bonds are guessed from distances if left out."),
    ] = None,
    driver: Annotated[
        str | None, typer.Option(metavar="KIND", help="Driver, the uncertainty that a bias acts on; auto if left out.")
    ] = None,
    features: FeatureSpace = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help=f"Judge, the calibrated uncertainty: {', '.join(UNCERTAINTIES)}; gmm if left out.",
        ),
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option(metavar="CAMPAIGN.yaml", help="Take driver, judge, calibration and seed from this campaign file."),
    ] = None,
    label_keys: dict[str, Any] = LABEL_KEYS,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the frames that are held out, and of the fits.")] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any key of those sections; may be repeated."),
    ] = None,
    json: Json = False,
) -> None:
    """Make a model file of a model that is trained already, with a driver, a judge and its calibration.

    The model is not trained. The judge is fitted to the model's latents of the frames, and calibrated against the
    labels of a quarter of them that is held out, at least 1/α frames. Without labels the judge stays in its own unit.

    \b
    Examples:
      uqbias wrap my_mace.model --trust --data frames.xyz -o model.uqb
      uqbias wrap seed1.model seed2.model seed3.model --trust --judge committee --data frames.xyz
      uqbias wrap ani-1x --data frames.xyz -o model.uqb
      uqbias wrap 7net-0 --data frames.xyz -o model.uqb
      uqbias wrap my_package.models:make --data frames.xyz -o model.uqb
    """
    import torch

    from uqbias.model.fit import fit_model
    from uqbias.model.wrapping import open_model
    from uqbias.molecule.frames import read_frames
    from uqbias.molecule.topology import Topology

    torch.set_num_threads(1)
    check_file(output)
    sections = {"calibration": {"fraction": 0.25}} | sections_of(settings)  # no training needs the frames
    for unused in ("potential", "training"):
        sections.pop(unused, None)
    choose(sections, driver, features, judge)
    if seed is not None:
        sections["seed"] = seed
    for entry in change or ():
        set_key(sections, entry)
    if given := [*sections.get("potential", ()), *(sections.get("training", {}).keys() - {"validation_fraction"})]:
        raise UqbiasError(f"--set of '{given[0]}', but nothing is trained", "leave it out, or use uqbias train")
    topology = None if structure is None else Topology.from_pdb(structure)
    frames = read_frames(data, labelled=False, periodic=True, keys=LabelKeys(*label_keys.values()))
    potential = open_model(model, frames.numbers.tolist(), kind, heads=head or ())
    wrapped, facts = fit_model(frames, topology, sections, potential=potential)
    wrapped.provenance |= potential.origin
    wrapped.save(output)
    if json:
        print_json({"model": str(output), **facts})
        return
    typer.echo(f"wrapped {' '.join(model)}: driver and judge fitted to {facts['frames']} frames")
    if frames.forces is None:
        typer.echo("the frames have no forces: the judge is not calibrated")
    if facts.get("validation"):
        typer.echo("the model on frames that the judge was not fitted to:")
        print_errors(facts["validation"])
    typer.echo(f"model: {output}; next: uqbias evaluate {output} TEST.xyz, uqbias md {output} -o md/")
