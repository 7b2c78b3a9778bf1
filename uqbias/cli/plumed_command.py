"""The plumed command: input files for PLUMED, and the build of the plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from uqbias.cli.part_options import options_from
from uqbias.cli.printing import Json, output_option, print_json
from uqbias.errors import UqbiasError
from uqbias.options import options_of
from uqbias.plumed.input_options import PlumedOptions

#: ``output`` of the options has another name: --output is the folder.
NAMES = {name.replace("output", "output_of"): name for name in options_of(PlumedOptions)}
OPTIONS = options_from(PlumedOptions, **NAMES)


def plumed(
    model: Annotated[Path | None, typer.Argument(metavar="[MODEL]", help="Model file (.uqb).")] = None,
    output: Annotated[Path, output_option("DIR", "For the input files; with --build the plugin.")] = Path("plumed"),
    options: dict[str, Any] = OPTIONS,
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
    facts: dict[str, Any] = {}
    library = None
    if build:
        from uqbias.plumed.compile_plugin import build_plugin

        library = build_plugin(output)
        facts["plugin"] = str(library)
    if model is not None:
        from uqbias.model.model import UncertaintyModel
        from uqbias.plumed.input_writer import write_plumed_input

        files = write_plumed_input(UncertaintyModel.load(model), output, PlumedOptions(**options), plugin=library)
        facts["files"] = [str(path) for path in files]
    if json:
        print_json(facts)
        return
    if library is not None:
        typer.echo(f"plugin: {library}; in plumed.dat: LOAD FILE={library.resolve()}")
    for path in facts.get("files", ()):
        typer.echo(f"wrote {path}")
    if model is not None:
        typer.echo(f"how to use them: {output / 'README.md'}")
