"""Training on energies and forces with one compiled step.

Forward, force and loss gradient are flattened to one graph, so that no double backward is left at run time; the graph
depends on the architecture and the batch size only and is compiled once for all rounds of a campaign.
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
from uqbias.molecule.cells import volume
from uqbias.molecule.frames import Frames
from uqbias.molecule.geometry import Geometry, virial
from uqbias.potentials.base import Potential
from uqbias.potentials.prediction import geometry_for, predict
from uqbias.settings.schema import TrainingOptions
from uqbias.uncertainty.base import Uncertainty, energy_unit


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


def force_and_energy_mae(potential: Potential, frames: Frames) -> tuple[float, float]:
    """Force MAE per component in meV/Å, NaN without forces, and energy MAE in meV/atom of the mean over members."""
    from uqbias.units import EV, EV_PER_ANGSTROM

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
    training: Frames,
    validation: Frames | None = None,
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

    Each committee member sees the frames in an order of its own; where an uncertainty asks for ``bootstrap``, its own
    resample of them with replacement (Breiman, Mach. Learn. 24, 123 (1996)).

    Parameters
    ----------
    potential : its scales are set from the training frames unless ``warm_start``.
    training, validation : labelled frames; with validation frames the best weights on them are kept.
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
    energies = training.energies
    if energies is None or (training.forces is None and options.force_weight):
        energies, _ = training.labels()
    if tuple(training.numbers.tolist()) != potential.numbers:
        raise UqbiasError(
            f"training frames have atoms {training.numbers.tolist()}, the potential {list(potential.numbers)}",
            "train a model of this molecule",
        )
    if options.stress_weight and (training.stresses is None or training.cells is None):
        raise UqbiasError(
            f"training.stress_weight is {options.stress_weight:g}, and not every training frame has a stress",
            "label them with stress, or set training.stress_weight to 0",
        )
    dtype = next(potential.parameters()).dtype
    forces = training.forces
    if forces is None:
        # Only the size of forces that are not learned counts: that for which energies are measured in their spread.
        spread = max(float(energies.std()), 1e-6)
        forces = np.full(training.positions.shape, spread / energy_unit(len(training.numbers)))
    x, e, f = (
        torch.as_tensor(array).to(dtype).contiguous()
        for array in (training.positions, energies - energies.mean(), forces)
    )
    geometry = geometry_for(potential, x, training.cells, training.periodic)
    if not warm_start:
        scales = (x, torch.as_tensor(energies), f)
        potential.standardise(*scales) if geometry is None else potential.standardise(*scales, geometry)
    else:
        e = e + (float(energies.mean()) - float(potential.energy_shift))
    heads = [part for part in uncertainties if any(True for _ in part.parameters())]
    for head in heads:
        head.set_force_unit(float(f.square().mean().sqrt()))
    objective = _Objective(potential, heads, options, geometry)
    bootstrap = any(part.bootstrap for part in uncertainties)
    for frames in (training, validation):
        if frames is not None and len(frames):
            potential.record_seen(frames)
    data = [x, e, f]
    if options.stress_weight:
        assert training.stresses is not None
        assert training.cells is not None
        data.append(torch.as_tensor(training.stresses * volume(training.cells)[:, None, None]).to(dtype))
    loop = _Loop(objective, data, geometry, options, seed, bootstrap, runner or options.runner, cache_dir)
    return loop.run(validation, progress)


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

    def __init__(
        self, potential: Potential, heads: list[Uncertainty], options: TrainingOptions, geometry: Geometry | None
    ) -> None:
        super().__init__()
        self.potential = potential
        self.heads = nn.ModuleList(heads)
        self.force_weight, self.energy_weight = options.force_weight, options.energy_weight
        self.stress_weight = options.stress_weight
        self.geometry = geometry

    def forward(self, scale: Tensor, x: Tensor, e: Tensor, f: Tensor, *more: Tensor) -> Tensor:
        """Loss [] of positions and forces [M, B, N, 3] and energies [M, B]; ``scale`` [1] is the typical force.

        Where stresses are learned virials [M, B, 3, 3] follow, then the tensors of the geometry, if there is one.
        """
        geometry = self.geometry and self.geometry.with_tensors(list(more[1 if self.stress_weight else 0 :]))
        if not self.force_weight and not self.stress_weight and not self.heads:
            return self.energy_weight * self._energy_loss(self.potential(x, geometry)[0], e, scale)[1].sum()
        # Each member has its own copy of the positions: per-member forces from one backward.
        copies = x.clone().requires_grad_()
        roots = [copies]
        if self.stress_weight and geometry is not None and geometry.box is not None:
            roots.append(geometry.box.clone().requires_grad_())
            geometry = geometry._replace(box=roots[1])
        energy, latents = self.potential(copies, geometry)
        gradient, *of_box = torch.autograd.grad(energy.sum(), roots, create_graph=True)
        force_error = (gradient + f) / -scale
        force_loss = (force_error.square().sum(-1) + NORM_FLOOR**2).sqrt().mean((1, 2))
        energy_error, energy_loss = self._energy_loss(energy, e, scale)
        total = (self.force_weight * force_loss + self.energy_weight * energy_loss).sum()
        if of_box:
            error = (virial(copies, gradient, roots[1], of_box[0]) - more[0]) / (scale * self._energy_unit)
            total = total + self.stress_weight * (error.square().sum((-1, -2)) + NORM_FLOOR**2).sqrt().mean(1).sum()
        for head in self.heads:
            added = head.loss(energy_error, force_error, latents)  # type: ignore[operator]
            total = total if added is None else total + added
        loss: Tensor = total
        return loss

    @property
    def _energy_unit(self) -> float:
        return energy_unit(len(self.potential.numbers))

    def _energy_loss(self, energy: Tensor, label: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Energy errors [M, B] in the unit of the loss, and their mean sizes [M]."""
        error = (energy - label) / (scale * self._energy_unit)
        return error, (error.square() + NORM_FLOOR**2).sqrt().mean(1)


class _Loop:
    """State of one training: weights, their average, the optimiser, the order of the frames."""

    def __init__(
        self,
        objective: _Objective,
        data: list[Tensor],
        geometry: Geometry | None,
        options: TrainingOptions,
        seed: int,
        bootstrap: bool,
        runner: str,
        cache_dir: Path | None,
    ) -> None:
        self.objective = objective
        self.potential = objective.potential
        # Tables of many frames are large: they are kept as small numbers.
        self.data = data + ([] if geometry is None else [_small(tensor) for tensor in geometry.tensors()])
        self.kinds = [tensor.dtype for tensor in data + ([] if geometry is None else geometry.tensors())]
        self.options = options
        names = [name for name, _ in objective.named_parameters()]
        self.weights = [weight.detach().clone() for weight in objective.parameters()]
        self.average = [weight.clone() for weight in self.weights]
        buffer_names = [name for name, _ in objective.named_buffers()]
        self.buffers = [buffer.contiguous() for buffer in objective.buffers()]
        self.scale = data[2].square().mean().sqrt().reshape(1)
        self.optimiser = torch.optim.Adam(self.weights, lr=options.learning_rate, foreach=True)
        self.orders = [
            _Order(len(data[0]), seed + 1000 * member, bootstrap) for member in range(self.potential.n_members)
        ]
        self.typical_norm = math.inf
        self.step_function = compile_function(
            _step_function(objective, names, buffer_names),
            [*self.weights, *self.buffers, self.scale, *self._batch()],
            runner=runner,
            name="training_step",
            cache_dir=cache_dir,
        )

    def _batch(self) -> list[Tensor]:
        index = torch.stack([order.next(self.options.batch_size) for order in self.orders])
        return [tensor[index].to(kind) for tensor, kind in zip(self.data, self.kinds, strict=True)]

    def _advance(self, step: int, fraction: float) -> float:
        loss, *strided = self.step_function([*self.weights, *self.buffers, self.scale, *self._batch()])
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

    def run(self, validation: Frames | None, progress: Progress | None) -> TrainingResult:
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
                    if validation.forces is not None:
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


def _small(tensor: Tensor) -> Tensor:
    """The same numbers in fewer bytes, where they are whole: neighbours, or shifts."""
    small = tensor.to(torch.int16) if tensor.is_floating_point() else tensor.to(torch.int32)
    return small if tensor.dim() > 2 and torch.equal(small.to(tensor), tensor) else tensor


class _Order:
    """Endless order of the frames for one member, each epoch shuffled anew."""

    def __init__(self, n_frames: int, seed: int, bootstrap: bool) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.pool = torch.arange(n_frames)
        if bootstrap:
            self.pool = torch.randint(n_frames, (n_frames,), generator=self.generator)
        self.waiting = torch.empty(0, dtype=torch.long)

    def next(self, size: int) -> Tensor:
        """Indices of the next ``size`` frames, [size]."""
        while len(self.waiting) < size:
            shuffled = torch.randperm(len(self.pool), generator=self.generator)
            self.waiting = torch.cat([self.waiting, self.pool[shuffled]])
        index, self.waiting = self.waiting[:size], self.waiting[size:]
        return index


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
