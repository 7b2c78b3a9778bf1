"""The campaign file's sections for exploration by MD: walkers, jumps, guards."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from uqbias.molecule.limits import CoordinationLimits
from uqbias.options import Count, InputFile, NotNegative, Positive, Runner, Section
from uqbias.settings.harvest_sections import DriverValue

#: Share of the walkers of a campaign that jump.
JUMPING = 0.5


class Jumps(Section):
    """Walkers placed every so often on a labelled frame that was moved over barriers and relaxed under the model."""

    share: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description=f"share of the walkers that jump, rounded down; null: {JUMPING:g} in a campaign without engine "
        "plumed, else 0; 0: none",
    )
    every: Count = Field(default=500, description="steps between two jumps of a walker, rounded up to the pace")
    turns: Count = Field(default=6, description="soft bonds turned, rings flipped and protons moved in a jump, at most")
    relax: Count = Field(default=50, description="steps that a moved frame is relaxed under the model")

    def of(self, walkers: int) -> int:
        """How many of ``walkers`` jump: the last ones."""
        return int((self.share or 0.0) * walkers)


class MD(Section):
    """The exploration by MD: walkers of the molecule in one Context, sharing one bias."""

    walkers: Count = Field(default=8, description="copies of the molecule that move in one Context")
    groups: Count = Field(
        default=1, description="groups of walkers that explore at the same time, each with a Context of its own"
    )
    share_hills_every: Count | None = Field(
        default=None,
        description="steps between exchanges of hills among groups, a multiple of pace that divides steps: they fill "
        "one bias; for metadynamics and parallel_metadynamics; null: each group has a bias of its own",
    )
    temperature: Positive = Field(default=300.0, description="temperature in K")
    timestep_fs: Positive = Field(
        default=0.5, description="time step in fs; 0.5 with free hydrogens, 2 with constraints"
    )
    friction_per_ps: Positive = Field(default=1.0, description="friction of the Langevin thermostat, 1/ps")
    pressure: float | None = Field(
        default=None,
        description="pressure in bar of walkers in cells, of which each moves by itself, under the bias too; null: "
        "constant volume",
    )
    barostat: Literal["isotropic", "anisotropic"] = Field(
        default="isotropic", description="how cells move: isotropic, or anisotropic (each lattice vector by itself)"
    )
    steps: Count = Field(default=10000, description="steps of every walker in a round; a multiple of pace")
    seconds_per_label: float | None = Field(
        default=None,
        ge=0,
        description="what a label costs, s: from round 2 on MD is 5 or 25 times as long as md.steps where that takes "
        "no longer than the labels of a round; null: as the last round's took, if 10 s each or more; 0: always "
        "md.steps, on any machine",
    )
    pace: Count = Field(default=50, description="steps between looks at the walkers: hills, guards")
    observe_every: Count = Field(default=100, description="steps between frames kept as candidates; a multiple of pace")
    trajectory_every: Count = Field(default=200, description="steps between trajectory frames; a multiple of pace")
    start_from: Literal["start", "labelled", "sparse"] = Field(
        default="sparse",
        description="where walkers begin, and begin again, and what is distorted: start (the start frames), labelled "
        "(any labelled frame) or sparse (labelled frames, those where the driver is high more often)",
    )
    jumps: Jumps = Field(
        default=Jumps(),
        description="walkers placed on frames that MD takes long to reach: turned about soft bonds and relaxed",
    )
    constraints: Literal["none", "hbonds", "bonds", "bonds_angles"] = Field(
        default="none",
        description="held rigid during exploration: none, hbonds, bonds, or "
        "bonds_angles (angles about one centre: along a chain they are refused)",
    )
    engine: Literal["openmm", "torch", "plumed"] = Field(
        default="openmm",
        description="openmm, torch (the same dynamics on tensors, which stay on a GPU; no constraints) or plumed "
        "(the biases of the PLUMED input below in place of `bias:`; needs a PLUMED kernel)",
    )
    plumed: Annotated[str | None, InputFile()] = Field(
        default=None,
        description="PLUMED input for engine plumed: EXTRACV NAME=driver is the driver, NAME=judge the judge; each "
        "walker runs it in a folder of its own",
    )
    platform: str = Field(default="auto", description="OpenMM platform: auto, Reference, CPU, CUDA")
    backend: Literal["auto", "torchforce", "pythonforce"] = Field(
        default="auto", description="how the model enters OpenMM: torchforce, pythonforce, or auto"
    )
    runner: Runner = Field(
        default="auto",
        description="how the fused graph is run: aoti (needs a C++ compiler), torchscript, eager, or auto",
    )

    @model_validator(mode="after")
    def _multiples(self) -> MD:
        if (self.engine == "plumed") != (self.plumed is not None):
            raise ValueError(f"engine = {self.engine} with plumed = {self.plumed}: give both engine: plumed and a file")
        if self.engine != "openmm" and self.constraints != "none":
            raise ValueError(f"engine = {self.engine} with constraints = {self.constraints}: take constraints: none")
        if self.engine == "torch" and self.platform not in {"auto", "CUDA"}:
            raise ValueError(f"engine = torch with platform = {self.platform}: take platform: auto, or CUDA for a GPU")
        if self.engine == "torch" and self.backend != "auto":
            raise ValueError(f"engine = torch with backend = {self.backend}: take backend: auto")
        if self.pressure is not None:
            for name, value, cure in (("engine", "plumed", "openmm"), ("backend", "torchforce", "pythonforce")):
                if getattr(self, name) == value:
                    raise ValueError(f"{name} = {value} with pressure = {self.pressure:g}: take {name}: {cure}")
        if self.engine == "plumed" and self.jumps.share:
            raise ValueError(f"engine = plumed with jumps.share = {self.jumps.share:g}: take share: 0")
        for name in ("steps", "observe_every", "trajectory_every"):
            value = getattr(self, name)
            if value % self.pace:
                raise ValueError(f"{name} = {value} is not a multiple of pace = {self.pace}")
        return self

    @model_validator(mode="after")
    def _sharing(self) -> MD:
        if (every := self.share_hills_every) is not None:
            if self.groups == 1:
                raise ValueError(f"share_hills_every = {every} with groups = 1: give 2 groups or more, or leave it out")
            if self.engine == "plumed":
                raise ValueError(
                    f"share_hills_every = {every} with engine = plumed: leave it out; PLUMED's METAD shares by itself"
                )
            if every % self.pace or self.steps % every:
                raise ValueError(
                    f"share_hills_every = {every} with pace = {self.pace} and steps = {self.steps}: take a multiple of "
                    "pace that divides steps"
                )
        return self

    def in_campaign(self, multiple: int = 1) -> MD:
        """The section with the share of walkers that jump where it names none.

        Parameters
        ----------
        multiple : how many times as long the MD is, and as long between frames that are kept.
        """
        share = self.jumps.share
        if share is None:
            share = 0.0 if self.engine == "plumed" else JUMPING
        longer = {name: multiple * getattr(self, name) for name in ("steps", "observe_every", "trajectory_every")}
        return self.model_copy(update={"jumps": self.jumps.model_copy(update={"share": share}), **longer})


class Guards(Section):
    """When a walker is stopped, recorded and restarted from a labelled frame."""

    driver_cap: DriverValue = Field(
        default="wall",
        description="value of the driver CV; wall: the driver's own, which grows with the torsions; null: no cap",
    )
    judge_cap: float | None = Field(default=None, gt=0, description="calibrated uncertainty, kJ/mol/nm; null: no cap")
    bond_low: float = Field(default=0.7, gt=0, lt=1, description="shortest bond, as a multiple of the reference length")
    bond_high: float = Field(default=1.4, gt=1, description="longest bond, as a multiple of the reference length")
    stiff_torsion: float = Field(
        default=60.0,
        gt=0,
        le=180,
        description="degrees that a stiff torsion (amide, ester, double bond, flat ring) may turn",
    )
    chirality: bool = Field(default=True, description="stop a walker whose stereocentre flips")
    closest: NotNegative = Field(
        default=0.65,
        description="closest approach in a crystal, glass or surface, for each pair of elements, as a share of the "
        "smallest distance in labelled frames",
    )
    coordination: list[CoordinationLimits] = Field(
        default=[], description="limits of the coordination, each {centre: Si, neighbour: O, within: 0.22, least: 2}"
    )
