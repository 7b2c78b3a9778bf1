"""Adversarial attacks: geometries where a model is unsure, found by gradient ascent instead of by dynamics.

`attack` distorts frames so that ln L = ln u − E/kT rises: high uncertainty at an energy that the molecule can have.
`distort_at_random` is what it is compared with. Distortion spaces (``cartesian``, ``internal``, ``variables``) say
along which coordinates; a new one is a `DistortionSpace` and a line in `uqbias.registry.SPACES`, or
``module:attribute``.

Examples
--------
>>> from uqbias.attacks import AttackOptions, attack
>>> from uqbias.molecule.frames import read_frames
>>> from uqbias.model.model import UncertaintyModel
>>> model = UncertaintyModel.load("model.uqb")  # doctest: +SKIP
>>> frames = read_frames("start.xyz", labelled=False)  # doctest: +SKIP
>>> found = attack(model, frames.positions, AttackOptions(space={"kind": "internal"}))  # doctest: +SKIP
>>> found.positions[~found.failed]  # doctest: +SKIP
"""

from uqbias.attacks.ascent import AttackOptions, AttackResult, attack
from uqbias.attacks.base import DistortionSpace
from uqbias.attacks.objective import Objective, log_partition
from uqbias.attacks.random import RandomOptions, distort, distort_at_random

__all__ = [
    "AttackOptions",
    "AttackResult",
    "DistortionSpace",
    "Objective",
    "RandomOptions",
    "attack",
    "distort",
    "distort_at_random",
    "log_partition",
]
