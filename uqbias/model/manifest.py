"""The JSON manifest of a model file, and reading such a file with all that can be checked before a model is made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired

from pydantic import NonNegativeInt
from torch import Tensor
from typing_extensions import TypedDict

from uqbias.errors import UqbiasError
from uqbias.files import check_json, content_of, parse_json
from uqbias.molecule.topology import Bonds, Element

FORMAT_VERSION = 3
REPLACE = "copy or train it again"


class _Part(TypedDict):
    kind: str
    options: dict[str, Any]


class _Calibration(TypedDict):
    kind: str
    alpha: float
    statistic: str
    frames: NonNegativeInt
    unit: str
    meaning: str
    shape: NotRequired[str]
    numbers: NotRequired[list[Element] | None]
    structure_quantiles: dict[str, float]
    atom_quantiles: dict[str, float | list[float]]


class _System(TypedDict):
    name: str
    topology: Bonds


class Manifest(TypedDict):
    """Schema of the manifest of a model file; further keys may stand in it."""

    format: Literal["uqbias"]
    format_version: int
    atomic_numbers: list[Element]
    elements: NotRequired[list[Element]]
    element_energies: NotRequired[dict[str, float]]
    topology: Bonds
    systems: NotRequired[list[_System]]
    units: dict[str, str]
    dtype: Literal["float32", "float64"]
    potential: _Part
    judge: _Part
    driver: _Part | None
    calibration: _Calibration
    provenance: dict[str, Any]
    versions: dict[str, str]


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of a model file, after the same checks as :meth:`UncertaintyModel.load`."""
    return read_file(Path(path))[0]


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Manifest and tensors of a model file, checked; see `read_manifest`."""
    from safetensors import safe_open

    if not path.is_file():
        raise UqbiasError(f"no such model file: {path}", "make one with 'uqbias train' or 'uqbias run'")
    # safetensors compares what the header claims with the size of the file.
    with content_of(path, REPLACE, "is not a whole model file"), safe_open(path, framework="pt") as stream:
        text = (stream.metadata() or {}).get("manifest", "null")
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    manifest = parse_json(text, Any, f"{path}: manifest", REPLACE)
    if not isinstance(manifest, dict) or manifest.get("format") != "uqbias":
        raise UqbiasError(f"{path} is a safetensors file without a uqbias manifest", "make one with 'uqbias train'")
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise UqbiasError(
            f"{path} has format version {version!r}, this uqbias reads {FORMAT_VERSION}",
            "upgrade uqbias"
            if isinstance(version, int) and version > FORMAT_VERSION
            else "train it again: what such a file calls 'cv' and 'uncertainty' is now 'driver' and 'judge'",
        )
    check_json(manifest, Manifest, f"{path}: manifest", REPLACE)
    members = manifest["potential"]["options"].get("n_members")
    if isinstance(members, int) and members > path.stat().st_size:
        raise UqbiasError(f"{path}: more members than bytes", REPLACE)
    recorded = manifest.pop("sha256", "")
    with content_of(path, REPLACE):
        expected = digest(manifest, tensors)
    if recorded != expected:
        raise UqbiasError(
            f"{path} was changed after it was written (SHA-256 {str(recorded)[:12]}..., content {expected[:12]}...)",
            "copy or train it again",
        )
    manifest["sha256"] = recorded
    return manifest, tensors


def digest(manifest: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of manifest and tensors, as a model file states it."""
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    sha = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        sha.update(tensor.contiguous().numpy().tobytes())
    return sha.hexdigest()
