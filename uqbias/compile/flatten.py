"""Flatten a function with gradients inside to one graph of plain tensor operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from uqbias.errors import UqbiasError

TensorFunction = Callable[[list[Tensor]], Sequence[Tensor]]


def flatten(
    function: TensorFunction, example_inputs: Sequence[Tensor], *, dynamic: Mapping[int, int] | None = None
) -> GraphModule:
    """Trace ``function`` to one graph of aten operations in which no autograd is left.

    ``torch.autograd.grad`` inside ``function`` becomes ordinary operations of the graph; nodes that no output needs
    are removed.

    Parameters
    ----------
    function : takes the list of input tensors, returns a tuple of tensors. Shapes are baked in as constants, except
        those in ``dynamic``. No control flow on values.
    example_inputs : tensors of the final shapes, dtypes and devices.
    dynamic : input index to the dimension whose length may change between calls. Allowed for inputs that are only read
        by index, such as a bias grid.

    Returns
    -------
    GraphModule
        ``module(*inputs) -> tuple of tensors``.

    Raises
    ------
    UqbiasError
        If the length of a dynamic dimension ended up as a constant of the graph.
    """
    graph_module = _trace(function, example_inputs)
    if dynamic:
        check_dynamic(graph_module, function, example_inputs, dynamic)
    return graph_module


def check_dynamic(
    graph_module: GraphModule, function: TensorFunction, example_inputs: Sequence[Tensor], dynamic: Mapping[int, int]
) -> None:
    """Trace again with longer dynamic inputs; raise UqbiasError where that gives another graph."""
    grown = list(example_inputs)
    for index, dim in dynamic.items():
        grown[index] = torch.cat([grown[index], grown[index]], dim=dim)
    code = _trace(function, grown).code
    # The first backward of a function may add gradients in another order than later ones: then trace it once more.
    if code != graph_module.code and code != _trace(function, example_inputs).code:
        shapes = {index: tuple(example_inputs[index].shape) for index in dynamic}
        raise UqbiasError(
            f"the graph depends on the length of a dynamic input (index: shape {shapes})",
            "read that input by index_select only, and pass its length as a tensor",
        )


def _trace(function: TensorFunction, inputs: Sequence[Tensor]) -> GraphModule:
    with torch.enable_grad():  # type: ignore[no-untyped-call]
        graph_module: GraphModule = make_fx(lambda *tensors: tuple(function(list(tensors))))(*inputs)
    graph = graph_module.graph
    # Without autograd a detach is the identity; TorchScript's freezing would treat it specially.
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is torch.ops.aten.detach.default:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    graph.eliminate_dead_code()
    graph_module.recompile()
    return graph_module
