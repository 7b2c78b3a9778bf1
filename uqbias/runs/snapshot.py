"""Snapshots: one file from which a run goes on as if it had not been interrupted."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt
from typing_extensions import TypedDict

from uqbias.bias.base import parts_of
from uqbias.errors import UqbiasError
from uqbias.files import check_json, content_of, memory_for, parse_json, read_arrays, write_arrays

if TYPE_CHECKING:
    from uqbias.bias.base import Bias

VERSION = 1
_BIAS = "bias."


class _Facts(TypedDict):
    step: NonNegativeInt


class _Manifest(TypedDict):
    version: int
    atomic_numbers: list[int]
    bias: list[Any]
    bias_options: NotRequired[list[dict[str, Any]] | None]
    own: _Facts


#: Of `state_of_context`.
_SHAPES = {
    "positions": (-1, 3),
    "velocities": (-1, 3),
    "box": (3, 3),
    "time": (),
    "step_count": (),
    "checkpoint": (-1,),
    "platform": (),
}


def write_snapshot(
    path: str | Path,
    numbers: Sequence[int],
    loop_facts: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    bias: Bias | None,
) -> None:
    """Write a snapshot atomically, as a ``.npz`` without pickled objects.

    Parameters
    ----------
    numbers : atomic numbers of the molecule.
    loop_facts : JSON-able facts of the run; `open_snapshot` compares some of them.
    arrays : everything else.
    bias : its checkpoint goes in too.
    """
    held = {} if bias is None else {_BIAS + name: array for name, array in bias.checkpoint().items()}
    manifest = {
        "format": "uqbias-snapshot",
        "version": VERSION,
        "atomic_numbers": list(numbers),
        "bias": _description(bias),
        "bias_options": [part.options() for part in parts_of(bias)],
        "own": dict(loop_facts),
    }
    write_arrays(path, {"manifest": np.array(json.dumps(manifest)), **arrays, **held})


def open_snapshot(
    path: str | Path,
    numbers: Sequence[int],
    settings: Mapping[str, Any],
    bias: Bias | None,
    particles: int | None = None,
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read a snapshot and check that it fits; nothing is changed.

    Parameters
    ----------
    numbers : atomic numbers of the molecule that goes on.
    settings : entries of the snapshot's own facts that must be the same.
    bias : bias of the run that goes on.
    particles : number of them in its Context, if known.

    Returns
    -------
    loop_facts : the facts, with ``step``.
    arrays : everything else, for `restore_bias` and `restore_context`.

    Raises
    ------
    UqbiasError
        If the file is not a whole snapshot, or one of another system, other settings, or a bias of another kind, on
        other variables or with other options.
    """
    path = Path(path)
    cure = "begin from an older one, or anew"
    arrays = read_arrays(path, "snapshot", cure)
    manifest = parse_json(str(arrays.pop("manifest", "")), Any, f"{path} is not a whole snapshot: manifest", cure)
    if not isinstance(manifest, dict) or manifest.get("format") != "uqbias-snapshot":
        raise UqbiasError(f"{path} is not a snapshot of uqbias", "give a file that an earlier run wrote")
    check_json(manifest, _Manifest, f"{path} is not a whole snapshot: manifest", cure)
    version, loop_facts, held = manifest["version"], manifest["own"], manifest["bias"]
    stored_numbers = manifest["atomic_numbers"]
    if version > VERSION:
        raise UqbiasError(f"{path} has version {version}, this uqbias reads {VERSION}", "upgrade uqbias")
    expected = [int(number) for number in numbers]
    if stored_numbers != expected:
        raise UqbiasError(
            f"{path} is a snapshot of another system: {len(stored_numbers)} atoms {stored_numbers[:8]}..., "
            f"here {len(expected)} {expected[:8]}...",
            "give the snapshot of this system",
        )
    for name, value in settings.items():
        if loop_facts.get(name) != value:
            raise UqbiasError(
                f"{path} was written with {name} {loop_facts.get(name)}, this run has {value}", "use the same"
            )
    if held != _description(bias):
        raise UqbiasError(f"{path} holds a bias {held}, this run has {_description(bias)}", "use the same biases")
    _check_options(path, manifest.get("bias_options"), bias)
    for name, shape in _SHAPES.items():
        array = arrays.get(name)
        if array is None or not _fits(array.shape, shape) or (array.dtype.kind in "fiu") == (name == "platform"):
            raise UqbiasError(f"{path} is not a whole snapshot (without {name})", cure)
    if particles is not None and len(arrays["positions"]) != particles:
        raise UqbiasError(
            f"{path} has {len(arrays['positions'])} particles, this system {particles}",
            "give the snapshot of this system",
        )
    return loop_facts, arrays


def restore_bias(path: str | Path, bias: Bias | None, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Put back the bias that a snapshot holds; where that cannot be done it stays as it was.

    Raises
    ------
    UqbiasError
        If the bias does not take the arrays.
    """
    if bias is None:
        return
    before = bias.checkpoint()
    try:
        with content_of(path, "begin from an older one", "is not a whole snapshot: bias"), memory_for(Path(path)):
            bias.restore({name.removeprefix(_BIAS): array for name, array in arrays.items() if name.startswith(_BIAS)})
    except BaseException:
        bias.restore(before)
        raise


def state_of_context(context: Any) -> dict[str, NDArray[Any]]:
    """Positions, velocities, box, time, step and OpenMM's own checkpoint of a Context."""
    import openmm

    state = context.getState(positions=True, velocities=True)
    return {
        "positions": np.array(state.getPositions(asNumpy=True)._value),
        "velocities": np.array(state.getVelocities(asNumpy=True)._value),
        "box": np.array(state.getPeriodicBoxVectors(asNumpy=True)._value),
        "time": np.array(state.getTime()._value),
        "step_count": np.array(context.getStepCount()),
        # Holds the state of the random numbers, and positions in the precision of the platform.
        "checkpoint": np.frombuffer(context.createCheckpoint(), dtype=np.uint8),
        "platform": np.array(f"{context.getPlatform().getName()} {openmm.Platform.getOpenMMVersion()}"),
    }


def restore_context(context: Any, arrays: Mapping[str, NDArray[Any]]) -> bool:
    """Put the state of a Context back; returns whether random numbers go on too.

    OpenMM's checkpoint is read by the same platform and version only. Elsewhere the run goes on from the same
    positions and velocities with other random numbers.
    """
    import openmm

    if str(arrays["platform"]) == f"{context.getPlatform().getName()} {openmm.Platform.getOpenMMVersion()}":
        # Another GPU, or another integrator, refuses it.
        with contextlib.suppress(openmm.OpenMMException):
            context.loadCheckpoint(arrays["checkpoint"].tobytes())
            return True
    context.setPeriodicBoxVectors(*arrays["box"])
    context.setPositions(arrays["positions"])
    context.setVelocities(arrays["velocities"])
    context.setTime(float(arrays["time"]))
    context.setStepCount(int(arrays["step_count"]))
    return False


def _description(bias: Bias | None) -> list[Any]:
    return [[part.kind, list(part.variables)] for part in parts_of(bias)]


def _check_options(path: Path, saved: Any, bias: Bias | None) -> None:
    """Compare what both have: earlier versions wrote no options, or did not know all that there are now."""
    for part, old in zip(parts_of(bias), saved or (), strict=False):
        for name, value in part.options().items():
            if name in old and old[name] != value:
                raise UqbiasError(
                    f"{path} holds a {part.kind} on {', '.join(part.variables)} with {name} {old[name]}, this run's "
                    f"has {value}",
                    f"use the same {name}",
                )


def _fits(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return len(shape) == len(expected) and all(want in {-1, size} for size, want in zip(shape, expected, strict=True))
