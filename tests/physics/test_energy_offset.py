"""Total energies of all-electron calculations: differences are those without the offset, wherever a number leaves."""

import copy
import json

import numpy as np
import pytest
import torch
from ase import Atoms
from command_line import call
from peroxide_oracle import Peroxide

from uqbias.bias.base import BiasSum
from uqbias.bias.gamd import GaMD
from uqbias.bias.metad import MetaD
from uqbias.campaign.ledger import open_ledger
from uqbias.compile.fused import FusedEvaluator
from uqbias.md.walkers import Walkers
from uqbias.model import inference
from uqbias.model.export import export_torchscript
from uqbias.model.model import UncertaintyModel
from uqbias.model.training import train
from uqbias.molecule.frames import Frames, read_frames, write_frames
from uqbias.runs.hills import read_hills
from uqbias.runs.series import read_colvar
from uqbias.settings.training_sections import TrainingOptions
from uqbias.testing.peroxide import peroxide_geometries, peroxide_model
from uqbias.units import EV, EV_PER_ANGSTROM

#: kJ/mol. No numbers of single precision; multiples of the grid's spacing for hills of sigma 2, so that grids, and with
#: them trajectories, are alike.
OFFSETS = [-17_000_000.4, -300_000_000.2]
#: kJ/mol.
EXACT = 1e-3


@pytest.fixture(scope="module")
def plain():
    """A model in single precision, as they are trained."""
    return peroxide_model().float()


@pytest.fixture(params=OFFSETS)
def offset(request):
    return request.param


@pytest.fixture
def heavy(plain, offset):
    """The same model of atoms that have electrons."""
    model = copy.deepcopy(plain)
    model.potential.energy_shift += offset
    return model


def test_offset_survives_the_file_and_a_change_of_precision(heavy, plain, offset, tmp_path):
    heavy.save(tmp_path / "m.uqb")
    for model in (UncertaintyModel.load(tmp_path / "m.uqb"), copy.deepcopy(heavy).double().float()):
        assert float(model.potential.energy_shift - plain.potential.energy_shift) == pytest.approx(offset, abs=EXACT)
        x = peroxide_geometries(5)
        apart = inference.evaluate_frames(model, x).energy - inference.evaluate_frames(plain, x).energy
        np.testing.assert_allclose(apart, offset, rtol=0, atol=EXACT)
        with torch.no_grad():
            here, there = (each(torch.tensor(x).float()).energy for each in (model, plain))
        np.testing.assert_allclose(here - there, offset, rtol=0, atol=EXACT)


def biases():
    energy = {"variables": ["energy"], "pace": 2, "temperature": 300.0}
    boost = GaMD(**energy, preparation_steps=0, conventional_steps=10, equilibration_steps=10)
    return BiasSum([boost, MetaD(**energy, sigma=2.0, height=1.0, reflect_at=None)])


@pytest.mark.parametrize("backend", ["pythonforce", "torchforce"])
def test_walkers_and_openmm(heavy, plain, offset, backend):
    """GaMD and metadynamics on the energy: thresholds, hills, bias, and what OpenMM is told."""
    if backend == "torchforce":
        pytest.importorskip("openmmtorch")
    runs = []
    for model in (plain, heavy):
        bias, seen, energies = biases(), [], []
        evaluator = FusedEvaluator(model, bias, 2, runner="eager")
        start = peroxide_geometries(2)
        walkers = Walkers(model.topology, evaluator, start, temperature=300.0, timestep_fs=0.1, seed=3, backend=backend)
        for _ in range(20):
            walkers.run(2, pace=2, observers=[seen.append])
            energies.append(walkers.context.getState(energy=True).getPotentialEnergy()._value)
        runs.append((bias.biases, seen, np.array(energies), walkers.context))
    (light_bias, light, light_energies, _), (heavy_bias, seen, energies, _) = runs
    exact = {"rtol": 0, "atol": EXACT}
    np.testing.assert_allclose(seen[-1].positions, light[-1].positions, rtol=0, atol=1e-6)
    for name, apart in (("energy", offset), ("bias", 0.0)):
        here, there = (np.array([getattr(o, name) for o in each]) for each in (seen, light))
        np.testing.assert_allclose(here - apart, there, **exact)
    assert np.ptp([o.energy for o in light]) > 1.0
    assert max(o.bias.max() for o in light) > 1.0
    # The force of two walkers.
    np.testing.assert_allclose(energies - 2 * offset, light_energies, **exact)
    boost, without = (each[0].parameters for each in (heavy_bias, light_bias))
    assert without["k"] > 0
    for name in ("threshold", "v_max", "v_min", "v_avg"):
        assert boost[name] - offset == pytest.approx(without[name], abs=EXACT)
    for name in ("k0", "sigma_v", "sigma_boost"):
        assert boost[name] == pytest.approx(without[name], abs=EXACT)
    hills = [each[1].hills for each in (heavy_bias, light_bias)]
    np.testing.assert_allclose(hills[0]["centre"] - offset, hills[1]["centre"], **exact)
    np.testing.assert_allclose(hills[0]["height"], hills[1]["height"], **exact)


def test_files_of_a_run_and_scores(heavy, plain, offset, tmp_path):
    """COLVAR, HILLS, observations, the bias that is kept, and evaluate."""
    x, order = peroxide_geometries(20), [2, 0, 1, 3]  # the springs are those of H O O H
    energies, forces = np.zeros(20), np.zeros_like(x)
    for index, geometry in enumerate(x[:, order]):
        atoms = Atoms("HOOH", 10 * geometry, calculator=Peroxide())
        energies[index], forces[index, order] = atoms.get_potential_energy() * EV, atoms.get_forces() * EV_PER_ANGSTROM
    found = []
    for name, model, shift in (("plain", plain, 0.0), ("heavy", heavy, offset)):
        folder = tmp_path / name
        folder.mkdir()
        model.save(folder / "m.uqb")
        write_frames(folder / "d.xyz", Frames(np.array(model.numbers), x, energies + shift, forces))
        options = ("--bias", "metadynamics", "--on", "energy", "--sigma", 2, "--pace", 2, "--steps", 40, "--walkers", 1)
        done = call(
            "md", folder / "m.uqb", "--start", folder / "d.xyz", *options, "--timestep", 0.2, "--runner", "eager",
            "--seed", 1, "-q", "-o", folder / "md",
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        score = call("evaluate", folder / "m.uqb", folder / "d.xyz", "--json")
        assert score.exit_code == 0, score.output
        with np.load(folder / "md" / "observations.npz") as arrays:
            observed = {key: arrays[key] for key in ("energy", "bias")}
        hills, colvar = read_hills(folder / "md" / "HILLS", 0.2), read_colvar(folder / "md" / "COLVAR")
        found.append(
            {
                "observed energy": observed["energy"] - shift,
                "observed bias": observed["bias"],
                "COLVAR energy": colvar["energy"] - shift,
                "COLVAR bias": colvar["bias"],
                "HILLS centre": hills["centre"] - shift,
                "HILLS height": hills["height"],
                "labels": read_frames(folder / "d.xyz").labels()[0] - shift,
                "score": [json.loads(score.stdout)["energy_mae_meV_per_atom"]],
            }
        )
    for name, values in found[1].items():
        np.testing.assert_allclose(values, found[0][name], rtol=0, atol=EXACT, err_msg=name)
    assert np.ptp(found[0]["COLVAR energy"]) > 1.0


def test_exported_module(heavy, plain, offset, tmp_path):
    bias = MetaD(variables=["energy"], sigma=2.0, height=1.0, reflect_at=None, temperature=300.0)
    x = torch.tensor(peroxide_geometries(3))
    values = []
    for name, model, shift in (("plain", plain, 0.0), ("heavy", heavy, offset)):
        here = copy.deepcopy(bias)
        here.update(50, model(x.float()).energy.detach().numpy()[:, None])
        export_torchscript(model, tmp_path / name, "biased", bias=here)
        module = torch.jit.load(str(tmp_path / name))
        values.append([float(module(one)) - shift for one in x])
    np.testing.assert_allclose(values[1], values[0], rtol=0, atol=EXACT)


def test_training_and_ledger(plain, offset, tmp_path):
    """A model that is trained on total energies, which the ledger and the data set keep."""
    x = peroxide_geometries(12)
    said = inference.evaluate_frames(plain, x, forces=True)
    energies = []
    for shift in (0.0, offset):
        frames = Frames(np.array(plain.numbers), x, said.energy + shift, said.forces)
        folder = tmp_path / str(shift)
        folder.mkdir()
        with open_ledger(folder, {"seed": 0}, frames.numbers, {}) as ledger:
            for index in range(len(x)):
                label = {"energy": frames.energies[index], "forces": said.forces[index], "info": {}}
                ledger.append("label", round=0, index=index, key=str(index), positions=x[index], **label)
        with open_ledger(folder, {"seed": 0}, frames.numbers, {}) as ledger:
            np.testing.assert_array_equal(ledger.labels().energies, frames.energies)
            write_frames(folder / "dataset.xyz", ledger.labels())
        frames = read_frames(folder / "dataset.xyz")
        potential = type(plain.potential)(plain.numbers, n_radial=4, n_channels=2, l_max=1, hidden=(8, 4))
        train(potential, frames, options=TrainingOptions(steps=5, runner="eager"))
        model = copy.deepcopy(plain)
        model.potential = potential
        energies.append(inference.evaluate_frames(model, x).energy - shift)
    np.testing.assert_allclose(energies[1], energies[0], rtol=0, atol=EXACT)
