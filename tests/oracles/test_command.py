"""Labels by a program: what it gives arrives, whatever it does wrong is said with its last words."""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import spring_program

from uqbias.campaign.contained_oracle import ContainedOracle
from uqbias.campaign.home import Home
from uqbias.campaign.label_requests import LabelRequest, label_key
from uqbias.campaign.labelling import OracleSpec, label_all
from uqbias.campaign.ledger import open_ledger
from uqbias.errors import UqbiasError
from uqbias.oracles.base import OracleError
from uqbias.oracles.command import CommandOracle
from uqbias.registry import EXECUTORS
from uqbias.units import ANGSTROM, EV, EV_PER_ANGSTROM

PROGRAM = spring_program.__file__
RUN = f"{sys.executable} -S spring_program.py {{input}} {{output}}"
X = np.array([[0.1, 0.02, 0.0], [0.0, -0.05, 0.07]])


def oracle(**options):
    return CommandOracle(**{"run": RUN, "files": [PROGRAM], "numbers": [8, 1]} | options)


def troubled(number):
    x = X.copy()
    x[0, 1] = number * ANGSTROM
    return x


@pytest.mark.parametrize("contained", [False, True])
@pytest.mark.parametrize("cell", [None, np.diag([1.0, 1.1, 1.2])], ids=["vacuum", "cell"])
def test_labels_arrive_in_our_units(cell, contained):
    asked = ContainedOracle(oracle()) if contained else oracle()
    energy, forces, stress = asked.label(X, cell)
    angstrom = X / ANGSTROM
    assert energy == pytest.approx((0.5 + 0.15 * (angstrom**2).sum()) * EV, rel=1e-9)
    np.testing.assert_allclose(forces, -0.3 * angstrom * EV_PER_ANGSTROM, atol=1e-6)
    if cell is None:
        assert stress is None
    else:
        np.testing.assert_allclose(stress, np.diag([0.01, 0.02, 0.03]) * EV / ANGSTROM**3)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (11, r"ended with exit code 7; its last lines: iteration 2 / energy [\d.]+ / no memory for the integrals"),
        (12, r"wrote no output.xyz; its last lines: .* / energy"),
        (13, r"of another geometry: a coordinate is 0.5 Å from what was asked for, allowed are 0.0001"),
        (14, r"not converged; its last lines"),
        (15, r"energy is not finite"),
        (17, r"has atoms \[2, 1\], the geometry asked for \[8, 1\]"),
        (18, r"is not an extended-XYZ file"),
    ],
)
def test_troubles_are_said_by_name(number, said):
    with pytest.raises(OracleError, match=f"command oracle failed: .*{said}"):
        oracle().label(troubled(number))


def test_time_limit_tells_the_last_lines():
    asked = ContainedOracle(oracle())
    asked.label(X)  # so that the process is there
    asked._spec = type(asked._spec)("command", asked.options(), timeout=5.0)
    with pytest.raises(OracleError, match=r"no answer within 5 s .*its last lines: iteration 1 / iteration 2 / energy"):
        asked.label(troubled(16))


def test_an_output_that_was_there_before_is_none(tmp_path):
    stale = tmp_path / "output.xyz"
    stale.write_text("")
    with pytest.raises(UqbiasError, match=r"output_file = output.xyz is there before the command is run"):
        oracle(files=[PROGRAM, str(stale)])


def test_templates_and_formats_of_ase(tmp_path):
    template = tmp_path / "job.in"
    template.write_text("charge {charge} spin {spin} ${HOME}\n{atoms}\n{cell}\nend\n")
    run = f"cat input.xyz; {sys.executable} -c 'import sys; sys.exit(9)'"
    asked = oracle(template=str(template), charge=-1, spin=2, run=run)
    asked.folder = tmp_path
    with pytest.raises(OracleError, match="exit code 9"):
        asked.label(X, np.diag([1.0, 1.1, 1.2]))
    lines = (tmp_path / "input.xyz").read_text().splitlines()
    assert lines[0] == "charge -1 spin 2 ${HOME}"
    assert lines[1].split() == ["O", "1.0000000000", "0.2000000000", "0.0000000000"]
    assert lines[3:] == [
        "10.0000000000 0.0000000000 0.0000000000",
        "0.0000000000 11.0000000000 0.0000000000",
        "0.0000000000 0.0000000000 12.0000000000",
        "end",
    ]
    template.write_text("before\n{geometry}after\n")
    asked = oracle(template=str(template), input_format="vasp", input_file="POSCAR", run="false")
    asked.folder = tmp_path
    with pytest.raises(OracleError, match="exit code 1; it printed nothing"):
        asked.label(X, np.diag([1.0, 1.1, 1.2]))
    text = (tmp_path / "POSCAR").read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "Cartesian" in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"input_format": "extxzy"}, r"oracle.input_format = extxzy: no format of ASE; did you mean 'extxyz'"),
        ({"output_format": "vti"}, r"oracle.output_format = vti"),
        ({"output_file": "../output.xyz"}, r"oracle.output_file = ../output.xyz"),
        ({"run": "x {charge}"}, r"has {charge}, which is not stated"),
        ({"charge": 1, "input_format": "vasp"}, r"system.charge = 1 does not reach the command"),
        ({"template": PROGRAM}, r"no {geometry} and no {atoms}"),
        ({"numbers": None}, r"neither numbers nor structure"),
    ],
)
def test_bad_options(options, said):
    with pytest.raises(UqbiasError, match=said):
        oracle(**options)


def test_charge_is_in_the_info_of_extended_xyz(tmp_path):
    asked = oracle(charge=1, spin=2)
    asked.folder = tmp_path
    asked.label(X)
    assert "charge=1 spin=2" in Path(tmp_path / "input.xyz").read_text()


DASK = pytest.mark.skipif(not find_spec("distributed"), reason="no dask.distributed")


@pytest.mark.parametrize("kind", ["local", "process", pytest.param("dask", marks=DASK)])
def test_failures_are_in_the_ledger_under_every_executor(tmp_path, kind):
    frames = [X, troubled(11), 1.1 * X]
    spec = OracleSpec("command", oracle().options(), folder=tmp_path / "labels")
    with open_ledger(tmp_path, {}, np.array([8, 1]), {}) as ledger:
        executor = EXECUTORS.build(kind, work="label", home=Home.take(tmp_path), longest=60.0)
        requests = [LabelRequest(i, label_key(x, "command"), x, {}) for i, x in enumerate(frames)]
        assert label_all(executor, spec, requests, ledger, 0) == 1
        executor.shutdown()
        assert [event["index"] for event in ledger.events("label")] in ([0, 2], [2, 0])
        (failure,) = ledger.events("failure")
    assert failure["reason"].endswith("no memory for the integrals")
    (left,) = (tmp_path / "labels").iterdir()
    assert {"input.xyz", "spring_program.py"} <= {path.name for path in left.iterdir()}
