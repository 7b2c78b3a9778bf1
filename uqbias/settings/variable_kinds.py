"""The campaign file's sections for collective variables."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from uqbias.options import KindSection
from uqbias.registry import VARIABLES
from uqbias.settings.sections import ThirdParty, by_kind, known_kind
from uqbias.variables.names import EXTENDED, OF_MODEL, is_taken

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Other = Annotated[ThirdParty, Tag("third_party")]
Atom = int | str
Group = Literal["all", "heavy"] | list[Atom]


class DistanceSection(KindSection):
    """Distance of two atoms or of two centres of mass."""

    kind: Literal["distance"] = Field(default="distance", description="distance, nm")
    atoms: list[Atom] | None = Field(default=None, min_length=2, max_length=2, description="the two atoms")
    groups: list[Group] | None = Field(
        default=None, min_length=2, max_length=2, description="or two groups, whose centres of mass count"
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> DistanceSection:
        if (self.atoms is None) == (self.groups is None):
            raise ValueError("give either atoms: [i, j] or groups: [[...], [...]]")
        return self


class AngleSection(KindSection):
    """Angle of three atoms."""

    kind: Literal["angle"] = Field(default="angle", description="angle of three atoms, rad")
    atoms: list[Atom] = Field(min_length=3, max_length=3, description="the three atoms, the vertex second")


class DihedralSection(KindSection):
    """Dihedral of four atoms."""

    kind: Literal["dihedral"] = Field(default="dihedral", description="dihedral of four atoms, rad, period 2π")
    atoms: list[Atom] = Field(min_length=4, max_length=4, description="the four atoms")


class RMSDSection(KindSection):
    """Deviation from a reference geometry."""

    kind: Literal["rmsd"] = Field(default="rmsd", description="deviation after superposition on a reference, nm")
    atoms: Group = Field(default="heavy", description="all, heavy, or a list of indices and atom names")
    reference: list[list[float]] | None = Field(
        default=None, description="positions of all atoms, nm; null: the start frame of lowest energy"
    )


class CoordinationSection(KindSection):
    """Number of contacts."""

    kind: Literal["coordination"] = Field(
        default="coordination", description="number of pairs closer than r0, counted smoothly"
    )
    group_a: Group = Field(description="atoms")
    group_b: Group | None = Field(default=None, description="atoms; null: pairs within group_a")
    r0: Positive = Field(description="nm")
    n: Count = Field(default=6, description="exponent of the numerator")
    m: Count | None = Field(default=None, description="exponent of the denominator; null: 2 n")


class PositionSection(KindSection):
    """A Cartesian coordinate."""

    kind: Literal["position"] = Field(
        default="position", description="a Cartesian coordinate of an atom in an external field, nm"
    )
    axis: Literal["x", "y", "z"] = Field(description="x, y or z")
    atom: Atom = Field(default=0, description="index or name")


SECTIONS = (DistanceSection, AngleSection, DihedralSection, RMSDSection, CoordinationSection, PositionSection)
VariableSection = Annotated[
    Annotated[DistanceSection, Tag("distance")]
    | Annotated[AngleSection, Tag("angle")]
    | Annotated[DihedralSection, Tag("dihedral")]
    | Annotated[RMSDSection, Tag("rmsd")]
    | Annotated[CoordinationSection, Tag("coordination")]
    | Annotated[PositionSection, Tag("position")]
    | Other,
    by_kind("", tuple(section.model_fields["kind"].default for section in SECTIONS)),
    known_kind(VARIABLES, imports=True),
]


def check_name(name: str) -> str:
    """Refuse a variable's name that a file or a graph could not hold."""
    if is_taken(name):
        raise PydanticCustomError("taken", "'{name}' is taken; choose another name, such as phi", {"name": name})
    if not re.fullmatch(r"[A-Za-z]\w*", name):
        raise PydanticCustomError(
            "name", "'{name}' is not a name; take a letter, then letters, digits and underscores", {"name": name}
        )
    return name


Name = Annotated[str, AfterValidator(check_name)]
Variables = dict[Name, VariableSection]


def known_names(variables: dict[str, Any], extended: tuple[str, ...] = ()) -> list[str]:
    """What a bias may act on: the model's, the defined, and those that follow one of them."""
    return [*OF_MODEL, *variables, *(f"{EXTENDED}{name}" for name in extended)]
