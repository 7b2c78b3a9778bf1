"""Energy, uncertainty, bias and total forces of all walkers from one forward and one backward pass."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uqbias.compile.evaluation import BiasLike, Evaluation, FusedFunction, ModelAndVariables, difference
from uqbias.compile.graph_inputs import (
    GROWING,
    cells_input,
    check_device,
    check_inputs,
    copied,
    graph_inputs,
    signature_of,
    take_weights,
    weights_of,
    without_shift,
)
from uqbias.compile.judging import Judge, is_apart
from uqbias.compile.runners import compile_function
from uqbias.errors import UqbiasError
from uqbias.molecule.geometry import Geometry
from uqbias.potentials.prediction import neighbour_list
from uqbias.variables.names import is_of_model, missing_part

logger = logging.getLogger(__name__)
#: Arrays of a snapshot: what the tables of neighbours are made from.
LIST = "list_"


class FusedEvaluator:
    """A model and a bias compiled to one graph whose inputs are positions, weights and the state of the bias.

    New weights (`load_model`), new hills and a grown bias grid need no new graph. Variables of the bias that neither
    the model nor ``variables`` gives come from outside: extended variables, which OpenMM integrates, and variables that
    OpenMM computes. They are one more input of the graph, and the force on them one more output.

    A judge that takes the forces of all members of a committee, and is not the driver, has a graph of its own: it is
    compiled and evaluated only where something looks at it.

    In a cell, and with many atoms, tables of neighbours are inputs too. They are made on the host, before the graph
    runs, on the positions that are to be evaluated; the graph is compiled when the first of them is known, and again
    if atoms come to have more neighbours than there is room for.

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
    box : [3, 3] nm, rows are lattice vectors; None in vacuum. `evaluate` may be given others.
    periodic : along which of them the system repeats.
    skin : nm, how much further than the cutoff tables of neighbours look, so that they last; None: `Potential.skin`.

    Attributes
    ----------
    n_walkers, n_atoms, numbers : sizes and atomic numbers.
    box : [W, 3, 3] nm, of the last evaluation and of the next unless that is given another; None in vacuum.
    periodic : along which of its vectors the system repeats.
    names : names of the C variables of the bias.
    input_names : those of them that come from outside, K.
    runner : name of the runner in use; before a graph is compiled, that which is asked for.
    neighbours : the list that makes the tables of neighbours; None where all pairs of atoms are evaluated.
    last : the latest `Evaluation`, or None.
    total_energy : sum of E + V (or V) over walkers that are not broken, of the latest evaluation; tensor [], kJ/mol.
    n_evaluations, n_calls : evaluations so far, without and with memo hits.
    broken : [W] host array; True where an energy or force was not finite or above 1e6 kJ/mol/nm in any evaluation
        since the caller last set it to False. The forces of such a walker are zero.
    exception : what stopped the latest evaluation under OpenMM, or None; see `reraise`.

    Raises
    ------
    UqbiasError
        If the sizes, the dtype, the device or the runner are invalid, the driver lacks a part that the bias acts on, or
        the model takes no box.
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
        box: Tensor | NDArray[np.floating] | None = None,
        periodic: tuple[bool, bool, bool] = (True, True, True),
        skin: float | None = None,
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
        self._broken = torch.zeros(n_walkers, dtype=torch.bool)
        self._marks = self._broken.to(self.device)
        self.exception: BaseException | None = None
        self.names: tuple[str, ...] = () if self.bias is None else tuple(self.bias.variables)
        modules = {name: module for name, module in (variables or {}).items() if name in self.names}
        if lacking := missing_part(self.names, len(getattr(model, "local_names", ()))):
            raise UqbiasError(f"a bias acts on {lacking[0]}", lacking[1])
        self.input_names = tuple(name for name in self.names if name not in modules and not is_of_model(name))
        self._signature = signature_of(model)
        # Weights of the model first: these are what load_model replaces.
        self._weight_names, self._inputs = graph_inputs(model, n_walkers, dtype, self.device)
        self._positions = self._inputs[0]
        apart = is_apart(model, self.names)
        whole = ModelAndVariables(model, modules, judged=not apart)
        judge = Judge(model, self._weight_names, self._positions, runner=runner, cache_dir=cache_dir)
        self._judge = judge if apart and not energy_only else None
        extra = {name: tensor for name, tensor in weights_of(whole).items() if name.startswith("variables.")}
        self._inputs += [copied(tensor, dtype, self.device) for tensor in extra.values()]
        self._from_outside = torch.zeros(n_walkers, len(self.input_names), dtype=torch.float64, device=self.device)
        self._outside_slot = len(self._inputs)
        if self.input_names:
            self._inputs.append(self._from_outside)
        state = {} if self.bias is None else self.bias.to(torch.float64, self.device).state()
        self._state_slots = list(enumerate(state, start=len(self._inputs)))
        self._dynamic = {index: 0 for index, name in self._state_slots if name.rpartition(".")[2] == GROWING}
        self._inputs += state.values()
        self._potential: Any = getattr(model, "potential", None)
        self.periodic, self.box = periodic, cells_input(self._potential, box, n_walkers, dtype, self.device)
        self.neighbours = None
        # A module of one's own may have anything of this name.
        if self._potential is not None and hasattr(self._potential, "uses_table"):
            self.neighbours = neighbour_list(self._potential, box=box is not None, periodic=periodic, skin=skin)
        self._function = FusedFunction(
            whole,
            [*(f"model.{name}" for name in self._weight_names), *extra],
            self.bias,
            self.names,
            self.input_names,
            self._outside_slot,
            self._state_slots,
            len(self._inputs),
            n_walkers,
            energy_only,
            include_energy,
        )
        self._cache_dir, self.runner, self._requested = cache_dir, runner, runner
        self._geometry: Geometry | None = None
        self._memo_armed = False
        if self.neighbours is None and self.box is None:
            self._compile()

    def _compile(self) -> None:
        """Make the graph for the shapes of the inputs as they are."""
        function = replace(self._function, geometry=self._geometry)
        compiled = compile_function(
            function,
            self._inputs,
            runner=self._requested,
            name="energy" if function.energy_only else "fused" if function.include_energy else "bias",
            dynamic=self._dynamic,
            cache_dir=self._cache_dir,
            check_inputs=check_inputs(self._inputs, self._weight_names, self._state_slots),
        )
        self.runner = compiled.runner
        self._run, self._plain = compiled.unchecked, compiled.plain

    def _set_geometry(self) -> None:
        """Inputs for the cell and the neighbours of the positions; another graph where tables became wider."""
        before = self._geometry
        if self.neighbours is not None:
            self._geometry = self.neighbours.geometry(self._positions, self.box)
        elif self.box is not None:
            self._geometry = Geometry(self.box)
            self._potential.check_geometry(self._geometry)
        if self._geometry is None:
            return
        self._inputs[self._function.geometry_slot :] = self._geometry.tensors()
        if before is None or before.blocks != self._geometry.blocks:
            if before is not None:
                widths = f"{before.blocks} to {self._geometry.blocks}"
                logger.warning("tables of neighbours grew from %s slots: the graph is compiled once more", widths)
            self._compile()

    def evaluate(
        self, positions: Tensor, inputs: Tensor | None = None, box: Tensor | None = None, *, judged: bool = True
    ) -> Evaluation:
        """Evaluate all walkers.

        Parameters
        ----------
        positions : [W, N, 3] nm, any floating dtype and device, without autograd.
        inputs : [W, K] variables from outside, in the order of ``input_names``; zeros if None.
        box : [W, 3, 3] or [3, 3] nm, if it is no longer that of the last evaluation.
        judged : False to leave out a judge that has a graph of its own; `judged` adds it.

        Raises
        ------
        UqbiasError
            If there is a box and the evaluator was made without, or a cell that makes no sense.
        """
        outside = torch.zeros_like(self._from_outside) if inputs is None else inputs
        if box is not None and self.box is None:
            raise UqbiasError("a box for an evaluator that was made without", "give one to its constructor")
        self.n_calls, armed, self._memo_armed = self.n_calls + 1, self._memo_armed, False
        pairs = [(positions, self._positions), (outside, self._from_outside)]
        pairs += [] if box is None or self.box is None else [(box, self.box)]
        if armed and self.last is not None and all(torch.equal(new.to(old).expand_as(old), old) for new, old in pairs):
            return self.judged() if judged else self.last
        for new, old in pairs:
            old.copy_(new)
        if self.box is not None or self.neighbours is not None:
            self._set_geometry()
        self._bind_state({})
        *values, self.total_energy, broken = self._run(self._inputs)
        self.last = Evaluation.of(values, judged=self._judge is None)
        self._marks.logical_or_(broken)
        self.n_evaluations += 1
        return self.judged() if judged else self.last

    def judged(self) -> Evaluation:
        """The latest evaluation, `last`, with the judge."""
        assert self.last is not None
        if self._judge is not None and self.last.judge.isnan().all():
            self.last = self.last._replace(judge=self._judged())
        return self.last

    def _judged(self, *, plain: bool = False) -> Tensor:
        assert self._judge is not None
        inputs = [*self._inputs[: 1 + len(self._weight_names)], *self._inputs[self._function.geometry_slot :]]
        return self._judge(inputs, self._geometry, plain=plain)

    @property
    def broken(self) -> NDArray[np.bool_]:
        """What the class says of it; a device is waited for here, and not at each evaluation."""
        if self._marks is not self._broken:
            self._broken |= self._marks.cpu()
            self._marks.zero_()
        return self._broken.numpy()

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
        judged = self._judge is None
        # As it runs too: a bias on the energy acts at the energies that there are.
        for inputs in (self._inputs, without_shift(self._inputs, self._weight_names)):
            one, other = (Evaluation.of([*run(inputs)[:-2]], judged=judged) for run in (self._run, self._plain))
            if self._judge is not None:
                one = one._replace(judge=self._judged())
                other = other._replace(judge=self._judged(plain=True))
            if problem := difference(one, other):
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
        forces = Evaluation.of(values, judged=self._judge is None).forces
        return np.asarray(forces.detach().cpu().numpy(), dtype=np.float64)

    def _bind_state(self, replaced: Mapping[str, Tensor]) -> None:
        if self.bias is not None:
            state = self.bias.state()
            for index, name in self._state_slots:
                tensor = replaced.get(name)
                self._inputs[index] = state[name] if tensor is None else tensor.to(state[name])

    def evaluate_for_host(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Total energy [] and forces [P, 3] for OpenMM; an exception is kept in `exception`.

        OpenMM turns an exception inside a force into an OpenMMException with little of the message.

        Parameters
        ----------
        positions : [P, 3] nm, P = W·N atoms and then W·K particles, walker after walker, whose x coordinate is the
            value of a variable from outside.
        box : [3, 3] nm of all walkers, if it may be another one than in the last call.
        """
        try:
            atoms = self.n_walkers * self.n_atoms
            # Without variables from outside each operation saved here is a per mille of a step.
            outside = positions[atoms:, 0].reshape(self.n_walkers, -1) if self.input_names else None
            places = positions if outside is None else positions[:atoms]
            evaluation = self.evaluate(places.view(self.n_walkers, self.n_atoms, 3), outside, box, judged=False)
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

    def load_model(self, model: torch.nn.Module) -> None:
        """Take the weights and buffers of another model of the same architecture; nothing is traced or compiled.

        Raises
        ------
        UqbiasError
            If a tensor is missing or has another shape.
        """
        if tuple(model.numbers) != self.numbers or signature_of(model) != self._signature:  # type: ignore[arg-type]
            raise UqbiasError(
                "the model has other atoms, or other options of potential, driver, judge or calibration",
                "make a new FusedEvaluator",
            )
        take_weights(model, self._weight_names, self._inputs[1:])
        self._memo_armed = False
        self.last = None

    def arm_memo(self, armed: bool = True) -> None:
        """Let the next evaluation, if it is at bitwise the same positions, return `last`; not so if not ``armed``.

        Call it after the host has observed the current positions: the integrator's next step starts with an evaluation
        at these positions, which is then free, and hills deposited at step k act from step k+1 on, as in PLUMED.
        """
        self._memo_armed = armed

    def memo(self) -> dict[str, NDArray[Any]]:
        """What `restore_memo` needs, as arrays for a snapshot.

        That is the evaluation that `arm_memo` keeps for the next step, if there is one, and what the tables of
        neighbours were made from.
        """
        arrays = {} if self.neighbours is None else {LIST + name: a for name, a in self.neighbours.state().items()}
        if self.last is not None and self._memo_armed:
            kept = {**self.last._asdict(), "positions": self._positions, "inputs": self._from_outside}
            kept["total"] = self.total_energy
            if self.box is not None:
                kept["box"] = self.box
            arrays |= {f"memo_{name}": tensor.detach().cpu().numpy().copy() for name, tensor in kept.items()}
        return arrays

    def restore_memo(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Put `memo` back, so that an interrupted run goes on with the forces that it had, to the last bit."""
        self.last, self._memo_armed = None, False
        if self.neighbours is not None and LIST + "at" in arrays:
            known = {name.removeprefix(LIST): array for name, array in arrays.items() if name.startswith(LIST)}
            self.neighbours.restore(known)
        if "memo_total" not in arrays:
            return
        names = [name for name in Evaluation._fields if f"memo_{name}" in arrays]  # once there was no virial
        self.last = Evaluation.of([torch.as_tensor(arrays[f"memo_{name}"], device=self.device) for name in names])
        self._positions.copy_(torch.as_tensor(arrays["memo_positions"]))
        self._from_outside.copy_(torch.as_tensor(arrays["memo_inputs"]))
        if self.box is not None:
            self.box.copy_(torch.as_tensor(arrays["memo_box"]))
        self.total_energy = torch.as_tensor(arrays["memo_total"], device=self.device)
        self.arm_memo()
