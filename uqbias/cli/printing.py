"""Output of commands: JSON, two-column tables, log messages; and how errors end."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from uqbias.campaign.interrupts import exit_code
from uqbias.errors import RENAMED, UqbiasError, printable

#: Exit code for bad input or a broken environment.
BAD_INPUT = 2
#: Entries of a list that are told one by one.
NAMED = 5
#: Errors of files that name none: the disk or the quota is full, a file is larger than the system's limit, a drive has
#: no locks.
OF_DRIVES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOLCK, errno.EOPNOTSUPP)
#: Base of Typer's errors of usage, which has no public name.
WRONG_USAGE: Any = typer.BadParameter.__base__

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="Model file (.uqb).")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, for scripts.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]


def output_option(metavar: str, text: str) -> Any:
    """Describe the option ``-o`` of a command."""
    return typer.Option("-o", "--output", metavar=metavar, help=text)


class CommandGroup(TyperGroup):
    """Commands whose `UqbiasError` or error of a file is one line on stderr and exit code 2; signals are 128 + n."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        show_log()
        try:
            return super().invoke(ctx)
        except UqbiasError as error:
            fail(str(error))
            raise SystemExit(BAD_INPUT) from None
        except WRONG_USAGE as error:
            if (message := _renamed_option(error)) is None:
                raise
            fail(message)
            raise SystemExit(BAD_INPUT) from None
        except OSError as error:
            # A pipe closed by its reader is click's; what names no file may be a fault of the program.
            if isinstance(error, BrokenPipeError) or not (error.filename or error.errno in OF_DRIVES):
                raise
            name = f"{error.filename}: " if error.filename else ""
            fail(f"{name}{error.strerror or error}; check the path, its permissions, locks and the space left")
            raise SystemExit(BAD_INPUT) from None
        except BaseException as error:
            if (code := exit_code(error)) is None:
                raise
            fail("interrupted; give the same command again")
            raise SystemExit(code) from None


def _renamed_option(error: Any) -> str | None:
    """What to write in place of an option that was renamed; None for any other wrong usage."""
    option = getattr(error, "option_name", None) or ""
    name = RENAMED.get(option.removeprefix("--").replace("-", "_"))
    if name is None:
        return None
    flag = "--" + name.replace("_", "-")
    valid = [flag for parameter in error.ctx.command.params for flag in parameter.opts if flag.startswith("--")]
    cure = f"write {flag}" if flag in valid else f"{error.ctx.info_name} has none; valid: {', '.join(sorted(valid))}"
    return f"no option {option}, which is now called {flag}; {cure}"


class _Stderr(logging.Handler):
    """Log messages as lines of the program."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(printable(f"uqbias: {record.getMessage()}"), err=True)


def show_log() -> None:
    """Let the package's messages (what is compiled, what falls back) appear on stderr."""
    logger = logging.getLogger("uqbias")
    if not any(isinstance(handler, _Stderr) for handler in logger.handlers):
        logger.addHandler(_Stderr())
        logger.setLevel(logging.INFO)


def split_names(text: str | None) -> list[str]:
    """Words between the commas of an option's value; none where it is not given."""
    return [] if text is None else [word.strip() for word in text.split(",")]


def fail(message: str) -> None:
    """One line on stderr."""
    with contextlib.suppress(OSError):  # a terminal that is gone
        typer.echo(printable("uqbias: " + " ".join(message.split())), err=True)


def print_json(value: Any, *, compact: bool = False) -> None:
    """JSON on stdout, on one line if ``compact``; numbers that are not finite become null, JSON's nearest word."""
    typer.echo(printable(json.dumps(_finite(value), indent=None if compact else 1, ensure_ascii=False)))


def print_pairs(pairs: Iterable[tuple[str, Any]]) -> None:
    """Name and value in two columns."""
    rows = [(name, f"{value:.4g}" if isinstance(value, float) else str(value)) for name, value in pairs]
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        typer.echo(printable(f"{name:<{width}}  {value}".rstrip()))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def skipped_frames(skipped: Sequence[tuple[int, str]]) -> list[dict[str, Any]]:
    """(Place in the file, reason) of frames left out, for JSON."""
    return [{"frame": place, "reason": reason} for place, reason in skipped]


def tell_some(entries: Sequence[dict[str, Any]], what: str, line: str) -> None:
    """On standard error how many there are, and the first ones by ``line``, which is formatted with an entry."""
    if entries:
        typer.echo(f"{len(entries)} {what}", err=True)
        for entry in entries[:NAMED]:
            typer.echo(printable(f"  {line.format(**entry)}"), err=True)
        if len(entries) > NAMED:
            typer.echo(f"  and {len(entries) - NAMED} more (--json lists all)", err=True)
