"""A bias, a variable and an oracle of another distribution: one file and one entry point each, and no more."""

import importlib
import re
import sys

import numpy as np
import pytest
import yaml
from command_line import call, refused
from molecules import HYDROGENS_LAST, peroxide_geometries, peroxide_model
from peroxide_oracle import make_system

from uqbias.molecule.frames import Frames, write_frames
from uqbias.testing import check_bias, check_oracle, check_variable, molecule

MODULE = '''
import numpy as np
import torch
from typing import Annotated
from typing_extensions import Doc

from uqbias.bias.base import Bias, OneName
from uqbias.options import Count, Positive
from uqbias.oracles.base import Oracle
from uqbias.variables.base import CollectiveVariable


class Ramp(Bias):
    """A slope that grows with every update."""

    kind = "ramp"
    estimator = "last-bias"

    def __init__(
        self,
        *,
        variables: OneName = ("driver",),
        rate: Annotated[Positive, Doc("growth of the slope in kJ/mol")] = 0.25,
        pace: Annotated[Count, Doc("steps between updates")] = 10,
    ) -> None:
        super().__init__(variables)
        self.rate, self.pace = rate, pace
        self._state["slope"] = torch.zeros(())

    def energy(self, x, state):
        return state["slope"] * x[:, 0]

    def update(self, step, x, probe=None):
        if not self.frozen and step > 0 and step % self.pace == 0:
            self._state["slope"] += self.rate

    def checkpoint(self):
        return {"slope": self._state["slope"].numpy().copy()}

    def restore(self, arrays):
        self._state["slope"].fill_(float(arrays["slope"]))

    def reset(self):
        self._state["slope"].zero_()


class Gyration(CollectiveVariable):
    """Square root of the mean square distance from the centre."""

    kind, unit = "gyration", "nm"

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    @classmethod
    def build(cls, topology, *, scale: Annotated[Positive, Doc("factor of the value")] = 1.0):
        return cls(scale)

    def options(self):
        return {"scale": self.scale}

    def forward(self, positions):
        away = positions - positions.mean(1, keepdim=True)
        return self.scale * (away.pow(2).sum(-1).mean(1) + 1e-8).sqrt()


class Cage(Oracle):
    """Springs between all atoms."""

    kind = "cage"

    def __init__(self, *, constant: Annotated[Positive, Doc("kJ/mol/nm2")] = 2000.0):
        self.constant = constant

    def options(self):
        return {"constant": self.constant}

    def _evaluate(self, positions):
        away = positions - positions.mean(0)
        return 0.5 * self.constant * float((away**2).sum()), -self.constant * away
'''
ENTRY_POINTS = """
[uqbias.bias]
ramp = ramp_and_more:Ramp
[uqbias.variable]
gyration = ramp_and_more:Gyration
[uqbias.oracle]
cage = ramp_and_more:Cage
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The module of a folder on sys.path as pip would leave it."""
    (tmp_path / "ramp_and_more.py").write_text(MODULE)
    information = tmp_path / "ramp_and_more-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: ramp-and-more\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield importlib.import_module("ramp_and_more")
    sys.modules.pop("ramp_and_more", None)


def test_they_keep_their_contracts(installed):
    check_bias(installed.Ramp())
    check_variable(installed.Gyration(1.0))
    check_oracle(installed.Cage(), molecule.frames(2).positions)


@pytest.mark.parametrize(
    ("section", "kind", "key"),
    [("bias", "ramp", "rate"), ("variables", "gyration", "scale"), ("oracle", "cage", "constant")],
)
def test_template_lists_them(installed, section, kind, key):
    done = call("template", "--kinds", section)
    assert done.exit_code == 0, done.output
    (entry,) = [one for one in yaml.safe_load(done.stdout) if one["kind"] == kind]
    assert key in entry
    assert {"ramp": "growth of the slope", "gyration": "factor", "cage": "kJ/mol/nm2"}[kind] in done.stdout


@pytest.fixture
def campaign(tmp_path):
    """A function that writes a campaign with these sections, and gives its file."""
    folder = tmp_path / "campaign"
    folder.mkdir()
    path = make_system(folder, "local")

    def changed(**sections):
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **sections}))
        return path

    return changed


RAMP = {"kind": "ramp", "rate": 0.5, "variables": ["size"]}


def test_validate_knows_their_ranges(installed, campaign):
    size = {"size": {"kind": "gyration", "scale": 10.0}}
    done = call("validate", campaign(bias=[RAMP], variables=size, oracle={"kind": "cage"}))
    assert done.exit_code == 0, done.output
    assert re.search("rate.*-1.*greater than 0", refused("validate", campaign(bias=[{**RAMP, "rate": -1.0}])))
    misspelt = refused("validate", campaign(bias=[{**RAMP, "raet": 1.0}]))
    assert "bias.0.raet = 1.0: unknown key 'raet'; did you mean 'rate'?" in misspelt
    assert "scale = 0" in refused(
        "validate", campaign(bias=[RAMP], variables={"size": {"kind": "gyration", "scale": 0}})
    )
    wrong = campaign(variables=size, oracle={"kind": "cage", "constant": -1.0})
    assert "constant" in refused("validate", wrong)


def test_a_run_and_its_free_energy(installed, tmp_path):
    peroxide_model().save(tmp_path / "m.uqb")
    start = Frames(np.array(HYDROGENS_LAST.numbers), peroxide_geometries(4))
    write_frames(tmp_path / "start.xyz", start)
    arguments = ("md", tmp_path / "m.uqb", "-o", tmp_path / "run", "--start", tmp_path / "start.xyz", "--steps", 200)
    short = ("--walkers", 2, "--pace", 10, "--runner", "eager", "--quiet", "--variable", "size=gyration")
    assert "greater than 0" in refused(*arguments, *short, "--bias", "ramp", "--set", "ramp.rate=-1")
    done = call(*arguments, *short, "--bias", "ramp", "--on", "driver", "--set", "ramp.rate=0.01")
    assert done.exit_code == 0, done.output
    done = call("fes", tmp_path / "run", "--cv", "driver", "--bins", 5)
    assert done.exit_code == 0, done.output
    assert "last-bias" in done.stdout
