"""Batched gradient ascent of adversarial attacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from uqbias.attacks.attack_options import AttackOptions
from uqbias.attacks.base import DistortionSpace
from uqbias.attacks.objective import AttackGraph, Objective, Point
from uqbias.attacks.usable_frames import farthest, inliers, radius, reference_frames
from uqbias.errors import UqbiasError
from uqbias.model.inference import Evaluated, evaluate_frames
from uqbias.model.model import UncertaintyModel
from uqbias.molecule.frames import Frames
from uqbias.registry import SPACES

Array = NDArray[np.float64]
#: Adam's decay rates and the number that keeps its denominator above zero (Kingma and Ba, ICLR 2015).
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
#: kJ/mol beyond the range of the training energies at which an energy is no longer one: 1000 eV.
ENERGY_LIMIT = 1e5
#: What the model says of a geometry.
SAID = ("energy", "driver", "judge")
#: ‖δ‖ from this share of the bound on counts as being on it.
ON_BOUND = 0.999


@dataclass(frozen=True)
class AttackResult:
    """Results of n attacks, or of n random distortions.

    Attributes
    ----------
    positions : [n, N, 3] nm; of an attack the geometry of the highest ln L that it reached. Finite, unless the start
        frame itself was not.
    energy : [n] kJ/mol.
    driver, judge : [n] driver and judge.
    log_likelihood : [n] ln L; NaN for random distortions.
    norm : [n] ‖δ‖ in the unit of the space.
    iterations : [n] steps made.
    status : [n] state of each attack: ``converged``, ``iterations`` (all of them made), ``bound`` (the geometry kept
        lies on it), ``random``, or ``failed: reason``, where the last good geometry is kept, or the start frame.
    trajectory : for attacks ``iteration`` [K], ``positions`` [K, n, N, 3], ``energy``, ``judge``,
        ``log_likelihood`` [K, n]; where an attack has stopped, its last good values. Empty if not kept.
    delta : [n, D] distortion of the geometry kept.
    runner : what evaluated the graph.
    """

    positions: Array
    energy: Array
    driver: Array
    judge: Array
    log_likelihood: Array
    norm: Array
    iterations: NDArray[np.int64]
    status: list[str]
    trajectory: dict[str, Array]
    delta: Array
    runner: str = ""

    @property
    def failed(self) -> NDArray[np.bool_]:
        """[n] whether each attack failed."""
        return np.array([status.startswith("failed") for status in self.status], dtype=bool)


def attack(
    model: UncertaintyModel,
    frames: Frames | NDArray[Any],
    options: AttackOptions | None = None,
    *,
    training_energies: Array | None = None,
    variables: Mapping[str, Any] | None = None,
    seed: int = 0,
    advance: Callable[[int, str], None] | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    cache_dir: Path | None = None,
) -> AttackResult:
    """Attack each frame once: distort it so that uncertainty rises as far as its energy allows.

    Adam climbs ln L of `uqbias.attacks.objective.Objective` from δ ~ N(0, noise²), for all frames together: ``batch``
    rows of one graph, in which a waiting attack takes the row of one that has stopped. What goes wrong in one attack
    ends it, is written into its status, and does not touch the others.

    Parameters
    ----------
    frames : frames, or positions [n, N, 3] nm in vacuum; for several attacks on a frame give it several times. Cells
        stay as they are.
    training_energies : [m] kJ/mol, model energies that Q sums over; those of the frames if None.
    variables : collective variables by name, as in a campaign file, for the space ``variables``.
    seed : seed of the noise; attack i of n begins at the same δ, whatever the batch.
    advance : called with (iterations done, note) while it runs; n · iterations in all, since an attack that stops
        early counts in full.
    dtype, device : where the graph computes; Adam and the constants of ln L are float64 on the host.
    cache_dir : folder of compiled graphs.

    Raises
    ------
    UqbiasError
        If the frames are not of the model's molecule, none of them can be evaluated, or an option is wrong.
    """
    options = AttackOptions() if options is None else options
    frames = frames if isinstance(frames, Frames) else Frames(np.array(model.numbers), np.asarray(frames))
    x = checked_positions(model, frames.positions)
    finite = np.asarray(np.isfinite(x).all(axis=(1, 2)))
    if not finite.any():
        raise UqbiasError(f"none of the {len(x)} frames is finite", "give frames with positions")
    frames = Frames(frames.numbers, x, cells=frames.cells, periodic=frames.periodic)
    start = evaluate_frames(model, replace(frames, positions=np.where(finite[:, None, None], x, x[finite.argmax()])))
    whole = radius(x) <= farthest(x)  # false for NaN
    said = [getattr(start, name) for name in SAID]
    sound = np.asarray(whole & np.isfinite(said).all(axis=0))
    # One energy of -1e30 would leave no digits to ln L, and no limit to what counts as an energy.
    energies = inliers(
        start.energy[sound] if training_energies is None else np.asarray(training_energies), ENERGY_LIMIT
    )
    sought = getattr(start, options.of)[sound]
    objective = Objective.from_frames(energies, sought, options.temperature, options.of, options.scale)
    reference = x[sound][reference_frames(model.topology, x[sound]).argmax()]
    space: DistortionSpace = SPACES.build(
        options.space, topology=model.topology, reference=reference, collective_variables=variables
    )
    graph = AttackGraph(
        model,
        space,
        # Machine code is kept for the next time, which may have more frames.
        min(options.batch, len(x)) if options.runner in ("eager", "torchscript") else options.batch,
        frames[sound],
        objective,
        runner=options.runner,
        dtype=dtype,
        device=device,
        cache_dir=cache_dir,
    )
    ascent = _Ascent(frames, sound, start, objective, space, graph, options, energies, seed)
    ascent.run(advance)
    return ascent.result()


def checked_positions(model: UncertaintyModel, positions: NDArray[Any]) -> Array:
    """Positions [n, N, 3] of the model's molecule in float64, n > 0."""
    x = np.asarray(positions, dtype=np.float64)
    if x.ndim != 3 or not len(x) or x.shape[1:] != (len(model.numbers), 3):
        raise UqbiasError(
            f"frames of shape {x.shape} for a model of {len(model.numbers)} atoms", "give [n, N, 3] in nm, n > 0"
        )
    return x


class _Ascent:
    """State of all attacks, and of the rows of the graph that some of them have."""

    def __init__(
        self,
        frames: Frames,
        sound: NDArray[np.bool_],
        start: Evaluated,
        objective: Objective,
        space: DistortionSpace,
        graph: AttackGraph,
        options: AttackOptions,
        energies: Array,
        seed: int,
    ) -> None:
        self.options, self.objective, self.space, self.graph = options, objective, space, graph
        self.base = x = frames.positions
        self.cells = frames.cells
        n, D = len(x), space.n_coordinates
        noise = space.default_noise if options.noise is None else options.noise
        self.rate = space.default_learning_rate if options.learning_rate is None else options.learning_rate
        self.delta = noise * np.random.default_rng(seed).standard_normal((n, D))
        self._project(np.arange(n))
        self.mean, self.square = np.zeros((n, D)), np.zeros((n, D))
        self.done = np.zeros(n, dtype=np.int64)
        # The best geometry reached, at first the start frame, which holds until an attack has a good one.
        self.kept = np.zeros((n, D))
        self.best = {"positions": x.copy()} | {name: getattr(start, name).copy() for name in SAID}
        with np.errstate(invalid="ignore"):
            self.start_likelihood = self.likelihood(self.best)
        self.mark, self.marked = np.full(n, -np.inf), np.zeros(n, dtype=np.int64)
        self.lowest, self.highest = energies.min() - ENERGY_LIMIT, energies.max() + ENERGY_LIMIT
        self.reach, size = farthest(x), radius(x)
        self.status = ["" if good else "failed: the model cannot evaluate the start frame" for good in sound]
        for i in np.flatnonzero(size > self.reach):
            self.status[i] = f"failed: the start frame is blown up: an atom {size[i]:.3g} nm from the centre"
        for i in np.flatnonzero(~np.isfinite(x).all(axis=(1, 2))):
            self.status[i] = "failed: the start frame is not finite"
            for name in SAID:
                self.best[name][i] = np.nan
        every = options.keep_every
        self.iteration = np.arange(0, options.iterations + 1, every) if every else np.empty(0, dtype=np.int64)
        self.trajectory = {
            name: np.broadcast_to(value, (len(self.iteration), *value.shape)).copy()
            for name, value in {**self.best, "log_likelihood": self.start_likelihood}.items()
            if name != "driver"
        }
        self.best["log_likelihood"] = np.full(n, -np.inf)

    def likelihood(self, points: Mapping[str, Array]) -> Array:
        return self.objective(points[self.options.of], points["energy"])

    def run(self, advance: Callable[[int, str], None] | None) -> None:
        """Make all attacks."""
        waiting = [i for i, status in enumerate(self.status) if not status]
        skipped = (len(self.status) - len(waiting)) * self.options.iterations
        if advance is not None and skipped:
            advance(skipped, "")
        width = self.graph.width
        rows, waiting = waiting[:width], waiting[width:]
        filler = rows[0] if rows else 0
        while rows:
            # A row without an attack repeats the first frame, undistorted.
            idle = width - len(rows)
            filled = rows + [filler] * idle
            point = self.graph(
                self.base[filled],
                np.concatenate([self.delta[rows], np.zeros((idle, self.space.n_coordinates))]),
                None if self.cells is None else self.cells[filled],
            )
            before = self.done[rows].sum()
            counted = np.array(rows)
            self._take(counted, point)
            going = [i for i in rows if not self.status[i]]
            self._step(np.array(going, dtype=np.int64), point.gradient[[rows.index(i) for i in going]])
            if advance is not None:
                stopped = [i for i in rows if self.status[i]]
                note = f"{sum(map(bool, self.status))} of {len(self.status)} attacks done"
                left = sum(self.options.iterations - int(self.done[i]) for i in stopped)
                advance(int(self.done[rows].sum() - before) + left, note)
            free = width - len(going)
            rows, waiting = going + waiting[:free], waiting[free:]

    def _take(self, rows: NDArray[np.int64], point: Point) -> None:
        """Judge the points just evaluated: keep the best, stop what has failed or converged."""
        points = {name: getattr(point, name)[: len(rows)] for name in ("positions", *SAID)}
        points["energy"] = points["energy"] + self.graph.energy_shift
        with np.errstate(invalid="ignore", over="ignore"):
            points["log_likelihood"] = self.likelihood(points)
        for place, i in enumerate(rows):
            here = {name: values[place] for name, values in points.items()}
            if reason := self._fault(i, here, point.gradient[place]):
                self.status[i] = f"failed: {reason}"
                continue
            # Later iterations overwrite what follows this one.
            first = np.searchsorted(self.iteration, self.done[i])
            for name, way in self.trajectory.items():
                way[first:, i] = here[name]
            if here["log_likelihood"] > self.best["log_likelihood"][i]:
                for name, value in here.items():
                    self.best[name][i] = value
                self.kept[i] = self.delta[i]
            if here["log_likelihood"] > self.mark[i] + self.options.tolerance:
                self.mark[i], self.marked[i] = here["log_likelihood"], self.done[i]
            converged = self.done[i] - self.marked[i] >= self.options.patience
            if converged or self.done[i] >= self.options.iterations:
                self.status[i] = "iterations" if self.done[i] >= self.options.iterations else "converged"
                bound = self.options.bound
                if bound is not None and self._norms(self.kept[i : i + 1])[0] >= ON_BOUND * bound:
                    self.status[i] = "bound"

    def _fault(self, i: int, point: Mapping[str, Any], gradient: Array) -> str:
        """Why a point is not a good one; empty if it is."""
        tests = {
            "the geometry is not finite": np.isfinite(point["positions"]).all(),
            "the molecule flew apart": radius(point["positions"][None])[0] <= self.reach[i],
            "the energy is not finite": np.isfinite(point["energy"]),
            f"an energy out of range: {point['energy']:.3g} kJ/mol": self.lowest <= point["energy"] <= self.highest,
            "the uncertainty is not finite": np.isfinite([point["judge"], point["driver"]]).all(),
            "the gradient is not finite": np.isfinite(gradient).all() and np.isfinite(point["log_likelihood"]),
        }
        return next((reason for reason, passed in tests.items() if not passed), "")

    def _step(self, rows: NDArray[np.int64], gradient: Array) -> None:
        """One ascent step of Adam for some attacks, each with its own count."""
        if not len(rows):
            return
        self.done[rows] += 1
        count = self.done[rows][:, None]
        self.mean[rows] = BETA1 * self.mean[rows] + (1 - BETA1) * gradient
        self.square[rows] = BETA2 * self.square[rows] + (1 - BETA2) * gradient**2
        mean, square = self.mean[rows] / (1 - BETA1**count), self.square[rows] / (1 - BETA2**count)
        self.delta[rows] += self.rate * mean / (np.sqrt(square) + EPSILON)
        self._project(rows)

    def _project(self, rows: NDArray[np.int64]) -> None:
        """Bring δ that are beyond the bound back onto it."""
        if self.options.bound is not None:
            norm = self._norms(self.delta[rows])
            self.delta[rows] *= np.minimum(1.0, self.options.bound / np.maximum(norm, 1e-300))[:, None]

    def _norms(self, delta: Array) -> Array:
        return np.asarray(self.space.norm(torch.from_numpy(delta)).detach().numpy())

    def result(self) -> AttackResult:
        """Results of the attacks."""
        likelihood = self.best["log_likelihood"]
        self.best["log_likelihood"] = np.where(np.isneginf(likelihood), self.start_likelihood, likelihood)
        trajectory = self.trajectory | {"iteration": self.iteration.astype(np.float64)} if len(self.iteration) else {}
        return AttackResult(
            **self.best,
            norm=self._norms(self.kept),
            iterations=self.done,
            status=self.status,
            trajectory=trajectory,
            delta=self.kept,
            runner=self.graph.runner,
        )
