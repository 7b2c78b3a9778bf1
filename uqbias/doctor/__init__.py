"""Examination of an installation: versions, backends, forces against finite differences, PLUMED."""

from uqbias.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "cluster": ("examine_executors",),
        "installation": ("examine", "healthy"),
        "row": ("Row",),
    },
)
