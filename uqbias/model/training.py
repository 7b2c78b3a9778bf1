"""Training on energies and forces with one compiled step.

Forward, force and loss gradient are flattened to one graph, so that no double backward is left at run time; the graph
depends on the architecture and the batch size only and is compiled once for all rounds of a campaign. Frames of several
systems are padded to few layouts (`uqbias.model.padded`), with a graph of each.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from uqbias.compile.runners import compile_function
from uqbias.errors import UqbiasError
from uqbias.model.batches import Batches, check_labels, of_one, of_several
from uqbias.molecule.frames import Frames
from uqbias.molecule.geometry import virial
from uqbias.molecule.topology import Topology
from uqbias.potentials.base import Potential
from uqbias.potentials.prediction import predict
from uqbias.settings.training_sections import TrainingOptions
from uqbias.uncertainty.base import Uncertainty, energy_unit
from uqbias.uncertainty.heads import over_atoms


@dataclass
class TrainingResult:
    """History and outcome of one training."""

    #: step, seconds, training loss, validation force MAE (meV/Å) and energy MAE (meV/atom) at each look.
    history: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    best_step: int = 0


Progress = Callable[[int, int, dict[str, float]], None]

# Keeps the gradient of a norm finite at zero; far below the errors that training reaches.
NORM_FLOOR = 1e-4
#: Gradients longer than this many times their recent length are shortened.
CLIP = 2.0


def force_and_energy_mae(potential: Potential, frames: Frames | Sequence[Frames]) -> tuple[float, float]:
    """Force MAE per component in meV/Å, NaN without forces, and energy MAE in meV/atom of the mean over members.

    Of several systems it is the mean over all frames of that of a frame.
    """
    from uqbias.units import EV, EV_PER_ANGSTROM

    if not isinstance(frames, Frames):
        each = [force_and_energy_mae(potential.with_numbers(one.numbers.tolist()), one) for one in frames if len(one)]
        force, energy = np.average(each, axis=0, weights=[len(one) for one in frames if len(one)])
        return float(force), float(energy)
    prediction = predict(potential, frames.positions, cells=frames.cells, periodic=frames.periodic)
    assert prediction.forces is not None
    assert frames.energies is not None
    force_error = np.nan
    if frames.forces is not None:
        force_error = np.abs(prediction.forces.double().cpu().numpy() - frames.forces).mean() / EV_PER_ANGSTROM
    energy = prediction.energy.mean(0).double().cpu().numpy() + float(potential.energy_shift)
    energy_error = np.abs(energy - frames.energies).mean() / EV
    return float(force_error * 1e3), float(energy_error * 1e3 / len(frames.numbers))


def train(
    potential: Potential,
    training: Frames | Sequence[Frames],
    validation: Frames | Sequence[Frames] | None = None,
    options: TrainingOptions | None = None,
    *,
    uncertainties: Sequence[Uncertainty] = (),
    seed: int = 0,
    warm_start: bool = False,
    runner: str | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> TrainingResult:
    """Train ``potential``, and the uncertainties that have weights of their own, in place.

    The loss is ``force_weight`` times the mean norm of the force error per atom in units of the root mean square force,
    plus ``energy_weight`` times the absolute energy error: norms, not squares, since they are what is judged, and since
    the few distorted frames of a harvest would rule a sum of squares. Uncertainties add their own `Uncertainty.loss`.
    With a force weight of 0 no force is computed, but labelled forces still set the scale of the energies; without them
    their spread does. With a stress weight the error of the virial, stress times volume, counts as one of an energy.

    Of several systems each frame counts alike, whatever its size: forces are averaged over the atoms of a frame, and an
    energy error is measured in units that grow with the square root of their number. Energies are counted from the sum
    of the elements' energies (`Potential.element_energies`), which are set by least squares.

    Each committee member sees the frames in an order of its own; where an uncertainty asks for ``bootstrap``, its own
    resample of them with replacement (Breiman, Mach. Learn. 24, 123 (1996)).

    Parameters
    ----------
    potential : its scales are set from the training frames unless ``warm_start``.
    training, validation : labelled frames; with validation frames the best weights on them are kept. Of several systems
        a list, with the frames of one system each.
    uncertainties : those whose weights are to be trained along; others are left alone.
    seed : seed of the order of the frames. The result is a function of the seed, the frames and the options.
    warm_start : go on from the present weights and scales.
    options : schedule, weights and runner, as in a campaign file; its defaults if None.
    runner : in place of that of the options.
    progress : called as ``progress(step, steps, last history entry)``.

    Raises
    ------
    UqbiasError
        If frames carry no labels, are of another molecule, the weights leave nothing to learn from, the potential is
        frozen, stresses are to be learned and a frame has none, or the loss becomes NaN.
    """
    options = options or TrainingOptions()
    if potential.frozen:
        raise UqbiasError(f"training of potential '{potential.kind}', which is frozen", "use it as it is")
    _check_weights(options, uncertainties)
    sets = [training] if isinstance(training, Frames) else [frames for frames in training if len(frames)]
    checks = [validation] if isinstance(validation, Frames) else list(validation or [])
    for frames in sets:
        check_labels(frames, options)
    heads = [part for part in uncertainties if any(True for _ in part.parameters())]
    if len(sets) == 1:
        batches = [of_one(potential, sets[0], options, warm_start)]
    else:
        batches = of_several(potential, sets, options, warm_start)
    for head in heads:
        head.set_force_unit(float(batches[0].scale))
    for frames in (*sets, *checks):
        if len(frames):
            potential.record_seen(frames)
    buckets = []
    for batch in batches:
        batch.shuffle(seed, any(part.bootstrap for part in uncertainties))
        layout = Topology(batch.potential.numbers, ())
        placed = heads if len(sets) == 1 else [head.with_topology(layout) for head in heads]
        buckets.append(_Bucket(_Objective(placed, batch, options), batch, options, runner or options.runner, cache_dir))
    loop = _Loop(potential, buckets, options, seed)
    return loop.run(checks if len(checks) > 1 else checks[0] if checks else None, progress)


def _check_weights(options: TrainingOptions, uncertainties: Sequence[Uncertainty]) -> None:
    names = ("force_weight", "energy_weight", "stress_weight")
    weights = {name: getattr(options, name) for name in names}
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise UqbiasError(f"training.{name} {weight}", "give a number of 0 or more")
    if not any(weights.values()):
        raise UqbiasError("training.force_weight and training.energy_weight are 0", "raise one of them")
    for part in uncertainties:
        if (
            not options.force_weight
            and getattr(part, "quantity", None) == "forces"
            and any(True for _ in part.parameters())
        ):
            raise UqbiasError(
                f"uncertainty '{part.kind}' learns from forces, training.force_weight is 0",
                "set quantity: energy of that uncertainty, or raise training.force_weight",
            )


class _Objective(nn.Module):
    """The loss of a batch, as a module: its parameters are all that is trained."""

    def __init__(self, heads: list[Uncertainty], batches: Batches, options: TrainingOptions) -> None:
        super().__init__()
        self.potential = batches.potential
        self.heads = nn.ModuleList(heads)
        self.force_weight, self.energy_weight = options.force_weight, options.energy_weight
        self.stress_weight = options.stress_weight
        self.geometry = batches.geometry

    def forward(self, scale: Tensor, x: Tensor, e: Tensor, f: Tensor, *more: Tensor) -> Tensor:
        """Loss [] of positions and forces [M, B, N, 3] and energies [M, B]; ``scale`` [1] is the typical force.

        Where stresses are learned virials [M, B, 3, 3] follow, then the tensors of the geometry, if there is one.
        """
        geometry = self.geometry and self.geometry.with_tensors(list(more[1 if self.stress_weight else 0 :]))
        if not self.force_weight and not self.stress_weight and not self.heads:
            return (
                self.energy_weight
                * self._energy_loss(self.potential(x, geometry)[0], e, scale, geometry and geometry.present)[1].sum()
            )
        # Each member has its own copy of the positions: per-member forces from one backward.
        copies = x.clone().requires_grad_()
        roots = [copies]
        if self.stress_weight and geometry is not None and geometry.box is not None:
            roots.append(geometry.box.clone().requires_grad_())
            geometry = geometry._replace(box=roots[1])
        energy, latents = self.potential(copies, geometry)
        gradient, *of_box = torch.autograd.grad(energy.sum(), roots, create_graph=True)
        force_error = (gradient + f) / -scale
        norms = (force_error.square().sum(-1) + NORM_FLOOR**2).sqrt()
        present = None if geometry is None else geometry.present
        force_loss = norms.mean((1, 2)) if present is None else over_atoms(norms.unsqueeze(-1), present).mean((1, 2))
        energy_error, energy_loss = self._energy_loss(energy, e, scale, present)
        total = (self.force_weight * force_loss + self.energy_weight * energy_loss).sum()
        if of_box:
            unit = self._energy_unit(present)
            unit = unit if isinstance(unit, float) else unit[..., None, None]
            error = (virial(copies, gradient, roots[1], of_box[0]) - more[0]) / (scale * unit)
            total = total + self.stress_weight * (error.square().sum((-1, -2)) + NORM_FLOOR**2).sqrt().mean(1).sum()
        for head in self.heads:
            padded = () if present is None else (present,)
            added = head.loss(energy_error, force_error, latents, *padded)  # type: ignore[operator]
            total = total if added is None else total + added
        loss: Tensor = total
        return loss

    def _energy_unit(self, present: Tensor | None) -> float | Tensor:
        """`energy_unit` of all frames, or of each, [M, B]."""
        if present is None:
            return energy_unit(len(self.potential.numbers))
        return energy_unit(1) * present.sum(-1).sqrt()

    def _energy_loss(
        self, energy: Tensor, label: Tensor, scale: Tensor, present: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Energy errors [M, B] in the unit of the loss, and their mean sizes [M]."""
        error = (energy - label) / (scale * self._energy_unit(present))
        return error, (error.square() + NORM_FLOOR**2).sqrt().mean(1)


class _Bucket:
    """Frames of one layout, and the graph of a step with them."""

    def __init__(
        self, objective: _Objective, batches: Batches, options: TrainingOptions, runner: str, cache_dir: Path | None
    ) -> None:
        self.objective, self.batches, self.batch_size = objective, batches, options.batch_size
        self.inputs = [*(buffer.contiguous() for buffer in objective.buffers()), batches.scale.reshape(1)]
        names = [name for name, _ in objective.named_parameters()]
        weights = [weight.detach().clone() for weight in objective.parameters()]
        self.step_function = compile_function(
            _step_function(objective, names, [name for name, _ in objective.named_buffers()]),
            [*weights, *self.inputs, *batches.next(self.batch_size)],
            runner=runner,
            name="training_step",
            cache_dir=cache_dir,
        )

    def step(self, weights: list[Tensor]) -> list[Tensor]:
        """Loss and gradients of the weights, with the next frames."""
        return list(self.step_function([*weights, *self.inputs, *self.batches.next(self.batch_size)]))


class _Loop:
    """State of one training: weights, their average, the optimiser, the buckets of frames."""

    def __init__(self, potential: Potential, buckets: list[_Bucket], options: TrainingOptions, seed: int) -> None:
        self.potential, self.buckets, self.options = potential, buckets, options
        self.objective = buckets[0].objective
        self.weights = [weight.detach().clone() for weight in self.objective.parameters()]
        self.average = [weight.clone() for weight in self.weights]
        self.optimiser = torch.optim.Adam(self.weights, lr=options.learning_rate, foreach=True)
        self.typical_norm = math.inf
        self.random = np.random.default_rng(seed)
        sizes = np.array([len(bucket.batches) for bucket in buckets], dtype=float)
        self.shares = sizes / sizes.sum()

    def _advance(self, step: int, fraction: float) -> float:
        bucket = self.buckets[0 if len(self.buckets) == 1 else self.random.choice(len(self.buckets), p=self.shares)]
        loss, *strided = bucket.step(self.weights)
        gradients = [gradient.contiguous() for gradient in strided]
        # A rare frame with a large gradient must not throw the weights away: Adam's own scale adapts too slowly.
        norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))))
        if norm > CLIP * self.typical_norm:
            torch._foreach_mul_(gradients, CLIP * self.typical_norm / norm)
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = gradient
        limited = min(norm, CLIP * self.typical_norm)
        self.typical_norm = limited if math.isinf(self.typical_norm) else 0.98 * self.typical_norm + 0.02 * limited
        warm_up = min(1.0, (step + 1) / 100)
        for group in self.optimiser.param_groups:
            group["lr"] = self.options.learning_rate * warm_up * 0.5 * (1 + math.cos(math.pi * min(fraction, 1.0)))
        self.optimiser.step()
        decay = min(self.options.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.average, self.weights, 1 - decay)
        return float(loss)

    def _install(self, weights: list[Tensor]) -> None:
        with torch.no_grad():
            for parameter, weight in zip(self.objective.parameters(), weights, strict=True):
                parameter.copy_(weight)

    def run(self, validation: Frames | Sequence[Frames] | None, progress: Progress | None) -> TrainingResult:
        options, result = self.options, TrainingResult()
        best_weights, best_error, stale = self.average, math.inf, 0
        start, step, loss_sum, loss_count = time.perf_counter(), 0, 0.0, 0
        entry: dict[str, float] = {}
        while True:
            elapsed = time.perf_counter() - start
            fraction = step / options.steps if options.max_seconds is None else elapsed / options.max_seconds
            done = fraction >= 1.0
            if step and (done or step % options.evaluate_every == 0):
                entry = {"step": step, "seconds": elapsed, "train_loss": loss_sum / max(loss_count, 1)}
                loss_sum, loss_count = 0.0, 0
                if not math.isfinite(entry["train_loss"]):
                    raise UqbiasError(
                        f"training loss is {entry['train_loss']} at step {step}", "lower training.learning_rate"
                    )
                if validation is not None and len(validation):
                    self._install(self.average)
                    force_mae, energy_mae = force_and_energy_mae(self.potential, validation)
                    if math.isfinite(force_mae):
                        entry["validation_force_mae"] = force_mae
                    entry["validation_energy_mae"] = energy_mae
                    error = force_mae if options.force_weight else energy_mae
                    if error < best_error:
                        best_weights, best_error, stale = [weight.clone() for weight in self.average], error, 0
                        result.best_step = step
                    else:
                        stale += 1
                result.history.append(entry)
            if progress is not None:
                progress(step, options.steps, entry)
            if done or stale > options.patience:
                break
            loss_sum, loss_count, step = loss_sum + self._advance(step, fraction), loss_count + 1, step + 1
        self._install(best_weights)
        result.steps, result.seconds = step, time.perf_counter() - start
        return result


def _step_function(
    objective: _Objective, names: list[str], buffer_names: list[str]
) -> Callable[[list[Tensor]], tuple[Tensor, ...]]:
    """(weights, buffers, force scale, positions, energies, forces, ...) -> (loss, gradients of the weights)."""
    n_weights, n_buffers = len(names), len(buffer_names)

    def step(inputs: list[Tensor]) -> tuple[Tensor, ...]:
        weights = [weight.detach().requires_grad_() for weight in inputs[:n_weights]]
        state = dict(zip(names, weights, strict=True))
        state |= dict(zip(buffer_names, inputs[n_weights : n_weights + n_buffers], strict=True))
        loss = functional_call(objective, state, tuple(inputs[n_weights + n_buffers :]))
        return (loss, *torch.autograd.grad(loss, weights))

    return step
