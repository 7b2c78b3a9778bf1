"""Exported modules used by a process that has torch, OpenMM and openmmtorch, and no uqbias."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from uqbias.bias.fixed import UpperWall
from uqbias.errors import UqbiasError
from uqbias.model.export import export_torchscript
from uqbias.model.fit import calibrate
from uqbias.model.model import UncertaintyModel

HOST = Path(__file__).parents[1] / "helpers" / "host_without_uqbias.py"


def differences(model, output, positions, step=1e-5):
    """Central differences of an output of the float64 model; [N, 3]."""
    shifts = step * torch.eye(positions.numel(), dtype=positions.dtype).view(-1, *positions.shape)
    with torch.no_grad():
        plus, minus = (getattr(model(positions + sign * shifts), output) for sign in (1, -1))
    return ((plus - minus) / (2 * step)).view_as(positions)


@pytest.mark.parametrize("output", ["judge", "driver", "energy", "biased"])
def test_both_forms_against_the_model(alanine_model, alanine_frames, tmp_path, output):
    positions = torch.tensor(alanine_frames.positions[10])
    bias = UpperWall(at=-3.0, kappa=2.0) if output == "biased" else None
    files = [tmp_path / "scalar.pt", tmp_path / "forces.pt"]
    for with_forces, path in enumerate(files):
        export_torchscript(alanine_model, path, output, with_forces=bool(with_forces), bias=bias)
    points = positions.clone().requires_grad_()
    prediction = alanine_model(points.unsqueeze(0))
    if bias is not None:
        expected = (prediction.energy + bias.to(torch.float64).energy(prediction.driver[:, None], bias.state()))[0]
    else:
        expected = getattr(prediction, output)[0]
    (gradient,) = torch.autograd.grad(expected, points)
    expected, size = expected.detach(), gradient.abs().max()
    scalar = torch.jit.freeze(torch.jit.load(str(files[0])).eval())
    flat = torch.jit.freeze(torch.jit.load(str(files[1])).eval())
    for dtype in (torch.float64, torch.float32):
        points = positions.to(dtype).requires_grad_()
        value = scalar(points)
        assert value.dtype == dtype
        assert value.shape == ()
        (host_gradient,) = torch.autograd.grad(value, points)
        flat_value, forces = flat(positions.to(dtype))
        assert forces.dtype == dtype
        torch.testing.assert_close(flat_value, value.detach())
        torch.testing.assert_close(value.detach().double(), expected, rtol=1e-4, atol=1e-3)
        assert (host_gradient.double() - gradient).abs().max() < 1e-3 * size
        assert (forces.double() + gradient).abs().max() < 1e-3 * size


def test_file_needs_no_python_operator(alanine_model, tmp_path):
    extra = {"manifest.json": ""}
    for with_forces in (False, True):
        path = tmp_path / "module.pt"
        export_torchscript(alanine_model, path, "driver", with_forces=with_forces)
        module = torch.jit.load(str(path), _extra_files=extra)
        kinds = {node.kind() for node in module.inlined_graph.nodes()}
        assert not [kind for kind in kinds if kind.startswith("uqbias") or "Python" in kind]
        manifest = json.loads(extra["manifest.json"])
        assert manifest["with_forces"] is with_forces
        assert manifest["atomic_numbers"] == list(alanine_model.numbers)


def test_periodic_module_takes_the_box(alanine_model, alanine_frames, tmp_path):
    positions = torch.tensor(alanine_frames.positions[0])
    box = 2.5 * torch.eye(3, dtype=torch.float64)
    results = []
    for with_forces in (False, True):
        path = tmp_path / f"{with_forces}.pt"
        export_torchscript(alanine_model, path, "energy", with_forces=with_forces, periodic=True)
        module = torch.jit.load(str(path))
        moved = positions.clone()
        moved[5:9] += box[0]
        results.append((module(positions, box), module(moved, box)))
    torch.testing.assert_close(results[0][0], results[0][1], rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(results[1][0][0], results[0][0])
    torch.testing.assert_close(results[1][0][1], results[1][1][1], rtol=1e-3, atol=1.0)


def test_bad_arguments(tiny_model, tmp_path):
    path = tmp_path / "module.pt"
    path.write_text("earlier result")
    with pytest.raises(UqbiasError, match="did you mean 'energy'"):
        export_torchscript(tiny_model, path, "enrgy")
    with pytest.raises(UqbiasError, match="give a bias"):
        export_torchscript(tiny_model, path, "biased")
    with pytest.raises(UqbiasError, match=r"\[5, 3\]"):
        export_torchscript(tiny_model, path, example_positions=torch.zeros(4, 3))
    assert path.read_text() == "earlier result"


def test_a_host_without_uqbias(alanine_model, alanine_frames, tmp_path):
    pytest.importorskip("openmmtorch")
    positions = torch.tensor(alanine_frames.positions[10])
    for output in ("driver", "energy"):
        export_torchscript(alanine_model, tmp_path / f"{output}.pt", output)
        export_torchscript(alanine_model, tmp_path / f"{output}_forces.pt", output, with_forces=True)
    np.save(tmp_path / "positions.npy", positions.numpy())
    done = subprocess.run(
        [sys.executable, str(HOST), str(tmp_path)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    for output in ("driver", "energy"):
        expected = -differences(alanine_model, output, positions).numpy()
        size = np.abs(expected).max()
        for form in (output, f"{output}_forces"):
            assert np.abs(np.array(result[form]) - expected).max() < 1e-3 * size, form
    assert result["hills_moved_the_force"] > 0
    assert result["driver_from_metadynamics"] == pytest.approx(result["driver_from_module"], rel=1e-4)


def test_components(alanine_model, alanine_frames, tmp_path):
    """Several values in one file, each with its gradient, named and with its unit in the manifest."""
    parts = (copy.deepcopy(part) for part in (alanine_model.potential, alanine_model.judge))
    model = UncertaintyModel(*parts, alanine_model.topology, copy.deepcopy(alanine_model.driver))
    model.potential.record_seen(alanine_frames.positions[:60])
    with pytest.raises(UqbiasError, match="component 'max' of a judge without a calibrated value for every atom"):
        export_torchscript(model, tmp_path / "driver.pt", "driver", components=["max"])
    calibrate(model, alanine_frames[60:])
    export_torchscript(model, tmp_path / "driver.pt", "driver", components=["energy", "max"])
    extra = {"manifest.json": ""}
    loaded = torch.jit.load(str(tmp_path / "driver.pt"), _extra_files=extra)
    manifest = json.loads(extra["manifest.json"])
    assert manifest["components"] == ["driver", "energy", "max"]
    assert manifest["units"][:2] == ["nats", "kJ/mol"]
    assert manifest["units"][2].startswith("kJ/mol/nm of force error")
    x = torch.tensor(alanine_frames.positions[70]).requires_grad_()
    values = loaded(x)
    expected = model(x.unsqueeze(0))
    largest = model.atom_uncertainties(x.unsqueeze(0)).max()
    torch.testing.assert_close(
        values, torch.stack([expected.driver[0], expected.energy[0], largest]), rtol=1e-4, atol=1e-3
    )
    for value, reference in zip(values, (expected.driver, expected.energy, largest), strict=True):
        found, wanted = (torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for y in (value, reference))
        assert (found - wanted).abs().max() < 1e-3 * wanted.abs().max()


def test_bad_components(alanine_model, tmp_path):
    with pytest.raises(UqbiasError, match="did you mean 'energy'"):
        export_torchscript(alanine_model, tmp_path / "driver.pt", "driver", components=["enrgy"])
    with pytest.raises(UqbiasError, match="components with forces"):
        export_torchscript(alanine_model, tmp_path / "driver.pt", "driver", components=["energy"], with_forces=True)
    assert not (tmp_path / "driver.pt").exists()
