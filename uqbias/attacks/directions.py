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
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import trim_mean

from uqbias.attacks.relaxation import RelaxationPath, recorded_steps, relax
from uqbias.attacks.vectors import ASCENTS, cosine, random_directions, uncertainty_gradient, unit
from uqbias.errors import UqbiasError, did_you_mean
from uqbias.model.inference import Evaluated, evaluate_frames
from uqbias.model.model import UncertaintyModel
from uqbias.oracles.base import Oracle, OracleError
from uqbias.units import ANGSTROM

Array = NDArray[np.float64]
ADVERSARIAL, RANDOM = "adversarial", "random"


@dataclass(frozen=True)
class DirectionOptions:
    """Options of a measurement of directions.

    Attributes
    ----------
    epsilons : squared lengths of the displacements, Å².
    n_random : random directions for each frame.
    ascents : uncertainties (``judge``, ``driver``) along whose gradient the frames are displaced too, as an attack
        without labels can go.
    zero : what counts as no energy error, since a potential's energy has an arbitrary constant. ``frames`` takes the
        mean of E_app − E_acc over the middle half of the frames, which a few bad frames do not move; ``none`` trusts
        the model's energy; a number, kJ/mol, is the E_app − E_acc of another reference.
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

    def __post_init__(self) -> None:
        wrong = next((epsilon for epsilon in self.epsilons if not (np.isfinite(epsilon) and epsilon > 0)), None)
        if wrong is not None:
            raise UqbiasError(f"epsilon {wrong} Å²", "give numbers above 0")
        if self.n_random < 1:
            raise UqbiasError(f"{self.n_random} random directions", "give at least 1")
        for name in set(self.ascents) - set(ASCENTS):
            raise UqbiasError(f"ascent of '{name}'", did_you_mean(name, ASCENTS))
        if self.relax_steps < 0 or self.relax_every < 1:
            raise UqbiasError(
                f"relaxation of {self.relax_steps} steps, labelled every {self.relax_every}",
                "give 0 or more steps, and at least 1 between labels",
            )
        if not (np.isfinite(self.relax_force) and self.relax_force > 0):
            raise UqbiasError(f"relax_force {self.relax_force} eV/Å", "give a finite number above 0")
        if self.zero not in ("frames", "none") and (isinstance(self.zero, str) or not np.isfinite(self.zero)):
            raise UqbiasError(f"zero '{self.zero}'", "choose frames, none, or a finite number in kJ/mol")

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each of the D directions: adversarial, random (several times), then the ascents."""
        return (ADVERSARIAL, *[RANDOM] * self.n_random, *self.ascents)


class Failure(NamedTuple):
    """A geometry without a label, or without a prediction."""

    #: Index of the frame it comes from.
    frame: int
    #: ``frame``, ``adversarial 0.5``, ``random 2 0.5``, ``relaxation 10``.
    place: str
    reason: str


@dataclass(frozen=True)
class DirectionResult:
    """Errors of a model at n frames, around them, and along their relaxation.

    Attributes
    ----------
    source : [n] index of the frame.
    energy_error : [n] E_app − E_acc − zero, kJ/mol.
    force_error : [n] root mean square force component of F_app − F_acc, kJ/mol/nm.
    gradient : [n, N, 3] A, (kJ/mol)²/nm.
    cos_theta : [n] between A and the model's force; NaN where one of them is zero.
    cos_ascent : [n] between A and the gradient of each uncertainty, by name.
    judge : [n] calibrated judge, kJ/mol/nm.
    names : [D] directions, see `DirectionOptions.names`.
    epsilons : [L] Å².
    displaced_energy_error, displaced_force_error, displaced_uncertainty : [n, D, L] as above, at displaced geometries;
        NaN where there is no label or no direction.
    zero : kJ/mol, subtracted from E_app − E_acc.
    failures : geometries that are missing.
    n_frames : frames given.
    relaxation : path of the relaxation at K steps; None where it was switched off.
    relaxed_energy_error : [n, K] E_app − E_acc − zero along it, kJ/mol; NaN where there is no label.
    """

    source: NDArray[np.int64]
    energy_error: Array
    force_error: Array
    gradient: Array
    cos_theta: Array
    cos_ascent: dict[str, Array]
    judge: Array
    names: tuple[str, ...]
    epsilons: Array
    displaced_energy_error: Array
    displaced_force_error: Array
    displaced_uncertainty: Array
    zero: float
    failures: list[Failure]
    n_frames: int
    relaxation: RelaxationPath | None
    relaxed_energy_error: Array

    @property
    def norm(self) -> Array:
        """Size of A, [n] (kJ/mol)²/nm."""
        return np.asarray(np.linalg.norm(self.gradient, axis=(1, 2)))

    @property
    def distance(self) -> Array:
        """Distance of the whole molecule from its start along the relaxation, [n, K] nm."""
        assert self.relaxation is not None
        x = self.relaxation.positions
        return np.asarray(np.linalg.norm(x - x[0], axis=(2, 3)).T)

    @property
    def kinds(self) -> list[str]:
        """Distinct names of the directions."""
        return list(dict.fromkeys(self.names))

    def errors_along(self, kind: str, what: str = "energy") -> Array:
        """Sizes of the errors [n, 1 + L] at ε = 0 and each ε, mean over the directions of that kind; NaN if missing.

        Parameters
        ----------
        kind : one of `kinds`.
        what : ``energy`` (kJ/mol) or ``force`` (kJ/mol/nm).
        """
        at_frame, displaced = getattr(self, f"{what}_error"), getattr(self, f"displaced_{what}_error")
        sizes = np.ma.masked_invalid(np.abs(displaced[:, [name == kind for name in self.names]]))
        return np.concatenate([np.abs(at_frame)[:, None], sizes.mean(axis=1).filled(np.nan)], axis=1)


def n_labels(n_frames: int, options: DirectionOptions) -> int:
    """Most labels that `directions` asks the oracle for."""
    relaxing = len(recorded_steps(options.relax_steps, options.relax_every)) - 1 if options.relax_steps else 0
    return n_frames * (1 + len(options.names) * len(options.epsilons) + relaxing)


def directions(
    model: UncertaintyModel,
    positions: NDArray[Any],
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
    positions : [n, N, 3] nm; give frames that the model was not trained on.
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
    x = np.asarray(positions, dtype=np.float64)
    _check(model, x, oracle, options)
    labeller = _Labeller(model, oracle, advance)
    source = np.arange(len(x)) if indices is None else np.asarray(indices, dtype=np.int64)
    error, force_error, said = labeller.errors(x, [(index, "frame") for index in source.tolist()])
    good = np.isfinite(error)
    if not good.any():
        first = labeller.failures[0].reason if labeller.failures else "none was given"
        raise UqbiasError(f"none of {len(x)} frames could be labelled: {first}", "check the oracle and the frames")
    x, source, error, force_error = x[good], source[good], error[good], force_error[good]
    zero = _zero(error, options.zero)
    error = error - zero
    gradient = -2.0 * error[:, None, None] * force_error
    ascents = {name: uncertainty_gradient(model, x, name) for name in options.ascents}
    random = [
        random_directions(frame, options.n_random, np.random.default_rng([seed, index]))
        for frame, index in zip(x, source.tolist(), strict=True)
    ]
    along = np.stack([unit(gradient), *np.stack(random, axis=1), *map(unit, ascents.values())], axis=1)
    displaced = _displaced(labeller, x, source, along, options)
    path, relaxed = _relaxed(labeller, x, source, error, zero, options) if options.relax_steps else (None, np.empty(0))
    assert said.forces is not None
    return DirectionResult(
        source=source,
        energy_error=error,
        force_error=_rms(force_error),
        gradient=gradient,
        cos_theta=cosine(gradient, said.forces[good]),
        cos_ascent={name: cosine(gradient, ascent) for name, ascent in ascents.items()},
        judge=said.judge[good],
        names=options.names,
        epsilons=np.asarray(options.epsilons, dtype=np.float64),
        displaced_energy_error=displaced[0] - zero,
        displaced_force_error=displaced[1],
        displaced_uncertainty=displaced[2],
        zero=zero,
        failures=labeller.failures,
        n_frames=len(positions),
        relaxation=path,
        relaxed_energy_error=relaxed,
    )


class _Labeller:
    """Labels and predictions of the same geometries, with a note of what fails."""

    def __init__(self, model: UncertaintyModel, oracle: Oracle, advance: Callable[[int, str], None]) -> None:
        self.model, self.oracle, self.advance = model, oracle, advance
        self.failures: list[Failure] = []

    def errors(self, positions: Array, places: Sequence[tuple[int, str]]) -> tuple[Array, Array, Evaluated]:
        """E_app − E_acc [m] and F_app − F_acc [m, N, 3], NaN where missing, and what the model says."""
        said = evaluate_frames(self.model, positions, forces=True)
        assert said.forces is not None
        energy, forces = np.full(len(positions), np.nan), np.full(positions.shape, np.nan)
        for at, place in enumerate(places):
            if np.isfinite(said.energy[at]) and np.isfinite(said.forces[at]).all():
                try:
                    label = self.oracle.label(positions[at])
                    energy[at], forces[at] = said.energy[at] - label.energy, said.forces[at] - label.forces
                except OracleError as error:
                    self.failures.append(Failure(*place, str(error)))
            else:
                self.failures.append(Failure(*place, "the model's prediction is not finite"))
            self.advance(1, f"{len(self.failures)} failed" if self.failures else "")
        return energy, forces, said


def _displaced(
    labeller: _Labeller, x: Array, source: NDArray[np.int64], along: Array, options: DirectionOptions
) -> Array:
    """Energy errors, root mean square force errors and uncertainties [3, n, D, L] at x + √ε d.

    The d are ``along`` [n, D, N, 3]. Units kJ/mol and kJ/mol/nm; NaN where there is no direction or no label.
    """
    results = np.full((3, len(x), len(options.names), len(options.epsilons)), np.nan)
    lengths = np.sqrt(np.asarray(options.epsilons, dtype=np.float64)) * ANGSTROM
    titles = [f"{name} {d - 1}" if name == RANDOM else name for d, name in enumerate(options.names)]
    for n, frame in enumerate(source.tolist()):
        there = np.isfinite(along[n]).all(axis=(1, 2))
        labeller.failures += [
            Failure(frame, titles[d], "there is no such direction") for d in np.flatnonzero(~there).tolist()
        ]
        geometries = x[n] + lengths[None, :, None, None] * along[n, there][:, None]
        places = [
            (frame, f"{titles[d]} {epsilon:g}") for d in np.flatnonzero(there).tolist() for epsilon in options.epsilons
        ]
        energy, forces, said = labeller.errors(geometries.reshape(-1, *x.shape[1:]), places)
        values = np.stack([energy, _rms(forces), np.where(np.isfinite(energy), said.judge, np.nan)])
        results[:, n, there] = values.reshape(3, -1, len(lengths))
    return results


def _relaxed(
    labeller: _Labeller, x: Array, source: NDArray[np.int64], error: Array, zero: float, options: DirectionOptions
) -> tuple[RelaxationPath, Array]:
    """The relaxation, and the energy errors [n, K] along it."""
    path = relax(
        labeller.model.potential,
        x,
        steps=options.relax_steps,
        every=options.relax_every,
        force_limit=options.relax_force,
        advance=lambda: labeller.advance(0, "relaxing"),
    )
    columns = [error]
    for k, step in enumerate(path.steps.tolist()[1:], start=1):
        at = np.flatnonzero(path.moved[k])
        columns.append(columns[-1].copy())
        if len(at):
            places = [(int(source[n]), f"relaxation {step}") for n in at]
            columns[-1][at] = labeller.errors(path.positions[k, at], places)[0] - zero
        labeller.advance(len(x) - len(at), "")
    return path, np.stack(columns, axis=1)


def _rms(forces: Array) -> Array:
    """Root mean square component [n] of forces [n, N, 3]."""
    return np.asarray(np.sqrt(np.square(forces).mean(axis=(1, 2))))


def _zero(error: Array, zero: str | float) -> float:
    if zero == "frames":
        _check_count(len(error))
        return float(trim_mean(error, 0.25))
    return 0.0 if zero == "none" else float(zero)


def _check_count(n_frames: int) -> None:
    if n_frames == 1:
        raise UqbiasError(
            "the zero of the energy error cannot be taken from one frame", "give more frames, or zero none"
        )


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
