"""Evaluating a model on many frames, in blocks.

Frames are given as `Frames`, or as their positions [n, N, 3] in nm where they have no cell.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uqbias.model.model import UncertaintyModel
from uqbias.molecule.cells import volume
from uqbias.molecule.frames import Frames
from uqbias.potentials.prediction import predict

Array = NDArray[np.float64]
#: Frames evaluated together, to bound the memory.
BLOCK = 128


@dataclass(frozen=True)
class Evaluated:
    """What a model says of n frames.

    Attributes
    ----------
    energy : [n] kJ/mol.
    driver : [n] driver.
    judge : [n] calibrated judge, kJ/mol/nm.
    raw_judge : [n] judge before calibration.
    local : [n, K] parts of the driver.
    forces : [n, N, 3] kJ/mol/nm, or None where not asked for.
    raw_atom_uncertainty : [n, N] judge of each atom before calibration, or None where not asked for or where the
        judge has no values per atom.
    stress : [n, 3, 3] kJ/mol/nm³, tension positive; with the forces of frames in cells, None otherwise.
    """

    energy: Array
    driver: Array
    judge: Array
    raw_judge: Array
    local: Array
    forces: Array | None = None
    raw_atom_uncertainty: Array | None = None
    stress: Array | None = None


def evaluate_frames(
    model: UncertaintyModel, frames: Frames | NDArray[Any], *, forces: bool = False, atoms: bool = False
) -> Evaluated:
    """Evaluate frames, with forces and with per-atom uncertainties if asked for."""
    wanted: Literal["none", "mean", "members"] = "mean" if forces else "none"
    kept = ("energy", "driver", "judge", "raw", "local", "forces", "raw_atoms", "stress")
    blocks: dict[str, list[Tensor]] = {name: [] for name in kept}
    readouts = model.readouts
    if model.requires_forces and readouts is None:
        wanted = "members"
    for block, surroundings in _blocks(model, frames):
        prediction = predict(model.potential, block, BLOCK, forces=wanted, readouts=readouts, **surroundings)
        terms = (prediction.energy, prediction.latents, prediction.member_forces)
        with torch.no_grad():
            raw, driver, local = model.uncertainties(block, *terms)
            blocks["judge"].append(model.calibration(raw))
            blocks["local"].append(local)
            each = model.judge.per_atom(block, *terms) if atoms else None
        energy = prediction.energy.mean(0).double() + model.potential.energy_shift
        for name, values in (("energy", energy), ("driver", driver), ("raw", raw), ("raw_atoms", each)):
            if values is not None:
                blocks[name].append(values)
        if forces and prediction.forces is not None:
            blocks["forces"].append(prediction.forces)
        if prediction.virial is not None and surroundings["cells"] is not None:
            sizes = torch.as_tensor(volume(surroundings["cells"])).to(prediction.virial)
            blocks["stress"].append(prediction.virial / sizes[:, None, None])
    return Evaluated(
        _joined(blocks["energy"]),
        _joined(blocks["driver"]),
        _joined(blocks["judge"]),
        _joined(blocks["raw"]),
        _joined(blocks["local"]),
        _joined(blocks["forces"]) if forces else None,
        _joined(blocks["raw_atoms"]) if blocks["raw_atoms"] else None,
        _joined(blocks["stress"]) if blocks["stress"] else None,
    )


def residuals(model: UncertaintyModel, frames: Frames) -> tuple[Evaluated, Array]:
    """What the model says of labelled frames, forces and per-atom values included, and its force errors [n, N, 3]."""
    evaluated = evaluate_frames(model, frames, forces=True, atoms=True)
    assert evaluated.forces is not None
    return evaluated, evaluated.forces - frames.labels()[1]


def atoms_with_values(raw_atoms: Array) -> NDArray[np.bool_]:
    """Which atoms have an uncertainty of their own, [N]; the others are 0 in every frame of ``raw_atoms`` [n, N]."""
    has_value: NDArray[np.bool_] = (raw_atoms != 0).any(axis=0)
    return has_value


def selection_features(model: UncertaintyModel, frames: Frames | NDArray[Any], space: str) -> Array:
    """Features [n, D] in which diversity is measured.

    Parameters
    ----------
    space : ``driver_features``, the driver's feature space (mean over atoms where it is per atom), or ``latents``,
        the latents of all members, mean over the atoms of each element.
    """
    features = getattr(model.driver, "features", None) if space == "driver_features" else None
    rows = []
    numbers = torch.tensor(model.numbers)
    with torch.no_grad():
        for block, surroundings in _blocks(model, frames):
            latents = predict(model.potential, block, BLOCK, forces="none", **surroundings).latents
            if features is not None:
                values = features(block, latents)
                values = values.mean(dim=1) if features.per_atom else values
            else:
                means = [latents[:, :, numbers == element].mean(dim=2) for element in torch.unique(numbers)]
                values = torch.cat([mean.permute(1, 0, 2).flatten(1) for mean in means], dim=-1)
            rows.append(values)
    return _joined(rows)


def conformers(model: UncertaintyModel, frames: Frames | NDArray[Any]) -> Array | None:
    """Unit vectors [n, T, 2] of the soft torsions among the driver's features; None where they are not angles."""
    features = getattr(model.driver, "features", None)
    if features is None or not features.angular:
        return None
    values = selection_features(model, frames, "driver_features").reshape(len(frames), 2, -1).transpose(0, 2, 1)
    unit: Array = values / np.maximum(np.linalg.norm(values, axis=2, keepdims=True), 1e-12)
    return unit


def stiff_deviations(model: UncertaintyModel, frames: Frames | NDArray[Any]) -> Array:
    """Largest turn of a stiff torsion of the driver's or the judge's features, [n] degrees (0 where there is none)."""
    largest = np.zeros(len(frames))
    for part in (model.driver, model.judge):
        measure = getattr(getattr(part, "features", None), "stiff_deviation", None)
        if measure is not None:
            values = [measure(block).detach() for block, _ in _blocks(model, frames)]
            largest = np.maximum(largest, _joined(values))
    return largest


def _blocks(model: UncertaintyModel, frames: Frames | NDArray[Any]) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Positions of the frames of each block, and what `predict` needs beside them."""
    if not isinstance(frames, Frames):
        frames = Frames(np.array(model.numbers), np.asarray(frames))
    for start in range(0, max(len(frames), 1), BLOCK):
        block = frames[start : start + BLOCK]
        x = torch.tensor(block.positions).to(next(model.potential.parameters()))
        yield x, {"cells": block.cells, "periodic": block.periodic}


def _joined(blocks: list[Tensor]) -> Array:
    return torch.cat(blocks).double().cpu().numpy() if blocks else np.empty(0)
