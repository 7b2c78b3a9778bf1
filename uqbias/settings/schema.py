"""The campaign file's sections that belong to the campaign itself: training, MD, stop, score."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import MinLen
from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny, model_validator

from uqbias.errors import UqbiasError
from uqbias.options import Count, KindSection, Section, of_kind
from uqbias.registry import BIASES, EXECUTORS, ORACLES, POTENTIALS, SAMPLERS, UNCERTAINTIES
from uqbias.settings.bias_checks import Variables, check_biases
from uqbias.settings.harvest_sections import Harvest
from uqbias.settings.md_sections import MD, Guards
from uqbias.settings.oracle_section import OracleSection
from uqbias.settings.system_section import OneOfSeveral, System, one_folder
from uqbias.settings.training_sections import OptionalFile, Training

Dihedral = Annotated[list[int], Field(min_length=4, max_length=4)]


class CalibrationSettings(Section):
    """Held-out frames that turn the judge's u into an expected force error."""

    kind: Literal["conformal", "variance_scaling"] = Field(
        default="conformal",
        description="conformal (a force error that is exceeded with probability alpha) or variance_scaling (the "
        "expected root mean square force error)",
    )
    shape: Literal["linear", "power"] = Field(
        default="power",
        description="how the conformal bound grows with the judge: linear (in proportion) or power (with an exponent "
        "that is fitted to the validation frames)",
    )
    fraction: float = Field(
        default=0.1, gt=0, lt=0.5, description="share of the labelled frames kept from training for calibration"
    )
    alpha: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="tolerated share of frames whose force error is above the calibrated uncertainty",
    )


class Stop(Section):
    """When the campaign ends; may be raised later to continue a finished campaign."""

    rounds: int = Field(default=4, ge=0, description="rounds of exploration after the first training")
    labels: Count | None = Field(
        default=None, description="labelled frames in all, the start frames included; null: no limit"
    )
    judge_below: float | None = Field(
        default=None,
        gt=0,
        description="stop when 95 % of newly visited physical frames have an uncertainty below this, kJ/mol/nm",
    )


class Executors(Section):
    """Where each kind of work is done; may change between two runs in one directory."""

    label: Annotated[KindSection, of_kind(EXECUTORS, "process")] = Field(
        default="process",
        validate_default=True,
        description="labels; kinds: local (in this program, one after another), process (processes of this machine), "
        "slurm, parsl, dask; their keys: `uqbias template --kinds executors`",
    )
    train: Annotated[KindSection, of_kind(EXECUTORS, "local")] = Field(
        default="local", validate_default=True, description="training"
    )
    explore: Annotated[KindSection, of_kind(EXECUTORS, "process")] = Field(
        default="process", validate_default=True, description="explorations, one task for each of md.groups"
    )


Interval = Annotated[list[float], Field(min_length=2, max_length=2)]


#: Intervals of coordinates, at least one.
Box = Annotated[dict[str, Interval], Field(min_length=1)]


class Score(Section):
    """Files that the campaign sees only to be scored against."""

    test_set: OptionalFile = Field(default=None, description="labelled frames for the errors, as `train` reads them")
    surface: OptionalFile = Field(default=None, description="reference free-energy surface for the coverage column")
    coordinates: dict[str, Dihedral] = Field(
        default_factory=dict, description="name of each surface coordinate: the four atom indices of its dihedral"
    )
    basins: dict[str, Box] = Field(
        default_factory=dict,
        description="name of each basin: for each coordinate [from, to] in degrees, going up, through 180 if need be",
    )
    regions: dict[str, Box] = Field(
        default_factory=dict,
        description="name of each region, given as a basin is, for which labels and errors are reported apart",
    )
    display_names: dict[str, str] = Field(
        default_factory=dict,
        description="basins and regions whose name is written differently in figures and tables: {alphaR: α$_R$}",
    )

    @model_validator(mode="after")
    def _named(self) -> Score:
        for what, boxes in (("basin", self.basins), ("region", self.regions)):
            for owner, box in boxes.items():
                for name in box:
                    if name not in self.coordinates:
                        raise ValueError(f"{what} {owner} names '{name}', which is not among the coordinates")
        return self


def _known_sampler(value: Any) -> Any:
    if isinstance(value, dict):
        return of_kind(SAMPLERS).choose(value)
    try:
        SAMPLERS.get(str(value))
    except UqbiasError as error:
        raise ValueError(f"{error.what}; {error.cure}") from None
    return value


class Campaign(Section):
    """A whole campaign."""

    name: Annotated[str, AfterValidator(one_folder)] = Field(
        default="campaign", description="name of the campaign; the default directory is runs/NAME"
    )
    seed: int = Field(default=0, ge=0, description="all random numbers of the campaign derive from this")
    system: System = Field(description="what is simulated")
    systems: Annotated[list[OneOfSeveral], MinLen(2)] | None = Field(
        default=None,
        description="several systems in place of `system`: one model learns all of them. A list, each {name, keys of "
        "system, oracle: {what differs}, test_set}; or a folder of NAME.xyz, start frames, with structures NAME.pdb "
        "beside them where there are any. Each has walkers of its own; labels are shared out",
    )
    together: list[str] | None = Field(
        default=None, description="written by `uqbias run` for each of several systems: the names of all of them"
    )
    oracle: Annotated[OracleSection, of_kind(ORACLES, "openmm")] = Field(
        default="openmm",
        validate_default=True,
        description="what labels cost: energies and forces taken as the truth",
    )
    potential: Annotated[KindSection, of_kind(POTENTIALS, "power_spectrum")] = Field(
        default="power_spectrum", validate_default=True, description="the machine-learned potential"
    )
    training: Training = Field(default=Training(), description="how it is trained")
    driver: Annotated[KindSection, of_kind(UNCERTAINTIES, "kernel_density")] = Field(
        default="auto",
        validate_default=True,
        description="driver: the uncertainty that the bias acts on; it must move slow modes. Options without a kind "
        "are those of kernel_density",
    )
    judge: Annotated[KindSection, of_kind(UNCERTAINTIES, "gmm")] = Field(
        default="gmm",
        validate_default=True,
        description="judge: decides what is harvested, when a walker is stopped, when the campaign ends",
    )
    calibration: CalibrationSettings = Field(default=CalibrationSettings(), description="how the judge is calibrated")
    sampler: SerializeAsAny[Annotated[str | KindSection, BeforeValidator(_known_sampler)]] = Field(
        default="metadynamics",
        description="where candidates come from: metadynamics (MD with the biases below), md (no bias, at "
        "md.temperature), attack (labelled frames distorted uphill in uncertainty), random (the same, at random), pool "
        "(frames of a file), or a uqbias.campaign.samplers.base.Sampler of your own: module:Class, or {kind: "
        "module:Class, options}",
    )
    attack: Annotated[KindSection, of_kind(SAMPLERS, "attack", only=True)] = Field(
        default="attack", validate_default=True, description="sampler attack: adversarial attacks"
    )
    random: Annotated[KindSection, of_kind(SAMPLERS, "random", only=True)] = Field(
        default="random", validate_default=True, description="sampler random: distortions at random"
    )
    pool: Annotated[KindSection, of_kind(SAMPLERS, "pool", only=True)] | None = Field(
        default=None, description="sampler pool: {file: frames.xyz}, frames that are proposed as they are"
    )
    variables: Variables = Field(
        default_factory=dict,
        description="further collective variables for biases to act on, by name: {phi: {kind: dihedral, atoms: [4, 6, "
        "8, 14]}}; kinds: distance, angle, dihedral, rmsd, coordination, position, or module:attribute of your own",
    )
    bias: list[Annotated[KindSection, of_kind(BIASES, "metadynamics")]] = Field(
        default=["parallel_metadynamics", "upper_wall"],
        validate_default=True,
        description="the parts of the bias, which add up; kinds: parallel_metadynamics, metadynamics, opes, eabf, "
        "wtm_eabf, gamd, linear, udd, upper_wall, lower_wall, restraint",
    )
    old_bias: Literal["fresh", "keep"] = Field(
        default="fresh",
        description="the bias after retraining: fresh (begin at zero) or keep (carry the hills of the last round on)",
    )
    md: MD = Field(default=MD(), description="exploration by MD: walkers in one Context sharing one bias")
    guards: Guards = Field(
        default_factory=Guards, description="when a walker is stopped and restarted from a safe frame"
    )
    harvest: Harvest = Field(default_factory=Harvest, description="from visited frames to frames worth a label")
    stop: Stop = Field(default=Stop(), description="when the campaign ends")
    executors: Executors = Field(
        default=Executors(), description="where each kind of work is done; `--executors FILE` stands in for it"
    )
    score: Score | None = Field(
        default=None, description="reference data that only score the campaign; null: no scores"
    )

    @property
    def sampling(self) -> KindSection:
        """The sampler with its options, from the section of its name where it has one."""
        if isinstance(self.sampler, KindSection):
            return self.sampler
        kind = "plumed" if self.md.engine == "plumed" and SAMPLERS.get(self.sampler).walks else self.sampler
        given = {"attack": self.attack, "random": self.random, "pool": self.pool}.get(kind)
        return SAMPLERS.section(kind)(kind=kind) if given is None else given

    @model_validator(mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        """Of several systems the first stands where one is asked for."""
        if not isinstance(value, dict) or not (systems := value.get("systems")):
            return value
        for name in ("system", "variables", "score"):
            if value.get(name):
                where = " (of each system: `test_set`)" if name == "score" else ""
                raise ValueError(f"`{name}`, which is of one molecule, beside `systems`; leave one of them out{where}")
        names = [entry.get("name") for entry in systems if isinstance(entry, dict)] if isinstance(systems, list) else []
        if twice := [name for place, name in enumerate(names) if name in names[:place]]:
            raise ValueError(f"two systems are called '{twice[0]}'; give each a name of its own")
        first = systems[0] if names else {}
        return {**value, "system": {name: first[name] for name in System.model_fields if name in first}}

    @model_validator(mode="before")
    @classmethod
    def _one_executor(cls, value: Any) -> Any:
        """What was one executor for all work is refused with the same in today's words."""
        if isinstance(value, dict) and isinstance(old := value.get("executor"), dict):
            kind, jobs = str(old.get("kind", "process")), old.get("workers", 2)
            kind = {"serial": "local", "thread": "process"}.get(kind, kind)
            now = kind if kind == "local" else f"{{kind: {kind}, jobs: {jobs}}}"
            raise ValueError(  # noqa: TRY004 - pydantic reports no other
                f"`executor` is no key any more; write `executors: {{label: {now}, explore: {now}}}`"
            )
        return value

    @model_validator(mode="before")
    @classmethod
    def _open_window(cls, value: Any) -> Any:
        """The highest value of the driver belongs to walkers that a bias heats; without them any driver will do."""
        if not isinstance(value, dict):
            return value
        sampler, harvest = value.get("sampler", "md"), value.get("harvest", {})
        kind = sampler.get("kind") if isinstance(sampler, dict) else sampler
        try:
            if SAMPLERS.get(str(kind)).walks or not isinstance(harvest, dict) or "driver_window" in harvest:
                return value
        except UqbiasError:  # told by the check of the key itself
            return value
        return {**value, "harvest": {**harvest, "driver_window": [None, None]}}

    @model_validator(mode="after")
    def _one_potential(self) -> Campaign:
        usual = POTENTIALS.section("power_spectrum")(kind="power_spectrum")
        if self.training.model is not None and self.potential != usual:
            raise ValueError("potential and training.model are both given; keep one of them")
        return self

    @model_validator(mode="after")
    def _sampling(self) -> Campaign:
        check_sampler(self)
        return self

    @model_validator(mode="after")
    def _biases(self) -> Campaign:
        check_biases(self.bias, self.variables, self.md.pace, self.md.steps)
        return self


def check_sampler(campaign: Campaign) -> None:
    """See that the sampler has what it needs.

    Raises
    ------
    ValueError
        One line with the key, its value and the cure, for pydantic to report.
    """
    if campaign.sampler == "pool" and campaign.pool is None:
        raise ValueError("sampler = pool without a pool: give the section `pool: {file: frames.xyz}`")
    name = campaign.sampling.kind
    sampler = SAMPLERS.get(name)
    if campaign.md.engine == "plumed" and not sampler.walks:
        raise ValueError(f"sampler = {name} with md.engine = plumed: take engine: openmm, or another sampler")
    if campaign.md.share_hills_every is not None and not sampler.biased:
        raise ValueError(f"sampler = {name}, which makes no hills, with md.share_hills_every: leave the latter out")
    oracle = campaign.oracle.kind
    if (kind := ORACLES.get(oracle)).only_known and not kind.elsewhere and sampler.invents:
        raise ValueError(
            f"oracle.kind = {oracle} with sampler = {name}: the {oracle} has labels for its own frames only; "
            "take sampler: pool"
        )
