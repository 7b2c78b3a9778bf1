"""Counterparts of ``openmm.app``: metadynamics, sampling and variables in the user's own System."""

from uqbias.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "cv_force": ("uncertainty_cv_force",),
        "external": ("ForceVariables",),
        "metadynamics": ("BiasVariable", "Metadynamics"),
        "mixed": ("remove_internal_forces",),
        "sampling": ("Sampling",),
    },
)
