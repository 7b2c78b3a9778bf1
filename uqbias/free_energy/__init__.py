"""Free energies of what a run left: reweighting, the bias itself, CZAR, the cumulant expansion, MBAR."""

from uqbias.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "estimate": ("free_energy",),
        "estimate_options": ("FreeEnergyOptions",),
        "estimators": ("Estimator",),
        "from_bias": ("free_energy_from_bias",),
        "multistate": ("mbar",),
        "result": ("Axis", "FreeEnergy"),
        "reweighting": ("HillHistory", "log_density"),
        "weighted_frames": ("WeightedFrames",),
    },
)
