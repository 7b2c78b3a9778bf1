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

from uqbias.compile.graph_inputs import SHIFT, check_device, copied, graph_inputs, weights_of
from uqbias.compile.runners import compile_function, disagreement
from uqbias.errors import UqbiasError
from uqbias.variables.names import by_name, is_of_model, missing_part

#: Forces beyond this, in kJ/mol/nm, mark a walker as broken: 1e6 is ten thousand times a typical force.
FORCE_LIMIT = 1e6
#: State tensors of a bias with this name (after the last dot) may grow along dimension 0 without a new graph.
GROWING = "table"
#: Outputs of the graph that have a value for each walker: those of an `Evaluation` but the pull on variables.
PER_WALKER = 6


class BiasLike(Protocol):
    """What the evaluator asks of a bias; see `uqbias.bias.base.Bias`."""

    variables: tuple[str, ...]

    def state(self) -> dict[str, Tensor]: ...
    def energy(self, x: Tensor, state: Mapping[str, Tensor]) -> Tensor: ...
    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Any: ...


class Evaluation(NamedTuple):
    """What one evaluation gives for W walkers of N atoms; tensors without autograd history."""

    #: [W] potential energy of the model E, kJ/mol; this, the bias and its variables in float64.
    energy: Tensor
    #: [W] driver u that the bias acts on.
    driver: Tensor
    #: [W] judge: calibrated uncertainty, kJ/mol/nm.
    judge: Tensor
    #: [W] bias V, kJ/mol.
    bias: Tensor
    #: [W, N, 3] -dE/dx - dV/dx, kJ/mol/nm; zero for a broken walker.
    forces: Tensor
    #: [W, C] variables that the bias acts on, in its order.
    variables: Tensor
    #: [W, K] -dV/dy of the variables y that come from outside; zero for a broken walker.
    input_forces: Tensor


class FusedEvaluator:
    """A model and a bias compiled to one graph whose inputs are positions, weights and the state of the bias.

    New weights (`load_model`), new hills and a grown bias grid need no new graph. Variables of the bias that neither
    the model nor ``variables`` gives come from outside: extended variables, which OpenMM integrates, and variables that
    OpenMM computes. They are one more input of the graph, and the force on them one more output.

    Parameters
    ----------
    model : `uqbias.model.model.UncertaintyModel`, or a module with ``numbers`` and
        ``forward(positions [W, N, 3]) -> (energy [W], driver [W], judge [W])``, perhaps with the parts of the driver
        [W, K] as fourth and their names as ``local_names``.
    bias : ``bias.energy(x, state)`` is added to the energy; None for no bias. Its state is moved to float64, in which a
        total energy of -10⁸ kJ/mol has its digits, and to ``device``.
    n_walkers : W, fixed.
    variables : collective variables by name, modules ``positions [W, N, 3] -> [W]``; see `uqbias.variables`.
    runner : ``auto``, ``aoti``, ``torchscript`` or ``eager``; see `uqbias.compile.runners.compile_function`.
    dtype : float32 or float64, of weights, uncertainties and forces.
    device : where the graph runs.
    cache_dir : folder of compiled graphs.
    energy_only : leave out uncertainties and bias (zeros in the `Evaluation`).
    include_energy : False to leave -dE/dx out of the forces and E out of ``total_energy``: only the bias acts, on top
        of another force field.

    Attributes
    ----------
    n_walkers, n_atoms, numbers : sizes and atomic numbers.
    names : names of the C variables of the bias.
    input_names : those of them that come from outside, K.
    runner : name of the runner in use.
    last : the latest `Evaluation`, or None.
    total_energy : sum of E + V (or V) over walkers that are not broken, of the latest evaluation; tensor [], kJ/mol.
    n_evaluations, n_calls : evaluations so far, without and with memo hits.
    broken : [W] host array; True where an energy or force was not finite or above 1e6 kJ/mol/nm in any evaluation
        since the caller last set it to False. The forces of such a walker are zero.
    exception : what stopped the latest evaluation under OpenMM, or None; see `reraise`.

    Raises
    ------
    UqbiasError
        If the sizes, the dtype, the device or the runner are invalid, or the driver lacks a part that the bias acts on.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        bias: BiasLike | None,
        n_walkers: int,
        *,
        variables: Mapping[str, torch.nn.Module] | None = None,
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
        self.dtype, self.device = dtype, check_device(device)
        self.last: Evaluation | None = None
        self.total_energy = torch.zeros((), dtype=torch.float64)
        self.n_evaluations = self.n_calls = 0
        self.broken: NDArray[np.bool_] = np.zeros(n_walkers, dtype=bool)
        self._broken = torch.from_numpy(self.broken)
        self.exception: BaseException | None = None
        self._memo_armed = False

        self.names: tuple[str, ...] = () if self.bias is None else tuple(self.bias.variables)
        modules = {name: module for name, module in (variables or {}).items() if name in self.names}
        if lacking := missing_part(self.names, len(getattr(model, "local_names", ()))):
            raise UqbiasError(f"a bias acts on {lacking[0]}", lacking[1])
        self.input_names = tuple(name for name in self.names if name not in modules and not is_of_model(name))
        self._signature = _signature(model)
        # Weights of the model first: these are what load_model replaces.
        self._weight_names, self._inputs = graph_inputs(model, n_walkers, dtype, self.device)
        self._positions = self._inputs[0]
        whole = _ModelAndVariables(model, modules)
        self._extra_weights = [name for name in weights_of(whole) if name.startswith("variables.")]
        for name in self._extra_weights:
            self._inputs.append(copied(weights_of(whole)[name], dtype, self.device))
        self._from_outside = torch.zeros(n_walkers, len(self.input_names), dtype=torch.float64, device=self.device)
        self._outside_slot = len(self._inputs)
        if self.input_names:
            self._inputs.append(self._from_outside)
        self._state_slots: list[tuple[int, str]] = []
        dynamic = {}
        if self.bias is not None:
            self.bias.to(torch.float64, self.device)
            for index, (name, tensor) in enumerate(self.bias.state().items(), start=len(self._inputs)):
                self._state_slots.append((index, name))
                if name.rpartition(".")[2] == GROWING:
                    dynamic[index] = 0
                self._inputs.append(tensor)
        compiled = compile_function(
            self._function(whole, energy_only, include_energy),
            self._inputs,
            runner=runner,
            name="energy" if energy_only else "fused" if include_energy else "bias",
            dynamic=dynamic,
            cache_dir=cache_dir,
            check_inputs=self._check_inputs(),
        )
        self.runner = compiled.runner
        self._run, self._plain = compiled.unchecked, compiled.plain

    def _check_inputs(self) -> list[Tensor]:
        """Inputs with bias grids that span any value and are not zero, and without energy shift, so that all counts."""
        inputs = self._without_shift()
        random = torch.Generator().manual_seed(1)
        for index, name in self._state_slots:
            tensor, kind = inputs[index], name.rpartition(".")[2]
            if kind == GROWING:
                inputs[index] = torch.rand(tensor.shape, generator=random).to(tensor)
            elif kind in {"origin", "spacing"}:
                inputs[index] = torch.full_like(tensor, -1e3 if kind == "origin" else 40.0)
        return inputs

    def _without_shift(self) -> list[Tensor]:
        """Inputs by which energies begin from 0: an error is compared with their scale, which an offset hides."""
        inputs = list(self._inputs)
        if SHIFT in self._weight_names:
            place = 1 + self._weight_names.index(SHIFT)
            inputs[place] = torch.zeros_like(inputs[place])
        return inputs

    def evaluate(self, positions: Tensor, inputs: Tensor | None = None) -> Evaluation:
        """Evaluate all walkers.

        Parameters
        ----------
        positions : [W, N, 3] nm, any floating dtype and device, without autograd.
        inputs : [W, K] variables from outside, in the order of ``input_names``; zeros if None.
        """
        outside = torch.zeros_like(self._from_outside) if inputs is None else inputs
        self.n_calls, armed, self._memo_armed = self.n_calls + 1, self._memo_armed, False
        if armed and self.last is not None:
            pairs = (positions, self._positions), (outside, self._from_outside)
            if all(torch.equal(new.to(old), old) for new, old in pairs):
                return self.last
        self._positions.copy_(positions)
        self._from_outside.copy_(outside)
        self._bind_state({})
        *values, self.total_energy, broken = self._run(self._inputs)
        self.last = Evaluation(*values)
        self._broken.logical_or_(broken if broken.device.type == "cpu" else broken.cpu())
        self.n_evaluations += 1
        return self.last

    def verify(self, step: int) -> None:
        """Compare compiled code and graph at the latest positions, walkers without a finite number in both left out.

        Raises
        ------
        UqbiasError
            If they differ by more than rounding explains.
        """
        if self.runner == "eager":
            return
        self._bind_state({})
        # As it runs too: a bias on the energy acts at the energies that there are.
        for inputs in (self._inputs, self._without_shift()):
            values = [self._run(inputs)[:PER_WALKER], self._plain(inputs)[:PER_WALKER]]
            finite = [torch.stack([one.isfinite() for one in each[:4]]).all(0) for each in values]
            compared = finite[0] | finite[1]
            here, there = ([one[compared] for one in each] for each in values)
            problem = disagreement(here, there, least=1.0)
            if compared.any() and problem:
                raise UqbiasError(
                    f"at step {step} the {self.runner} code of this model does not give what its graph gives: "
                    f"{problem}",
                    "run it with runner eager, and report this",
                )

    def probe(self, state: Mapping[str, Tensor]) -> NDArray[np.float64]:
        """Forces [W, N, 3] kJ/mol/nm at the latest positions, with some state tensors of the bias replaced.

        One evaluation; neither `last` nor anything else here changes.
        """
        self._bind_state(state)
        *values, _, _ = self._run(self._inputs)
        self.n_evaluations += 1
        return np.asarray(Evaluation(*values).forces.detach().cpu().numpy(), dtype=np.float64)

    def _bind_state(self, replaced: Mapping[str, Tensor]) -> None:
        if self.bias is not None:
            state = self.bias.state()
            for index, name in self._state_slots:
                tensor = replaced.get(name)
                self._inputs[index] = state[name] if tensor is None else tensor.to(state[name])

    def evaluate_for_host(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Total energy [] and forces [P, 3] for OpenMM; an exception is kept in `exception`.

        OpenMM turns an exception inside a force into an OpenMMException with little of the message.

        Parameters
        ----------
        positions : [P, 3] nm, P = W·N atoms and then W·K particles, walker after walker, whose x coordinate is the
            value of a variable from outside.
        """
        try:
            atoms = self.n_walkers * self.n_atoms
            # Without variables from outside each operation saved here is a per mille of a step.
            outside = positions[atoms:, 0].reshape(self.n_walkers, -1) if self.input_names else None
            places = positions if outside is None else positions[:atoms]
            evaluation = self.evaluate(places.view(self.n_walkers, self.n_atoms, 3), outside)
        except BaseException as error:
            self.exception = error
            raise
        if not self.input_names:
            # TorchForce reads the memory without looking at strides, which compiled code may choose as it likes.
            return self.total_energy, evaluation.forces.reshape(-1, 3).contiguous()
        forces = evaluation.forces.new_zeros(len(positions), 3)
        forces[:atoms] = evaluation.forces.reshape(-1, 3)
        forces[atoms:, 0] = evaluation.input_forces.reshape(-1)
        return self.total_energy, forces

    def reraise(self) -> None:
        """Raise the exception that stopped an evaluation under OpenMM, if there is one."""
        error, self.exception = self.exception, None
        if error is not None:
            raise error

    def _function(self, whole: torch.nn.Module, energy_only: bool, include_energy: bool) -> Any:
        """The function to flatten: inputs as in ``_inputs``; outputs are an `Evaluation`, the total and what broke."""
        names = [f"model.{name}" for name in self._weight_names] + self._extra_weights
        outside_slot, columns, slots, bias = self._outside_slot, self.names, self._state_slots, self.bias
        input_names, n_walkers = self.input_names, self.n_walkers

        def function(inputs: list[Tensor]) -> tuple[Tensor, ...]:
            positions = inputs[0].detach().requires_grad_()
            weights = dict(zip(names, inputs[1:], strict=False))
            energy, driver, judge, values = functional_call(whole, weights, (positions,))
            energy, values = energy.double(), {name: value.double() for name, value in values.items()}
            added = torch.zeros_like(energy)
            x = energy.new_zeros(n_walkers, len(columns))
            roots = [positions]
            if energy_only:
                driver, judge = added, added
            elif bias is not None:
                if input_names:
                    roots.append(inputs[outside_slot].detach().requires_grad_())
                    values |= {name: roots[1][:, place] for place, name in enumerate(input_names)}
                x = torch.stack([values[name] for name in columns], dim=1)
                added = bias.energy(x, {name: inputs[index] for index, name in slots})
            total = energy + added if include_energy else added
            gradient, *outside = torch.autograd.grad(total.sum(), roots, materialize_grads=True)
            # A comparison with NaN is false, so this also finds what is not finite.
            sound = (gradient.abs() <= FORCE_LIMIT).flatten(1).all(1) & torch.isfinite(total)
            for one in outside:
                sound = sound & torch.isfinite(one).all(1)
            forces = torch.where(sound.view(-1, 1, 1), -gradient, torch.zeros_like(gradient))
            pulls = [torch.where(sound.view(-1, 1), -one, torch.zeros_like(one)) for one in outside]
            pull = pulls[0] if pulls else energy.new_zeros(n_walkers, 0)
            total = torch.where(sound, total, torch.zeros_like(total)).sum()
            return energy, driver.clone(), judge.clone(), added.clone(), forces, x.clone(), pull, total, ~sound

        return function

    def load_model(self, model: torch.nn.Module) -> None:
        """Take the weights and buffers of another model of the same architecture; nothing is traced or compiled.

        Raises
        ------
        UqbiasError
            If a tensor is missing or has another shape.
        """
        weights = weights_of(model)
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

    def arm_memo(self, armed: bool = True) -> None:
        """Let the next evaluation, if it is at bitwise the same positions, return `last`; not so if not ``armed``.

        Call it after the host has observed the current positions: the integrator's next step starts with an evaluation
        at these positions, which is then free, and hills deposited at step k act from step k+1 on, as in PLUMED.
        """
        self._memo_armed = armed

    def memo(self) -> dict[str, NDArray[Any]]:
        """The evaluation that `arm_memo` keeps for the next step, as arrays for a snapshot; empty if there is none."""
        if self.last is None or not self._memo_armed:
            return {}
        kept = {**self.last._asdict(), "positions": self._positions, "inputs": self._from_outside}
        kept["total"] = self.total_energy
        return {f"memo_{name}": tensor.detach().cpu().numpy().copy() for name, tensor in kept.items()}

    def restore_memo(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Put `memo` back, so that an interrupted run goes on with the forces that it had."""
        self.last, self._memo_armed = None, False
        if "memo_total" not in arrays:
            return
        tensors = {name: torch.as_tensor(arrays[f"memo_{name}"], device=self.device) for name in Evaluation._fields}
        self.last = Evaluation(**tensors)
        self._positions.copy_(torch.as_tensor(arrays["memo_positions"]))
        self._from_outside.copy_(torch.as_tensor(arrays["memo_inputs"]))
        self.total_energy = torch.as_tensor(arrays["memo_total"], device=self.device)
        self.arm_memo()


def _signature(model: torch.nn.Module) -> str:
    """What the graph depends on beside shapes; empty for a module that does not tell."""
    return str(getattr(model, "signature", str)())


class _ModelAndVariables(torch.nn.Module):
    """E, u and the judge of a model, and the variables that the graph computes."""

    def __init__(self, model: torch.nn.Module, variables: Mapping[str, torch.nn.Module]) -> None:
        super().__init__()
        self.model = model
        self.variables = torch.nn.ModuleDict(dict(variables))

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        values = by_name(self.model(positions))
        values |= {name: module(positions) for name, module in self.variables.items()}
        return values["energy"], values["driver"], values["judge"], values
