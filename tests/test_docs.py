"""What can be seen of the documentation without building it: links, code, commands, pages that nobody would find."""

import ast
import inspect
import re
import textwrap
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

import uqbias
from uqbias.cli import COMMANDS, app
from uqbias.settings.schema import Campaign, Executors

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("systems/*/README.md")]
)
#: Pages that `docs/generate.py` writes.
GENERATED = ("generated/kinds.md", "generated/commands.md", "generated/rooms.md")


def fenced(text, language):
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)(#[^)]*)?\)", page.read_text(encoding="utf-8"))
    here = [link for link, _ in links if not link.startswith(("http", "mailto"))]
    dead = [link for link in here if not (page.parent / link).exists() and not link.endswith(GENERATED)]
    assert not dead


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_is_code_and_commands_are_there(page):
    text = page.read_text(encoding="utf-8")
    for block in fenced(text, "python"):  # executed by tests/integration/test_code_in_docs.py
        ast.parse(textwrap.dedent(block))
    for block in fenced(text, "yaml"):
        sections = yaml.safe_load(textwrap.dedent(block))
        assert set(sections) <= {*Campaign.model_fields, *Executors.model_fields}
    commands = "\n".join([*fenced(text, ""), *re.findall(r"`([^`\n]+)`", text)])
    called = set(re.findall(r"^uqbias ([a-z]+)\b", commands, re.MULTILINE))
    assert called <= set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_in_commands_are_there(page):
    text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
    shown = "\n".join(block for language in ("", "bash", "sh") for block in fenced(text, language))
    for line in re.findall(r"^[ $]*uqbias ([a-z]+ .*)$", shown, re.MULTILINE):
        command, _, rest = line.partition(" ")
        group = get_command(app)
        known = {flag for one in group.get_command(None, command).params for flag in one.opts}
        given = set(re.findall(r"(?<!\S)(--[a-z-]+|-[a-zA-Z])\b", rest.split("#")[0]))
        assert given <= known, line


@pytest.mark.parametrize("name", [name for name in uqbias.__all__ if name != "__version__"])
def test_every_public_name_is_in_the_reference(name):
    assert re.search(rf":: {name}$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("room", sorted(path.parent.name for path in ROOT.glob("uqbias/*/__init__.py")))
def test_every_public_name_is_described(room):
    module = import_module(f"uqbias.{room}")
    for name in getattr(module, "__all__", ()):
        part = getattr(module, name)
        if inspect.isclass(part) or inspect.isroutine(part):
            assert (inspect.getdoc(part) or "").strip(), name
            members = [key for key, value in vars(part).items() if inspect.isfunction(value) and key[0] != "_"]
            assert not [key for key in members if not inspect.getdoc(getattr(part, key))], name


def test_every_page_is_in_the_table_of_contents():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = {line.strip() for tree in fenced(index, "{toctree}") for line in tree.splitlines()}
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}
    pages |= {f"notebooks/{page.stem}" for page in (ROOT / "docs" / "notebooks").glob("*.ipynb")}
    assert pages <= listed
