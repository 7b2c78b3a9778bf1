"""Options of attacks and of directions; importing them loads no torch, so that the command line can show them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, MinLen
from pydantic import BeforeValidator
from typing_extensions import Doc

from uqbias.options import Count, NotNegative, OfKind, Positive, Runner, check_values
from uqbias.registry import SPACES
from uqbias.units import EV


@dataclass(frozen=True, kw_only=True)
class AttackOptions:
    """Options of an attack.

    Lengths of the distortion δ are in nm for the space ``cartesian``, in rad (a length: 0.1 nm) for the others.

    Attributes
    ----------
    learning_rate : about the largest step of a coordinate; 0.001 nm as published.
    temperature : K. An attack pays kT for e-fold u, so what is right depends on how steeply u rises. With a Gaussian
        mixture as judge and 100 frames of alanine dipeptide, Cartesian attacks raised the median u 6 times at 1500 K,
        and 82 % of them passed a campaign's physical filter; at 3000 K 41 % did. The driver, a bounded density, allows
        10 000 K. The published temperature for ammonia is 20 kcal/mol, 10 064 K.
    noise : 0.001 nm as published.
    scale : see `uqbias.attacks.objective.Objective`.

    Raises
    ------
    UqbiasError
        If a value is out of range.
    """

    space: Annotated[str | Mapping[str, Any], OfKind(SPACES.kind, "cartesian"), Doc("what is distorted")] = "cartesian"
    iterations: Annotated[Count, Doc("steps of the ascent (Adam), at most")] = 60
    learning_rate: Annotated[
        Positive | None,
        Doc("learning rate of Adam; null: 0.001 nm for cartesian, 0.02 rad for the other spaces"),
    ] = None
    temperature: Annotated[
        Positive,
        Doc("K, temperature of the Boltzmann factor: an attack pays kT for e-fold uncertainty; higher: bolder attacks"),
    ] = 1500.0
    noise: Annotated[
        NotNegative | None,
        Doc(
            "standard deviation of the distortion that an attack begins with; null: 0.001 nm for cartesian, 0.05 rad "
            "for the other spaces"
        ),
    ] = None
    bound: Annotated[
        Positive | None, Doc("largest norm of the distortion, in the unit of the space; null: no bound")
    ] = None
    tolerance: Annotated[NotNegative, Doc("an attack whose ln L gains less than this has converged")] = 0.01
    patience: Annotated[Count, Doc("iterations in which it is to gain that")] = 20
    of: Annotated[Literal["judge", "driver"], Doc("what is sought: high values of the judge or of the driver")] = (
        "judge"
    )
    scale: Annotated[
        Positive | None,
        Doc("width of the rounding of the sought value at zero, in its unit; null: from the frames distorted"),
    ] = None
    keep_every: Annotated[int, Ge(0), Doc("iterations between two kept geometries of an attack; 0 keeps none")] = 1
    batch: Annotated[Count, Doc("attacks that one compiled graph advances together")] = 32
    runner: Annotated[Runner, Doc("how the graph is run: aoti (needs a C++ compiler), torchscript, eager, or auto")] = (
        "auto"
    )

    def __post_init__(self) -> None:
        check_values("attack", type(self), vars(self))


def _is_zero(zero: Any) -> Any:
    if zero not in ("frames", "none") and not (isinstance(zero, int | float) and math.isfinite(zero * EV)):
        raise ValueError("choose frames, none, or a finite difference in eV")
    return zero


@dataclass(frozen=True, kw_only=True)
class DirectionOptions:
    """Options of a measurement of adversarial directions, see `uqbias.attacks.directions`.

    Raises
    ------
    UqbiasError
        If a value is out of range.
    """

    epsilons: Annotated[
        Sequence[Positive], MinLen(1), Doc("squared lengths of the displacement of the whole molecule, Å²")
    ] = (0.01, 0.03, 0.1, 0.3, 0.5)
    n_random: Annotated[Count, Doc("random directions for each frame")] = 8
    ascents: Annotated[
        Sequence[Literal["judge", "driver"]],
        Doc("follow the gradient of the judge, the driver, both (judge,driver), or none, as attacks without labels do"),
    ] = ("judge",)
    zero: Annotated[
        str | float,
        BeforeValidator(_is_zero),
        Doc("difference of model and oracle that is no error: frames (mean of their middle half), none, or eV"),
    ] = "frames"
    relax_steps: Annotated[int, Ge(0), Doc("steps of relaxation on the model from each frame; 0: none")] = 100
    relax_every: Annotated[Count, Doc("steps of relaxation between two labels; the first is always labelled")] = 10
    relax_force: Annotated[Positive, Doc("largest force on an atom of a relaxed frame, eV/Å")] = 0.05

    def __post_init__(self) -> None:
        check_values("directions", type(self), vars(self))
