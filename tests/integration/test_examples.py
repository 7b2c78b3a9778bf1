"""The examples run as a user runs them, with tiny settings."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import openmm
import pytest
import yaml
from matplotlib.image import imread

EXAMPLES = Path(__file__).parents[2] / "examples"


def launch(folder, *command, **variables):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PATH": path, **variables},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def drawn(path):
    """See that a picture shows something."""
    pixels = imread(path)[..., :3]
    assert min(pixels.shape[:2]) > 150
    assert 0.005 < (pixels < 0.9).any(axis=-1).mean() < 0.9


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Output folder and text of the example that trains, evaluates and samples."""
    folder = tmp_path_factory.mktemp("own")
    text = launch(folder, EXAMPLES / "your_own_data" / "run.sh", STEPS="400", MD_STEPS="200", RUNNER="eager", OUT="out")
    return folder / "out", text


def test_your_own_data(own):
    folder, text = own
    assert (folder / "model.uqb").is_file()
    written = {path.name for path in (folder / "md").iterdir()}
    assert {"HILLS.driver_1", "HILLS.driver_2", "COLVAR.3", "walker_3.xtc", "topology.pdb"} <= written
    found = re.search(r"^1344 frames\n(?:.*\n)*?force +([\d.]+)", text, re.MULTILINE)
    assert found, text
    assert 30 < float(found[1]) < 1000
    assert "4 walker(s), 0.1 ps each" in text


def test_openmm_script(own, tmp_path):
    model = own[0] / "model.uqb"
    text = launch(
        tmp_path, sys.executable, EXAMPLES / "openmm_script.py", "--model", model, "--steps", 500, "--runner", "eager"
    )
    assert "500 steps, 10 hills, runner eager" in text
    assert {"HILLS", "COLVAR", "trajectory.dcd"} <= {path.name for path in tmp_path.iterdir()}
    drawn(tmp_path / "figure.png")


def test_solvated_peptide(own, tmp_path):
    model = own[0] / "model.uqb"
    command = [sys.executable, EXAMPLES / "solvated_peptide.py", "--model", model, "--steps", 200, "--runner", "eager"]
    text = launch(tmp_path, *command)
    assert re.search(r"^\d{3,4} particles, 200 steps, 2 hills$", text, re.MULTILINE), text
    drawn(tmp_path / "figure.png")
    header = (tmp_path / "HILLS").read_text()
    assert "FIELDS time driver phi sigma_driver sigma_phi height biasf" in header
    assert f"SET max_phi {math.pi:.17g}" in header


def test_mixed_system(own, tmp_path):
    model = own[0] / "model.uqb"
    command = [sys.executable, EXAMPLES / "mixed_system.py", "--model", model, "--steps", 50, "--runner", "eager"]
    text = launch(tmp_path, *command)
    assert re.search(r"^\d{3,4} particles, 50 steps, 2 hills$", text, re.MULTILINE), text
    drawn(tmp_path / "figure.png")
    # Nothing has flown apart: a molecule of 22 atoms at 300 K has some 80 kJ/mol above its minimum.
    energy = re.search(r"model's energy of the solute: (-?[\d.]+) kJ/mol", text)
    assert abs(float(energy[1])) < 1000


def test_exported_cv_in_openmms_metadynamics(own, tmp_path):
    pytest.importorskip("openmmtorch")
    if tuple(int(part) for part in openmm.version.version.split(".")[:2]) >= (8, 6):
        pytest.skip("this OpenMM cannot copy a TorchForce")
    script = EXAMPLES / "exported_cv_app_metadynamics.py"
    text = launch(tmp_path, sys.executable, script, "--model", own[0] / "model.uqb", "--steps", 200)
    assert "200 steps, 4 hills" in text
    drawn(tmp_path / "figure.png")
    depth = float(re.search(r"([\d.]+) kJ/mol deep", text)[1])
    assert depth > 0.5


def test_quick_model_is_trained_when_missing(tmp_path):
    code = "from quick_model import quick_model; print(quick_model('made.uqb', steps=2, runner='eager'))"
    text = launch(tmp_path, sys.executable, "-c", code, PYTHONPATH=str(EXAMPLES))
    assert text.endswith("made.uqb\n")
    assert (tmp_path / "made.uqb").is_file()


def test_ase_script(own, tmp_path):
    script = EXAMPLES / "ase" / "langevin.py"
    command = [sys.executable, script, "--model", own[0] / "model.uqb", "--steps", 150, "--runner", "eager"]
    text = launch(tmp_path, *command)
    found = re.search(r"^150 steps, 3 hills, driver from (-?[\d.]+) to (-?[\d.]+)$", text, re.MULTILINE)
    assert found, text
    assert float(found[1]) < float(found[2])
    drawn(tmp_path / "figure.png")
    assert re.search(r"^least certain atom at the end: [HCNO]\d+$", text, re.MULTILINE), text


def test_dft_handoff(tmp_path):
    pytest.importorskip("tblite")
    system = EXAMPLES.parent / "systems" / "ammonia"
    text = (EXAMPLES / "dft_handoff" / "campaign.yaml").read_text().replace("../../systems/ammonia", str(system))
    campaign = tmp_path / "campaign.yaml"
    text = text.replace("training: {steps: 800}", "training: {steps: 20, evaluate_every: 10, runner: eager}")
    campaign.write_text(text.replace("labels_per_round: 8", "labels_per_round: 7").replace("rounds: 2", "rounds: 1"))
    printed = launch(tmp_path, "bash", EXAMPLES / "dft_handoff" / "loop.sh", campaign)
    assert "5 of 7 geometries labelled" in printed
    assert "2 of 2 geometries labelled" in printed
    assert "57" in printed
    assert not (tmp_path / "run" / "to_label.xyz").exists()


def test_own_bias(own, tmp_path):
    command = [sys.executable, EXAMPLES / "own_bias.py", "--model", own[0] / "model.uqb", "--steps", 400]
    text = launch(tmp_path, *command, "--runner", "eager")
    low, high = map(float, re.fullmatch(r"400 steps, driver from (-?[\d.]+) to (-?[\d.]+)\n", text).groups())
    assert low < high
    drawn(tmp_path / "figure.png")


def test_own_uncertainty(tmp_path):
    text = launch(tmp_path, sys.executable, EXAMPLES / "own_uncertainty.py", "--steps", 10, "--runner", "eager")
    rank, coverage = re.fullmatch(r"Spearman of uncertainty and error (-?[\d.]+), coverage ([\d.]+)\n", text).groups()
    assert -1 <= float(rank) <= 1
    assert 0 <= float(coverage) <= 1
    drawn(tmp_path / "figure.png")


def test_periodic_argon(tmp_path):
    sizes = ["--frames", 24, "--training", 60, "--steps", 200, "--runner", "eager"]
    text = launch(tmp_path, sys.executable, EXAMPLES / "periodic_argon.py", *sizes)
    assert 0 < float(re.search(r"force MAE on held-out frames: ([\d.]+) meV/Å", text)[1]) < 100
    assert re.search(r"^uncertainty [\d.]+ meV/Å in the crystal, [\d.]+ at the end$", text, re.MULTILINE), text
    drawn(tmp_path / "figure.png")


def test_cluster(tmp_path):
    system, folder = EXAMPLES.parent / "systems", EXAMPLES / "cluster"
    text = (folder / "campaign.yaml").read_text().replace("../../systems", str(system))
    for size, small in (("steps: 60", "steps: 10"), ("steps: 200", "steps: 50"), ("round: 8", "round: 4")):
        assert size in text
        text = text.replace(size, small)
    (tmp_path / "campaign.yaml").write_text(text)
    uqbias = [sys.executable, "-c", "import sys; sys.argv[0] = 'uqbias'; from uqbias.cli import main; main()"]
    launch(tmp_path, *uqbias, "run", "campaign.yaml", "--executors", folder / "laptop.yaml", "-o", "run", "-q")
    launch(tmp_path, *uqbias, "report", "run", "--figures", "run/figures")
    drawn(tmp_path / "run" / "figures" / "cost.png")
    assert "kind: process" in (tmp_path / "run" / "campaign.yaml").read_text()
    slurm = yaml.safe_load((folder / "slurm.yaml").read_text())
    assert {kind if isinstance(kind, str) else kind["kind"] for kind in slurm.values()} == {"slurm", "process"}


def test_the_list_of_examples_is_whole():
    text = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.iterdir():
        if path.name not in ("README.md", "figures", "quick_model.py", "picture.py", "__pycache__"):
            assert path.name in text, path
    for picture in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text):
        drawn(EXAMPLES / picture)
