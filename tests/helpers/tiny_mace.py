"""A MACE model of random weights, small and quickly made; without mace-torch the tests that ask for one are skipped."""

from importlib.util import find_spec

import pytest
import torch

from uqbias.potentials.mace import mace_modules

needs_mace = pytest.mark.skipif(
    find_spec("mace") is None, reason="mace-torch is not installed: pip install uqbias[mace]"
)
#: Architecture as a model file has it.
CONFIG = {
    "r_max": 4.0,
    "num_bessel": 4,
    "num_polynomial_cutoff": 5,
    "max_ell": 1,
    "interaction_cls": "RealAgnosticResidualInteractionBlock",
    "interaction_cls_first": "RealAgnosticInteractionBlock",
    "num_interactions": 2,
    "num_elements": 3,
    "hidden_irreps": "4x0e+4x1o",
    "MLP_irreps": "4x0e",
    "edge_irreps": None,
    "readout_cls": "NonLinearReadoutBlock",
    "gate": "silu",
    "atomic_energies": [-13.6, -1029.5, -2041.8],
    "avg_num_neighbors": 8.0,
    "atomic_numbers": [1, 6, 8],
    "correlation": 2,
    "atomic_inter_scale": 1.3,
    "atomic_inter_shift": 0.1,
    "heads": ["Default"],
}


def tiny_mace(seed=0, **changes):
    """A ScaleShiftMACE as mace-torch makes it, in float64."""
    with mace_modules() as modules:
        from e3nn import set_optimization_defaults
        from e3nn.o3 import Irreps

        set_optimization_defaults(jit_script_fx=True)  # as users have it: TorchScript inside
        config = CONFIG | changes
        config |= {name: modules.interaction_classes[config[name]] for name in config if "interaction_cls" in name}
        config |= {name: Irreps(config[name]) for name in ("hidden_irreps", "MLP_irreps")}
        config |= {"readout_cls": modules.NonLinearReadoutBlock, "gate": torch.nn.functional.silu}
        torch.manual_seed(seed)
        return modules.ScaleShiftMACE(**config).double()
