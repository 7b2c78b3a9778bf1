"""Biases: a pure function of variables and state in the graph, V(x, state), and an update of the state on the host."""

from uqbias.kinds import BIASES
from uqbias.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "base": ("Bias", "BiasSum", "parts_of"),
        "build": ("build_bias",),
        "grid": ("GrowingGrid",),
        "metad": ("sum_of_hills",),
    },
    BIASES.values(),
)
