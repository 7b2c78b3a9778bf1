"""Walkers of a harmonic crystal, whose volume has a known distribution."""

import numpy as np
import torch

from uqbias.compile.fused import FusedEvaluator
from uqbias.md.walkers import Walkers
from uqbias.molecule.topology import Topology

PLACES = np.array([[0.1, 0.2, 0.3], [0.6, 0.55, 0.8]])
BOX = np.array([[1.0, 0, 0], [0.3, 1.0, 0], [0, -0.2, 1.0]])
#: kJ/mol/nm² of the atoms; kJ/mol/nm³ of the volume, which by itself spreads by 3 % at 300 K.
SPRING, BULK = 5e4, 2771.0
NEON = Topology((10, 10), (), ("NE1", "NE2"), ("1:NEO", "1:NEO"))


class _Dense:
    """A potential without a table, as an evaluator sees it."""

    periodic, cutoff = True, None

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


def make(n_walkers=4, bias=None, start=None, box=BOX, **options):
    boxes = torch.as_tensor(np.broadcast_to(box, (n_walkers, 3, 3)).copy())
    evaluator = FusedEvaluator(Crystal(), bias, n_walkers, runner="eager", dtype=torch.float64, box=boxes)
    settings = {"temperature": 300.0, "timestep_fs": 5.0, "friction_per_ps": 5.0, "seed": 7, "backend": "pythonforce"}
    return Walkers(NEON, evaluator, (PLACES @ BOX)[None] if start is None else start, **settings | options)
