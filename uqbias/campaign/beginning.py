"""A new campaign from one molecule: its folder with structure, start frames and campaign file, ready to run."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ase.symbols import Symbols
from scipy.sparse.csgraph import connected_components

from uqbias.campaign.dry_run import outlook
from uqbias.campaign.progress import Progress
from uqbias.campaign.work import oracle_spec, read_molecule
from uqbias.errors import UqbiasError
from uqbias.files import check_directory, write_text
from uqbias.molecule.electrons import electrons_of
from uqbias.molecule.frames import Frames, read_frames, write_frames
from uqbias.molecule.sense import check_sense
from uqbias.molecule.sources import Source
from uqbias.molecule.structure import Structure, read_structure, whole_frames
from uqbias.oracles.base import Oracle
from uqbias.registry import ORACLES
from uqbias.settings.file import CampaignFile, check_campaign, load_campaign
from uqbias.settings.template import campaign_template
from uqbias.units import ANGSTROM, EV, EV_PER_ANGSTROM

CAMPAIGN, START = "campaign.yaml", "start.xyz"
#: Fewest start frames: of them some are held out for early stopping and the calibration.
FEWEST = 23
#: eV an atom and eV/Å to which labels are those of the oracle, energies but for a constant.
SAME_ENERGY, SAME_FORCE = 1e-4, 1e-3


def begin(
    source: Source,
    oracle: dict[str, Any],
    folder: Path,
    progress: Progress,
    *,
    charge: int | None = None,
    spin: int | None = None,
    frames: Path | None = None,
    count: int = 60,
    temperature: float = 300.0,
    seed: int = 0,
    command: str = "",
) -> dict[str, Any]:
    """Write the folder of a new campaign, all of it or nothing.

    Parameters
    ----------
    oracle : section ``oracle`` of the campaign file.
    folder : to write, not there yet or empty.
    charge, spin : total charge in e and multiplicity, where the user states them.
    frames : start frames of the user's; None: those of a short MD on the oracle.
    count, temperature : frames of that MD, and K.
    command : what made the folder, for a comment in the campaign file.

    Returns
    -------
    dict
        What was chosen: charge, spin, driver_story, labels, seconds that a label takes, notes.

    Raises
    ------
    UqbiasError
        If the folder is there, charge or spin are not known, the oracle fails, or frames make no sense.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UqbiasError(f"{folder} is there already", "remove it, or choose another with -o")
    check_directory(folder)
    structure = source.structure
    system: dict[str, Any] = {"structure": "", "start": START}
    if len(structure.topology) < 2:
        raise UqbiasError(f"{source.what} is a single atom", "give a molecule")
    notes, why = list(source.notes), "as the oracle takes it"
    if structure.cell is None:
        charge, spin, why = electrons_of(
            structure.topology, charge, spin, stated=source.charge, radicals=source.radicals, source=source.what
        )
        if (parts := connected_components(structure.topology.graph(), directed=False)[0]) > 1:
            notes.append(f"{parts} molecules in vacuum: nothing holds them together but their forces")
    system |= {"charge": charge, "spin": spin}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".uqbias-", dir=folder.parent) as temporary:
        place = Path(temporary) / folder.name
        place.mkdir()
        system["structure"] = _write_structure(place, structure)
        settings: dict[str, Any] = {"name": folder.name, "seed": seed, "system": system, "oracle": oracle}
        write_frames(place / START, _one_frame(structure))
        settings["system"], built = _with_oracle(settings, place, structure, notes)
        if frames is not None:
            start, seconds = _given_frames(frames, structure, built, notes), None
        else:
            start, seconds = _made_frames(built, structure, count, temperature, seed, progress)
            structure = structure._replace(positions=start.positions[0])
            _write_structure(place, structure)
        if len(start) < FEWEST:
            raise UqbiasError(f"{len(start)} start frames", f"give {FEWEST} or more; a fifth of them is held out")
        write_frames(place / START, start)
        write_text(place / CAMPAIGN, campaign_template(check_campaign(settings), _comment(command, why, notes)))
        file = load_campaign(place / CAMPAIGN)
        facts = outlook(file, *read_molecule(file))
        if folder.exists():
            folder.rmdir()
        place.rename(folder)
    return {
        **facts,
        "formula": Symbols(structure.topology.numbers).get_chemical_formula(),
        "folder": str(folder),
        "campaign_file": str(folder / CAMPAIGN),
        "charge": settings["system"]["charge"],
        "spin": settings["system"]["spin"],
        "electrons": why,
        "label_seconds": seconds,
        "notes": notes,
    }


def _comment(command: str, why: str, notes: Sequence[str]) -> list[str]:
    return [f"Made by: {command}", f"{why}.", *(f"{note}." for note in notes)]


def _one_frame(structure: Structure) -> Frames:
    numbers = np.array(structure.topology.numbers, dtype=np.int64)
    cells = None if structure.cell is None else structure.cell[None]
    return Frames(numbers, structure.positions[None], cells=cells, periodic=structure.periodic)


def _write_structure(place: Path, structure: Structure) -> str:
    """Write a PDB file with CONECT records, or extended XYZ where a PDB file would lose the cell; read it again.

    Raises
    ------
    UqbiasError
        If what is read is not what was written.
    """
    from openmm import app

    if structure.cell is None:
        path = place / "structure.pdb"
        with path.open("w", encoding="utf-8") as stream:
            app.PDBFile.writeFile(structure.topology.to_openmm(), structure.positions / ANGSTROM, stream, keepIds=True)
    else:
        path = place / "structure.xyz"
        write_frames(path, _one_frame(structure))
    if (bonds := read_structure(path).topology.bonds) != structure.topology.bonds:
        other = sorted({*bonds} ^ {*structure.topology.bonds})
        raise UqbiasError(
            f"the bonds of the structure do not survive {path.suffix} ({len(other)} differ: {other[:3]})",
            "give a structure file with plain residues and atom names",
        )
    return path.name


def _with_oracle(
    settings: dict[str, Any], place: Path, structure: Structure, notes: list[str]
) -> tuple[dict[str, Any], Oracle | None]:
    """Section `system` with the charge and spin that the oracle takes, and the oracle; None if it is elsewhere."""
    system, dropped = settings["system"], []
    while True:
        campaign = CampaignFile(check_campaign({**settings, "system": system}), place).resolved
        try:
            spec = oracle_spec(campaign, structure.topology, structure.periodic)
            kind = ORACLES.get(spec.kind)
            oracle = None if kind.elsewhere or kind.only_known else ORACLES.rebuild(spec.kind, spec.options)
            break
        except UqbiasError as error:
            name = error.what.partition(" ")[0].removeprefix("system.")
            if " takes no " not in error.what or system.get(name) != {"charge": 0, "spin": 1}.get(name, object()):
                raise
            system = {**system, name: None}
            dropped.append(name)
    if dropped:
        notes.append(f"the oracle takes no {' or '.join(dropped)}: it labels what it labels by itself")
    return system, oracle


def _made_frames(
    oracle: Oracle | None, structure: Structure, count: int, temperature: float, seed: int, progress: Progress
) -> tuple[Frames, float]:
    from uqbias.campaign.short_md import start_frames

    if oracle is None:
        raise UqbiasError("an oracle that labels nothing here makes no start frames", "give them: --frames FILE")
    start, seconds = start_frames(oracle, structure, count, temperature, seed, progress)
    try:
        check_sense(whole_frames(start, structure.topology), structure.topology, "the structure")
    except UqbiasError as error:
        raise UqbiasError(
            f"under the oracle the molecule does not keep its bonds: {error.what}",
            "check charge, spin and structure; or give start frames: --frames FILE",
        ) from None
    return start, seconds


def _given_frames(path: Path, structure: Structure, oracle: Oracle | None, notes: list[str]) -> Frames:
    """The user's frames; labels of another method than the oracle's are left out."""
    start = read_frames(path, labelled=False, periodic=True)
    check_sense(whole_frames(start, structure.topology), structure.topology, "the structure")
    if not start.labelled or oracle is None:
        return start
    energies, forces = start.labels()
    cells = [None, None] if start.cells is None else start.cells
    two = [oracle.label(start.positions[i], cells[i]) for i in (0, -1)]
    differ = max(float(np.abs(label.forces - forces[i]).max()) for label, i in zip(two, (0, -1), strict=True))
    shift = abs((two[1].energy - two[0].energy) - (energies[-1] - energies[0])) / len(structure.topology)
    if (
        differ <= SAME_FORCE * EV_PER_ANGSTROM
        and shift <= SAME_ENERGY * EV
        and abs(two[0].energy - energies[0]) <= SAME_ENERGY * EV * len(structure.topology)
    ):
        return start
    notes.append(
        f"the labels of {path} are not the oracle's (forces differ by {differ / EV_PER_ANGSTROM:.2g} eV/Å): they are "
        "left out, and the campaign labels these frames"
    )
    return replace(start, energies=None, forces=None, stresses=None)
