"""Labelled frames dealt out: to train on, to stop the training, to calibrate; of several systems each its share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from uqbias.errors import UqbiasError
from uqbias.molecule.frames import Frames
from uqbias.molecule.seen import invariants, is_in
from uqbias.molecule.topology import Topology
from uqbias.uncertainty.conformal import frames_needed

if TYPE_CHECKING:
    from uqbias.settings.schema import Campaign

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


class Dealt(NamedTuple):
    """A system of a data set, and its labelled frames."""

    topology: Topology
    split: Split


def deal(sets: Sequence[Frames], campaign: Campaign) -> list[Split]:
    """Training, validation and calibration frames at random, of each system its share."""
    n, options = sum(map(len, sets)), campaign.calibration
    # The conformal quantile of n frames exists for n of 1/α or more.
    n_calibration = max(math.ceil(options.fraction * n), frames_needed(options.alpha))
    if any(frames.forces is None for frames in sets):
        n_calibration = 0
    n_validation = math.ceil(campaign.training.validation_fraction * n)
    if n - n_calibration - n_validation < FEWEST:
        raise UqbiasError(
            f"{n} frames: {n_calibration} are kept for calibration and {n_validation} for validation, "
            f"fewer than {FEWEST} are left to train on",
            f"give {FEWEST + n_calibration + n_validation} frames or more, or raise calibration.alpha",
        )
    random = np.random.default_rng(campaign.seed)
    orders = [random.permutation(len(frames)) for frames in sets]
    # How far each frame is in the order of its system: those that come first are held out. Few of one leave it none.
    progress = np.concatenate([(np.arange(len(frames)) + 0.5) / len(frames) for frames in sets])
    rank = np.lexsort((random.random(n), progress))
    roles = np.zeros(n, dtype=np.int64)
    roles[rank[:n_validation]] = 1
    roles[rank[n_validation : n_validation + n_calibration]] = 2
    splits = []
    for frames, order, dealt in zip(sets, orders, np.split(roles, np.cumsum([*map(len, orders)])[:-1]), strict=True):
        role = np.zeros(len(frames), dtype=np.int64)
        role[order] = dealt
        splits.append(split_by_role(frames, role))
    return splits


def split_by_role(frames: Frames, role: NDArray[np.int64]) -> Split:
    """Split frames by role: 0 training, 1 validation, 2 calibration.

    A copy of a frame that is trained on is not held out, whatever its role: it goes to training.
    """
    known = is_in(invariants(frames[role != 2]), frames)
    role = np.where((role == 2) & known, 0, role)
    return Split(*(frames[np.flatnonzero(role == part)] for part in range(3)))


def check_calibration_frames(splits: Sequence[Split], alpha: float) -> None:
    """Refuse, before anything is trained, splits of all systems that leave too few frames for calibration."""
    needed, left = frames_needed(alpha), sum(len(split.calibration) for split in splits)
    if left < needed:
        raise UqbiasError(
            f"{left} frames are left for calibration, {needed} are needed for alpha {alpha:g} "
            "(a copy of a training frame does not count)",
            "give more frames, or raise calibration.alpha",
        )
