"""Input files for PLUMED: what is written, for which model, and what is refused."""

import re

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from uqbias.cli import app
from uqbias.errors import UqbiasError
from uqbias.model.model import UncertaintyModel
from uqbias.plumed.input_options import PlumedOptions
from uqbias.plumed.input_writer import write_plumed_input


def lines(path):
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def test_metadynamics(alanine_model, alanine_frames, tmp_path):
    files = write_plumed_input(alanine_model, tmp_path / "new" / "folder")
    assert [path.name for path in files] == ["driver.pt", "plumed.dat", "plumed_openmm.dat", "README.md"]
    plugin, bridge = (lines(files[index]) for index in (1, 2))
    assert plugin[:2] == ["LOAD FILE=./libuqbias.so", "u: UNCERTAINTY ATOMS=1-22 MODEL=driver.pt"]
    assert bridge[0] == "u: EXTRACV NAME=driver"
    assert plugin[2:] == bridge[1:]
    assert plugin[2].startswith("METAD ARG=u SIGMA=0.3 HEIGHT=1 PACE=500 BIASFACTOR=10 TEMP=300 FILE=HILLS")
    assert plugin[3] == "UPPER_WALLS ARG=u AT=14 KAPPA=20 LABEL=wall"
    positions = torch.tensor(alanine_frames.positions[0])
    value, forces = torch.jit.load(str(files[0]))(positions)
    assert float(value) == pytest.approx(float(alanine_model(positions[None]).driver), rel=1e-4)
    assert forces.shape == positions.shape
    assert "ATOMS=1-22" in files[3].read_text()


@pytest.fixture
def no_export(monkeypatch):
    """The export takes a second; these tests look at the text only."""
    monkeypatch.setattr(
        "uqbias.plumed.input_writer.export_torchscript", lambda model, path, *_, **__: path.write_bytes(b"")
    )


@pytest.mark.usefixtures("no_export")
def test_opes_on_the_judge_of_a_solute(alanine_model, tmp_path):
    options = PlumedOptions(bias="opes", output="judge", atoms="3-24", float64=True, barrier=30.0)
    _, plumed, bridged, _ = write_plumed_input(alanine_model, tmp_path, options)
    text = lines(plumed)
    assert text[1] == "u: UNCERTAINTY ATOMS=3-24 MODEL=driver.pt FLOAT64"
    assert text[2].startswith("OPES_METAD ARG=u PACE=500 BARRIER=30 TEMP=300 FILE=KERNELS")
    assert not any("UPPER_WALLS" in line for line in text)
    assert lines(bridged)[0] == "u: EXTRACV NAME=judge"


@pytest.mark.usefixtures("no_export")
def test_every_argument_that_is_printed_exists(alanine_model, tmp_path):
    for bias in ("metad", "opes"):
        _, plumed, *_ = write_plumed_input(alanine_model, tmp_path / bias, PlumedOptions(bias=bias))
        labels = set(re.findall(r"LABEL=(\w+)", plumed.read_text())) | {"u"}
        printed = re.search(r"PRINT ARG=(\S+)", plumed.read_text()).group(1).split(",")
        assert {name.split(".")[0] for name in printed} == labels


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bias": "meta"}, "did you mean 'metad'"),
        ({"output": "energy"}, "unknown output 'energy'"),
        ({"output": "judge"}, "no width for hills on a CV in kJ/mol/nm; give --sigma"),
        ({"biasfactor": 1.0}, "biasfactor 1.0; input should be greater than 1"),
        ({"sigma": -1.0}, "sigma -1.0"),
        ({"temperature": 0.0}, "temperature 0.0"),
    ],
)
def test_bad_options(alanine_model, tmp_path, options, message):
    with pytest.raises(UqbiasError, match=re.escape(message)):
        write_plumed_input(alanine_model, tmp_path / "out", PlumedOptions(**options))
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_export")
def test_command(alanine_model, tmp_path):
    model = UncertaintyModel(alanine_model.potential, alanine_model.judge, alanine_model.topology)
    model.save(tmp_path / "model.uqb")
    arguments = ["plumed", str(tmp_path / "model.uqb"), "--sigma", "0.7", "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "SIGMA=0.7" in (tmp_path / "out" / "plumed.dat").read_text()
    assert "AT=14" not in (tmp_path / "out" / "plumed.dat").read_text()  # a mixture has no such bound
    assert np.char.count(result.output, "wrote") == 4
    assert CliRunner().invoke(app, ["plumed", "-o", str(tmp_path)]).exit_code == 2
