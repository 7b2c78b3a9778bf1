"""The rooms of the house: a room imports only what stands below it, no circle, no name twice."""

from __future__ import annotations

import ast
import itertools
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import uqbias

ROOT = Path(uqbias.__file__).parent
TESTS = Path(__file__).parent
#: From the lowest room to the highest; rooms of one line do not import each other.
FLOORS = (
    ("errors", "lazy", "units"),
    ("files", "kinds", "options"),
    ("registry",),
    ("molecule",),
    ("potentials", "variables"),
    ("uncertainty",),
    ("bias",),
    ("compile",),
    ("settings",),
    ("model",),
    ("runs",),
    ("md",),
    ("app",),
    ("ase", "plumed", "oracles"),
    ("attacks", "testing"),
    ("free_energy",),
    ("report",),
    ("campaign",),
    ("doctor",),
    ("cli",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> dict[str, Path]:
    """Dotted name of each module of the package to its file."""
    result = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        result[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return result


MODULES = modules()


def imports_of(module: str) -> set[str]:
    """Modules of the package that a module imports anywhere, in functions and for type checkers too."""
    targets = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        targets |= {name for name in names if name in MODULES and name != "uqbias"}
    return targets - {module}


def room_of(module: str) -> str:
    return module.split(".")[1]


def test_every_room_has_a_floor():
    assert {room_of(module) for module in MODULES if module != "uqbias"} == set(FLOOR)


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"uqbias"}))
def test_imports_run_down(module):
    room = room_of(module)
    for target in imports_of(module):
        other = room_of(target)
        assert other == room or FLOOR[other] < FLOOR[room], f"{module} imports {target}"


def test_no_circle_of_modules():
    # A package's __init__ that re-exports its modules is no part of a circle: they are imported by their own names.
    graph = {module: imports_of(module) - {"uqbias"} for module in MODULES}
    graph = {module: {t for t in targets if MODULES[t].name != "__init__.py"} for module, targets in graph.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"circle: {' -> '.join(error.args[1])}")


def test_modules_are_short():
    lengths = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    assert {module: length for module, length in lengths.items() if length > 400} == {}


def test_no_two_classes_of_one_name():
    classes = Counter(
        node.name
        for path in MODULES.values()
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in classes.items() if count > 1] == []


def test_no_two_files_of_one_name():
    # `base.py` holds a room's contract and `build.py` makes its parts, in every room.
    names = sorted((path.name, module) for module, path in MODULES.items())
    groups = {name: [m for _, m in group] for name, group in itertools.groupby(names, key=lambda pair: pair[0])}
    common = {"__init__.py", "base.py", "build.py"}
    assert {name: where for name, where in groups.items() if len(where) > 1 and name not in common} == {}


def test_tests_mirror_the_rooms():
    folders = {path.name for path in TESTS.iterdir() if path.is_dir() and not path.name.startswith("__")}
    assert folders - {"physics", "integration", "gpu", "benchmarks", "helpers", "fuzz"} <= set(FLOOR)
    alone = {path.name.removeprefix("test_").removesuffix(".py") for path in TESTS.glob("test_*.py")}
    files = {room for room in FLOOR if f"uqbias.{room}" in MODULES and not (ROOT / room).is_dir()}
    assert alone <= files | {"rooms", "docs"}
