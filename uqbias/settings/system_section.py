"""The campaign file's section of the molecule: its files, charge, and what may move in it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from uqbias.molecule.labels import LabelKeys
from uqbias.options import Count, InputFile, Section
from uqbias.settings.training_sections import OptionalFile

File = Annotated[str, InputFile()]
Proton = Annotated[list[int], Field(min_length=3, max_length=3)]


def one_folder(name: str) -> str:
    """A name that is one folder below ``runs``, wherever that is."""
    if name in {"", ".", ".."} or not name.isprintable() or {*"/\\"} & {*name} or len(name.encode()) > 200:
        raise ValueError("give a name of one folder: letters, digits, '-', '_', no '/'")
    return name


def _one_system(name: str) -> str:
    if name.startswith("round_") or name in ("summary.json", "systems.json"):
        raise ValueError("a campaign of several systems has a file or folder of this name; give another")
    return one_folder(name)


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


class OneOfSeveral(System):
    """One of several systems: the keys of `system`, and what else is its own."""

    name: Annotated[str, AfterValidator(_one_system)] = Field(description="name of the system, and of its folder")
    oracle: dict[str, Any] = Field(default={}, description="keys in which its oracle differs from `oracle`")
    test_set: OptionalFile = Field(default=None, description="labelled frames that only score it")

    @property
    def system(self) -> System:
        """The section `system` of a campaign of this one."""
        return System(**{name: getattr(self, name) for name in System.model_fields})
