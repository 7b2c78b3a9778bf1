"""Potentials: positions to energies and per-atom latent features."""

from uqbias.kinds import POTENTIALS
from uqbias.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "base": ("Potential",),
        "prediction": ("Predictions", "predict"),
    },
    POTENTIALS.values(),
)
