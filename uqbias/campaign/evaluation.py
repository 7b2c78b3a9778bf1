"""Evaluating a model on many frames, in blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uqbias.model import UncertaintyModel

Array = NDArray[np.float64]
#: Frames evaluated together, to bound the memory.
BLOCK = 128


@dataclass(frozen=True)
class Evaluated:
    """What a model says of n frames.

    Attributes
    ----------
    energy : [n] kJ/mol.
    cv : [n] driver.
    uncertainty : [n] calibrated judge, kJ/mol/nm.
    raw_uncertainty : [n] judge before calibration.
    forces : [n, N, 3] kJ/mol/nm, or None where not asked for.
    """

    energy: Array
    cv: Array
    uncertainty: Array
    raw_uncertainty: Array
    forces: Array | None = None


def evaluate_frames(model: UncertaintyModel, positions: NDArray[Any], *, forces: bool = False) -> Evaluated:
    """Evaluate ``positions`` [n, N, 3] in nm, with forces if asked for."""
    blocks: dict[str, list[Tensor]] = {"energy": [], "cv": [], "uncertainty": [], "raw": [], "forces": []}
    for block in _blocks(model, positions):
        with torch.set_grad_enabled(forces):
            x = block.requires_grad_(forces)
            energy, latents = model.potential(x)
        with torch.no_grad():
            raw = model.uncertainty(x, energy, latents)
            cv = raw if model.cv is model.uncertainty else model.cv(x, energy, latents)
            blocks["uncertainty"].append(model.calibration(raw))
        mean = energy.mean(0)
        if forces:
            blocks["forces"].append(-torch.autograd.grad(mean.sum(), x)[0])
        for name, values in (("energy", mean), ("cv", cv), ("raw", raw)):
            blocks[name].append(values.detach())
    return Evaluated(
        _joined(blocks["energy"]),
        _joined(blocks["cv"]),
        _joined(blocks["uncertainty"]),
        _joined(blocks["raw"]),
        _joined(blocks["forces"]) if forces else None,
    )


def latents_of(model: UncertaintyModel, positions: NDArray[Any]) -> tuple[Tensor, Tensor]:
    """Energies [M, n] and latents [M, n, N, F] of ``positions`` [n, N, 3] in nm, in the model's dtype."""
    energies, latents = [], []
    with torch.no_grad():
        for block in _blocks(model, positions):
            energy, latent = model.potential(block)
            energies.append(energy)
            latents.append(latent)
    return torch.cat(energies, dim=1), torch.cat(latents, dim=1)


def selection_features(model: UncertaintyModel, positions: NDArray[Any], space: str) -> Array:
    """Features [n, D] in which diversity is measured.

    Parameters
    ----------
    positions : [n, N, 3] nm.
    space : ``cv_features``, the driver's feature space (mean over atoms where it is per atom), or ``latents``,
        the latents of all members, mean over the atoms of each element.
    """
    features = getattr(model.cv, "features", None) if space == "cv_features" else None
    rows = []
    numbers = torch.tensor(model.numbers)
    with torch.no_grad():
        for block in _blocks(model, positions):
            _, latents = model.potential(block)
            if features is not None:
                values = features(block, latents)
                values = values.mean(dim=1) if features.per_atom else values
            else:
                means = [latents[:, :, numbers == element].mean(dim=2) for element in torch.unique(numbers)]
                values = torch.cat([mean.permute(1, 0, 2).flatten(1) for mean in means], dim=-1)
            rows.append(values)
    return _joined(rows)


def stiff_deviations(model: UncertaintyModel, positions: NDArray[Any]) -> Array:
    """Largest turn of a stiff torsion of the driver's or the judge's features, [n] degrees (0 where there is none)."""
    largest = np.zeros(len(positions))
    for part in (model.cv, model.uncertainty):
        measure = getattr(getattr(part, "features", None), "stiff_deviation", None)
        if measure is not None:
            values = [measure(block).detach() for block in _blocks(model, positions)]
            largest = np.maximum(largest, _joined(values))
    return largest


def _blocks(model: UncertaintyModel, positions: NDArray[Any]) -> list[Tensor]:
    dtype = next(model.potential.parameters()).dtype
    x = torch.as_tensor(np.asarray(positions), dtype=dtype)
    return [block.clone() for block in torch.split(x, BLOCK)]


def _joined(blocks: list[Tensor]) -> Array:
    return torch.cat(blocks).double().cpu().numpy() if blocks else np.empty(0)
