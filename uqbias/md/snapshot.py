"""Snapshots: one file from which a run goes on as if it had not been interrupted."""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from uqbias.errors import UqbiasError
from uqbias.files import write_arrays

if TYPE_CHECKING:
    from uqbias.bias.base import Bias

VERSION = 1
_BIAS = "bias."


def write_snapshot(
    path: str | Path,
    numbers: Sequence[int],
    own: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    bias: Bias | None,
) -> None:
    """Write a snapshot atomically, as a ``.npz`` without pickled objects.

    Parameters
    ----------
    numbers : atomic numbers of the molecule.
    own : JSON-able facts of the run; `read_snapshot` compares some of them.
    arrays : everything else.
    bias : its checkpoint goes in too.
    """
    held = {} if bias is None else {_BIAS + name: array for name, array in bias.checkpoint().items()}
    manifest = {
        "format": "uqbias-snapshot",
        "version": VERSION,
        "atomic_numbers": list(numbers),
        "bias": _description(bias),
        "own": dict(own),
    }
    write_arrays(path, {"manifest": np.array(json.dumps(manifest)), **arrays, **held})


def read_snapshot(
    path: str | Path, numbers: Sequence[int], settings: Mapping[str, Any], bias: Bias | None
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read a snapshot and put its bias into ``bias``.

    Nothing is changed unless the snapshot fits.

    Parameters
    ----------
    numbers : atomic numbers of the molecule that goes on.
    settings : entries of the snapshot's own facts that must be the same.
    bias : of the run that goes on.

    Returns
    -------
    own : the facts.
    arrays : without those of the bias.

    Raises
    ------
    UqbiasError
        If the file is not a whole snapshot, or one of another system, other settings or another bias.
    """
    path = Path(path)
    if not path.is_file():
        raise UqbiasError(f"no such snapshot: {path}", "give a file that an earlier run wrote")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
        manifest = json.loads(str(arrays.pop("manifest")))
    except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UqbiasError(f"{path} is not a whole snapshot ({error})", "begin from an older one, or anew") from error
    if not isinstance(manifest, dict) or manifest.get("format") != "uqbias-snapshot":
        raise UqbiasError(f"{path} is not a snapshot of uqbias", "give a file that an earlier run wrote")
    if manifest["version"] > VERSION:
        raise UqbiasError(f"{path} has version {manifest['version']}, this uqbias reads {VERSION}", "upgrade uqbias")
    found, expected = manifest["atomic_numbers"], [int(number) for number in numbers]
    if found != expected:
        raise UqbiasError(
            f"{path} is a snapshot of another system: {len(found)} atoms {found[:8]}..., here {len(expected)} "
            f"{expected[:8]}...",
            "give the snapshot of this system",
        )
    own = manifest["own"]
    for name, value in settings.items():
        if own.get(name) != value:
            raise UqbiasError(f"{path} was written with {name} {own.get(name)}, this run has {value}", "use the same")
    if manifest["bias"] != _description(bias):
        raise UqbiasError(
            f"{path} holds a bias {manifest['bias']}, this run has {_description(bias)}", "use the same biases"
        )
    if bias is not None:
        held = {name.removeprefix(_BIAS): array for name, array in arrays.items() if name.startswith(_BIAS)}
        bias.restore(held)
    return own, {name: array for name, array in arrays.items() if not name.startswith(_BIAS)}


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


def restore_context(path: str | Path, context: Any, arrays: Mapping[str, NDArray[Any]]) -> bool:
    """Put the state of a Context back; returns whether random numbers go on too.

    OpenMM's checkpoint is read by the same platform and version only. Elsewhere the run goes on from the same
    positions and velocities with other random numbers.

    Raises
    ------
    UqbiasError
        If the numbers of particles differ.
    """
    import openmm

    count = context.getSystem().getNumParticles()
    if len(arrays["positions"]) != count:
        raise UqbiasError(
            f"{path} has {len(arrays['positions'])} particles, this system {count}", "give the snapshot of this system"
        )
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
    if bias is None:
        return []
    parts = getattr(bias, "biases", [bias])
    return [[part.kind, list(part.variables)] for part in parts]
