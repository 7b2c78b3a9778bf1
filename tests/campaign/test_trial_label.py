import json

import pytest
import yaml
from command_line import call, refused
from peroxide_oracle import make_system

CALCULATORS = """
from peroxide_oracle import Peroxide

class Gradients(Peroxide):
    def calculate(self, *arguments, **options):
        super().calculate(*arguments, **options)
        self.results["forces"] = -self.results["forces"]

class Hartree(Peroxide):
    def calculate(self, *arguments, **options):
        super().calculate(*arguments, **options)
        self.results["energy"] /= 27.211386

class Charged(Peroxide):
    default_parameters = {"charge": 0, "multiplicity": 1}

class Exits(Peroxide):
    def calculate(self, *arguments, **options):
        print("SCF does not converge")
        raise SystemExit(0)
"""


@pytest.fixture
def campaign(tmp_path, monkeypatch):
    (tmp_path / "trial_calculators.py").write_text(CALCULATORS)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = make_system(tmp_path, "process")

    def change(calculator, **system):
        settings = yaml.safe_load(path.read_text())
        settings["oracle"]["calculator"] = calculator
        settings["system"] |= system
        path.write_text(yaml.safe_dump(settings))
        return path

    return change


def test_one_frame_through_the_oracle(campaign, tmp_path):
    path = campaign("trial_calculators:Charged", charge=-1, spin=2)
    done = call("validate", path, "--label", "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert (facts["charge"], facts["spin"]) == (-1, 2)
    assert facts["label_slope_by_differences"] == pytest.approx(facts["label_slope_by_forces"], rel=0.02)
    assert facts["label_energy_kJ_per_mol"] == pytest.approx(96.4853 * facts["label_energy_eV"], rel=1e-6)
    assert 0 < facts["label_seconds"] < 60
    text = call("validate", campaign("peroxide_oracle:Peroxide", charge=None, spin=None), "--label").stdout
    assert text.count("not stated by the oracle") == 2
    assert "label slope by forces" in text
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.is_dir()) in ([], ["__pycache__"])


@pytest.mark.parametrize(
    ("calculator", "system", "says"),
    [
        ("Gradients", {}, "most likely the forces are gradients, with the other sign"),
        ("Hartree", {}, "most likely the energies are in Hartree"),
        ("Exits", {}, "SystemExit (0)"),
        ("Gradients", {"charge": 1}, "system.charge = 1: the calculator 'trial_calculators:Gradients' takes no charge"),
        ("Charged", {"spin": 2}, "system.spin = 2 with 18 electrons (charge 0)"),
        ("Charged", {"charge": 1, "spin": 1}, "system.spin = 1 with 17 electrons (charge 1)"),
    ],
)
def test_what_a_trial_refuses(campaign, calculator, system, says):
    assert says in refused("validate", campaign(f"trial_calculators:{calculator}", **system), "--label")


def test_an_oracle_without_charges_refuses_one(campaign):
    path = campaign("peroxide_oracle:Peroxide", charge=0)
    text = path.read_text()
    path.write_text(yaml.safe_dump(yaml.safe_load(text) | {"oracle": {"kind": "double_well"}}))
    assert "system.charge = 0: the oracle 'double_well' takes no charge" in refused("validate", path)
