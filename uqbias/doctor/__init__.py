"""Examination of an installation: versions, backends, forces against finite differences, PLUMED."""

from uqbias.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "installation": ("examine", "healthy"),
        "row": ("Row",),
    },
)
