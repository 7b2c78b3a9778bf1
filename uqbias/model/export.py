"""Write a model as a plain TorchScript module that needs nothing but torch where it is used."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

import uqbias
from uqbias.compile.evaluation import BiasLike
from uqbias.compile.flatten import flatten
from uqbias.compile.judging import is_apart
from uqbias.compile.runners import trace_to_torchscript
from uqbias.errors import UqbiasError, did_you_mean
from uqbias.files import atomic_path
from uqbias.model.model import UncertaintyModel
from uqbias.molecule.geometry import Geometry
from uqbias.variables.names import by_name, is_of_model, missing_part

#: What an exported module may give, and its unit.
OUTPUTS = {
    "judge": "kJ/mol/nm of force error",
    "driver": "as stated by its kind",
    "energy": "kJ/mol",
    "biased": "kJ/mol",
}


def export_torchscript(
    model: torch.nn.Module,
    path: str | Path,
    output: str = "judge",
    *,
    with_forces: bool = False,
    bias: BiasLike | None = None,
    variables: Mapping[str, torch.nn.Module] | None = None,
    periodic: bool = False,
    components: Sequence[str] = (),
    example_positions: Tensor | None = None,
) -> None:
    """Write ``forward(positions [N, 3] nm[, box [3, 3] nm]) -> scalar``, or ``-> (scalar, forces [N, 3])``, atomically.

    The module holds the weights in float32 and no Python operator. It takes float32 or float64 positions and answers in
    their dtype; it may be moved to a GPU. The scalar form is differentiated by the host's autograd and survives
    ``torch.jit.freeze``, so ``openmmtorch.TorchForce(path)``, C++ and PLUMED load it as it is. The form with forces is
    the flattened graph of the value and of its negative gradient per nm: call ``TorchForce.setOutputsForces(True)``; it
    is faster, but cannot be differentiated again.

    The file carries ``manifest.json`` as an extra file: output, unit, atomic numbers, versions.

    Parameters
    ----------
    model : `uqbias.model.model.UncertaintyModel`, or a module of that contract.
    path : file to write, by custom ``.pt``.
    output : ``judge`` (the judge), ``driver`` (the driver), a part of it as ``driver_1``, ``energy``, or ``biased``
        (energy + bias).
    with_forces : see above.
    bias : for ``biased``: its state as of now is written into the file and stays fixed.
    variables : collective variables by name that the bias acts on beside u, uncertainty and energy.
    periodic : the module takes the box (rows are lattice vectors) as second argument, as a TorchForce hands it in after
        ``setUsesPeriodicBoundaryConditions(True)``.
    components : further outputs of the file, of ``energy``, ``driver`` and its parts, ``judge`` and ``max`` (the
        largest calibrated uncertainty of an atom): the module then gives a tensor [1 + K], ``output`` first, for
        PLUMED's COMPONENTS. Not together with forces.
    example_positions : [N, 3] nm, a geometry to trace with; a zigzag chain if None.

    Raises
    ------
    UqbiasError
        If ``output`` or a component is unknown, ``biased`` and ``bias`` do not come together, or the bias acts on a
        variable that is not given.
    """
    parts: tuple[str, ...] = getattr(model, "local_names", ())
    if output not in (*OUTPUTS, *parts):
        raise UqbiasError(f"unknown output '{output}'", did_you_mean(output, (*OUTPUTS, *parts)))
    if (output == "biased") != (bias is not None):
        raise UqbiasError(
            f"output '{output}' with" + ("out a bias" if bias is None else " a bias"),
            "give a bias with output 'biased', and only with it",
        )
    _check_components(model, output, components, with_forces)
    acted_on = bias.variables if bias else ()
    if lacking := missing_part(acted_on, len(parts)):
        raise UqbiasError(f"the bias acts on {lacking[0]}", lacking[1])
    missing = [name for name in acted_on if not is_of_model(name) and name not in (variables or {})]
    if missing:
        raise UqbiasError(f"the bias acts on '{missing[0]}', which is not given", "name its module in variables")
    numbers = [int(number) for number in model.numbers]  # type: ignore[union-attr, arg-type]
    positions = _chain(len(numbers)) if example_positions is None else example_positions.detach().cpu().double()
    if positions.shape != (len(numbers), 3):
        raise UqbiasError(f"example positions of shape {tuple(positions.shape)}", f"give [{len(numbers)}, 3]")
    scalar = _Scalar(model, output, bias, components, variables or {}).eval()
    examples = [positions, 10.0 * torch.eye(3, dtype=torch.float64)] if periodic else [positions]
    if with_forces or getattr(model, "requires_forces", False):
        # Autograd inside the model becomes plain operations, which the host's autograd differentiates once more.
        traced = _trace_flattened(scalar, examples, with_forces)
    else:
        traced = trace_to_torchscript(scalar, examples)
    _follow_positions(traced)
    manifest = {
        "format": "uqbias-torchscript",
        "output": output,
        "unit": unit_of(model, output),
        "with_forces": with_forces,
        "periodic": periodic,
        "atomic_numbers": numbers,
        "length_unit": "nm",
        "versions": {"uqbias": uqbias.__version__, "torch": torch.__version__},
    }
    if components:
        names = [output, *components]
        manifest |= {"components": names, "units": [unit_of(model, name) for name in names]}
    with atomic_path(path) as temporary:
        torch.jit.save(traced, str(temporary), _extra_files={"manifest.json": json.dumps(manifest)})  # type: ignore[no-untyped-call]


def unit_of(model: torch.nn.Module, output: str) -> str:
    """Unit of an output, as the model states it."""
    if hasattr(model, "manifest"):
        units = model.manifest()["units"]  # type: ignore[operator]
        units |= dict.fromkeys(getattr(model, "local_names", ()), units["driver"])
        return str(units.get("judge" if output == "max" else output, OUTPUTS.get(output, "")))
    return OUTPUTS.get(output, "")


def _check_components(model: torch.nn.Module, output: str, components: Sequence[str], with_forces: bool) -> None:
    valid = [other for other in (*COMPONENTS, *getattr(model, "local_names", ())) if other != output]
    for name in components:
        if name not in valid:
            raise UqbiasError(f"component '{name}' beside output '{output}'", did_you_mean(name, valid))
        if name == "max" and not _values_for_all_atoms(model):
            raise UqbiasError(
                "component 'max' of a judge without a calibrated value for every atom",
                "choose another judge, or leave it out",
            )
    if components and with_forces:
        raise UqbiasError("components with forces", "a file has either; leave with_forces out")


def _values_for_all_atoms(model: torch.nn.Module) -> bool:
    if not (isinstance(model, UncertaintyModel) and model.calibration.has_atoms):
        return False
    atoms = getattr(model.judge, "scatter", None)
    return atoms is None or len(atoms) == len(model.numbers)


#: What may come beside the output.
COMPONENTS = ("energy", "driver", "judge", "max")


class _Scalar(torch.nn.Module):
    """Outputs of a float32 copy of the model for one molecule; energy and bias, its state in buffers, in float64."""

    def __init__(
        self,
        model: torch.nn.Module,
        output: str,
        bias: BiasLike | None,
        components: Sequence[str],
        variables: Mapping[str, torch.nn.Module],
    ) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).to("cpu", torch.float32).requires_grad_(False)
        acted_on = () if bias is None else bias.variables
        modules = torch.nn.ModuleDict({name: module for name, module in variables.items() if name in acted_on})
        self.variables = copy.deepcopy(modules).to("cpu", torch.float32).requires_grad_(False)
        self._output, self._bias = output, None if bias is None else copy.deepcopy(bias).to(torch.float64)
        self._components = tuple(components)
        self._how = {"judged": False} if is_apart(model, (output, *components, *acted_on)) else {}
        self._state_names: dict[str, str] = {}
        for index, (name, tensor) in enumerate((self._bias.state() if self._bias is not None else {}).items()):
            self._state_names[name] = f"bias_{index}"
            self.register_buffer(f"bias_{index}", tensor.detach().clone())

    def forward(self, positions: Tensor, box: Tensor | None = None) -> Tensor:
        points = positions.float().unsqueeze(0)
        arguments = (points,) if box is None else (points, Geometry(box.float().unsqueeze(0)))
        if "max" in self._components:
            prediction, each = self.model.with_atoms(*arguments)  # type: ignore[operator]
            values = {"max": each.amax(-1)} | by_name(prediction)
        else:
            values = by_name(self.model(*arguments, **self._how))
        if self._bias is not None:
            state = {name: getattr(self, kept) for name, kept in self._state_names.items()}
            columns = values | {name: module(points) for name, module in self.variables.items()}
            x = torch.stack([columns[name].double() for name in self._bias.variables], dim=1)
            values["energy"] = values["energy"] + self._bias.energy(x, state)
        values["biased"] = values["energy"]
        chosen = [values[name].squeeze(0).type_as(positions) for name in (self._output, *self._components)]
        # type_as, since .to(dtype) would be traced as the dtype of the example.
        return torch.stack(chosen) if self._components else chosen[0]


def _trace_flattened(scalar: _Scalar, examples: list[Tensor], with_forces: bool) -> Any:
    """TorchScript of the flattened graph; weights stay buffers, so that the module can be moved to another device."""
    tensors = {**dict(scalar.named_parameters()), **dict(scalar.named_buffers())}

    def function(inputs: list[Tensor]) -> tuple[Tensor, ...]:
        points, *box = inputs[: len(examples)]
        points = points.detach().requires_grad_()
        weights = dict(zip(tensors, inputs[len(examples) :], strict=True))
        value = functional_call(scalar, weights, (points, *box))
        if not with_forces:
            return (value,)
        (gradient,) = torch.autograd.grad(value, points)
        return value, -gradient

    embedded = [tensor.detach() for tensor in tensors.values()]
    return trace_to_torchscript(_Embedded(flatten(function, [*examples, *embedded]), embedded), examples)


def _follow_positions(traced: Any) -> None:
    """Make new tensors on the device of the positions; tracing wrote that of the example, the CPU, into the graphs."""
    for module in traced.modules():
        if not module._c._has_method("forward"):
            continue
        graph = module.graph
        pinned = [node for node in graph.findAllNodes("prim::Constant") if _is_device(node.output())]
        tensors = [value for value in graph.inputs() if value.type().kind() == "TensorType"]
        if not pinned or not tensors:
            continue
        device = graph.create("prim::device", [tensors[0]], 1)
        device.output().setType(pinned[0].output().type())
        graph.prependNode(device)
        for node in pinned:
            node.output().replaceAllUsesWith(device.output())
        graph.lint()


def _is_device(value: Any) -> bool:
    return bool(value.type().kind() == "DeviceObjType")


class _Embedded(torch.nn.Module):
    """A flattened graph whose last inputs are buffers of this module."""

    def __init__(self, graph: torch.fx.GraphModule, tensors: list[Tensor]) -> None:
        super().__init__()
        self.graph = graph
        self._names = [f"tensor_{index}" for index in range(len(tensors))]
        for name, tensor in zip(self._names, tensors, strict=True):
            self.register_buffer(name, tensor)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...] | Tensor:
        results = self.graph(*inputs, *(getattr(self, name) for name in self._names))
        outputs = tuple(value.type_as(inputs[0]) for value in results)
        return outputs if len(outputs) > 1 else outputs[0]


def _chain(n_atoms: int) -> Tensor:
    """[N, 3] nm, no two atoms in one place and no three in a line."""
    index = torch.arange(float(n_atoms), dtype=torch.float64)
    return torch.stack([0.13 * index, 0.08 * (index % 2), 0.05 * torch.sin(index)], dim=1)
