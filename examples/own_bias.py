"""A bias of your own in an OpenMM script: a ratchet, which lets the uncertainty rise and not fall.

    python examples/own_bias.py --steps 20000

The force field moves the molecule, as in `openmm_script.py`. In a campaign file the same
class is `bias: [{kind: own_bias:Ratchet}]`, with this folder on PYTHONPATH.
"""

import argparse
from typing import Annotated

import numpy as np
import torch
from openmm import LangevinMiddleIntegrator, Platform, app, unit
from quick_model import SYSTEM, quick_model
from typing_extensions import Doc

import uqbias
from uqbias.bias import Bias, UpperWall
from uqbias.bias.base import OneName
from uqbias.options import Count, Positive
from uqbias.testing import check_bias


class Ratchet(Bias):
    """V = ½ kappa (top − u)² below the highest u that was seen; Marchi and Ballone, J. Chem. Phys. 110, 3697 (1999)."""

    kind = "ratchet"

    def __init__(
        self,
        *,
        variables: OneName = ("driver",),
        kappa: Annotated[Positive, Doc("kJ/mol per squared unit of the variable")] = 5.0,
        pace: Annotated[Count, Doc("steps between looks for a higher value")] = 50,
    ):
        super().__init__(variables)
        self.kappa, self.pace = kappa, pace
        self._state["top"] = torch.full((), -1e3)

    def energy(self, x, state):  # in the compiled graph: all that changes comes in by `state`
        return 0.5 * self.kappa * torch.clamp(state["top"] - x[:, 0], min=0.0) ** 2

    def update(self, step, x, probe=None):  # on the host; in place
        if not self.frozen and step % self.pace == 0:
            self._state["top"].clamp_(min=float(np.nanmax(x)))

    def reset(self):
        self._state["top"].fill_(-1e3)

    def checkpoint(self):
        return {"top": self._state["top"].cpu().numpy().copy()}

    def _take(self, arrays):
        self._state["top"].fill_(float(arrays["top"]))


if __name__ == "__main__":
    from picture import draw

    from uqbias.runs.series import read_colvar

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="model.uqb", help="model file; trained quickly if it is not there")
    parser.add_argument("--steps", type=int, default=20000, help="of 0.5 fs")
    parser.add_argument("--runner", default="auto", help="auto, aoti, torchscript or eager")
    arguments = parser.parse_args()
    check_bias(Ratchet())  # forces against differences, checkpoints, ...: physics that every bias has to pass

    pdb = app.PDBFile(str(SYSTEM / "structure.pdb"))
    system = app.ForceField("amber14/protein.ff14SB.xml").createSystem(pdb.topology)
    model = quick_model(arguments.model, runner=arguments.runner)
    biases = [Ratchet(), UpperWall(at=10.0, kappa=5.0)]
    sampling = uqbias.Sampling(system, model, biases, temperature=300, runner=arguments.runner)
    integrator = LangevinMiddleIntegrator(300 * unit.kelvin, 1 / unit.picosecond, 0.5 * unit.femtoseconds)
    integrator.setRandomNumberSeed(1)
    simulation = app.Simulation(pdb.topology, system, integrator, Platform.getPlatformByName("Reference"))
    simulation.context.setPositions(pdb.positions)
    simulation.minimizeEnergy()
    simulation.context.setVelocitiesToTemperature(300 * unit.kelvin, 1)
    sampling.step(simulation, arguments.steps)

    colvar = read_colvar("COLVAR")
    draw({"driver u": colvar["driver"], "bias (kJ/mol)": colvar["bias"]}, colvar["time"])
    print(f"{arguments.steps} steps, driver from {colvar['driver'].min():.2f} to {colvar['driver'].max():.2f}")
