"""Biased runs of a double well with known free energy, and run folders of them."""

import inspect
import json

import numpy as np
import torch

from uqbias.bias.base import BiasSum
from uqbias.bias.fixed import Restraint
from uqbias.free_energy import FreeEnergyOptions, estimate
from uqbias.molecule.topology import Topology
from uqbias.registry import BIASES
from uqbias.units import kt

TEMPERATURE = 300.0
KT = kt(TEMPERATURE)
PAIR = Topology((1, 1), ((0, 1),)).to_dict()
NO_UNIT = {"kind": "distance", "options": {"groups": [[0], [1]]}, "period": None, "unit": ""}


def well(x):
    """Minima at -1 and 1, the left one lower by 3 kT; barriers of 6.5 and 3.6 kT."""
    return KT * (5 * x**4 - 10 * x**2 + 1.5 * x)


def well_slope(x):
    return KT * (20 * x**3 - 20 * x + 1.5)


def free_energy(paths, variables, **options):
    return estimate.free_energy(paths, variables, FreeEnergyOptions(**options))


def exact(axis, potential=well):
    """F of each bin from the Boltzmann factor integrated over it, lowest 0."""
    inside = np.linspace(axis.edges[:-1], axis.edges[1:], 41)
    F = -KT * np.log(np.exp(-potential(inside) / KT).mean(axis=0))
    return F - F.min()


def deviation(result, reference, below=10.0):
    """Root mean square difference in kT over the visited bins up to ``below`` kT, a constant apart."""
    chosen = (reference < below * KT) & np.isfinite(result.values)
    assert chosen.sum() > 10
    difference = (result.values - reference)[chosen]
    return float(difference.std() / KT)


class Langevin:
    """Overdamped dynamics of [D, W] coordinates, exact to second order (Leimkuhler and Matthews, 2013)."""

    def __init__(self, start, step=2e-3, seed=0):
        self.x, self.dt, self.random = np.array(start, dtype=float), step / KT, np.random.default_rng(seed)
        self.noise = self.random.normal(size=self.x.shape)

    def move(self, force):
        new = self.random.normal(size=self.x.shape)
        self.x = self.x + self.dt * force + np.sqrt(0.5 * KT * self.dt) * (self.noise + new)
        self.noise = new


def slope_on_grid(grid, x):
    """Derivative of a bias of one variable, from its grid."""
    return np.interp(x, grid.points(0), grid.table[:, 1], left=0.0, right=0.0)


def make(kind, **options):
    """A bias and its entry in run.json."""
    cls = BIASES.get(kind)
    if "temperature" in inspect.signature(cls).parameters:
        options["temperature"] = TEMPERATURE
    return cls(**options).to(torch.float64), {"kind": kind, **options}


def values_of(part, columns):
    """[T, W] bias as it is, of the columns [T, W] that it acts on."""
    shape = next(iter(columns.values())).shape
    x = np.stack([columns[name].ravel() for name in part.variables], axis=1)
    return part.energy(torch.from_numpy(x), part.state()).numpy().reshape(shape)


def write_run(folder, columns, biases=(), *, bias=None, step=None, energy=None, positions=None, **facts):
    """A run folder.

    ``columns``: name to [T, W]; ``biases``: of `make`; ``bias``: [T, W] total, by default that of the biases at the
    end; ``facts``: entries of run.json instead of the default ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shape = next(iter(columns.values())).shape
    total = BiasSum([part for part, _ in biases])
    if bias is None:
        bias = sum((values_of(part, columns) for part, _ in biases), np.zeros(shape))
    zero = np.zeros(shape)
    step = np.arange(shape[0]) * 10 if step is None else step
    np.savez(
        folder / "observations.npz",
        step=step,
        time=step * 1e-3,
        positions=np.zeros((*shape, 2, 3), np.float32) if positions is None else positions,
        energy=zero if energy is None else energy,
        driver=zero,
        judge=zero,
        bias=bias,
        restarted=zero.astype(bool),
        variables=np.stack(list(columns.values()), axis=-1),
        variable_names=np.array(list(columns)),
    )
    np.savez(folder / "bias.npz", **total.checkpoint())
    described = {
        "format": "uqbias-run",
        "version": 1,
        "temperature": TEMPERATURE,
        "timestep_fs": 1.0,
        "pace": 10,
        "walkers": shape[1],
        "biases": [entry for _, entry in biases],
        "variables": {name: NO_UNIT for name in columns if not name.startswith("extended_")},
        "topology": PAIR,
        "model": {"path": "model.uqb", "sha256": "0"},
    }
    (folder / "run.json").write_text(json.dumps(described | facts))
    return folder


def metadynamics_run(folder, *, biasfactor, height, steps=20000, walkers=20, pace=50, seed=1, kappa=0.0):
    """Metadynamics on x with hills deposited by the bias's own update; with ``kappa`` a restraint at 1 beside it."""
    part, entry = make("metadynamics", variables=["x"], height=height, sigma=0.1, pace=pace, biasfactor=biasfactor)
    md = Langevin(np.full((1, walkers), -1.0), seed=seed)
    seen, bias, times = [], [], []
    for step in range(steps + 1):
        if step % 10 == 0:
            seen.append(md.x[0])
            bias.append(part.value(md.x[0][:, None]) + 0.5 * kappa * (md.x[0] - 1) ** 2)
            times.append(step)
        part.update(step, md.x[0][:, None])
        md.move(-well_slope(md.x) - slope_on_grid(part.grid, md.x) - kappa * (md.x - 1))
    biases = [(part, entry), *([make("restraint", variables=["x"], at=1.0, kappa=kappa)] if kappa else [])]
    return write_run(folder, {"x": np.array(seen)}, biases, bias=np.array(bias), step=np.array(times))


def independent(potential, shape, seed):
    """[T, W] independent samples of exp(-potential/kT) between -2 and 2."""
    fine = np.linspace(-2, 2, 20001)
    p = np.exp(-(potential(fine) - potential(fine).min()) / KT)
    random = np.random.default_rng(seed)
    return random.choice(fine, size=shape, p=p / p.sum())


def umbrella_run(folder, at, kappa=6 * KT, *, seed=2, more=()):
    """Independent samples under a harmonic restraint on x."""
    biases = [make("restraint", at=at, kappa=kappa, variables=["x"]), *more]
    x = independent(lambda x: well(x) + 0.5 * kappa * (x - at) ** 2, (300, 100), seed)
    return write_run(folder, {"x": x}, biases)


class Drifting(Restraint):
    """A bias of a third party: it counts as changing, and names the method for its runs."""

    kind = "synthetic_runs:Drifting"
    estimator = "last-bias"
    pace = 10


class Unknown(Drifting):
    kind = "synthetic_runs:Unknown"
    estimator = "last-bia"
