"""Several feature spaces side by side, each with a scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from annotated_types import MinLen
from torch import Tensor, nn
from typing_extensions import Doc

from uqbias.errors import UqbiasError
from uqbias.molecule.topology import Topology
from uqbias.registry import FEATURES
from uqbias.uncertainty.features.base import Features


class Concatenated(Features):
    """Several feature spaces side by side.

    ``[s_1 f_1, s_2 f_2, ...]``, with scales s.

    Parameters
    ----------
    parts : feature spaces, or the ``{"kind", "options"}`` of each, all of one vector per walker.
    scales : factor of each part.
    """

    kind = "concatenated"

    def __init__(self, parts: Sequence[Features | Mapping[str, Any]], scales: Sequence[float]) -> None:
        super().__init__()
        spaces = [part if isinstance(part, Features) else FEATURES.restore(part) for part in parts]
        for part in spaces:
            if part.per_atom:
                raise UqbiasError(f"'{part.kind}' gives one vector per atom", "concatenate per-walker features only")
        self.parts = nn.ModuleList(spaces)
        self._spaces = spaces
        self.scales = tuple(float(scale) for scale in scales)
        self.dim = sum(part.dim for part in spaces)
        self.requires_latents = any(part.requires_latents for part in spaces)
        self.labelled = any(part.labelled for part in spaces)

    @classmethod
    def build(
        cls,
        topology: Topology,
        n_latents: int,
        *,
        parts: Annotated[
            Sequence[str | dict[str, Any]], MinLen(1), Doc("each a name, or {kind, scale (default 1), options}")
        ],
    ) -> Concatenated:
        """Make the parts for a molecule."""
        sections = [{"kind": part} if isinstance(part, str) else dict(part) for part in parts]
        scales = [float(section.pop("scale", 1.0)) for section in sections]
        spaces = [FEATURES.build(section, topology=topology, n_latents=n_latents) for section in sections]
        return cls(spaces, scales)

    @property
    def is_prepared(self) -> bool:
        """Whether every part is prepared."""
        return all(part.is_prepared for part in self._spaces)

    def prepare(self, positions: Tensor) -> None:
        """Prepare every part."""
        for part in self._spaces:
            part.prepare(positions)

    def stiff_deviation(self, positions: Tensor) -> Tensor:
        """Largest of the parts', [n] degrees."""
        return torch.stack([part.stiff_deviation(positions) for part in self._spaces]).amax(0)

    def forward(self, positions: Tensor, latents: Tensor) -> Tensor:
        """Feature vectors [W, D]."""
        parts = zip(self.parts, self.scales, strict=True)
        return torch.cat([scale * part(positions, latents) for part, scale in parts], dim=-1)
