"""A kind that another distribution registers by an entry point: found by name, and tested with one call."""

import importlib
import subprocess
import sys
import textwrap

import pytest

from uqbias.errors import UqbiasError
from uqbias.registry import UNCERTAINTIES
from uqbias.testing import ContractError, build_case, check_uncertainty, molecule

MODULE = '''
import torch
from uqbias.uncertainty.base import Uncertainty, set_buffers


class LatentSpread(Uncertainty):
    """Mean square distance of an element's latents from their mean over the training set, to a power."""

    unit = "dimensionless"

    def __init__(self, n_latents, power=1.0):
        super().__init__()
        self.n_latents, self.power = n_latents, power
        self.register_buffer("centre", torch.zeros(n_latents))
        self.register_buffer("scale", torch.ones(()))

    @classmethod
    def build(cls, topology, n_latents, *, power=1.0):
        return cls(n_latents, power)

    def options(self):
        return {"n_latents": self.n_latents, "power": self.power}

    @property
    def requires_latents(self):
        return True

    def fit(self, positions, energy, latents, forces=None, *, seed):
        centre = latents[0].mean((0, 1))
        set_buffers(self, centre=centre, scale=(latents[0] - centre).square().sum(-1).mean())

    def per_atom(self, positions, energy, latents, forces=None):
        return (latents[0] - self.centre).square().sum(-1) / self.scale

    def forward(self, positions, energy, latents, forces=None):
        return self.per_atom(positions, energy, latents).mean(-1) ** self.power


class HardSpread(LatentSpread):
    def forward(self, positions, energy, latents, forces=None):
        return self.per_atom(positions, energy, latents)[:, 4:].amax(-1)
'''
METADATA = {
    "METADATA": "Metadata-Version: 2.1\nName: latent-spread\nVersion: 1.0\n",
    "entry_points.txt": """
        [uqbias.uncertainty]
        latent_spread = latent_spread:LatentSpread
        hard_spread = latent_spread:HardSpread
    """,
}
WITHOUT_PYTEST = """
import sys
sys.modules["pytest"] = None
import torch
torch.set_num_threads(1)
from uqbias.testing import ContractError, build_case, check_gradient, check_smoothness
print(check_gradient(build_case("latent_spread")))
try:
    check_smoothness(build_case("hard_spread"))
except AssertionError as error:
    print(error)
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A folder on sys.path as pip would leave it."""
    (tmp_path / "latent_spread.py").write_text(MODULE)
    information = tmp_path / "latent_spread-1.0.dist-info"
    information.mkdir()
    for name, content in METADATA.items():
        (information / name).write_text(textwrap.dedent(content))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop("latent_spread", None)


def test_found_by_name_and_built(installed):
    assert UNCERTAINTIES.get("latent_spread").__name__ == "LatentSpread"
    assert "latent_spread" in UNCERTAINTIES.names()
    made = UNCERTAINTIES.build("latent_spread", {"power": 0.5}, topology=molecule.topology(), n_latents=8)
    assert (made.kind, made.power) == ("latent_spread", 0.5)
    with pytest.raises(UqbiasError, match="did you mean 'power'"):
        UNCERTAINTIES.build("latent_spread", {"powr": 0.5}, topology=molecule.topology(), n_latents=8)
    with pytest.raises(UqbiasError, match="did you mean 'latent_spread'"):
        UNCERTAINTIES.build("latent_spred", {}, topology=molecule.topology(), n_latents=8)


def test_one_call_tests_it(installed):
    report = check_uncertainty("latent_spread", {"power": 0.5})
    assert not report.violations
    assert "latent_spread" in report.subject
    assert report["flattened, torchscript: forces"] <= 1e-4


def test_one_call_finds_its_fault(installed):
    with pytest.raises(ContractError, match="jump at half the step"):
        check_uncertainty("hard_spread", backends=())


def test_the_class_itself_is_known_by_its_name(installed):
    part = build_case(importlib.import_module("latent_spread").LatentSpread).judge
    assert part.kind == "latent_spread:LatentSpread"


def test_without_pytest(installed):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PYTEST],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=installed,
    )
    assert done.returncode == 0, done.stderr
    assert "u: gradient, float64" in done.stdout
    assert "VIOLATED" in done.stdout
