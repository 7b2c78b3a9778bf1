"""Molecular dynamics in OpenMM: the step loop, walkers, guards, constraints, extended variables and the force."""

from uqbias.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "constraints": ("choose_constraints",),
        "extended": ("ExtendedVariables",),
        "force": ("make_force",),
        "guards": ("Guard", "LostWalkerError", "Violation"),
        "loop": ("Look", "StepLoop"),
        "stack": ("available_platforms", "choose_backend"),
        "walkers": ("Walkers",),
    },
)
