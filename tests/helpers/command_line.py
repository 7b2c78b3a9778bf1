"""Running commands in this process."""

from typer.testing import CliRunner

from uqbias.cli import app


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(*arguments):
    """The one line on stderr of a command that must end with exit code 2."""
    done = call(*arguments)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("uqbias: ")
    return lines[0]
