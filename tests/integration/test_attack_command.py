"""The command attack: what it writes, prints and refuses."""

import dataclasses
import inspect
import json

import ase.io
import numpy as np
import pytest
from ase import Atoms
from command_line import call, refused

from uqbias.attacks import AttackOptions
from uqbias.cli.attacks import attack
from uqbias.data import Frames, read_frames, write_frames
from uqbias.inference import evaluate_frames
from uqbias.testing import build_case, molecule
from uqbias.units import EV

NUMBERS = np.array(molecule.NUMBERS)
QUICK = ["--runner", "eager", "--iterations", "6", "-q"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """model.uqb and frames.xyz of its molecule."""
    folder = tmp_path_factory.mktemp("attack")
    build_case("gmm", {"n_components": 2}, steps=30).model.save(folder / "model.uqb")
    write_frames(folder / "frames.xyz", Frames(NUMBERS, molecule.frames(4, seed=2).positions))
    return folder


def run(folder, *arguments, data="frames.xyz"):
    output = folder / "attacks.xyz"
    output.unlink(missing_ok=True)
    return call("attack", folder / "model.uqb", folder / data, "-o", output, *QUICK, *arguments), output


def facts_of(done):
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_attacks_are_written_and_summed_up(folder):
    from uqbias.model import UncertaintyModel

    done, output = run(folder, "--count", "6", "--trajectory", folder / "ways.npz", "--json")
    facts = facts_of(done)
    assert (facts["attacks"], facts["frames"], facts["skipped"], facts["failed"]) == (6, 4, [], [])
    assert facts["files"] == [str(output), str(folder / "ways.npz")]
    found = read_frames(output, labelled=False)
    assert [entry["source"] for entry in found.info] == [0, 1, 2, 3, 0, 1]
    assert not found.labelled, "what a model says is no label"
    again = evaluate_frames(UncertaintyModel.load(folder / "model.uqb"), found.positions)
    for index, entry in enumerate(found.info):
        assert entry["model_energy"] == pytest.approx(again.energy[index] / EV, abs=1e-4)
        assert entry["uncertainty"] == pytest.approx(again.uncertainty[index], rel=1e-3)
        assert entry["status"] == "iterations"
        assert entry["norm"] > 0
    median = np.median([entry["uncertainty"] for entry in found.info])
    assert facts["uncertainty"]["reached"]["median"] == pytest.approx(median)
    assert np.ptp(found.positions[[0, 4]], axis=0).max() > 1e-4, "two attacks on a frame begin differently"
    with np.load(folder / "ways.npz") as ways:
        assert ways["positions"].shape == (7, 6, len(NUMBERS), 3)
        assert ways["source"].tolist() == [0, 1, 2, 3, 0, 1]
        assert ways["numbers"].tolist() == NUMBERS.tolist()


def test_what_is_printed(folder):
    done, output = run(folder, "--space", "internal", "--set", "bonds=true", "--bound", "0.05")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith("4 attacks on 4 frames in ")
    assert "runner eager" in lines[0]
    assert any(line.startswith("uncertainty ") and "kJ/mol/nm" in line for line in lines)
    assert any("pass a campaign's physical filter" in line for line in lines)
    assert lines[-1] == f"files: {output}"
    assert max(entry["norm"] for entry in read_frames(output, labelled=False).info) <= 0.05 * (1 + 1e-6)


def test_variables_choose_the_space(folder):
    facts = facts_of(run(folder, "--variable", "phi=dihedral:2,0,1,3", "--of", "cv", "--json")[0])
    assert facts["space"] == {"kind": "variables"}


def test_frames_that_cannot_be_used_are_named_and_skipped(folder):
    x = 10.0 * molecule.frames(3, seed=2).positions
    broken, exploded = x[1].copy(), x[2].copy()
    broken[3, 1] = np.nan
    exploded[1] = exploded[0]
    images = [
        Atoms(NUMBERS, x[0]),
        Atoms("OH2", np.eye(3)),
        Atoms(NUMBERS[::-1], x[0][::-1]),
        Atoms(NUMBERS, broken),
        Atoms(NUMBERS, exploded),
        Atoms(NUMBERS, x[2]),
    ]
    ase.io.write(folder / "mixed.xyz", images, format="extxyz")
    done, output = run(folder, "--json", data="mixed.xyz")
    facts = facts_of(done)
    assert facts["frames"] == 3
    assert [entry["frame"] for entry in facts["skipped"]] == [1, 2, 3]
    reasons = [entry["reason"] for entry in facts["skipped"]]
    assert "atoms H2O, the model's are" in reasons[0]
    assert "another order" in reasons[1]
    assert "not finite" in reasons[2]
    assert {entry["source"] for entry in read_frames(output, labelled=False).info} >= {0, 5}
    done, _ = run(folder, data="mixed.xyz")
    assert "3 frames skipped" in done.stderr
    assert "frame 1: atoms H2O" in done.stderr


def test_every_frame_unusable(folder):
    ase.io.write(folder / "water.xyz", [Atoms("OH2", np.eye(3))] * 2, format="extxyz")
    line = refused("attack", folder / "model.uqb", folder / "water.xyz", "-o", folder / "none.xyz", *QUICK)
    assert "none of 2 frames can be used; the first has atoms H2O" in line
    assert not (folder / "none.xyz").exists()


def test_attacks_that_fail_are_named_and_left_out(folder):
    done, output = run(folder, "--learning-rate", "50")
    assert done.exit_code == 0, done.output
    assert "4 attacks failed" in done.stderr
    assert "attack 0 on frame 0: " in done.stderr
    assert "none, since every attack failed" in done.stdout
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--space", "intrnal"], "did you mean 'internal'"),
        (["--space", "variables"], "without a variable"),
        (["--set", "bond=true", "--space", "internal"], "did you mean 'bonds'"),
        (["--set", "bonds"], "write --set SECTION.KEY=VALUE"),
        (["--of", "energy"], "attack on 'energy'"),
        (["--variable", "phi=dihedral:2,0,1,99"], "99 in a molecule of 12 atoms"),
        (["--runner", "fast"], "unknown runner 'fast'"),
        (["--training", "none.xyz"], "no such file: none.xyz"),
    ],
)
def test_wrong_options(folder, arguments, message):
    given = [*QUICK, *arguments] if "--runner" not in arguments else ["-q", *arguments]
    assert message in refused("attack", folder / "model.uqb", folder / "frames.xyz", *given)


def test_missing_files(folder):
    assert "no such model file" in refused("attack", folder / "no.uqb", folder / "frames.xyz")
    assert "no such file" in refused("attack", folder / "model.uqb", folder / "no.xyz")
    (folder / "text.xyz").write_text("no frames here\n")
    assert "not an extended-XYZ file" in refused("attack", folder / "model.uqb", folder / "text.xyz")


def test_defaults_are_those_of_the_library():
    options = {field.name: field.default for field in dataclasses.fields(AttackOptions)}
    parameters = inspect.signature(attack).parameters
    shared = [name for name in parameters if name in options and name != "space"]
    assert len(shared) == 10
    assert {name: parameters[name].default for name in shared} == {name: options[name] for name in shared}
