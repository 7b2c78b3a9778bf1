"""The campaign file's sections whose ``kind`` names a class: potential and oracle."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from uqbias.options import InputFile, KindSection
from uqbias.registry import ORACLES, POTENTIALS
from uqbias.settings.sections import ThirdParty, by_kind, known_kind

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


class CoordinatesSection(KindSection):
    """Particles in a field that is fixed in space; see `uqbias.potentials.coordinates`."""

    kind: Literal["coordinates"] = Field(
        default="coordinates",
        description="a small network on Cartesian coordinates, for particles in a field that is fixed in space",
    )
    n_members: Count | None = Field(
        default=None, description="committee size; null: what driver and judge need, 1 without a committee"
    )
    hidden: list[Count] = Field(
        default=[64, 64], min_length=1, description="widths of the hidden layers; the last is the number of latents"
    )
    activation: Literal["tanh", "silu", "softplus"] = Field(default="tanh", description="tanh, silu or softplus")
    axes: str = Field(
        default="xyz", pattern="^[xyz]{1,3}$", description="axes that the energy depends on, such as x or xy"
    )
    length: float | None = Field(
        default=None, gt=0, description="nm, unit of the coordinates; null: their spread over the training frames"
    )


PotentialSection = Annotated[
    Annotated[PowerSpectrumSection, Tag("power_spectrum")] | Annotated[CoordinatesSection, Tag("coordinates")] | Other,
    by_kind("power_spectrum", ("power_spectrum", "coordinates")),
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


class DoubleWellOracleSection(KindSection):
    """One particle in a double well; see `uqbias.oracles.analytic`."""

    kind: Literal["double_well"] = Field(
        default="double_well",
        description="one particle in E = 5x⁴ - 10x² + 1.5x, or 10x⁴ - 10x² + 2x + 4y⁴ (kJ/mol, nm)",
    )
    dimensions: Literal[1, 2] = Field(default=1, description="1 or 2")
    scale: Positive = Field(default=1.0, description="factor of that energy")
    confinement: Positive = Field(
        default=50.0, description="kJ/mol/nm², force constant of the harmonic wells along the other axes"
    )


class PoolOracleSection(KindSection):
    """Labels that are there already; see `uqbias.oracles.pool`."""

    kind: Literal["pool"] = Field(
        default="pool", description="labels of a file, looked up by geometry; for sampler: pool"
    )
    file: Annotated[str, InputFile()] = Field(description="labelled extended-XYZ file (eV, Å)")


OracleSection = Annotated[
    Annotated[OpenMMSection, Tag("openmm")]
    | Annotated[ASESection, Tag("ase")]
    | Annotated[DoubleWellOracleSection, Tag("double_well")]
    | Annotated[PoolOracleSection, Tag("pool")]
    | Other,
    by_kind("openmm", ("openmm", "ase", "double_well", "pool")),
    known_kind(ORACLES),
]
