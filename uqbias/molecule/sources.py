"""One molecule from what people have: a SMILES, or files of chemistry programs and of force fields."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from uqbias.errors import UqbiasError
from uqbias.molecule.structure import PDB, Structure, read_structure
from uqbias.molecule.topology import Topology, read_pdb
from uqbias.units import ANGSTROM

#: Endings of files that RDKit reads, and of the topologies of force fields, which need a file of coordinates beside.
DRAWN, BESIDE = (".sdf", ".mol", ".mol2"), (".prmtop", ".parm7", ".top", ".psf")
#: Files of structures, for messages.
FILES = "PDB, CIF, SDF, MOL, mol2, XYZ, POSCAR; prmtop + inpcrd, top + gro, psf + pdb (or crd)"
#: Conformers of a SMILES, of which the one of lowest energy is taken.
CONFORMERS = 10
#: A text with one of these endings is no SMILES.
A_FILE = re.compile(
    r"[./\\]\w*(pdb|ent|cif|sdf|mol2?|xyz|vasp|gro|top|prmtop|parm7|psf|inpcrd|rst7|crd)$|^(/|\.\.?/)", re.I
)


@dataclass(frozen=True)
class Source:
    """A molecule and what is known of it.

    Attributes
    ----------
    name : of its folder and campaign.
    structure : atoms, bonds, positions, and a cell where there is one.
    what : where it comes from, for messages.
    charge : total charge that it states, e; None where it states none.
    radicals : unpaired electrons that it states.
    notes : what was assumed on reading it, a sentence each.
    """

    name: str
    structure: Structure
    what: str
    charge: int | None = None
    radicals: int = 0
    notes: list[str] = field(default_factory=list)


def open_source(given: Sequence[str], seed: int = 0) -> Source:
    """Read a SMILES, a file of one structure, or a force field's topology and the coordinates beside it.

    Parameters
    ----------
    given : a SMILES or a path; or two paths, topology first.
    seed : of the 3D structure of a SMILES.

    Raises
    ------
    UqbiasError
        If it cannot be read, holds several molecules where one is expected, has no 3D structure, or needs a package
        that is not installed.
    """
    first = Path(given[0])
    if len(given) == 1 and not first.exists() and not A_FILE.search(given[0]):
        return _from_smiles(given[0], seed)
    for name in given:
        if not Path(name).is_file():
            what = "is a folder" if Path(name).is_dir() else "is neither a file nor a SMILES"
            raise UqbiasError(f"{name} {what}", f"give a SMILES in quotes, or {FILES}")
    ending = first.suffix.lower()
    if (len(given) == 2) != (ending in BESIDE) or len(given) > 2:
        raise UqbiasError(f"{' '.join(given)}: {len(given)} file(s)", f"give one structure: {FILES}")
    if ending in BESIDE:
        return _from_force_field(first, Path(given[1]))
    return _from_drawing(first, seed) if ending in DRAWN else _from_file(first)


def _from_file(path: Path) -> Source:
    structure, notes = read_structure(path), []
    graph = structure.topology
    if path.suffix.lower() in PDB:
        pdb, _ = read_pdb(path)
        _refuse_several(path, len(re.findall(r"^MODEL\b", path.read_text(errors="replace"), re.MULTILINE)), "models")
        if graph.bonds != Topology.from_openmm(pdb).bonds:
            notes.append("the PDB file names no bonds for some atoms (CONECT): all bonds are guessed from distances")
        if pdb.getPeriodicBoxVectors() is not None:
            notes.append("the cell of the PDB file is left out; for a crystal give CIF, POSCAR or extended XYZ")
    else:
        import ase.io

        _refuse_several(path, len(ase.io.read(path, ":", do_not_split_by_at_sign=True)), "geometries")
        notes.append("bonds are guessed from distances")
    return Source(path.stem, structure, str(path), notes=notes)


def _from_force_field(path: Path, coordinates: Path) -> Source:
    from openmm import app, unit

    readers: dict[str, Callable[[str], Any]] = {".top": app.GromacsTopFile, ".psf": app.CharmmPsfFile}
    beside: dict[str, Callable[[str], Any]] = {
        ".gro": app.GromacsGroFile,
        ".crd": app.CharmmCrdFile,
        ".pdb": app.PDBFile,
    }
    try:
        made = readers.get(path.suffix.lower(), app.AmberPrmtopFile)(str(path))
        positions = beside.get(coordinates.suffix.lower(), app.AmberInpcrdFile)(str(coordinates)).positions
        x = np.array(positions.value_in_unit(unit.nanometer), dtype=np.float64).reshape(-1, 3)
    except Exception as error:
        raise UqbiasError(
            f"{path} and {coordinates} cannot be read ({' '.join(str(error).split()) or type(error).__name__})",
            "give prmtop and inpcrd, top and gro (with the force field's files beside it), or psf and pdb or crd",
        ) from error
    topology = Topology.from_openmm(made.topology)
    if len(x) != len(topology):
        raise UqbiasError(f"{path} has {len(topology)} atoms, {coordinates} {len(x)}", "give files of one system")
    return Source(path.stem, Structure(topology, x), str(path), notes=["the force field's parameters are not used"])


def _from_drawing(path: Path, seed: int) -> Source:
    """SDF, MOL or mol2."""
    (chem, _), text = _rdkit(str(path)), path.read_text(encoding="utf-8", errors="replace")
    mol2 = path.suffix.lower() == ".mol2"
    blocks = text.split("@<TRIPOS>MOLECULE")[1:] if mol2 else re.split(r"^\$\$\$\$\s*$", text, flags=re.MULTILINE)
    blocks = [block for block in blocks if block.strip()]
    _refuse_several(path, len(blocks), "molecules")
    if mol2:
        molecule = chem.MolFromMol2Block(text, removeHs=False)
    else:
        molecule = chem.MolFromMolBlock(blocks[0], removeHs=False) if blocks else None
    if molecule is None or not molecule.GetNumAtoms():
        raise UqbiasError(f"{path} is no molecule that RDKit reads", f"check its atom types and bonds, or give {FILES}")
    bare, notes = molecule.GetNumAtoms(), []
    flat = not (molecule.GetNumConformers() and molecule.GetConformer().Is3D())
    molecule = chem.AddHs(molecule, addCoords=not flat)
    if added := molecule.GetNumAtoms() - bare:
        notes.append(f"{added} hydrogens that the file leaves out were added")
    if flat:
        notes.append("the file is a flat drawing: its 3D structure is made as that of a SMILES")
    return _from_rdkit(molecule, path.stem, str(path), notes, seed if flat else None)


def _from_smiles(text: str, seed: int) -> Source:
    chem, _ = _rdkit("a SMILES")
    molecule = chem.MolFromSmiles(text, sanitize=False)
    if molecule is None:
        raise UqbiasError(f"'{text}' is neither a file nor a SMILES", f"give a SMILES in quotes, or {FILES}")
    problems = chem.DetectChemistryProblems(molecule)
    molecule = None if problems else chem.MolFromSmiles(text)
    if molecule is None:
        reason = problems[0].Message() if problems else "RDKit cannot read it"
        raise UqbiasError(f"SMILES '{text}': {' '.join(reason.split())}", "correct the SMILES")
    if (parts := len(chem.GetMolFrags(molecule))) > 1:
        raise UqbiasError(
            f"SMILES '{text}' is of {parts} molecules, whose places beside each other it does not say",
            "give one molecule, or a file with a structure of all",
        )
    molecule = chem.AddHs(molecule)
    name = chem.rdMolDescriptors.CalcMolFormula(molecule)
    return _from_rdkit(molecule, re.sub(r"[+-]\d*$", "", name), f"SMILES '{text}'", [], seed)


def _from_rdkit(molecule: Any, name: str, what: str, notes: list[str], seed: int | None) -> Source:
    """A molecule of RDKit with all hydrogens; with a ``seed`` its 3D structure is made."""
    if seed is not None:
        notes = [*notes, *_embed(molecule, what, seed)]
    topology = Topology(
        tuple(atom.GetAtomicNum() for atom in molecule.GetAtoms()),
        tuple((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in molecule.GetBonds()),
    )
    x = np.array(molecule.GetConformer().GetPositions(), dtype=np.float64) * ANGSTROM
    charge = sum(atom.GetFormalCharge() for atom in molecule.GetAtoms())
    radicals = sum(atom.GetNumRadicalElectrons() for atom in molecule.GetAtoms())
    return Source(name, Structure(topology, x), what, charge, radicals, notes)


def _embed(molecule: Any, what: str, seed: int) -> list[str]:
    """Give a molecule the conformer of lowest MMFF94 or UFF energy of a few (ETKDGv3); what SMILES leaves open is told.

    Wang et al., J. Chem. Inf. Model. 60, 2044 (2020).
    """
    chem, methods = _rdkit(what)
    unspecified = {
        one.centeredOn: one for one in chem.FindPotentialStereo(molecule) if one.specified.name == "Unspecified"
    }
    options = methods.ETKDGv3()
    options.randomSeed = seed + 1
    places = list(methods.EmbedMultipleConfs(molecule, CONFORMERS, options))
    if not places:
        options.useRandomCoords = True
        places = list(methods.EmbedMultipleConfs(molecule, CONFORMERS, options))
    if not places:
        raise UqbiasError(
            f"{what}: no 3D structure could be made of it", "check rings and stereocentres, or give a structure file"
        )
    by_mmff = methods.MMFFHasAllMoleculeParams(molecule)
    if by_mmff or methods.UFFHasAllMoleculeParams(molecule):
        relax = methods.MMFFOptimizeMoleculeConfs if by_mmff else methods.UFFOptimizeMoleculeConfs
        energies = [energy for _, energy in relax(molecule, maxIters=2000)]
        places = [places[int(np.argmin(energies))]]
    best = chem.Conformer(molecule.GetConformer(places[0]))
    molecule.RemoveAllConformers()
    molecule.AddConformer(best, assignId=True)
    chem.AssignStereochemistryFrom3D(molecule)
    notes = []
    for index, one in unspecified.items():
        if one.type.name == "Atom_Tetrahedral" and molecule.GetAtomWithIdx(index).HasProp("_CIPCode"):
            atom = molecule.GetAtomWithIdx(index)
            notes.append(
                f"stereocentre {atom.GetSymbol()}{index + 1}, which is left open, is {atom.GetProp('_CIPCode')}"
            )
        elif one.type.name == "Bond_Double":
            bond = molecule.GetBondWithIdx(index)
            ends = "=".join(
                f"{atom.GetSymbol()}{atom.GetIdx() + 1}" for atom in (bond.GetBeginAtom(), bond.GetEndAtom())
            )
            notes.append(f"double bond {ends}, which is left open, is {bond.GetStereo().name.removeprefix('STEREO')}")
    return notes


def _refuse_several(path: Path, count: int, what: str) -> None:
    if count > 1:
        raise UqbiasError(f"{path} holds {count} {what}", "give a file of one; frames to begin with: --frames FILE")


def _rdkit(owner: str) -> tuple[Any, Any]:
    """RDKit's modules Chem and AllChem, without their messages."""
    try:
        from rdkit import Chem, RDLogger
        from rdkit.Chem import AllChem
    except ImportError as error:
        raise UqbiasError(f"{owner} needs RDKit ({error})", "pip install 'uqbias[smiles]'") from error
    RDLogger.DisableLog("rdApp.*")  # type: ignore[attr-defined]  # its stubs lack it
    return Chem, AllChem
