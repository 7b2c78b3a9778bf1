"""Sphinx: ``make docs``."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import generate  # noqa: E402

import uqbias  # noqa: E402

project, author, version = "uqbias", "The uqbias developers", uqbias.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx_copybutton"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
nb_execution_mode = "off"  # notebooks hold their outputs; tests/integration/test_notebooks.py executes them
html_theme = "furo"
html_title = f"uqbias {version}"
html_show_sphinx = False
default_role = "code"
napoleon_use_rtype = False
autodoc_typehints = "none"
# A docstring says `name` for what stands in the same room.
suppress_warnings = ["myst.header", "ref.python"]


def setup(app: object) -> None:
    """Write the pages that the package itself describes."""
    generate.main(HERE / "generated")
