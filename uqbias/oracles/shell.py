"""Commands of the user's, each in a folder of its own, and the last lines that it printed where it fails."""

from __future__ import annotations

import os
import subprocess
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from uqbias.errors import UqbiasError

#: Lines, and characters of them, that a message quotes.
LINES, CHARACTERS = 3, 400


def filled(text: str, names: Mapping[str, object]) -> str:
    """Text with ``{name}`` replaced; other braces, such as the shell's, stay."""
    for name, value in names.items():
        text = text.replace(f"{{{name}}}", str(value))
    return text


def last_lines_of(path: Path | None) -> str:
    """End of a message: the last lines of a file, if it is there."""
    if path is None or not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(-min(file.seek(0, os.SEEK_END), 10 * CHARACTERS), os.SEEK_END)
        return last_lines(file.read())


def last_lines(printed: bytes) -> str:
    """End of a message: the last lines of an output, or that there are none."""
    lines = [" ".join(line.split()) for line in printed.decode(errors="replace").splitlines()]
    text = " / ".join([line for line in lines if line][-LINES:])
    return f"; its last lines: {text[-CHARACTERS:]}" if text else "; it printed nothing"


def run_command(command: str, folder: str | Path) -> str:
    """Run a command of the shell in a folder, passing on what it prints.

    There is no time limit: a caller that needs one runs this in a process that it can end, which ends the command too.

    Returns
    -------
    str
        `last_lines` of its output.

    Raises
    ------
    UqbiasError
        If it ends with another exit code than 0.
    """
    process = subprocess.Popen(
        command, shell=True, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    tail: deque[bytes] = deque(maxlen=50)
    with process:
        assert process.stdout is not None
        while part := os.read(process.stdout.fileno(), 2**16):
            os.write(1, part)
            tail.append(part[-CHARACTERS * LINES :])
    said = last_lines(b"".join(tail))
    if process.returncode:
        end = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
        raise UqbiasError(f"`{command}` ended with {end}{said}")
    return said
