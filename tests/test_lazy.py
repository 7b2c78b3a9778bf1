"""Every room exports its kinds and functions, and imports them when they are first asked for."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import uqbias
from uqbias.lazy import exports
from uqbias.registry import BIASES

ROOT = Path(uqbias.__file__).parent
PACKAGES = sorted(".".join(path.parent.relative_to(ROOT.parent).parts) for path in ROOT.rglob("__init__.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_exported_names_exist(package):
    room = import_module(package)
    assert room.__doc__
    assert len(set(room.__all__)) == len(room.__all__)
    submodules = {path.stem for path in Path(room.__file__).parent.iterdir()}
    for name in room.__all__:
        assert name in dir(room)
        assert getattr(room, name) is not None
        # Importing the submodule of this name would put the module where the function was.
        assert name not in submodules or package == "uqbias.cli"


def test_rooms_load_nothing_heavy():
    code = f"import sys, {', '.join(PACKAGES)}; print(*{{'torch', 'openmm', 'numpy', 'matplotlib'}} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def test_kinds_of_a_registry_are_exported_without_a_second_list():
    room = import_module("uqbias.bias")
    for kind in BIASES.builtin:
        assert BIASES.get(kind) is getattr(room, BIASES.get(kind).__name__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"module 'uqbias\.bias' has no attribute 'Metadynamic'"):
        import_module("uqbias.bias").Metadynamic  # noqa: B018
    look_up, _, names = exports("uqbias.lazy", {"nowhere": ("b", "a")})
    assert names == ["a", "b"]
    with pytest.raises(ModuleNotFoundError):
        look_up("a")


def test_a_package_that_a_module_lacks_is_named(tmp_path, monkeypatch):
    house = tmp_path / "house_of_test"
    house.mkdir()
    (house / "__init__.py").write_text("from uqbias.lazy import exports\n__getattr__, *_ = exports(__name__, {})\n")
    (house / "cellar.py").write_text("import not_installed_here\n")
    monkeypatch.syspath_prepend(tmp_path)
    package = import_module("house_of_test")
    with pytest.raises(ModuleNotFoundError, match="'not_installed_here'"):
        package.cellar  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'attic'"):
        package.attic  # noqa: B018
