"""Architecture of a small SevenNet, as a model file has it; without sevenn the tests that ask for one are skipped."""

from importlib.util import find_spec

import pytest

needs_sevenn = pytest.mark.skipif(
    find_spec("sevenn") is None, reason="sevenn is not installed: pip install uqbias[sevennet]"
)
SEVENNET = {
    "cutoff": 4.0,
    "channel": 4,
    "irreps_manual": False,
    "lmax": 1,
    "lmax_edge": -1,
    "lmax_node": -1,
    "is_parity": True,
    "num_convolution_layer": 2,
    "radial_basis": {"radial_basis_name": "bessel", "bessel_basis_num": 4},
    "cutoff_function": {"cutoff_function_name": "poly_cut", "poly_cut_p_value": 6},
    "act_radial": "silu",
    "act_scalar": {"e": "silu", "o": "tanh"},
    "act_gate": {"e": "silu", "o": "tanh"},
    "weight_nn_hidden_neurons": [8],
    "conv_denominator": 5.0,
    "train_denominator": False,
    "train_shift_scale": False,
    "use_bias_in_linear": False,
    "use_modal_node_embedding": False,
    "use_modal_self_inter_intro": False,
    "use_modal_self_inter_outro": False,
    "use_modal_output_block": False,
    "readout_as_fcn": False,
    "self_connection_type": "nequip",
    "interaction_type": "nequip",
    "_normalize_sph": True,
    "use_flash_tp": False,
    "cuequivariance_config": {},
    "use_oeq": False,
    "_number_of_species": 3,
    "_type_map": {"1": 0, "6": 1, "8": 2},
    "shift": [-3.0, -9.0, -7.0],
    "scale": 1.7,
}
