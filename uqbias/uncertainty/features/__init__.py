"""Feature spaces: maps of geometries to the vectors over which a density is estimated."""

from uqbias.kinds import FEATURES
from uqbias.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "base": ("CallableFeatures", "Features"),
    },
    FEATURES.values(),
)
