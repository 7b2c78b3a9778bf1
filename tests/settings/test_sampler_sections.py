"""Sections of the samplers without MD, and what they are turned into."""

import dataclasses

import numpy as np
import pytest
from molecules import AMMONIA_POSITIONS

from uqbias.attacks.ascent import AttackOptions
from uqbias.attacks.random import RandomOptions
from uqbias.campaign.dry_run import check_parts
from uqbias.errors import UqbiasError
from uqbias.molecule.frames import Frames, read_frames, write_frames
from uqbias.molecule.topology import Topology
from uqbias.oracles.analytic import DoubleWellOracle
from uqbias.oracles.base import OracleError, make_oracle
from uqbias.potentials.coordinates import Coordinates
from uqbias.registry import SPACES
from uqbias.settings.file import check_campaign
from uqbias.settings.kinds import CoordinatesSection, DoubleWellOracleSection
from uqbias.settings.sampler_sections import (
    AttackSection,
    RandomSection,
)
from uqbias.testing import molecule

FILES = {"system": {"structure": "molecule.pdb", "start": "start.xyz"}}


@pytest.mark.parametrize(("section", "options"), [(AttackSection, AttackOptions), (RandomSection, RandomOptions)])
def test_a_section_has_the_keys_and_defaults_of_its_options(section, options):
    values = section().model_dump()
    values.pop("count")
    made = options(**values)
    assert set(values) == {field.name for field in dataclasses.fields(options)}
    plain = options()
    for name in set(values) - {"space"}:
        assert getattr(made, name) == getattr(plain, name), name
    assert made.space["kind"] == plain.space["kind"] == "cartesian"


@pytest.mark.parametrize("kind", ["cartesian", "internal", "variables"])
def test_a_space_is_built_from_its_section(kind):
    section = SPACES.section(kind)()
    space = SPACES.build(
        section,
        topology=molecule.topology(),
        reference=molecule.POSITIONS,
        collective_variables={"t": {"kind": "dihedral", "atoms": list(molecule.TORSION)}},
    )
    assert space.n_coordinates >= 1
    assert all(field.description for field in SPACES.section(kind).model_fields.values())


def test_coordinates_and_double_well_sections_are_what_their_classes_take():
    options = CoordinatesSection().arguments()
    assert options.pop("n_members") is None
    made = Coordinates(numbers=(1,), **options).options()
    assert {name: made[name] for name in options} == options
    oracle = DoubleWellOracleSection(dimensions=2, scale=3.0).arguments()
    assert make_oracle("double_well", oracle).options() == oracle
    assert DoubleWellOracleSection().arguments() == DoubleWellOracle().options()


def test_the_window_of_the_driver_is_open_without_md():
    def window(**settings):
        return check_campaign({**FILES, **settings}).harvest.driver_window

    assert window() == window(sampler="md") == [None, 14.0]
    assert window(sampler="attack") == [None, None]
    assert window(sampler="random", harvest={"labels_per_round": 3}) == [None, None]
    assert window(sampler="attack", harvest={"driver_window": [0.5, 14.0]}) == [0.5, 14.0]


def parts(folder, settings, topology, positions):
    write_frames(folder / "start.xyz", Frames(np.array(topology.numbers), positions))
    (folder / "molecule.pdb").write_text("")
    from uqbias.settings.file import CampaignFile

    file = CampaignFile(check_campaign({**FILES, **settings}), folder)
    check_parts(file, topology, read_frames(folder / "start.xyz", labelled=False))


def test_molecules_without_torsions_get_a_cure_that_works(tmp_path):
    numbers = (7, 1, 1, 1)
    topology = Topology.from_positions(numbers, AMMONIA_POSITIONS)
    positions = AMMONIA_POSITIONS + np.random.default_rng(0).normal(0, 0.005, (20, 4, 3))
    with pytest.raises(
        UqbiasError, match=r"driver: the molecule has no such dihedral, of 4 atoms; give `driver` the content"
    ):
        parts(tmp_path, {"sampler": "attack"}, topology, positions)
    judge = {"kind": "committee", "quantity": "forces"}
    parts(tmp_path, {"sampler": "attack", "driver": judge, "judge": judge}, topology, positions)
    distances = {"kind": "pair_distances", "min_separation": 1, "heavy_only": False}
    density = {"kind": "kernel_density", "kernel": "gaussian", "features": distances}
    parts(tmp_path, {"sampler": "attack", "driver": density}, topology, positions)


def test_one_particle_in_a_double_well_is_a_campaign(tmp_path):
    topology = Topology((1,), ())
    positions = np.random.default_rng(0).normal(0, 0.5, (20, 1, 3))
    judge = {"kind": "committee", "quantity": "energy"}
    settings = {
        "oracle": {"kind": "double_well", "dimensions": 2},
        "potential": {"kind": "coordinates", "axes": "xy"},
        "judge": judge,
        "sampler": "attack",
    }
    with pytest.raises(UqbiasError, match=r"of 1 atoms; give `driver` the content of `judge`$"):
        parts(tmp_path, settings, topology, positions)
    parts(tmp_path, settings | {"driver": judge}, topology, positions)


def test_pool_oracle_finds_labels_by_geometry(tmp_path):
    frames = molecule.frames(6)
    write_frames(tmp_path / "pool.xyz", frames)
    oracle = make_oracle("pool", {"file": str(tmp_path / "pool.xyz")})
    stored = read_frames(tmp_path / "pool.xyz")
    for index in (0, 5):
        label = oracle.label(stored.positions[index] + 5e-7)
        assert label.energy == pytest.approx(frames.energies[index], abs=1e-4)
        np.testing.assert_allclose(label.forces, frames.forces[index], atol=1e-3)
    with pytest.raises(OracleError, match=r"no frame of .*pool\.xyz has this geometry, the nearest is 1e-05 nm away"):
        oracle.label(stored.positions[0] + np.pad([[1e-5, 0, 0]], ((0, 11), (0, 0))))
    # A moved molecule is another geometry.
    with pytest.raises(OracleError, match=r"0\.1 nm away"):
        oracle.label(stored.positions[0] + 0.1)
    write_frames(tmp_path / "bare.xyz", Frames(frames.numbers, frames.positions))
    with pytest.raises(UqbiasError, match="frame 0 has no energy"):
        make_oracle("pool", {"file": str(tmp_path / "bare.xyz")})
