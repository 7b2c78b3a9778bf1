"""Write the models of the regtests: five atoms, weights by formula, so that every torch gives the reference numbers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from uqbias.model.export import export_torchscript
from uqbias.molecule.geometry import Geometry

NUMBERS = (6, 1, 1, 8, 1)


class Prediction(NamedTuple):
    """What a model of uqbias gives."""

    energy: torch.Tensor
    driver: torch.Tensor
    judge: torch.Tensor


class Cluster(torch.nn.Module):
    """Smooth functions of the pair distances; with a box also of the scaled positions and of the volume."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = NUMBERS
        index = torch.arange(40, dtype=torch.float64).reshape(5, 8)
        self.register_buffer("weight", torch.sin(1.7 * index + 0.3))
        self.register_buffer("readout", 5.0 * torch.cos(0.9 * index[0]))
        # An integer buffer, which no conversion may make floating point.
        self.register_buffer("order", torch.arange(5))

    def forward(self, positions: torch.Tensor, geometry: Geometry | None = None) -> Prediction:
        """Positions [W, 5, 3] nm, box [W, 3, 3] nm."""
        positions = positions.index_select(1, self.order)
        squared = (positions.unsqueeze(2) - positions.unsqueeze(1)).pow(2).sum(-1)
        latents = torch.tanh(torch.exp(-squared / 0.04) @ self.weight)
        energy = (latents @ self.readout).sum(-1) + 500.0 * (squared - 0.04).pow(2).sum((1, 2))
        if geometry is not None and geometry.box is not None:
            phases = 6.283185307179586 * positions @ torch.linalg.inv(geometry.box)
            energy = energy + torch.cos(phases.unsqueeze(2) - phases.unsqueeze(1)).sum((1, 2, 3))
            energy = energy + torch.det(geometry.box)
        driver = latents.pow(2).mean((1, 2)) - 0.2
        return Prediction(energy, driver, 2.0 * driver + 1.0)


class Several(torch.nn.Module):
    """Three outputs as one tensor [3]."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self.cluster = cluster

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        """Positions [5, 3] nm in the dtype of the weights."""
        found = self.cluster(positions.float().unsqueeze(0))
        return torch.cat([found.judge, found.energy, found.driver]).type_as(positions)


def write_models(directory: Path) -> None:
    """Write ``<output>.pt``, ``<output>_forces.pt``, ``periodic.pt`` and ``components.pt``."""
    cluster = Cluster()
    for output in ("judge", "driver", "energy"):
        export_torchscript(cluster, directory / f"{output}.pt", output)
        export_torchscript(cluster, directory / f"{output}_forces.pt", output, with_forces=True)
    export_torchscript(cluster, directory / "periodic.pt", "energy", periodic=True)
    several = Several(cluster.float()).eval()
    traced = torch.jit.trace(several, torch.rand(5, 3, dtype=torch.float64), check_trace=False)
    manifest = {
        "format": "uqbias-torchscript",
        "output": "judge",
        "unit": "kJ/mol/nm, expected force error",
        "with_forces": False,
        "periodic": False,
        "atomic_numbers": list(NUMBERS),
        "length_unit": "nm",
        "components": ["judge", "energy", "max"],
        "versions": {"uqbias": "0", "torch": torch.__version__},
    }
    torch.jit.save(traced, str(directory / "components.pt"), _extra_files={"manifest.json": json.dumps(manifest)})


if __name__ == "__main__":
    write_models(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
