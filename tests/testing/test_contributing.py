"""The example of CONTRIBUTING.md runs as it is printed and passes the contract of a bias."""

import re
import textwrap
from pathlib import Path

import pytest

import uqbias
from uqbias.errors import UqbiasError

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture
def ramp(monkeypatch):
    """The class of the example."""
    code = textwrap.dedent(re.search(r"```python\n(.*?)```", TEXT, re.DOTALL).group(1))
    scope = {"__name__": "ramp_of_contributing"}
    exec(code, scope)
    return scope["Ramp"]


def test_the_example_keeps_the_contract(ramp):
    report = uqbias.testing.check_bias(ramp())
    assert report.measurements


def test_its_options_are_checked(ramp):
    with pytest.raises(UqbiasError, match="ramp with slope -1"):
        ramp(slope=-1.0)
    assert ramp(variables={"phi"}).variables == ("phi",)
