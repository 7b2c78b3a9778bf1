"""An uncertainty of your own, tested, fitted and compared with the true error: distance from the mean latents.

    python examples/own_uncertainty.py

In a campaign file the same class is `judge: {kind: own_uncertainty:MeanDistance}`, with this folder on PYTHONPATH.
"""

import argparse
from typing import Annotated

import torch
from typing_extensions import Doc

import uqbias
from uqbias.options import Positive
from uqbias.testing import check_uncertainty
from uqbias.uncertainty.base import Uncertainty, set_buffers


class MeanDistance(Uncertainty):
    """u = [mean over atoms of |latents − their mean in the training set|² / its average there]^power."""

    unit, statistic = "dimensionless", "variance"

    def __init__(self, n_latents, power):
        super().__init__()
        self.n_latents, self.power = n_latents, power
        self.register_buffer("centre", torch.zeros(n_latents))
        self.register_buffer("scale", torch.ones(()))

    @classmethod
    def build(cls, topology, n_latents, *, power: Annotated[Positive, Doc("power of the distance")] = 1.0):
        return cls(n_latents, power)

    def options(self):
        return {"n_latents": self.n_latents, "power": self.power}

    @property
    def requires_latents(self):
        return True

    def fit(self, positions, energy, latents, forces=None, *, seed):  # latents [members, frames, atoms, features]
        centre = latents[0].mean((0, 1))
        set_buffers(self, centre=centre, scale=(latents[0] - centre).square().sum(-1).mean())

    def forward(self, positions, energy, latents, forces=None):
        return ((latents[0] - self.centre).square().sum(-1) / self.scale).mean(-1) ** self.power


if __name__ == "__main__":
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt
    from quick_model import SYSTEM

    from uqbias.model.score import residuals

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500, help="of training")
    parser.add_argument("--runner", default="auto", help="auto, aoti, torchscript or eager")
    arguments = parser.parse_args()
    check_uncertainty("own_uncertainty:MeanDistance", backends=())  # gradients, smoothness, refits, finite values, ...

    topology = uqbias.Topology.from_pdb(SYSTEM / "structure.pdb")
    judge = {"kind": "own_uncertainty:MeanDistance", "power": 0.5}
    training = {"steps": arguments.steps, "runner": arguments.runner}
    frames = uqbias.read_frames(SYSTEM / "start.xyz")
    model, _ = uqbias.fit_model(frames, topology, {"training": training, "judge": judge})
    test = uqbias.read_frames(SYSTEM / "reference" / "test_set.xyz")
    scores = uqbias.score_model(model, test)
    print(f"Spearman of uncertainty and error {scores['spearman']:.2f}, coverage {scores['coverage']:.2f}")

    evaluated, error = residuals(model, test)
    figure, axis = plt.subplots(figsize=(5.2, 4.2), layout="constrained")
    axis.loglog(evaluated.judge, (error**2).reshape(len(test), -1).mean(1) ** 0.5, ".", markersize=3)
    ends = [min(evaluated.judge), max(evaluated.judge)]
    axis.plot(ends, ends, "--", color="grey", label="error = uncertainty")
    axis.set(xlabel="calibrated uncertainty (kJ/mol/nm)", ylabel="force error (kJ/mol/nm)")
    axis.legend()
    figure.savefig("figure.png", dpi=80)
