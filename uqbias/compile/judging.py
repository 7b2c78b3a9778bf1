"""The judge by itself, for models whose judge costs far more than all that moves the atoms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from uqbias.compile.runners import CompiledFunction, compile_function
from uqbias.molecule.geometry import Geometry
from uqbias.variables.names import by_name


def is_apart(model: torch.nn.Module, used: Sequence[str]) -> bool:
    """Whether the judge of a model is to be left out of each step, whose biases act on the variables ``used``."""
    return getattr(model, "judge_apart", False) and "judge" not in used


class Judge:
    """A graph of the judge alone, compiled when it is first asked for and evaluated only where something looks at it.

    Parameters
    ----------
    model : the model; its weights are inputs of the graph.
    names : names of the weights.
    example : [W, N, 3] nm, where compiled code is compared with the graph, unless there are neighbours or cells.
    options : runner and cache_dir, see `uqbias.compile.runners.compile_function`.
    """

    def __init__(self, model: torch.nn.Module, names: Sequence[str], example: Tensor, **options: Any) -> None:
        self._model, self._names, self._example, self._options = model, names, example.clone(), options
        self._geometry: Geometry | None = None
        self._blocks: tuple[int, ...] | None = None
        self._compiled: CompiledFunction | None = None

    def __call__(self, inputs: list[Tensor], geometry: Geometry | None = None, *, plain: bool = False) -> Tensor:
        """Calibrated judge [W].

        Parameters
        ----------
        inputs : positions [W, N, 3] nm, weights, and the tensors of the geometry.
        geometry : of the shapes of those; None for all pairs in vacuum.
        plain : by the graph as it is, for a comparison.
        """
        blocks = None if geometry is None else geometry.blocks
        if self._compiled is None or blocks != self._blocks:
            self._geometry, self._blocks = geometry, blocks
            examples = inputs if geometry is not None else [self._example, *inputs[1:]]
            self._compiled = compile_function(
                self._evaluate, inputs, name="judge", check_inputs=examples, **self._options
            )
        (judge,) = (self._compiled.plain if plain else self._compiled.unchecked)(inputs)
        return judge

    def _evaluate(self, inputs: list[Tensor]) -> tuple[Tensor]:
        weights = dict(zip(self._names, inputs[1:], strict=False))
        rest = inputs[1 + len(weights) :]
        surroundings = () if self._geometry is None else (self._geometry.with_tensors(rest),)
        return (by_name(functional_call(self._model, weights, (inputs[0], *surroundings)))["judge"].clone(),)
