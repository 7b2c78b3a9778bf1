"""Collective variables of a geometry: smooth functions of the positions, in the same graph as the model."""

from uqbias.kinds import VARIABLES
from uqbias.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "base": ("CallableVariable", "CollectiveVariable", "build_variables"),
    },
    VARIABLES.values(),
)
