"""Command line: one file for each few commands; nothing heavy is imported before a command runs."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

import uqbias
from uqbias.campaign.interrupts import raise_on_signals
from uqbias.cli.printing import CommandGroup

__all__ = ["app", "main"]

#: Name of each command: file below ``uqbias.cli`` that holds its function, and what the list of commands says of it.
COMMANDS = {
    "new": ("new_command", "A campaign from a SMILES or a structure file."),
    "template": ("campaigns", "Write a commented campaign file."),
    "validate": ("campaigns", "Check a campaign file without running it."),
    "run": ("campaigns", "Run a campaign, or continue it."),
    "status": ("status_command", "How far a run is, and what it waits for."),
    "verify": ("verify_command", "Check a run's ledger, labels and files."),
    "report": ("campaigns", "Print a run's summary, write its HTML report."),
    "train": ("models", "Train a model on your own frames."),
    "wrap": ("wrap_command", "Model file of a model that is trained already."),
    "evaluate": ("evaluate", "Errors of a model, and of its uncertainty."),
    "info": ("models", "What is in a model file."),
    "export": ("models", "Write a plain TorchScript module."),
    "md": ("md_command", "MD with a model, biased on its uncertainty."),
    "fes": ("fes", "Free energy from one or more runs."),
    "attack": ("attacks", "Adversarial attacks: unsure geometries by gradient ascent."),
    "directions": ("directions_command", "Adversarial directions: where a model's error grows."),
    "plumed": ("plumed_command", "Input for PLUMED, and its plugin."),
    "doctor": ("doctor_command", "Check this installation, forces included."),
}
#: Commands that do something useful without an argument.
WITHOUT_ARGUMENTS = ("template", "doctor")
#: Commands that make parts from what a model file or a run folder names, or open a pickle.
READ_FILES = ("wrap", "evaluate", "info", "export", "md", "fes", "attack", "directions", "plumed")
LOOKS: dict[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False, "rich_markup_mode": None}


class LazyCommands(CommandGroup):
    """The commands of `COMMANDS`, each imported when it is called or asked for help."""

    #: Whether names are completed: no command is imported for that.
    naming = False

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Names of commands that a shell may complete."""
        self.naming = True
        try:
            return super().shell_complete(ctx, incomplete)
        finally:
            self.naming = False

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a name, or None."""
        if cmd_name not in COMMANDS:
            return None
        if self.naming:
            return TyperCommand(cmd_name, short_help=COMMANDS[cmd_name][1])
        from uqbias.cli.part_options import command

        file, summary = COMMANDS[cmd_name]
        function: Callable[..., Any] = getattr(import_module(f"uqbias.cli.{file}"), cmd_name)
        alone = typer.Typer(**LOOKS)
        declare = alone.command(cmd_name, no_args_is_help=cmd_name not in WITHOUT_ARGUMENTS, short_help=summary)
        declare(command(function, trusting=cmd_name in READ_FILES))
        return typer.main.get_command(alone)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find a command, or name the nearest one."""
        self.commands = dict.fromkeys(COMMANDS)  # type: ignore[assignment] # only its keys are looked at
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="uqbias",
    cls=LazyCommands,
    no_args_is_help=True,
    **{**LOOKS, "add_completion": True},
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
      uqbias new "NCCCO" -o aminopropanol  structure, start frames, campaign file of a SMILES or a file
      uqbias template > campaign.yaml      every key, its default, what it means
      uqbias run campaign.yaml             sample, label, retrain; again to continue
      uqbias report runs/NAME              summary and report.html

    Your own data:

    \b
      uqbias train data.xyz -o model.uqb
      uqbias evaluate model.uqb test.xyz
      uqbias md model.uqb -o md/
      uqbias fes md/ --cv phi,psi

    Units: nm, ps, kJ/mol and K while it runs; eV and Å in data files. Those are written as extended XYZ and read in the
    formats that uqbias train --help names.

    \b
    Exit codes:
      0    done
      1    a fault of the program, with a traceback: please report it
      2    bad input, or something is broken: one line says what, and what to do
      3    the time is up, or labels are awaited: the same command goes on
      130  Ctrl-C; 143 and 129: signals TERM and HUP; the same command goes on
    """


def main() -> None:
    """Entry point of the ``uqbias`` command."""
    raise_on_signals()
    app()
