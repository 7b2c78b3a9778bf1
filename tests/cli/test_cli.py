"""Commands: what they print, what they refuse, and with which exit code."""

import json
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from command_line import call, refused
from molecules import HYDROGENS_LAST, peroxide_geometries, write_pdb

from uqbias import __version__
from uqbias.attacks.attack_options import DirectionOptions
from uqbias.cli.models import set_key
from uqbias.cli.part_options import command, options_from
from uqbias.doctor import Row
from uqbias.model.model import UncertaintyModel
from uqbias.molecule.frames import Frames, read_frames, write_frames
from uqbias.molecule.topology import Topology
from uqbias.options import options_of
from uqbias.plumed.input_options import PlumedOptions
from uqbias.registry import import_attribute

COMMANDS = ("template", "validate", "run", "report", "train", "evaluate", "md", "fes", "info", "export", "doctor")
NUMBERS = np.array(HYDROGENS_LAST.numbers)
TRAIN = ["--driver", "gmm", "--features", "latents", "--steps", "5", "--runner", "eager", "-q"]


@pytest.fixture(autouse=True)
def _log():
    yield
    logger = logging.getLogger("uqbias")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """data.xyz, settings.yaml and a model trained on them."""
    folder = tmp_path_factory.mktemp("cli")
    x = peroxide_geometries(40, seed=5)
    random = np.random.default_rng(0)
    frames = Frames(NUMBERS, x, random.normal(size=40), 100.0 * random.normal(size=x.shape))
    write_frames(folder / "data.xyz", frames)
    write_pdb(folder / "structure.pdb", HYDROGENS_LAST, x[0])
    (folder / "settings.yaml").write_text(SETTINGS)
    done = call("train", folder / "data.xyz", "-o", folder / "m.uqb", "--settings", folder / "settings.yaml", "-q")
    assert done.exit_code == 0, done.output
    return folder


SETTINGS = """\
system: {structure: structure.pdb, start: data.xyz}
potential: {n_channels: 2, n_radial: 4, l_max: 1, hidden: [8, 4]}
training: {steps: 5, runner: eager}
driver: {kind: kernel_density, features: {kind: torsions, heavy_only: false}, capacity: 64}
judge: {kind: gmm, n_components: 1}
"""


def test_nothing_heavy_is_imported_for_help():
    code = "import sys, uqbias.cli; print([m for m in ('torch', 'openmm', 'numpy', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_top_level_names():
    import uqbias

    assert uqbias.read_frames is read_frames
    assert {"UncertaintyModel", "run_campaign"} <= set(dir(uqbias))
    for name in uqbias.__all__:
        assert getattr(uqbias, name) is not None
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = uqbias.nothing_such


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(command):
    done = call(command, "--help")
    assert done.exit_code == 0
    # Example lines stand on lines of their own, not run together.
    assert any(line.startswith(f"    uqbias {command}") for line in done.output.splitlines())
    assert "\\b" not in done.output
    assert command in call("--help").output


def test_version():
    assert call("--version").stdout == f"uqbias {__version__}\n"


def test_unknown_command_is_answered_with_the_nearest():
    done = call("trian")
    assert done.exit_code == 2
    assert "train" in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("old", "new"), [("--cv", "--driver"), ("--uncertainty", "--judge"), ("--u", "--driver")])
def test_renamed_options_name_the_new_one(command, old, new):
    if (command, old) == ("fes", "--cv"):
        return  # any collective variable
    line = refused(command, f"{old}=gmm")
    assert line.startswith(f"uqbias: no option {old}, which is now called {new}; ")
    assert ("write " + new in line) == (command == "train")


def test_text_that_looks_like_a_number_stays_text_where_the_part_takes_text():
    atoms, lengths = options_from(PlumedOptions, "atoms"), options_from(DirectionOptions, "zero", "epsilons")

    def probe(first=atoms, second=lengths):
        return first | second

    given = {"atoms": "5", "zero": "0.5", "epsilons": "0.1,1"}
    assert command(probe)(**given) == {"atoms": "5", "zero": 0.5, "epsilons": [0.1, 1]}


def test_other_wrong_options_keep_their_answer():
    done = call("train", "--no-such-option")
    assert done.exit_code == 2
    assert "No such option: --no-such-option" in done.stderr
    assert "requires an argument" in call("train", "x.xyz", "--driver").stderr


def test_template_is_a_campaign_file(folder, tmp_path):
    assert call("template").stdout.startswith("# Campaign file")
    path = tmp_path / "campaign.yaml"
    assert call("template", "-o", path).exit_code == 0
    assert "there already" in refused("template", "-o", path)
    assert "structure.pdb: no such file" in refused("validate", path)
    for name in ("structure.pdb", "data.xyz"):
        (tmp_path / name.replace("data", "start")).write_bytes((folder / name).read_bytes())
    shown = call("validate", path)
    assert "auto chose kernel_density on pair_distances, since no bond turns" in shown.stdout, shown.output
    done = call("validate", path, "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert (facts["atoms"], facts["start_frames"], facts["labels_at_most"]) == (4, 40, 240)
    assert facts["driver"] == "auto"
    assert "; ".join(facts["driver_story"]) in shown.stdout
    text = path.read_text().replace("walkers:", "wakers:")
    path.write_text(text)
    assert "did you mean 'walkers'" in refused("validate", path)
    assert "no such campaign file" in refused("run", tmp_path / "nothing.yaml")


def test_ctrl_c_says_how_to_go_on(folder, monkeypatch, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("uqbias.campaign.rounds.run_campaign", interrupted)
    done = call("run", folder / "settings.yaml", "-o", tmp_path / "r", "-q")
    assert done.exit_code == 130
    assert f"`uqbias run {folder / 'settings.yaml'} -o {tmp_path / 'r'}` goes on" in done.stderr
    monkeypatch.setattr("uqbias.model.fit.fit_model", interrupted)
    done = call("train", folder / "data.xyz", "-o", tmp_path / "m.uqb")
    assert done.exit_code == 130
    assert done.stderr.count("\n") == 1


def test_train_and_info(folder):
    model = UncertaintyModel.load(folder / "m.uqb")
    assert model.potential.options()["n_channels"] == 2
    assert model.driver.kind == "kernel_density"
    assert model.calibration.fitted
    text = call("info", folder / "m.uqb").stdout
    for part in ("H2O2, 4 atoms", "3 bonds", "kernel_density on torsions", "gmm on latents", "driver choice", "torch"):
        assert part in text
    manifest = json.loads(call("info", folder / "m.uqb", "--json").stdout)
    assert manifest["provenance"]["calibration_frames"] == 10
    assert manifest["provenance"]["frames"] == 26


@pytest.mark.slow
def test_training_repeats_and_options_reach_the_model(folder, tmp_path):
    done = call("train", folder / "data.xyz", "-o", tmp_path / "a.uqb", "--members", 2, "--json", *TRAIN)
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["steps"] == 5
    call("train", folder / "data.xyz", "-o", tmp_path / "b.uqb", "--members", 2, *TRAIN)
    first, second = (UncertaintyModel.load(tmp_path / f"{name}.uqb") for name in "ab")
    assert first.potential.n_members == 2
    assert first.driver is first.judge
    assert first.driver.features.kind == "latents"
    assert first.topology.bonds == Topology.from_pdb(folder / "structure.pdb").bonds
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_train_refuses_bad_data(folder, tmp_path):
    target = tmp_path / "m.uqb"
    frames = read_frames(folder / "data.xyz")
    write_frames(tmp_path / "few.xyz", frames[:15])
    assert "15 frames" in refused("train", tmp_path / "few.xyz", "-o", target, *TRAIN)
    write_frames(tmp_path / "bare.xyz", Frames(NUMBERS, frames.positions))
    assert "no energy or forces" in refused("train", tmp_path / "bare.xyz", "-o", target, *TRAIN)
    (tmp_path / "nan.xyz").write_text((folder / "data.xyz").read_text().replace("energy=", "energy=nan old="))
    assert "not finite" in refused("train", tmp_path / "nan.xyz", "-o", target, *TRAIN)
    structure = (folder / "structure.pdb").read_text()
    (tmp_path / "other.pdb").write_text(structure.replace("           H\n", "           F\n"))
    found = refused("train", folder / "data.xyz", "--structure", tmp_path / "other.pdb", "-o", target, *TRAIN)
    assert "[8, 8, 1, 1]" in found
    assert "[8, 8, 9, 9]" in found
    found = refused("train", folder / "data.xyz", "--driver", "kernel_densty", "-o", target)
    assert "did you mean 'kernel_density'" in found
    assert not target.exists()


def test_evaluate(folder, tmp_path):
    scores = json.loads(call("evaluate", folder / "m.uqb", folder / "data.xyz", "--json").stdout)
    assert scores["frames"] == 40
    frames = read_frames(folder / "data.xyz")
    x = torch.tensor(frames.positions, dtype=torch.float32, requires_grad=True)
    (gradient,) = torch.autograd.grad(UncertaintyModel.load(folder / "m.uqb")(x).energy.sum(), x)
    expected = np.abs(-gradient.numpy() - frames.labels()[1]).mean() / 964.853 * 1000
    assert scores["force_mae_meV_per_A"] == pytest.approx(expected, rel=1e-4)
    assert scores["force_rmse_meV_per_A"] > scores["force_mae_meV_per_A"]
    assert 0 <= scores["coverage"] <= 1
    assert "meV/atom" in call("evaluate", folder / "m.uqb", folder / "data.xyz").stdout
    write_frames(tmp_path / "o.xyz", Frames(NUMBERS[::-1], frames.positions, *frames.labels()))
    assert "[1, 1, 8, 8]" in refused("evaluate", folder / "m.uqb", tmp_path / "o.xyz")


def test_every_command_refuses_frames_that_make_no_sense(folder, tmp_path):
    frames = read_frames(folder / "data.xyz")
    bohr = tmp_path / "bohr.xyz"
    write_frames(bohr, Frames(NUMBERS, frames.positions / 0.529177, *frames.labels()))
    model = folder / "m.uqb"
    for arguments in (
        ("train", bohr, "-o", tmp_path / "new.uqb", *TRAIN),
        ("evaluate", model, bohr),
        ("md", model, "--start", bohr, "-o", tmp_path / "md", "--runner", "eager"),
        ("attack", model, bohr, "-o", tmp_path / "attacks.xyz"),
    ):
        assert "most likely the positions are in bohr" in refused(*arguments), arguments[0]
    assert [file.name for file in tmp_path.iterdir()] == ["bohr.xyz"]
    (tmp_path / "c.yaml").write_text(SETTINGS.replace("data.xyz", "bohr.xyz").replace("structure.pdb", "s.pdb"))
    (tmp_path / "s.pdb").write_bytes((folder / "structure.pdb").read_bytes())
    assert "most likely the positions are in bohr" in refused("validate", tmp_path / "c.yaml")


def test_labels_by_name(folder, tmp_path):
    data = (folder / "data.xyz").read_text().replace("energy=", "ref_energy=").replace(":forces:", ":ref_forces:")
    (tmp_path / "data.xyz").write_text(data)
    line = refused("evaluate", folder / "m.uqb", tmp_path / "data.xyz")
    assert "it has ref_energy, ref_forces; give --energy-key ref_energy --forces-key ref_forces" in line
    keys = ["--energy-key", "ref_energy", "--forces-key", "ref_forces"]
    named = json.loads(call("evaluate", folder / "m.uqb", tmp_path / "data.xyz", *keys, "--json").stdout)
    plain = json.loads(call("evaluate", folder / "m.uqb", folder / "data.xyz", "--json").stdout)
    assert {**named, "data": ""} == {**plain, "data": ""}
    done = call("train", tmp_path / "data.xyz", *keys, "-o", tmp_path / "m.uqb", *TRAIN)
    assert done.exit_code == 0, done.output


def test_energies_alone(folder, tmp_path):
    frames = read_frames(folder / "data.xyz")
    write_frames(tmp_path / "e.xyz", Frames(NUMBERS, frames.positions, frames.energies))
    done = call("evaluate", folder / "m.uqb", tmp_path / "e.xyz")
    assert done.exit_code == 0, done.output
    assert "the frames have no forces" in done.stdout
    assert "meV/Å" not in done.stdout
    target = tmp_path / "m.uqb"
    assert "frame 0 has no forces" in refused("train", tmp_path / "e.xyz", "-o", target, *TRAIN)
    done = call("train", tmp_path / "e.xyz", "-o", target, *TRAIN, "--set", "training.force_weight=0")
    assert done.exit_code == 0, done.output
    assert "learned from energies alone, its judge is not calibrated" in done.stdout


def test_damaged_model_files(folder, tmp_path):
    content = (folder / "m.uqb").read_bytes()
    (tmp_path / "short.uqb").write_bytes(content[:-100])
    assert "not a whole model file" in refused("info", tmp_path / "short.uqb")
    changed = bytearray(content)
    changed[-1] ^= 1
    (tmp_path / "changed.uqb").write_bytes(changed)
    assert "changed after it was written" in refused("evaluate", tmp_path / "changed.uqb", folder / "data.xyz")
    assert "no such model file" in refused("md", tmp_path / "none.uqb", "-o", tmp_path / "md")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--platform", "foo"), "no OpenMM platform 'foo' on this machine"),
        (("--platform", "foo", "--resume"), "no OpenMM platform 'foo' on this machine"),
        (("--wall", -1e6), "guards.driver_cap = -999998 is below the driver in all start frames, "),
    ],
)
def test_md_that_cannot_begin_leaves_nothing_behind(folder, tmp_path, options, message):
    start = ("--start", folder / "data.xyz", "--steps", 10, "--pace", 10, "--runner", "eager", "-q")
    assert message in refused("md", folder / "m.uqb", "-o", tmp_path / "md", *start, *options)
    assert not (tmp_path / "md").exists()


@pytest.mark.parametrize("name", ["height", "biasf"])
def test_md_refuses_variables_called_like_columns_of_hills(folder, tmp_path, name):
    options = ("--variable", f"{name}=dihedral:2,0,1,3", "--on", name, "-q")
    assert f"'{name}' is taken" in refused("md", folder / "m.uqb", "-o", tmp_path / "md", *options)


def test_values_of_set_are_those_of_a_campaign_file():
    sections = {}
    for text, value in (("1e-3", 1e-3), ("[1e3, -2E+4]", [1e3, -2e4]), ("1.5", 1.5), ("3", 3), ("null", None)):
        set_key(sections, f"eabf.mass={text}")
        assert sections["eabf"]["mass"] == value
        assert type(sections["eabf"]["mass"]) is type(value)


def test_biased_energy_is_refused_without_a_bias(folder, tmp_path):
    assert "give --hills" in refused("export", folder / "m.uqb", "-o", tmp_path / "y.pt", "--output", "biased")
    assert "did you mean 'energy'" in refused("export", folder / "m.uqb", "-o", tmp_path / "y.pt", "--output", "enery")
    assert not (tmp_path / "y.pt").exists()


def test_export_with_forces(folder, tmp_path):
    done = call("export", folder / "m.uqb", "-o", tmp_path / "driver.pt", "--with-forces", "--json")
    assert json.loads(done.stdout)["with_forces"] is True
    x = torch.tensor(read_frames(folder / "data.xyz").positions[0])
    with torch.no_grad():
        value, forces = torch.jit.load(str(tmp_path / "driver.pt"))(x)
        expected = UncertaintyModel.load(folder / "m.uqb")(x[None].float()).driver
    assert float(value) == pytest.approx(float(expected), abs=1e-4)
    assert forces.shape == (4, 3)


def test_report_refuses_what_is_no_run(tmp_path):
    assert "no such run directory" in refused("report", tmp_path / "nothing")
    assert "not a run directory" in refused("report", tmp_path)


def test_doctor_exit_codes(monkeypatch):
    good = Row("forces, pythonforce, eager, Reference", "ok", "differ by 1e-7")
    bad = Row("backend torchforce", "failed", "compiled against torch 2.9", "pip install 'torch==2.9.*'")
    monkeypatch.setattr("uqbias.doctor.examine", lambda **_: iter([good]))
    assert call("doctor").exit_code == 0
    monkeypatch.setattr("uqbias.doctor.examine", lambda **_: iter([good, bad]))
    done = call("doctor")
    assert done.exit_code == 2
    assert "pip install 'torch==2.9.*'" in done.stdout
    assert json.loads(call("doctor", "--json").stdout)["healthy"] is False


@pytest.mark.parametrize(
    ("command", "output", "message"),
    [
        (("train", "no.xyz"), "", "cannot write to {}: it is a directory; give the name of a file"),
        (("train", "no.xyz"), "text/model.uqb", "text is not a directory; give another file name"),
        (("fes", "no", "--cv", "driver"), "text", "text is not a directory; give another directory"),
    ],
)
def test_outputs_are_tried_before_anything_is_read(tmp_path, command, output, message):
    (tmp_path / "text").write_text("")
    assert message.format(tmp_path) in refused(*command, "-o", tmp_path / output)


@pytest.mark.parametrize(
    ("command", "part", "name", "flag"),
    [
        ("md", "uqbias.settings.schema:MD", "temperature", "--temperature"),
        ("attack", "uqbias.attacks.attack_options:AttackOptions", "tolerance", "--tolerance"),
        ("plumed", "uqbias.plumed.input_options:PlumedOptions", "barrier", "--barrier"),
    ],
)
def test_options_are_described_where_the_part_has_them(command, part, name, flag):
    described = options_of(import_attribute(part))[name]
    text = " ".join(call(command, "--help").output.split())
    start = text.index(f"{flag} <")
    entry = text[start : text.index("]", start)]
    assert described.description[1:] in entry
    assert entry.endswith(f"[default: {described.default}")
