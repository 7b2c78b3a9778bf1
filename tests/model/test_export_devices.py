"""Exported modules follow their positions to another device; the meta device stands in for a GPU."""

import copy

import pytest
import torch

from uqbias.bias.base import BiasSum
from uqbias.bias.fixed import UpperWall
from uqbias.bias.metad import MetaD
from uqbias.model.export import export_torchscript

META = torch.device("meta")


def moved(module):
    """``module.to("meta")``, which ScriptModule refuses for parameters; a GPU takes the ordinary way."""
    for part in module.modules():
        for name, tensor in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            part._c.setattr(name, tensor.detach().to(META))
    return module


@pytest.mark.parametrize("periodic", [False, True], ids=["vacuum", "periodic"])
@pytest.mark.parametrize("with_forces", [False, True], ids=["scalar", "forces"])
@pytest.mark.parametrize("output", ["judge", "driver", "energy", "biased"])
def test_every_tensor_is_made_where_the_positions_are(
    alanine_model, alanine_frames, tmp_path, output, with_forces, periodic
):
    path = tmp_path / "module.pt"
    bias = BiasSum([MetaD(), UpperWall(at=0.0)]) if output == "biased" else None
    model = copy.deepcopy(alanine_model)
    export_torchscript(model, path, output, with_forces=with_forces, bias=bias, periodic=periodic)
    module = torch.jit.load(str(path))
    graph = module.inlined_graph  # its nodes live as long as it does
    constants = [node.output() for node in graph.findAllNodes("prim::Constant")]
    pinned = [value for value in constants if value.type().kind() == "DeviceObjType" and list(value.uses())]
    assert not pinned
    positions = torch.tensor(alanine_frames.positions[0])
    inputs = [positions, 3.0 * torch.eye(3, dtype=positions.dtype)] if periodic else [positions]
    # An operation that mixes devices raises.
    there = moved(module)(*(tensor.to(META) for tensor in inputs))
    assert {tensor.device for tensor in (there if with_forces else [there])} == {META}


def test_gradient_on_another_device(alanine_model, alanine_frames, tmp_path):
    export_torchscript(alanine_model, tmp_path / "driver.pt", "driver")
    module = moved(torch.jit.load(str(tmp_path / "driver.pt")))
    positions = torch.tensor(alanine_frames.positions[0]).to(META).requires_grad_()
    module(positions).backward()
    assert positions.grad.device == META
