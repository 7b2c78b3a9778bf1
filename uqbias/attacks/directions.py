"""Adversarial directions of a potential: where its energy error grows fastest, and whether its own forces lead there.

With the errors ΔE = E_app − E_acc and ΔF = F_app − F_acc of a model ("approximate") against an oracle ("accurate"),
the gradient of the squared energy error with respect to the positions is A = ∇(ΔE)² = −2 ΔE ΔF (Cubuk and Schoenholz,
Adversarial forces of physical models). Along A the error grows at first order by |ΔF| per length; along a random
direction by that times a cosine of order 1/√(3N − 6). If cos θ = A·F_app/(|A||F_app|) is positive, a small step along
the model's own force makes the error larger.

**Unit of ε.** Published tables give ε in Å². Here ε is the squared length of the displacement of the whole molecule,
‖δ‖² = Σ_i |δ_i|² = ε, so that displacements along all directions are of one length √ε. ε = 0.5 Å² of a molecule with
22 atoms moves each atom by 0.15 Å.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import trim_mean

from uqbias.attacks.attack_options import DirectionOptions
from uqbias.attacks.relaxation import RelaxationPath, recorded_steps, relax
from uqbias.errors import UqbiasError
from uqbias.model.inference import Evaluated, evaluate_frames
from uqbias.model.model import UncertaintyModel
from uqbias.molecule.frames import Frames
from uqbias.oracles.base import Oracle, OracleError
from uqbias.potentials.prediction import geometry_for
from uqbias.units import ANGSTROM, EV

Array = NDArray[np.float64]
ADVERSARIAL, RANDOM = "adversarial", "random"
#: Frames whose uncertainty is differentiated together.
BLOCK = 64


class Failure(NamedTuple):
    """A geometry without a label or a prediction; ``place``: ``frame``, ``random 2 0.5``, ``relaxation 10``."""

    frame: int
    place: str
    reason: str


@dataclass(frozen=True)
class DirectionResult:
    """Errors of a model at n frames, around them, and along their relaxation.

    Attributes
    ----------
    source : [n] index of the frame.
    start : [3, n] at the frames: E_app − E_acc − zero, kJ/mol; root mean square component of F_app − F_acc, kJ/mol/nm;
        calibrated judge, kJ/mol/nm.
    gradient : [n, N, 3] A, (kJ/mol)²/nm.
    cosines : [n] between A and the model's force (``theta``) and the gradient of each uncertainty, by name; NaN where
        one of the two is zero.
    names : [D] directions: adversarial, random (several times), then the ascents.
    epsilons : [L] Å².
    displaced : [3, n, D, L] as ``start``, at displaced geometries; NaN where there is no label or no direction.
    zero : kJ/mol, subtracted from E_app − E_acc.
    failures : geometries that are missing.
    n_frames : frames given.
    relaxation : path of the relaxation at K steps; None where it was switched off.
    relaxed : [n, K] E_app − E_acc − zero along it, kJ/mol; NaN where there is no label.
    """

    source: NDArray[np.int64]
    start: Array
    gradient: Array
    cosines: dict[str, Array]
    names: list[str]
    epsilons: Array
    displaced: Array
    zero: float
    failures: list[Failure]
    n_frames: int
    relaxation: RelaxationPath | None
    relaxed: Array

    def errors_along(self, kind: str, row: int = 0) -> Array:
        """Sizes of the errors [n, 1 + L] at ε = 0 and each ε, mean over the directions of that kind; NaN if missing.

        Parameters
        ----------
        kind : one of the names.
        row : 0 for energies (kJ/mol), 1 for forces (kJ/mol/nm).
        """
        sizes = np.ma.masked_invalid(np.abs(self.displaced[row][:, [name == kind for name in self.names]]))
        return np.concatenate([np.abs(self.start[row])[:, None], sizes.mean(axis=1).filled(np.nan)], axis=1)


def names_of(options: DirectionOptions) -> list[str]:
    """Name of each of the D directions."""
    return [ADVERSARIAL, *[RANDOM] * options.n_random, *options.ascents]


def n_labels(n_frames: int, options: DirectionOptions) -> int:
    """Most labels that `directions` asks the oracle for."""
    relaxing = len(recorded_steps(options.relax_steps, options.relax_every)) - 1
    return n_frames * (1 + len(names_of(options)) * len(options.epsilons) + relaxing)


def directions(
    model: UncertaintyModel,
    frames: Frames | NDArray[Any],
    oracle: Oracle,
    options: DirectionOptions | None = None,
    *,
    indices: Sequence[int] | None = None,
    seed: int = 0,
    advance: Callable[[int, str], None] = lambda count, note: None,
) -> DirectionResult:
    """Measure the adversarial direction of each frame, and the model's errors along it and along others.

    A geometry that the oracle cannot label, or where the model's prediction is not finite, is left out and reported in
    ``failures``; a frame that has no label itself is left out altogether.

    Parameters
    ----------
    frames : frames, or positions [n, N, 3] nm of a molecule in vacuum, that the model was not trained on. Cells stay
        as they are; a crystal is not turned in its cell.
    oracle : the truth; labels that the frames carry are not used.
    indices : what the frames are called in the result, [n]; 0, 1, ... if None.
    seed : seed of the random directions; those of a frame depend on its index, not on the other frames.
    advance : called with the number of new labels, and a note.

    Raises
    ------
    UqbiasError
        If the oracle is for another molecule, or no frame is left.
    """
    options = options or DirectionOptions()
    cells = frames.cells if isinstance(frames, Frames) else None
    x = np.asarray(frames.positions if isinstance(frames, Frames) else frames, dtype=np.float64)
    _check(model, x, oracle, options)
    labeller = _Labeller(model, oracle, options, advance, cells)
    source = np.arange(len(x)) if indices is None else np.asarray(indices, dtype=np.int64)
    error, force_error, said = labeller.errors(x, [(index, "frame") for index in source.tolist()], np.arange(len(x)))
    good = np.isfinite(error)
    if not good.any():
        first = labeller.failures[0].reason if labeller.failures else "none was given"
        raise UqbiasError(f"none of {len(x)} frames could be labelled: {first}", "check the oracle and the frames")
    x, source, error, force_error = x[good], source[good], error[good], force_error[good]
    cells = labeller.cells = None if cells is None else cells[good]
    zero = 0.0 if isinstance(options.zero, str) else options.zero * EV
    if options.zero == "frames":
        _check_count(len(error))
        zero = float(trim_mean(error, 0.25))
    error = error - zero
    gradient = -2.0 * error[:, None, None] * force_error
    assert said.forces is not None
    other = {"theta": said.forces[good]} | {
        name: uncertainty_gradient(model, x, name, cells) for name in options.ascents
    }
    random = [
        random_directions(frame, options.n_random, np.random.default_rng([seed, index]), turns=cells is None)
        for frame, index in zip(x, source.tolist(), strict=True)
    ]
    ways = [unit(gradient), *np.stack(random, axis=1), *(unit(other[name]) for name in options.ascents)]
    displaced = labeller.displaced(x, source, np.stack(ways, axis=1))
    displaced[0] -= zero
    path, relaxed = labeller.relaxed(x, source, error, zero) if options.relax_steps else (None, np.empty(0))
    return DirectionResult(
        source=source,
        start=np.stack([error, _rms(force_error), said.judge[good]]),
        gradient=gradient,
        cosines={name: cosine(gradient, direction) for name, direction in other.items()},
        names=names_of(options),
        epsilons=np.asarray(options.epsilons, dtype=np.float64),
        displaced=displaced,
        zero=zero,
        failures=labeller.failures,
        n_frames=len(frames),
        relaxation=path,
        relaxed=relaxed,
    )


class _Labeller:
    """Labels and predictions of the same geometries, with a note of what fails."""

    def __init__(
        self,
        model: UncertaintyModel,
        oracle: Oracle,
        options: DirectionOptions,
        advance: Callable[[int, str], None],
        cells: Array | None,
    ) -> None:
        self.model, self.oracle, self.options, self.advance, self.cells = model, oracle, options, advance, cells
        self.numbers = np.array(model.numbers)
        self.failures: list[Failure] = []

    def errors(
        self, positions: Array, places: Sequence[tuple[int, str]], of: NDArray[np.int64]
    ) -> tuple[Array, Array, Evaluated]:
        """E_app − E_acc [m] and F_app − F_acc [m, N, 3], NaN where missing, and what the model says.

        ``of`` [m] says whose cells the positions are in.
        """
        cells = None if self.cells is None else self.cells[of]
        said = evaluate_frames(self.model, Frames(self.numbers, positions, cells=cells), forces=True)
        assert said.forces is not None
        energy, forces = np.full(len(positions), np.nan), np.full(positions.shape, np.nan)
        for at, place in enumerate(places):
            if np.isfinite(said.energy[at]) and np.isfinite(said.forces[at]).all():
                try:
                    label = self.oracle.label(positions[at], None if cells is None else cells[at])
                    energy[at], forces[at] = said.energy[at] - label.energy, said.forces[at] - label.forces
                except OracleError as error:
                    self.failures.append(Failure(*place, str(error)))
            else:
                self.failures.append(Failure(*place, "the model's prediction is not finite"))
            self.advance(1, f"{len(self.failures)} failed" if self.failures else "")
        return energy, forces, said

    def displaced(self, x: Array, source: NDArray[np.int64], along: Array) -> Array:
        """Energy errors, force errors and uncertainties [3, n, D, L] at x + √ε d, each d of ``along`` [n, D, N, 3]."""
        epsilons = self.options.epsilons
        results = np.full((3, *along.shape[:2], len(epsilons)), np.nan)
        lengths = np.sqrt(np.asarray(epsilons, dtype=np.float64)) * ANGSTROM
        titles = [f"{name} {d - 1}" if name == RANDOM else name for d, name in enumerate(names_of(self.options))]
        for n, frame in enumerate(source.tolist()):
            there = np.isfinite(along[n]).all(axis=(1, 2))
            self.failures += [
                Failure(frame, titles[d], "there is no such direction") for d in np.flatnonzero(~there).tolist()
            ]
            geometries = x[n] + lengths[None, :, None, None] * along[n, there][:, None]
            places = [(frame, f"{titles[d]} {epsilon:g}") for d in np.flatnonzero(there) for epsilon in epsilons]
            positions = geometries.reshape(-1, *x.shape[1:])
            energy, forces, said = self.errors(positions, places, np.full(len(positions), n))
            values = np.stack([energy, _rms(forces), np.where(np.isfinite(energy), said.judge, np.nan)])
            results[:, n, there] = values.reshape(3, -1, len(lengths))
        return results

    def relaxed(self, x: Array, source: NDArray[np.int64], error: Array, zero: float) -> tuple[RelaxationPath, Array]:
        """The relaxation, and the energy errors [n, K] along it; a frame that has not moved keeps the one before."""
        path = relax(
            self.model.potential,
            x,
            cells=self.cells,
            steps=self.options.relax_steps,
            every=self.options.relax_every,
            force_limit=self.options.relax_force,
            advance=lambda: self.advance(0, "relaxing"),
        )
        columns = [error]
        for before, now, step in zip(path.positions, path.positions[1:], path.steps[1:], strict=False):
            at = np.flatnonzero((now != before).any(axis=(1, 2)))
            columns.append(columns[-1].copy())
            if len(at):
                places = [(int(source[n]), f"relaxation {step}") for n in at]
                columns[-1][at] = self.errors(now[at], places, at)[0] - zero
            self.advance(len(x) - len(at), "")
        return path, np.stack(columns, axis=1)


def _rms(forces: Array) -> Array:
    """Root mean square component [n] of forces [n, N, 3]."""
    return np.asarray(np.sqrt(np.square(forces).mean(axis=(1, 2))))


def _check_count(n_frames: int) -> None:
    if n_frames == 1:
        cure = "give more frames, or zero none"
        raise UqbiasError("the zero of the energy error cannot be taken from one frame", cure)


def _check(model: UncertaintyModel, x: Array, oracle: Oracle, options: DirectionOptions) -> None:
    numbers = tuple(int(number) for number in model.numbers)
    if x.ndim != 3 or x.shape[1:] != (len(numbers), 3):
        raise UqbiasError(f"frames of shape {x.shape} for a model of {len(numbers)} atoms", "give [n, N, 3] in nm")
    if oracle.numbers is not None and tuple(oracle.numbers) != numbers:
        raise UqbiasError(
            f"the {oracle.kind} oracle is for atoms {list(oracle.numbers)}, the model for {list(numbers)}",
            "give the oracle the structure of the model's molecule, in the same order of atoms",
        )
    if options.zero == "frames":
        # Before any label is paid; frames that are not finite get none.
        _check_count(int(np.isfinite(x).all(axis=(1, 2)).sum()))


def uncertainty_gradient(
    model: UncertaintyModel, positions: NDArray[Any], of: str = "judge", cells: Array | None = None
) -> Array:
    """Gradient [n, N, 3] of the raw judge (``judge``) or driver (``driver``); calibration does not turn it."""
    parts = []
    weights = next(model.potential.parameters())
    whole = torch.as_tensor(positions).to(weights)
    for start in range(0, len(whole), BLOCK):
        x = whole[start : start + BLOCK].clone().requires_grad_()
        geometry = geometry_for(model.potential, x.detach(), None if cells is None else cells[start : start + BLOCK])
        judge, driver, _ = model.uncertainties(x, *model.terms(x, geometry))
        parts.append(torch.autograd.grad((judge if of == "judge" else driver).sum(), x)[0])
    return np.asarray(torch.cat(parts).double().cpu().numpy())


def random_directions(positions: Array, count: int, rng: np.random.Generator, *, turns: bool = True) -> Array:
    """Directions [count, N, 3] of unit length, isotropic among those that neither move nor turn a molecule as a whole.

    A single atom only has directions that move it, so that none is left out. ``positions`` [N, 3] in any unit.
    ``turns``: False for a crystal, which cannot be turned in its cell.
    """
    directions = rng.normal(size=(count, positions.size))
    if len(positions) > 1:
        modes = rigid_modes(positions) if turns else translations(len(positions))
        directions -= (directions @ modes.T) @ modes
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return directions.reshape(count, *positions.shape)


def rigid_modes(positions: Array) -> Array:
    """Orthonormal translations and infinitesimal rotations, [6, 3N]; one rotation less if the atoms are on a line."""
    centred = positions - positions.mean(axis=0)
    size = np.linalg.norm(centred)
    moves = translations(len(positions))
    turns = np.stack([np.cross(axis, centred).ravel() / max(size, 1e-12) for axis in np.eye(3)])
    _, sizes, modes = np.linalg.svd(np.concatenate([moves, turns]), full_matrices=False)
    return np.asarray(modes[sizes > 1e-5])


def translations(n_atoms: int) -> Array:
    """Orthonormal translations [3, 3N] of N atoms."""
    return np.stack([np.tile(axis, n_atoms) / np.sqrt(n_atoms) for axis in np.eye(3)])


def unit(direction: Array) -> Array:
    """Directions [n, N, 3] scaled to unit length over the whole molecule; NaN where a direction is zero."""
    length = np.linalg.norm(direction, axis=(1, 2), keepdims=True)
    return direction / np.where(length > 0, length, np.nan)


def cosine(a: Array, b: Array) -> Array:
    """Cosine [n] between directions [n, N, 3]; NaN where one of them is zero."""
    return np.asarray(np.clip((unit(a) * unit(b)).sum(axis=(1, 2)), -1.0, 1.0))
