"""Sections of the samplers without MD, and what they are turned into."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import pytest
from molecules import AMMONIA_POSITIONS
from typing_extensions import Doc

from uqbias.attacks import AttackOptions
from uqbias.attacks.random import RandomOptions
from uqbias.campaign.dry_run import check_parts
from uqbias.campaign.samplers.base import Sampler
from uqbias.campaign.work import oracle_spec
from uqbias.errors import UqbiasError
from uqbias.molecule.frames import Frames, read_frames, write_frames
from uqbias.molecule.topology import Topology
from uqbias.options import InputFile, Positive
from uqbias.oracles.base import OracleError
from uqbias.registry import ORACLES, SAMPLERS
from uqbias.settings.file import CampaignFile, check_campaign, load_campaign
from uqbias.settings.schema import Campaign
from uqbias.testing import molecule

FILES = {"system": {"structure": "molecule.pdb", "start": "start.xyz"}}


@pytest.mark.parametrize(("kind", "options"), [("attack", AttackOptions), ("random", RandomOptions)])
def test_a_section_has_the_keys_and_defaults_of_its_options(kind, options):
    values = SAMPLERS.section(kind)().arguments()
    assert values.pop("count") == 200
    made = options(**values)
    assert set(values) == {field.name for field in dataclasses.fields(options)}
    plain = options()
    for name in set(values) - {"space"}:
        assert getattr(made, name) == getattr(plain, name), name
    assert made.space["kind"] == plain.space == "cartesian"


class Halves(Sampler):
    """A third party's sampler."""

    invents = False

    def __init__(self, *, file: Annotated[str, InputFile(), Doc("frames")], share: Annotated[Positive, Doc("")] = 0.5):
        self.file, self.share = file, share

    def explore(self, job, advance=None):
        raise NotImplementedError

    def check(self, campaign, topology, start):
        if campaign.sampling.file != self.file:
            raise UqbiasError(self.file)


def test_a_third_partys_sampler_gets_what_a_built_in_one_gets(tmp_path):
    """Its options are checked, its paths resolved, its files part of the campaign's identity."""
    for name in ("molecule.pdb", "start.xyz", "theirs.xyz"):
        (tmp_path / name).write_text(name)
    section = {"kind": f"{__name__}:Halves", "file": "theirs.xyz", "share": 0.25}
    file = CampaignFile(check_campaign({**FILES, "sampler": section}), tmp_path)
    assert file.campaign.harvest.driver_window == [None, None]
    sampler = SAMPLERS.build(file.resolved.sampling)
    assert (sampler.file, sampler.share) == (str(tmp_path / "theirs.xyz"), 0.25)
    before = file.identity()
    assert before["sampler.share"] == 0.25
    (tmp_path / "theirs.xyz").write_text("other")
    assert [key for key, value in file.identity().items() if value != before[key]] == ["sampler.file"]
    (tmp_path / "run").mkdir()
    file.write(tmp_path / "run" / "campaign.yaml")
    assert load_campaign(tmp_path / "run" / "campaign.yaml").resolved == file.resolved
    with pytest.raises(UqbiasError, match=r"sampler\.share = -1\.0: input should be greater than 0"):
        check_campaign({**FILES, "sampler": section | {"share": -1.0}})
    with pytest.raises(UqbiasError, match="'pathlib:Path' is not a sampler"):
        check_campaign({**FILES, "sampler": "pathlib:Path"})
    with pytest.raises(UqbiasError, match="did you mean 'attack'"):
        check_campaign({**FILES, "sampler": "atack"})


def test_the_window_of_the_driver_is_open_without_md():
    def window(**settings):
        return check_campaign({**FILES, **settings}).harvest.driver_window

    assert window() == window(sampler="md") == [None, "wall"]
    assert window(sampler="attack") == [None, None]
    assert window(sampler="random", harvest={"labels_per_round": 3}) == [None, None]
    assert window(sampler="attack", harvest={"driver_window": [0.5, 14.0]}) == [0.5, 14.0]


def parts(folder, settings, topology, positions):
    write_frames(folder / "start.xyz", Frames(np.array(topology.numbers), positions))
    (folder / "molecule.pdb").write_text("")
    file = CampaignFile(check_campaign({**FILES, **settings}), folder)
    check_parts(file, topology, read_frames(folder / "start.xyz", labelled=False))


def test_molecules_without_torsions_have_a_driver_and_get_a_cure_that_works(tmp_path):
    numbers = (7, 1, 1, 1)
    topology = Topology.from_positions(numbers, AMMONIA_POSITIONS)
    positions = AMMONIA_POSITIONS + np.random.default_rng(0).normal(0, 0.005, (20, 4, 3))
    parts(tmp_path, {"sampler": "attack"}, topology, positions)
    with pytest.raises(
        UqbiasError, match=r"driver: the molecule has no such dihedral, of 4 atoms; give `driver` the content"
    ):
        parts(tmp_path, {"sampler": "attack", "driver": "kernel_density"}, topology, positions)
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
    oracle = ORACLES.rebuild("pool", {"file": str(tmp_path / "pool.xyz")})
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
        ORACLES.rebuild("pool", {"file": str(tmp_path / "bare.xyz")})


def test_pool_oracle_takes_the_labels_that_the_system_section_names(tmp_path):
    frames = molecule.frames(3)
    write_frames(tmp_path / "plain.xyz", frames)
    text = (tmp_path / "plain.xyz").read_text().replace("energy=", "energy=-1e3 dft_energy=")
    (tmp_path / "pool.xyz").write_text(text.replace("forces:R:3", "dft_forces:R:3"))
    options = {"file": str(tmp_path / "pool.xyz"), "energy_key": "dft_energy", "forces_key": "dft_forces"}
    oracle = ORACLES.rebuild("pool", options)
    assert oracle.options() == options
    assert oracle.label(frames.positions[1]).energy == pytest.approx(frames.energies[1], abs=1e-3)
    oracle.check_molecule(options, oracle.numbers)
    with pytest.raises(UqbiasError, match="frame 0 has no forces"):
        oracle.check_molecule({"file": options["file"]}, oracle.numbers)
    campaign = Campaign.model_validate(
        {
            "name": "x",
            "seed": 1,
            "system": {"structure": "s.pdb", "start": "x.xyz", "energy_key": "dft_energy", "forces_key": "dft_forces"},
            "oracle": {"kind": "pool", "file": options["file"]},
            "sampler": {"kind": "pool", "file": options["file"]},
        }
    )
    assert oracle_spec(campaign, molecule.topology()).options == options


class Shelves(Sampler):
    """Takes files in every way that an annotation can say."""

    def __init__(
        self,
        *,
        one: Annotated[str, InputFile()] | None = None,
        chosen: Literal["none"] | Annotated[str, InputFile()] = "none",
        many: Annotated[list[Annotated[str, InputFile()]] | None, Doc("files")] = None,
        marked: Annotated[Sequence[str], InputFile()] = (),
        named: dict[str, Annotated[str, InputFile()]] | None = None,
        plain: list[str] | None = None,
    ):
        self.values = (one, chosen, many, list(marked), named, plain)

    def explore(self, job, advance=None):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({"one": "a.xyz", "chosen": "b.xyz"}, {"one", "chosen"}),
        ({"many": ["a.xyz", "b.xyz"], "chosen": "none"}, {"many.0", "many.1"}),
        ({"marked": ["b.xyz"], "named": {"x": "a.xyz"}, "plain": ["a.xyz"]}, {"marked.0", "named.x"}),
    ],
)
def test_files_inside_lists_and_unions_are_resolved_and_hashed(tmp_path, options, keys):
    for name in ("molecule.pdb", "start.xyz", "a.xyz", "b.xyz"):
        (tmp_path / name).write_text(name)
    settings = {**FILES, "sampler": {"kind": f"{__name__}:Shelves", **options}}
    file = CampaignFile(check_campaign(settings), tmp_path)
    assert {key for key in file.files() if key.startswith("sampler.")} == {f"sampler.{key}" for key in keys}
    sampler = SAMPLERS.build(file.resolved.sampling)
    values = dict(zip(("one", "chosen", "many", "marked", "named", "plain"), sampler.values, strict=True))
    assert str(values).count(f"'{tmp_path}/") == len(keys)
    assert values["plain"] == options.get("plain")
    (tmp_path / "run").mkdir()
    file.write(tmp_path / "run" / "campaign.yaml")
    before = load_campaign(tmp_path / "run" / "campaign.yaml").identity()
    assert before == file.identity()
    (tmp_path / "b.xyz").write_text("other")
    assert file.identity() != before
