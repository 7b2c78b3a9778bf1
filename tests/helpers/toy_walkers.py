"""Walkers on a hydrogen peroxide with a driver and a judge of its torsion."""

import torch
from molecules import PEROXIDE, peroxide

from uqbias.compile.fused import FusedEvaluator
from uqbias.md.walkers import Walkers


class Peroxide(torch.nn.Module):
    """H2O2 with harmonic bonds and 1-3 distances, V(φ) = 6(1 + cos 2φ) kJ/mol, driver 3(1 + sin φ)."""

    numbers = PEROXIDE.numbers

    def __init__(self):
        super().__init__()
        self.pairs = [(0, 1), (1, 2), (2, 3), (0, 2), (1, 3)]
        x = torch.tensor(peroxide())
        lengths = [float((x[i] - x[j]).norm()) for i, j in self.pairs]
        self.lengths = torch.nn.Parameter(torch.tensor(lengths, dtype=torch.float64))
        self.stiffness = torch.nn.Parameter(torch.tensor([2e5, 1e5, 2e5, 5e4, 5e4], dtype=torch.float64))

    def forward(self, x):
        energy = 0
        for n, (i, j) in enumerate(self.pairs):
            distance = (x[:, i] - x[:, j]).pow(2).sum(-1).sqrt()
            energy = energy + 0.5 * self.stiffness[n] * (distance - self.lengths[n]) ** 2
        b, a, c = x[:, 1] - x[:, 0], x[:, 2] - x[:, 1], x[:, 3] - x[:, 2]
        m, n = torch.linalg.cross(b, a), torch.linalg.cross(a, c)
        norm = (m.pow(2).sum(-1) * n.pow(2).sum(-1) + 1e-20).sqrt()
        cosine = (m * n).sum(-1) / norm
        sine = a.pow(2).sum(-1).sqrt() * (b * n).sum(-1) / norm
        energy = energy + 12.0 * cosine**2
        return energy, 3 * (1 + sine), 10 * (1 + cosine)


def make(n_walkers=4, bias=None, dtype=torch.float64, start=None, **options):
    evaluator = FusedEvaluator(Peroxide(), bias, n_walkers, runner="eager", dtype=dtype)
    backend = "auto" if options.get("engine") == "torch" else "pythonforce"
    settings = {"temperature": 300.0, "friction_per_ps": 5.0, "seed": 7, "backend": backend, **options}
    return Walkers(PEROXIDE, evaluator, peroxide()[None] if start is None else start, **settings)
