"""The command that proves a run directory, or writes its ledger anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uqbias.cli.printing import BAD_INPUT, Json, fail, print_json, print_pairs
from uqbias.errors import printable


def verify(
    directory: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild", help="Write the ledger anew from what is there; what it replaces stays as *.damaged.N."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Check that a run is what the campaign wrote: ledger, labels, and the files of every phase.

    Each line of the ledger carries a checksum that covers the line before it, and the hashes of the files that a phase
    left. One line for each fault, and exit code 2 where there is one.

    --rebuild writes a ledger from its sound lines, the folders of labels, dataset.xyz and the rounds: `uqbias run` goes
    on from the last whole model, and pays for no frame that has a label.

    \b
    Examples:
      uqbias verify runs/alanine_dipeptide
      uqbias verify runs/alanine_dipeptide --rebuild
    """
    if rebuild:
        from uqbias.campaign.rebuilding import rebuild as write_anew

        result = write_anew(directory)
    else:
        from uqbias.campaign.verification import verify as look

        result = look(directory)
    if json:
        print_json(vars(result))
    else:
        print_pairs(result.checked.items())
        for note in result.notes:
            typer.echo(printable(note), err=True)
        for fault in result.faults:
            fail(fault)
        if not result.faults:
            typer.echo("ledger rebuilt; continue with `uqbias run`" if rebuild else f"{directory} is in order")
    if result.faults:
        raise typer.Exit(BAD_INPUT)
