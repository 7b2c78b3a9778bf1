"""A model from a data set: the potential, driver and judge, trained, fitted and calibrated on frames held out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from uqbias.errors import UqbiasError
from uqbias.model.inference import atoms_with_values, evaluate_frames, residuals
from uqbias.model.model import UncertaintyModel
from uqbias.model.readouts import fit_uncertainty
from uqbias.model.reference import OF_SYSTEMS, check_told_apart, reference_facts
from uqbias.model.score import score_model
from uqbias.model.several import layout_of, of_system, score_systems
from uqbias.model.splitting import Dealt, Split, check_calibration_frames, deal
from uqbias.model.training import Progress, TrainingResult, train
from uqbias.model.wrapping import prepared
from uqbias.molecule.collection import guessed_topology
from uqbias.molecule.frames import Frames
from uqbias.molecule.protons import with_mobile_protons
from uqbias.molecule.seen import invariants, is_in
from uqbias.molecule.sense import check_molecule, check_sense
from uqbias.molecule.structure import whole_frames
from uqbias.molecule.topology import Topology
from uqbias.potentials.base import Potential
from uqbias.potentials.edges import EdgePotential
from uqbias.registry import POTENTIALS, UNCERTAINTIES
from uqbias.settings.schema import CalibrationSettings
from uqbias.uncertainty.auto import driver_story
from uqbias.uncertainty.base import Uncertainty, at_wall
from uqbias.uncertainty.calibration import Calibration, HeldOut, with_elements

if TYPE_CHECKING:
    from uqbias.options import KindSection
    from uqbias.settings.schema import Campaign

#: Kind and miscoverage of a calibration unless it is said otherwise.
CALIBRATION = CalibrationSettings()


def fit_model(
    frames: Frames | Mapping[str, Frames],
    topology: Topology | Mapping[str, Topology] | None = None,
    settings: dict[str, Any] | Campaign | None = None,
    *,
    potential: Potential | None = None,
    begin: Callable[[], object] | None = None,
    progress: Progress | None = None,
) -> tuple[UncertaintyModel, dict[str, Any]]:
    """Train a potential, fit driver and judge, and calibrate the judge on frames held out.

    Of several systems, molecules or crystals, one potential is trained on all of them; driver and judge are fitted to
    all, and the judge is calibrated on frames of all, of each its share. The model is then one of the first system, and
    `UncertaintyModel.with_topology` gives those of the others. For them ``driver: auto`` is the judge.

    Parameters
    ----------
    frames : labelled frames of one molecule; give some tens at least. Of several systems those of each, by its name.
        Where ``training.force_weight`` is 0 they may be without forces; the judge is then not calibrated. A potential
        that is frozen needs no labels but for that.
    topology : bond graph, or those of some of the systems by name; guessed from the distances in the first frame if
        None.
    settings : sections ``potential``, ``training``, ``driver``, ``judge``, ``calibration`` and ``seed`` as in a
        campaign file; what is left out has its default.
    potential : a frozen one, which is used as it is, in place of one of the settings.
    begin : called once the input is found to be in order, before the training step is loaded or compiled.
    progress : told ``(step, steps, last history entry)`` while the potential is trained.

    Returns
    -------
    model : the model.
    facts : JSON-able: frames used, training history, errors on the validation frames, seconds.

    Raises
    ------
    UqbiasError
        If the frames are not labelled, too few, of another molecule than the topology, or make no sense; of several
        systems also if potential, judge or driver are of one molecule.
    """
    campaign = _settings(settings)
    if campaign.training.kind != "adam":
        raise UqbiasError(f"training.kind = {campaign.training.kind}, outside a campaign", "leave it out")
    sets = {"": frames} if isinstance(frames, Frames) else dict(frames)
    graphs = topology if isinstance(topology, Mapping) else dict.fromkeys(sets, topology)
    several = len(sets) > 1
    trained = potential is None
    graphs = {name: _checked(sets, name, graphs.get(name), campaign, trained) for name in sets}
    check_told_apart(sets, graphs)
    splits = deal(list(sets.values()), campaign)
    systems = {name: Dealt(graphs[name], split) for name, split in zip(sets, splits, strict=True)}
    if all(frames.forces is not None for frames in sets.values()):
        check_calibration_frames(splits, campaign.calibration.alpha)
    # Before the training: a wrong option is told at once.
    layout = layout_of(list(graphs.values()))
    if potential is None:
        potential = make_potential(campaign, layout, campaign.seed)
    else:
        for each in sets.values():
            potential = prepared(potential, each)
        potential = potential.with_numbers(layout.numbers)
    starts = (None, None) if several else (*sets.values(), splits[0].training)
    judge, driver = make_uncertainties(campaign, layout, potential, *starts)
    if several:
        first = next(iter(graphs.values()))
        potential, one = potential.with_numbers(first.numbers), judge is driver
        judge, driver = judge.with_topology(first), driver.with_topology(first)
        driver = judge if one else driver
    if begin is not None:
        begin()
    result = TrainingResult()
    if trained:
        result = train(
            potential,
            [split.training for split in splits],
            [split.validation for split in splits if len(split.validation)] or None,
            campaign.training,
            uncertainties=distinct(judge, driver),
            seed=campaign.seed,
            progress=progress,
        )
    model, facts = complete_model(campaign, potential, judge, driver, systems, (campaign.seed, campaign.seed))
    facts |= {
        "steps": result.steps,
        "best_step": result.best_step,
        "wall_s": round(result.seconds, 3),
        "history": result.history,
    }
    checks = {name: split.validation for name, split in zip(sets, splits, strict=True) if len(split.validation) > 1}
    if any(each.energies is None for each in checks.values()):
        return model, facts
    if several:
        facts["validation"] = score_systems(model, checks) if checks else {}
    elif len(splits[0].validation):
        facts["validation"] = score_model(model, next(iter(checks.values()))) if checks else {}
    return model, facts


def _checked(
    sets: dict[str, Frames], name: str, topology: Topology | None, campaign: Campaign, trained: bool
) -> Topology:
    """Bond graph of a system; its frames are checked, and made whole in ``sets``."""
    frames = sets[name]
    if trained and frames.forces is None and (frames.energies is None or campaign.training.force_weight):
        raise UqbiasError(
            f"{frames.source} without {'energies' if frames.energies is None else 'forces'}",
            "label them, or set training.force_weight to 0 to learn from the energies alone",
        )
    if topology is not None:
        check_molecule(frames, topology.numbers, "the structure")
    graph = topology or guessed_topology(frames)
    sets[name] = frames = whole_frames(frames, graph)
    check_sense(frames, topology and with_mobile_protons(topology, frames.positions))
    return with_mobile_protons(graph, frames.positions)


def _reference(model: UncertaintyModel, frames: Frames) -> dict[str, Any]:
    """`reference_facts` by the energies of the labels, the model's where there are none."""
    if frames.energies is not None:
        return reference_facts(frames, frames.energies)
    return reference_facts(frames, evaluate_frames(of_system(model, frames), frames).energy)


def make_potential(campaign: Campaign, topology: Topology, seed: int) -> Potential:
    """A potential of the settings; its committee is as large as driver and judge need where the user gives no size.

    Raises
    ------
    UqbiasError
        If it is frozen, and the settings have its architecture but not its weights.
    """
    kinds = [UNCERTAINTIES.get(section.kind) for section in (campaign.driver, campaign.judge)]
    potential: Potential = POTENTIALS.build(
        campaign.potential,
        numbers=tuple(topology.numbers),
        topology=topology,
        seed=seed,
        members_needed=max(kind.default_members for kind in kinds),
    )
    if isinstance(potential, EdgePotential) and not potential.has_weights:
        raise UqbiasError(f"potential.kind = {potential.kind} has no weights", "give a model file of `uqbias wrap`")
    return potential


def make_uncertainties(
    campaign: Campaign, topology: Topology, potential: Potential, start: Frames | None, training: Frames | None
) -> tuple[Uncertainty, Uncertainty]:
    """Unfitted judge and driver, one object where the campaign names the same twice.

    Parameters
    ----------
    start : frames from which the driver's features learn what is stiff; None for several systems.
    training : the same for the judge: none of the frames that it is to be calibrated on.
    """

    def make(section: KindSection, start: Frames | None) -> Uncertainty:
        kind = UNCERTAINTIES.get(section.kind)
        if start is None and kind._placed is Uncertainty._placed:
            raise kind.of_one_molecule(section.kind)
        part: Uncertainty = UNCERTAINTIES.build(section, topology=topology, n_latents=potential.n_latents)
        part.check_members(potential.n_members, most=not potential.frozen)
        part.to(next(potential.parameters()).dtype)
        if start is not None:
            part.prepare(torch.as_tensor(start.positions))
        return part

    judge = make(campaign.judge, training)
    of_judge = campaign.driver == campaign.judge or (start is None and campaign.driver.kind == "auto")
    return judge, judge if of_judge else make(campaign.driver, start)


def distinct(judge: Uncertainty, driver: Uncertainty) -> tuple[Uncertainty, ...]:
    """Judge and driver, once if they are one."""
    return (judge,) if judge is driver else (judge, driver)


def complete_model(
    campaign: Campaign,
    potential: Potential,
    judge: Uncertainty,
    driver: Uncertainty,
    systems: Mapping[str, Dealt],
    seeds: tuple[int, int],
) -> tuple[UncertaintyModel, dict[str, Any]]:
    """Put a trained potential, judge and driver together: fit both, calibrate, write down where it comes from.

    Parameters
    ----------
    potential, judge, driver : of the first of the systems.
    systems : the systems and their frames, by name.
    seeds : seeds of the fit of the judge and of the driver.

    Returns
    -------
    model : the model.
    facts : JSON-able counts of frames, the force error on the calibration frames, and what the driver is.
    """
    dealt = list(systems.values())
    topology, splits = dealt[0].topology, [system.split for system in dealt]
    model = UncertaintyModel(potential, judge, topology, driver=None if judge is driver else driver).eval()
    if len(dealt) > 1:
        model.systems = {name: system.topology for name, system in systems.items()}
    graphs = [system.topology for system in dealt]
    # The judge must not know the frames that it is calibrated on; the driver is to be pushed away from every frame.
    fit_uncertainty(potential, judge, [split.training for split in splits], seeds[0], graphs)
    if driver is not judge:
        fit_uncertainty(potential, driver, [Frames.concatenate(list(split)) for split in splits], seeds[1], graphs)
    settings = campaign.calibration
    calibrated = {}
    if all(split.training.forces is not None for split in splits):  # the judge is calibrated as an error of forces
        options = settings.model_dump(exclude={"fraction"})
        held_out, shape_frames = ([split[role] for split in splits if len(split[role])] for role in (2, 1))
        calibrated = calibrate(model, held_out, shape_frames=shape_frames, **options)
    story = driver_story(campaign.driver, topology, len(dealt))
    model.provenance["driver_choice"] = "; ".join(story)
    names = [f"{name}_frames".removeprefix("training_") for name in Split._fields]
    each = [dict(zip(names, map(len, split), strict=True)) for split in splits]
    counts = {name: sum(of_one[name] for of_one in each) for name in names}
    model.provenance.update(**counts, **calibrated, dataset_sha256=_digest([split.training for split in splits]))
    references = [_reference(model, Frames.concatenate(list(split))) for split in splits]
    model.provenance.update(references[0])
    if len(dealt) > 1:
        model.provenance["frames_of_systems"] = dict(zip(systems, each, strict=True))
        model.provenance[OF_SYSTEMS] = dict(zip(systems, references, strict=True))
    return model, counts | calibrated | {"driver_story": story, "driver_wall": at_wall("wall", driver)}


def calibrate(
    model: UncertaintyModel,
    held_out: Frames | Sequence[Frames],
    *,
    alpha: float = CALIBRATION.alpha,
    kind: str = CALIBRATION.kind,
    shape: str = CALIBRATION.shape,
    shape_frames: Frames | Sequence[Frames] | None = None,
) -> dict[str, float]:
    """Calibrate a model's judge, per structure and per atom, in place.

    The way to a calibrated model: it refuses frames that potential or judge were made from, however they were moved or
    rounded since. The bound is one for all systems, and holds for frames drawn from all of them as those held out are.

    Parameters
    ----------
    held_out : labelled frames that neither trained the potential nor stopped its training; 1/α or more. Of several
        systems a list, with the frames of one system each.
    alpha, kind, shape : see `uqbias.uncertainty.calibration.Calibration`.
    shape_frames : labelled frames that the shape is fitted to: none of ``held_out``, so that the bound on top keeps its
        guarantee, and none that the judge was fitted to. Those that stopped the training serve: their errors are a
        little small, but how errors grow with u is theirs. None: the exponent is that which is expected.

    Returns
    -------
    dict
        ``calibration_force_rmse``, kJ/mol/nm.

    Raises
    ------
    UqbiasError
        If a frame was seen in training, it is not known what the model was made from, or the frames are too few.
    """
    if not len(model.seen):
        raise UqbiasError(
            "the model does not know which frames it was made from, so no frame can be shown to be held out",
            "call model.potential.record_seen(positions) with its training frames",
        )
    sets, shapes = ([given] if isinstance(given, Frames) else list(given or []) for given in (held_out, shape_frames))
    for frames in sets:
        known = is_in(model.seen, frames)
        if known.any():
            raise UqbiasError(
                f"{int(known.sum())} of {len(frames)} calibration frames, the first of them frame "
                f"{int(known.argmax())}, were used to train the model",
                "calibrate on frames that the model has not seen",
            )
    if not sum(map(len, sets)):
        raise UqbiasError("no frame is left for calibration", "give more frames")
    elements = with_elements(model.numbers, model.potential.elements) if model.systems else model.numbers
    calibration = Calibration(kind, alpha, model.judge.statistic, shape, elements).to(next(model.parameters()))
    values, errors = _held_out(model, sets)
    learn = shape != "linear" and sum(map(len, shapes)) > 0
    calibration._fit(values, _held_out(model, shapes)[0] if learn else None)
    model.calibration = calibration
    model.calibrated_on = np.concatenate([invariants(frames) for frames in sets])
    return {"calibration_force_rmse": float(np.sqrt(np.square(errors).mean()))}


def _held_out(model: UncertaintyModel, sets: Sequence[Frames]) -> tuple[HeldOut, np.typing.NDArray[np.float64]]:
    """What a calibration learns from frames, each of one system; and the errors of all force components."""
    columns: list[tuple[np.typing.NDArray[Any], ...]] = []
    components = []
    for frames in sets:
        twin = of_system(model, frames)
        evaluated, errors = residuals(twin, frames)
        components.append(errors.ravel())
        row: tuple[np.typing.NDArray[Any], ...] = (
            evaluated.raw_judge,
            np.sqrt(np.square(errors).mean(axis=(1, 2))),
        )
        if (raw := evaluated.raw_atom_uncertainty) is not None:
            valued = atoms_with_values(raw)
            of_atoms = np.sqrt(np.square(errors[:, valued]).mean(axis=2))
            numbers = np.broadcast_to(frames.numbers[valued], of_atoms.shape)
            row += (raw[:, valued].ravel(), of_atoms.ravel(), numbers.ravel())
        columns.append(row)
    return HeldOut(*(np.concatenate(column) for column in zip(*columns, strict=True))), np.concatenate(components)


def _settings(settings: dict[str, Any] | Campaign | None) -> Campaign:
    from uqbias.settings.file import check_campaign

    if settings is None or isinstance(settings, dict):
        return check_campaign({"system": {"structure": "-", "start": "-"}, **(settings or {})}, "settings")
    return settings


def _digest(sets: Sequence[Frames]) -> str:
    content = hashlib.sha256()
    for frames in sets:
        for array in (frames.numbers, frames.positions, frames.energies, frames.forces):
            content.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    return content.hexdigest()
