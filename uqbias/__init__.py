"""Enhanced sampling whose collective variable is the uncertainty of a machine-learned potential."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

#: Public name to the module that holds it; imported when first asked for, so that ``import uqbias`` loads no torch.
_PUBLIC = {
    "BiasVariable": "uqbias.app.metadynamics",
    "Frames": "uqbias.molecule.frames",
    "FusedEvaluator": "uqbias.compile.fused",
    "Metadynamics": "uqbias.app.metadynamics",
    "PlumedBridge": "uqbias.plumed.bridge",
    "Sampling": "uqbias.app.sampling",
    "Topology": "uqbias.molecule.topology",
    "UncertaintyModel": "uqbias.model.model",
    "UqbiasError": "uqbias.errors",
    "Walkers": "uqbias.md.walkers",
    "calibrate": "uqbias.model.fit",
    "export_torchscript": "uqbias.model.export",
    "fit_model": "uqbias.model.fit",
    "load_campaign": "uqbias.settings.file",
    "make_force": "uqbias.md.force",
    "read_frames": "uqbias.molecule.frames",
    "remove_internal_forces": "uqbias.app.mixed",
    "run_campaign": "uqbias.campaign.rounds",
    "score_model": "uqbias.model.score",
    "uncertainty_cv_force": "uqbias.app.cv_force",
    "write_frames": "uqbias.molecule.frames",
}

__all__ = ["__version__", *sorted(_PUBLIC)]  # noqa: PLE0604 - names of the lazy table


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'uqbias' has no attribute '{name}'")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
