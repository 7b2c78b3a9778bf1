"""Biases and variables of a campaign file: what is refused, what is filled in, and that every kind can be built."""

import json
import math

import numpy as np
import pytest
import torch
import yaml
from molecules import PEROXIDE

from uqbias.bias.base import Bias
from uqbias.bias.build import build_bias, completed
from uqbias.campaign.dry_run import check_exploration
from uqbias.errors import UqbiasError
from uqbias.options import parameters_of
from uqbias.registry import BIASES
from uqbias.settings.file import check_campaign
from uqbias.settings.template import campaign_template
from uqbias.units import kt
from uqbias.variables.base import build_variables, periods_of
from uqbias.variables.names import COLUMNS

FILES = {"system": {"structure": "molecule.pdb", "start": "start.xyz"}}
PHI = {"phi": {"kind": "dihedral", "atoms": [0, 1, 2, 3]}}
#: Keys that a kind cannot do without.
REQUIRED = {"lower_wall": {"at": -2.0}, "restraint": {"at": 1.0, "kappa": 5.0}}


def campaign(*biases, variables=None, **sections):
    listed = [{"kind": "metadynamics", **bias} for bias in biases]
    return check_campaign({**FILES, "variables": variables or {}, "bias": listed, **sections})


def parts_of(settings, lowest=-1.5):
    variables = build_variables(
        {name: {"kind": section.kind, **section.arguments()} for name, section in settings.variables.items()}, PEROXIDE
    )
    parts = tuple((section.kind, section.arguments()) for section in settings.bias)
    return completed(parts, settings.md.temperature, periods_of(variables), lowest)


@pytest.mark.parametrize("kind", BIASES.builtin)
def test_every_section_fits_its_class(kind):
    """Each option has a description, and the defaults build."""
    assert all(field.description for field in BIASES.section(kind).model_fields.values())
    settings = campaign({"kind": kind, **REQUIRED.get(kind, {})}, md={"temperature": 350.0})
    bias = build_bias(parts_of(settings), 300.0)
    x = torch.zeros(3, len(bias.variables))
    assert bias.energy(x, bias.state()).shape == (3,)
    if "temperature" in parameters_of(BIASES.get(kind)):
        assert bias.biases[0].temperature == 350.0


@pytest.mark.parametrize(
    ("biases", "expected"),
    [
        ([{"kind": "opse"}], "bias.0.kind = 'opse': unknown kind 'opse'; did you mean 'opes'?"),
        ([{"kind": "opes", "barier": 3}], "bias.0.barier = 3: unknown key 'barier'; did you mean 'barrier'?"),
        ([{"biasfactor": 1.0}], "bias.0.biasfactor = 1.0: input should be greater than 1"),
        ([{"kind": "wtm_eabf", "biasfactor": 0.5}], "bias.0.biasfactor = 0.5: input should be greater than 1"),
        ([{"grid_range": [[3.0, 3.0]]}], "metadynamics with grid_range [3.0, 3.0]; give a maximum above the minimum"),
        ([{"grid_range": [[3.0]]}], "bias.0.grid_range.0 = [3.0]: list should have at least 2"),
        ([{"sigma": [0.1, 0.2]}], "bias.0: metadynamics with 2 values of sigma for 1 variable(s); give"),
        ([{"variables": ["phi"]}], "bias.0.variables = ['phi']: no variable 'phi' is defined; valid: driver, ener"),
        ([{"variables": []}], "bias.0.variables = []: list should have at least 1"),
        ([{"variables": ["driver", "driver"]}], "bias.0.variables = ['driver', 'driver']: name each variable once"),
        ([{"kind": "upper_wall", "variables": ["extended_driver"]}], "no variable 'extended_driver' is defined"),
        (
            [{"kind": "eabf", "variables": ["driver", "energy"]}],
            "bias.0.variables = ['driver', 'energy']: list should ",
        ),
        ([{"kind": "eabf"}, {"kind": "wtm_eabf"}], "bias.1.variables = ['driver']: 'driver' has an eabf already"),
        ([{"kind": "eabf", "pace": 10}], "bias.0.pace = 10 is not a multiple of md.pace = 50"),
        ([{"kind": "wtm_eabf", "hill_pace": 70}], "bias.0.hill_pace = 70 is not a multiple of md.pace = 50"),
        ([{"kind": "restraint", "at": 1.0}], "'bias.0.kappa' is missing"),
        ([{"kind": "lower_wall", "at": 1.0, "kappa": -1.0}], "bias.0.kappa = -1.0: input should be greater than 0"),
        ([{"kind": "gamd", "conventional_steps": 20000}], "bias.0.conventional_steps = 20000 with md.steps = 10000"),
        ([{"kind": "udd", "n_members": 4}], "n_members 4 and n_atoms None; give both"),
        ([{"kind": "opes", "biasfactor": float("nan")}], "bias.0.biasfactor = nan"),
        (
            [{"kind": "eabf"}, {"kind": "linear", "variables": ["extended_driver"]}],
            "bias.1.variables = ['extended_driver']: τ is adapted to forces on atoms, and an extended variable has",
        ),
    ],
)
def test_bad_biases(biases, expected):
    with pytest.raises(UqbiasError) as caught:
        campaign(*biases)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"phi": {"kind": "dihedrl", "atoms": [0]}}, "variables.phi.kind = 'dihedrl': unknown kind 'dihedrl'; did you"),
        ({"phi": {"kind": "dihedral", "atoms": [0, 1, 2]}}, "variables.phi.atoms = [0, 1, 2]: list should have at l"),
        ({"phi": {"kind": "dihedral", "atom": [0]}}, "variables.phi.atom = [0]: unknown key 'atom'; did you mean 'ato"),
        ({"r": {"kind": "distance"}}, "variables.r: variable 'distance' needs atoms or groups; give either"),
        ({"c": {"kind": "coordination", "group_a": [0, 1]}}, "'variables.c.r0' is missing"),
        ({"driver": PHI["phi"]}, "'driver' is taken; choose another name"),
        *(({name: PHI["phi"]}, f"'{name}' is taken") for name in ("extended_phi", "sigma_phi", *COLUMNS)),
        ({"a.b": PHI["phi"]}, "'a.b' is not a name"),
    ],
)
def test_bad_variables(variables, expected):
    with pytest.raises(UqbiasError) as caught:
        campaign(variables=variables)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"variables": {"phi": {"kind": "dihedral", "atoms": [0, 1, 2, 9]}}}, "variables.phi: atoms of dihedral: 9 in"),
        ({"variables": {"type": PHI["phi"]}}, "variables.type: the name is taken by torch"),
        ({"variables": {"training": PHI["phi"]}}, "variables.training: the name is taken by torch"),
        (
            {"variables": PHI, "bias": [{"kind": "linear", "variables": ["phi"]}]},
            "bias.0: linear on 'phi', which is pe",
        ),
        ({"bias": [{"kind": "opes", "barrier": 2.0}]}, "bias.0: opes with biasfactor 0.8"),
        (
            {"bias": [{"kind": "upper_wall"}, {"kind": "gamd", "preparation_steps": 2000}]},
            "bias.1: gamd with conventio",
        ),
    ],
)
def test_what_only_the_molecule_or_the_class_can_tell(settings, expected):
    with pytest.raises(UqbiasError) as caught:
        check_exploration(check_campaign({**FILES, **settings}), PEROXIDE)
    assert expected in str(caught.value)


def test_periods_and_temperature_are_filled_in():
    settings = campaign(
        {"variables": ["driver", "phi"], "sigma": [0.3, 0.4]},
        {"kind": "eabf", "variables": ["phi"]},
        {"kind": "upper_wall", "variables": ["extended_phi"], "at": 3.0},
        {"kind": "gamd"},
        variables=PHI,
    )
    (_, metadynamics), (_, eabf), (_, wall), (_, gamd) = parts_of(settings)
    assert metadynamics["periods"] == [None, 2 * math.pi]
    assert metadynamics["temperature"] == eabf["temperature"] == gamd["temperature"] == 300.0
    assert eabf["periods"] == wall["periods"] == [2 * math.pi]
    assert "periods" not in gamd
    bias = build_bias(parts_of(settings), 300.0)
    assert bias.variables == ("driver", "phi", "extended_phi", "energy")
    # What was filled in is enough to build the same again, after a way through JSON.
    again = build_bias([(kind, options) for kind, options in json.loads(json.dumps(parts_of(settings)))], 300.0)
    hill = np.array([[0.5, 3.1, 3.0, -10.0]])
    for one in (bias, again):
        one.update(50, hill)
    x = torch.tensor([[0.4, -3.1, -3.0, -10.0]])
    # A hill at 3.1 rad is felt at -3.1 rad.
    assert float(bias.biases[0].energy(x[:, :2], bias.biases[0].state())) > 0.5
    torch.testing.assert_close(bias.energy(x, bias.state()), again.energy(x, again.state()), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, -1.5),
        ({"reflect_at": 0.25}, 0.25),
        ({"reflect_at": None}, None),
        ({"variables": ["phi"]}, None),
        ({"variables": ["phi", "driver"]}, [None, -1.5]),
        ({"variables": ["phi", "driver"], "reflect_at": [None, 0.5]}, [None, 0.5]),
        ({"variables": ["driver", "phi"], "reflect_at": ["lowest", None]}, [-1.5, None]),
    ],
)
@pytest.mark.parametrize("kind", ["metadynamics", "opes"])
def test_lowest_is_of_the_driver_only(kind, given, expected):
    settings = campaign({"kind": kind, **given}, variables=PHI)
    ((_, options),) = parts_of(settings)
    assert options["reflect_at"] == expected


def test_opes_with_a_flat_target():
    for text in ("inf", ".inf"):
        settings = check_campaign({**FILES, "bias": yaml.safe_load(f"[{{kind: opes, biasfactor: {text}}}]")})
        bias = build_bias(parts_of(settings), 300.0).biases[0]
        assert math.isinf(bias.biasfactor)
        assert bias.epsilon == pytest.approx(math.exp(-40.0 / kt(300.0)))


class Slope(Bias):
    """A third party's bias."""

    kind = "slope"

    def __init__(self, *, steepness=1.0, variables=("driver",)):
        super().__init__(variables)
        self.steepness = steepness

    def energy(self, x, state):
        return self.steepness * x[:, 0]


def test_third_party_kinds(monkeypatch):
    monkeypatch.setitem(BIASES.builtin, "slope", f"{__name__}:Slope")
    settings = campaign({"kind": "slope", "steepness": 2.0, "variables": ["energy"]}, {"kind": f"{__name__}:Slope"})
    check_exploration(settings, PEROXIDE)
    bias = build_bias(parts_of(settings), 300.0)
    assert bias.energy(torch.tensor([[3.0, 5.0]]), {}).tolist() == [11.0]
    with pytest.raises(UqbiasError, match="no variable 'ph' is defined; did you mean 'phi'"):
        campaign({"kind": "slope", "variables": ["ph"]}, variables=PHI)
    with pytest.raises(UqbiasError, match=r"bias\.0\.stepness = 2.0: unknown key 'stepness'; did you mean 'steepness'"):
        campaign({"kind": "slope", "stepness": 2.0})


def test_a_template_with_variables_and_every_kind_reads_back():
    kinds = [{"kind": kind} for kind in BIASES.builtin if kind != "metadynamics"]
    biases = [{**kind, **REQUIRED.get(kind["kind"], {})} for kind in kinds if kind["kind"] != "eabf"]
    settings = campaign(*biases, variables={**PHI, "r": {"kind": "distance", "atoms": ["O1", "O2"]}})
    assert check_campaign(yaml.safe_load(campaign_template(settings))) == settings
