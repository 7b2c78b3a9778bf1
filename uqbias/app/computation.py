"""Computation of an ``openmm.PythonForce`` with an evaluator in the user's own System, and its pickling."""

from __future__ import annotations

import itertools
import uuid
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uqbias.app.external import ForceVariables
from uqbias.app.host import FORCE_NAME, choose_atoms, has_cell
from uqbias.app.whole import Whole
from uqbias.bias.base import Bias
from uqbias.compile.fused import FusedEvaluator
from uqbias.errors import UqbiasError
from uqbias.model.model import UncertaintyModel
from uqbias.model.reference import REPEATS, in_a_cell

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that makes a `Computation`, here or in another process.

    Attributes
    ----------
    model : path of the model file; None for no model.
    atoms : indices of the model's atoms in the System; None for all particles.
    n_atoms : their number, where there is no model.
    bias : as it is when the recipe is pickled; it does not change elsewhere.
    variables : collective variables in the graph.
    external : Forces as variables.
    extended : name of each extended variable and the index of its particle.
    periodic : whether the System is periodic.
    box : [3, 3] nm, of a periodic System with extended variables, which does not change.
    narrow : whether the State holds the particles of this force only; as the installed OpenMM can, if None.
    options : options of `FusedEvaluator`.
    fault : (what, cure) of why it cannot be made in another process, or None.
    """

    model: Path | None = None
    atoms: tuple[int, ...] | None = None
    n_atoms: int = 0
    bias: Bias | None = None
    variables: Mapping[str, torch.nn.Module] = field(default_factory=dict)
    external: ForceVariables | None = None
    extended: Mapping[str, int] = field(default_factory=dict)
    periodic: bool = False
    box: Array | None = None
    narrow: bool | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    fault: tuple[str, str] | None = None

    def make(self) -> Computation:
        """Load the model, compile (or find compiled) the graph.

        Raises
        ------
        UqbiasError
            If the model file is gone, or there was none.
        """
        if self.fault is not None:
            raise UqbiasError(*self.fault)
        model = load_model(self.model, self.n_atoms, periodic=self.periodic)
        if self.bias is not None:
            self.bias.frozen = True
        return Computation(FusedEvaluator(model, self.bias, 1, variables=self.variables, **self.options), model, self)


class NoModel(torch.nn.Module):
    """Stands where a model is not needed: atoms without energy and uncertainty."""

    def __init__(self, numbers: Sequence[int]) -> None:
        super().__init__()
        self.numbers = tuple(int(number) for number in numbers)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Zeros [W] for positions [W, N, 3]."""
        zero = 0.0 * positions.flatten(1).sum(1)
        return zero, zero, zero


def load_model(model: torch.nn.Module | str | Path | None, n_atoms: int, *, periodic: bool = False) -> torch.nn.Module:
    """The model, from its file if that is given; `NoModel` of ``n_atoms`` for None.

    Parameters
    ----------
    periodic : whether it will be told a cell that repeats along all three vectors.

    Raises
    ------
    UqbiasError
        For a model of atoms in a cell that it would not be told.
    """
    if model is None:
        return NoModel([0] * n_atoms)
    model = UncertaintyModel.load(model) if isinstance(model, str | Path) else model
    if in_a_cell(model):
        if not periodic:
            raise UqbiasError(
                "a model of atoms in a cell where none is told",
                "give the System its cell (setDefaultPeriodicBoxVectors), a force as variable periodic=True",
            )
        along = model.provenance.get(REPEATS, [True] * 3)  # type: ignore[union-attr, operator]
        if not all(along):
            raise UqbiasError(
                f"a model of atoms that repeat along {along}, in a System that repeats along all three vectors",
                "run it by `uqbias md`",
            )
    return model


def load_for(
    system: Any, model: torch.nn.Module | str | Path | None, atoms: Sequence[int] | None
) -> tuple[tuple[int, ...] | None, torch.nn.Module]:
    """Indices of the model's atoms, None for all particles, and the model."""
    chosen = choose_atoms(system, atoms, None)
    count = system.getNumParticles() if chosen is None else len(chosen)
    module = load_model(model, count, periodic=has_cell(system))
    return choose_atoms(system, chosen, len(module.numbers)), module  # type: ignore[arg-type]


class Computation:
    """From the State of a PythonForce to the evaluator's energy and forces.

    Parameters
    ----------
    evaluator : evaluator of one walker.
    model : its ``topology``, if it has one, gives the bonds along which the molecule is made whole.
    recipe : which particles are handed over, and how.

    Attributes
    ----------
    box : that of the recipe, until it is set.
    """

    def __init__(self, evaluator: FusedEvaluator, model: torch.nn.Module, recipe: Recipe) -> None:
        self.evaluator, self.recipe = evaluator, recipe
        self.external, self.extended, self.periodic = recipe.external, dict(recipe.extended), recipe.periodic
        self.atoms = None if recipe.atoms is None else np.array(recipe.atoms, dtype=np.int64)
        self.box = recipe.box
        topology = getattr(model, "topology", None)
        in_cell = evaluator.box is not None
        self._movable = bool(getattr(getattr(model, "potential", None), "invariant", True))
        self._whole = Whole(evaluator.n_atoms, None if topology is None else topology.bonds, gather=not in_cell)
        self.narrow = self._can_be_narrow() if recipe.narrow is None else recipe.narrow
        self._handle = next(_handles)
        _live[self._handle] = self

    def force(self, *, to_be_written: bool = False) -> Any:
        """The ``openmm.PythonForce``; it belongs to the System that it is added to.

        OpenMM pickles the function of a force when the force is made. One ``to_be_written`` is made by the recipe in
        another process, whatever the fault of that.
        """
        import openmm

        recipe = replace(self.recipe, box=self.box, narrow=self.narrow, fault=None)
        force = openmm.PythonForce(_Elsewhere(recipe, _PROCESS, self._handle) if to_be_written else self)
        if self.narrow and self.atoms is not None:
            force.setParticles([*self.atoms.tolist(), *self.extended.values()])
        force.setUsesPeriodicBoundaryConditions(self._told_the_box)
        force.setName(FORCE_NAME)
        return force

    def _can_be_narrow(self) -> bool:
        """Whether only the positions of the particles that matter need to be handed over.

        PythonForce can be given particles from OpenMM 8.6 on. On GPU platforms those of a force that does not say it is
        periodic come out wrong in a periodic System (8.6.1), and those of one that says so are moved into the box,
        which a molecule survives and an extended variable does not.
        """
        import openmm

        everything = self.atoms is None or self.external is not None or (self.periodic and self.extended)
        return not everything and hasattr(openmm.PythonForce, "setParticles")

    @property
    def _told_the_box(self) -> bool:
        return self.periodic and not self.extended

    def __call__(self, state: Any) -> tuple[float, Array]:
        """Energy in kJ/mol and forces [n, 3] in kJ/mol/nm of an openmm.State."""
        try:
            # ._value is the array in nm; value_in_unit would copy it.
            box = state.getPeriodicBoxVectors(asNumpy=True)._value if self._told_the_box else self.box
            if self.external is not None and self.external.parameters:
                self.external.take_parameters(state.getParameters())
            return self.evaluate(state.getPositions(asNumpy=True)._value, box, narrow=self.narrow)
        except BaseException as error:
            self.evaluator.exception = error
            raise

    def evaluate(self, positions: Array, box: Array | None, *, narrow: bool) -> tuple[float, Array]:
        """Energy, and forces on the particles whose positions are given: all [P, 3] nm, or those of this force only."""
        n, evaluator = self.evaluator.n_atoms, self.evaluator
        if narrow or self.atoms is None:
            atoms = positions[:n]
            particles = {name: n + place for place, name in enumerate(self.extended)}
        else:
            atoms, particles = positions[self.atoms], self.extended
        inputs, gradients = self._inputs(positions, box, particles)
        before = evaluator.n_evaluations
        cell = None if evaluator.box is None or box is None else torch.from_numpy(np.array(box, dtype=np.float64))
        last = evaluator.evaluate(torch.from_numpy(self.whole(atoms, box))[None], inputs, cell, judged=False)
        if evaluator.n_evaluations == before:
            # The same positions again, and a bias that has changed since: whoever asks gets what the integrator gets.
            evaluator.arm_memo()
        model_forces = last.forces[0].to("cpu", torch.float64).numpy()
        if self.atoms is None and not evaluator.input_names:
            return float(evaluator.total_energy), model_forces
        forces = np.zeros_like(positions)
        if narrow or self.atoms is None:
            forces[:n] = model_forces
        else:
            forces[self.atoms] = model_forces
        pulls = last.input_forces[0].to("cpu", torch.float64).numpy()
        for name, pull in zip(evaluator.input_names, pulls, strict=True):
            if name in particles:
                forces[particles[name], 0] += pull
            elif pull:  # zero for a broken variable, whose gradient may be anything
                forces -= pull * gradients[name]
        return float(evaluator.total_energy), forces

    def whole(self, atoms: Array, box: Array | None) -> Array:
        """Positions [N, 3] of the model's atoms in one piece; in a periodic System near the origin.

        Single precision has 1e-7 nm left at a distance of 1 nm, and 1e-5 nm at one of 100 nm, which a molecule that
        diffuses through periodic images reaches.
        """
        if box is None or not len(atoms):
            return np.asarray(atoms, dtype=np.float64)
        x = self._whole(atoms, box)
        return x - x[0] if self.periodic and self._movable else x

    def _inputs(
        self, positions: Array, box: Array | None, particles: Mapping[str, int]
    ) -> tuple[Tensor | None, dict[str, Array]]:
        """Values [1, K] of the variables from outside, and negative gradients [P, 3] of those that are Forces."""
        names = self.evaluator.input_names
        if not names:
            return None, {}
        row = {name: positions[particle, 0] for name, particle in particles.items()}
        gradients: dict[str, Array] = {}
        if self.external is not None:
            values, forces = self.external.evaluate(positions[: self.external.n_particles], box)
            row |= zip(self.external.names, values, strict=True)
            if added := len(positions) - self.external.n_particles:
                forces = np.pad(forces, ((0, 0), (0, added), (0, 0)))
            gradients = dict(zip(self.external.names, forces, strict=True))
        return torch.tensor([[row[name] for name in names]], dtype=torch.float64), gradients

    def __reduce__(self) -> tuple[Any, ...]:
        # One that cannot be made elsewhere takes only the reason along.
        recipe = self.recipe if self.recipe.fault is None else Recipe(fault=self.recipe.fault)
        return _restored, (_PROCESS, self._handle, recipe)


class _Elsewhere:
    """A computation for another process, or read there; it is made when it is first asked.

    OpenMM does not survive an exception while it reads a PythonForce.
    """

    def __init__(self, recipe: Recipe, process: str = "", handle: int = -1) -> None:
        self.recipe, self._live = recipe, (process, handle)
        self._made: Computation | None = None

    def __call__(self, state: Any) -> tuple[float, Array]:
        if self._made is None:
            self._made = self.recipe.make()
        return self._made(state)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (*self._live, self.recipe)


_PROCESS = uuid.uuid4().hex
_handles = itertools.count()
_live: weakref.WeakValueDictionary[int, Computation] = weakref.WeakValueDictionary()


def _restored(process: str, handle: int, recipe: Recipe) -> Computation | _Elsewhere:
    """The live computation where it still lives in this process."""
    live = _live.get(handle) if process == _PROCESS else None
    return _Elsewhere(recipe) if live is None else live
