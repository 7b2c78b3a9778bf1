import json
import sys

import numpy as np
import pytest
import yaml
from command_line import call, refused
from molecules import PEROXIDE, peroxide, write_pdb
from peroxide_oracle import Peroxide

from uqbias.molecule.frames import Frames, read_frames, write_frames
from uqbias.molecule.structure import read_structure
from uqbias.oracles.ase import ASEOracle
from uqbias.settings.file import load_campaign

ORACLE = ["--oracle", "peroxide_oracle:Peroxide"]


@pytest.fixture
def structure(tmp_path):
    write_pdb(tmp_path / "hooh.pdb", PEROXIDE, peroxide(2.0))
    return tmp_path / "hooh.pdb"


def test_folder_is_ready_to_run(structure, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call("new", structure, *ORACLE, "--count", 24, "-q")
    assert done.exit_code == 0, done.output
    assert "next: uqbias run hooh/campaign.yaml" in done.stdout
    assert "it acts on" in done.stdout or "auto chose" in done.stdout
    assert "24 start frames have theirs, then at most 200" in done.stdout
    assert "the oracle takes no charge or spin: it labels" in done.stdout
    assert {file.name for file in (tmp_path / "hooh").iterdir()} == {"structure.pdb", "start.xyz", "campaign.yaml"}
    assert not list(tmp_path.glob(".uqbias*"))
    assert read_structure(tmp_path / "hooh" / "structure.pdb").topology.bonds == PEROXIDE.bonds
    frames = read_frames(tmp_path / "hooh" / "start.xyz")
    oracle = ASEOracle(calculator="peroxide_oracle:Peroxide", numbers=PEROXIDE.numbers)
    energies, forces = frames.labels()
    for i in (0, 23):
        label = oracle.label(frames.positions[i])
        assert energies[i] == pytest.approx(label.energy, abs=1e-4)
        np.testing.assert_allclose(forces[i], label.forces, atol=0.5)
    assert np.abs(forces[0]).max() < 60, "the first one is relaxed"
    assert energies[1:].mean() > energies[0]
    text = (tmp_path / "hooh" / "campaign.yaml").read_text()
    assert "# Made by: uqbias new" in text
    campaign = load_campaign(tmp_path / "hooh" / "campaign.yaml").campaign
    assert (campaign.name, campaign.driver.kind, campaign.system.charge) == ("hooh", "auto", None)
    assert call("validate", "hooh/campaign.yaml").exit_code == 0


def test_seed_decides(structure, tmp_path):
    texts = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        done = call("new", structure, *ORACLE, "--count", 23, "-q", "-o", tmp_path / name, "--seed", seed, "--json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["start_frames"] == 23
        texts.append((tmp_path / name / "start.xyz").read_text())
    assert texts[0] == texts[1] != texts[2]


def labelled(oracle, count, shift=0.0):
    random = np.random.default_rng(0)
    x = np.array([peroxide(2.0) + random.normal(0, 0.003, (4, 3)) for _ in range(count)])
    labels = [oracle.label(one) for one in x]
    energies, forces = (np.array(values) for values in zip(*((one.energy, one.forces) for one in labels), strict=True))
    return Frames(np.array(PEROXIDE.numbers), x, energies, forces + shift)


def test_own_frames(structure, tmp_path):
    oracle = ASEOracle(calculator="peroxide_oracle:Peroxide", numbers=PEROXIDE.numbers)
    for name, shift, kept in (("same", 0.0, True), ("other", 50.0, False)):
        write_frames(tmp_path / f"{name}.xyz", labelled(oracle, 24, shift))
        done = call("new", structure, *ORACLE, "--frames", tmp_path / f"{name}.xyz", "-o", tmp_path / name, "--json")
        assert done.exit_code == 0, done.output
        facts = json.loads(done.stdout)
        assert facts["start_frames_labelled"] is kept
        assert any("are not the oracle's" in note for note in facts["notes"]) is not kept
        assert read_frames(tmp_path / name / "start.xyz", labelled=False).labelled is kept
    write_frames(tmp_path / "few.xyz", labelled(oracle, 22))
    assert "22 start frames; give 23" in refused(
        "new", structure, *ORACLE, "--frames", tmp_path / "few.xyz", "-o", tmp_path / "few"
    )
    assert not (tmp_path / "few").exists()


def test_refusals_leave_nothing(structure, tmp_path):
    target = tmp_path / "out"

    def line(*arguments):
        text = refused("new", *arguments, "-o", target, "-q")
        assert not target.exists()
        assert not list(tmp_path.glob(".uqbias*"))
        return text

    assert "no oracle 'gfn3'; did you mean" in line(structure, "--oracle", "gfn3")
    assert "spin 2 with 18 electrons" in line(structure, *ORACLE, "--spin", 2)
    assert "takes no charge" in line(structure, *ORACLE, "--charge", -2)
    assert "give them: --frames FILE" in line(
        structure, "--oracle", "handoff", "--oracle-option", "labelled=labelled.xyz"
    )
    assert "neither a file nor a SMILES" in line("nothing.xyz", *ORACLE)
    target.mkdir()
    (target / "mine").write_text("kept")
    assert f"{target} is there already" in refused("new", structure, *ORACLE, "-o", target)
    assert [file.name for file in target.iterdir()] == ["mine"]


def test_an_oracle_that_breaks_the_molecule(structure, tmp_path, monkeypatch):
    def torn(self, atoms=None, *_, **__):
        x = atoms.positions
        self.results = {"energy": -20.0 * float(np.linalg.norm(x[1] - x[2])), "forces": np.zeros_like(x)}
        way = 20.0 * (x[2] - x[1]) / np.linalg.norm(x[1] - x[2])
        self.results["forces"][1:3] = [-way, way]

    monkeypatch.setattr(Peroxide, "calculate", torn)
    text = refused("new", structure, *ORACLE, "-o", tmp_path / "out", "-q", "--count", 23)
    assert "does not keep its bonds" in text
    assert not (tmp_path / "out").exists()


def test_missing_extra(structure, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tblite", None)
    monkeypatch.setitem(sys.modules, "tblite.ase", None)
    assert "pip install 'uqbias[xtb]'" in refused("new", structure, "-o", tmp_path / "out")


def test_charge_reaches_gfn2(tmp_path):
    pytest.importorskip("tblite")
    pytest.importorskip("rdkit")
    done = call("new", "[OH3+]", "-o", tmp_path / "ion", "-q", "--count", 23, "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert (facts["charge"], facts["spin"]) == (1, 1)
    settings = yaml.safe_load((tmp_path / "ion" / "campaign.yaml").read_text())
    assert settings["oracle"]["calculator"] == "tblite.ase:TBLite"
    checked = call("validate", tmp_path / "ion" / "campaign.yaml", "--label", "--json")
    assert checked.exit_code == 0, checked.output
    trial = json.loads(checked.stdout)
    assert (trial["charge"], trial["spin"]) == (1, 1)
    frames = read_frames(tmp_path / "ion" / "start.xyz")
    assert trial["label_energy_kJ_per_mol"] == pytest.approx(frames.energies[0], abs=1e-3)
    anion = {"method": "GFN2-xTB", "verbosity": 0, "charge": 1, "multiplicity": 1}
    direct = ASEOracle(calculator="tblite.ase:TBLite", calculator_options=anion, numbers=frames.numbers.tolist())
    assert direct.label(frames.positions[5]).energy == pytest.approx(frames.energies[5], abs=1e-3)
