"""A model to try the examples with: trained in half a minute on the 100 start frames of alanine dipeptide."""

from pathlib import Path

import uqbias

ROOT = Path(__file__).parents[1]
SYSTEM = ROOT / "systems" / "alanine_dipeptide"


def quick_model(path, steps=1500, runner="auto"):
    """Path of a model file; trained first if it is not there. Your own comes from `uqbias train` or `uqbias run`."""
    path = Path(path)
    if not path.is_file():
        print(f"training {path} on {SYSTEM.name}/start.xyz ...", flush=True)
        topology = uqbias.Topology.from_pdb(SYSTEM / "structure.pdb")
        training = {"steps": steps, "runner": runner}
        model, facts = uqbias.fit_model(uqbias.read_frames(SYSTEM / "start.xyz"), topology, {"training": training})
        model.save(path)
        validation = facts["validation"]
        print(f"force MAE on held-out frames of that basin: {validation['force_mae_meV_per_A']:.0f} meV/Å")
    return path
