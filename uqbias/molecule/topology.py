"""Bond graph of one molecule: its atoms, and the internal coordinates that follow from its bonds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NotRequired

import numpy as np
from annotated_types import Ge, Le, Len
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import shortest_path
from typing_extensions import TypedDict

from uqbias.errors import UqbiasError
from uqbias.units import ANGSTROM

#: Two atoms are bonded when closer than this multiple of the sum of their covalent radii.
BOND_TOLERANCE = 1.25
#: Elements whose four-coordinate atoms can be stereocentres: C, N, Si, P, S, Ge.
TETRAHEDRAL = frozenset({6, 7, 14, 15, 16, 32})

Element = Annotated[int, Ge(1), Le(118)]
#: A residue's label: chain where it is needed, name, number and insertion code.
LABEL = re.compile(r"(?:(\w*):)?(.*?)(-?\d+)([A-Za-z]?)")
Pair = tuple[int, int]
Triple = tuple[int, int, int]
Quadruple = tuple[int, int, int, int]


class Bonds(TypedDict):
    """Schema of `Topology.to_dict`."""

    numbers: list[Element]
    bonds: list[Annotated[list[int], Len(2, 2)]]
    names: NotRequired[list[str]]
    residues: NotRequired[list[str]]
    mobile: NotRequired[list[Annotated[list[int], Len(3, 3)]]]
    network: NotRequired[list[int]]


@dataclass(frozen=True)
class Topology:
    """Elements, bonds and names of one molecule. Atom indices count from 0.

    Attributes
    ----------
    numbers : [N] atomic numbers.
    bonds : pairs (i, j), i < j, sorted.
    names : [N] atom names (``"CA"``), ``""`` where unknown.
    residues : [N] residue name, number and insertion code (``"ALA2"``, ``"GLY52A"``), ``""`` where unknown; with the
        chain (``"B:ALA2"``) where residues would have one name.
    mobile : (donor, hydrogen, acceptor) of each hydrogen that may sit on either; ``bonds`` has it on the donor. See
        `uqbias.molecule.protons`.
    network : atoms of a crystal or glass, whose bonds lead from image to image of a cell: they carry none here. See
        `uqbias.molecule.structure.from_distances`.
    """

    numbers: tuple[int, ...]
    bonds: tuple[Pair, ...]
    names: tuple[str, ...] = ()
    residues: tuple[str, ...] = ()
    mobile: tuple[Triple, ...] = ()
    network: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        n = len(self.numbers)
        for label, values in (("names", self.names), ("residues", self.residues)):
            if not values:
                object.__setattr__(self, label, ("",) * n)
            elif len(values) != n:
                raise UqbiasError(f"{len(values)} {label} for {n} atoms", "give one per atom, or none")
        bad = [bond for bond in self.bonds if bond[0] == bond[1] or not all(0 <= i < n for i in bond)]
        if bad:
            raise UqbiasError(f"bond {bad[0]} in a molecule of {n} atoms", "bonds join two atoms numbered from 0")
        if both := self.network & {i for bond in self.bonds for i in bond}:
            raise UqbiasError(f"atom {min(both)} of a network has a bond", "give bonds between atoms of molecules only")
        object.__setattr__(self, "bonds", tuple(sorted({(min(i, j), max(i, j)) for i, j in self.bonds})))
        for donor, hydrogen, acceptor in self.mobile:
            inside = 0 <= hydrogen < n and 0 <= acceptor < n and self.numbers[hydrogen] == 1
            if not inside or self.neighbours[hydrogen] != (donor,) or acceptor in (donor, hydrogen):
                raise UqbiasError(
                    f"mobile proton {(donor, hydrogen, acceptor)} in a molecule of {n} atoms",
                    "give (donor, hydrogen, acceptor): the hydrogen is bonded to its donor alone; atoms count from 0",
                )

    def __len__(self) -> int:
        return len(self.numbers)

    @classmethod
    def from_openmm(cls, topology: Any) -> Topology:
        """Take atoms, bonds and residues from an ``openmm.app.Topology``.

        Raises
        ------
        UqbiasError
            If an atom has no element.
        """
        atoms = list(topology.atoms())
        for atom in atoms:
            if atom.element is None:
                raise UqbiasError(f"atom {atom.index} ({atom.name}) has no element", "fill the PDB's element column")
        return cls(
            numbers=tuple(atom.element.atomic_number for atom in atoms),
            bonds=tuple((bond[0].index, bond[1].index) for bond in topology.bonds()),
            names=tuple(atom.name for atom in atoms),
            residues=_residue_labels([atom.residue for atom in atoms]),
        )

    @classmethod
    def from_pdb(cls, path: str | Path) -> Topology:
        """Read a PDB file; bonds come from residue templates and CONECT records, else from the distances.

        Raises
        ------
        UqbiasError
            If the file is missing or not a PDB file.
        """
        topology, positions = read_pdb(path)
        graph = cls.from_openmm(topology)
        bonded = {i for bond in graph.bonds for i in bond}
        if len(graph) > 1 and len(bonded) < len(graph):
            # A residue that OpenMM does not know leaves atoms without bonds.
            bonds = cls.from_positions(graph.numbers, positions).bonds
            return cls(graph.numbers, bonds, graph.names, graph.residues)
        return graph

    @classmethod
    def from_positions(cls, numbers: Iterable[int], positions: NDArray[Any]) -> Topology:
        """Guess the bonds: pairs closer than 1.25 times the sum of their covalent radii (Cordero et al. 2008).

        Parameters
        ----------
        numbers : [N] atomic numbers.
        positions : [N, 3] nm.
        """
        from ase.data import covalent_radii

        elements = tuple(int(number) for number in numbers)
        x = np.asarray(positions, dtype=float)
        if x.shape != (len(elements), 3):
            raise UqbiasError(f"positions of shape {x.shape} for {len(elements)} atoms", "give [N, 3] in nm")
        radii = covalent_radii[list(elements)] * ANGSTROM
        distance = np.linalg.norm(x[:, None] - x[None], axis=-1)
        close = np.triu(distance < BOND_TOLERANCE * (radii[:, None] + radii[None]), k=1)
        return cls(elements, tuple((int(i), int(j)) for i, j in np.argwhere(close)))

    def to_dict(self) -> dict[str, list[Any]]:
        """JSON-able form, as the model manifest holds it."""
        mobile = {"mobile": [list(triple) for triple in self.mobile]} if self.mobile else {}
        network = {"network": sorted(self.network)} if self.network else {}
        return {
            "numbers": list(self.numbers),
            "bonds": [list(bond) for bond in self.bonds],
            "names": list(self.names),
            "residues": list(self.residues),
            **mobile,
            **network,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Topology:
        """Inverse of `to_dict`."""
        return cls(
            numbers=tuple(int(number) for number in values["numbers"]),
            bonds=tuple((int(i), int(j)) for i, j in values["bonds"]),
            names=tuple(values.get("names", ())),
            residues=tuple(values.get("residues", ())),
            mobile=tuple((int(d), int(h), int(a)) for d, h, a in values.get("mobile", ())),
            network=frozenset(int(i) for i in values.get("network", ())),
        )

    @cached_property
    def neighbours(self) -> tuple[tuple[int, ...], ...]:
        """[N] bonded atoms of each atom, ascending."""
        bonded: list[list[int]] = [[] for _ in self.numbers]
        for i, j in self.bonds:
            bonded[i].append(j)
            bonded[j].append(i)
        return tuple(tuple(sorted(atoms)) for atoms in bonded)

    def angles(self) -> list[Triple]:
        """Bonded triples (i, j, k) with the vertex j in the middle and i < k."""
        return [
            (i, j, k)
            for j, around in enumerate(self.neighbours)
            for position, i in enumerate(around)
            for k in around[position + 1 :]
        ]

    def proper_dihedrals(self, heavy_only: bool = True) -> list[Quadruple]:
        """Bonded quadruples (i, j, k, l), each once, with j < k.

        Parameters
        ----------
        heavy_only : leave out quadruples with a hydrogen.
        """
        dihedrals = [
            (i, j, k, m)
            for j, k in self.bonds
            for i in self.neighbours[j]
            for m in self.neighbours[k]
            if i != k and m not in (j, i)
        ]
        return [four for four in dihedrals if not heavy_only or all(self.numbers[i] > 1 for i in four)]

    def bond_separation(self) -> NDArray[np.int64]:
        """[N, N] number of bonds on the shortest path; N (more than any path) where there is none."""
        n = len(self)
        steps = shortest_path(self.graph().tocsr(), directed=False, unweighted=True)
        return np.where(np.isfinite(steps), steps, n).astype(np.int64)

    def mobile_bonds(self) -> list[int]:
        """Place in ``bonds`` of each mobile hydrogen's bond to its donor."""
        return [self.bonds.index((min(d, h), max(d, h))) for d, h, _ in self.mobile]

    def either_side(self) -> Topology:
        """The graph with each mobile hydrogen bonded to donor and acceptor."""
        return Topology(self.numbers, self.bonds + tuple((h, a) for _, h, a in self.mobile))

    def graph(self, without: Pair | None = None) -> coo_array:
        """Bonds as a sparse [N, N] matrix of ones, each in one of its two directions; ``without`` leaves one out."""
        i, j = np.array([bond for bond in self.bonds if bond != without], dtype=np.int32).reshape(-1, 2).T
        return coo_array((np.ones(len(i)), (i, j)), shape=(len(self), len(self)))

    def chiral_centres(self) -> list[Quadruple]:
        """Stereocentres as (centre, a, b, c).

        A centre has four neighbours of which no two are equivalent in the bond graph, a mobile hydrogen on either side
        of its bond; a, b and c are three of
        them, the lightest left out, in order of index. The sign of (a - centre) · [(b - centre) × (c - centre)]
        tells the two enantiomers apart; see `uqbias.molecule.measures.chirality`.
        """
        classes = self.either_side()._equivalence_classes()
        centres = []
        for centre, around in enumerate(self.neighbours):
            if self.numbers[centre] not in TETRAHEDRAL or len(around) != 4:
                continue
            if len({classes[i] for i in around}) == 4:
                lightest = min(around, key=lambda i: (self.numbers[i], i))
                a, b, c = (i for i in around if i != lightest)
                centres.append((centre, a, b, c))
        return centres

    def masses(self) -> NDArray[np.float64]:
        """[N] standard atomic masses in dalton, as OpenMM uses them."""
        from openmm.app import Element

        return np.array([Element.getByAtomicNumber(number).mass._value for number in self.numbers])

    def to_openmm(self) -> Any:
        """Equivalent ``openmm.app.Topology``, of one chain where the residues name no others."""
        from openmm import app

        topology = app.Topology()
        chain = topology.addChain()
        atoms: list[Any] = []
        previous = None
        residue = None
        for index, (number, label) in enumerate(zip(self.numbers, self.residues, strict=True)):
            if residue is None or label != previous:
                parts = LABEL.fullmatch(label)
                letter, name, place, code = parts.groups() if parts else (None, label or "MOL", "1", "")
                if letter != chain.id and letter is not None:
                    chain = topology.addChain(letter) if atoms else chain
                    chain.id = letter
                residue = topology.addResidue(name or "MOL", chain, id=place, insertionCode=code)
                previous = label
            element = app.Element.getByAtomicNumber(number)
            atoms.append(topology.addAtom(self.names[index] or f"{element.symbol}{index + 1}", element, residue))
        for i, j in self.bonds:
            topology.addBond(atoms[i], atoms[j])
        return topology

    def to_mdtraj(self) -> Any:
        """Equivalent ``mdtraj.Topology``."""
        import mdtraj

        return mdtraj.Topology.from_openmm(self.to_openmm())

    def _equivalence_classes(self) -> list[int]:
        """Rank atoms by their surroundings in the bond graph, refined until no class splits (Morgan 1965)."""
        classes = list(self.numbers)
        while True:
            keys = [(classes[i], tuple(sorted(classes[j] for j in self.neighbours[i]))) for i in range(len(self))]
            order = {key: rank for rank, key in enumerate(sorted(set(keys)))}
            refined = [order[key] for key in keys]
            if len(set(refined)) == len(set(classes)):
                return refined
            classes = refined


def _residue_labels(residues: list[Any]) -> tuple[str, ...]:
    """Label of the residue (of OpenMM) of each atom, that of no other residue.

    Names and numbers are alike in different chains; chains may be alike, too, and are then counted.
    """
    forms = (
        "{residue.name}{residue.id}{code}",
        "{residue.chain.id}:{residue.name}{residue.id}{code}",
        "{residue.chain.id}{residue.chain.index}:{residue.name}{residue.id}{code}",
        "{residue.index}:{residue.name}{residue.id}{code}",
    )
    labels: dict[Any, str] = {}
    left = list(dict.fromkeys(residues))
    for form in forms:
        names = [form.format(residue=residue, code=residue.insertionCode.strip()) for residue in left]
        count = Counter(names)
        labels |= {residue: name for residue, name in zip(left, names, strict=True) if count[name] == 1}
        left = [residue for residue in left if residue not in labels]
    return tuple(labels[residue] for residue in residues)


def read_pdb(path: str | Path) -> tuple[Any, NDArray[np.float64]]:
    """Read a PDB file.

    Returns
    -------
    topology : openmm.app.Topology
    positions : [N, 3] nm

    Raises
    ------
    UqbiasError
        If the file is missing or cannot be read as PDB.
    """
    from openmm import app, unit

    path = Path(path)
    if not path.is_file():
        raise UqbiasError(f"no such file: {path}", "give a PDB file of the molecule")
    try:
        pdb = app.PDBFile(str(path))
        positions = np.array(pdb.getPositions(asNumpy=True).value_in_unit(unit.nanometer), dtype=float)
    except Exception as error:
        raise UqbiasError(f"{path} is not a PDB file OpenMM can read ({error})", "check its ATOM records") from error
    if not len(positions):
        raise UqbiasError(f"{path} holds no atom", "give a PDB file with ATOM or HETATM records")
    return pdb.topology, positions


def backbone_dihedrals(topology: Topology) -> tuple[Quadruple, Quadruple]:
    """Atoms of φ and ψ of the first residue that has both.

    Raises
    ------
    UqbiasError
        If no residue has neighbours on both sides, or the atoms carry no PDB names.
    """
    for nitrogen, alpha, carbon in topology.angles():
        for n, c in ((nitrogen, carbon), (carbon, nitrogen)):
            if [topology.names[i] for i in (n, alpha, c)] != ["N", "CA", "C"]:
                continue
            before = [i for i in topology.neighbours[n] if topology.names[i] == "C" and i != alpha]
            after = [i for i in topology.neighbours[c] if topology.names[i] == "N" and i != alpha]
            if before and after:
                return (before[0], n, alpha, c), (n, alpha, c, after[0])
    raise UqbiasError("no residue with φ and ψ in this molecule", "name the atoms as in PDB files (N, CA, C)")
