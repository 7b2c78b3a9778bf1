"""Choice of the visited frames that are worth a label: windows, diversity, budget, a reason for each frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.errors import UqbiasError, did_you_mean
from uqbias.molecule.frames import Frames
from uqbias.molecule.physical import PHYSICAL
from uqbias.molecule.sameness import NearFeatures, NoSameness, Sameness, by_rmsd, nearest
from uqbias.settings.harvest_sections import SelectionOptions
from uqbias.units import kt

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
Window = Sequence[float | None]

#: Atoms for which ``energy_temperature`` is meant: at any temperature the energy of N atoms spreads as √N.
FEW_ATOMS = 22
#: Two frames are of one conformer if no soft torsion differs by more than 60°, which is this chord of the unit circle.
CONFORMER = 1.0


@dataclass(frozen=True)
class Candidates:
    """Visited frames, n of them.

    Attributes
    ----------
    driver : [n] driver.
    judge : [n] calibrated judge, kJ/mol/nm.
    energy : [n] model energy, kJ/mol.
    features : [n, D] space in which diversity is measured.
    verdicts : n verdicts of the physical filter, empty where physical.
    positions : frames, or positions [n, N, 3] nm in vacuum; needed only where duplicates are told by their RMSD.
    conformers : [n, T, 2] unit vectors of the soft torsions; None where there are none.
    n_atoms : N.
    """

    driver: Array
    judge: Array
    energy: Array
    features: Array
    verdicts: Sequence[str]
    positions: Frames | Array | None = None
    conformers: Array | None = None
    n_atoms: int = FEW_ATOMS

    def __len__(self) -> int:
        return len(self.driver)


@dataclass(frozen=True)
class CandidatePool:
    """What a strategy sees: frames that may be taken, all columns of equal length.

    Attributes
    ----------
    features : [n, D].
    known : [m, D] features of the labelled frames.
    weight : [n] preference for low energies, in (0, 1].
    judge : [n] kJ/mol/nm.
    energy : [n] kJ/mol.
    same : tells which frames are the same.
    options : as given.
    random : for the choices at random.
    conformers : [n, T, 2] as of `Candidates`.
    new : [n] whether no labelled frame is of the frame's conformer.
    """

    features: Array
    known: Array
    weight: Array
    judge: Array
    energy: Array
    same: Sameness
    options: SelectionOptions
    random: np.random.Generator
    conformers: Array | None
    new: NDArray[np.bool_]


class Picks:
    """The frames taken so far, best first, and those that are still open: neither taken nor the same as a taken one."""

    def __init__(self, pool: CandidatePool, budget: int) -> None:
        self.pool, self.budget = pool, budget
        self.taken: list[tuple[int, str]] = []
        self.open = np.ones(len(pool.features), dtype=bool)

    @property
    def left(self) -> int:
        """How many more may be taken; 0 once no frame is open."""
        return min(self.budget - len(self.taken), int(self.open.sum()))

    def take(self, index: int, reason: str) -> None:
        """Take a frame that is open."""
        self.taken.append((index, reason))
        self.open &= ~self.pool.same.as_candidate(index)

    def give_back(self, place: int) -> None:
        """Take the pick at ``place`` back."""
        del self.taken[place]
        self.open[:] = True
        for index, _ in self.taken:
            self.open &= ~self.pool.same.as_candidate(index)


#: A strategy takes up to ``left`` frames more.
Strategy = Callable[[Picks], None]


def farthest_point(picks: Picks) -> None:
    """Take again and again the frame farthest from all labelled and taken ones (Gonzalez 1985)."""
    _take_farthest(picks, picks.left)


def random_choice(picks: Picks) -> None:
    """Take frames at random, with the energy weights."""
    pool = picks.pool
    # Gumbel keys draw without replacement with probabilities proportional to the weights (Yellott 1977).
    keys = np.log(np.maximum(pool.weight, 1e-300)) + pool.random.gumbel(size=len(pool.weight))
    _take_in_order(picks, np.argsort(-keys, kind="stable"), "random")


def highest_uncertainty(picks: Picks) -> None:
    """Take the frames of the highest weighted uncertainty."""
    pool = picks.pool
    _take_in_order(picks, np.argsort(-pool.judge * pool.weight, kind="stable"), "highest uncertainty")


def cluster(picks: Picks) -> None:
    """Take from each of as many k-means clusters as there are frames to take the one of the highest weighted
    uncertainty, so that many alike frames of high uncertainty count once (Schwalbe-Koda et al., Nat. Commun. 12, 5104,
    2021, cluster attacks likewise).
    """
    from sklearn.cluster import KMeans

    pool = picks.pool
    preference = pool.judge * pool.weight
    # A second pass fills what clusters without a frame of their own have left.
    while picks.left:
        rows = np.flatnonzero(picks.open)
        count = min(picks.left, len(np.unique(pool.features[rows], axis=0)))
        seed = int(pool.random.integers(2**31))
        group = KMeans(count, n_init=1, random_state=seed).fit_predict(pool.features[rows])
        best = [members[preference[members].argmax()] for part in range(count) if len(members := rows[group == part])]
        _take_in_order(picks, np.array(sorted(best, key=lambda row: -preference[row])), "best of its cluster")


def cover_conformers(picks: Picks) -> None:
    """See to it that no new conformer stays without a label, each by its frame of lowest energy.

    Conformers are taken by that energy. Once the budget is spent, a frame gives way of whose neighbours each is of the
    conformer of another taken frame, too; where there is none, the budget is too small.
    """
    pool = picks.pool
    conformers = pool.conformers
    if conformers is None:
        return
    alike = [same_conformer(conformers, conformers[index]) for index, _ in picks.taken]
    for index in np.argsort(pool.energy, kind="stable"):
        if not (pool.new[index] and picks.open[index]) or any(row[index] for row in alike):
            continue
        if not picks.left:
            count = np.sum(alike, axis=0)
            spare = [place for place, row in enumerate(alike) if (count[row & pool.new] > 1).all()]
            if not spare:
                return
            picks.give_back(spare[-1])
            del alike[spare[-1]]
        picks.take(int(index), "new conformer")
        alike.append(same_conformer(conformers, conformers[index]))


def largest_cluster(picks: Picks) -> None:
    """Take again and again, of the frames nearest to one labelled or taken frame, the farthest: in the cluster with the
    largest sum of squared distances, weighted by energy (LCMD; Holzmüller et al., JMLR 24, 164, 2023).
    """
    pool = picks.pool
    square, centre = np.full(len(pool.features), np.inf), np.zeros(len(pool.features), dtype=np.int64)
    centres = [*pool.known] or [pool.features.mean(axis=0)]
    preference = _preference(pool)
    for number in range(len(centres) + picks.left):
        if number >= len(centres):
            if not picks.left:
                break
            score = np.where(picks.open, square * preference + np.finfo(np.float64).tiny, 0.0)
            largest = centre == np.bincount(centre, weights=score).argmax()
            best = int(np.where(picks.open & largest, score, -1.0).argmax())
            picks.take(best, "largest cluster")
            centres.append(pool.features[best])
        away = np.square(pool.features - centres[number]).sum(axis=1)
        centre[away < square] = number
        square = np.minimum(square, away)


STRATEGIES: dict[str, Strategy] = {
    "farthest_point": farthest_point,
    "random": random_choice,
    "highest_uncertainty": highest_uncertainty,
    "cluster": cluster,
    "largest_cluster": largest_cluster,
}


def select(
    candidates: Candidates,
    known: NDArray[Any],
    budget: int,
    options: SelectionOptions,
    seed: int,
    *,
    driver_window: Window = (None, None),
    judge_window: Window = (None, None),
    known_positions: Frames | NDArray[Any] | None = None,
    known_conformers: NDArray[Any] | None = None,
    superpose: bool = True,
) -> tuple[Indices, list[str]]:
    """Choose frames to label.

    Parameters
    ----------
    candidates : visited frames.
    known : [m, D] features of the labelled frames.
    budget : most frames to take.
    options : strategy and weights, as in a campaign file.
    seed : seed of the random choices.
    driver_window, judge_window : lowest and highest value of a frame that may be taken, None for open.
    known_positions : the labelled frames, or their positions [m, N, 3] nm in vacuum, for duplicates by RMSD.
    known_conformers : [m, T, 2] unit vectors of their soft torsions; where given, no new conformer stays without a
        label while the budget allows.
    superpose : take the RMSD after superposition; False for particles in a field that is fixed in space.

    Returns
    -------
    picks : indices of the taken frames, in the order in which they were taken.
    reasons : one a candidate, beginning with ``"taken: "``, ``"refused: "`` or ``"not taken: "``.

    Raises
    ------
    UqbiasError
        If there is no such strategy, or duplicates are to be told by RMSD and there are no positions.
    """
    if options.kind not in STRATEGIES:
        raise UqbiasError(f"unknown selection '{options.kind}'", did_you_mean(options.kind, STRATEGIES))
    reasons = [f"refused: {verdict}" if verdict != PHYSICAL else "" for verdict in candidates.verdicts]
    features = np.asarray(candidates.features, dtype=np.float64)
    known = np.asarray(known, dtype=np.float64).reshape(-1, features.shape[1])
    _refuse_outside(reasons, candidates.driver, driver_window, "driver", "")
    _refuse_outside(reasons, candidates.judge, judge_window, "judge", " kJ/mol/nm")
    left = _open(reasons)

    def sameness() -> Sameness:
        return _sameness(candidates, known, known_positions, options, superpose, left)

    same = sameness()
    for index in left[same.as_known()]:
        reasons[index] = "refused: same as a labelled frame"
    left = _open(reasons)
    picks = np.empty(0, dtype=np.int64)
    if len(left) and budget > 0:
        conformers = None if known_conformers is None or candidates.conformers is None else candidates.conformers[left]
        new = np.full(len(left), conformers is not None)
        for labelled in () if conformers is None or known_conformers is None else known_conformers:
            new &= ~same_conformer(conformers, labelled)
        pool = CandidatePool(
            features[left],
            known,
            _weights(candidates.energy[left], options.energy_temperature, candidates.n_atoms),
            candidates.judge[left],
            candidates.energy[left],
            sameness(),
            options,
            np.random.default_rng(seed),
            conformers,
            new,
        )
        chosen = Picks(pool, budget - round(options.thermal_share * budget))
        STRATEGIES[options.kind](chosen)
        cover_conformers(chosen)
        chosen.budget = budget
        random_choice(chosen)
        picks = left[np.array([index for index, _ in chosen.taken], dtype=np.int64)]
        for pick, (_, reason) in zip(picks, chosen.taken, strict=True):
            reasons[pick] = f"taken: {reason}"
    ending = f"budget of {budget}" if len(picks) >= budget else "same as a taken frame"
    return picks, [reason or f"not taken: {ending}" for reason in reasons]


def _open(reasons: list[str]) -> Indices:
    """Candidates that nothing was said against."""
    return np.array([index for index, reason in enumerate(reasons) if not reason], dtype=np.int64)


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


def same_conformer(conformers: Array | None, one: Array) -> NDArray[np.bool_]:
    """Which of ``conformers`` [n, T, 2] differ from ``one`` [T, 2] by 60° at most in every torsion, [n]."""
    assert conformers is not None
    same: NDArray[np.bool_] = (np.linalg.norm(conformers - one, axis=2) <= CONFORMER).all(axis=1)
    return same


def _weights(energy: Array, temperature: float | None, n_atoms: int) -> Array:
    """Boltzmann-like weights in (0, 1]; energies below the 5 % quantile count as equal: no outlier sets the scale.

    Above 22 atoms the scale grows with √N, as the spread of the energies of one conformer does: else the mere thermal
    noise of a large molecule decides, and what is new in it is starved.
    """
    if temperature is None:
        return np.ones(len(energy))
    excess = np.maximum(energy - np.quantile(energy, 0.05), 0.0)
    return np.asarray(np.exp(-np.minimum(excess / (kt(temperature) * max(1.0, n_atoms / FEW_ATOMS) ** 0.5), 600.0)))


def _sameness(
    candidates: Candidates,
    known: Array,
    known_positions: Frames | NDArray[Any] | None,
    options: SelectionOptions,
    superpose: bool,
    rows: Indices,
) -> Sameness:
    """Tells which of the candidates ``rows`` are the same."""
    if options.duplicates == "none":
        return NoSameness(len(rows))
    if options.duplicates == "features":
        return NearFeatures(np.asarray(candidates.features, dtype=np.float64)[rows], known, options.minimum_distance)
    if candidates.positions is None or known_positions is None:
        raise UqbiasError("duplicates by RMSD without positions", "give those of candidates and labelled frames")
    return by_rmsd(candidates.positions[rows], known_positions, options.minimum_rmsd, superpose=superpose)


def _preference(pool: CandidatePool) -> Array:
    """Factor of a squared distance: energy weight, and judge to the power that the options give."""
    power = pool.options.judge_power
    return pool.weight * np.maximum(pool.judge, 0.0) ** (2 * power) if power else pool.weight


def _take_farthest(picks: Picks, count: int) -> None:
    pool = picks.pool
    distance = nearest(pool.features, pool.known)
    for index, _ in picks.taken:
        distance = np.minimum(distance, np.linalg.norm(pool.features - pool.features[index], axis=1))
    distance[~np.isfinite(distance)] = np.finfo(np.float64).max ** 0.25
    preference = np.sqrt(_preference(pool))
    for _ in range(count):
        if not picks.left:
            break
        best = int(np.where(picks.open, distance * preference, -1.0).argmax())
        picks.take(best, "farthest point")
        distance = np.minimum(distance, np.linalg.norm(pool.features - pool.features[best], axis=1))


def _take_in_order(picks: Picks, order: Indices, reason: str) -> None:
    """Take open frames in this order."""
    for index in order:
        if not picks.left:
            break
        if picks.open[index]:
            picks.take(int(index), reason)
