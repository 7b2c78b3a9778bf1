"""The campaign file's sections for biases, and what they must agree on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Tag, model_validator

from uqbias.errors import did_you_mean
from uqbias.options import KindSection
from uqbias.registry import BIASES
from uqbias.settings.sections import ThirdParty, by_kind, known_kind
from uqbias.settings.variable_kinds import known_names
from uqbias.variables.names import EXTENDED

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Steps = Annotated[int, Field(ge=0)]
Other = Annotated[ThirdParty, Tag("third_party")]
Names = Annotated[list[str], Field(min_length=1, max_length=3)]
OneName = Annotated[list[str], Field(min_length=1, max_length=1)]
#: One value for all variables, or a list with one each.
Width = Positive | list[Positive]
Bound = float | Literal["lowest"] | None
Range = Annotated[list[float], Field(min_length=2, max_length=2)]


def _infinite(value: Any) -> Any:
    """Let ``inf`` through as YAML writes it and as people do."""
    return float("inf") if value in ("inf", ".inf") else value


ON = "names of the variables: driver, judge, energy, or any of `variables`"
REFLECT = (
    "lowest value of the variable, where the bias is mirrored, so that walkers are not held there: a number, lowest "
    "(of the driver over the labelled frames; other variables: none), null, or a list with one each"
)


class _OnSeveral(KindSection):
    """A bias on one to three variables; lists have one entry each."""

    variables: Names = Field(default=["driver"], description=ON)

    @model_validator(mode="after")
    def _one_each(self) -> _OnSeveral:
        for name in ("sigma", "sigma_min", "reflect_at", "grid_range"):
            value = getattr(self, name, None)
            if isinstance(value, list) and len(value) != len(self.variables):
                raise ValueError(f"{name} = {value} for {len(self.variables)} variable(s): give one each")
        for span in getattr(self, "grid_range", None) or ():
            if span is not None and not span[0] < span[1]:
                raise ValueError(f"grid_range = {span}: give a maximum above the minimum")
        return self


class MetadynamicsSection(_OnSeveral):
    """Well-tempered metadynamics."""

    kind: Literal["metadynamics"] = Field(default="metadynamics", description="well-tempered metadynamics")
    height: Positive = Field(default=1.0, description="height of a new hill, kJ/mol")
    sigma: Width = Field(
        default=0.3,
        description="width of a hill, in units of the variable (or a list); wide hills on u trap walkers at its lower "
        "end",
    )
    biasfactor: float | None = Field(
        default=10.0, gt=1, description="γ; the variable moves as if at γ T; null: hills keep their height"
    )
    pace: Count = Field(default=50, description="steps between hills of one walker; a multiple of md.pace")
    kernel: Literal["gaussian", "stretched-gaussian"] = Field(
        default="gaussian", description="gaussian, or stretched-gaussian as PLUMED's METAD has them"
    )
    reflect_at: Bound | list[Bound] = Field(default="lowest", description=REFLECT)
    grid_range: list[Range | None] | None = Field(
        default=None, description="[min, max] of each variable that the grid spans at first; it grows; null: no need"
    )


class OPESSection(_OnSeveral):
    """On-the-fly probability enhanced sampling."""

    kind: Literal["opes"] = Field(
        default="opes", description="on-the-fly probability enhanced sampling, as PLUMED's OPES_METAD"
    )
    barrier: Positive = Field(default=40.0, description="free energy to be overcome, kJ/mol")
    sigma: Width = Field(
        default=0.3, description="width of the first kernels: what the variable fluctuates by in a basin (or a list)"
    )
    pace: Count = Field(default=100, description="steps between kernels of one walker; a multiple of md.pace")
    biasfactor: Annotated[float, Field(gt=1, allow_inf_nan=True), BeforeValidator(_infinite)] | None = Field(
        default=None, description="γ; inf: a flat target; null: barrier/kT"
    )
    sigma_min: Width | None = Field(
        default=None, description="kernels are never narrower; null: a fifth of the first ones"
    )
    compression_threshold: float = Field(
        default=1.0, ge=0, description="kernels closer than this, in units of sigma, are merged"
    )
    exploratory: bool = Field(default=False, description="OPES_METAD_EXPLORE: explore fast, converge slowly")
    reflect_at: Bound | list[Bound] = Field(default="lowest", description=REFLECT)


class ExtendedABFSection(KindSection):
    """Extended-system adaptive biasing force."""

    kind: Literal["eabf"] = Field(
        default="eabf", description="adaptive biasing force on an extended variable that follows u"
    )
    variables: OneName = Field(default=["driver"], description="name of the one variable to follow")
    sigma: Positive = Field(default=0.5, description="thermal width of the coupling kT/σ², in units of the variable")
    mass: Positive = Field(
        default=0.5, description="of the extended variable, dalton nm² per squared unit of the variable"
    )
    bin_width: Positive = Field(default=0.1, description="of the mean force, in units of the variable")
    full_samples: Count = Field(default=100, description="samples from which on all of the mean force acts")
    pace: Count = Field(default=50, description="steps between samples; a multiple of md.pace")


class WTMExtendedABFSection(ExtendedABFSection):
    """The same with well-tempered metadynamics on the extended variable."""

    kind: Literal["wtm_eabf"] = Field(  # type: ignore[assignment]
        default="wtm_eabf", description="eabf, and well-tempered metadynamics on the extended variable"
    )
    height: Positive = Field(default=1.0, description="height of a new hill, kJ/mol")
    hill_sigma: Positive = Field(default=0.3, description="width of a hill, in units of the variable")
    biasfactor: float | None = Field(default=10.0, gt=1, description="γ of the hills; null: they keep their height")
    hill_pace: Count = Field(default=50, description="steps between hills of one walker; a multiple of md.pace")


class GaMDSection(KindSection):
    """Gaussian accelerated MD."""

    kind: Literal["gamd"] = Field(default="gamd", description="Gaussian accelerated MD: a boost of low energies")
    variables: OneName = Field(default=["energy"], description="name of the one energy to boost")
    threshold: Literal["lower", "upper"] = Field(
        default="lower", description="bound of the threshold energy; upper boosts more"
    )
    sigma0: Positive = Field(default=25.104, description="largest standard deviation of the boost, kJ/mol")
    preparation_steps: Steps = Field(default=400, description="steps at the start that are left out of the statistics")
    conventional_steps: Count = Field(default=2000, description="steps without boost, the preparation included")
    equilibration_steps: Steps = Field(default=4000, description="steps with a boost that still adapts; then it stays")
    pace: Count = Field(default=50, description="steps between looks at the energies; a multiple of md.pace")


class LinearSection(KindSection):
    """A constant push towards high u."""

    kind: Literal["linear"] = Field(default="linear", description="V = −τ u: a constant push towards high u (HAL)")
    variables: OneName = Field(default=["driver"], description="name of the one variable")
    relative: Positive = Field(default=0.1, description="mean bias force over mean model force that τ is set for")
    pace: Count = Field(default=50, description="steps between updates of τ; a multiple of md.pace")
    averaging: Count = Field(default=20, description="updates averaged over; τ is 0 for as many at the start")
    tau: float | None = Field(default=None, description="a fixed τ, kJ/mol per unit of u; null: adapted")


class UDDSection(KindSection):
    """Uncertainty-driven dynamics."""

    kind: Literal["udd"] = Field(
        default="udd", description="uncertainty-driven dynamics: an inverted Gaussian of a committee's disagreement"
    )
    variables: OneName = Field(default=["driver"], description="name of the one variable")
    A: Positive = Field(default=64.4, description="depth, kJ/mol")
    B: Positive = Field(default=0.5, description="width in units of u, per √atom where the next two are given")
    n_members: int | None = Field(default=None, ge=2, description="size of the committee that u is of, or null")
    n_atoms: Count | None = Field(default=None, description="number of atoms, or null")

    @model_validator(mode="after")
    def _both(self) -> UDDSection:
        if (self.n_members is None) != (self.n_atoms is None):
            raise ValueError(f"n_members = {self.n_members} and n_atoms = {self.n_atoms}: give both, or none")
        return self


class UpperWallSection(KindSection):
    """Wall above a value."""

    kind: Literal["upper_wall"] = Field(
        default="upper_wall", description="κ (x − at)² above `at`, as PLUMED's UPPER_WALLS"
    )
    variables: OneName = Field(default=["driver"], description="name of the one variable")
    at: float = Field(default=14.0, description="value of the variable where the wall begins")
    kappa: Positive = Field(default=20.0, description="kJ/mol per squared unit of the variable")


class LowerWallSection(KindSection):
    """Wall below a value."""

    kind: Literal["lower_wall"] = Field(
        default="lower_wall", description="κ (x − at)² below `at`, as PLUMED's LOWER_WALLS"
    )
    variables: OneName = Field(default=["driver"], description="name of the one variable")
    at: float = Field(description="value of the variable where the wall begins")
    kappa: Positive = Field(default=20.0, description="kJ/mol per squared unit of the variable")


class RestraintSection(KindSection):
    """Harmonic restraint."""

    kind: Literal["restraint"] = Field(default="restraint", description="½ κ (x − at)², as PLUMED's RESTRAINT")
    variables: OneName = Field(default=["driver"], description="name of the one variable")
    at: float = Field(description="value of the variable that it is held at")
    kappa: Positive = Field(description="kJ/mol per squared unit of the variable")


#: Section classes by the name of their kind.
SECTIONS = (
    MetadynamicsSection,
    OPESSection,
    ExtendedABFSection,
    WTMExtendedABFSection,
    GaMDSection,
    LinearSection,
    UDDSection,
    UpperWallSection,
    LowerWallSection,
    RestraintSection,
)
BiasSection = Annotated[
    Annotated[MetadynamicsSection, Tag("metadynamics")]
    | Annotated[OPESSection, Tag("opes")]
    | Annotated[ExtendedABFSection, Tag("eabf")]
    | Annotated[WTMExtendedABFSection, Tag("wtm_eabf")]
    | Annotated[GaMDSection, Tag("gamd")]
    | Annotated[LinearSection, Tag("linear")]
    | Annotated[UDDSection, Tag("udd")]
    | Annotated[UpperWallSection, Tag("upper_wall")]
    | Annotated[LowerWallSection, Tag("lower_wall")]
    | Annotated[RestraintSection, Tag("restraint")]
    | Other,
    by_kind("metadynamics", tuple(section.model_fields["kind"].default for section in SECTIONS)),
    known_kind(BIASES, imports=True),
]


def default_biases() -> list[Any]:
    """Metadynamics and a wall."""
    return [MetadynamicsSection(), UpperWallSection()]


def check_biases(sections: Sequence[Any], variables: dict[str, Any], pace: int) -> None:
    """See that biases fit each other, the variables and the pace of the MD.

    Raises
    ------
    ValueError
        One line with key, value and cure.
    """
    followed: list[str] = []
    for index, section in enumerate(sections):
        for key in ("pace", "hill_pace"):
            steps = getattr(section, key, None)
            if isinstance(steps, int) and steps % pace:
                raise ValueError(f"bias.{index}.{key} = {steps} is not a multiple of md.pace = {pace}")
        if isinstance(section, ExtendedABFSection):
            (name,) = section.variables
            if name in followed:
                raise ValueError(
                    f"bias.{index}.variables = {[name]}: '{name}' has an eabf already; keep one of the two"
                )
            followed.append(name)
    valid = known_names(variables, tuple(followed))
    for index, section in enumerate(sections):
        names = getattr(section, "variables", ())
        for name in (names,) if isinstance(names, str) else names:
            if name not in valid:
                hint = did_you_mean(str(name), valid)
                raise ValueError(
                    f"bias.{index}.variables = {list(names)}: no variable '{name}' is defined; {hint}; or define it: "
                    f"variables: {{{name}: {{kind: dihedral, atoms: [i, j, k, l]}}}}"
                )
        if len(set(names)) < len(names):
            raise ValueError(f"bias.{index}.variables = {list(names)}: name each variable once")
        if isinstance(section, LinearSection) and section.tau is None and section.variables[0].startswith(EXTENDED):
            raise ValueError(
                f"bias.{index}.variables = {section.variables}: τ is adapted to forces on atoms, and an extended "
                "variable has none; give tau"
            )
