"""Options of an attack; importing them loads no torch, so that the command line can show them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge
from typing_extensions import Doc

from uqbias.errors import UqbiasError, did_you_mean
from uqbias.options import Count, NotNegative, OfKind, Positive, Runner, check_values

#: What may be sought.
OF = ("judge", "driver")


@dataclass(frozen=True, kw_only=True)
class AttackOptions:
    """Options of an attack.

    Lengths of the distortion δ are in nm for the space ``cartesian``, in rad (a length: 0.1 nm) for the others.

    Attributes
    ----------
    learning_rate : about the largest step of a coordinate. None: 0.001 nm as published, 0.02 rad.
    temperature : K. An attack pays kT for e-fold u, so what is right depends on how steeply u rises. With a Gaussian
        mixture as judge and 100 frames of alanine dipeptide, Cartesian attacks raised the median u 6 times at 1500 K,
        and 82 % of them passed a campaign's physical filter; at 3000 K 41 % did. The driver, a bounded density, allows
        10 000 K. The published temperature for ammonia is 20 kcal/mol, 10 064 K.
    noise : None: 0.001 nm as published, 0.05 rad.
    scale : see `uqbias.attacks.objective.Objective`.

    Raises
    ------
    UqbiasError
        If a value is out of range.
    """

    space: Annotated[str | Mapping[str, Any], OfKind("space", "cartesian"), Doc("what is distorted")] = "cartesian"
    iterations: Annotated[Count, Doc("steps of the ascent (Adam), at most")] = 60
    learning_rate: Annotated[
        Positive | None,
        Doc("learning rate of Adam, in the unit of the space (nm or rad); null: what suits the space"),
    ] = None
    temperature: Annotated[
        Positive, Doc("K, temperature of the Boltzmann factor: an attack pays kT for e-fold uncertainty")
    ] = 1500.0
    noise: Annotated[
        NotNegative | None,
        Doc(
            "standard deviation of the distortion that an attack begins with, in the unit of the space; null: what "
            "suits the space"
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
        if self.of not in OF:
            raise UqbiasError(f"attack on '{self.of}'", did_you_mean(self.of, OF))
        check_values("attack", type(self), vars(self))
