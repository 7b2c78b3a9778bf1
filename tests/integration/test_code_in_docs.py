"""The Python blocks of the documentation, executed with what they speak of at hand."""

import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.io import read, write

import uqbias
from uqbias.testing import check_bias

ROOT = Path(__file__).parents[2]
SILICA = ROOT / "systems" / "silica"


def blocks(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^ *```python\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block) for block in found]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def simulated(block, alanine_model):
    """Names after three lines in a script of OpenMM, and a few steps."""
    from openmm import LangevinMiddleIntegrator, Platform, app
    from openmm.unit import kelvin, picosecond, picoseconds

    alanine_model.save("model.uqb")
    pdb = app.PDBFile(str(ROOT / "systems" / "alanine_dipeptide" / "structure.pdb"))
    system = app.ForceField("amber14/protein.ff14SB.xml").createSystem(pdb.topology)
    integrator = LangevinMiddleIntegrator(300 * kelvin, 1 / picosecond, 0.0005 * picoseconds)
    lines = block.splitlines(keepends=True)
    names = {"uqbias": uqbias, "system": system}
    exec("".join(lines[:2]).replace("frequency=50)", 'frequency=50, runner="eager")'), names)
    simulation = app.Simulation(pdb.topology, system, integrator, Platform.getPlatformByName("Reference"))
    simulation.context.setPositions(pdb.positions)
    names["simulation"] = simulation
    exec("".join(lines[2:]), names)
    simulation.step(100)
    return names


@pytest.mark.parametrize("page", ["README.md", "docs/openmm.md"])
def test_three_lines_in_openmm(here, page, alanine_model):
    assert len(simulated(blocks(page)[0], alanine_model)["bias"].metadynamics.hills) == 2
    assert (here / "HILLS").is_file()


def test_exported_variable(here, alanine_model):
    pytest.importorskip("openmmtorch")
    uqbias.export_torchscript(alanine_model, "driver.pt", "driver")
    names = {}
    exec(blocks("docs/openmm.md")[1], names)
    assert names["driver"].gridWidth > 0


def test_ase(here, alanine_model):
    from ase import units
    from ase.md.langevin import Langevin

    alanine_model.save("model.uqb")
    atoms = read(ROOT / "systems" / "alanine_dipeptide" / "start.xyz", 0)
    (block,) = blocks("docs/ase.md")
    assert "10_000" in block
    block = block.replace("10_000", "100").replace('"model.uqb", bias)', '"model.uqb", bias, runner="eager")')
    names = {"atoms": atoms, "Langevin": Langevin, "units": units}
    exec(block, names)
    assert len(names["bias"].hills) == 2


def test_module_of_your_own():
    names = {}
    (block,) = blocks("docs/models.md")
    exec(block, names)
    net, water = names["make"](), molecule("CH3OH")
    i, j = np.nonzero(~np.eye(len(water), dtype=bool))
    vectors = torch.tensor(water.positions[j] - water.positions[i], dtype=torch.float32)
    energies, latents = net(torch.tensor(water.numbers), torch.tensor(i), torch.tensor(j), vectors)
    assert energies.shape == (6,)
    assert latents.shape == (6, net.n_latents)


def test_model_of_elements_in_a_larger_cell(here):
    frames = uqbias.read_frames(SILICA / "start.xyz", periodic=True)[:24]
    small = {"cutoff": 0.4, "n_radial": 2, "n_channels": 2, "l_max": 1, "hidden": [4, 4]}
    settings = {"potential": small, "training": {"steps": 2, "runner": "eager"}, "driver": {"kind": "llpr"}}
    uqbias.fit_model(frames, settings=settings | {"judge": {"kind": "llpr"}})[0].save("model.uqb")
    write("quartz_216.xyz", read(SILICA / "quartz.xyz") * (2, 2, 1))
    (block,) = blocks("docs/periodic.md")
    names = {"uqbias": uqbias}
    exec(block, names)
    assert len(names["model"].numbers) == 4 * len(read(SILICA / "quartz.xyz"))


def test_bias_of_your_own():
    names = {}
    (block,) = blocks("CONTRIBUTING.md")
    exec(block, names)
    assert not check_bias(names["Ramp"]()).violations
    with pytest.raises(uqbias.UqbiasError):
        names["Ramp"](variables=["driver", "judge"], slope=-1.0)


def test_no_block_is_left_out():
    pages = [*ROOT.glob("docs/*.md"), *ROOT.glob("*.md"), *ROOT.glob("systems/*/README.md")]
    counts = {str(page.relative_to(ROOT)): len(blocks(page)) for page in pages}
    executed = {"README.md": 1, "docs/openmm.md": 2, "docs/ase.md": 1, "docs/models.md": 1, "docs/periodic.md": 1}
    assert {page: count for page, count in counts.items() if count} == executed | {"CONTRIBUTING.md": 1}
