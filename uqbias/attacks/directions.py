"""Adversarial directions of a potential: where its energy error grows fastest, and whether its own forces lead there.

With the errors ΔE = E_app − E_acc and ΔF = F_app − F_acc of a model ("approximate") against an oracle ("accurate"),
the gradient of the squared energy error with respect to the positions is

    A = ∇(E_acc − E_app)² = 2 (E_acc − E_app)(F_app − F_acc)

(Cubuk and Schoenholz, Adversarial forces of physical models). Along A the error grows at first order by |ΔF| per
length; along a random direction by that times a cosine of order 1/√(3N − 6). The model's own dynamics find A or do not
according to cos θ = A·F_app/(|A||F_app|): if it is positive, a small step along the model's force makes the error
larger.

**Unit of ε.** Published tables give ε in Å². Here ε is the squared length of the displacement of the whole molecule,
‖δ‖² = Σ_i |δ_i|² = ε, so that displacements along all directions are of one length √ε. (Reading ε as a factor of A
itself would have given each frame a length of its own, longest where the model is worst, and a unit with energies in
it.) ε = 0.5 Å² of a molecule with 22 atoms moves each atom by 0.15 Å.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import trim_mean

from uqbias.attacks.relaxation import recorded_steps, relax
from uqbias.attacks.vectors import (
    ASCENTS,
    adversarial_gradient,
    cosine,
    random_directions,
    rms,
    uncertainty_gradient,
    unit,
)
from uqbias.errors import UqbiasError, did_you_mean
from uqbias.model.inference import evaluate_frames
from uqbias.model.model import UncertaintyModel
from uqbias.oracles.base import Oracle, OracleError
from uqbias.units import ANGSTROM

Array = NDArray[np.float64]
ADVERSARIAL, RANDOM = "adversarial", "random"


@dataclass(frozen=True)
class DirectionOptions:
    """What is measured.

    Attributes
    ----------
    epsilons : squared lengths of the displacements, Å².
    n_random : random directions for each frame.
    ascents : uncertainties along whose gradient the frames are displaced too: ``judge`` (the judge), ``driver`` (the
        driver). It is the way that an attack without labels can go.
    zero : what counts as no energy error. A potential's energy has an arbitrary constant: ``frames`` takes it from the
        frames themselves, as the mean of E_app − E_acc over the middle half of them, which a few bad frames do not
        move; ``none`` trusts the model's; a number, kJ/mol, is the E_app − E_acc of a reference of your own.
    relax_steps : steps of relaxation on the model's energy from each frame; 0 for none.
    relax_every : steps of relaxation between two labels; the first step is always labelled.
    relax_force : eV/Å, largest force on an atom of a relaxed frame.
    """

    epsilons: Sequence[float] = (0.01, 0.03, 0.1, 0.3, 0.5)
    n_random: int = 8
    ascents: Sequence[str] = ("judge",)
    zero: str | float = "frames"
    relax_steps: int = 100
    relax_every: int = 10
    relax_force: float = 0.05


class Failure(NamedTuple):
    """A geometry without a label, or without a prediction."""

    #: index of the frame it comes from.
    frame: int
    #: ``frame``, ``adversarial 0.5``, ``random 2 0.5``, ``relaxation 10``.
    place: str
    reason: str


@dataclass(frozen=True)
class Relaxation:
    """Errors along the relaxation of n frames on the model's energy, at K steps.

    Attributes
    ----------
    steps : [K].
    energy_error : [n, K] E_app − E_acc − zero, kJ/mol; NaN where there is no label.
    distance : [n, K] ‖x − x0‖ of the whole molecule, nm.
    converged, failed : [n] as in `relaxation.RelaxationPath`.
    """

    steps: NDArray[np.int64]
    energy_error: Array
    distance: Array
    converged: NDArray[np.bool_]
    failed: NDArray[np.bool_]


@dataclass(frozen=True)
class DirectionResult:
    """Errors of a model at n frames, around them, and along their relaxation.

    Attributes
    ----------
    source : [n] index of the frame.
    energy_error : [n] E_app − E_acc − zero, kJ/mol.
    force_error : [n] root mean square force component of F_app − F_acc, kJ/mol/nm.
    gradient : [n, N, 3] A, (kJ/mol)²/nm.
    norm : [n] |A|, (kJ/mol)²/nm.
    cos_theta : [n] between A and the model's force; NaN where one of them is zero.
    cos_ascent : [n] between A and the gradient of each uncertainty, by name.
    judge : [n] calibrated judge, kJ/mol/nm.
    names : the D directions: adversarial, random (several times), then the ascents.
    epsilons : [L] Å².
    displaced_energy_error, displaced_force_error, displaced_uncertainty : [n, D, L] as above, at displaced geometries;
        NaN where there is no label or no direction.
    zero : kJ/mol, subtracted from E_app − E_acc.
    failures : geometries that are missing.
    n_frames : frames given.
    relaxation : None where it was switched off.
    """

    source: NDArray[np.int64]
    energy_error: Array
    force_error: Array
    gradient: Array
    norm: Array
    cos_theta: Array
    cos_ascent: dict[str, Array]
    judge: Array
    names: tuple[str, ...]
    epsilons: Array
    displaced_energy_error: Array
    displaced_force_error: Array
    displaced_uncertainty: Array
    zero: float
    failures: list[Failure] = field(default_factory=list)
    n_frames: int = 0
    relaxation: Relaxation | None = None

    @property
    def kinds(self) -> list[str]:
        """Distinct names of the directions."""
        return list(dict.fromkeys(self.names))

    def errors_along(self, kind: str, what: str = "energy") -> Array:
        """Sizes of the errors [n, 1 + L] at ε = 0 and each ε, mean over the directions of that kind; NaN if missing.

        Parameters
        ----------
        kind : of `kinds`.
        what : ``energy`` (kJ/mol) or ``force`` (kJ/mol/nm).
        """
        at_frame, displaced = {
            "energy": (self.energy_error, self.displaced_energy_error),
            "force": (self.force_error, self.displaced_force_error),
        }[what]
        sizes = np.abs(displaced[:, [name == kind for name in self.names]])
        known = np.isfinite(sizes)
        count = known.sum(axis=1)
        mean = np.where(count > 0, np.where(known, sizes, 0.0).sum(axis=1) / np.maximum(count, 1), np.nan)
        return np.concatenate([np.abs(at_frame)[:, None], mean], axis=1)


def n_labels(n_frames: int, options: DirectionOptions) -> int:
    """Most labels that `directions` asks the oracle for."""
    displaced = (1 + options.n_random + len(options.ascents)) * len(options.epsilons)
    relaxing = len(recorded_steps(options.relax_steps, options.relax_every)) - 1 if options.relax_steps else 0
    return n_frames * (1 + displaced + relaxing)


def directions(
    model: UncertaintyModel,
    positions: NDArray[Any],
    oracle: Oracle,
    options: DirectionOptions | None = None,
    *,
    indices: Sequence[int] | None = None,
    seed: int = 0,
    advance: Callable[[int, str], None] | None = None,
) -> DirectionResult:
    """Measure the adversarial direction of each frame, and the model's errors along it and along others.

    A geometry that the oracle cannot label, or where the model's prediction is not finite, is left out and reported in
    ``failures``; a frame that has no label itself is left out altogether.

    Parameters
    ----------
    positions : [n, N, 3] nm; give frames that the model was not trained on.
    oracle : the truth. Its labels are asked for here, whatever labels the frames carry.
    indices : what the frames are called in the result, [n]; 0, 1, ... if None.
    seed : of the random directions; those of a frame depend on its index, not on the other frames.
    advance : told the number of new labels, and a note.

    Raises
    ------
    UqbiasError
        If the options are not valid, the oracle is for another molecule, or no frame is left.
    """
    options = options or DirectionOptions()
    _check(model, positions, oracle, options)
    labeller = _Labeller(model, oracle, advance or (lambda count, note: None))
    x = np.asarray(positions, dtype=np.float64)
    named = np.arange(len(x)) if indices is None else np.asarray(indices, dtype=np.int64)
    error, force_error, found = labeller.errors(x, [(index, "frame") for index in named.tolist()])
    good = np.isfinite(error)
    source = named[good]
    if not len(source):
        first = labeller.failures[0].reason if labeller.failures else "none was given"
        raise UqbiasError(f"none of {len(x)} frames could be labelled: {first}", "check the oracle and the frames")
    zero = _zero(error[good], options.zero)
    x, error, force_error = x[good], error[good] - zero, force_error[good]
    gradient = adversarial_gradient(error, force_error)
    ascents = {name: uncertainty_gradient(model, x, name) for name in options.ascents}
    along = [unit(gradient)]
    along += list(_random_units(x, source, options.n_random, seed))
    along += [unit(ascents[name]) for name in options.ascents]
    names = (ADVERSARIAL, *[RANDOM] * options.n_random, *options.ascents)
    displaced = _displaced(labeller, x, source, np.stack(along, axis=1), names, options.epsilons)
    relaxation = _relaxed(labeller, x, source, error, zero, options) if options.relax_steps else None
    return DirectionResult(
        source=source,
        energy_error=error,
        force_error=rms(force_error),
        gradient=gradient,
        norm=np.linalg.norm(gradient, axis=(1, 2)),
        cos_theta=cosine(gradient, found.forces[good]),
        cos_ascent={name: cosine(gradient, ascent) for name, ascent in ascents.items()},
        judge=found.judge[good],
        names=names,
        epsilons=np.asarray(options.epsilons, dtype=np.float64),
        displaced_energy_error=displaced[0] - zero,
        displaced_force_error=displaced[1],
        displaced_uncertainty=displaced[2],
        zero=zero,
        failures=labeller.failures,
        n_frames=len(positions),
        relaxation=relaxation,
    )


class _Labeller:
    """Asks model and oracle for the same geometries, and counts what fails."""

    def __init__(self, model: UncertaintyModel, oracle: Oracle, advance: Callable[[int, str], None]) -> None:
        self.model, self.oracle, self.advance = model, oracle, advance
        self.failures: list[Failure] = []

    def errors(self, positions: Array, places: Sequence[tuple[int, str]]) -> tuple[Array, Array, _Found]:
        """E_app − E_acc [m] and F_app − F_acc [m, N, 3], NaN where missing, and what the model says."""
        found = evaluate_frames(self.model, positions, forces=True)
        assert found.forces is not None
        energy, forces = np.full(len(positions), np.nan), np.full(positions.shape, np.nan)
        for at, (frame, place) in enumerate(places):
            if np.isfinite(found.energy[at]) and np.isfinite(found.forces[at]).all():
                try:
                    label = self.oracle.label(positions[at])
                    energy[at], forces[at] = found.energy[at] - label.energy, found.forces[at] - label.forces
                except OracleError as error:
                    self.failures.append(Failure(frame, place, str(error)))
            else:
                self.failures.append(Failure(frame, place, "the model's prediction is not finite"))
            self.advance(1, f"{len(self.failures)} failed" if self.failures else "")
        return energy, forces, _Found(found.forces, found.judge)


class _Found(NamedTuple):
    """What the model says: forces [m, N, 3] kJ/mol/nm and calibrated uncertainty [m] kJ/mol/nm."""

    forces: Array
    judge: Array


def _displaced(
    labeller: _Labeller,
    x: Array,
    source: NDArray[np.int64],
    along: Array,
    names: Sequence[str],
    epsilons: Sequence[float],
) -> tuple[Array, Array, Array]:
    """Energy errors, root mean square force errors and uncertainties [n, D, L] at x + √ε d.

    The d are ``along`` [n, D, N, 3]. Units kJ/mol and kJ/mol/nm; NaN where there is no direction or no label.
    """
    shape = (len(x), len(names), len(epsilons))
    results = np.full(shape, np.nan), np.full(shape, np.nan), np.full(shape, np.nan)
    lengths = np.sqrt(np.asarray(epsilons, dtype=np.float64)) * ANGSTROM
    for n in range(len(x)):
        at = np.flatnonzero(np.isfinite(along[n]).all(axis=(1, 2)))
        geometries = x[n] + lengths[None, :, None, None] * along[n, at][:, None]
        places = [(int(source[n]), f"{_numbered(names, d)} {epsilon:g}") for d in at.tolist() for epsilon in epsilons]
        for d in np.flatnonzero(~np.isfinite(along[n]).all(axis=(1, 2))).tolist():
            labeller.failures.append(Failure(int(source[n]), _numbered(names, d), "there is no such direction"))
        if not places:
            continue
        energy, forces, found = labeller.errors(geometries.reshape(-1, *x.shape[1:]), places)
        known = np.where(np.isfinite(energy), found.judge, np.nan)
        for result, values in zip(results, (energy, rms(forces), known), strict=True):
            result[n, at] = values.reshape(len(at), len(epsilons))
    return results


def _numbered(names: Sequence[str], d: int) -> str:
    return f"{names[d]} {names[:d].count(RANDOM)}" if names[d] == RANDOM else names[d]


def _relaxed(
    labeller: _Labeller, x: Array, source: NDArray[np.int64], error: Array, zero: float, options: DirectionOptions
) -> Relaxation:
    path = relax(
        labeller.model.potential,
        x,
        steps=options.relax_steps,
        every=options.relax_every,
        force_limit=options.relax_force,
        advance=lambda: labeller.advance(0, "relaxing"),
    )
    errors = np.repeat(error[:, None], len(path.steps), axis=1)
    for k, step in enumerate(path.steps.tolist()):
        errors[:, k] = errors[:, max(k - 1, 0)]
        at = np.flatnonzero(path.moved[k])
        if len(at):
            places = [(int(source[n]), f"relaxation {step}") for n in at]
            errors[at, k] = labeller.errors(path.positions[k, at], places)[0] - zero
        labeller.advance(len(x) - len(at) if k else 0, "")
    distance = np.linalg.norm(path.positions - path.positions[0], axis=(2, 3)).T
    return Relaxation(path.steps, errors, distance, path.converged, path.failed)


def _random_units(x: Array, source: NDArray[np.int64], count: int, seed: int) -> Array:
    """[count, n, N, 3]."""
    each = [
        random_directions(frame, count, np.random.default_rng([seed, int(index)]))
        for frame, index in zip(x, source, strict=True)
    ]
    return np.stack(each, axis=1)


def _zero(error: Array, zero: str | float) -> float:
    if zero == "none":
        return 0.0
    if zero == "frames":
        _check_count(len(error))
        return float(trim_mean(error, 0.25))
    return float(zero)


def _check_count(n_frames: int) -> None:
    if n_frames == 1:
        raise UqbiasError(
            "the zero of the energy error cannot be taken from one frame", "give more frames, or zero none"
        )


def _check(model: UncertaintyModel, positions: NDArray[Any], oracle: Oracle, options: DirectionOptions) -> None:
    numbers = tuple(int(number) for number in model.numbers)
    if np.ndim(positions) != 3 or np.shape(positions)[1:] != (len(numbers), 3):
        raise UqbiasError(
            f"frames of shape {np.shape(positions)} for a model of {len(numbers)} atoms", "give [n, N, 3] in nm"
        )
    if oracle.numbers is not None and tuple(oracle.numbers) != numbers:
        raise UqbiasError(
            f"the {oracle.kind} oracle is for atoms {list(oracle.numbers)}, the model for {list(numbers)}",
            "give the oracle the structure of the model's molecule, in the same order of atoms",
        )
    for epsilon in options.epsilons:
        if not (np.isfinite(epsilon) and epsilon > 0):
            raise UqbiasError(f"epsilon {epsilon} Å²", "give numbers above 0")
    if options.n_random < 1:
        raise UqbiasError(f"{options.n_random} random directions", "give at least 1")
    for name in options.ascents:
        if name not in ASCENTS:
            raise UqbiasError(f"ascent of '{name}'", did_you_mean(name, ASCENTS))
    if options.relax_steps < 0 or options.relax_every < 1:
        raise UqbiasError(
            f"relaxation of {options.relax_steps} steps, labelled every {options.relax_every}",
            "give 0 or more steps, and at least 1 between labels",
        )
    if not (np.isfinite(options.relax_force) and options.relax_force > 0):
        raise UqbiasError(f"relax_force {options.relax_force} eV/Å", "give a finite number above 0")
    zero = options.zero
    if zero not in ("frames", "none") if isinstance(zero, str) else not np.isfinite(zero):
        raise UqbiasError(f"zero '{zero}'", "choose frames, none, or a finite number in kJ/mol")
    if zero == "frames":
        # Before any label is paid; frames that are not finite get none.
        _check_count(int(np.isfinite(np.asarray(positions, dtype=np.float64)).all(axis=(1, 2)).sum()))
