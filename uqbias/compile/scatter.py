"""Graphs without index_add, which AOTInductor may get wrong."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from uqbias.errors import UqbiasError

aten = torch.ops.aten


def without_index_add(graph_module: GraphModule, example_inputs: Sequence[Tensor]) -> None:
    """Replace each index_add, the derivative of index_select, by reading from where it comes; in place.

    In a large graph AOTInductor of torch 2.9 may run the loop of an index_add after the loop that reads its result,
    within one fused kernel: that part of the forces is then missing without a word (14 % of the largest force, seen
    with nine variables on top of the default potential).

    Parameters
    ----------
    example_inputs : inputs of the graph; an index among them without repetitions, such as a permutation, is turned
        around (index_select); any other becomes a product with a 0/1 matrix.
    """
    graph = graph_module.graph
    inputs = dict(zip((node for node in graph.nodes if node.op == "placeholder"), example_inputs, strict=True))
    turned: dict[tuple[Node, int], tuple[Node, Node]] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not aten.index_add.default:
            continue
        base, dim, index, source = node.args
        value = node.meta["val"] if "val" in node.meta else node.meta["tensor_meta"]
        if node.kwargs.get("alpha", 1) != 1:
            raise UqbiasError("a graph with a weighted index_add", "multiply the source by the weight instead")
        size = int(value.shape[dim])
        known = inputs.get(index)
        unique = known is not None and len(torch.unique(known)) == len(known)
        with graph.inserting_before(node):
            if (index, size) not in turned:
                turned[index, size] = _place_of(graph_module, index, size, value.device)
            is_there, source_of = turned[index, size]
            added = (
                _gathered(graph_module, source, dim, is_there, source_of, value)
                if unique
                else _multiplied(graph_module, source, dim, is_there, value)
            )
            total = graph.call_function(aten.add.Tensor, (base, added))
        node.replace_all_uses_with(total)
        graph.erase_node(node)
    graph.eliminate_dead_code()
    graph_module.recompile()


def _place_of(module: GraphModule, index: Node, size: int, device: torch.device) -> tuple[Node, Node]:
    """Whether entry k of the source goes to place i, [size, K] bool; and the (last) such k of each place, [size]."""
    call = module.graph.call_function
    places = call(aten.arange.default, (size,), {"device": device})
    rows, columns = call(aten.unsqueeze.default, (places, 1)), call(aten.unsqueeze.default, (index, 0))
    is_there = call(aten.eq.Tensor, (rows, columns))
    return is_there, call(aten.argmax.default, (call(aten._to_copy.default, (is_there,), {"dtype": torch.float32}), 1))


def _gathered(module: GraphModule, source: Node, dim: int, is_there: Node, source_of: Node, value: Tensor) -> Node:
    call = module.graph.call_function
    shape = [1] * value.dim()
    shape[dim] = -1
    any_there = call(aten._to_copy.default, (call(aten.any.dim, (is_there, 1)),), {"dtype": value.dtype})
    gathered = call(aten.index_select.default, (source, dim, source_of))
    return call(aten.mul.Tensor, (gathered, call(aten.view.default, (any_there, shape))))


def _multiplied(module: GraphModule, source: Node, dim: int, is_there: Node, value: Tensor) -> Node:
    call = module.graph.call_function
    chosen = call(aten._to_copy.default, (is_there,), {"dtype": value.dtype})
    if value.dim() == 1:
        return call(aten.mv.default, (chosen, source))
    moved = call(aten.movedim.int, (source, dim, -2))
    return call(aten.movedim.int, (call(aten.matmul.default, (chosen, moved)), -2, dim))
