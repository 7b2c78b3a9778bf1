"""Checks of what is written to a file, and of what changes when an uncertainty is fitted again."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from uqbias.bias.linear import Linear
from uqbias.compile.fused import FusedEvaluator
from uqbias.errors import UqbiasError
from uqbias.model.model import UncertaintyModel
from uqbias.model.readouts import fit_uncertainty
from uqbias.testing.case import Case, evaluate, refitted
from uqbias.testing.measuring import change, changed, counted, largest, short, through_json
from uqbias.testing.report import Report
from uqbias.testing.routes import AGREEMENT
from uqbias.uncertainty.base import rebuild_uncertainty

#: What a tensor may be in a safetensors file: bytes, no code.
PLAIN = frozenset({"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"})


def check_round_trip(case: Case) -> Report:
    """Options are JSON, and a saved model is bit-identical when it is loaded, without a pickle in the file.

    `Uncertainty.options` passes through JSON and `from_options` unchanged. `UncertaintyModel.save` and ``load`` change
    no bit of any tensor nor of u and its gradient, in float64 and float32. The file is a safetensors file: a JSON
    header, and tensors that cover the rest byte by byte; the uncertainty's own are floating-point numbers.

    Raises
    ------
    ContractError
        If a clause is violated.
    """
    report = case.report()
    part = case.judge
    options = through_json(report, part.options())
    report.add("options: not JSON", *counted(_different(options, _listed(part.options()))))
    twin = rebuild_uncertainty({"kind": part.kind, "options": options})
    report.add("options: changed by from_options", *counted(_different(options, _listed(twin.options()))))
    positions = torch.tensor(case.held_out.positions[:4])
    with tempfile.TemporaryDirectory() as folder:
        for dtype in (torch.float64, torch.float32):
            path, model = Path(folder) / f"{dtype}.uqb", case.in_dtype(dtype)
            model.save(path)
            report.add(f"file: not plain, {short(dtype)}", *counted([*_faults(path.read_bytes())]))
            loaded = UncertaintyModel.load(path, trust=True)
            others = changed(model.state_dict(), loaded.state_dict())
            report.add(f"file: tensors changed, {short(dtype)}", *counted(others))
            before, after = (evaluate(each, positions.to(dtype), gradients=True) for each in (model, loaded))
            bits = changed(before._asdict(), after._asdict())
            report.add(f"file: values changed, {short(dtype)}", *counted(bits))
    return report.verified()


def check_refit(case: Case) -> Report:
    """A second fit keeps every shape, is picked up by a compiled graph, and a third one gives the first u back.

    The uncertainty is fitted to other frames and fewer: names, shapes and dtypes of its tensors stay, and all that
    changes is a floating-point tensor. `FusedEvaluator.load_model` then gives what the refitted eager model gives,
    1e-4 relative in float32, without a new graph: a number of the fit that is kept outside the buffers is a constant
    of the graph, and wrong from then on. Fitted to the first frames with the first seed again, u is what it was (1e-9
    relative, float64).

    Raises
    ------
    ContractError
        If a clause is violated.
    """
    report = case.report()
    other = refitted(case)
    old, new = case.judge.state_dict(), other.judge.state_dict()
    reshaped = [name for name in {**old, **new} if _form(old.get(name)) != _form(new.get(name))]
    report.add("refit: tensors of another shape", *counted(reshaped))
    kept = [name for name in old if name not in reshaped]
    odd = [name for name in kept if not old[name].is_floating_point() and not torch.equal(old[name], new[name])]
    report.add("refit: changed tensors not floating", *counted(odd))
    x = torch.tensor(case.held_out.positions[:2], dtype=torch.float32)
    evaluator = FusedEvaluator(case.in_dtype(torch.float32), Linear(tau=-1.0), len(x), runner="eager")
    refitted32 = copy.deepcopy(other).to(torch.float32)
    try:
        evaluator.load_model(refitted32)
    except UqbiasError as error:
        report.add("refit: graph refuses it", 1, 0, str(error))
        return report.verified()
    result, wanted = evaluator.evaluate(x), evaluate(refitted32, x)
    everywhere = case.evaluate(case.training.positions)
    for name, given, expected, scale in (
        ("u", result.driver, wanted.raw, largest(everywhere.raw)),
        ("calibrated u", result.judge, wanted.calibrated, largest(everywhere.calibrated)),
    ):
        report.add(f"refit: {name} of the old graph", change(given, expected, scale), AGREEMENT)
    held_out = torch.tensor(case.held_out.positions)
    before, away = evaluate(case.model, held_out).raw, evaluate(other, held_out).raw
    fit_uncertainty(other.potential, other.judge, case.training, case.seed)
    again = evaluate(other, held_out).raw
    report.add("refit: change of u, reported", change(away, before), float("inf"))
    report.add("refit: u of the first fit again", change(again, before), 1e-9)
    return report.verified()


def _faults(content: bytes) -> Iterator[str]:
    """What in a model file is not a JSON header or a plain tensor."""
    size = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + size])
    except ValueError:
        yield "no JSON header"
        return
    metadata = header.pop("__metadata__", {})
    if any(not isinstance(text, str) for text in metadata.values()):
        yield "metadata that is not text"
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        is_of_uncertainty = name.startswith(("judge.", "driver."))
        if entry["dtype"] not in PLAIN or (is_of_uncertainty and not entry["dtype"].startswith(("F", "BF"))):
            yield f"{name} of type {entry['dtype']}"
        if entry["data_offsets"][0] != end:
            yield f"bytes before {name}"
        end = entry["data_offsets"][1]
    if 8 + size + end != len(content):
        yield "bytes after the last tensor"


def _listed(value: Any) -> Any:
    """The same with lists for tuples, as JSON has them."""
    if isinstance(value, Mapping):
        return {str(name): _listed(entry) for name, entry in value.items()}
    return [_listed(entry) for entry in value] if isinstance(value, list | tuple) else value


def _different(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [name for name in {**one, **other} if one.get(name, ...) != other.get(name, ...)]


def _form(tensor: Tensor | None) -> tuple[Any, ...] | None:
    return None if tensor is None else (tuple(tensor.shape), tensor.dtype)
