"""Contracts of potentials, biases, variables and oracles: every built-in kind keeps them, broken ones are caught."""

import math
import sys
from typing import ClassVar

import numpy as np
import pytest
import spring_program
import torch
from molecules import ALANINE, ALANINE_PDB, PEROXIDE, peroxide
from tiny_ani import CONSTANTS
from tiny_mace import CONFIG, needs_mace
from tiny_sevennet import SEVENNET, needs_sevenn

from uqbias.bias.base import Bias
from uqbias.bias.metad import MetaD
from uqbias.molecule.frames import read_frames
from uqbias.options import parameters_of
from uqbias.oracles.base import Oracle
from uqbias.potentials.power_spectrum import PowerSpectrum
from uqbias.registry import BIASES, ORACLES, POTENTIALS, VARIABLES
from uqbias.testing import ContractError, check_bias, check_oracle, check_potential, check_variable, molecule
from uqbias.variables.base import CollectiveVariable

#: Options that a kind cannot do without, or with which it does something within the few updates of a check.
OPTIONS = {
    "opes": {"barrier": 20.0, "sigma": 0.4},
    "gamd": {"preparation_steps": 20, "conventional_steps": 60, "equilibration_steps": 500},
    "eabf": {"full_samples": 5},
    "wtm_eabf": {"full_samples": 5},
    "upper_wall": {"at": 0.5},
    "lower_wall": {"at": -0.5},
    "restraint": {"at": 0.3, "kappa": 5.0},
    "distance": {"atoms": [2, 3]},
    "angle": {"atoms": [2, 0, 1]},
    "dihedral": {"atoms": [2, 0, 1, 3]},
    "coordination": {"group_a": "heavy", "r0": 0.2},
    "position": {"atom": 1, "axis": "x"},
    "mace": {"models": [CONFIG]},
    "ani": {"constants": CONSTANTS, "hidden": [[8, 5], [6, 5], [7, 5]], "n_members": 2},
    "sevennet": {"config": SEVENNET},
    "module": {"factory": "documented_module:make"},
}
NEEDS = {"mace": needs_mace, "sevennet": needs_sevenn}
PERIODIC = [kind for kind in BIASES.builtin if "periods" in parameters_of(BIASES.get(kind))]


@pytest.mark.parametrize("kind", BIASES.builtin)
def test_bias(kind):
    check_bias(BIASES.build(kind, OPTIONS.get(kind), temperature=300.0))


@pytest.mark.parametrize("kind", PERIODIC)
def test_bias_on_a_periodic_variable(kind):
    bias = BIASES.build(kind, {"variables": ["phi"], **OPTIONS.get(kind, {})}, temperature=300.0, periods=[2 * math.pi])
    check_bias(bias, [2 * math.pi] * len(bias.variables))


def labelled(potential):
    frames = molecule.frames(30)
    potential.standardise(*(torch.tensor(part) for part in (frames.positions, frames.energies, frames.forces)))
    return potential


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=NEEDS.get(kind, ())) for kind in POTENTIALS.builtin])
def test_potential(kind):
    given = {"numbers": molecule.NUMBERS, "topology": molecule.topology(), "seed": 0, "members_needed": 2}
    section = POTENTIALS.section(kind)(kind=kind, **OPTIONS.get(kind, {}))
    potential = POTENTIALS.build(section, **given).double()
    check_potential(potential if potential.frozen else labelled(potential))


@pytest.mark.parametrize("kind", VARIABLES.builtin)
def test_variable(kind):
    check_variable(VARIABLES.build(kind, OPTIONS.get(kind), topology=molecule.topology(), start=molecule.POSITIONS))


@pytest.mark.parametrize("kind", ORACLES.builtin)
def test_oracle(kind):
    options = {
        "openmm": {"structure": ALANINE_PDB},
        "ase": {"calculator": "peroxide_oracle:Peroxide", "numbers": PEROXIDE.numbers},
        "pool": {"file": str(ALANINE / "start.xyz")},
        "command": {"run": f"{sys.executable} -S {spring_program.__file__} {{input}} {{output}}", "numbers": [8, 1]},
        "handoff": {"labelled": str(ALANINE / "start.xyz")},
    }
    geometries = {
        "double_well": np.array([[[0.3, 0.1, 0.0]], [[-0.8, 0.0, 0.1]]]),
        "command": np.array([[[0.1, 0.0, 0.02], [0.0, 0.3, 0.1]], [[0.0, 0.0, 0.02], [0.1, 0.3, 0.1]]]),
        "ase": np.array([peroxide(1.0) * 1.02, peroxide(2.0)]),
    }
    oracle = ORACLES.rebuild(kind, options.get(kind, {}))
    report = check_oracle(oracle, geometries.get(kind, read_frames(ALANINE / "start.xyz").positions[:2]))
    assert (kind in ("pool", "handoff")) == ("forces" in report.skipped)


class WrongSign(PowerSpectrum):
    """Forces point uphill."""

    def forward(self, positions, geometry=None):
        energy, latents = super().forward(positions, geometry)
        return 2 * energy.detach() - energy, latents


class Forgetful(PowerSpectrum):
    """An energy that knows how often it was asked."""

    asked = 0

    def forward(self, positions, geometry=None):
        energy, latents = super().forward(positions, geometry)
        self.asked += 1
        return energy + 1e-3 * self.asked, latents


class FirstAtom(PowerSpectrum):
    """Atoms of one element are told apart."""

    def forward(self, positions, geometry=None):
        energy, latents = super().forward(positions, geometry)
        return energy + 100.0 * (positions[..., 4, :] - positions[..., 0, :]).norm(dim=-1), latents


class Boxless(PowerSpectrum):
    """The box that it takes changes nothing."""

    def forward(self, positions, geometry=None):
        return super().forward(positions)


class Unrefused(PowerSpectrum):
    """A table that it does not read is taken."""

    needs = "dense"

    def check_geometry(self, geometry):
        pass


@pytest.mark.parametrize(
    ("broken", "clause"),
    [
        (WrongSign, "forces"),
        (Forgetful, "evaluated again"),
        (FirstAtom, "energy: exchange of like atoms"),
        (Boxless, "energy: images"),
        (Unrefused, "a table: not refused"),
    ],
)
def test_broken_potential(broken, clause):
    potential = labelled(broken(molecule.NUMBERS, n_radial=4, n_channels=2, l_max=1, hidden=(8, 4)).double())
    with pytest.raises(ContractError, match=clause):
        check_potential(potential)


class Detached(MetaD):
    """Pushes the wrong way."""

    def energy(self, x, state):
        value = super().energy(x, state)
        return 2 * value.detach() - value


class Counting(MetaD):
    """V depends on what is no part of the state."""

    def energy(self, x, state):
        return super().energy(x, state) * (1 + len(self.hills))


class Lost(MetaD):
    """A checkpoint without what the last updates added."""

    def checkpoint(self):
        arrays = super().checkpoint()
        return {**arrays, "table": 0.9 * arrays["table"]}


class Thawed(MetaD):
    """Grows although it is frozen."""

    def update(self, step, x, probe=None):
        frozen, self.frozen = self.frozen, False
        super().update(step, x, probe)
        self.frozen = frozen


class Flat(MetaD):
    """Knows of no period."""

    def __init__(self, **options):
        super().__init__(**{**options, "periods": None})


class Greedy(Bias):
    """Changes its state when it is asked for its energy."""

    kind = "greedy"

    def __init__(self, *, variables=("driver",)):
        super().__init__(variables)
        self._state = {"n": torch.zeros(())}

    def energy(self, x, state):
        state["n"] += 1.0
        return x[:, 0] ** 2


@pytest.mark.parametrize(
    ("broken", "clause"),
    [
        (Detached, "gradient"),
        (Counting, "V of the earlier state"),
        (Lost, "restored"),
        (Thawed, "frozen: state changed"),
        (Flat, "one period on"),
        (Greedy, "state changed by the energy"),
    ],
)
def test_broken_bias(broken, clause):
    with pytest.raises(ContractError, match=clause):
        check_bias(broken(), [2 * math.pi])


class Reach(CollectiveVariable):
    """Distance of two atoms."""

    kind = f"{__name__}:Reach"

    @classmethod
    def build(cls, topology):
        return cls()

    def options(self):
        return {}

    def forward(self, positions):
        return (positions[:, 0] - positions[:, 1]).pow(2).sum(-1).add(1e-8).sqrt()


class UphillReach(Reach):
    kind = f"{__name__}:UphillReach"

    def forward(self, positions):
        value = super().forward(positions)
        return 2 * value.detach() - value


class Height(Reach):
    """Not invariant, and does not say so."""

    kind = f"{__name__}:Height"

    def forward(self, positions):
        return positions[:, 0, 2]


class Crowd(Reach):
    """Depends on the other walkers."""

    kind = f"{__name__}:Crowd"

    def forward(self, positions):
        value = super().forward(positions)
        return value - value.mean()


class Sharp(Reach):
    """An angle without a derivative where the atoms are on a line."""

    kind = f"{__name__}:Sharp"

    def forward(self, positions):
        one, other = positions[:, 0] - positions[:, 1], positions[:, 2] - positions[:, 1]
        return torch.acos((one * other).sum(-1) / (one.norm(dim=-1) * other.norm(dim=-1)))


class Wide(Reach):
    kind, period = f"{__name__}:Wide", 1e-3


def test_plain_variable_of_a_third_party():
    check_variable(Reach())


@pytest.mark.parametrize(
    ("broken", "clause"),
    [
        (UphillReach, "gradient"),
        (Height, "rotation"),
        (Crowd, "walkers alone"),
        (Sharp, "gradient not finite"),
        (Wide, "spread of the values"),
    ],
)
def test_broken_variable(broken, clause):
    with pytest.raises(ContractError, match=clause):
        check_variable(broken())


class Spring(Oracle):
    """Two atoms on a spring."""

    kind: ClassVar[str] = "spring"
    sign = -1.0

    def options(self):
        return {}

    def _evaluate(self, positions):
        apart = positions[0] - positions[1]
        return float(apart @ apart), 2 * self.sign * np.stack([apart, -apart])


class UphillSpring(Spring):
    sign = 1.0


class WarmSpring(Spring):
    """Starts from what the last geometry left behind."""

    last = 0.0

    def _evaluate(self, positions):
        energy, forces = super()._evaluate(positions)
        shift, self.last = self.last, 1e-3 * energy
        return energy + shift, forces


class CarelessSpring(Spring):
    """Labels anything."""

    def label(self, positions):
        return super().label(np.nan_to_num(np.resize(positions, (2, 3))))


class LocalSpring(Spring):
    """A copy in another process is another oracle."""

    def __init__(self, constant=1.0):
        self.constant = constant

    def _evaluate(self, positions):
        energy, forces = super()._evaluate(positions)
        return self.constant * energy, self.constant * forces


TWO = np.array([[[0.0, 0.0, 0.0], [0.1, 0.2, 0.1]], [[0.0, 0.1, 0.0], [0.1, 0.1, 0.2]]])


def test_plain_oracle_of_a_third_party():
    check_oracle(Spring(), TWO)


@pytest.mark.parametrize(
    ("broken", "clause"),
    [
        (UphillSpring(), "forces"),
        (WarmSpring(), "labelled again"),
        (CarelessSpring(), "NaN: not refused"),
        (LocalSpring(3.0), "pickled copy"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_broken_oracle(broken, clause):
    with pytest.raises(ContractError, match=clause):
        check_oracle(broken, TWO)
