"""The commands train, evaluate, info and md on several systems."""

import json

import pytest

from tests.helpers.command_line import call, refused
from tests.helpers.molecules import emt_frames, write_pdb
from uqbias.molecule.frames import write_frames
from uqbias.molecule.topology import Topology

CHANNELS, HIDDEN = "potential.n_channels=3", "potential.hidden=[8,6]"
SMALL = ("--set", "potential.l_max=1", "--runner", "eager", "-q", "--set", CHANNELS, "--set", HIDDEN, "--steps", 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Training and test frames of some molecules, and a model of two."""
    folder = tmp_path_factory.mktemp("systems")
    for formula in ("H2O", "CH3OH", "CH4", "NH3"):
        write_frames(folder / f"{formula}.xyz", emt_frames(formula, 60, seed=1))
        write_frames(folder / f"{formula}_test.xyz", emt_frames(formula, 20, seed=2))
    texts = [(folder / f"{formula}_test.xyz").read_text() for formula in ("H2O", "CH3OH")]
    (folder / "both_test.xyz").write_text("".join(texts))
    done = call("train", folder / "H2O.xyz", folder / "CH3OH.xyz", "-o", folder / "m.uqb", *SMALL, "--steps", 100)
    assert done.exit_code == 0, done.output
    assert "2 systems: H2O, CH3OH; auto chose the judge for 2 systems: densities of torsions" in done.stdout
    assert [line.split()[:2] for line in done.stdout.splitlines() if line[:3] in ("H2O", "CH3", "all")] == [
        ["H2O", "6"],
        ["CH3OH", "6"],
        ["all", "12"],
    ]
    return folder


def test_info_lists_the_systems(folder):
    assert "systems                 H2O: H2O, 3 atoms; CH3OH: CH4O, 6 atoms\n" in call("info", folder / "m.uqb").stdout


def test_errors_of_each_system_and_of_all(folder):
    done = call("evaluate", folder / "m.uqb", folder / "both_test.xyz")
    assert done.exit_code == 0, done.output
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()[1:4]}
    assert {name: row[0] for name, row in rows.items()} == {"H2O": "20", "CH4O": "20", "all": "40"}
    scores = json.loads(call("evaluate", folder / "m.uqb", folder / "both_test.xyz", "--json").stdout)
    for name, formula in (("H2O", "H2O"), ("CH4O", "CH3OH")):
        alone = json.loads(call("evaluate", folder / "m.uqb", folder / f"{formula}_test.xyz", "--json").stdout)
        assert scores["systems"][name] == {key: alone[key] for key in scores["systems"][name]}
        assert float(rows[name][1]) == pytest.approx(alone["force_mae_meV_per_A"], rel=0.01)
    known = call("evaluate", folder / "m.uqb", folder / "H2O.xyz").stdout
    assert "warning: the model was made from 54 of these frames" in known


def test_a_system_that_it_was_not_trained_on(folder):
    done = call("evaluate", folder / "m.uqb", folder / "CH4_test.xyz")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("CH4_test: the model was not trained on this system, but knows its elements; what it")
    assert "not_trained_on" in call("evaluate", folder / "m.uqb", folder / "CH4_test.xyz", "--json").stdout
    assert "not trained" not in call("evaluate", folder / "m.uqb", folder / "H2O_test.xyz").stdout
    line = refused("evaluate", folder / "m.uqb", folder / "NH3_test.xyz")
    assert line.endswith("NH3_test.xyz has atoms of N, the model knows H, C, O; train a model of these elements")


def test_a_model_of_one_molecule_says_so(folder, tmp_path):
    arguments = ("--driver", "kernel_density", "--set", "driver.features={kind: pair_distances, heavy_only: false}")
    distances = (*arguments, "--set", "driver.kernel=gaussian", "--set", "driver.features.min_separation=1")
    done = call("train", folder / "CH3OH.xyz", "-o", tmp_path / "one.uqb", *SMALL, *distances)
    assert done.exit_code == 0, done.output
    assert "systems" not in call("info", tmp_path / "one.uqb").stdout
    line = refused("evaluate", tmp_path / "one.uqb", folder / "H2O_test.xyz")
    assert "has atoms [8, 1, 1], the model [6, 8, 1, 1, 1, 1]; use the same molecule" in line
    line = refused("train", folder / "CH3OH.xyz", folder / "H2O.xyz", "-o", tmp_path / "two.uqb", *SMALL, *distances)
    assert "uncertainty 'kernel_density' is of one molecule; choose committee, gmm" in line
    assert not (tmp_path / "two.uqb").exists()


def test_structures_of_some_systems(folder, tmp_path):
    water = emt_frames("H2O", 1)
    write_pdb(tmp_path / "water.pdb", Topology((8, 1, 1), ((0, 1), (0, 2))), water.positions[0])
    data = ("train", folder / "CH3OH.xyz", folder / "H2O.xyz", "-o", tmp_path / "m.uqb", *SMALL)
    assert call(*data, "--structure", tmp_path / "water.pdb").exit_code == 0
    names = json.loads(call("info", tmp_path / "m.uqb", "--json").stdout)["systems"][1]["topology"]["names"]
    assert names == ["O1", "H1", "H2"]
    write_pdb(tmp_path / "oh.pdb", Topology((8, 1), ((0, 1),)), water.positions[0, :2])
    line = refused(*data, "--structure", tmp_path / "oh.pdb")
    assert "oh.pdb has atoms [8, 1], as none of the systems CH3OH, H2O; give structures with" in line


def test_md_of_each_system(folder, tmp_path):
    dynamics = ("--steps", 20, "--pace", 10, "--runner", "eager", "-q", "--bias", "none", "--walkers", 1)
    for name, atoms in (("first", 3), ("second", 6)):
        start = ("--start", folder / "CH3OH_test.xyz") if name == "second" else ()
        done = call("md", folder / "m.uqb", *dynamics, *start, "-o", tmp_path / name, "--json")
        assert done.exit_code == 0, done.output
        topology = json.loads((tmp_path / name / "run.json").read_text())["topology"]
        assert len(topology["numbers"]) == atoms
