"""``uqbias md``: its files, its biases, what it refuses, and runs that are killed and go on."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from ase import Atoms
from command_line import call, refused
from molecules import PEROXIDE, peroxide, write_pdb
from peroxide_oracle import Peroxide

from uqbias.bias.build import build_bias
from uqbias.cli.sampling_options import bias_sections
from uqbias.errors import UqbiasError
from uqbias.model.model import UncertaintyModel
from uqbias.molecule.frames import Frames, read_frames, write_frames
from uqbias.registry import VARIABLES
from uqbias.runs import writer as run_folder
from uqbias.runs.hills import read_hills
from uqbias.runs.series import read_colvar
from uqbias.units import EV, EV_PER_ANGSTROM

NUMBERS = np.array(PEROXIDE.numbers)
PHI = ("--variable", "phi=dihedral:0,1,2,3")
SHORT = ("--walkers", 2, "--pace", 10, "--runner", "eager", "--quiet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """data.xyz and m.uqb, a model of a peroxide of springs that holds together most of the time."""
    folder = tmp_path_factory.mktemp("md")
    source = np.random.default_rng(0)
    x = np.array([peroxide(phi) + source.normal(0, 0.004, (4, 3)) for phi in source.uniform(1.2, 2.8, 60)])
    molecules = [Atoms("HOOH", positions=10 * positions, calculator=Peroxide()) for positions in x]
    energies = np.array([molecule.get_potential_energy() for molecule in molecules]) * EV
    forces = np.array([molecule.get_forces() for molecule in molecules]) * EV_PER_ANGSTROM
    write_frames(folder / "data.xyz", Frames(NUMBERS, x, energies, forces))
    write_pdb(folder / "structure.pdb", PEROXIDE, peroxide(2.0))
    changes = [
        "potential.n_channels=3", "potential.n_radial=5", "potential.l_max=2", "potential.hidden=[8, 4]",
        "driver.features={kind: torsions, heavy_only: false}", "driver.capacity=64", "judge.n_components=1",
    ]  # fmt: skip
    done = call(
        "train", folder / "data.xyz", "--structure", folder / "structure.pdb", "-o", folder / "m.uqb", "--steps", 300,
        "--runner", "eager", "-q", *(word for change in changes for word in ("--set", change)),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return folder


def run(folder, target, *options, steps=40):
    return call(
        "md", folder / "m.uqb", "-o", target, "--start", folder / "data.xyz", "--steps", steps, *SHORT, *options
    )


def described(target):
    return json.loads((target / "run.json").read_text())


def test_files_of_a_run(folder, tmp_path):
    target = tmp_path / "md"
    done = run(folder, target, "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["walkers"] == 2
    assert {path.name for path in target.iterdir()} == {
        "HILLS", "COLVAR.0", "COLVAR.1", "walker_0.xtc", "walker_1.xtc", "topology.pdb", "observations.npz", "bias.npz",
        "run.json", "snapshot.npz", "events.jsonl",
    }  # fmt: skip
    before = (target / "HILLS").read_text()
    assert len(read_hills(target / "HILLS", 0.5)) <= 2 * 8  # a mirror image each
    found = run(folder, target)
    assert found.exit_code == 2
    assert "not an empty directory; choose another with -o, or give --resume" in found.stderr
    assert (target / "HILLS").read_text() == before
    done = run(folder, tmp_path / "free", "--bias", "none")
    assert done.exit_code == 0, done.output
    assert not {"HILLS", "bias.npz"} & {path.name for path in (tmp_path / "free").iterdir()}

    # The exported bias is that of the HILLS file.
    exported = tmp_path / "biased.pt"
    done = call("export", folder / "m.uqb", "-o", exported, "--output", "biased", "--hills", target / "HILLS")
    assert done.exit_code == 0, done.output
    x = torch.tensor(read_frames(folder / "data.xyz").positions[0])
    with torch.no_grad():
        plain = UncertaintyModel.load(folder / "m.uqb")(x[None].float())
        added = float(torch.jit.load(str(exported))(x)) - float(plain.energy)
    hills = read_hills(target / "HILLS", 0.5)
    apart = (float(plain.driver) - hills["centre"][:, 0]) / hills["sigma"][:, 0]
    assert added == pytest.approx((hills["height"] * np.exp(-0.5 * apart**2)).sum(), abs=1e-3)
    other = tmp_path / "HILLS"
    export = ("export", folder / "m.uqb", "-o", exported, "--hills", other, "--output")
    other.write_text((target / "HILLS").read_text().replace("time driver sigma_driver", "time phi sigma_phi"))
    assert f"{other} holds hills on phi, not on driver" in refused(*export, "biased")
    other.write_text((target / "HILLS").read_text().replace("kerneltype gaussian", "kerneltype triangle"))
    assert "metadynamics with kernel 'triangle'" in refused(*export, "biased")
    assert "output 'energy' with --hills" in refused(*export, "energy")


def test_the_default_bias_is_metadynamics_where_the_driver_is_one_number(folder, tmp_path):
    """To the digit: hills, forces and so the trajectory."""
    for name, options in (("parallel_metadynamics", []), ("metadynamics", ["--bias", "metadynamics"])):
        done = run(folder, tmp_path / name, *options, "--height", 5, steps=100)
        assert done.exit_code == 0, done.output
        assert [part["kind"] for part in described(tmp_path / name)["biases"]] == [name, "upper_wall"]
    for file in ("HILLS", "COLVAR.0", "COLVAR.1"):
        one, other = ((tmp_path / name / file).read_text() for name in ("parallel_metadynamics", "metadynamics"))
        assert one == other
        assert len(one.splitlines()) > 10


def test_run_folder_says_what_the_bias_was(folder, tmp_path):
    """Two variables and three biases: the bias comes back from run.json and bias.npz, phi is what it is said to be."""
    target = tmp_path / "md"
    done = run(folder, target, "--bias", "metadynamics,wtm_eabf", *PHI, "--on", "driver,phi", "--wall", 3)
    assert done.exit_code == 0, done.output
    facts = described(target)
    assert [(part["kind"], part["variables"]) for part in facts["biases"]] == [
        ("metadynamics", ["driver", "phi"]),
        ("wtm_eabf", ["driver"]),
        ("wtm_eabf", ["phi"]),
        ("upper_wall", ["driver"]),
    ]
    with np.load(target / "observations.npz") as arrays:
        seen = dict(arrays)
    assert seen["variable_names"].tolist() == ["driver", "phi", "extended_driver", "extended_phi"]
    x = torch.tensor(seen["positions"], dtype=torch.float64)
    phi = VARIABLES.restore(facts["variables"]["phi"])(x.reshape(-1, 4, 3)).reshape(5, 2)
    np.testing.assert_allclose(seen["variables"][:, :, 1], phi, atol=1e-4)
    np.testing.assert_array_equal(seen["variables"][:, :, 0], seen["driver"])
    colvar = read_colvar(target / "COLVAR.1")
    np.testing.assert_allclose(colvar["extended_phi"], seen["variables"][:, 1, 3], rtol=1e-6)

    described_parts = [(part.pop("kind"), part) for part in facts["biases"]]
    fresh, bias = (build_bias(described_parts, facts["temperature"]) for _ in range(2))
    with np.load(target / "bias.npz") as arrays:
        bias.restore(dict(arrays))
    assert len(bias.biases[0].hills) == len(read_hills(target / "HILLS.driver-phi", 0.5, ["driver", "phi"])) > 0
    for name in ("driver", "phi"):
        assert len(read_hills(target / f"HILLS.extended_{name}", 0.5, [f"extended_{name}"])) > 0
    # At the start there are no hills, and after those of the last step none acted.
    for one, row in ((fresh, 0), (bias, -1)):
        one.to(torch.float64)
        values = one.energy(torch.tensor(seen["variables"][row]), one.state()).detach().numpy()
        assert row or np.abs(values - seen["bias"][row]).max() < 1e-3
        assert not row or (values > seen["bias"][row]).all()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["--bias", "opes"],
            [("opes", ["driver"], {"sigma": 1.0, "pace": 10}), ("upper_wall", ["driver"], {"at": 14.0})],
        ),
        (["--bias", "gamd", "--set", "bias.conventional_steps=20", "--set", "gamd.preparation_steps=0"],
         [("gamd", ["energy"], {"conventional_steps": 20, "pace": 10})]),
        (["--bias", "eabf", *PHI, "--on", "phi"], [("eabf", ["phi"], {"sigma": 0.175, "periods": [2 * np.pi]})]),
        (["--bias", "linear,udd", "--wall", 6, "--set", "udd.A=20", "--set", "guards.driver_cap=7.5"],
         [("linear", ["driver"], {}), ("udd", ["driver"], {"A": 20.0}), ("upper_wall", ["driver"], {"at": 6.0})]),
        (["--sigma", 0.7, "--biasfactor", 5, "--set", "upper_wall.kappa=3"],
         [("parallel_metadynamics", ["driver"], {"sigma": 0.7, "biasfactor": 5.0}),
          ("upper_wall", ["driver"], {"kappa": 3.0})]),
        ([*PHI, "--on", "phi", "--wall", 9],
         [("parallel_metadynamics", ["phi"], {}), ("upper_wall", ["driver"], {"at": 9.0})]),
        (["--bias", "none", "--wall", 9], [("upper_wall", ["driver"], {"at": 9.0})]),
        (["--variable", "r=distance", "--set", "r.groups=[[0, 1], [O2, H2]]", "--on", "r"],
         [("parallel_metadynamics", ["r"], {"sigma": 0.02, "reflect_at": None})]),
    ],
)  # fmt: skip
def test_kinds_and_overrides(folder, tmp_path, options, expected):
    done = run(folder, tmp_path / "md", *options)
    assert done.exit_code == 0, done.output
    biases = described(tmp_path / "md")["biases"]
    assert [(part["kind"], part["variables"]) for part in biases] == [(kind, names) for kind, names, _ in expected]
    for part, (_, _, keys) in zip(biases, expected, strict=True):
        assert {key: part[key] for key in keys} == {key: pytest.approx(value) for key, value in keys.items()}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--bias", "opse"], "unknown bias 'opse'; did you mean 'opes'?"),
        (["--bias", "noe"], "did you mean 'none'"),
        (["--bias", "opes,opes"], "name opes once"),
        (["--biasfactor", 1], "options: parallel_metadynamics.biasfactor = 1.0: input should be greater than 1"),
        (
            ["--bias", "metadynamics", "--set", "metadynamics.grid_range=[[2, 1]]"],
            "options: metadynamics with grid_range [2.0, 1.0]; give a maximum",
        ),
        (
            ["--set", "bias.hight=1"],
            "options: parallel_metadynamics.hight = 1: unknown key 'hight'; did you mean 'height'?",
        ),
        (
            ["--set", "opes.barrier=1"],
            "--set opes: no such section; valid: guards, md, parallel_metadynamics, upper_wall",
        ),
        (["--set", "height=1"], "--set height=1; write --set SECTION.KEY=VALUE"),
        (["--bias", "opes", "--set", "opes.barrier=1000"], "opes with barrier 1000 kJ/mol"),
        (["--on", "phi"], "--on phi: no such variable; valid: driver, energy, judge; define one with --variable phi="),
        ([*PHI, "--on", "ph"], "did you mean 'phi'"),
        (["--variable", "phi=dihedral:0,1,2"], "options: variables.phi.atoms = [0, 1, 2]: list should have at least 4"),
        (["--variable", "phi=dihedral:0,1,2,4"], "variables.phi: atoms of dihedral: 4 in a molecule of 4 atoms"),
        (["--variable", "phi=dihedral:0,1,2,H9"], "variables.phi: atoms of dihedral: no atom is called 'H9'"),
        (["--variable", "phi=dihedrl:0,1,2,3"], "unknown kind 'dihedrl'; did you mean 'dihedral'?"),
        (["--variable", "phi"], "write --variable NAME=KIND:ATOMS"),
        ([*PHI, *PHI], "'phi' is defined twice"),
        (["--variable", "driver=distance:0,1"], "'driver' is taken"),
        (
            ["--bias", "eabf", "--on", "judge"],
            "no width is known for eabf on judge; give --set eabf.sigma=",
        ),
        (["--bias", "eabf", "--height", 2], "--height 2.0 for --bias eabf; leave it out"),
        (["--bias", "linear", *PHI, "--on", "phi"], "linear on 'phi', which is periodic"),
        (["--bias", "gamd"], "options: gamd.conventional_steps = 2000 with md.steps = 40: the boost never begins"),
        (["--platform", "Cuda"], "no OpenMM platform 'Cuda'"),
        (["--bias", "gamd", "--on", "driver"], "--on driver for --bias gamd; it boosts the energy; leave --on out"),
        (["--wall", 3, "--bias", "metadynamics,upper_wall"], "--wall 3 with a bias upper_wall; leave one out"),
        (["--bias", "metadynamics,none"], "--bias metadynamics,none; give none by itself"),
        (["--bias", "none", "--on", "driver"], "--on driver for --bias none; leave it out"),
    ],
)
def test_refused(folder, tmp_path, options, expected):
    start = ("--start", folder / "data.xyz", "--steps", 40)
    assert expected in refused("md", folder / "m.uqb", "-o", tmp_path / "x", *start, *SHORT, *options)
    assert not (tmp_path / "x" / "observations.npz").exists()


OWN = """
import torch
def broken(x): raise ValueError("no such thing")
def branches(x): return x[:, 0, 0] if x[0, 0, 0] > 0 else x[:, 1, 0]
def missing(x): return x[:, 0, 0] * torch.where(x[:, 0, 0].abs() < 1e9, float("nan"), 1.0)
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", "variable 'own_variables:broken' fails on positions [2, 4, 3]: ValueError: no such thing"),
        ("branches", "variable 'own_variables:branches' fails on positions [2, 4, 3]: "),
        ("missing", "variables.x is not a finite number in any start frame"),
    ],
)
def test_variables_of_ones_own_that_do_not_work(folder, tmp_path, monkeypatch, name, message):
    (tmp_path / "own_variables.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    options = ("--variable", f"x=own_variables:{name}", "--on", "x", "--sigma", 0.05, *SHORT)
    told = refused(
        "md", folder / "m.uqb", "-o", tmp_path / "x", "--start", folder / "data.xyz", "--steps", 40, *options
    )
    assert message in told
    assert not (tmp_path / "x").exists()


def test_a_run_says_what_it_is_not_worth(folder, tmp_path):
    """Walkers that break all the time; biases that give no free energy."""
    done = run(folder, tmp_path / "md", "--set", "md.timestep_fs=40", "--json")
    assert done.exit_code == 0, done.output
    (warning,) = json.loads(done.stdout)["warnings"]
    assert warning.startswith("walkers were stopped at ")
    boost = ("--bias", "gamd,eabf", "--set", "gamd.conventional_steps=20", "--set", "gamd.preparation_steps=0")
    done = run(folder, tmp_path / "boosted", *boost, *PHI, "--on", "driver,phi")
    assert done.exit_code == 0, done.output
    assert "warning: a run with 2 extended variables explores" in done.stderr
    assert "warning: gamd is in production after 4020 steps; uqbias fes takes none of these 40" in done.stderr


def test_steps_and_pace(folder, tmp_path):
    assert "multiple of --pace" in refused("md", folder / "m.uqb", "-o", tmp_path / "x", "--steps", 41, "--pace", 10)


def test_the_extended_variable_moves_alike_whatever_is_followed():
    """In units of the width, coupling and mass are the same: sqrt(m σ²/kT) is its period over 2π."""
    variables = {"phi": {"kind": "dihedral"}, "r": {"kind": "distance"}}
    sections = bias_sections(["eabf"], ["driver", "phi", "r"], variables, 10, {})
    periods = [section["mass"] * section["sigma"] ** 2 for section in sections]
    np.testing.assert_allclose(periods, periods[0])
    assert sections[0]["sigma"] == 0.5
    with pytest.raises(UqbiasError, match="no such variable"):
        bias_sections(["eabf"], ["x"], variables, 10, {})


def contents(target):
    """Bytes of each file but the snapshot; arrays of those of numpy."""
    found = {path.name: path.read_bytes() for path in sorted(target.iterdir()) if path.suffix != ".npz"}
    for path in sorted(target.glob("*.npz")):
        with np.load(path) as arrays:
            found |= {f"{path.name}/{name}": (str(arrays[name].dtype), arrays[name].tobytes()) for name in arrays.files}
    return found


def check_same(target, reference):
    one, other = contents(target), contents(reference)
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []


OPTIONS = [
    "--walkers", 2, "--pace", 10, "--runner", "torchscript", "--quiet", "--snapshot-every", 50, *PHI,
    "--bias", "metadynamics,wtm_eabf,gamd", "--set", "metadynamics.variables=[driver, phi]",
    "--set", "metadynamics.sigma=[0.5, 0.3]", "--set", "gamd.preparation_steps=0",
    "--set", "gamd.conventional_steps=100", "--set", "gamd.equilibration_steps=300",
]  # fmt: skip


def start(folder, target, *options):
    command = [sys.executable, "-c", "from uqbias.cli import main; main()", "md", folder / "m.uqb", "-o", target]
    command += ["--start", folder / "data.xyz", "--steps", 500, *OPTIONS, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([str(word) for word in command], env=environment, stderr=subprocess.PIPE, text=True)


def parts(target):
    return [int(path.stem) for path in (target / "parts").glob("[0-9]*.npz")]


def test_killed_at_random_moments_and_resumed(folder, tmp_path):
    """Three kills; hills, rows, frames, observations and counts are those of a run that nobody killed, bit for bit."""
    reference, target = tmp_path / "reference", tmp_path / "killed"
    process = start(folder, reference)
    assert process.communicate(timeout=300)[1] == ""
    assert "bond" in (reference / "events.jsonl").read_text()  # walkers were restarted on the way
    source = random.Random()
    kills = 0
    for earliest in (0, 150, 300):
        process = start(folder, target, "--resume")
        # Wait for the snapshots, not for the clock: a start takes longer than the run.
        moment = earliest + 50 * source.randrange(3)
        while process.poll() is None and max(parts(target), default=0) < moment:
            time.sleep(0.002)
        time.sleep(source.uniform(0.0, 0.1))
        process.send_signal(signal.SIGKILL)
        kills += process.wait(timeout=60) == -signal.SIGKILL
        process.communicate()
    assert kills >= 2
    # Rows after the snapshot, and half a row, are cut off.
    with (target / "HILLS.driver-phi").open("a") as stream:
        stream.write("      0.400000   1.0 2.0")
    process = start(folder, target, "--resume")
    assert process.communicate(timeout=300)[1] == ""
    assert process.returncode == 0
    check_same(target, reference)


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    target = tmp_path_factory.mktemp("runs") / "run"
    assert run(folder, target, "--snapshot-every", 20, steps=60).exit_code == 0
    return target


def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_a_finished_run_says_so_and_can_be_made_longer(folder, finished, tmp_path):
    target = copied(finished, tmp_path)
    done = run(folder, target, "--resume", "--snapshot-every", 20, steps=60)
    assert done.exit_code == 0, done.output
    assert "finished already; --resume with more --steps makes it longer" in done.stdout
    check_same(target, finished)
    assert run(folder, target, "--resume", steps=100).exit_code == 0
    assert run(folder, tmp_path / "at once", steps=100).exit_code == 0
    check_same(target, tmp_path / "at once")


def test_md_on_tensors_goes_on_as_it_would_have(folder, tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    for target, steps, options in ((whole, 40, ()), (part, 20, ()), (part, 40, ("--resume",))):
        done = run(folder, target, "--engine", "torch", *options, steps=steps)
        assert done.exit_code == 0, done.output
    check_same(part, whole)
    assert "has md.engine = torch, this one openmm" in refused_resume(folder, part)


def test_resume_without_a_run_begins(folder, finished, tmp_path):
    assert run(folder, tmp_path / "new", "--resume", "--snapshot-every", 20, steps=60).exit_code == 0
    check_same(tmp_path / "new", finished)


def refused_resume(folder, target, *options, steps=60):
    return refused(
        "md", folder / "m.uqb", "-o", target, "--start", folder / "data.xyz", "--steps", steps, *SHORT, "--resume",
        *options,
    )  # fmt: skip


def test_resume_of_another_run_is_refused(folder, finished, tmp_path):
    target = copied(finished, tmp_path)
    before = contents(target)
    assert "has md.temperature = 300.0, this one 310.0" in refused_resume(folder, target, "--temperature", 310)
    assert "bias.0.height = None, this one 2.0;" in refused_resume(folder, target, "--height", 2)
    write_frames(tmp_path / "three.xyz", read_frames(folder / "data.xyz")[:3])
    assert "has other start frames; give the same" in refused_resume(folder, target, "--start", tmp_path / "three.xyz")
    assert "has seed = 0, this one 1;" in refused_resume(folder, target, "--seed", 1)
    assert "has kinds of bias = ['parallel_metadynamics', 'upper_wall'], this one []" in refused_resume(
        folder, target, "--bias", "none"
    )
    assert "60 steps already, more than 50" in refused_resume(folder, target, steps=50)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    assert "other holds no run" in refused_resume(folder, tmp_path / "other")
    assert contents(target) == before


def files(target):
    """Every file with its bytes."""
    return {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}


def test_a_run_without_its_snapshot_does_not_begin_anew(folder, finished, tmp_path):
    """Neither a finished run nor one that was interrupted; one that was killed before its first snapshot does."""
    assert run(folder, tmp_path / "none", "--snapshot-every", 0, steps=20).exit_code == 0
    for target in (tmp_path / "none", interrupted(finished, tmp_path)):
        (target / "snapshot.npz").unlink(missing_ok=True)
        before = files(target)
        assert f"cannot go on: {target / 'snapshot.npz'} is not there" in refused_resume(folder, target, steps=100)
        assert files(target) == before
    # What a kill between the first part and the first snapshot leaves.
    (target / "parts" / "saved").unlink()
    assert run(folder, target, "--resume", "--snapshot-every", 20, steps=60).exit_code == 0
    check_same(target, finished)


def damage(path, how):
    path.unlink() if how == "missing" else path.write_bytes(path.read_bytes()[: -len(path.read_bytes()) // 3])


def test_a_refused_resume_touches_nothing(folder, finished, tmp_path):
    target = copied(finished, tmp_path)
    for name, how, message in (
        ("snapshot.npz", "cut", "snapshot.npz is not a whole snapshot"),
        ("walker_1.xtc", "cut", "walker_1.xtc is shorter than it was"),
        ("events.jsonl", "missing", "events.jsonl is shorter than it was"),
        ("HILLS", "cut", "HILLS is shorter than it was"),
        ("observations.npz", "cut", "observations.npz is not a whole file of observations"),
        ("observations.npz", "missing", "observations.npz is not there"),
    ):
        damage(target / name, how)
        before = files(target)
        assert message in refused_resume(folder, target, steps=100)
        assert files(target) == before
        shutil.copyfile(finished / name, target / name)
    assert files(target) == files(finished)


def test_an_interrupted_run_that_is_refused_is_not_touched(folder, finished, tmp_path):
    target = interrupted(finished, tmp_path)
    with (target / "COLVAR.0").open("a") as stream:
        stream.write("      0.035   1.0\n")
    (target / "HILLS").write_bytes((finished / "HILLS").read_bytes()[:-10])
    before = files(target)
    assert "HILLS is shorter" in refused_resume(folder, target)
    assert "is at step 60, beyond the 50 asked for" in refused_resume(folder, target, steps=50)
    assert files(target) == before
    (target / "HILLS").write_bytes((finished / "HILLS").read_bytes())
    next((target / "parts").glob("*60.npz")).write_bytes(b"torn")
    assert "000000000060.npz is not a whole part of a run" in refused_resume(folder, target)


@pytest.fixture(scope="module")
def longer(folder, tmp_path_factory):
    target = tmp_path_factory.mktemp("longer") / "run"
    assert run(folder, target, steps=100).exit_code == 0
    return target


@pytest.mark.parametrize(
    ("place", "name"),
    [(shutil, "rmtree"), (run_folder, "write_arrays"), (os, "truncate"), (run_folder, "write_text")],
)
@pytest.mark.parametrize("after", [False, True])
def test_a_finished_run_killed_while_it_is_made_longer(
    folder, finished, longer, tmp_path, monkeypatch, place, name, after
):
    """Before or after each step of it; the next --resume gives the run that nobody killed."""
    target = copied(finished, tmp_path)
    call = getattr(place, name)

    def killed(*arguments, **options):
        if after:
            call(*arguments, **options)
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(place, name, killed)
        assert str(run(folder, target, "--resume", steps=100).exception) == "killed"
    assert run(folder, target, "--resume", steps=100).exit_code == 0
    check_same(target, longer)


def interrupted(finished, tmp_path):
    """A run that was killed between the end and its last words."""
    target = copied(finished, tmp_path)
    facts = described(target)
    manifest = facts.pop("finished")
    (target / "parts").mkdir()
    with np.load(target / "observations.npz") as arrays:
        np.savez(target / "parts" / f"{60:012d}.npz", manifest=np.array(json.dumps(manifest)), **arrays)
    (target / "parts" / "saved").touch()
    (target / "run.json").write_text(json.dumps(facts))
    for name in ("observations.npz", "bias.npz"):
        (target / name).unlink()
    return target


def test_interrupted_before_the_end_was_written(folder, finished, tmp_path):
    target = interrupted(finished, tmp_path)
    (target / ".snapshot.abc.npz").write_bytes(b"torn")
    assert run(folder, target, "--resume", steps=60).exit_code == 0
    check_same(target, finished)


def test_damaged_runs_are_refused(folder, finished, tmp_path):
    target = interrupted(finished, tmp_path)
    hills = (target / "HILLS").read_bytes()
    (target / "HILLS").write_bytes(hills[:-10])
    assert "HILLS is shorter than it was at the snapshot of step 60" in refused_resume(folder, target)
    (target / "HILLS").write_bytes(hills)
    snapshot = (target / "snapshot.npz").read_bytes()
    (target / "snapshot.npz").write_bytes(snapshot[: len(snapshot) // 2])
    assert "snapshot.npz is not a whole snapshot" in refused_resume(folder, target)
    with np.load(finished / "snapshot.npz") as arrays:
        held = dict(arrays)
    manifest = json.loads(str(held["manifest"]))
    held["manifest"] = np.array(json.dumps({**manifest, "atomic_numbers": [6, 1, 1, 1, 1]}))
    np.savez(target / "snapshot.npz", **held)
    assert "snapshot.npz is a snapshot of another system: 5 atoms" in refused_resume(folder, target)
    (target / "snapshot.npz").write_bytes(snapshot)
    for part in (target / "parts").glob("*.npz"):
        part.rename(part.with_name("000000000040.npz"))
    assert "snapshot.npz is at step 60, but" in refused_resume(folder, target)
    (target / "run.json").write_text("{")
    assert "run.json does not describe a run" in refused_resume(folder, target)
