"""Training on energies and forces with one compiled step.

Forward, force and loss gradient are flattened to one graph, so that no double backward is left at run time; the graph
depends on the architecture and the batch size only and is compiled once for all rounds of a campaign.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from uqbias.compile.runners import compile_function
from uqbias.data import Frames
from uqbias.errors import UqbiasError
from uqbias.potentials.base import Potential
from uqbias.potentials.prediction import predict


@dataclass(frozen=True)
class TrainingOptions:
    """How a potential is trained.

    Attributes
    ----------
    steps : optimiser steps; the learning rate falls to zero over them (cosine).
    batch_size : frames a step.
    learning_rate : of Adam, at its maximum. With some hundred frames 0.02 generalises better, with a thousand 0.01.
    energy_weight : of the energy error beside the force error.
    ema : decay of the averaged weights, which are the result.
    evaluate_every : steps between two looks at the validation frames.
    patience : looks without improvement after which training stops.
    max_seconds : end the schedule after this time instead of after ``steps``; the result then depends on the machine.
    """

    steps: int = 4000
    batch_size: int = 8
    learning_rate: float = 0.02
    energy_weight: float = 0.1
    ema: float = 0.995
    evaluate_every: int = 250
    patience: int = 8
    max_seconds: float | None = None


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
    """Force MAE per component in meV/Å and energy MAE in meV/atom of the mean over members."""
    from uqbias.units import EV, EV_PER_ANGSTROM

    energies, forces = frames.labels()
    prediction = predict(potential, frames.positions)
    force_error = np.abs(prediction.forces.double().cpu().numpy() - forces).mean() / EV_PER_ANGSTROM
    energy_error = np.abs(prediction.energy.mean(0).double().cpu().numpy() - energies).mean() / EV
    return float(force_error * 1e3), float(energy_error * 1e3 / len(frames.numbers))


def train(
    potential: Potential,
    training: Frames,
    validation: Frames | None = None,
    options: TrainingOptions | None = None,
    *,
    seed: int = 0,
    warm_start: bool = False,
    runner: str = "auto",
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> TrainingResult:
    """Train ``potential`` in place.

    The loss is the mean norm of the force error per atom in units of the root mean square force, plus
    ``energy_weight`` times the absolute energy error: norms, not squares, since they are what is judged, and since the
    few distorted frames of a harvest would rule a sum of squares.

    Parameters
    ----------
    potential : its scales are set from the training frames unless ``warm_start``.
    training, validation : labelled frames; with validation frames the best weights on them are kept.
    seed : of the order of the frames. The result is a function of the seed, the frames and the options.
    warm_start : go on from the present weights and scales.
    runner : see `uqbias.compile.runners.compile_function`.
    progress : called as ``progress(step, steps, last history entry)``.

    Raises
    ------
    UqbiasError
        If frames carry no labels, are of another molecule, or the loss becomes NaN.
    """
    options = options or TrainingOptions()
    energies, forces = training.labels()
    if tuple(training.numbers.tolist()) != potential.numbers:
        raise UqbiasError(
            f"training frames have atoms {training.numbers.tolist()}, the potential {list(potential.numbers)}",
            "train a model of this molecule",
        )
    dtype = next(potential.parameters()).dtype
    x, e, f = (
        torch.as_tensor(array).to(dtype).contiguous()
        for array in (training.positions, energies - energies.mean(), forces)
    )
    if not warm_start:
        potential.standardise(x, torch.as_tensor(energies).to(dtype), f)
    else:
        e = e + (float(energies.mean()) - float(potential.energy_shift))
    loop = _Loop(potential, x, e, f, options, seed, runner, cache_dir)
    return loop.run(validation, progress)


class _Loop:
    """State of one training: weights, their average, the optimiser, the order of the frames."""

    def __init__(
        self,
        potential: Potential,
        x: Tensor,
        e: Tensor,
        f: Tensor,
        options: TrainingOptions,
        seed: int,
        runner: str,
        cache_dir: Path | None,
    ) -> None:
        self.potential = potential
        self.data = (x, e, f)
        self.options = options
        self.names = [name for name, _ in potential.named_parameters()]
        self.weights = [weight.detach().clone() for weight in potential.parameters()]
        self.average = [weight.clone() for weight in self.weights]
        buffer_names = [name for name, _ in potential.named_buffers()]
        # Energies are centred, so that single precision does not lose their differences.
        self.buffers = [
            torch.zeros_like(buffer) if name == "energy_shift" else buffer.contiguous()
            for name, buffer in potential.named_buffers()
        ]
        self.scale = f.square().mean().sqrt().reshape(1)
        self.optimiser = torch.optim.Adam(self.weights, lr=options.learning_rate, foreach=True)
        self.generator = torch.Generator().manual_seed(seed)
        self.order = torch.empty(0, dtype=torch.long)
        self.typical_norm = math.inf
        self.step_function = compile_function(
            _step_function(potential, self.names, buffer_names, options.energy_weight),
            [*self.weights, *self.buffers, self.scale, *self._batch()],
            runner=runner,
            name="training_step",
            cache_dir=cache_dir,
        )

    def _batch(self) -> tuple[Tensor, Tensor, Tensor]:
        size = self.options.batch_size
        while len(self.order) < size:
            self.order = torch.cat([self.order, torch.randperm(len(self.data[0]), generator=self.generator)])
        index, self.order = self.order[:size], self.order[size:]
        x, e, f = self.data
        return x[index], e[index], f[index]

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
            for parameter, weight in zip(self.potential.parameters(), weights, strict=True):
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
                    entry |= {"validation_force_mae": force_mae, "validation_energy_mae": energy_mae}
                    if force_mae < best_error:
                        best_weights, best_error, stale = [weight.clone() for weight in self.average], force_mae, 0
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
    potential: Potential, names: list[str], buffer_names: list[str], energy_weight: float
) -> Callable[[list[Tensor]], tuple[Tensor, ...]]:
    """(weights, buffers, force scale, positions, energies, forces) -> (loss, gradients of the weights)."""
    n_weights, n_buffers = len(names), len(buffer_names)
    n_atoms = len(potential.numbers)

    def step(inputs: list[Tensor]) -> tuple[Tensor, ...]:
        weights = [weight.detach().requires_grad_() for weight in inputs[:n_weights]]
        state = dict(zip(names, weights, strict=True))
        state |= dict(zip(buffer_names, inputs[n_weights : n_weights + n_buffers], strict=True))
        scale, x, e, f = inputs[n_weights + n_buffers :]
        # Each member gets its own copy of the positions: per-member forces from one backward.
        copies = x.unsqueeze(0).expand(potential.n_members, -1, -1, -1).clone().requires_grad_()
        energy, _ = functional_call(potential, state, (copies,))
        (gradient,) = torch.autograd.grad(energy.sum(), copies, create_graph=True)
        force_error = (gradient + f) / scale
        energy_error = (energy - e) / (scale * 0.1 * math.sqrt(n_atoms))
        force_loss = (force_error.square().sum(-1) + NORM_FLOOR**2).sqrt().mean((1, 2))
        energy_loss = (energy_error.square() + NORM_FLOOR**2).sqrt().mean(1)
        loss = (force_loss + energy_weight * energy_loss).sum()
        return (loss, *torch.autograd.grad(loss, weights))

    return step
