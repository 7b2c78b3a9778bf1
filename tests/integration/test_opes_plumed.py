"""OPES step by step against PLUMED's OPES_METAD and OPES_METAD_EXPLORE, on a prescribed series of values."""

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from plumed_kernel import needs_kernel

from uqbias.bias.opes import OPES
from uqbias.plumed.session import PlumedSession

torch.set_num_threads(1)
TEMPERATURE, BARRIER, PACE, STEPS = 310.0, 32.0, 10, 6000


pytestmark = [pytest.mark.plumed, needs_kernel("opes")]


class Reference(NamedTuple):
    #: Name of a component to [steps].
    values: dict[str, np.ndarray]
    #: [steps, D].
    forces: np.ndarray
    #: Name of a column to [K], of the compressed kernels at the end.
    kernels: dict[str, np.ndarray]


def read(path):
    fields = path.read_text().splitlines()[0].split()[2:]
    return dict(zip(fields, np.loadtxt(path, ndmin=2).T, strict=True))


def plumed(series, options, periodic, folder):
    """PLUMED on the values [steps, D]."""
    names = [f"v{d}" for d in range(series.shape[1])]
    lines = []
    for d, name in enumerate(names):
        lines.append(f"{name}: EXTRACV NAME={name}")
        lines.append(f"x{d}: COMBINE ARG={name} PERIODIC={'-pi,pi' if periodic[d] else 'NO'}")
    arguments = ",".join(f"x{d}" for d in range(len(names)))
    state = f"STATE_WFILE=STATE STATE_WSTRIDE={len(series) - 1} FMT=%.16g"
    lines += [f"o: {options} ARG={arguments} PACE={PACE} {state}", "PRINT ARG=o.* FILE=COLVAR FMT=%.16g"]
    session = PlumedSession(
        lines,
        names,
        masses=np.ones(1),
        charges=np.zeros(1),
        timestep=0.001,
        temperature=TEMPERATURE,
        output_dir=folder,
        log="log",
        restart=False,
        flush=None,
    )
    forces = np.zeros_like(series)
    for step, values in enumerate(series):
        session.begin(step)
        session.calculate(np.zeros((1, 3)), dict(zip(names, values, strict=True)))
        forces[step] = [session.value_forces[name][0] for name in names]
    session.close()
    return Reference(read(folder / "COLVAR"), forces, read(folder / "STATE"))


def ours(series, bias):
    """The same components of our own, and forces."""
    values = {name: np.zeros(len(series)) for name in ("o.bias", "o.rct", "o.zed", "o.neff", "o.nker")}
    forces = np.zeros_like(series)
    for step, row in enumerate(series[:, None]):
        x = torch.tensor(row, requires_grad=True)
        energy = bias.energy(x, bias.state())
        forces[step] = -torch.autograd.grad(energy.sum(), x)[0][0].numpy()
        bias.update(step, row)
        components = (energy.item(), bias.rct, bias.zed, bias.neff, len(bias.kernels))
        for column, value in zip(values.values(), components, strict=True):
            column[step] = value
    return values, forces


def wandering(steps, dimensions, periodic):
    rng = np.random.default_rng(5)
    angle = np.cumsum(rng.normal(0, 0.06, (steps + 1, dimensions)), axis=0)
    # A torsion goes round; another variable swings.
    return np.where(periodic, (angle + 2.5 + math.pi) % (2 * math.pi) - math.pi, 2.0 * np.sin(angle))


CASES = {
    "1D": ("OPES_METAD", {"sigma": [0.25]}),
    "1D, flat target": ("OPES_METAD", {"sigma": [0.25], "biasfactor": math.inf}),
    "1D, no merging": ("OPES_METAD", {"sigma": [0.25], "compression_threshold": 0.0}),
    "2D": ("OPES_METAD", {"sigma": [0.25, 0.3], "periods": [None, 2 * math.pi]}),
    "1D, exploratory": ("OPES_METAD_EXPLORE", {"sigma": [0.2]}),
    "2D, exploratory": (
        "OPES_METAD_EXPLORE",
        {"sigma": [0.2, 0.15], "periods": [None, 2 * math.pi], "biasfactor": 8.0},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_step_is_plumeds(case, tmp_path):
    action, options = CASES[case]
    options = {"sigma_min": [0.4 * width for width in options["sigma"]], **options}
    sigma = options["sigma"]
    periods = options.get("periods", [None] * len(sigma))
    words = [f"{action} BARRIER={BARRIER}"]
    for name in ("sigma", "sigma_min"):
        words.append(f"{name.upper()}={','.join(repr(width) for width in options[name])}")
    for name in ("biasfactor", "compression_threshold"):
        if name in options:
            words.append(f"{name.upper()}={options[name]}")
    series = wandering(STEPS, len(sigma), [period is not None for period in periods])
    reference = plumed(series, " ".join(words), [period is not None for period in periods], tmp_path)
    bias = OPES(
        barrier=BARRIER,
        pace=PACE,
        temperature=TEMPERATURE,
        exploratory="EXPLORE" in action,
        variables=[f"x{d}" for d in range(len(sigma))],
        **options,
    ).to(torch.float64)
    values, forces = ours(series, bias)

    np.testing.assert_array_equal(values["o.nker"], reference.values["o.nker"])
    assert values["o.nker"][-1] > 5
    for name in ("o.rct", "o.zed", "o.neff"):
        np.testing.assert_allclose(values[name], reference.values[name], rtol=1e-9, err_msg=name)
    for name in ("height", *(f"{part}x{d}" for part in ("", "sigma_") for d in range(len(sigma)))):
        column = bias.kernels["height" if name == "height" else "sigma" if "sigma" in name else "centre"]
        column = column if name == "height" else column[:, int(name[-1])]
        np.testing.assert_allclose(column, reference.kernels[name], rtol=1e-9, atol=1e-12, err_msg=name)

    # From here on it is the grid that is compared: exact but for what is interpolated where kernels end.
    error = np.abs(values["o.bias"] - reference.values["o.bias"])
    assert np.ptp(reference.values["o.bias"]) > BARRIER - 1e-6
    assert np.quantile(error, 0.99) < 1e-3
    assert error.max() < 0.1
    # Near the end of a kernel PLUMED's force is not the derivative of its bias.
    inside = reference.values["o.bias"] > -0.5 * BARRIER if "EXPLORE" not in action else slice(None)
    scale = np.abs(reference.forces[inside]).max()
    assert scale > 10.0
    assert np.abs(forces - reference.forces)[inside].max() < 1e-2 * scale
