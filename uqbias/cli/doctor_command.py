"""The doctor command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uqbias.cli.printing import BAD_INPUT, Json, print_json


def doctor(
    quick: Annotated[
        bool, typer.Option("--quick", help="Leave out the aoti runner, whose first compilation takes under a minute.")
    ] = False,
    executors: Annotated[
        Path | None,
        typer.Option(
            "--executors",
            metavar="FILE",
            help="Send a tiny job to each executor of this file instead, from a folder below the current one.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Check this installation: versions, OpenMM platforms, compiler, and forces against finite differences.

    A tiny molecule is run through each backend (pythonforce, torchforce), runner (aoti, torchscript, eager) and OpenMM
    platform; its forces are compared with central differences of its energies. Each check runs in a process of its
    own, since some combinations of versions kill the process. Each row says ok, limited, absent or failed, and the
    cure. Exit code 0 if at least one backend works and nothing that is installed is broken, else 2.

    \b
    Examples:
      uqbias doctor
      uqbias doctor --executors cluster.yaml
    """
    from uqbias.doctor import examine, examine_executors, healthy

    rows = []
    for row in examine(quick=quick) if executors is None else examine_executors(executors, Path.cwd()):
        rows.append(row)
        if not json:
            typer.echo(f"{row.status:<8} {row.what:<48} {row.detail}".rstrip())
            if row.cure:
                typer.echo(f"{'':<8} {'':<48} -> {row.cure}")
    good = healthy(rows) if executors is None else all(row.status == "ok" for row in rows)
    if json:
        print_json({"healthy": good, "rows": [row._asdict() for row in rows]})
    elif good:
        typer.echo("everything that is needed works")
        typer.echo(
            'next: uqbias new "NCCCO" for a molecule of your own, uqbias train frames.xyz for labelled frames, '
            "uqbias wrap MODEL --data frames.xyz for a trained model"
            if executors is None
            else f"next: uqbias run CAMPAIGN.yaml --executors {executors}"
        )
    else:
        cures = [row for row in rows if row.status == "failed" and row.cure]
        typer.echo(f"something is broken: see the failed rows{f'; first: {cures[0].cure}' if cures else ''}")
        typer.echo("next: uqbias doctor again")
    if not good:
        raise typer.Exit(BAD_INPUT)
