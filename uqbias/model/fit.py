"""A model from a data set: the potential, driver and judge, trained, fitted and calibrated on frames held out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch

from uqbias.errors import UqbiasError
from uqbias.model.inference import Evaluated, atoms_with_values, residuals
from uqbias.model.model import UncertaintyModel
from uqbias.model.score import score_model
from uqbias.model.training import Progress, train
from uqbias.molecule.frames import Frames
from uqbias.molecule.protons import with_mobile_protons
from uqbias.molecule.seen import invariants, is_in
from uqbias.molecule.sense import check_molecule, check_sense
from uqbias.molecule.structure import from_distances, whole_frames
from uqbias.molecule.topology import Topology
from uqbias.potentials.base import Potential
from uqbias.potentials.prediction import predict
from uqbias.registry import POTENTIALS, UNCERTAINTIES
from uqbias.settings.schema import CalibrationSettings
from uqbias.uncertainty.auto import driver_story
from uqbias.uncertainty.base import Uncertainty, at_wall
from uqbias.uncertainty.calibration import Calibration, HeldOut
from uqbias.uncertainty.conformal import frames_needed

if TYPE_CHECKING:
    from uqbias.options import KindSection
    from uqbias.settings.schema import Campaign

#: Kind and miscoverage of a calibration unless it is said otherwise.
CALIBRATION = CalibrationSettings()
#: Fewest frames left to train on.
FEWEST = 10


class Split(NamedTuple):
    """Labelled frames by what they are used for."""

    #: the potential and the judge are made from these.
    training: Frames
    #: decide when training stops.
    validation: Frames
    #: seen by nothing but the calibration.
    calibration: Frames


def fit_model(
    frames: Frames,
    topology: Topology | None = None,
    settings: dict[str, Any] | Campaign | None = None,
    *,
    begin: Callable[[], object] | None = None,
    progress: Progress | None = None,
) -> tuple[UncertaintyModel, dict[str, Any]]:
    """Train a potential, fit driver and judge, and calibrate the judge on frames held out.

    Parameters
    ----------
    frames : labelled frames of one molecule; give some tens at least. Where ``training.force_weight`` is 0 they may be
        without forces; the judge is then not calibrated.
    topology : bond graph; guessed from the distances in the first frame if None.
    settings : sections ``potential``, ``training``, ``driver``, ``judge``, ``calibration`` and ``seed`` as in a
        campaign file; what is left out has its default.
    begin : called once the input is found to be in order, before the training step is loaded or compiled.
    progress : told ``(step, steps, last history entry)`` while the potential is trained.

    Returns
    -------
    model : the model.
    facts : JSON-able: frames used, training history, errors on the validation frames, seconds.

    Raises
    ------
    UqbiasError
        If the frames are not labelled, too few, of another molecule than the topology, or make no sense.
    """
    campaign = _settings(settings)
    if frames.forces is None and (frames.energies is None or campaign.training.force_weight):
        raise UqbiasError(
            f"{frames.source} without {'energies' if frames.energies is None else 'forces'}",
            "label them, or set training.force_weight to 0 to learn from the energies alone",
        )
    if topology is not None:
        check_molecule(frames, topology.numbers, "the structure")
    first = None if frames.cells is None else frames.cells[0]
    graph = topology or from_distances(frames.numbers.tolist(), frames.positions[0], first, frames.periodic)
    frames = whole_frames(frames, graph)
    check_sense(frames, topology and with_mobile_protons(topology, frames.positions))
    topology = with_mobile_protons(graph, frames.positions)
    split = _deal(frames, campaign)
    if frames.forces is not None:
        check_calibration_frames(split, campaign.calibration.alpha)
    # Before the training: a wrong option is told at once.
    potential = make_potential(campaign, topology, campaign.seed)
    judge, driver = make_uncertainties(campaign, topology, potential, frames, split.training)
    if begin is not None:
        begin()
    result = train(
        potential,
        split.training,
        split.validation if len(split.validation) else None,
        campaign.training,
        uncertainties=distinct(judge, driver),
        seed=campaign.seed,
        progress=progress,
    )
    model, facts = complete_model(campaign, potential, judge, driver, topology, split, (campaign.seed, campaign.seed))
    assert frames.energies is not None
    lowest = int(frames.energies.argmin())
    model.provenance["reference_positions_nm"] = np.round(frames.positions[lowest], 6).tolist()
    if frames.cells is not None:
        model.provenance["reference_cell_nm"] = np.round(frames.cells[lowest], 6).tolist()
        model.provenance["reference_periodic"] = list(frames.periodic)
    facts |= {
        "steps": result.steps,
        "best_step": result.best_step,
        "wall_s": round(result.seconds, 3),
        "history": result.history,
    }
    if len(split.validation):
        facts["validation"] = score_model(model, split.validation) if len(split.validation) > 1 else {}
    return model, facts


def make_potential(campaign: Campaign, topology: Topology, seed: int) -> Potential:
    """An untrained potential; its committee is as large as driver and judge need where the user gives no size."""
    kinds = [UNCERTAINTIES.get(section.kind) for section in (campaign.driver, campaign.judge)]
    potential: Potential = POTENTIALS.build(
        campaign.potential,
        numbers=tuple(topology.numbers),
        topology=topology,
        seed=seed,
        members_needed=max(kind.default_members for kind in kinds),
    )
    return potential


def make_uncertainties(
    campaign: Campaign, topology: Topology, potential: Potential, start: Frames, training: Frames
) -> tuple[Uncertainty, Uncertainty]:
    """Unfitted judge and driver, one object where the campaign names the same twice.

    Parameters
    ----------
    start : frames from which the driver's features learn what is stiff.
    training : the same for the judge: none of the frames that it is to be calibrated on.
    """

    def make(section: KindSection, start: Frames) -> Uncertainty:
        part: Uncertainty = UNCERTAINTIES.build(section, topology=topology, n_latents=potential.n_latents)
        part.check_members(potential.n_members)
        part.to(next(potential.parameters()).dtype)
        part.prepare(torch.as_tensor(start.positions))
        return part

    judge = make(campaign.judge, training)
    return judge, judge if campaign.driver == campaign.judge else make(campaign.driver, start)


def distinct(judge: Uncertainty, driver: Uncertainty) -> tuple[Uncertainty, ...]:
    """Judge and driver, once if they are one."""
    return (judge,) if judge is driver else (judge, driver)


def complete_model(
    campaign: Campaign,
    potential: Potential,
    judge: Uncertainty,
    driver: Uncertainty,
    topology: Topology,
    split: Split,
    seeds: tuple[int, int],
) -> tuple[UncertaintyModel, dict[str, Any]]:
    """Put a trained potential, judge and driver together: fit both, calibrate, write down where it comes from.

    Parameters
    ----------
    seeds : seeds of the fit of the judge and of the driver.

    Returns
    -------
    model : the model.
    facts : JSON-able counts of frames, the force error on the calibration frames, and what the driver is.
    """
    model = UncertaintyModel(potential, judge, topology, driver=None if judge is driver else driver).eval()
    # The judge must not know the frames that it is calibrated on; the driver is to be pushed away from every frame.
    fit_uncertainty(potential, judge, split.training, seeds[0])
    if driver is not judge:
        fit_uncertainty(potential, driver, Frames.concatenate(list(split)), seeds[1])
    settings = campaign.calibration
    calibrated = {}
    if split.training.forces is not None:  # the judge is calibrated as an error of forces
        options = settings.model_dump(exclude={"fraction"})
        calibrated = calibrate(model, split.calibration, shape_frames=split.validation, **options)
    story = driver_story(campaign.driver, topology)
    model.provenance["driver_choice"] = "; ".join(story)
    counts = {f"{name}_frames".removeprefix("training_"): len(part) for name, part in split._asdict().items()}
    model.provenance.update(**counts, **calibrated, dataset_sha256=_digest(split.training))
    return model, counts | calibrated | {"driver_story": story, "driver_wall": at_wall("wall", driver)}


def fit_uncertainty(potential: Potential, part: Uncertainty, frames: Frames, seed: int) -> None:
    """Fit an uncertainty to frames, with what the potential says of them."""
    part.record_seen(frames)
    forces: Literal["members", "none"] = "members" if part.requires_forces else "none"
    prediction = predict(potential, frames.positions, forces=forces, cells=frames.cells, periodic=frames.periodic)
    positions = torch.as_tensor(frames.positions).to(prediction.energy)
    part.fit(positions, prediction.energy, prediction.latents, prediction.member_forces, seed=seed)


def calibrate(
    model: UncertaintyModel,
    held_out: Frames,
    *,
    alpha: float = CALIBRATION.alpha,
    kind: str = CALIBRATION.kind,
    shape: str = CALIBRATION.shape,
    shape_frames: Frames | None = None,
) -> dict[str, float]:
    """Calibrate a model's judge, per structure and per atom, in place.

    The way to a calibrated model: it refuses frames that potential or judge were made from, however they were moved or
    rounded since.

    Parameters
    ----------
    held_out : labelled frames that neither trained the potential nor stopped its training; 1/α or more.
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
    known = is_in(model.seen, held_out)
    if known.any():
        raise UqbiasError(
            f"{int(known.sum())} of {len(held_out)} calibration frames, the first of them frame "
            f"{int(known.argmax())}, were used to train the model",
            "calibrate on frames that the model has not seen",
        )
    if not len(held_out):
        raise UqbiasError("no frame is left for calibration", "give more frames")
    calibration = Calibration(kind, alpha, model.judge.statistic, shape, model.numbers).to(next(model.parameters()))
    evaluated, errors = residuals(model, held_out)
    raw_atoms = evaluated.raw_atom_uncertainty
    valued = None if raw_atoms is None else atoms_with_values(raw_atoms)

    def known_of(evaluated: Evaluated, errors: np.typing.NDArray[np.float64]) -> HeldOut:
        known = HeldOut(evaluated.raw_judge, np.sqrt(np.square(errors).mean(axis=(1, 2))))
        if evaluated.raw_atom_uncertainty is None or valued is None:
            return known
        atoms = evaluated.raw_atom_uncertainty[:, valued], np.sqrt(np.square(errors[:, valued]).mean(axis=2))
        return HeldOut(*known[:2], *atoms, np.array(model.numbers)[valued])

    learn = shape_frames is not None and len(shape_frames) > 0 and shape != "linear"
    calibration._fit(
        known_of(evaluated, errors), known_of(*residuals(model, shape_frames)) if learn and shape_frames else None
    )
    model.calibration = calibration
    model.calibrated_on = invariants(held_out)
    return {"calibration_force_rmse": float(np.sqrt(np.square(errors).mean()))}


def _settings(settings: dict[str, Any] | Campaign | None) -> Campaign:
    from uqbias.settings.file import check_campaign

    if settings is None or isinstance(settings, dict):
        return check_campaign({"system": {"structure": "-", "start": "-"}, **(settings or {})}, "settings")
    return settings


def _deal(frames: Frames, campaign: Campaign) -> Split:
    """Training, validation and calibration frames at random."""
    n, options = len(frames), campaign.calibration
    # The conformal quantile of n frames exists for n of 1/α or more.
    n_calibration = max(math.ceil(options.fraction * n), frames_needed(options.alpha))
    if frames.forces is None:
        n_calibration = 0
    n_validation = math.ceil(campaign.training.validation_fraction * n)
    if n - n_calibration - n_validation < FEWEST:
        raise UqbiasError(
            f"{n} frames: {n_calibration} are kept for calibration and {n_validation} for validation, "
            f"fewer than {FEWEST} are left to train on",
            f"give {FEWEST + n_calibration + n_validation} frames or more, or raise calibration.alpha",
        )
    order = np.random.default_rng(campaign.seed).permutation(n)
    role = np.zeros(n, dtype=np.int64)
    role[order[:n_validation]] = 1
    role[order[n_validation : n_validation + n_calibration]] = 2
    return split_by_role(frames, role)


def split_by_role(frames: Frames, role: np.typing.NDArray[np.int64]) -> Split:
    """Split frames by role: 0 training, 1 validation, 2 calibration.

    A copy of a frame that is trained on is not held out, whatever its role: it goes to training.
    """
    known = is_in(invariants(frames[role != 2]), frames)
    role = np.where((role == 2) & known, 0, role)
    return Split(*(frames[np.flatnonzero(role == part)] for part in range(3)))


def check_calibration_frames(split: Split, alpha: float) -> None:
    """Refuse, before anything is trained, a split that leaves too few frames for calibration."""
    needed = frames_needed(alpha)
    if len(split.calibration) < needed:
        raise UqbiasError(
            f"{len(split.calibration)} frames are left for calibration, {needed} are needed for alpha {alpha:g} "
            "(a copy of a training frame does not count)",
            "give more frames, or raise calibration.alpha",
        )


def _digest(frames: Frames) -> str:
    content = hashlib.sha256()
    for array in (frames.numbers, frames.positions, frames.energies, frames.forces):
        content.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    return content.hexdigest()
