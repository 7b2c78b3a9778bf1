"""The command wrap: models that are trained already, as model files that all other commands take."""

import json

import numpy as np
import pytest
import torch
from command_line import call, refused
from tiny_ani import CONSTANTS
from tiny_mace import needs_mace, tiny_mace

from uqbias.errors import UqbiasError
from uqbias.model.fit import fit_model
from uqbias.model.model import UncertaintyModel
from uqbias.molecule.frames import Frames, read_frames, write_frames
from uqbias.potentials.mace import mace_modules
from uqbias.registry import named_paths
from uqbias.testing import molecule

MODULE = "documented_module:make"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """data.xyz and module.uqb."""
    folder = tmp_path_factory.mktemp("wrap")
    write_frames(folder / "data.xyz", molecule.frames(60, turn=3.0))
    done = call("wrap", MODULE, "--data", folder / "data.xyz", "-o", folder / "module.uqb")
    assert done.exit_code == 0, done.output
    assert "driver and judge fitted to 39 frames" in done.stdout
    return folder


def test_info_says_what_it_is(folder):
    output = call("info", folder / "module.uqb").stdout
    lines = dict(line.split(maxsplit=1) for line in output.splitlines())
    assert lines["potential"] == "module, 1 member(s), float32, not trained here"
    assert lines["elements"] == "H C O"
    assert lines["cutoff"] == "0.5 nm"
    assert lines["judge"].startswith("gmm on latents")
    assert "conformal on 15 frames held out" in output


def test_commands_take_it(folder, tmp_path):
    model = folder / "module.uqb"
    scores = json.loads(call("evaluate", model, folder / "data.xyz", "--json").stdout)
    assert scores["frames"] == 60
    assert np.isfinite(scores["force_mae_meV_per_A"])
    done = call("export", model, "-o", tmp_path / "energy.pt", "--output", "energy", "--with-forces")
    assert done.exit_code == 0, done.output
    loaded, x = UncertaintyModel.load(model), read_frames(folder / "data.xyz").positions[:1]
    energy, forces = torch.jit.load(tmp_path / "energy.pt")(torch.tensor(x[0]))
    assert float(energy) == pytest.approx(float(loaded(torch.tensor(x).float()).energy[0]), rel=1e-6)
    assert forces.shape == (12, 3)
    arguments = ["--steps", "20", "--pace", "5", "--walkers", "2", "--runner", "eager", "--start", folder / "data.xyz"]
    done = call("md", model, "-o", tmp_path / "md", *arguments, "--sigma", "0.3", "-q")
    assert done.exit_code == 0, done.output
    attack = ["--count", "2", "--iterations", "2", "--runner", "eager"]
    done = call("attack", model, folder / "data.xyz", "-o", tmp_path / "attacked.xyz", *attack)
    assert done.exit_code == 0, done.output


def test_files_of_others_run_no_code(folder, monkeypatch):
    monkeypatch.setattr("uqbias.registry.named_paths", named_paths - {MODULE})
    assert "nothing is imported; give --trust" in refused("info", folder / "module.uqb")
    assert call("info", folder / "module.uqb", "--trust").exit_code == 0


def test_frames_without_labels(folder, tmp_path):
    frames = molecule.frames(30, turn=3.0)
    write_frames(tmp_path / "bare.xyz", Frames(frames.numbers, frames.positions))
    done = call("wrap", MODULE, "--data", tmp_path / "bare.xyz", "-o", tmp_path / "m.uqb", "--judge", "distance")
    assert done.exit_code == 0, done.output
    assert "the judge is not calibrated" in done.stdout
    assert UncertaintyModel.load(tmp_path / "m.uqb").judge.kind == "distance"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no/such.thing"], "does not say what kind of model it is; give --kind: "),
        (["no_such_package:make"], "cannot be imported"),
        ([MODULE, MODULE], "2 models, documented_module:make and others; give one"),
        ([MODULE, "--kind", "modul"], "unknown kind 'modul' of a model; did you mean 'module'?"),
        ([MODULE, "--set", "training.steps=3"], "--set of 'steps', but nothing is trained"),
    ],
)
def test_what_cannot_be_wrapped(folder, tmp_path, arguments, message):
    assert message in refused("wrap", *arguments, "--data", folder / "data.xyz", "-o", tmp_path / "m.uqb")
    assert not (tmp_path / "m.uqb").exists()


def test_an_architecture_has_no_weights(folder):
    frames = read_frames(folder / "data.xyz")
    potential = {"kind": "ani", "constants": CONSTANTS, "hidden": [[5]] * 3}
    with pytest.raises(UqbiasError, match="kind = ani has no weights; give a model file of `uqbias wrap`"):
        fit_model(frames, None, {"potential": potential})


def test_elements_that_it_does_not_know(folder, tmp_path):
    frames = read_frames(folder / "data.xyz")
    frames.numbers[0] = 16
    write_frames(tmp_path / "sulfur.xyz", frames)
    line = refused("wrap", MODULE, "--data", tmp_path / "sulfur.xyz", "-o", tmp_path / "m.uqb")
    assert "atoms of element 16" in line


@needs_mace
def test_a_mace_file_is_opened_once_and_on_request(folder, tmp_path):
    paths = [tmp_path / f"seed{seed}.model" for seed in range(2)]
    for seed, path in enumerate(paths):
        with mace_modules():
            torch.save(tiny_mace(seed), path)
    arguments = [*paths, "--data", folder / "data.xyz", "-o", tmp_path / "m.uqb", "--judge", "committee"]
    assert "is a pickle: opening it runs the code that is in it; give --trust" in refused("wrap", *arguments)
    done = call("wrap", *arguments, "--trust")
    assert done.exit_code == 0, done.output
    assert done.stderr.count("a pickle, runs the code that is in it") == 2
    for path in paths:
        path.unlink()
    output = call("info", tmp_path / "m.uqb").stdout
    assert "mace, 2 member(s), float64, not trained here" in output
    assert str(paths[0]) in output
    assert call("evaluate", tmp_path / "m.uqb", folder / "data.xyz").exit_code == 0


def test_a_mace_file_that_is_not_there(folder, tmp_path):
    line = refused("wrap", tmp_path / "no.model", "--data", folder / "data.xyz", "-o", tmp_path / "m.uqb", "--trust")
    assert "no such model file" in line
