"""Limits of a physical geometry, as a campaign file has them."""

from __future__ import annotations

from pydantic import Field

from uqbias.options import NotNegative, Positive, Section


class CoordinationLimits(Section):
    """How many atoms of one element may be near an atom of another."""

    centre: str = Field(description="element of the atom, such as Si")
    neighbour: str = Field(description="element of its neighbours, such as O")
    within: Positive = Field(description="nm, distance within which they count")
    least: int = Field(default=0, ge=0, description="smallest number of them")
    most: int | None = Field(default=None, ge=0, description="largest number of them; null: any")


class Limits(Section):
    """How far a physical geometry may be from the reference."""

    energy_window: Positive = Field(
        default=120.0,
        # A model may invent deep holes, too.
        description="model energy from the mean of the start frames, up or down, that is still physical, kJ/mol; "
        "50 more for each atom of a crystal, glass or surface",
    )
    bond_low: float = Field(default=0.8, gt=0, lt=1, description="shortest bond, as a multiple of the reference length")
    bond_high: float = Field(default=1.25, gt=1, description="longest bond, as a multiple of the reference length")
    angle_tolerance: float = Field(
        default=25.0, gt=0, le=180, description="degrees that an angle may differ from its reference"
    )
    clash: float = Field(
        default=0.7,
        gt=0,
        lt=1,
        description="closest approach of atoms three or more bonds apart, as a share of the sum of van der Waals radii",
    )
    hydrogen_bond: float = Field(
        default=0.6, gt=0, lt=1, description="the same for hydrogen and N, O or F, which come closer"
    )
    closest: NotNegative = Field(
        default=0.75,
        description="closest approach in a crystal, glass or surface, for each pair of elements, as a share of the "
        "smallest distance in the start frames",
    )
    coordination: list[CoordinationLimits] = Field(
        default=[], description="limits of the coordination, each {centre: Si, neighbour: O, within: 0.22, least: 3}"
    )
    largest_force: Positive | None = Field(
        default=None, description="largest component of the model's forces, kJ/mol/nm; null: any"
    )
    stiff_torsion: float = Field(default=60.0, gt=0, le=180, description="degrees that a stiff torsion may turn")
