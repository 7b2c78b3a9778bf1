"""Oracles: positions to reference energies and forces, or a failure that costs one label and nothing else."""

from uqbias.kinds import ORACLES
from uqbias.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "analytic": ("DoubleWell",),
        "base": ("Label", "Oracle", "OracleError"),
    },
    ORACLES.values(),
)
