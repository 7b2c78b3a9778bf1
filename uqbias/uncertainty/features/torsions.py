"""Sines and cosines of the heavy-atom torsions, with the stiff ones left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Doc

from uqbias.errors import UqbiasError
from uqbias.molecule.measures import dihedral_angles
from uqbias.molecule.topology import Topology
from uqbias.options import NotNegative
from uqbias.uncertainty.base import set_buffers
from uqbias.uncertainty.features.base import Features

#: nm; bond vectors are divided by √(|b|² + SHORT²), so that coinciding atoms give finite derivatives.
SHORT = 1e-4
#: A torsion with a collinear flank has no angle: its unit vector shrinks to zero as sin α sin β falls below this.
COLLINEAR = 1e-2
#: A torsion whose mean sin α sin β over the start frames is below this runs along a linear group and is left out.
LINEAR = 0.1


class Torsions(Features):
    """Soft torsions of the bond graph, found automatically.

    √w_t (cos θ_t, sin θ_t) of T proper dihedrals, so that ``f·f' = Σ_t w_t cos(θ_t − θ'_t)``.
    The weight of a dihedral is one over the number of dihedrals on the same central bond, so each bond counts once.
    `prepare` gives weight 0 to stiff torsions (amides, rings, double bonds): a density over them would only measure
    how far a stiff mode is heated.

    Parameters
    ----------
    dihedrals : [T, 4] atom indices.
    n_atoms : atoms of the molecule, N.
    stiff_below : 0 keeps all torsions.

    Attributes
    ----------
    weights : [T] w_t; 0 for stiff torsions.
    stiff : [T] 1 for stiff torsions, else 0.
    start_angles : [T] rad, circular mean over the start frames.
    """

    kind = "torsions"
    angular: ClassVar[bool] = True
    weights: Tensor
    stiff: Tensor
    start_angles: Tensor
    prepared: Tensor
    incidence: Tensor

    def __init__(
        self,
        dihedrals: Sequence[Sequence[int]],
        n_atoms: int,
        *,
        stiff_below: Annotated[
            NotNegative,
            Doc("degrees; a torsion with a smaller circular deviation over the start frames is stiff, weight 0"),
        ] = 20.0,
    ) -> None:
        super().__init__()
        if not dihedrals:
            raise UqbiasError(
                "the molecule has no such dihedral", "set heavy_only: false, or choose the features pair_distances"
            )
        self.dihedrals = tuple((int(i), int(j), int(k), int(m)) for i, j, k, m in dihedrals)
        self.n_atoms = n_atoms
        self.stiff_below = float(stiff_below)
        self.dim = 2 * len(self.dihedrals)
        count = len(self.dihedrals)
        self.register_buffer("weights", torch.tensor(self._multiplicity_weights(), dtype=torch.get_default_dtype()))
        self.register_buffer("stiff", torch.zeros(count))
        self.register_buffer("start_angles", torch.zeros(count))
        self.register_buffer("prepared", torch.zeros(()))
        # Bond vectors as one matrix product: no index and no atomic addition in the backward pass.
        incidence = torch.zeros(3, count, n_atoms)
        for t, atoms in enumerate(self.dihedrals):
            for bond in range(3):
                incidence[bond, t, atoms[bond]] = -1.0
                incidence[bond, t, atoms[bond + 1]] = 1.0
        self.register_buffer("incidence", incidence.reshape(3 * count, n_atoms), persistent=False)

    @classmethod
    def build(
        cls,
        topology: Topology,
        n_latents: int,
        *,
        heavy_only: Annotated[bool, Doc("only torsions of four heavy atoms")] = True,
        **options: Any,
    ) -> Torsions:
        """Take the proper dihedrals of the bond graph."""
        return cls(topology.proper_dihedrals(heavy_only=heavy_only), len(topology.numbers), **options)

    @property
    def is_prepared(self) -> bool:
        """Whether the stiff torsions are known."""
        return bool(self.prepared.item())

    def prepare(self, positions: Tensor) -> None:
        """Find the stiff torsions: circular standard deviation √(−2 ln R) below `stiff_below` over the start frames.

        Parameters
        ----------
        positions : [n, N, 3] nm.

        Raises
        ------
        UqbiasError
            If no torsion is soft.
        """
        x = positions.detach().cpu().numpy().astype(np.float64)
        angles = dihedral_angles(x, self.dihedrals)
        resultant = np.exp(1j * angles).mean(axis=0)
        deviation = np.degrees(np.sqrt(-2.0 * np.log(np.clip(np.abs(resultant), 1e-12, 1.0))))
        linear = _sine_products(x, self.dihedrals).mean(axis=0) < LINEAR
        stiff = (deviation < self.stiff_below) & ~linear
        weights = np.where(stiff | linear, 0.0, self._multiplicity_weights())
        if not weights.any():
            raise UqbiasError(
                f"all {len(weights)} torsions are stiff over {len(x)} start frames: largest circular standard "
                f"deviation {deviation.max():.1f} degrees, stiff_below {self.stiff_below:g}",
                "give more diverse start frames, a smaller stiff_below, or the features pair_distances",
            )
        set_buffers(self, weights=weights, stiff=stiff, start_angles=np.angle(resultant), prepared=1.0)

    def stiff_deviation(self, positions: Tensor) -> Tensor:
        """Largest deviation of a stiff torsion from its start mean, [n] degrees (0 to 180; 0 if none is stiff)."""
        with torch.no_grad():
            cosine, sine = self._unit_vectors(positions.to(self.weights.dtype))
            away = torch.atan2(sine, cosine) - self.start_angles
            wrapped = torch.atan2(away.sin(), away.cos()).abs()
            return torch.rad2deg((wrapped * self.stiff).amax(-1))

    def forward(self, positions: Tensor, latents: Tensor) -> Tensor:
        """Weighted cosines, then weighted sines, [W, 2T]."""
        return torch.cat(self._unit_vectors(positions), dim=-1) * self.weights.sqrt().repeat(2)

    def _unit_vectors(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine [W, T], IUPAC sign (0 is cis)."""
        bonds = (self.incidence @ positions).reshape(-1, 3, len(self.dihedrals), 3)
        bonds = bonds / ((bonds * bonds).sum(-1, keepdim=True) + SHORT**2).sqrt()
        first, axis, last = bonds.unbind(1)
        normal = torch.linalg.cross(axis, last)
        x = (torch.linalg.cross(first, axis) * normal).sum(-1)
        y = (first * normal).sum(-1)
        norm = (x * x + y * y + COLLINEAR**2).rsqrt()
        return x * norm, y * norm

    def _multiplicity_weights(self) -> list[float]:
        """One over the number of dihedrals on the same central bond, [T]."""
        counts = Counter(frozenset(four[1:3]) for four in self.dihedrals)
        return [1.0 / counts[frozenset(four[1:3])] for four in self.dihedrals]


def _sine_products(x: np.ndarray[Any, np.dtype[np.float64]], dihedrals: Sequence[Sequence[int]]) -> Any:
    """Product of the sines of the two bond angles of each dihedral, [n, T]."""
    index = np.asarray(dihedrals)
    steps = [x[:, index[:, bond + 1]] - x[:, index[:, bond]] for bond in range(3)]
    units = [step / np.maximum(np.linalg.norm(step, axis=-1, keepdims=True), 1e-12) for step in steps]
    sines = [np.linalg.norm(np.cross(units[bond], units[bond + 1]), axis=-1) for bond in range(2)]
    return sines[0] * sines[1]
