"""The doctor finds good forces good, wrong forces wrong, a dead process dead."""

import subprocess
import sys

import pytest
import torch
from molecules import peroxide_geometries, peroxide_model

from uqbias.doctor import Row, healthy, installation
from uqbias.errors import UqbiasError
from uqbias.testing.routes import context_of


def test_health_needs_one_backend_and_no_failure():
    works = Row("forces, pythonforce, eager, Reference", "ok", "")
    assert healthy([works, Row("openmmtorch", "absent", ""), Row("C++ compiler", "limited", "")])
    assert not healthy([works, Row("backend torchforce", "failed", "")])
    assert not healthy([Row("torch", "ok", "2.9.1")])


@pytest.mark.slow
def test_a_right_and_a_wrong_force():
    model = peroxide_model()
    context = installation._context(model, "pythonforce", "eager", "Reference", torch.float64)
    assert installation._differences(context)[1] < installation.DIFFERENCES
    from openmm import PythonForce

    def wrong(state):
        x = state.getPositions(asNumpy=True)._value
        return float((x**2).sum()), -1.9 * x

    context = context_of(PythonForce(wrong), peroxide_geometries(1), "Reference")
    assert installation._differences(context)[1] > 0.04


def test_a_broken_stack_is_a_failed_row_with_its_cure(monkeypatch):
    fault = UqbiasError("openmmtorch fails in every evaluation with torch 2.11", "pip install 'torch==2.9.*'")
    monkeypatch.setattr("uqbias.md.stack.backend_faults", lambda: {"pythonforce": None, "torchforce": fault})
    monkeypatch.setattr(installation, "_package", lambda name: Row(name, "ok", "1.5"))
    rows = list(installation._stacks())
    assert Row("backend torchforce", "failed", fault.what, fault.cure) in rows
    assert not healthy(rows)
    monkeypatch.setattr(installation, "_package", lambda name: Row(name, "absent", "not installed"))
    assert {row.status for row in installation._stacks()} == {"ok", "absent"}


@pytest.mark.parametrize(
    ("code", "detail"),
    [
        ("print('doing forces, torchforce', flush=True); import os; os.kill(os.getpid(), 11)", "ended by SIGSEGV"),
        ("print('doing forces, torchforce', flush=True); raise RuntimeError('no such operator')", "no such operator"),
    ],
)
def test_a_process_that_dies_is_a_failed_row(monkeypatch, code, detail):
    real = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda _command, **options: real([sys.executable, "-c", code], **options))
    (row,) = installation._in_process("torchforce", quick=True, timeout=60)
    assert (row.what, row.status) == ("forces, torchforce", "failed")
    assert detail in row.detail


def test_a_process_that_hangs_is_a_failed_row(monkeypatch):
    real = subprocess.run
    code = "import time; time.sleep(60)"
    monkeypatch.setattr(subprocess, "run", lambda _command, **options: real([sys.executable, "-c", code], **options))
    (row,) = installation._in_process("pythonforce", quick=True, timeout=0.5)
    assert row.status == "failed"
    assert "no answer within 0.5 s" in row.detail


def test_no_compiler_is_said(monkeypatch):
    monkeypatch.setattr("uqbias.compile.runners.find_compiler", lambda: None)
    assert installation._compiler().status == "limited"
    assert "g++" in installation._compiler().cure


def test_a_cache_that_cannot_be_written_is_said(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("UQBIAS_CACHE", str(tmp_path / "file" / "cache"))
    row = installation._cache()
    assert row.status == "limited"
    assert "UQBIAS_CACHE" in row.cure


@pytest.mark.slow
def test_all_checks_of_one_backend():
    rows = list(installation._in_process("pythonforce", quick=True, timeout=300))
    assert {"forces, pythonforce, eager, Reference", "forces, pythonforce, torchscript, Reference"} <= {
        row.what for row in rows
    }
    assert {row.status for row in rows} <= {"ok", "limited"}, rows
