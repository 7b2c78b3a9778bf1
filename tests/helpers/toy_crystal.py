"""Walkers of a harmonic crystal, whose volume has a known distribution, and of soft spheres, which need a list."""

import numpy as np
import torch

from uqbias.compile.fused import FusedEvaluator
from uqbias.md.walkers import Walkers
from uqbias.molecule.topology import Topology
from uqbias.potentials.base import Potential

PLACES = np.array([[0.1, 0.2, 0.3], [0.6, 0.55, 0.8]])
BOX = np.array([[1.0, 0, 0], [0.3, 1.0, 0], [0, -0.2, 1.0]])
#: kJ/mol/nm² of the atoms; kJ/mol/nm³ of the volume, which by itself spreads by 3 % at 300 K.
SPRING, BULK = 5e4, 2771.0
NEON = Topology((10, 10), (), ("NE1", "NE2"), ("1:NEO", "1:NEO"))


class _Dense:
    """A potential without a table, as an evaluator sees it."""

    periodic, cutoff, invariant = True, None, False

    def uses_table(self, *, box):
        return False

    def check_geometry(self, geometry):
        pass


class Crystal(torch.nn.Module):
    """Two atoms on springs to their places in the cell, and a spring on the volume, 1 nm³; the volume is the driver."""

    numbers = NEON.numbers

    def __init__(self):
        super().__init__()
        self.potential = _Dense()
        self.places = torch.nn.Parameter(torch.tensor(PLACES))

    def forward(self, x, geometry):
        volume = torch.linalg.det(geometry.box)
        away = x - self.places @ geometry.box
        energy = 0.5 * SPRING * away.pow(2).sum((1, 2)) + 0.5 * BULK * (volume - 1.0) ** 2
        return energy, volume, 10 * volume


class Spheres(Potential):
    """E = A (1 - r/c)³ kJ/mol of each pair nearer than c, from a table; latents are the energies of atoms."""

    kind, needs, periodic, n_members, n_latents = "spheres", "table", True, 1, 1

    def __init__(self, numbers, cutoff=0.3):
        super().__init__()
        self.numbers, self.elements, self.cutoff = tuple(numbers), tuple(sorted(set(numbers))), cutoff
        self.strength = torch.nn.Parameter(torch.tensor(500.0, dtype=torch.float64))
        self.register_buffer("energy_shift", torch.zeros((), dtype=torch.float64))

    def standardise(self, positions, energies, forces, geometry=None):
        pass

    def forward(self, x, geometry):
        ghost = torch.full_like(x[:, :1], 1e2)
        table = geometry.neighbours
        everyone = torch.cat([x, ghost], dim=1)
        other = torch.gather(everyone, 1, table.flatten(1)[..., None].expand(-1, -1, 3)).view(*table.shape, 3)
        away = other - x[:, :, None] + torch.einsum("wnks,wsx->wnkx", geometry.shifts, geometry.box)
        overlap = torch.clamp(1 - (away.pow(2).sum(-1) + 1e-20).sqrt() / self.cutoff, min=0.0)
        atoms = 0.5 * self.strength * overlap.pow(3).sum(-1)
        return atoms.sum(-1)[None], atoms[None, ..., None]


class Solid(torch.nn.Module):
    """Soft spheres; the driver is the root mean square of the atoms' energies."""

    def __init__(self, numbers):
        super().__init__()
        self.potential = Spheres(numbers)
        self.numbers = self.potential.numbers
        self.topology = Topology(self.numbers, ())

    def forward(self, x, geometry):
        energy, latents = self.potential(x, geometry)
        driver = latents[0].pow(2).mean((1, 2)).sqrt()
        return energy[0], driver, 10 * driver


def make(n_walkers=4, bias=None, start=None, box=BOX, **options):
    boxes = torch.as_tensor(np.broadcast_to(box, (n_walkers, 3, 3)).copy())
    evaluator = FusedEvaluator(Crystal(), bias, n_walkers, runner="eager", dtype=torch.float64, box=boxes)
    backend = "auto" if options.get("engine") == "torch" else "pythonforce"
    settings = {"temperature": 300.0, "timestep_fs": 5.0, "friction_per_ps": 5.0, "seed": 7, "backend": backend}
    return Walkers(NEON, evaluator, (PLACES @ BOX)[None] if start is None else start, **settings | options)
