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
    from uqbias.campaign.rebuilding import rebuild as write_anew
    from uqbias.campaign.verification import verify as look
    from uqbias.runs.ledger_lines import runs_of

    results = {name: (write_anew if rebuild else look)(folder) for name, folder in runs_of(directory).items()}
    if json:
        facts = {name: vars(result) for name, result in results.items()}
        print_json(facts.get("", {"systems": facts}))
    for name, result in results.items() if not json else ():
        print_pairs(result.checked.items())
        for note in result.notes:
            typer.echo(printable(note), err=True)
        for fault in result.faults:
            fail(f"{name}: {fault}" if name else fault)
        if not result.faults:
            done = "ledger rebuilt; continue with `uqbias run`" if rebuild else f"{directory / name} is in order"
            typer.echo(done)
    if any(result.faults for result in results.values()):
        raise typer.Exit(BAD_INPUT)
