"""Enhanced sampling whose collective variable is the uncertainty of a machine-learned potential."""

from __future__ import annotations

from uqbias.lazy import exports

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "app.cv_force": ("uncertainty_cv_force",),
        "app.metadynamics": ("BiasVariable", "Metadynamics"),
        "app.mixed": ("remove_internal_forces",),
        "app.sampling": ("Sampling",),
        "campaign.rounds": ("run_campaign",),
        "compile.fused": ("FusedEvaluator",),
        "errors": ("UqbiasError",),
        "md.force": ("make_force",),
        "md.walkers": ("Walkers",),
        "model.export": ("export_torchscript",),
        "model.fit": ("calibrate", "fit_model"),
        "model.model": ("UncertaintyModel",),
        "model.score": ("score_model",),
        "molecule.frames": ("Frames", "read_frames", "write_frames"),
        "molecule.topology": ("Topology",),
        "plumed.bridge": ("PlumedBridge",),
        "settings.file": ("load_campaign",),
    },
)
__all__ += ["__version__"]
