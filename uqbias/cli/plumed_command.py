"""The plumed command: input files for PLUMED, and the build of the plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uqbias.cli.from_parts import option
from uqbias.cli.printing import Json, print_json
from uqbias.errors import UqbiasError
from uqbias.plumed.input_options import PlumedOptions


def plumed(
    model: Annotated[Path | None, typer.Argument(metavar="[MODEL]", help="Model file (.uqb).")] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="For the input files; with --build the plugin.")
    ] = Path("plumed"),
    bias: Annotated[str, option(PlumedOptions, "bias")] = PlumedOptions.bias,
    driver: Annotated[str, option(PlumedOptions, "output", "--output-of")] = PlumedOptions.output,
    temperature: Annotated[float, option(PlumedOptions, "temperature")] = PlumedOptions.temperature,
    sigma: Annotated[float | None, option(PlumedOptions, "sigma")] = PlumedOptions.sigma,
    height: Annotated[float, option(PlumedOptions, "height")] = PlumedOptions.height,
    pace: Annotated[int, option(PlumedOptions, "pace")] = PlumedOptions.pace,
    biasfactor: Annotated[float, option(PlumedOptions, "biasfactor")] = PlumedOptions.biasfactor,
    barrier: Annotated[float, option(PlumedOptions, "barrier")] = PlumedOptions.barrier,
    wall: Annotated[float | None, option(PlumedOptions, "wall")] = PlumedOptions.wall,
    atoms: Annotated[str | None, option(PlumedOptions, "atoms")] = PlumedOptions.atoms,
    float64: Annotated[bool, option(PlumedOptions, "float64", "--float64")] = PlumedOptions.float64,
    build: Annotated[bool, typer.Option("--build", help="Compile the plugin for this PLUMED and this torch.")] = False,
    json: Json = False,
) -> None:
    """Write plumed.dat, the exported model and how to use them; or build the plugin that reads it.

    Nothing of PLUMED is needed to write the files; a PLUMED kernel, cmake and a C++ compiler are to build the plugin.

    \b
    Examples:
      uqbias plumed model.uqb --bias metad -o plumed/
      uqbias plumed --build -o plumed/
    """
    if model is None and not build:
        raise UqbiasError("neither a model nor --build", "give a model file, or --build")
    facts: dict[str, object] = {}
    library = None
    if build:
        from uqbias.plumed.compile_plugin import build_plugin

        library = build_plugin(output)
        facts["plugin"] = str(library)
    if model is not None:
        from uqbias.model.model import UncertaintyModel
        from uqbias.plumed.input_writer import write_plumed_input

        options = PlumedOptions(
            bias=bias,
            output=driver,
            temperature=temperature,
            sigma=sigma,
            height=height,
            pace=pace,
            biasfactor=biasfactor,
            barrier=barrier,
            wall=wall,
            atoms=atoms,
            float64=float64,
        )
        facts["files"] = [
            str(path) for path in write_plumed_input(UncertaintyModel.load(model), output, options, plugin=library)
        ]
    if json:
        print_json(facts)
        return
    if library is not None:
        typer.echo(f"plugin: {library}; in plumed.dat: LOAD FILE={library.resolve()}")
    for path in facts.get("files", ()):  # type: ignore[attr-defined]
        typer.echo(f"wrote {path}")
    if model is not None:
        typer.echo(f"how to use them: {output / 'README.md'}")
