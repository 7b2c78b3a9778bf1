"""Adversarial attacks: geometries where a model is unsure, by gradient ascent instead of by dynamics.

`attack` distorts frames so that ln L = ln u − E/kT rises: high uncertainty at an energy that the molecule can have.
`distort_at_random` is what it is compared with. Distortion spaces (``cartesian``, ``internal``, ``variables``) say
along which coordinates; a new one is a `DistortionSpace` and a line in `uqbias.kinds.SPACES`, or
``module:attribute``.

Examples
--------
>>> from uqbias.attacks import AttackOptions, attack
>>> from uqbias.molecule import read_frames
>>> from uqbias.model import UncertaintyModel
>>> model = UncertaintyModel.load("model.uqb")  # doctest: +SKIP
>>> frames = read_frames("start.xyz", labelled=False)  # doctest: +SKIP
>>> result = attack(model, frames.positions, AttackOptions(space={"kind": "internal"}))  # doctest: +SKIP
>>> result.positions[~result.failed]  # doctest: +SKIP
"""

from uqbias.kinds import SPACES
from uqbias.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "ascent": ("AttackResult", "attack"),
        "attack_options": ("AttackOptions", "DirectionOptions"),
        "base": ("DistortionSpace",),
        "directions": ("DirectionResult",),
        "objective": ("Objective", "log_partition"),
        "random": ("RandomOptions", "distort", "distort_at_random"),
    },
    SPACES.values(),
)
