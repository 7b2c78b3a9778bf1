"""Uncertainties: latents, members or features to one number per walker, and its calibration to an error."""

from uqbias.kinds import UNCERTAINTIES
from uqbias.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "aggregation": ("Aggregation",),
        "base": ("Uncertainty",),
        "calibration": ("Calibration", "VarianceScaling"),
        "conformal": ("Conformal",),
    },
    UNCERTAINTIES.values(),
)
