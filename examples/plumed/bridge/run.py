"""PLUMED inside OpenMM: the biases of a plumed.dat act on a model's uncertainty.

The force field moves the molecule; the model only says where it is uncertain. For a model that gives the energy too,
leave the force field out and ``include_energy=False`` with it.

    python examples/plumed/bridge/run.py --steps 60000
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch  # noqa: F401 - before OpenMM, whose plugin for torch links its libraries
from openmm import LangevinMiddleIntegrator, Platform, app, unit

import uqbias
from uqbias.runs.series import read_colvar

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parents[1]))
from quick_model import SYSTEM, quick_model  # noqa: E402 - beside the other examples


def simulate(arguments):
    """Run it; everything is written to the output folder."""
    pdb = app.PDBFile(str(SYSTEM / "structure.pdb"))
    system = app.ForceField("amber14/protein.ff14SB.xml").createSystem(pdb.topology, constraints=app.HBonds)
    bridge = uqbias.PlumedBridge(
        system,
        arguments.input,
        quick_model(arguments.model, runner=arguments.runner),
        temperature=300,
        timestep=1 * unit.femtoseconds,
        include_energy=False,
        output_dir=arguments.output,
        runner=arguments.runner,
    )
    integrator = LangevinMiddleIntegrator(300 * unit.kelvin, 1 / unit.picosecond, 1 * unit.femtoseconds)
    integrator.setRandomNumberSeed(1)
    simulation = app.Simulation(pdb.topology, system, integrator, Platform.getPlatformByName("Reference"))
    simulation.context.setPositions(pdb.positions)
    simulation.minimizeEnergy()
    simulation.context.setVelocitiesToTemperature(300 * unit.kelvin, 1)
    with bridge:  # ends with PLUMED's files complete, whatever happens
        done = bridge.step(simulation, arguments.steps)
    print(f"{done} steps, bias of PLUMED at the end {bridge.last.bias:.1f} kJ/mol, runner {bridge.runner}")


def show(folder):
    """Driver in time, and the torsions in its colour."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    colvar = read_colvar(folder / "COLVAR")
    phi, psi = np.degrees(colvar["phi"]), np.degrees(colvar["psi"])
    print(f"driver u: from {colvar['u'].min():.2f} to {colvar['u'].max():.2f} nats")
    print(f"frames beyond the barrier (15° < φ < 135°): {np.mean((phi > 15) & (phi < 135)):.1%}")
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    left.plot(colvar["time"], colvar["u"], ".", markersize=2)
    left.set(xlabel="time / ps", ylabel="driver u / nats")
    points = right.scatter(phi, psi, c=colvar["u"], s=4, cmap="viridis")
    right.set(xlabel="φ / °", ylabel="ψ / °", xlim=(-180, 180), ylim=(-180, 180), aspect="equal")
    figure.colorbar(points, label="u / nats")
    figure.savefig(folder / "figure.png", dpi=100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, default=HERE / "plumed.dat", help="the PLUMED input")
    parser.add_argument("--model", default="model.uqb", help="model file; trained quickly if it is not there")
    parser.add_argument("--steps", type=int, default=60000, help="of 1 fs")
    parser.add_argument("--output", type=Path, default=Path("plumed_out"), help="folder for PLUMED's files")
    parser.add_argument("--runner", default="auto", help="auto, aoti, torchscript or eager")
    given = parser.parse_args()
    try:
        simulate(given)
    except uqbias.UqbiasError as error:
        raise SystemExit(f"error: {error}") from error
    show(given.output)
