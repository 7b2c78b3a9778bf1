"""Energy, uncertainty, bias and total forces of all walkers from one forward and one backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from uqbias.compile.runners import compile_function
from uqbias.errors import UqbiasError

#: Forces beyond this, in kJ/mol/nm, mark a walker as broken: 1e6 is ten thousand times a typical force.
FORCE_LIMIT = 1e6
#: State tensors of a bias with this name (after the last dot) may grow along dimension 0 without a new graph.
GROWING = "table"


class BiasLike(Protocol):
    """What the evaluator asks of a bias; see `uqbias.bias.base.Bias`."""

    def state(self) -> dict[str, Tensor]: ...
    def energy(self, u: Tensor, E: Tensor, state: Mapping[str, Tensor]) -> Tensor: ...
    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Any: ...


class Evaluation(NamedTuple):
    """What one evaluation gives for W walkers of N atoms; tensors without autograd history."""

    #: [W] potential energy of the model E, kJ/mol.
    energy: Tensor
    #: [W] driver u that the bias acts on.
    cv: Tensor
    #: [W] judge: calibrated uncertainty, kJ/mol/nm.
    uncertainty: Tensor
    #: [W] bias V(u, E), kJ/mol.
    bias: Tensor
    #: [W, N, 3] -dE/dx - dV/dx, kJ/mol/nm; zero for a broken walker.
    forces: Tensor


class FusedEvaluator:
    """A model and a bias compiled to one graph whose inputs are positions, weights and the state of the bias.

    New weights (`load_model`), new hills and a grown bias grid need no new graph.

    Parameters
    ----------
    model : `uqbias.model.UncertaintyModel`, or a module with ``numbers`` and
        ``forward(positions [W, N, 3]) -> (energy [W], cv [W], uncertainty [W])``.
    bias : ``bias.energy(cv, energy, state)`` is added to the energy; None for no bias. Its state is moved to ``dtype``
        and ``device``.
    n_walkers : W, fixed.
    runner : ``auto``, ``aoti``, ``torchscript`` or ``eager``; see `uqbias.compile.runners.compile_function`.
    dtype : float32 or float64, of weights, state and outputs.
    device : where the graph runs.
    cache_dir : of compiled graphs.
    energy_only : leave out uncertainties and bias (zeros in the `Evaluation`).
    include_energy : False to leave -dE/dx out of the forces and E out of ``total_energy``: only the bias acts, on top
        of another force field.

    Attributes
    ----------
    n_walkers, n_atoms, numbers : sizes and atomic numbers.
    runner : name of the runner in use.
    last : the latest `Evaluation`, or None.
    total_energy : sum of E + V (or V) over walkers that are not broken, of the latest evaluation; tensor [], kJ/mol.
    n_evaluations : evaluations so far, memo hits not counted.
    broken : [W] host array; True where an energy or force was not finite or above 1e6 kJ/mol/nm in any evaluation
        since the caller last set it to False. The forces of such a walker are zero.
    exception : what stopped the latest evaluation under OpenMM, or None; see `reraise`.

    Raises
    ------
    UqbiasError
        If the sizes, the dtype or the runner are invalid.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        bias: BiasLike | None,
        n_walkers: int,
        *,
        runner: str = "auto",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        cache_dir: Path | None = None,
        energy_only: bool = False,
        include_energy: bool = True,
    ) -> None:
        if n_walkers < 1:
            raise UqbiasError(f"{n_walkers} walkers", "give at least one")
        if not include_energy and (energy_only or bias is None):
            raise UqbiasError("neither energy nor bias is to act", "give a bias, or include the energy")
        self.numbers: tuple[int, ...] = tuple(int(number) for number in model.numbers)  # type: ignore[union-attr, arg-type]
        self.n_walkers, self.n_atoms = n_walkers, len(self.numbers)
        self.bias = None if energy_only else bias
        self.dtype, self.device = dtype, torch.device(device)
        self.last: Evaluation | None = None
        self.total_energy = torch.zeros((), dtype=dtype)
        self.n_evaluations = 0
        self.broken: NDArray[np.bool_] = np.zeros(n_walkers, dtype=bool)
        self._broken = torch.from_numpy(self.broken)
        self.exception: BaseException | None = None
        self._memo_armed = False

        self._signature = _signature(model)
        self._weight_names, self._inputs = graph_inputs(model, n_walkers, dtype, self.device)
        self._positions = self._inputs[0]
        self._state_slots: list[tuple[int, str]] = []
        dynamic = {}
        if self.bias is not None:
            self.bias.to(dtype, self.device)
            for index, (name, tensor) in enumerate(self.bias.state().items(), start=len(self._inputs)):
                self._state_slots.append((index, name))
                if name.rpartition(".")[2] == GROWING:
                    dynamic[index] = 0
                self._inputs.append(tensor)
        compiled = compile_function(
            _fused_function(model, self._weight_names, self._state_slots, self.bias, energy_only, include_energy),
            self._inputs,
            runner=runner,
            name="energy" if energy_only else "fused" if include_energy else "bias",
            dynamic=dynamic,
            cache_dir=cache_dir,
        )
        self.runner = compiled.runner
        self._run = compiled.unchecked

    def evaluate(self, positions: Tensor) -> Evaluation:
        """Evaluate all walkers.

        Parameters
        ----------
        positions : [W, N, 3] nm, any floating dtype and device, without autograd.
        """
        if self._memo_armed:
            self._memo_armed = False
            if self.last is not None and torch.equal(positions.to(self.device, self.dtype), self._positions):
                return self.last
        self._positions.copy_(positions)
        inputs = self._inputs
        if self.bias is not None:
            state = self.bias.state()
            for index, name in self._state_slots:
                inputs[index] = state[name]
        energy, cv, uncertainty, bias, forces, self.total_energy, broken = self._run(inputs)
        self._broken.logical_or_(broken if broken.device.type == "cpu" else broken.cpu())
        self.n_evaluations += 1
        self.last = Evaluation(energy, cv, uncertainty, bias, forces)
        return self.last

    def evaluate_for_host(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Total energy [] and forces [W*N, 3] for OpenMM; an exception is kept in `exception`.

        OpenMM turns an exception inside a force into an OpenMMException with little of the message.
        """
        try:
            evaluation = self.evaluate(positions.view(self.n_walkers, self.n_atoms, 3))
            # TorchForce reads the memory without looking at strides, which compiled code may choose as it likes.
            return self.total_energy, evaluation.forces.reshape(-1, 3).contiguous()
        except BaseException as error:
            self.exception = error
            raise

    def reraise(self) -> None:
        """Raise the exception that stopped an evaluation under OpenMM, if there is one."""
        error, self.exception = self.exception, None
        if error is not None:
            raise error

    def load_model(self, model: torch.nn.Module) -> None:
        """Take the weights and buffers of another model of the same architecture; nothing is traced or compiled.

        Raises
        ------
        UqbiasError
            If a tensor is missing or has another shape.
        """
        weights = _weights(model)
        if list(weights) != self._weight_names or tuple(model.numbers) != self.numbers:  # type: ignore[arg-type]
            raise UqbiasError("the model has another architecture or other atoms", "make a new FusedEvaluator")
        if _signature(model) != self._signature:
            raise UqbiasError(
                "the model has the same tensors but other options of potential, driver, judge or calibration",
                "make a new FusedEvaluator",
            )
        for name, new, old in zip(weights, weights.values(), self._inputs[1:], strict=False):
            if new.shape != old.shape:
                raise UqbiasError(
                    f"'{name}' has shape {tuple(new.shape)}, the compiled graph takes {tuple(old.shape)}",
                    "make a new FusedEvaluator",
                )
        for index, tensor in enumerate(weights.values(), start=1):
            self._inputs[index].copy_(tensor.detach())
        self._memo_armed = False
        self.last = None

    def arm_memo(self) -> None:
        """Let the next evaluation, if it is at bitwise the same positions, return `last`.

        Call it after the host has observed the current positions: the integrator's next step starts with an evaluation
        at these positions, which is then free, and hills deposited at step k act from step k+1 on, as in PLUMED.
        """
        self._memo_armed = True


def graph_inputs(
    model: torch.nn.Module, n_walkers: int, dtype: torch.dtype, device: torch.device | str
) -> tuple[list[str], list[Tensor]]:
    """Inputs of a graph of ``model``: positions [W, N, 3] and contiguous copies of its weights, with their names.

    Raises
    ------
    UqbiasError
        If ``dtype`` is neither float32 nor float64.
    """
    if dtype not in {torch.float32, torch.float64}:
        raise UqbiasError(f"evaluation in {dtype}", "choose float32 or float64")
    n_atoms = len(model.numbers)  # type: ignore[arg-type]
    positions = torch.zeros(n_walkers, n_atoms, 3, dtype=dtype, device=device)
    # Spread out, so that tracing, which runs the model once, does not divide by a distance of zero.
    positions.copy_(0.1 * torch.arange(3.0 * n_atoms).reshape(-1, 3) ** 1.1)
    weights = _weights(model)
    copies = [
        tensor.detach().to(device, dtype if tensor.is_floating_point() else tensor.dtype, copy=True).contiguous()
        for tensor in weights.values()
    ]
    return list(weights), [positions, *copies]


def _signature(model: torch.nn.Module) -> str:
    """What the graph depends on beside shapes; empty for a module that does not tell."""
    signature = getattr(model, "signature", None)
    return str(signature()) if callable(signature) else ""


def _weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; tensors of a module used twice appear once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _fused_function(
    model: torch.nn.Module,
    weight_names: list[str],
    state_slots: list[tuple[int, str]],
    bias: BiasLike | None,
    energy_only: bool,
    include_energy: bool,
) -> Any:
    """The function to flatten: inputs as in FusedEvaluator._inputs, outputs as evaluate unpacks them."""

    def function(inputs: list[Tensor]) -> tuple[Tensor, ...]:
        positions = inputs[0].detach().requires_grad_()
        weights = dict(zip(weight_names, inputs[1:], strict=False))
        energy, cv, uncertainty = functional_call(model, weights, (positions,))
        added = torch.zeros_like(energy)
        if energy_only:
            cv, uncertainty = added, added
        elif bias is not None:
            added = bias.energy(cv, energy, {name: inputs[index] for index, name in state_slots})
        total = energy + added if include_energy else added
        (gradient,) = torch.autograd.grad(total.sum(), positions)
        # A comparison with NaN is false, so this also finds what is not finite.
        sound = (gradient.abs() <= FORCE_LIMIT).flatten(1).all(1) & torch.isfinite(total)
        forces = torch.where(sound.view(-1, 1, 1), -gradient, torch.zeros_like(gradient))
        total = torch.where(sound, total, torch.zeros_like(total)).sum()
        return energy, cv.clone(), uncertainty.clone(), added.clone(), forces, total, ~sound

    return function
