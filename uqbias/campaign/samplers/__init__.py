"""Samplers: a model and safe frames to candidates, by MD, PLUMED, attacks, random distortions or a pool of frames."""

from uqbias.kinds import SAMPLERS
from uqbias.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "base": ("Exploration", "Sampler"),
    },
    SAMPLERS.values(),
)
