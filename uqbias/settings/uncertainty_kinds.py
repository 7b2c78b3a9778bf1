"""The campaign file's sections for feature spaces and uncertainties."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from uqbias.options import KindSection
from uqbias.registry import FEATURES, UNCERTAINTIES
from uqbias.settings.sections import ThirdParty, by_kind, known_kind

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Other = Annotated[ThirdParty, Tag("third_party")]


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


FEATURE_NAMES = ("latents", "torsions", "pair_distances", "concatenated")
FeatureKinds = (
    Annotated[LatentsSection, Tag("latents")]
    | Annotated[TorsionsSection, Tag("torsions")]
    | Annotated[PairDistancesSection, Tag("pair_distances")]
    | Annotated[ConcatenatedSection, Tag("concatenated")]
    | Other
)
#: Features where torsions, or latents, are what a section without kind means.
TorsionFeatures = Annotated[
    FeatureKinds, by_kind("torsions", FEATURE_NAMES), known_kind(FEATURES, "torsions", imports=True)
]
LatentFeatures = Annotated[
    FeatureKinds, by_kind("latents", FEATURE_NAMES), known_kind(FEATURES, "latents", imports=True)
]

Whitening = Literal["none", "standard", "pca"]
AggregationSetting = Literal["mean", "max", "sum", "local_mean_max"] | dict[str, Any] | None
AGGREGATION: Any = Field(
    default=None, description="of values per atom: mean (null), max, sum, local_mean_max, or {kind, atoms, sharpness}"
)


class KernelDensitySection(KindSection):
    """u = −ln of a kernel density of the labelled set."""

    kind: Literal["kernel_density"] = Field(
        default="kernel_density", description="−ln of a kernel density of the labelled frames, nats"
    )
    features: TorsionFeatures = Field(default=TorsionsSection(), description="space of the density")
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
    features: LatentFeatures = Field(default=LatentsSection(), description="space of the density")
    per_element: bool = Field(default=False, description="one mixture for the atoms of each element, not one for all")
    n_components: Count = Field(default=6, description="Gaussians, at most")
    choose_components: Literal["fixed", "bic"] = Field(
        default="fixed", description="fixed, or bic (the number up to n_components with the lowest BIC)"
    )
    samples_per_component: Count | None = Field(
        default=40, description="fewest samples for each Gaussian; null: always n_components Gaussians"
    )
    reg_covar: Positive = Field(default=1e-3, description="added to the diagonal of every whitened covariance")
    whitening: Whitening = Field(default="pca", description="none, standard, pca")
    dims: Count | None = Field(default=None, description="principal components kept; null: all")
    squash: Literal["none", "softplus_sqrt"] = Field(
        default="none", description="none, or softplus_sqrt (bounded slope, for a driver)"
    )
    aggregation: AggregationSetting = AGGREGATION
    max_iter: Count = Field(default=500, description="iterations of expectation maximisation, at most")


class CommitteeSection(KindSection):
    """Disagreement of a committee."""

    kind: Literal["committee"] = Field(
        default="committee", description="standard deviation over committee members (potential.n_members, 4 if null)"
    )
    quantity: Literal["energy", "forces"] = Field(
        default="energy", description="energy (kJ/mol) or forces (kJ/mol/nm; a better judge, several times the cost)"
    )
    bootstrap: bool = Field(default=False, description="train each member on its own resample of the frames")
    aggregation: AggregationSetting = AGGREGATION


class ShallowEnsembleSection(KindSection):
    """Many last layers on one body."""

    kind: Literal["shallow_ensemble"] = Field(
        default="shallow_ensemble", description="standard deviation of the energy over many last layers, kJ/mol"
    )
    n_heads: int = Field(default=32, ge=2, description="last layers")
    score: Literal["crps", "nll"] = Field(default="crps", description="what the last layers are trained on")
    loss_weight: Positive = Field(default=0.1, description="of that score beside the potential's loss")
    aggregation: AggregationSetting = Field(
        default=None, description="of the atoms' energies: mean, max, sum, local_mean_max; null: the total energy"
    )


class LLPRSection(KindSection):
    """Last-layer prediction rigidity."""

    kind: Literal["llpr"] = Field(
        default="llpr", description="last-layer prediction rigidity: no extra training, dimensionless"
    )
    features: LatentFeatures = Field(default=LatentsSection(), description="what the last layer is multiplied with")
    scope: Literal["atoms", "structure"] = Field(
        default="atoms", description="rigidity of each atom's energy, or of the total energy"
    )
    ridge: Positive = Field(default=1e-4, description="regularisation, relative to the mean eigenvalue")
    aggregation: AggregationSetting = AGGREGATION


class MVESection(KindSection):
    """Mean and variance estimation."""

    kind: Literal["mve"] = Field(
        default="mve", description="a network predicts the variance of its own error (mean-variance estimation)"
    )
    quantity: Literal["forces", "energy"] = Field(
        default="forces", description="whose error: forces (kJ/mol/nm) or energy (kJ/mol)"
    )
    hidden: Count = Field(default=16, description="width of that network's hidden layer")
    loss_weight: Positive = Field(default=0.02, description="of its likelihood beside the potential's loss")
    beta: float = Field(default=0.0, ge=0, le=1, description="β of the β-NLL; 0 is the plain likelihood")
    aggregation: AggregationSetting = AGGREGATION


class EvidentialSection(KindSection):
    """Evidential regression."""

    kind: Literal["evidential"] = Field(
        default="evidential", description="a network predicts a normal-inverse-gamma distribution of its own error"
    )
    quantity: Literal["forces", "energy"] = Field(
        default="forces", description="whose error: forces (kJ/mol/nm) or energy (kJ/mol)"
    )
    hidden: Count = Field(default=16, description="width of that network's hidden layer")
    loss_weight: Positive = Field(default=0.1, description="of its likelihood beside the potential's loss")
    part: Literal["epistemic", "aleatoric", "total"] = Field(default="epistemic", description="which variance is meant")
    regularisation: float = Field(default=0.2, ge=0, description="λ: price of evidence where the error is large")
    aggregation: AggregationSetting = AGGREGATION


class DistanceSection(KindSection):
    """Distance to the training set."""

    kind: Literal["distance"] = Field(
        default="distance", description="distance to the training set in feature space, dimensionless"
    )
    features: LatentFeatures = Field(default=LatentsSection(), description="space of the distance")
    metric: Literal["mahalanobis", "knn"] = Field(
        default="mahalanobis", description="mahalanobis (to the mean) or knn (to the k nearest, smoothed)"
    )
    per_element: bool | None = Field(
        default=None, description="only among atoms of the same element; null: where the features are per atom"
    )
    k: Count = Field(default=10, description="neighbours of knn")
    capacity: Count = Field(default=256, description="reference atoms of knn, per element")
    regularisation: Positive = Field(default=1e-5, description="added to the covariance, in units of its mean variance")
    aggregation: AggregationSetting = AGGREGATION


#: Section classes by the name of their kind.
SECTIONS = (
    KernelDensitySection,
    GMMSection,
    CommitteeSection,
    ShallowEnsembleSection,
    LLPRSection,
    MVESection,
    EvidentialSection,
    DistanceSection,
)
NAMES = tuple(section.model_fields["kind"].default for section in SECTIONS)
Kinds = (
    Annotated[KernelDensitySection, Tag("kernel_density")]
    | Annotated[GMMSection, Tag("gmm")]
    | Annotated[CommitteeSection, Tag("committee")]
    | Annotated[ShallowEnsembleSection, Tag("shallow_ensemble")]
    | Annotated[LLPRSection, Tag("llpr")]
    | Annotated[MVESection, Tag("mve")]
    | Annotated[EvidentialSection, Tag("evidential")]
    | Annotated[DistanceSection, Tag("distance")]
    | Other
)
DriverSection = Annotated[
    Kinds, by_kind("kernel_density", NAMES), known_kind(UNCERTAINTIES, "kernel_density", imports=True)
]
JudgeSection = Annotated[Kinds, by_kind("gmm", NAMES), known_kind(UNCERTAINTIES, "gmm", imports=True)]


def driver() -> KernelDensitySection:
    """Return the default driver: the kernel density over soft torsions."""
    return KernelDensitySection()


def judge() -> GMMSection:
    """Return the default judge: the mixture on latents."""
    return GMMSection()
