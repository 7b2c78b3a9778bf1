"""Limits of a physical geometry, as a campaign file has them."""

from __future__ import annotations

from pydantic import Field

from uqbias.options import Positive, Section


class Limits(Section):
    """How far a physical geometry may be from the reference."""

    energy_window: Positive = Field(
        default=120.0,
        # A model may invent deep holes, too.
        description="model energy from the mean of the start frames, up or down, that is still physical, kJ/mol",
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
    stiff_torsion: float = Field(default=60.0, gt=0, le=180, description="degrees that a stiff torsion may turn")
