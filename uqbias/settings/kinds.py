"""The campaign file's sections whose ``kind`` names a class: the oracle."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from uqbias.options import InputFile, KindSection
from uqbias.registry import ORACLES
from uqbias.settings.sections import ThirdParty, by_kind, known_kind

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Other = Annotated[ThirdParty, Tag("third_party")]


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
