"""The campaign file's sections for samplers without MD: adversarial attacks, random distortions, a pool of frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, Tag

from uqbias.registry import SPACES
from uqbias.settings.sections import KindSection, Section, ThirdParty, by_kind, known_kind
from uqbias.settings.variable_kinds import Group

if TYPE_CHECKING:
    pass

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
#: Samplers that take geometries and change them, or not: no MD is run, no bias acts.
DISTORTING = ("attack", "random", "pool")


class CartesianSection(KindSection):
    """Displacements of atoms."""

    kind: Literal["cartesian"] = Field(
        default="cartesian",
        description="cartesian (displacements of atoms, nm), internal (torsions, bonds and angles, rad), variables "
        "(collective variables of `variables:`), or module:attribute of your own",
    )
    atoms: Group = Field(default="all", description="which atoms move: all, heavy, or a list of indices and names")
    axes: str = Field(default="xyz", pattern="^[xyz]{1,3}$", description="along which axes")


class InternalSection(KindSection):
    """Turns about bonds, and lengths."""

    kind: Literal["internal"] = Field(default="internal", description="internal coordinates of the bond graph")
    torsions: bool = Field(default=True, description="turn about the bonds that are in no ring")
    bonds: bool = Field(default=False, description="stretch bonds; 0.1 nm counts as 1 rad")
    angles: bool = Field(default=False, description="bend angles")


class VariablesSpace(KindSection):
    """Collective variables of the campaign."""

    kind: Literal["variables"] = Field(default="variables", description="collective variables of `variables:`")
    names: list[str] = Field(min_length=1, description="names of those that are changed")
    rigid: bool = Field(
        default=True, description="move rigid parts of the molecule where that suffices; false: the least displacement"
    )


SpaceSection = Annotated[
    Annotated[CartesianSection, Tag("cartesian")]
    | Annotated[InternalSection, Tag("internal")]
    | Annotated[VariablesSpace, Tag("variables")]
    | Annotated[ThirdParty, Tag("third_party")],
    by_kind("cartesian", ("cartesian", "internal", "variables")),
    known_kind(SPACES, "cartesian", imports=True),
]


class AttackSection(Section):
    """Adversarial attacks; see `uqbias.attacks.ascent.AttackOptions`."""

    count: Count = Field(default=200, description="attacks in a round, each from a frame of md.start_from")
    space: SpaceSection = Field(default=CartesianSection(), description="what is distorted")
    iterations: Count = Field(default=60, description="steps of the ascent (Adam), at most")
    learning_rate: float | None = Field(
        default=None, gt=0, description="of Adam, in the unit of the space (nm or rad); null: what suits the space"
    )
    temperature: Positive = Field(
        default=1500.0, description="K, of the Boltzmann factor: an attack pays kT for e-fold uncertainty"
    )
    noise: float | None = Field(
        default=None,
        ge=0,
        description="standard deviation of the distortion that an attack begins with, in the unit of the space; null: "
        "what suits the space",
    )
    bound: float | None = Field(
        default=None, gt=0, description="largest norm of the distortion, in the unit of the space; null: no bound"
    )
    tolerance: float = Field(default=0.01, ge=0, description="an attack whose ln L gains less than this has converged")
    patience: Count = Field(default=20, description="iterations in which it is to gain that")
    of: Literal["judge", "driver"] = Field(
        default="judge", description="what is sought: high values of the judge or of the driver"
    )
    scale: float | None = Field(
        default=None,
        gt=0,
        description="width of the rounding of the sought value at zero, in its unit; null: from the frames distorted",
    )
    keep_every: int = Field(
        default=1, ge=0, description="iterations between two kept geometries of an attack; 0 keeps none"
    )
    batch: Count = Field(default=32, description="attacks that one compiled graph advances together")
    runner: Literal["auto", "aoti", "torchscript", "eager"] = Field(
        default="auto",
        description="how the graph is run: aoti (needs a C++ compiler), torchscript, eager, or auto",
    )


class RandomSection(Section):
    """Distortions at random; see `uqbias.attacks.random.RandomOptions`."""

    count: Count = Field(default=200, description="distortions in a round, each of a frame of md.start_from")
    space: SpaceSection = Field(default=CartesianSection(), description="what is distorted")
    amplitude: Positive | list[Positive] = Field(
        default=0.01,
        description="standard deviation, or half width, in the unit of the space (nm or rad): one for all or one for "
        "each coordinate",
    )
    distribution: Literal["normal", "uniform"] = Field(default="normal", description="normal or uniform")


class PoolSection(Section):
    """Frames that are there already."""

    file: str = Field(
        description="extended-XYZ file (eV, Å); its frames that have no label yet are proposed. Labels in it are not "
        "looked at: for those give the same file to the oracle, {kind: pool, file: frames.xyz}"
    )
