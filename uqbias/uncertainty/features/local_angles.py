"""Angles of the parts of a molecule that can change: soft torsions, rings that pucker, mobile protons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Doc

from uqbias.errors import UqbiasError
from uqbias.molecule.rotors import ring_systems, rotors
from uqbias.molecule.topology import Pair, Quadruple, Topology, Triple
from uqbias.uncertainty.features.torsions import Torsions, bond_weights, stiff_of, torsion_reasons, unit_vectors

#: nm; a proton that is nearer to its donor than to the acceptor by this much has the angle −π/2.
TRANSFER = 0.08
#: nm, below which a distance is smoothed.
SOFTENING = 1e-3
#: Weight of a ring, in torsions: its two or three puckering coordinates.
RING_WEIGHT = 2.0

Grouping = Annotated[
    Literal["bonds", "pairs"],
    Doc("bonds (each soft bond by itself) or pairs (two neighbouring soft bonds together, as φ and ψ)"),
]


class LocalPart(NamedTuple):
    """Part of a molecule that has a density by itself.

    Attributes
    ----------
    name : such as ``torsion N6-C8``.
    torsions : atoms of its dihedrals.
    weights : weight of each of them.
    proton : donor, hydrogen and acceptor, in place of torsions.
    """

    name: str
    torsions: tuple[Quadruple, ...] = ()
    weights: tuple[float, ...] = ()
    proton: Triple | None = None


def atom_list(topology: Topology, atoms: Sequence[int]) -> str:
    """Atoms by element and number, as ``C5-N7``."""
    from ase.data import chemical_symbols

    return "-".join(f"{chemical_symbols[topology.numbers[i]]}{i}" for i in atoms)


def local_parts(topology: Topology, grouping: str = "bonds") -> list[LocalPart]:
    """Soft bonds, singly or in pairs, rings that pucker and mobile protons of a molecule."""
    on_bond: dict[Pair, list[Quadruple]] = {}
    for four in topology.proper_dihedrals():
        on_bond.setdefault((four[1], four[2]), []).append(four)
    left = [rotor.bond for rotor in rotors(topology) if rotor.soft]
    parts = []
    while left:
        bonds = [left.pop(0)]
        if grouping == "pairs" and (near := [bond for bond in left if {*bond} & {*bonds[0]}]):
            bonds.append(near[0])
            left.remove(near[0])
        torsions = tuple(four for bond in bonds for four in on_bond[bond])
        names = " ".join(atom_list(topology, bond) for bond in bonds)
        name = f"torsion{'s' * (len(bonds) > 1)} {names}"
        parts.append(LocalPart(name, torsions, tuple(bond_weights(torsions))))
    for ring in ring_systems(topology):
        around = tuple((*ring, *ring[:3])[k : k + 4] for k in range(len(ring)))
        fours = tuple((i, j, k, m) for i, j, k, m in around)
        parts.append(LocalPart(f"ring {atom_list(topology, ring)}", fours, (RING_WEIGHT / len(ring),) * len(ring)))
    return parts + [LocalPart(f"proton {atom_list(topology, three)}", proton=three) for three in topology.mobile]


class LocalAngles(Torsions):
    """Soft torsions, torsions of rings that pucker, and mobile protons, all as angles.

    √w_t (cos θ_t, sin θ_t), as of `Torsions`. The angle of a proton is θ = 2 arctan((DH − AH) / 0.08 nm) of its
    distances from donor and acceptor: −1.4 on one side, 1.4 on the other. A ring weighs as much as two bonds.

    Parameters
    ----------
    dihedrals, n_atoms, stiff : as of `Torsions`; dihedrals of the same part are neighbours in the list.
    parts : [T + P] index of the part that each dihedral, then each proton, belongs to.
    part_names : [K] what the parts are.
    angle_weights : [T + P].
    protons : [P, 3] donor, hydrogen and acceptor.
    """

    kind = "local_angles"
    proton_incidence: Tensor

    def __init__(
        self,
        dihedrals: Sequence[Sequence[int]],
        n_atoms: int,
        stiff: Sequence[Sequence[int]],
        parts: Sequence[int],
        part_names: Sequence[str],
        angle_weights: Sequence[float],
        protons: Sequence[Sequence[int]] = (),
    ) -> None:
        super().__init__(dihedrals, n_atoms, stiff)
        self.parts = tuple(int(part) for part in parts)
        self.part_names = tuple(part_names)
        self.angle_weights = tuple(float(weight) for weight in angle_weights)
        self.protons = tuple((int(d), int(h), int(a)) for d, h, a in protons)
        self.dim = 2 * len(self.parts)
        self.weights = torch.tensor(self.angle_weights, dtype=torch.get_default_dtype())
        incidence = torch.zeros(2, len(self.protons), n_atoms)
        for p, (donor, hydrogen, acceptor) in enumerate(self.protons):
            incidence[:, p, hydrogen] = 1.0
            incidence[0, p, donor] = incidence[1, p, acceptor] = -1.0
        self.register_buffer("proton_incidence", incidence.reshape(-1, n_atoms), persistent=False)

    @classmethod
    def build(  # type: ignore[override] # a section of its own
        cls, topology: Topology, n_latents: int, *, grouping: Grouping = "bonds"
    ) -> LocalAngles:
        """Find the parts of a molecule.

        Raises
        ------
        UqbiasError
            If it has none.
        """
        parts = local_parts(topology, grouping)
        if not parts:
            raise UqbiasError(
                "the molecule has no bond that turns, no ring that puckers and no mobile proton",
                "choose driver: auto, or the features pair_distances",
            )
        # Protons are the last parts, so that the angles of parts are in order.
        sizes = [(k, weight) for k, part in enumerate(parts) for weight in part.weights or (1.0,)]
        return cls(
            [four for part in parts for four in part.torsions],
            len(topology),
            stiff_of(torsion_reasons(topology)),
            [k for k, _ in sizes],
            [part.name for part in parts],
            [weight for _, weight in sizes],
            [part.proton for part in parts if part.proton is not None],
        )

    def forward(self, positions: Tensor, latents: Tensor) -> Tensor:
        """Weighted cosines, then weighted sines, [W, 2 (T + P)]."""
        vectors = []
        if self.dihedrals:
            vectors.append(unit_vectors(self.incidence, positions, len(self.dihedrals)))
        if self.protons:
            apart = (self.proton_incidence @ positions).reshape(-1, 2, len(self.protons), 3)
            distance = ((apart * apart).sum(-1) + SOFTENING**2).sqrt()
            t = (distance[:, 0] - distance[:, 1]) / TRANSFER
            inverse = 1.0 / (1.0 + t * t)
            vectors.append(((1.0 - t * t) * inverse, 2.0 * t * inverse))
        cosines, sines = zip(*vectors, strict=True)
        return torch.cat([*cosines, *sines], dim=-1) * self.weights.sqrt().repeat(2)
