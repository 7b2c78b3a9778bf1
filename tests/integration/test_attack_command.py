"""The command attack: what it writes, prints and refuses."""

import dataclasses
import errno
import inspect
import json
import re

import ase.io
import numpy as np
import pytest
import typer
from ase import Atoms
from command_line import call, refused
from typer.testing import CliRunner

from uqbias.attacks import AttackOptions
from uqbias.cli.attacks import attack
from uqbias.cli.part_options import command
from uqbias.cli.printing import CommandGroup
from uqbias.model.inference import evaluate_frames
from uqbias.molecule.frames import Frames, read_frames, write_frames
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
    from uqbias.model.model import UncertaintyModel

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
        assert entry["judge"] == pytest.approx(again.judge[index], rel=1e-3)
        assert entry["status"] == "iterations"
        assert entry["norm"] > 0
    median = np.median([entry["judge"] for entry in found.info])
    assert facts["judge"]["reached"]["median"] == pytest.approx(median)
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
    assert any(line.startswith("judge ") and "kJ/mol/nm" in line for line in lines)
    assert any("pass a campaign's physical filter" in line for line in lines)
    assert lines[-1] == f"files: {output}"
    assert max(entry["norm"] for entry in read_frames(output, labelled=False).info) <= 0.05 * (1 + 1e-6)


def test_variables_choose_the_space(folder):
    facts = facts_of(run(folder, "--variable", "phi=dihedral:2,0,1,3", "--of", "driver", "--json")[0])
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
    x = molecule.frames(4, seed=2).positions
    write_frames(folder / "blown.xyz", Frames(NUMBERS, np.concatenate([x[:3], 1e12 * x[3:]])))
    done, output = run(folder, data="blown.xyz")
    assert done.exit_code == 0, done.output
    assert "1 attacks failed" in done.stderr
    assert "attack 3 on frame 3: the start frame is blown up" in done.stderr
    assert {entry["source"] for entry in read_frames(output, labelled=False).info} == {0, 1, 2}


def test_where_every_attack_fails_nothing_is_reported_as_done(folder):
    output, ways = folder / "old.xyz", folder / "failed.npz"
    output.write_text("old\n")
    given = ["-o", output, "--learning-rate", "50", "--trajectory", ways, *QUICK]
    line = refused("attack", folder / "model.uqb", folder / "frames.xyz", *given)
    assert "all 4 attacks failed: " in line
    assert "lower --noise or --learning-rate" in line
    assert sum(int(number) for number in re.findall(r"\((\d+)\)", line)) == 4
    assert output.read_text() == "old\n"
    with np.load(ways) as kept:
        assert len(kept["status"]) == 4


def test_one_broken_start_frame_is_no_standard_for_the_others(folder):
    x = molecule.frames(6, seed=2).positions
    broken = x[:1].copy()
    broken[0, 1] = broken[0, 0]
    for name, frames in (("sound", x), ("poisoned", np.concatenate([x, broken, 1e20 * x[:1]]))):
        write_frames(folder / f"{name}.xyz", Frames(NUMBERS, frames))
    mild = ["--noise", "0.0001", "--bound", "0.005", "--count", "6", "--json"]
    sound, poisoned = (facts_of(run(folder, *mild, data=f"{name}.xyz")[0]) for name in ("sound", "poisoned"))
    assert sound["physical"] == 6
    # The attacks, whose number goes round the frames, are on the same six.
    assert poisoned["physical"] == 6
    assert poisoned["energy"]["start"] == pytest.approx(sound["energy"]["start"], abs=1e-3)


def test_the_lowest_start_frame_is_none_with_a_poisoned_energy(folder, monkeypatch):
    clean = facts_of(run(folder, "--json")[0])["energy"]["start"]["median"]

    def poisoned(model, positions):
        found = evaluate_frames(model, positions)
        found.energy[3:] -= 1e9
        return found

    monkeypatch.setattr("uqbias.model.inference.evaluate_frames", poisoned)
    found = facts_of(run(folder, "--json", "--count", "3")[0])["energy"]["start"]["median"]
    assert 0.0 <= found < clean + 100.0


def test_skipped_training_frames_are_told(folder):
    x = 10.0 * molecule.frames(3, seed=3).positions
    images = [Atoms("OH2", np.eye(3)), *(Atoms(NUMBERS, one) for one in x)]
    ase.io.write(folder / "training.xyz", images, format="extxyz")
    facts = facts_of(run(folder, "--training", folder / "training.xyz", "--json")[0])
    assert [entry["frame"] for entry in facts["training_skipped"]] == [0]
    assert facts["skipped"] == []
    done, _ = run(folder, "--training", folder / "training.xyz")
    assert "1 training frames skipped" in done.stderr
    assert facts_of(run(folder, "--json")[0])["training_skipped"] == []


@pytest.mark.parametrize(
    ("output", "ways", "message"),
    [
        ("", "", "cannot write to {}: it is a directory; give the name of a file"),
        ("a.xyz", "", "cannot write to {}: it is a directory"),
        ("text/a.xyz", "a.npz", "text is not a directory"),
        ("new/a.xyz", "text/new/a.npz", "text is not a directory"),
        ("a.xyz", "a.xyz", "is also the file of -o"),
    ],
)
def test_places_that_cannot_be_written_are_refused_before_the_work(folder, tmp_path, output, ways, message):
    (tmp_path / "text").write_text("")
    # A model that is not there: it has not been looked at.
    given = ["-o", tmp_path / output, "--trajectory", tmp_path / ways, *QUICK]
    line = refused("attack", folder / "no.uqb", folder / "frames.xyz", *given)
    assert message.format(tmp_path) in line
    assert sorted(tmp_path.iterdir()) == [tmp_path / "text"]


def test_an_error_of_a_file_is_one_line_and_others_are_not_hidden():
    app = typer.Typer(cls=CommandGroup, pretty_exceptions_enable=False)
    faults = {
        "denied": PermissionError(13, "Permission denied", "there.xyz"),
        "full": OSError(errno.ENOSPC, "No space left on device"),
        "other": OSError("of no file"),
    }

    @app.command()
    def write(kind: str):
        raise faults[kind]

    app.command("more")(lambda: None)
    denied, full, other = (CliRunner().invoke(app, ["write", kind]) for kind in faults)
    assert (denied.exit_code, full.exit_code) == (2, 2)
    assert denied.stderr.splitlines()[0].startswith("uqbias: there.xyz: Permission denied; ")
    assert full.stderr.startswith("uqbias: No space left on device; ")
    assert other.exception is faults["other"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--space", "intrnal"], "did you mean 'internal'"),
        (["--space", "variables"], "without a variable"),
        (["--set", "bond=true", "--space", "internal"], "did you mean 'bonds'"),
        (["--set", "bonds"], "write --set KEY=VALUE"),
        (["--of", "energy"], "attack with of 'energy'; input should be 'judge' or 'driver'"),
        (["--variable", "phi=dihedral:2,0,1,99"], "99 in a molecule of 12 atoms"),
        (["--runner", "fast"], "runner 'fast'; input should be 'auto', 'aoti'"),
        (["--training", "none.xyz"], "no such file: none.xyz"),
        (
            ["--space", "internal", "--variable", "phi=dihedral:2,0,1,3"],
            "the space 'internal' does not use; leave it out",
        ),
        (["--temperature", "nan"], "temperature nan; input should be a finite number"),
        (["--temperature", "-5"], "temperature -5.0; input should be greater than 0"),
        (["--learning-rate", "0"], "learning_rate 0.0; input should be greater than 0"),
        (["--noise", "-1"], "noise -1.0; input should be greater than or equal to 0"),
        (["--bound", "inf"], "bound inf; input should be a finite number"),
        (["--tolerance", "nan"], "tolerance nan; input should be a finite number"),
        (["--iterations", "0"], "iterations 0; input should be greater than or equal to 1"),
        (["--patience", "0"], "patience 0; input should be greater than or equal to 1"),
        (["--batch", "0"], "batch 0; input should be greater than or equal to 1"),
        (["--count", "0"], "--count 0; give 1 or more"),
        (["--seed", "-1"], "--seed -1; give 0 or more"),
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
    parameters = inspect.signature(command(attack)).parameters
    shared = [name for name in parameters if name in options and name != "space"]
    assert len(shared) == 10
    assert {name: parameters[name].default for name in shared} == {name: options[name] for name in shared}
