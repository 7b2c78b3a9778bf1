"""The campaign file's sections whose ``kind`` names a class: potential, features, uncertainty, bias, oracle."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from uqbias.campaign.sections import KindSection, ThirdParty, by_kind, known_kind
from uqbias.registry import BIASES, FEATURES, ORACLES, POTENTIALS, UNCERTAINTIES

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Other = Annotated[ThirdParty, Tag("third_party")]


class PowerSpectrumSection(KindSection):
    """The embedded potential."""

    kind: Literal["power_spectrum"] = Field(default="power_spectrum", description="the embedded potential")
    n_members: Count | None = Field(
        default=None, description="committee size; null: what driver and judge need, 1 without a committee"
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


class LatentsSection(KindSection):
    """The potential's last hidden layer, per atom."""

    kind: Literal["latents"] = Field(default="latents", description="the potential's last hidden layer, per atom")
    atoms: Literal["all", "heavy"] | list[int | str] = Field(
        default="all", description="all, heavy, or a list of indices and atom names"
    )
    member: int = Field(default=0, ge=0, description="committee member whose latents are used")


class TorsionsSection(KindSection):
    """Sines and cosines of the torsions of the bond graph."""

    kind: Literal["torsions"] = Field(
        default="torsions", description="soft torsions of the bond graph, found automatically"
    )
    heavy_only: bool = Field(default=True, description="only torsions of four heavy atoms")
    stiff_below: float = Field(
        default=20.0,
        ge=0,
        description="degrees; a torsion with a smaller circular deviation over the start frames is stiff, weight 0",
    )


class PairDistancesSection(KindSection):
    """Distances of atoms far apart on the bond graph."""

    kind: Literal["pair_distances"] = Field(
        default="pair_distances", description="distances of atoms far apart on the bond graph"
    )
    min_separation: Count = Field(default=3, description="fewest bonds between the two atoms")
    heavy_only: bool = Field(default=True, description="leave hydrogens out")


class ConcatenatedSection(KindSection):
    """Several feature spaces side by side."""

    kind: Literal["concatenated"] = Field(default="concatenated", description="several feature spaces side by side")
    parts: list[str | dict[str, Any]] = Field(
        min_length=1, description="each a name, or {kind, scale (default 1), options}"
    )


FeaturesSection = Annotated[
    Annotated[LatentsSection, Tag("latents")]
    | Annotated[TorsionsSection, Tag("torsions")]
    | Annotated[PairDistancesSection, Tag("pair_distances")]
    | Annotated[ConcatenatedSection, Tag("concatenated")]
    | Other,
    by_kind("torsions", ("latents", "torsions", "pair_distances", "concatenated")),
    known_kind(FEATURES, imports=True),
]

Whitening = Literal["none", "standard", "pca"]


class KernelDensitySection(KindSection):
    """u = −ln of a kernel density of the labelled set."""

    kind: Literal["kernel_density"] = Field(
        default="kernel_density", description="−ln of a kernel density of the labelled frames, nats"
    )
    features: FeaturesSection = Field(default=TorsionsSection(), description="space of the density")
    kernel: Literal["von_mises", "gaussian"] = Field(
        default="von_mises", description="von_mises (for torsions) or gaussian (for any features)"
    )
    kappa: Positive = Field(default=5.0, description="concentration of the von Mises kernel")
    bandwidth: Positive = Field(default=0.5, description="width of the Gaussian kernel, in whitened units")
    capacity: Count = Field(default=1024, description="places for labelled frames in the compiled graph")
    whitening: Whitening = Field(default="pca", description="of the Gaussian kernel: none, standard, pca")
    dims: Count | None = Field(default=None, description="principal components kept; null: all")


class GMMSection(KindSection):
    """u = −ln of a Gaussian mixture."""

    kind: Literal["gmm"] = Field(default="gmm", description="−ln of a mixture of full-covariance Gaussians, nats")
    features: FeaturesSection = Field(default=LatentsSection(), description="space of the density")
    n_components: Count = Field(default=6, description="Gaussians, at most")
    samples_per_component: Count | None = Field(
        default=40, description="fewest samples for each Gaussian; null: always n_components Gaussians"
    )
    reg_covar: Positive = Field(default=1e-3, description="added to the diagonal of every whitened covariance")
    whitening: Whitening = Field(default="pca", description="none, standard, pca")
    dims: Count | None = Field(default=None, description="principal components kept; null: all")
    squash: Literal["none", "softplus_sqrt"] = Field(
        default="none", description="none, or softplus_sqrt (bounded slope, for a driver)"
    )
    aggregation: Literal["mean", "max", "sum", "local_mean_max"] | dict[str, Any] | None = Field(
        default=None,
        description="for per-atom features: mean (null), max, sum, local_mean_max, or {kind, atoms, sharpness}",
    )
    max_iter: Count = Field(default=500, description="iterations of expectation maximisation, at most")


UncertaintySection = Annotated[
    Annotated[KernelDensitySection, Tag("kernel_density")] | Annotated[GMMSection, Tag("gmm")] | Other,
    by_kind("kernel_density", ("kernel_density", "gmm")),
    known_kind(UNCERTAINTIES),
]


def driver() -> KernelDensitySection:
    """Return the default driver: the kernel density over soft torsions."""
    return KernelDensitySection()


def judge() -> GMMSection:
    """Return the default judge: the mixture on latents."""
    return GMMSection()


class MetadynamicsSection(KindSection):
    """Well-tempered metadynamics on the driver CV."""

    kind: Literal["metadynamics"] = Field(
        default="metadynamics", description="well-tempered metadynamics on the driver CV"
    )
    height: Positive = Field(default=1.0, description="height of a new hill, kJ/mol")
    sigma: Positive = Field(
        default=0.3,
        description="width of a hill, in units of the CV; wide hills trap walkers at the lower end of the CV",
    )
    biasfactor: float | None = Field(
        default=10.0, gt=1, description="γ; the CV moves as if at γ T; null: hills keep their height"
    )
    pace: Count = Field(default=50, description="steps between hills of one walker; a multiple of md.pace")
    reflect_at: float | Literal["lowest"] | None = Field(
        default="lowest",
        description="hills are mirrored at this value, so that walkers are not held below it: lowest (of the labelled "
        "frames), a number, or null",
    )


class UpperWallSection(KindSection):
    """Harmonic wall above a value of the driver CV."""

    kind: Literal["upper_wall"] = Field(
        default="upper_wall", description="κ (u − at)² above `at`, as PLUMED's UPPER_WALLS"
    )
    at: float = Field(default=14.0, description="value of the CV where the wall begins")
    kappa: Positive = Field(default=20.0, description="kJ/mol per squared unit of the CV")


BiasSection = Annotated[
    Annotated[MetadynamicsSection, Tag("metadynamics")] | Annotated[UpperWallSection, Tag("upper_wall")] | Other,
    by_kind("metadynamics", ("metadynamics", "upper_wall")),
    known_kind(BIASES),
]


def default_biases() -> list[Any]:
    """Metadynamics and a wall."""
    return [MetadynamicsSection(), UpperWallSection()]


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
