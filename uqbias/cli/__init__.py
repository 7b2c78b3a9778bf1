"""Command line: one file for each few commands; nothing heavy is imported before a command runs."""

from __future__ import annotations

from typing import Annotated

import typer

import uqbias
from uqbias.cli import (
    attacks,
    campaigns,
    directions_command,
    doctor_command,
    fes,
    md_command,
    models,
    plumed_command,
)
from uqbias.cli.printing import CommandGroup

__all__ = ["app", "main"]

app = typer.Typer(
    name="uqbias",
    cls=CommandGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"uqbias {uqbias.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Enhanced sampling whose collective variable is the uncertainty of a machine-learned potential.

    A campaign, from a few labelled frames to a model that knows the whole molecule:

    \b
      uqbias template > campaign.yaml      every key, its default, what it means
      uqbias run campaign.yaml             sample, label, retrain; again to continue
      uqbias report runs/NAME              summary and report.html

    Your own data:

    \b
      uqbias train data.xyz -o model.uqb
      uqbias evaluate model.uqb test.xyz
      uqbias md model.uqb -o md/
      uqbias fes md/ --cv phi,psi

    Units: nm, ps, kJ/mol and K while it runs; data files are extended XYZ in eV and Å. Errors are one line, with what
    to do; exit code 2 for bad input, 130 after Ctrl-C.
    """


for _module in (campaigns, models, md_command, fes, attacks, directions_command, plumed_command, doctor_command):
    _module.register(app)


def main() -> None:
    """Entry point of the ``uqbias`` command."""
    app()
