"""The objective that an attack climbs, and the graph that gives it with its gradient."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from torch import Tensor
from torch.func import functional_call

from uqbias.attacks.base import DistortionSpace
from uqbias.compile.graph_inputs import SHIFT as OF_POTENTIAL
from uqbias.compile.graph_inputs import graph_inputs
from uqbias.compile.runners import compile_function
from uqbias.errors import UqbiasError
from uqbias.model.model import UncertaintyModel
from uqbias.molecule.frames import Frames
from uqbias.molecule.geometry import Geometry
from uqbias.molecule.neighbours import NeighbourList
from uqbias.potentials.prediction import neighbour_list
from uqbias.units import kt

Array = NDArray[np.float64]
#: Width of the rounding of u⁺ at zero, as a share of the spread of u: u⁺ is within 0.5 % of u from one spread on.
ROUNDING = 0.25
#: nm, how much further than the cutoff tables of neighbours look, so that they last.
SKIN = 0.1
#: Name of the zero of the energies among the weights of the graph.
SHIFT = f"model.{OF_POTENTIAL}"


@dataclass(frozen=True)
class Objective:
    r"""Logarithm of the likelihood that an adversarial attack climbs.

    .. math:: \ln L(\delta) = \ln u^+(x_\delta) - \frac{E(x_\delta) - E_0}{kT} - \ln Q, \qquad
              Q = \sum_i e^{-(E_i - E_0)/kT}, \qquad u^+ = s \ln(1 + e^{u/s})

    with the training energies E_i, of which E₀ is the lowest. The logarithm grows with L, so both have the same maxima,
    and neither E nor Q can overflow. Schwalbe-Koda, Tan and Gómez-Bombarelli, Nat. Commun. 12, 5104 (2021), equation 7
    with the adversarial loss 8, where u is the force variance of a committee.

    A log-density may be zero or negative, so u is replaced by u⁺, which is positive and smooth, close to u where u
    exceeds the spread of u over the given frames, and s·exp(u/s) far below zero: there one s is worth one kT.

    Attributes
    ----------
    temperature : temperature of the Boltzmann factor, K.
    reference : E₀, kJ/mol.
    log_partition : ln Q.
    scale : s, in the unit of u.
    of : ``judge`` (the calibrated judge) or ``driver`` (the driver).
    """

    temperature: float
    reference: float
    log_partition: float
    scale: float
    of: str = "judge"

    @classmethod
    def from_frames(
        cls, energy: Array, u: Array, temperature: float, of: str = "judge", scale: float | None = None
    ) -> Objective:
        """Take Q from energies [n] and s from uncertainties [m]; values that are not finite are left out.

        The spread is the distance of the median of u from its 16 % quantile.

        Parameters
        ----------
        scale : s itself, in place of a quarter of the spread.

        Raises
        ------
        UqbiasError
            If no energy or uncertainty is finite, or the temperature is not above zero.
        """
        if not (math.isfinite(temperature) and temperature > 0):
            raise UqbiasError(f"attack at {temperature} K", "give a temperature above 0 K")
        energy, u = (values[np.isfinite(values)] for values in (np.asarray(energy, float), np.asarray(u, float)))
        for name, values in (("energy", energy), (of, u)):
            if not len(values):
                raise UqbiasError(f"the model's {name} is finite for none of the frames", "check frames and model")
        reference = float(energy.min())
        return cls(temperature, reference, log_partition(energy - reference, temperature), scale or _scale(u), of)

    def __call__(self, u: Array, energy: Array) -> Array:
        """Value of ln L for u [...] and E [...] kJ/mol."""
        return self.log_positive(u) - (energy - self.reference) / kt(self.temperature) - self.log_partition

    def log_positive(self, u: Array) -> Array:
        """Logarithm of u⁺."""
        # ln softplus(z) is z for z << 0, where the softplus itself would be rounded to zero.
        z = np.asarray(u, dtype=float) / self.scale
        value = np.log(np.maximum(np.logaddexp(0.0, z), np.finfo(float).tiny))
        return np.asarray(np.where(z < -30.0, z, value) + math.log(self.scale))


def log_partition(energy: Array, temperature: float) -> float:
    """Logarithm of Σ exp(-E_i/kT) of energies [n] in kJ/mol; nothing overflows, at any energy."""
    return float(logsumexp(-np.asarray(energy, dtype=np.float64) / kt(temperature)))


def log_softplus(z: Tensor) -> Tensor:
    """Logarithm of ln(1 + exp z), with a finite gradient for any z."""
    low = z < -15.0
    # Each branch sees a harmless number where the other one counts, so that no gradient is 0 times infinity.
    inside = torch.where(low, torch.zeros_like(z), z)
    return torch.where(low, z, torch.log(torch.nn.functional.softplus(inside)))


def _scale(u: Array) -> float:
    # The lower half: a broken frame among the others, or few very uncertain ones, must not change it.
    spread = float(np.subtract(*np.quantile(u, [0.5, 0.16])))
    size = float(np.median(np.abs(u)))
    if not spread > 1e-6 * size:  # one frame, or equal ones
        spread = size or 1.0
    return ROUNDING * spread


class Point(NamedTuple):
    """Values of the graph for W attacks; host arrays in double precision."""

    #: [W, N, 3] nm.
    positions: Array
    #: [W] kJ/mol, from the ``energy_shift`` of the graph.
    energy: Array
    #: [W] driver.
    driver: Array
    #: [W] judge.
    judge: Array
    #: [W, D] of ln L with respect to δ.
    gradient: Array


class AttackGraph:
    """Model and distortion space in one graph: (base, δ, weights, 1/kT, s) to (x, E, u, driver, gradient of ln L).

    Everything that changes between rounds or temperatures is an input, so that a graph compiled once, and kept in the
    cache, serves all models of an architecture on a molecule. The zero of the energies is taken out of the graph: total
    energies of -10⁹ kJ/mol keep their digits in single precision.

    Parameters
    ----------
    width : W, attacks that are evaluated together.
    bases : sound geometries, on which machine code is checked against the graph; in cells, all attacks are.

    Attributes
    ----------
    energy_shift : kJ/mol to add to the energies.
    """

    def __init__(
        self,
        model: UncertaintyModel,
        space: DistortionSpace,
        width: int,
        bases: Frames,
        objective: Objective,
        *,
        runner: str = "auto",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        cache_dir: Path | None = None,
    ) -> None:
        names, inputs = graph_inputs(model, width, dtype, device)
        # A copy: where the judge is the driver, functional_call of torch 2.9 leaves the graph's tensors in the module.
        self._whole = _ModelInSpace(copy.deepcopy(model), space)
        self._names = [f"model.{name}" for name in names]
        buffers = {f"space.{name}": tensor for name, tensor in space.named_buffers()}
        self._names += list(buffers)
        inputs += [
            tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
            for tensor in buffers.values()
        ]
        self.energy_shift = 0.0
        if SHIFT in self._names:
            self.energy_shift = float(model.potential.energy_shift)
            inputs[1 + self._names.index(SHIFT)].zero_()
        random = torch.Generator().manual_seed(0)
        delta = 0.1 * space.default_noise * torch.randn(width, space.n_coordinates, generator=random)
        numbers = torch.tensor([1.0 / kt(objective.temperature), objective.scale])
        inputs += [delta.to(device, dtype), numbers.to(device, dtype)]
        self._inputs, self._end, self.width = inputs, len(inputs), width
        inputs[0].copy_(torch.from_numpy(np.resize(bases.positions, (width, *bases.positions.shape[1:]))))
        self._of, self._space = objective.of, space
        self._list: NeighbourList | None = None
        self._geometry: Geometry | None = None
        if bases.cells is not None:
            self._list = neighbour_list(model.potential, box=True, periodic=bases.periodic, skin=SKIN)
        self._compile = partial(compile_function, self._function, runner=runner, name="attack", cache_dir=cache_dir)
        if bases.cells is None:
            self._compiled = self._compile(inputs)
        else:
            self._place(np.resize(bases.cells, (width, 3, 3)))
        self.runner = self._compiled.runner

    def _place(self, cells: Array) -> None:
        """Put cells [W, 3, 3] nm and the neighbours in them among the inputs; wider tables need another graph."""
        base, delta = self._inputs[0], self._inputs[self._end - 2]
        boxes = torch.from_numpy(cells).to(base)
        with torch.no_grad():
            positions = self._space(base.cpu().double(), delta.cpu().double()).to(base)
        before = self._geometry
        self._geometry = Geometry(boxes) if self._list is None else self._list.geometry(positions, boxes)
        self._inputs[self._end :] = self._geometry.tensors()
        if before is None or before.blocks != self._geometry.blocks:
            self._compiled = self._compile(self._inputs)

    def _function(self, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        base, *weights, delta, numbers = inputs[: self._end]
        geometry = self._geometry and self._geometry.with_tensors(inputs[self._end :])
        delta = delta.detach().requires_grad_()
        positions, energy, driver, judge = functional_call(
            self._whole, dict(zip(self._names, weights, strict=True)), (base, delta, geometry)
        )
        u = judge if self._of == "judge" else driver
        climbed = log_softplus(u / numbers[1]) - energy * numbers[0]
        (gradient,) = torch.autograd.grad(climbed.sum(), delta, materialize_grads=True)
        return positions.clone(), energy.clone(), driver.clone(), judge.clone(), gradient

    def __call__(self, bases: Array, delta: Array, cells: Array | None = None) -> Point:
        """Evaluate W attacks at ``bases`` [W, N, 3] nm and ``delta`` [W, D], in ``cells`` [W, 3, 3] nm."""
        self._inputs[0].copy_(torch.from_numpy(bases))
        self._inputs[self._end - 2].copy_(torch.from_numpy(delta))
        if cells is not None:
            self._place(cells)
        values = self._compiled.unchecked(self._inputs)
        return Point(*(tensor.detach().cpu().numpy().astype(np.float64) for tensor in values))


class _ModelInSpace(torch.nn.Module):
    """Geometry, energy, driver and judge at δ."""

    def __init__(self, model: UncertaintyModel, space: DistortionSpace) -> None:
        super().__init__()
        self.model = model
        self.space = space

    def forward(self, base: Tensor, delta: Tensor, geometry: Geometry | None) -> tuple[Tensor, ...]:
        positions = self.space(base, delta)
        energy, driver, judge, *_ = self.model(positions, geometry)
        return positions, energy.type_as(positions), driver, judge
