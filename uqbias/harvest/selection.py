"""Which of the visited frames are worth a label: windows, diversity, budget, and a reason for each frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.errors import UqbiasError, did_you_mean
from uqbias.harvest.filters import PHYSICAL
from uqbias.units import kt

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
Window = tuple[float | None, float | None]


@dataclass(frozen=True)
class Candidates:
    """Visited frames, n of them.

    Attributes
    ----------
    cv : [n] driver.
    uncertainty : [n] calibrated judge, kJ/mol/nm.
    energy : [n] model energy, kJ/mol.
    features : [n, D] space in which diversity is measured.
    verdicts : n verdicts of the physical filter, empty where physical.
    """

    cv: Array
    uncertainty: Array
    energy: Array
    features: Array
    verdicts: Sequence[str]

    def __len__(self) -> int:
        return len(self.cv)


@dataclass(frozen=True)
class SelectionOptions:
    """How frames are chosen; the fields are those of the campaign file's ``harvest`` section.

    Attributes
    ----------
    kind : name of a strategy in `STRATEGIES`.
    random_share : share of the budget that ``mixed`` fills at random.
    energy_temperature : K, weigh frames by model energy, Boltzmann-like at this temperature; None: no preference.
    minimum_distance : frames nearer than this in feature space count as one.
    cv_window, uncertainty_window : lowest and highest value, None for open.
    """

    kind: str = "mixed"
    random_share: float = 0.5
    energy_temperature: float | None = None
    minimum_distance: float = 1e-3
    cv_window: Window = (None, None)
    uncertainty_window: Window = (None, None)


@dataclass(frozen=True)
class Pool:
    """What a strategy sees: frames that may be taken, all columns of equal length."""

    features: Array
    known: Array
    weight: Array
    uncertainty: Array
    options: SelectionOptions
    random: np.random.Generator

    def nearest_known(self) -> Array:
        """Distance [n] of each frame to the nearest labelled one; infinite without labelled frames."""
        return _nearest(self.features, self.known)


#: A strategy returns (index into the pool, reason) of at most ``budget`` frames, best first.
Strategy = Callable[[Pool, int], list[tuple[int, str]]]


def farthest_point(pool: Pool, budget: int) -> list[tuple[int, str]]:
    """Take again and again the frame farthest from all labelled and taken ones (Gonzalez 1985)."""
    distance = pool.nearest_known()
    distance[~np.isfinite(distance)] = np.finfo(np.float64).max ** 0.25
    preference = np.sqrt(pool.weight)
    picks: list[tuple[int, str]] = []
    while len(picks) < min(budget, len(distance)):
        best = int((distance * preference).argmax())
        if distance[best] <= pool.options.minimum_distance:
            break
        picks.append((best, "farthest point"))
        distance = np.minimum(distance, np.linalg.norm(pool.features - pool.features[best], axis=1))
    return picks


def random_choice(pool: Pool, budget: int) -> list[tuple[int, str]]:
    """Take frames at random, with the energy weights."""
    # Gumbel keys draw without replacement with probabilities proportional to the weights (Yellott 1977).
    keys = np.log(np.maximum(pool.weight, 1e-300)) + pool.random.gumbel(size=len(pool.weight))
    return _distinct(pool, np.argsort(-keys, kind="stable"), budget, "random")


def highest_uncertainty(pool: Pool, budget: int) -> list[tuple[int, str]]:
    """Take the frames of the highest weighted uncertainty."""
    order = np.argsort(-pool.uncertainty * pool.weight, kind="stable")
    return _distinct(pool, order, budget, "highest uncertainty")


def mixed(pool: Pool, budget: int) -> list[tuple[int, str]]:
    """Fill a share of the budget by farthest point, the rest at random."""
    picks = farthest_point(pool, budget - round(pool.options.random_share * budget))
    taken = np.array([index for index, _ in picks], dtype=np.int64)
    rest = np.setdiff1d(np.arange(len(pool.features)), taken)
    remaining = Pool(
        pool.features[rest],
        np.concatenate([pool.known, pool.features[taken]]),
        pool.weight[rest],
        pool.uncertainty[rest],
        pool.options,
        pool.random,
    )
    return picks + [(int(rest[index]), reason) for index, reason in random_choice(remaining, budget - len(picks))]


STRATEGIES: dict[str, Strategy] = {
    "farthest_point": farthest_point,
    "random": random_choice,
    "highest_uncertainty": highest_uncertainty,
    "mixed": mixed,
}


def select(
    candidates: Candidates, known: NDArray[Any], budget: int, options: SelectionOptions, seed: int
) -> tuple[Indices, list[str]]:
    """Choose frames to label.

    Parameters
    ----------
    candidates : visited frames.
    known : [m, D] features of the labelled frames.
    budget : most frames to take.
    options : strategy, windows, weights.
    seed : of the random choices.

    Returns
    -------
    picks : indices of the taken frames, in the order in which they were taken.
    reasons : one a candidate, beginning with ``"taken: "``, ``"refused: "`` or ``"not taken: "``.

    Raises
    ------
    UqbiasError
        If there is no such strategy.
    """
    if options.kind not in STRATEGIES:
        raise UqbiasError(f"unknown selection '{options.kind}'", did_you_mean(options.kind, STRATEGIES))
    reasons = [f"refused: {verdict}" if verdict != PHYSICAL else "" for verdict in candidates.verdicts]
    features = np.asarray(candidates.features, dtype=np.float64)
    known = np.asarray(known, dtype=np.float64).reshape(-1, features.shape[1])
    _refuse_outside(reasons, candidates.cv, options.cv_window, "cv", "")
    _refuse_outside(reasons, candidates.uncertainty, options.uncertainty_window, "uncertainty", " kJ/mol/nm")
    for index in np.flatnonzero(_nearest(features, known) <= options.minimum_distance):
        reasons[index] = reasons[index] or "refused: same as a labelled frame"
    left = np.array([index for index, reason in enumerate(reasons) if not reason], dtype=np.int64)
    picks = np.empty(0, dtype=np.int64)
    if len(left) and budget > 0:
        pool = Pool(
            features[left],
            known,
            _weights(candidates.energy[left], options.energy_temperature),
            candidates.uncertainty[left],
            options,
            np.random.default_rng(seed),
        )
        chosen = STRATEGIES[options.kind](pool, budget)
        picks = left[np.array([index for index, _ in chosen], dtype=np.int64)]
        for pick, (_, reason) in zip(picks, chosen, strict=True):
            reasons[pick] = f"taken: {reason}"
    ending = f"budget of {budget}" if len(picks) >= budget else "same as a taken frame"
    return picks, [reason or f"not taken: {ending}" for reason in reasons]


def _refuse_outside(reasons: list[str], values: Array, window: Window, name: str, unit: str) -> None:
    low, high = window
    for index, value in enumerate(values):
        if reasons[index]:
            continue
        if not np.isfinite(value):
            reasons[index] = f"refused: {name} is not finite"
        elif low is not None and value < low:
            reasons[index] = f"refused: {name} {value:.3g}{unit} below window"
        elif high is not None and value > high:
            reasons[index] = f"refused: {name} {value:.3g}{unit} above window"


def _weights(energy: Array, temperature: float | None) -> Array:
    """Boltzmann-like weights in (0, 1]; energies below the 5 % quantile count as equal: no outlier sets the scale."""
    if temperature is None:
        return np.ones(len(energy))
    excess = np.maximum(energy - np.quantile(energy, 0.05), 0.0)
    return np.asarray(np.exp(-np.minimum(excess / kt(temperature), 600.0)))


def _nearest(features: Array, known: Array) -> Array:
    """Distance [n] to the nearest of ``known``, in blocks so that memory stays small."""
    if not len(known):
        return np.full(len(features), np.inf)
    blocks = [
        np.linalg.norm(features[start : start + 256, None] - known[None], axis=-1).min(axis=1)
        for start in range(0, len(features), 256)
    ]
    return np.concatenate(blocks) if blocks else np.empty(0)


def _distinct(pool: Pool, order: Indices, budget: int, reason: str) -> list[tuple[int, str]]:
    """The first ``budget`` frames in ``order`` that are not the same as an earlier one."""
    distance = pool.nearest_known()
    picks: list[tuple[int, str]] = []
    for index in order:
        if len(picks) >= budget:
            break
        if distance[index] > pool.options.minimum_distance:
            picks.append((int(index), reason))
            distance = np.minimum(distance, np.linalg.norm(pool.features - pool.features[index], axis=1))
    return picks
