"""Pages that the package itself describes: kinds of parts with their options, and commands; ``conf.py`` calls this."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import uqbias
from uqbias.cli import COMMANDS
from uqbias.options import options_of
from uqbias.registry import Registry
from uqbias.settings.template import OF_KINDS

#: Section whose kinds they are, heading, and the keys of a campaign file.
SECTIONS = (
    ("judge", "Uncertainties", "`driver:`, `judge:`"),
    ("features", "Feature spaces", "`driver.features:`, `judge.features:`"),
    ("bias", "Biases", "`bias:`"),
    ("variables", "Collective variables", "`variables:`"),
    ("sampler", "Samplers", "`sampler:`"),
    ("space", "Distortion spaces", "`attack.space:`, `random.space:`"),
    ("potential", "Potentials", "`potential:`"),
    ("oracle", "Oracles", "`oracle:`"),
    ("executors", "Executors", "`executors.label:`, `.train:`, `.explore:`"),
)


def main(folder: Path) -> None:
    """Write ``kinds.md``, ``commands.md`` and ``rooms.md``."""
    folder.mkdir(exist_ok=True)
    _write(folder / "kinds.md", _kinds())
    _write(folder / "commands.md", _commands())
    _write(folder / "rooms.md", _rooms())


def _write(path: Path, text: str) -> None:
    # A file that is as it was keeps its time, so that Sphinx need not read it again.
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def _kinds() -> str:
    lines = ["# Kinds of parts", ""]
    lines += [
        "`uqbias template --kinds SECTION` prints the options. A kind of your own: [contribute](../contribute.md)."
    ]
    for section, heading, keys in SECTIONS:
        registry = OF_KINDS[section]
        lines += ["", f"## {heading}", "", f"In a campaign file: {keys}."]
        for name in registry.names():
            lines += ["", f"### `{name}`", "", *_part(registry, name)]
    return "\n".join(lines) + "\n"


def _part(registry: Registry, name: str) -> list[str]:
    part = registry.part(name)
    lines = ["```{eval-rst}", *_described(part), "```", ""]
    if options := options_of(part, registry.given):
        lines += ["| option | default | |", "|---|---|---|"]
        for key, option in options.items():
            default = "" if option.required else f"`{_plain(option.default)}`"
            lines.append(f"| `{key}` | {default} | {_cell(option.description)} |")
    return lines


def _described(part: Any) -> list[str]:
    name = f"{part.__module__}.{part.__qualname__}"
    directive = "autoclass" if inspect.isclass(part) else "autofunction"
    return [f".. {directive}:: {name}", "   :no-index:"]


def _rooms() -> str:
    lines = ["# Public names by room", "", "Each is imported from its room, `from uqbias.ROOM import NAME`."]
    for path in sorted(Path(uqbias.__file__).parent.glob("*/__init__.py")):
        room = import_module(f"uqbias.{path.parent.name}")
        names = {name: getattr(room, name) for name in getattr(room, "__all__", ())}
        parts = {name: part for name, part in names.items() if inspect.isclass(part) or inspect.isroutine(part)}
        if parts:
            lines += ["", f"## `{room.__name__}`", "", (room.__doc__ or "").strip(), "", "| name | |", "|---|---|"]
        for name, part in parts.items():
            lines.append(f"| `{name}` | {_cell((inspect.getdoc(part) or '').partition(chr(10) * 2)[0])} |")
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> str:
    return str(value).replace("|", "\\|") if value is not None else "null"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _commands() -> str:
    environment = {**os.environ, "COLUMNS": "110", "NO_COLOR": "1", "TERM": "dumb"}
    program = [sys.executable, "-c", "import sys; sys.argv[0] = 'uqbias'; from uqbias.cli import main; main()"]

    def help_of(*command: str) -> str:
        call = [*program, *command, "--help"]
        done = subprocess.run(call, capture_output=True, text=True, env=environment, check=True)
        return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())

    lines = ["# Commands", "", "```text", help_of(), "```"]
    for command in COMMANDS:
        lines += ["", f"## uqbias {command}", "", "```text", help_of(command), "```"]
    return "\n".join(lines) + "\n"
