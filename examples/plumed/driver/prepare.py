"""Write driver.pt and judge.pt of a model, and the reference frames of alanine dipeptide as PLUMED reads them."""

import sys
from pathlib import Path

import ase.data

import uqbias
from uqbias.model.export import export_torchscript

EXAMPLES = Path(__file__).parents[2]
sys.path.insert(0, str(EXAMPLES))
from quick_model import SYSTEM, quick_model  # noqa: E402

model = uqbias.UncertaintyModel.load(quick_model(sys.argv[1]))
# The form with forces is the faster one here: PLUMED needs the gradient and never differentiates it again.
export_torchscript(model, "driver.pt", "driver", with_forces=True)
export_torchscript(model, "judge.pt", "judge", with_forces=True)

frames = uqbias.read_frames(SYSTEM / "reference" / "test_set.xyz")
symbols = [ase.data.chemical_symbols[number] for number in frames.numbers]
with Path("frames.xyz").open("w") as file:
    for positions in frames.positions:
        # The second line is the box in Å, zero in vacuum.
        file.write(f"{len(symbols)}\n0 0 0\n")
        for symbol, position in zip(symbols, 10.0 * positions, strict=True):
            file.write(f"{symbol} " + " ".join(f"{x:.5f}" for x in position) + "\n")
