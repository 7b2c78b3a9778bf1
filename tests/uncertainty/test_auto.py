"""The driver that suits a molecule, what is said of it, and its wall."""

import ase.build
import numpy as np
import pytest
import torch

from uqbias.molecule.topology import Topology
from uqbias.registry import BIASES, UNCERTAINTIES
from uqbias.settings.file import check_campaign
from uqbias.uncertainty.auto import driver_story
from uqbias.uncertainty.base import at_wall, rebuild_uncertainty

FILES = {"system": {"structure": "-", "start": "-"}}


def of(name):
    atoms = ase.build.molecule(name)
    return Topology.from_positions(atoms.numbers.tolist(), atoms.positions * 0.1)


def ring(size):
    bonds = [(i, (i + 1) % size) for i in range(size)] + [(i, size + 2 * i + k) for i in range(size) for k in (0, 1)]
    return Topology((6,) * size + (1,) * (2 * size), tuple(bonds))


ENOL = Topology(
    (8, 6, 6, 6, 8, 1, 1, 1, 1),
    ((0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (1, 6), (2, 7), (3, 8)),
    mobile=((4, 5, 0),),
)
MOLECULES = {
    "butane": (of("trans-butane"), "local_densities", ("torsion",)),
    "cyclohexane": (ring(6), "local_densities", ("ring",)),
    "enol": (ENOL, "local_densities", ("proton",)),
    "benzene": (of("C6H6"), "kernel_density", ()),
    "ethanol": (of("CH3CH2OH"), "kernel_density", ()),
    "ammonia": (of("NH3"), "kernel_density", ()),
    "two waters": (Topology((8, 1, 1, 8, 1, 1), ((0, 1), (0, 2), (3, 4), (3, 5))), "kernel_density", ()),
}


def default():
    return check_campaign(FILES).driver


@pytest.mark.parametrize("name", MOLECULES)
def test_every_molecule_has_a_driver(name):
    topology, kind, parts = MOLECULES[name]
    part = UNCERTAINTIES.build(default(), topology=topology, n_latents=1)
    assert part.kind == kind
    assert tuple(name.split()[0] for name in part.part_names) == parts
    twin = rebuild_uncertainty(part.describe())
    assert twin.kind == kind
    assert twin.part_names == part.part_names
    x = torch.tensor(np.random.default_rng(0).normal(size=(3, len(topology), 3)), dtype=torch.float32)
    energy, latents = x.new_zeros(1, 3), x.new_zeros(1, 3, len(topology), 1)
    part.fit(x, energy, latents, seed=0)
    assert part.local(x, energy, latents).shape == (3, len(parts))
    assert torch.isfinite(part(x, energy, latents)).all()


def test_options_without_a_kind_are_those_of_a_kernel_density():
    assert (default().kind, default().arguments()) == ("auto", {})
    given = check_campaign({**FILES, "driver": {"kappa": 3.0}}).driver
    assert (given.kind, given.kappa) == ("kernel_density", 3.0)


def test_what_is_chosen_why_and_what_is_left_out():
    (choice, parts) = driver_story(default(), ring(6))
    assert choice == "auto chose local_densities, one density for each soft bond, ring that puckers and mobile proton"
    assert parts.startswith("it acts on ring C")
    *_, left_out = driver_story(default(), ENOL)
    assert left_out == "left out are the bonds C1-C2 (conjugated), C2-C3 (double bond), and tops such as CH3 and OH"
    assert driver_story(default(), of("C6H6")) == [
        "auto chose kernel_density on pair_distances, since no bond turns, no ring puckers and no proton is mobile"
    ]


def test_drivers_of_the_users_choice_are_described_too():
    def story(driver, topology):
        return driver_story(check_campaign({**FILES, "driver": driver}).driver, topology)

    butane = of("trans-butane")
    assert story("kernel_density", butane)[0] == "kernel_density on torsions, as the campaign file has it"
    assert story("kernel_density", butane)[1].startswith("it acts on torsion C")
    assert story("gmm", butane)[1].startswith("it knows no single parts; `driver: auto` would act on torsion C")
    chain = Topology((6,) * 6 + (1,) * 14, _hexane())
    assert "it acts on torsions C1-C2 C2-C3, torsion C3-C4" in story(
        {"kind": "local_densities", "grouping": "pairs"}, chain
    )


def _hexane():
    bonds = [(i, i + 1) for i in range(5)]
    owners = [0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5]
    return tuple(bonds + [(owner, 6 + k) for k, owner in enumerate(owners)])


def test_the_wall_is_the_drivers_own_where_the_setting_says_so():
    hexane = UNCERTAINTIES.build("auto", topology=Topology((6,) * 6 + (1,) * 14, _hexane()), n_latents=1)
    latents = UNCERTAINTIES.build("gmm", topology=of("NH3"), n_latents=1)
    assert at_wall("wall", hexane) == pytest.approx(21.0)
    assert at_wall("wall", latents) == 14.0
    assert at_wall(3.5, hexane) == 3.5
    assert at_wall(None, hexane) is None
    settings = check_campaign(FILES)
    wall = BIASES.build(next(section for section in settings.bias if section.kind == "upper_wall"))
    assert wall.at == 14.0
    assert settings.guards.driver_cap == settings.harvest.driver_window[1] == "wall"
