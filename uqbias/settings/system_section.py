"""The campaign file's section of the molecule: its files, charge, and what may move in it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from uqbias.molecule.labels import LabelKeys
from uqbias.options import Count, InputFile, Section

File = Annotated[str, InputFile()]
Proton = Annotated[list[int], Field(min_length=3, max_length=3)]


class System(Section):
    """What is simulated."""

    structure: File = Field(
        description="PDB file with CONECT records: gives atom names and the bond graph; or extended XYZ, CIF or "
        "POSCAR, whose distances give the bonds, through the cell where there is one"
    )
    start: File = Field(
        description="file of the frames to begin with, in a format that `uqbias train` reads (no folder); frames "
        "without energies and forces are labelled by the oracle"
    )
    charge: int | None = Field(
        default=None, description="total charge in e, which the oracle is given; null: what the oracle takes by itself"
    )
    spin: Count | None = Field(default=None, description="spin multiplicity 2S + 1, for the oracle; null: its own")
    mobile_protons: list[Proton] | None = Field(
        default=None,
        description="hydrogens that may sit on either side, each [donor, hydrogen, acceptor], counted from 0; null: "
        "those found in the start frames (where md.constraints is none); []: none",
    )
    energy_key: str | None = Field(default=None, description="name of energies in data; null: free_energy or energy")
    forces_key: str | None = Field(default=None, description="name of the forces in data files; null: forces")
    stress_key: str | None = Field(default=None, description="name of the stress in data files; null: not read")

    @property
    def keys(self) -> LabelKeys:
        """Names of the labels in the files."""
        return LabelKeys(self.energy_key, self.forces_key, self.stress_key)
