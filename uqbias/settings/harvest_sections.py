"""The campaign file's section for the way from candidates to labels: windows, physical filters, selection."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from uqbias.molecule.limits import Limits
from uqbias.options import Count, NotNegative, Positive, Section

#: A value of the driver, or its ``wall``: where its kind takes a geometry for broken.
DriverValue = float | Literal["wall"] | None


class SelectionOptions(Section):
    """Which of the frames that passed the filters are labelled."""

    kind: Literal["farthest_point", "random", "highest_uncertainty", "cluster", "largest_cluster"] = Field(
        default="farthest_point",
        description="farthest_point, largest_cluster (the farthest of the frames nearest to one label, where these are "
        "many and far), random, highest_uncertainty or cluster (of each of as many k-means clusters as labels the "
        "frame of highest uncertainty)",
    )
    space: Literal["driver_features", "latents"] = Field(
        default="driver_features",
        description="where distances are measured: driver_features (the driver's) or latents (mean over atoms)",
    )
    judge_power: NotNegative = Field(
        default=0.0,
        description="farthest_point and largest_cluster multiply a frame's distance by its judge to this power: the "
        "errors of far frames count, too",
    )
    thermal_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the budget for thermal frames: drawn at random from the visited ones, with the energy "
        "weights, whatever the kind",
    )
    energy_temperature: float | None = Field(
        default=3000.0,
        gt=0,
        description="K; weigh frames by their model energy, Boltzmann-like at this temperature, times the root of N/22 "
        "for N > 22 atoms; null: no preference",
    )
    duplicates: Literal["features", "rmsd", "none"] = Field(
        default="features",
        description="how two frames are found to be the same, of which one is enough: features (their distance in "
        "that space), rmsd (after superposition, all atoms) or none",
    )
    minimum_distance: float = Field(
        default=1e-3, ge=0, description="two frames nearer than this in that space are the same frame"
    )
    minimum_rmsd: float = Field(
        default=0.01, ge=0, description="nm; with duplicates: rmsd, two frames of a smaller RMSD are the same frame"
    )


class Harvest(Limits):
    """The way from visited frames to frames that are worth a label."""

    labels_per_round: Count = Field(default=50, description="labels bought in a round, at most")
    driver_window: list[DriverValue] = Field(
        default=[None, "wall"],
        min_length=2,
        max_length=2,
        description="[lowest, highest] value of the driver CV; wall: the driver's own; null: open, as is the "
        "default of the samplers attack, random and pool, whatever the driver",
    )
    judge_window: list[float | None] = Field(
        default=[None, None],
        min_length=2,
        max_length=2,
        description="[lowest, highest] calibrated uncertainty, kJ/mol/nm; null: open",
    )
    label_energy_window: Positive = Field(
        default=300.0,
        description="oracle energy above the mean of the start frames beyond which a label is rejected, kJ/mol; ten "
        "times as far below it, too",
    )
    label_force_limit: Positive = Field(
        default=15000.0, description="largest force component of an accepted label, kJ/mol/nm"
    )
    selection: SelectionOptions = Field(
        default=SelectionOptions(), description="which of the remaining candidates are taken"
    )
