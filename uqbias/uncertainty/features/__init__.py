"""Feature spaces: what a density over geometries is a density of."""

from uqbias.kinds import FEATURES
from uqbias.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "base": ("CallableFeatures", "Features"),
    },
    FEATURES.values(),
)
