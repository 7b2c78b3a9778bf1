"""Sines and cosines of the torsions about bonds that turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Doc

from uqbias.errors import UqbiasError
from uqbias.molecule.measures import dihedral_angles
from uqbias.molecule.rotors import SINGLE, UNDECIDED, bond_reasons
from uqbias.molecule.topology import Quadruple, Topology
from uqbias.uncertainty.base import set_buffers
from uqbias.uncertainty.features.base import Features

#: nm; bond vectors are divided by √(|b|² + SHORT²), so that coinciding atoms give finite derivatives.
SHORT = 1e-4
#: A torsion with a collinear flank has no angle: its unit vector shrinks to zero as sin α sin β falls below this.
COLLINEAR = 1e-2
#: Length of the mean unit vector of a stiff torsion over the start frames below which these hold it in several places.
HELD = 0.5


class Torsions(Features):
    """Soft torsions of the bond graph, found automatically.

    √w_t (cos θ_t, sin θ_t) of T proper dihedrals, so that ``f·f' = Σ_t w_t cos(θ_t − θ'_t)``.
    The weight of a dihedral is one over the number of dihedrals on the same central bond, so each bond counts once.
    Left out are stiff torsions, by `uqbias.molecule.rotors` (amides, double bonds, flat rings), since a density over
    them would only measure how far a stiff mode is heated, rings that pucker, and linear groups.

    Parameters
    ----------
    dihedrals : [T, 4] atom indices.
    n_atoms : atoms of the molecule, N.
    stiff : [S, 4] atom indices of the stiff torsions, for `stiff_deviation`.

    Attributes
    ----------
    weights : [T] w_t.
    start_angles : [S] rad, circular mean of the stiff torsions over the start frames.
    held : [S] 1 for stiff torsions that the start frames have in one place, else 0.
    """

    kind = "torsions"
    angular: ClassVar[bool] = True
    weights: Tensor
    start_angles: Tensor
    held: Tensor
    prepared: Tensor
    incidence: Tensor
    stiff_incidence: Tensor

    def __init__(self, dihedrals: Sequence[Sequence[int]], n_atoms: int, stiff: Sequence[Sequence[int]] = ()) -> None:
        super().__init__()
        self.dihedrals = tuple((int(i), int(j), int(k), int(m)) for i, j, k, m in dihedrals)
        self.stiff = tuple((int(i), int(j), int(k), int(m)) for i, j, k, m in stiff)
        self.n_atoms = n_atoms
        self.dim = 2 * len(self.dihedrals)
        self.register_buffer("weights", torch.tensor(bond_weights(self.dihedrals), dtype=torch.get_default_dtype()))
        self.register_buffer("start_angles", torch.zeros(len(self.stiff)))
        self.register_buffer("held", torch.zeros(len(self.stiff)))
        self.register_buffer("prepared", torch.zeros(()))
        self.register_buffer("incidence", incidence_of(self.dihedrals, n_atoms), persistent=False)
        self.register_buffer("stiff_incidence", incidence_of(self.stiff, n_atoms), persistent=False)

    @classmethod
    def build(
        cls,
        topology: Topology,
        n_latents: int,
        *,
        heavy_only: Annotated[bool, Doc("only torsions of four heavy atoms")] = True,
    ) -> Torsions:
        """Take the proper dihedrals of the bond graph.

        Raises
        ------
        UqbiasError
            If none of them is soft.
        """
        dihedrals = torsion_reasons(topology, heavy_only)
        soft = [four for four, reason in dihedrals.items() if reason == SINGLE]
        if not soft:
            held = ", ".join(f"{count} {reason}" for reason, count in Counter(dihedrals.values()).items())
            raise UqbiasError(
                f"no torsion turns about a single bond: {held}" if held else "the molecule has no such dihedral",
                "set heavy_only: false, or choose the features pair_distances, or driver: auto",
            )
        return cls(soft, len(topology), stiff_of(dihedrals))

    @property
    def is_prepared(self) -> bool:
        """Whether it is known where the stiff torsions are."""
        return bool(self.prepared.item())

    def prepare(self, positions: Tensor) -> None:
        """Take the places of the stiff torsions from the start frames [n, N, 3] nm."""
        angles = dihedral_angles(positions.detach().cpu().numpy(), self.stiff)
        resultant = np.exp(1j * angles).mean(axis=0)
        set_buffers(self, start_angles=np.angle(resultant), held=np.abs(resultant) > HELD, prepared=1.0)

    def stiff_deviation(self, positions: Tensor) -> Tensor:
        """Largest deviation of a stiff torsion from its start mean, [n] degrees (0 to 180; 0 if none is stiff)."""
        with torch.no_grad():
            positions = positions.to(self.weights.dtype)
            if not self.stiff:
                return positions.new_zeros(len(positions))
            cosine, sine = unit_vectors(self.stiff_incidence, positions, len(self.stiff))
            away = torch.atan2(sine, cosine) - self.start_angles
            wrapped = torch.atan2(away.sin(), away.cos()).abs()
            return torch.rad2deg((wrapped * self.held).amax(-1))

    def forward(self, positions: Tensor, latents: Tensor) -> Tensor:
        """Weighted cosines, then weighted sines, [W, 2T]."""
        vectors = unit_vectors(self.incidence, positions, len(self.dihedrals))
        return torch.cat(vectors, dim=-1) * self.weights.sqrt().repeat(2)


def torsion_reasons(topology: Topology, heavy_only: bool = True) -> dict[Quadruple, str]:
    """Why each proper dihedral turns or does not, by its middle bond; see `uqbias.molecule.rotors.Rotor`."""
    reasons = bond_reasons(topology)
    return {four: reasons[four[1], four[2]] for four in topology.proper_dihedrals(heavy_only=heavy_only)}


def stiff_of(reasons: Mapping[Quadruple, str]) -> list[Quadruple]:
    """Those [S, 4] of the dihedrals of `torsion_reasons` that are about bonds that hold still."""
    return [four for four, reason in reasons.items() if reason not in (SINGLE, *UNDECIDED)]


def unit_vectors(incidence: Tensor, positions: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine [W, T] of torsions, IUPAC sign (0 is cis).

    Parameters
    ----------
    incidence : [3T, N], from `incidence_of`.
    positions : [W, N, 3] nm.
    count : T.
    """
    bonds = (incidence @ positions).reshape(-1, 3, count, 3)
    bonds = bonds / ((bonds * bonds).sum(-1, keepdim=True) + SHORT**2).sqrt()
    first, axis, last = bonds.unbind(1)
    normal = torch.linalg.cross(axis, last)
    x = (torch.linalg.cross(first, axis) * normal).sum(-1)
    y = (first * normal).sum(-1)
    norm = (x * x + y * y + COLLINEAR**2).rsqrt()
    return x * norm, y * norm


def incidence_of(dihedrals: Sequence[Sequence[int]], n_atoms: int) -> Tensor:
    """Matrix [3T, N] that gives bond vectors as one product: no index and no atomic addition in the backward pass."""
    incidence = torch.zeros(3, len(dihedrals), n_atoms)
    for t, atoms in enumerate(dihedrals):
        for bond in range(3):
            incidence[bond, t, atoms[bond]] = -1.0
            incidence[bond, t, atoms[bond + 1]] = 1.0
    return incidence.reshape(3 * len(dihedrals), n_atoms)


def bond_weights(dihedrals: Sequence[Sequence[int]]) -> list[float]:
    """One over the number of dihedrals on the same central bond, [T]."""
    counts = Counter(frozenset(four[1:3]) for four in dihedrals)
    return [1.0 / counts[frozenset(four[1:3])] for four in dihedrals]
