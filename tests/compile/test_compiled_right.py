"""Machine code that does not do what the graph does is found, and the graph without index_add is the same graph."""

import logging

import pytest
import torch

from uqbias.compile import runners
from uqbias.compile.flatten import flatten
from uqbias.compile.runners import compile_function, disagreement, find_compiler
from uqbias.compile.scatter import without_index_add

ORDER = torch.tensor([2, 0, 3, 1])
SOME = torch.tensor([3, 1])
TWICE = torch.tensor([0, 0, 2, 1, 2])


def function(inputs):
    x = inputs[0].detach().requires_grad_()
    total = 0.0
    for weight, index in enumerate(inputs[1:], start=1):
        total = total + (x.index_select(1, index) ** 2 * weight).sum() + (x.T.index_select(0, index).sum(1) ** 3).sum()
    (gradient,) = torch.autograd.grad(total, x)
    return total, gradient


@pytest.fixture
def inputs():
    return [torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), ORDER, SOME, TWICE]


def targets(graph_module):
    return {node.target for node in graph_module.graph.nodes}


def test_graph_without_index_add_is_the_same(inputs):
    plain, reworded = flatten(function, inputs), flatten(function, inputs)
    assert torch.ops.aten.index_add.default in targets(plain)
    without_index_add(reworded, inputs)
    assert torch.ops.aten.index_add.default not in targets(reworded)
    # A permutation and a choice are read backwards, an index with repetitions is a product.
    assert torch.ops.aten.matmul.default in targets(reworded)
    for one, other in zip(plain(*inputs), reworded(*inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-14, atol=1e-14)


def test_disagreement():
    values = [torch.tensor([1.0, -200.0]), torch.tensor([True]), torch.zeros(0)]
    assert disagreement(values, values) == ""
    near = [torch.tensor([1.0, -200.5]), *values[1:]]
    assert disagreement(near, values) == ""
    lost = [torch.tensor([1.0, -190.0]), *values[1:]]
    assert disagreement(lost, values) == "output 0 is off by 10 of 200"
    for value in (float("nan"), float("inf")):
        broken = [torch.tensor([value, -200.0]), *values[1:]]
        assert disagreement(broken, broken) == ""
        for one, other in ((broken, values), (values, broken)):
            assert disagreement(one, other) == "output 0 is not finite in 1 place(s) where the graph is, or the reverse"
        nowhere = [torch.full((2,), value), *values[1:]]
        assert "output 0 is not finite in 2 place(s)" in disagreement(nowhere, values)
        assert disagreement(nowhere, nowhere) == "output 0 is not finite in any place"
    assert disagreement([torch.ones(1), *values[1:]], values) == "output 0 is of shape (1,), not (2,)"
    with pytest.raises(ValueError, match="longer"):
        disagreement(values[:2], values)


def test_what_cancels_is_judged_by_what_rounding_makes_of_it():
    """The sum of a million numbers that cancel is rounding, whichever way it is added up; a lost share is none."""
    values = torch.randn(10**6, generator=torch.Generator().manual_seed(1))
    values = torch.cat([values, -values])
    forth, back = [values.sum()], [values.flip(0).cumsum(0)[-1]]
    assert disagreement(back, forth)
    spread = runners._spread(lambda inputs: [inputs[0].sum()], [values], forth)
    assert disagreement(back, forth, spread=spread) == ""
    assert disagreement([forth[0] + 1.0], forth, spread=spread)
    whole = [values[: 10**6].square().sum()]
    spread = runners._spread(lambda inputs: [inputs[0][: 10**6].square().sum()], [values], whole)
    assert disagreement([0.9 * whole[0]], whole, spread=spread)


@pytest.mark.slow
@pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
def test_wrong_machine_code_is_made_again_or_refused(inputs, tmp_path, monkeypatch, caplog):
    """A compiler that loses a part of the gradient, first where the graph has an index_add, then always."""
    honest = runners._load_aoti
    compiled = []
    build = runners._build_aoti

    def remembered(graph_module, *rest):
        compiled.append(torch.ops.aten.index_add.default in targets(graph_module))
        build(graph_module, *rest)

    def lossy(path):
        run = honest(path)
        if not (compiled[-1] or always):
            return run
        return lambda values: [run(values)[0], 0.8 * run(values)[1]]

    monkeypatch.setattr(runners, "_build_aoti", remembered)
    monkeypatch.setattr(runners, "_load_aoti", lossy)
    always = False
    with caplog.at_level(logging.WARNING):
        found = compile_function(function, inputs, runner="auto", cache_dir=tmp_path)
    assert found.runner == "aoti"
    assert "compiled function wrongly" in caplog.text
    assert compiled == [True, False]
    for one, other in zip(found(inputs), function(inputs), strict=True):
        torch.testing.assert_close(one, other)
    always = True
    with caplog.at_level(logging.WARNING):
        found = compile_function(function, inputs, runner="auto", cache_dir=tmp_path / "other")
    assert found.runner == "torchscript"
    assert "compiles function wrongly: output 1 is off by" in caplog.text
    torch.testing.assert_close(found(inputs)[1], function(inputs)[1])
