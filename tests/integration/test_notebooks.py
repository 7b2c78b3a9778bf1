"""The notebooks of the documentation: their cells run, and their outputs are in the file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from made_up_run import make_run

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))
#: What is made smaller here: text of a cell to what stands in its place.
SMALLER = {"STEPS = 10_000": "STEPS = 1_000", "range(120)": "range(4)"}


def cells_of(path):
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_run(path, tmp_path):
    code = "\n".join("".join(cell["source"]) for cell in cells_of(path))
    for text, small in SMALLER.items():
        code = code.replace(text, small)
    if "../../runs/alanine_dipeptide" in code:
        make_run(tmp_path / "run", 3)
        code = code.replace("../../runs/alanine_dipeptide", "run")
    environment = {**os.environ, "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-W", "error::DeprecationWarning:uqbias", "-c", code]
    done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_kept(path):
    cells = cells_of(path)
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    assert path.stat().st_size < 1_000_000
