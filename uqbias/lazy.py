"""Public names of a package, imported when first asked for, so that the package itself loads nothing heavy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any


def exports(
    package: str, names: Mapping[str, tuple[str, ...]], kinds: Iterable[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package (PEP 562).

    Parameters
    ----------
    package : dotted name; ``__name__`` in the package's own ``__init__.py``.
    names : module within the package to the public names that it holds.
    kinds : further names as a registry states them, ``module:name`` with the whole path of the module.
    """
    places = {name: f"{package}.{module}" for module, held in names.items() for name in held}
    for place in kinds:
        module, _, name = place.partition(":")
        places[name] = module

    def look_up(name: str) -> Any:
        if name not in places:
            if not name.startswith("_"):
                try:
                    return import_module(f"{package}.{name}")  # a room, or a module of one
                except ModuleNotFoundError as error:
                    if error.name != f"{package}.{name}":  # a package that the room needs
                        raise
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        value = getattr(import_module(places[name]), name)
        setattr(sys.modules[package], name, value)  # the next time it is there
        return value

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *places})

    return look_up, list_names, sorted(places)
