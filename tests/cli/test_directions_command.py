"""The command directions: what it writes, what it skips, what it refuses before labels are paid."""

import csv
import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from command_line import call, refused
from molecules import HYDROGENS_LAST, peroxide_geometries, peroxide_model

from uqbias.attacks import relaxation
from uqbias.model.inference import evaluate_frames
from uqbias.molecule.frames import Frames, write_frames
from uqbias.units import ANGSTROM, EV_PER_ANGSTROM

EMT = ["--oracle", "ase", "--oracle-option", "calculator=ase.calculators.emt.EMT"]
SHORT = ["--epsilon", "0.01,0.1", "--random", "3", "--ascent", "none", "--relax-steps", "4", "--relax-every", "2", "-q"]


class Moody(Calculator):
    """Springs from each atom to the next; no label where the first one is longer than ``longest`` (Å)."""

    implemented_properties = ("energy", "forces")
    calls = 0

    def __init__(self, longest=np.inf):
        super().__init__()
        self.longest = longest

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        type(self).calls += 1
        apart = np.diff(atoms.positions, axis=0)
        if np.linalg.norm(apart[0]) > self.longest:
            raise RuntimeError("no convergence")
        forces = np.zeros_like(atoms.positions)
        forces[:-1] += apart
        forces[1:] -= apart
        self.results = {"energy": 0.5 * (apart**2).sum(), "forces": forces}


MOODY = ["--oracle", "ase", "--oracle-option", f"calculator={__name__}:Moody"]


@pytest.fixture(scope="module")
def model():
    return peroxide_model()


@pytest.fixture(scope="module")
def frames():
    return peroxide_geometries(12, 4)


@pytest.fixture(autouse=True)
def no_calls():
    Moody.calls = 0


@pytest.fixture(scope="module")
def folder(model, frames, tmp_path_factory):
    folder = tmp_path_factory.mktemp("directions")
    model.save(folder / "model.uqb")
    write_frames(folder / "frames.xyz", Frames(np.array(HYDROGENS_LAST.numbers), frames))
    write_frames(folder / "other.xyz", Frames(np.array([8, 1, 8, 1]), frames))
    return folder


def test_command(folder):
    options = ["--oracle", "ase", "--oracle-option", "calculator=ase.calculators.emt.EMT", "--every", "3", "-q"]
    options += ["--epsilon", "0.01,0.1", "--random", "3", "--ascent", "driver", "--relax-steps", "4"]
    done = call("directions", folder / "model.uqb", folder / "frames.xyz", *options, "-o", folder / "out")
    assert done.exit_code == 0, done.output
    assert "4 of 4 frames, 0 geometries failed" in done.stdout
    assert "adversarial/random" in done.stdout
    names = {"directions.csv", "frames.csv", "relaxation.csv", "directions.png"}
    assert {file.name for file in (folder / "out").iterdir()} == names
    with (folder / "out" / "directions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 4 * 5 * 2
    assert {row["frame"] for row in rows} == {"0", "3", "6", "9"}
    plain = call("directions", folder / "model.uqb", folder / "frames.xyz", *options, "-o", folder / "out", "--json")
    facts = json.loads(plain.stdout)
    assert facts["epsilon_A2"] == [0.0, 0.01, 0.1]
    assert facts["frames_used"] == 4
    error = np.mean([abs(float(row["energy_error_eV"])) for row in rows if row["direction"] == "driver"][1::2])
    assert facts["energy_error_meV"]["driver"]["mean"][2] == pytest.approx(1e3 * error, rel=1e-5)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ("other.xyz", MOODY, "none of 12 frames can be used; the first has the model's atoms in another order"),
        ("frames.xyz", ["--oracle", "openm"], "did you mean 'openmm'"),
        ("frames.xyz", ["--oracle", "openmm"], "oracle 'openmm' without structure; give structure"),
        ("frames.xyz", ["--oracle", "openmm", "--oracle-option", "structure"], "write --oracle-option KEY=VALUE"),
        ("frames.xyz", ["--oracle", "ase", "--epsilon", "a"], "epsilons ['a']; input should be a valid number"),
        ("frames.xyz", [*MOODY, "--zero", "nan"], "zero nan; choose frames, none, or a finite difference in eV"),
        ("frames.xyz", [*MOODY, "--zero", "inf"], "zero inf; choose"),
        ("frames.xyz", [*MOODY, "--zero", "1e308"], "zero 1e+308; choose"),
        ("frames.xyz", [*MOODY, "--zero", "foo"], "zero 'foo'; choose frames, none, or a finite difference in eV"),
        ("frames.xyz", [*MOODY, "--epsilon", "nan"], "epsilons [nan]; input should be a finite number"),
        ("frames.xyz", [*MOODY, "--every", "12"], "cannot be taken from one frame"),
        ("frames.xyz", ["--oracle", "double_well"], "the double_well oracle is for atoms [1]"),
    ],
)
def test_refusals(folder, data, options, message, tmp_path):
    assert message in refused("directions", folder / "model.uqb", folder / data, *options, "-q", "-o", tmp_path / "no")
    assert not (tmp_path / "no").exists()
    assert Moody.calls == 0


def test_frames_that_cannot_be_used_are_skipped(model, frames, folder, tmp_path):
    """The others keep the number that they have in the file."""
    images = [Atoms("O2H2", positions=x / ANGSTROM) for x in frames]
    images[1].positions[2, 0] = np.nan
    images[3] = Atoms("OH2", positions=images[3].positions[1:])
    images[5] = images[5][[0, 2, 1, 3]]
    ase.io.write(tmp_path / "mixed.xyz", images, format="extxyz")
    command = ["directions", folder / "model.uqb", tmp_path / "mixed.xyz", *MOODY, *SHORT, "--every", "2"]
    done = call(*command, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "5 of 5 frames, 0 geometries failed" in done.stdout
    told = done.stderr.splitlines()
    assert told[0] == "3 frames skipped"
    assert [line.split(":")[0] for line in told[1:]] == ["  frame 1", "  frame 3", "  frame 5"]
    for name in ("directions.csv", "frames.csv", "relaxation.csv"):
        with (tmp_path / "out" / name).open() as stream:
            rows = list(csv.DictReader(stream))
        assert list(dict.fromkeys(row["frame"] for row in rows)) == ["0", "4", "7", "9", "11"]
        if name == "frames.csv":
            expected = evaluate_frames(model, frames[[0, 4, 7, 9, 11]]).judge / EV_PER_ANGSTROM
            assert [float(row["uncertainty_eV_per_A"]) for row in rows] == pytest.approx(expected, rel=1e-3)
    facts = json.loads(call(*command, "-o", tmp_path / "out", "--json").stdout)
    assert facts["frames"] == facts["frames_used"] == 5
    assert [entry["frame"] for entry in facts["skipped"]] == [1, 3, 5]
    reasons = [entry["reason"] for entry in facts["skipped"]]
    for reason, word in zip(reasons, ("not finite", "the model's are", "another order"), strict=True):
        assert word in reason


def test_geometries_without_a_label_are_skipped(frames, folder, tmp_path):
    """An oracle that fails on some frames and on some displacements of others."""
    lengths = np.sort(np.linalg.norm(frames[:, 1] - frames[:, 0], axis=1)) / ANGSTROM
    longest = ["--oracle-option", f"calculator_options={{longest: {lengths[9:11].mean():.9f}}}"]
    command = ["directions", folder / "model.uqb", folder / "frames.xyz", *MOODY, *longest, *SHORT]
    facts = json.loads(call(*command, "-o", tmp_path, "--json").stdout)
    assert (facts["frames"], facts["frames_used"], facts["skipped"]) == (12, 10, [])
    lost = {failure["frame"] for failure in facts["failures"] if failure["place"] == "frame"}
    assert len(lost) == 2
    assert facts["failed"] == len(facts["failures"]) > 2
    assert {failure["reason"] for failure in facts["failures"]} == {"ase oracle failed: no convergence"}
    with (tmp_path / "directions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {int(row["frame"]) for row in rows} == set(range(12)) - lost
    empty = sum(row["energy_error_eV"] == "" for row in rows)
    displaced = [failure for failure in facts["failures"] if failure["place"].split()[0] in ("adversarial", "random")]
    assert empty == len(displaced) > 0
    plain = call(*command, "-o", tmp_path)
    assert plain.exit_code == 0, plain.output
    assert f"10 of 12 frames, {facts['failed']} geometries failed\nthe first: frame {min(lost)}, frame:" in plain.stdout


def test_relaxations_that_break_off_are_told(folder, tmp_path, monkeypatch):
    forces = relaxation._forces

    def spoilt(potential, x, *cells):
        found = forces(potential, x, *cells)
        found[:2] = np.nan
        return found

    monkeypatch.setattr(relaxation, "_forces", spoilt)
    options = [*MOODY, *SHORT, "--relax-steps", "1", "-o", tmp_path]
    done = call("directions", folder / "model.uqb", folder / "frames.xyz", *options)
    assert done.exit_code == 0, done.output
    assert "(0 % converged, 2 broken off at forces that are not finite)" in done.stdout


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("file", "file is not a directory"),
        ("file/below", "file is not a directory"),
        ("dangling", "dangling is not a directory"),
        ("n" * 300, "name too long"),
        pytest.param(
            "/proc/directions",
            "cannot write to /proc/directions: ",
            marks=pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc"),
        ),
    ],
)
def test_output_that_cannot_be_written(folder, tmp_path, output, reason):
    """It is told before anything is loaded: there is no such model."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    told = refused("directions", tmp_path / "no.uqb", folder / "frames.xyz", *MOODY, "-o", tmp_path / output)
    assert "cannot write to" in told
    assert reason in told
    assert "give another directory" in told


def test_trying_the_output_leaves_nothing(folder, tmp_path):
    """A command that is refused later has not made the folder, nor a file in one that was there."""
    for output in (tmp_path / "new" / "below", tmp_path):
        refused("directions", tmp_path / "no.uqb", folder / "frames.xyz", *MOODY, "-o", output)
        assert list(tmp_path.iterdir()) == []
