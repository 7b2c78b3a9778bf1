"""One evaluation of a model and a bias: what it gives, and the function that is flattened to a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.func import functional_call

from uqbias.compile.runners import disagreement
from uqbias.molecule.geometry import Geometry, virial
from uqbias.variables.names import by_name

#: Forces beyond this, in kJ/mol/nm, mark a walker as broken: 1e6 is ten thousand times a typical force.
FORCE_LIMIT = 1e6


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
    #: [W] judge: calibrated uncertainty, kJ/mol/nm; NaN where only what moves the walkers was evaluated.
    judge: Tensor
    #: [W] bias V, kJ/mol.
    bias: Tensor
    #: [W, N, 3] -dE/dx - dV/dx, kJ/mol/nm; zero for a broken walker.
    forces: Tensor
    #: [W, C] variables that the bias acts on, in its order.
    variables: Tensor
    #: [W, K] -dV/dy of the variables y that come from outside; zero for a broken walker.
    input_forces: Tensor
    #: [W, 3, 3] dE/dε + dV/dε of a strain ε of positions and cell, kJ/mol, symmetric; zero for a broken walker, and
    #: without a cell.
    virial: Tensor

    @classmethod
    def of(cls, values: list[Tensor], *, judged: bool = True) -> Evaluation:
        """Outputs of the graph, which has no judge if not ``judged``, and without a cell no virial."""
        if not judged:
            values = [*values[:2], torch.full_like(values[1], torch.nan), *values[2:]]
        if len(values) < len(cls._fields):
            values = [*values, values[4].new_zeros(len(values[4]), 3, 3)]
        return cls(*values)


def difference(computed: Evaluation, expected: Evaluation) -> str:
    """What differs by more than rounding explains, walkers without a finite number in both left out; or nothing."""
    # The pull on variables is not of a walker.
    values = [[*one[:6], one.virial] for one in (computed, expected)]
    finite = [torch.stack([one.isfinite() for one in each[:4]]).all(0) for each in values]
    compared = finite[0] | finite[1]
    here, there = ([one[compared] for one in each] for each in values)
    return disagreement(here, there, least=1.0) if compared.any() else ""


@dataclass(frozen=True)
class FusedFunction:
    """The function to flatten; outputs are those of an `Evaluation`, without a cell no virial, the total, what broke.

    Its inputs are positions, weights, variables from outside if there are some, the state of the bias, and the tensors
    of the geometry.
    """

    #: E, u, judge and variables.
    whole: ModelAndVariables
    #: names of the weights in it.
    names: Sequence[str]
    bias: BiasLike | None
    #: variables of the bias, and those of them that come from outside.
    columns: Sequence[str]
    input_names: Sequence[str]
    #: inputs by number: the variables from outside; the state of the bias, with its names; the first of the geometry.
    outside_slot: int
    state_slots: Sequence[tuple[int, str]]
    geometry_slot: int
    n_walkers: int
    energy_only: bool
    include_energy: bool
    #: a geometry of the shapes of later ones; None for all pairs in vacuum.
    geometry: Geometry | None = None

    def __call__(self, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        """E, u and V forward, and forces and virial of E + V backward."""
        positions = inputs[0].detach().requires_grad_()
        roots, geometry = [positions], self.geometry
        if geometry is not None:
            geometry = geometry.with_tensors(inputs[self.geometry_slot :])
            if geometry.box is not None:
                roots.append(geometry.box.detach().requires_grad_())
                geometry = geometry._replace(box=roots[1])
        weights = dict(zip(self.names, inputs[1:], strict=False))
        energy, driver, judge, values = functional_call(self.whole, weights, (positions, geometry))
        energy, values = energy.double(), {name: value.double() for name, value in values.items()}
        added = torch.zeros_like(energy)
        x = energy.new_zeros(self.n_walkers, len(self.columns))
        if self.energy_only:
            driver, judge = added, added
        elif self.bias is not None:
            if self.input_names:
                outside = inputs[self.outside_slot].detach().requires_grad_()
                roots.append(outside)
                values |= {name: outside[:, place] for place, name in enumerate(self.input_names)}
            x = torch.stack([values[name] for name in self.columns], dim=1)
            added = self.bias.energy(x, {name: inputs[index] for index, name in self.state_slots})
        total = energy + added if self.include_energy else added
        gradient, *others = torch.autograd.grad(total.sum(), roots, materialize_grads=True)
        of_box = others.pop(0) if geometry is not None and geometry.box is not None else None
        # A comparison with NaN is false, so this also finds what is not finite.
        sound = (gradient.abs() <= FORCE_LIMIT).flatten(1).all(1) & torch.isfinite(total)
        for one in others:
            sound = sound & torch.isfinite(one).all(1)
        forces = torch.where(sound.view(-1, 1, 1), -gradient, torch.zeros_like(gradient))
        pulls = [torch.where(sound.view(-1, 1), -one, torch.zeros_like(one)) for one in others]
        pull = pulls[0] if pulls else energy.new_zeros(self.n_walkers, 0)
        virials = []
        if of_box is not None:
            strained = virial(positions, gradient, roots[1], of_box)
            virials.append(torch.where(sound.view(-1, 1, 1), strained, torch.zeros_like(strained)))
        total = torch.where(sound, total, torch.zeros_like(total)).sum()
        judged = () if judge is None else (judge.clone(),)
        return (energy, driver.clone(), *judged, added.clone(), forces, x.clone(), pull, *virials, total, ~sound)


class ModelAndVariables(torch.nn.Module):
    """E, u and, if ``judged``, the judge of a model, and the variables that the graph computes."""

    def __init__(
        self, model: torch.nn.Module, variables: Mapping[str, torch.nn.Module], *, judged: bool = True
    ) -> None:
        super().__init__()
        self.model, self._how = model, {} if judged else {"judged": False}
        self.variables = torch.nn.ModuleDict(dict(variables))

    def forward(
        self, positions: Tensor, geometry: Geometry | None
    ) -> tuple[Tensor, Tensor, Tensor | None, dict[str, Tensor]]:
        values = by_name(self.model(positions, *([] if geometry is None else [geometry]), **self._how))
        values |= {name: module(positions) for name, module in self.variables.items()}
        return values["energy"], values["driver"], None if self._how else values["judge"], values
