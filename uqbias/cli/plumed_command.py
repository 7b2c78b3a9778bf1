"""The plumed command: input files for PLUMED, and the build of the plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uqbias.cli.printing import Json, print_json
from uqbias.errors import UqbiasError


def plumed(
    model: Annotated[Path | None, typer.Argument(metavar="[MODEL]", help="Model file (.uqb).")] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="For the input files; with --build the plugin.")
    ] = Path("plumed"),
    bias: Annotated[str, typer.Option(help="metad (well-tempered) or opes.")] = "metad",
    driver: Annotated[str, typer.Option("--output-of", help="driver or judge.")] = "driver",
    temperature: Annotated[float, typer.Option(help="K.")] = 300.0,
    sigma: Annotated[float | None, typer.Option(help="Width of a hill in units of the CV; 0.3 for nats.")] = None,
    height: Annotated[float, typer.Option(help="Of a hill, kJ/mol.")] = 1.0,
    pace: Annotated[int, typer.Option(min=1, help="Steps between hills.")] = 500,
    biasfactor: Annotated[float, typer.Option(help="γ of well-tempered metadynamics; > 1.")] = 10.0,
    barrier: Annotated[float, typer.Option(help="Highest barrier that OPES levels, kJ/mol.")] = 50.0,
    wall: Annotated[float | None, typer.Option(help="Where a wall begins; 14 for a kernel density, else none.")] = None,
    atoms: Annotated[
        str | None, typer.Option(help="The model's atoms in the engine's numbering, as PLUMED writes them: 1-22.")
    ] = None,
    float64: Annotated[bool, typer.Option("--float64", help="Evaluate in double precision.")] = False,
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
        from uqbias.plumed.input_writer import PlumedOptions, write_plumed_input

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
