"""What can be seen of the documentation without building it: links, code, commands, pages that nobody would find."""

import ast
import re
import textwrap
from pathlib import Path

import pytest

from uqbias.cli import COMMANDS

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("systems/*/README.md")]
)
#: Pages that `docs/generate.py` writes.
GENERATED = ("generated/kinds.md", "generated/commands.md")


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
    for block in fenced(text, "python"):
        ast.parse(textwrap.dedent(block))
    commands = "\n".join([*fenced(text, ""), *re.findall(r"`([^`\n]+)`", text)])
    called = set(re.findall(r"^uqbias ([a-z]+)\b", commands, re.MULTILINE))
    assert called <= set(COMMANDS)


def test_every_page_is_in_the_table_of_contents():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = {line.strip() for tree in fenced(index, "{toctree}") for line in tree.splitlines()}
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}
    assert pages <= listed
