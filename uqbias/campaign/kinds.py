"""The campaign file's sections whose ``kind`` names a class: potential and oracle."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from uqbias.campaign.sections import KindSection, ThirdParty, by_kind, known_kind
from uqbias.registry import ORACLES, POTENTIALS

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Other = Annotated[ThirdParty, Tag("third_party")]


class PowerSpectrumSection(KindSection):
    """The embedded potential."""

    kind: Literal["power_spectrum"] = Field(default="power_spectrum", description="the embedded potential")
    n_members: Count | None = Field(
        default=None, description="committee size; null: what driver and judge need, 1 without a committee"
    )
    shared_density: bool = Field(
        default=False,
        description="the members of a committee differ by their networks only: much cheaper, a little less diverse",
    )
    cutoff: Positive = Field(default=0.8, description="nm")
    n_radial: Count = Field(default=10, description="radial basis functions")
    n_channels: Count = Field(default=10, description="learned radial-species channels")
    l_max: int = Field(default=3, ge=0, le=3, description="highest angular momentum")
    hidden: list[Count] = Field(
        default=[64, 32], min_length=1, description="widths of the hidden layers; the last is the number of latents"
    )


PotentialSection = Annotated[
    Annotated[PowerSpectrumSection, Tag("power_spectrum")] | Other,
    by_kind("power_spectrum", ("power_spectrum",)),
    known_kind(POTENTIALS, "power_spectrum"),
]


class OpenMMSection(KindSection):
    """A force field, without cutoff and without constraints."""

    kind: Literal["openmm"] = Field(default="openmm", description="an OpenMM force field, no cutoff, no constraints")
    forcefield: list[str] = Field(
        default=["amber14/protein.ff14SB.xml"], min_length=1, description="OpenMM force-field files"
    )
    platform: Literal["Reference", "CUDA", "OpenCL"] = Field(
        default="Reference", description="OpenMM platform, double precision"
    )


class ASESection(KindSection):
    """Any ASE calculator."""

    kind: Literal["ase"] = Field(default="ase", description="an ASE calculator")
    calculator: str = Field(description="import path of the calculator class, as module:Class")
    calculator_options: dict[str, Any] = Field(default_factory=dict, description="arguments of the calculator")


OracleSection = Annotated[
    Annotated[OpenMMSection, Tag("openmm")] | Annotated[ASESection, Tag("ase")] | Other,
    by_kind("openmm", ("openmm", "ase")),
    known_kind(ORACLES),
]
