"""Parts of a driver as variables: in the graph, a campaign, its files, `uqbias md`, `fes`, `export`, and PLUMED."""

import json

import numpy as np
import openmm
import plumed_kernel
import pytest
import torch
import yaml
from command_line import call, refused
from molecules import PEROXIDE, peroxide
from peroxide_oracle import make_system

from uqbias.bias.base import BiasSum
from uqbias.bias.build import completed
from uqbias.bias.fixed import UpperWall
from uqbias.bias.metad import MetaD
from uqbias.bias.parallel import ParallelMetaD
from uqbias.campaign.rounds import run_campaign
from uqbias.compile.fused import FusedEvaluator
from uqbias.errors import UqbiasError
from uqbias.model.inference import evaluate_frames
from uqbias.model.model import UncertaintyModel
from uqbias.plumed.bridge import PlumedBridge
from uqbias.runs.hills import read_hills
from uqbias.runs.series import read_colvar
from uqbias.settings.file import load_campaign

DRIVER = {"kind": "driver_of_parts:DriverOfParts"}
BIAS = [{"kind": "parallel_metadynamics", "pace": 10}, {"kind": "upper_wall", "at": 11.0}]
NAMES = ["driver_1", "driver_2"]


def prepare(folder, **changes):
    path = make_system(folder, "local")
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"stop": {"rounds": 1}} | changes))
    return path


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    run_campaign(load_campaign(prepare(folder, driver=DRIVER, bias=BIAS)), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def model(campaign):
    return UncertaintyModel.load(campaign / "round_00" / "model.uqb", trust=True)


def test_files_of_a_campaign(campaign, model):
    md = campaign / "round_01" / "md"
    facts = json.loads((md / "run.json").read_text())
    start = evaluate_frames(model, np.load(md / "observations.npz")["positions"][0])
    assert start.local.shape == (2, 2)
    np.testing.assert_allclose(start.local.sum(1), start.driver, rtol=1e-5)
    bias, wall = facts["biases"]
    assert bias["variables"] == NAMES
    assert bias["reflect_at"] == facts["lowest_local"] != [facts["lowest_u"]] * 2
    assert wall["variables"] == ["driver"]
    with np.load(md / "observations.npz") as seen:
        assert seen["variable_names"].tolist() == [*NAMES, "driver"]
        values = seen["variables"][..., :2].reshape(-1, 2)
        frames = seen["positions"].reshape(-1, 4, 3)
        np.testing.assert_allclose(values, evaluate_frames(model, frames).local, atol=1e-4)
    for index, name in enumerate(NAMES):
        hills = read_hills(md / f"HILLS.{name}", 0.5)
        assert len(hills) >= 2 * 9
        np.testing.assert_allclose(read_colvar(md / "COLVAR.0")[name], values[::2, index], rtol=1e-6)


def test_free_energy_and_report(campaign):
    md = campaign / "round_01" / "md"
    done = call("fes", md, "--cv", "driver_2", "--bins", 5, "--blocks", 2, "--discard", 0, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["method"].startswith("tiwary-parrinello")
    assert "unknown variable 'driver_3'; did you mean 'driver_" in refused("fes", md, "--cv", "driver_3")


def test_md_command(campaign, tmp_path):
    options = (campaign / "round_00" / "model.uqb", "--trust", "--start", campaign.parent / "start.xyz", "--wall", 11)
    options += ("--walkers", 2, "--pace", 10, "--steps", 40, "--runner", "eager", "--quiet", "-o")
    for on, expected in (("local", NAMES), ("driver_2,driver", ["driver_2", "driver"])):
        target = tmp_path / on
        done = call("md", *options, target, "--bias", "parallel_metadynamics", "--on", on)
        assert done.exit_code == 0, done.output
        bias, wall = json.loads((target / "run.json").read_text())["biases"]
        assert (bias["variables"], bias["sigma"]) == (expected, [1.0, 1.0])
        assert sorted(path.name for path in target.glob("HILLS*")) == sorted(f"HILLS.{name}" for name in expected)
        assert wall["variables"] == ["driver"]
    assert "--on driver_3: no such variable" in refused("md", *options, tmp_path / "new", "--on", "driver_3")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"bias": [{"kind": "metadynamics", "variables": "driver_3"}]}, "bias.0: metadynamics on 'driver_3', the"),
        ({"bias": [{"kind": "upper_wall", "variables": "local", "at": 3}]}, "'upper_wall' with variables ['driver_1'"),
        ({"variables": {"driver_1": {"kind": "distance", "atoms": [0, 1]}}}, "'driver_1' is taken; choose another"),
        ({"variables": {"local": {"kind": "distance", "atoms": [0, 1]}}}, "'local' is taken; choose another name"),
        ({"bias": [{"kind": "metadynamics", "variables": ["locals"]}]}, "no variable 'locals' is defined"),
        ({"bias": [{**BIAS[0], "sigma": [0.3, 0.3, 0.3]}]}, "with 3 values of sigma for 2 variable"),
    ],
)
def test_refused_before_anything_is_begun(changes, says, tmp_path):
    path = prepare(tmp_path, driver=DRIVER, **changes)
    assert says in refused("validate", path)


def test_parts_of_a_driver_without_any_are_refused_by_name(tmp_path):
    path = prepare(tmp_path, bias=[{"kind": "parallel_metadynamics", "variables": ["driver_1"]}])
    assert "'driver_1', the driver has 0 part(s); name driver" in refused("validate", path)


def test_local_is_the_driver_where_it_is_one_number():
    (part,) = completed((("parallel_metadynamics", {"reflect_at": "lowest"}),), 300.0, lowest=1.5, local=[])
    assert part[1]["variables"] == ["driver"]
    assert part[1]["reflect_at"] == 1.5
    (part,) = completed((("parallel_metadynamics", {"variables": ["local", "phi"]}),), 300.0, {"phi": 6.28}, 0.0, [1.0])
    assert part[1]["variables"] == ["driver_1", "phi"]
    assert part[1]["periods"] == [None, 6.28]


def test_forces_of_biases_on_parts(model):
    x = torch.tensor(peroxide(2.0))[None]
    hills = ParallelMetaD(variables=NAMES, height=5.0, pace=1)
    hills.update(1, np.array([[2.0, 3.0], [4.0, 1.0]]))
    bias = BiasSum([hills, UpperWall(variables=["driver_2"], at=0.1, kappa=3.0)])
    evaluator = FusedEvaluator(model.double(), bias, 1, runner="eager", dtype=torch.float64)
    evaluation = evaluator.evaluate(x)
    assert float(evaluation.bias.abs()) > 1e-3
    np.testing.assert_allclose(evaluation.variables[0, :2], model(x).local[0].detach(), rtol=1e-12)
    step = 1e-6
    for atom, axis in [(0, 1), (3, 2), (2, 0)]:
        ends = []
        for sign in (1, -1):
            moved = x.clone()
            moved[0, atom, axis] += sign * step
            one = evaluator.evaluate(moved)
            ends.append(float(one.energy + one.bias))
        expected = -(ends[0] - ends[1]) / (2 * step)
        assert float(evaluation.forces[0, atom, axis]) == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_a_module_of_three_tensors(tiny_model, tiny_positions):
    evaluator = FusedEvaluator(tiny_model, MetaD(pace=1), 3, runner="eager", dtype=torch.float64)
    assert evaluator.evaluate(tiny_positions).variables.shape == (3, 1)
    for names in (["driver_1"], ["local"]):
        with pytest.raises(UqbiasError, match=rf"a bias acts on '{names[0]}', the driver has 0 part\(s\)"):
            FusedEvaluator(tiny_model, MetaD(variables=names), 3, runner="eager")


def test_exported_part(model, tmp_path):
    from uqbias.model.export import export_torchscript

    x = torch.tensor(peroxide(2.0))
    export_torchscript(model, tmp_path / "part.pt", "driver_2", components=["driver", "driver_1"])
    exported = torch.jit.load(str(tmp_path / "part.pt"))(x)
    local = model.double()(x[None]).local[0]
    np.testing.assert_allclose(exported.detach(), torch.stack([local[1], local.sum(), local[0]]).detach(), rtol=1e-5)
    with pytest.raises(UqbiasError, match=r"unknown output 'driver_3'; did you mean 'driver_"):
        export_torchscript(model, tmp_path / "part.pt", "driver_3")


@pytest.mark.plumed
@plumed_kernel.needs_kernel()
def test_plumed_bridge(model, tmp_path):
    """A wall of PLUMED on a part has the forces of ours."""
    x = torch.tensor(peroxide(2.0))
    ours = FusedEvaluator(
        model.double(), UpperWall(variables=["driver_2"], at=0.1, kappa=3.0), 1, runner="eager", dtype=torch.float64
    ).evaluate(x[None])
    system = openmm.System()
    for mass in PEROXIDE.masses():
        system.addParticle(mass)
    options = {"runner": "eager", "dtype": torch.float64, "timestep": 0.0005, "temperature": 300}
    lines = ["c: EXTRACV NAME=driver_2", "UPPER_WALLS ARG=c AT=0.1 KAPPA=3.0"]
    with pytest.raises(UqbiasError, match=r"EXTRACV of 'driver_3', the driver has 2 part\(s\)"):
        PlumedBridge(system, ["c: EXTRACV NAME=driver_3"], model, output_dir=tmp_path, **options)
    bridge = PlumedBridge(system, lines, model, output_dir=tmp_path, **options)
    context = openmm.Context(system, openmm.VerletIntegrator(0.0005), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(x.numpy())
    forces = context.getState(forces=True).getForces(asNumpy=True)._value
    assert bridge.last.bias == pytest.approx(float(ours.bias), rel=1e-9)
    np.testing.assert_allclose(forces, ours.forces[0], rtol=1e-7, atol=1e-5)
