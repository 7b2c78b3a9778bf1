"""A campaign whose walkers move under a PLUMED input of the user's own."""

import json

import numpy as np
import pytest
import yaml
from peroxide_oracle import make_system
from synthetic_runs import free_energy

from uqbias.campaign.rounds import run_campaign
from uqbias.errors import UqbiasError
from uqbias.plumed.kernel import find_kernel
from uqbias.settings.file import load_campaign

INPUT = """\
u: EXTRACV NAME=driver
t: TORSION ATOMS=1,2,3,4
METAD ARG=u SIGMA=0.5 HEIGHT=2.0 PACE=10 BIASFACTOR=10 TEMP=300 FILE=HILLS LABEL=bias
UPPER_WALLS ARG=u AT=8 KAPPA=10
PRINT ARG=u,t,bias.bias STRIDE=10 FILE=COLVAR
"""


@pytest.fixture
def campaign(tmp_path):
    path = make_system(tmp_path, "local")
    content = yaml.safe_load(path.read_text())
    content["md"] |= {"engine": "plumed", "plumed": "plumed.dat"}
    content["stop"]["rounds"] = 1
    path.write_text(yaml.safe_dump(content))
    (tmp_path / "plumed.dat").write_text(INPUT)
    return path


@pytest.mark.plumed
def test_campaign_with_plumed(campaign, tmp_path):
    try:
        find_kernel()
    except UqbiasError as error:
        pytest.skip(f"no PLUMED kernel ({error}): set PLUMED_KERNEL or put plumed on PATH")
    run_campaign(load_campaign(campaign), tmp_path / "run")
    rounds = json.loads((tmp_path / "run" / "summary.json").read_text())["rounds"]
    assert [entry["labels"] for entry in rounds] == [24, 29]
    assert rounds[1]["md_steps"] == 2 * 100
    folder = tmp_path / "run" / "round_01" / "md"
    with np.load(folder / "observations.npz") as seen:
        assert seen["positions"].shape == (11, 2, 4, 3)
        assert np.isfinite(seen["energy"]).all()
        assert (seen["bias"][1:] > 0).any()
        for walker in range(2):
            colvar = np.loadtxt(folder / f"walker_{walker}" / "COLVAR", comments="#!")
            assert len(np.loadtxt(folder / f"walker_{walker}" / "HILLS", comments="#!")) == 10
            # PLUMED prints the driver at the steps that were observed, unless the walker was put elsewhere there.
            stayed = ~seen["restarted"][: len(colvar), walker]
            assert stayed.sum() >= 5
            assert colvar[stayed, 1] == pytest.approx(seen["driver"][: len(colvar), walker][stayed], abs=2e-4)
    assert (folder / "walker_1.xtc").stat().st_size > 0
    assert free_energy([folder], ["t:0-1-2-3"], blocks=2, bins=[6]).method.startswith("quasi-static")


def test_identity_follows_the_input(campaign, tmp_path):
    before = load_campaign(campaign).identity()
    (tmp_path / "plumed.dat").write_text(INPUT.replace("HEIGHT=2.0", "HEIGHT=3.0"))
    after = load_campaign(campaign).identity()
    assert {key for key in before if before[key] != after[key]} == {"md.plumed"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plumed": None}, "engine = plumed with plumed = None"),
        ({"engine": "openmm"}, "engine = openmm with plumed = plumed.dat"),
        ({"constraints": "hbonds"}, "engine = plumed with constraints = hbonds"),
        ({"plumed": "other.dat"}, "md.plumed = other.dat: no such file"),
    ],
)
def test_bad_settings(campaign, changes, message):
    content = yaml.safe_load(campaign.read_text())
    content["md"] |= changes
    campaign.write_text(yaml.safe_dump(content))
    with pytest.raises(UqbiasError, match=message):
        load_campaign(campaign)
