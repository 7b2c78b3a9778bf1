"""Labelled frames as the tensors of a training step, drawn in batches: of one system, or of several in layouts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uqbias.errors import UqbiasError
from uqbias.model.padded import pad, reference_energies
from uqbias.molecule.cells import volume
from uqbias.molecule.frames import Frames
from uqbias.molecule.geometry import Geometry
from uqbias.potentials.base import Potential
from uqbias.potentials.prediction import geometry_for
from uqbias.settings.training_sections import TrainingOptions
from uqbias.uncertainty.base import energy_unit

Array = NDArray[np.float64]
#: Frames of several systems from which inputs are scaled.
SCALED = 256


class Batches:
    """Frames of one layout, n of them.

    Parameters
    ----------
    potential : of the atoms, or places, of the frames.
    data : positions, energies, forces and, where stresses are learned, virials: [n, ...].
    geometry : cells and tables of the frames, or None.
    scale : [] typical force, kJ/mol/nm.
    """

    def __init__(self, potential: Potential, data: list[Tensor], geometry: Geometry | None, scale: Tensor) -> None:
        self.potential, self.geometry = potential, geometry
        self.scale = scale.to(data[0])
        tables = [] if geometry is None else geometry.tensors()
        # Tables of many frames are large: they are kept as small numbers.
        self.data = data + [_small(tensor) for tensor in tables]
        self.kinds = [tensor.dtype for tensor in data + tables]
        self.orders: list[_Order] = []

    def __len__(self) -> int:
        return len(self.data[0])

    def shuffle(self, seed: int, bootstrap: bool) -> None:
        """Begin to draw; each committee member has an order of its own."""
        members = range(self.potential.n_members)
        self.orders = [_Order(len(self), seed + 1000 * member, bootstrap) for member in members]

    def next(self, size: int) -> list[Tensor]:
        """Tensors of the next ``size`` frames of each member, [M, size, ...]."""
        index = torch.stack([order.next(size) for order in self.orders])
        return [tensor[index].to(kind) for tensor, kind in zip(self.data, self.kinds, strict=True)]


def check_labels(frames: Frames, options: TrainingOptions) -> None:
    """Refuse frames without the labels that are learned."""
    if frames.energies is None or (frames.forces is None and options.force_weight):
        frames.labels()
    if options.stress_weight and (frames.stresses is None or frames.cells is None):
        raise UqbiasError(
            f"training.stress_weight is {options.stress_weight:g}, and not every training frame has a stress",
            "label them with stress, or set training.stress_weight to 0",
        )


def _forces(frames: Frames) -> Array:
    """Forces [n, N, 3]; where there are none, only their size counts: energies are then measured in their spread."""
    if frames.forces is not None:
        return frames.forces
    assert frames.energies is not None
    spread = max(float(frames.energies.std()), 1e-6)
    return np.full(frames.positions.shape, spread / energy_unit(len(frames.numbers)))


def _virials(frames: Frames) -> Array:
    assert frames.stresses is not None
    assert frames.cells is not None
    return np.asarray(frames.stresses * volume(frames.cells)[:, None, None])


def of_one(potential: Potential, frames: Frames, options: TrainingOptions, warm_start: bool) -> Batches:
    """Frames of one system; the potential is standardised with them unless ``warm_start``."""
    if tuple(frames.numbers.tolist()) != potential.numbers:
        raise UqbiasError(
            f"training frames have atoms {frames.numbers.tolist()}, the potential {list(potential.numbers)}",
            "train a model of this molecule",
        )
    dtype, energies = next(potential.parameters()).dtype, frames.energies
    assert energies is not None
    x, e, f = (
        torch.as_tensor(array).to(dtype).contiguous()
        for array in (frames.positions, energies - energies.mean(), _forces(frames))
    )
    geometry = geometry_for(potential, x, frames.cells, frames.periodic)
    if not warm_start:
        scales = (x, torch.as_tensor(energies), f)
        potential.standardise(*scales) if geometry is None else potential.standardise(*scales, geometry)
        potential.element_energies = reference_energies([frames])
    else:
        e = e + (float(energies.mean()) - float(potential.energy_shift))
    virials = [torch.as_tensor(_virials(frames)).to(dtype)] if options.stress_weight else []
    return Batches(potential, [x, e, f, *virials], geometry, f.square().mean().sqrt())


def of_several(
    potential: Potential, sets: Sequence[Frames], options: TrainingOptions, warm_start: bool
) -> list[Batches]:
    """Frames of several systems in few layouts; as `of_one`."""
    forces = [_forces(frames) for frames in sets]
    squares = [np.square(each).mean() for each in forces]
    weights = [len(frames) for frames in sets]
    scale = torch.tensor(math.sqrt(np.average(squares, weights=weights)), dtype=torch.float64)
    if not warm_start:
        potential.element_energies = reference_energies(sets)
        potential.energy_shift.fill_(potential.element_sum(potential.numbers))
        share = min(1.0, SCALED / sum(len(frames) for frames in sets))
        (all_in_one,) = pad(potential, [frames[: math.ceil(share * len(frames))] for frames in sets], 1)
        x = all_in_one.positions
        all_in_one.potential.standardise(
            x, torch.zeros(len(x), dtype=torch.float64), torch.full_like(x, float(scale)), all_in_one.geometry
        )
    batches = []
    for layout in pad(potential, sets):
        e = []
        for index in layout.members:
            zero = float(potential.with_numbers(sets[index].numbers.tolist()).energy_shift)
            e.append(torch.as_tensor(np.asarray(sets[index].energies) - zero))
        data = [layout.positions, torch.cat(e).to(layout.positions), layout.spread(forces)]
        if options.stress_weight:
            virials = [torch.as_tensor(_virials(sets[index])) for index in layout.members]
            data.append(torch.cat(virials).to(layout.positions))
        batches.append(Batches(layout.potential, data, layout.geometry, scale))
    return batches


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
