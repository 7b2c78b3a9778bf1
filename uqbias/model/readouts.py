"""An uncertainty fitted to frames; its weights, where it has some, trained on the errors of a frozen potential."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uqbias.errors import UqbiasError
from uqbias.molecule.frames import Frames
from uqbias.molecule.topology import Topology
from uqbias.potentials.base import Potential
from uqbias.potentials.prediction import Readouts, predict
from uqbias.uncertainty.base import Sample, Uncertainty, energy_unit
from uqbias.uncertainty.elements import known_elements
from uqbias.uncertainty.heads import ElementNetwork, TrainedKind

STEPS, BATCH, LEARNING_RATE = 1000, 32, 1e-2
#: Every so many steps the weights are tried on the fifth of the frames that is kept from them.
EVERY, KEPT = 50, 5


def fit_uncertainty(
    potential: Potential,
    part: Uncertainty,
    frames: Frames | Sequence[Frames],
    seed: int,
    systems: Sequence[Topology] = (),
) -> None:
    """Fit an uncertainty to frames, with what the potential says of them.

    Parameters
    ----------
    frames : of the system of potential and part; or of several, whose bond graphs are ``systems``.
    """
    sets = [frames] if isinstance(frames, Frames) else list(frames)
    for one in sets:
        part.record_seen(one)
    if potential.frozen and isinstance(part, TrainedKind):
        train_readouts(
            potential, [part.with_topology(each) for each in systems] if len(sets) > 1 else [part], sets, seed
        )
    members = part.requires_forces and part.readouts is None
    forces: Literal["members", "none"] = "members" if members else "none"
    samples = []
    for index, one in enumerate(sets):
        here, placed = potential, part
        if len(sets) > 1:
            here, placed = potential.with_numbers(systems[index].numbers), part.with_topology(systems[index])
        prediction = predict(here, one.positions, forces=forces, cells=one.cells, periodic=one.periodic)
        positions = torch.as_tensor(one.positions).to(prediction.energy)
        terms = (prediction.energy, prediction.latents, prediction.member_forces)
        samples.append(Sample(placed, positions, *terms, partial(_forces_of, here, one)))
    part.fit_systems(samples, seed=seed)


def _forces_of(potential: Potential, frames: Frames, readouts: Readouts, chosen: NDArray[np.intp]) -> Tensor:
    part = frames[chosen]
    options: dict[str, Any] = {"cells": part.cells, "periodic": part.periodic, "readouts": readouts}
    forces = predict(potential, part.positions, forces="none", **options).member_forces
    assert forces is not None
    return forces


def train_readouts(potential: Potential, parts: Sequence[TrainedKind], sets: Sequence[Frames], seed: int) -> None:
    """Train the weights of an uncertainty on a potential whose weights stay, by `Uncertainty.loss`.

    The potential is evaluated once. Energies are counted from its mean error over the frames of each system, since
    others' models have another zero. The best weights on a fifth of the frames are kept.

    Parameters
    ----------
    potential : frozen.
    parts : the uncertainty for the atoms of each system; all share their weights.
    sets : labelled frames of each system, which the potential has not been trained on.
    seed : seed of the order of the frames.

    Raises
    ------
    UqbiasError
        If there are no labels, fewer than 10 frames of a system, or the loss is not finite.
    """
    for frames in sets:
        if frames.forces is None or len(frames) < 2 * KEPT:
            what = f"{len(frames)} frames" if frames.forces is not None else f"{frames.source} without labels"
            raise UqbiasError(
                f"{what} for the weights of '{parts[0].kind}', which learns from errors",
                f"give {2 * KEPT} labelled frames or more, or choose gmm, distance or llpr",
            )
    scale = math.sqrt(np.mean([np.square(frames.labels()[1]).mean() for frames in sets]))
    parts[0].set_force_unit(scale)
    data = [_errors(potential, frames, scale) for frames in sets]
    restore = _begin(parts, [each[2] for each in data], seed)
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(frames)) for frames in sets]
    trained = list(parts[0].parameters())
    optimiser = torch.optim.Adam(trained, lr=LEARNING_RATE)
    best, kept = math.inf, [weight.detach().clone() for weight in trained]

    def loss(index: int, chosen: NDArray[np.intp]) -> Tensor:
        value = parts[index].loss(*(tensor[:, torch.as_tensor(chosen)] for tensor in data[index]))
        assert value is not None
        return value

    with torch.enable_grad():  # type: ignore[no-untyped-call]
        for step in range(STEPS + 1):
            if step % EVERY == 0:
                with torch.no_grad():
                    value = float(sum(loss(at, order[: len(order) // KEPT]) for at, order in enumerate(orders)))
                if not math.isfinite(value):
                    raise UqbiasError(f"the loss of '{parts[0].kind}' is {value} at step {step}", "check the labels")
                if value < best:
                    best, kept = value, [weight.detach().clone() for weight in trained]
            at = int(rng.integers(len(sets)))
            optimiser.param_groups[0]["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / (STEPS + 1)))
            optimiser.zero_grad()
            loss(at, rng.choice(orders[at][len(orders[at]) // KEPT :], BATCH)).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    with torch.no_grad():
        for weight, best_weight in zip(trained, kept, strict=True):
            weight.copy_(best_weight)
        restore()


def _begin(parts: Sequence[TrainedKind], latents: Sequence[Tensor], seed: int) -> Callable[[], None]:
    """Draw weights anew, and scale latents to mean 0 and spread 1 for each element; what it returns undoes the latter.

    Others' latents may be of any size. Scale and mean go into the first layer in the end.
    """
    draw, moves = torch.Generator().manual_seed(seed), []
    elements = known_elements(parts[0].numbers, parts[0].known)
    for number in elements:
        places = [torch.tensor(part.numbers) == number for part in parts]
        those = [values[..., place, :] for values, place in zip(latents, places, strict=True)]
        flat = torch.cat([each.flatten(0, -2) for each in those])
        mean = flat.mean(0) if len(flat) else flat.new_zeros(flat.shape[-1])
        spread = flat.std(0, correction=0) if len(flat) else torch.ones_like(mean)
        spread = torch.where(spread > 1e-3 * spread.max(), spread, spread.max().clamp(min=1e-12))
        moves.append((mean, spread))
        for values, place in zip(latents, places, strict=True):
            values[..., place, :] = (values[..., place, :] - mean) / spread
    network = next(module for module in parts[0].modules() if isinstance(module, ElementNetwork))
    with torch.no_grad():
        for weight, bias in zip(network.weights, network.biases, strict=True):
            fresh = torch.randn(weight.shape, generator=draw) / math.sqrt(weight.shape[1])
            weight.copy_(fresh)
            bias.zero_()

    def restore() -> None:
        for index, (mean, spread) in enumerate(moves):
            network.weights[0][index] /= spread[:, None]
            network.biases[0][index] -= mean @ network.weights[0][index]

    return restore


def _errors(potential: Potential, frames: Frames, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Errors of energies and forces, and latents, of the mean over the members: arguments of `Uncertainty.loss`."""
    here = potential.with_numbers(frames.numbers.tolist())
    said = predict(here, frames.positions, cells=frames.cells, periodic=frames.periodic)
    assert said.forces is not None
    energies, forces = frames.labels()
    off = said.energy.double().mean(0) + float(here.energy_shift) - torch.as_tensor(energies)
    off = (off - off.mean()) / (scale * energy_unit(len(frames.numbers)))
    wrong = (said.forces.double() - torch.as_tensor(forces)) / scale
    return off[None].to(said.energy), wrong[None].to(said.energy), said.latents[:1]
