"""The command new: a campaign from a SMILES or a structure file."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from uqbias.cli.models import set_key
from uqbias.cli.printing import Json, Quiet, output_option, print_json, print_pairs
from uqbias.molecule.sources import FILES


def new(
    source: Annotated[
        list[str], typer.Argument(metavar="SMILES|FILE...", help=f"A SMILES in quotes, or a structure: {FILES}.")
    ],
    output: Annotated[
        Path | None, output_option("DIR", "Folder of the campaign, not there yet; named after the molecule.")
    ] = None,
    oracle: Annotated[
        str,
        typer.Option(
            help="gfn2, gfn1 (GFN-xTB by tblite), emt, a kind of oracle (openmm, ase, command, handoff), or an ASE "
            "calculator as module:Class."
        ),
    ] = "gfn2",
    oracle_option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Key of the oracle; may be repeated.")
    ] = None,
    charge: Annotated[int | None, typer.Option(help="Total charge, where the source does not state it.")] = None,
    spin: Annotated[int | None, typer.Option(min=1, help="Multiplicity 2S + 1; needed for radicals.")] = None,
    frames: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Start frames of your own, in place of the short MD.")
    ] = None,
    count: Annotated[int, typer.Option(min=23, help="Start frames of the short MD.")] = 60,
    temperature: Annotated[float, typer.Option(min=1.0, help="K, of the short MD.")] = 300.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the 3D structure, the MD and the campaign.")] = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Begin a campaign: write structure, labelled start frames and a commented campaign file into a new folder.

    A SMILES is made a structure (RDKit: pip install 'uqbias[smiles]'). The structure is relaxed with the oracle, and a
    short MD on it gives the start frames. What was chosen is told, and stands in the campaign file; all of it may be
    changed there. Charge and spin are never guessed where the bonds leave them open.

    \b
    Examples:
      uqbias new "NCCCO" -o aminopropanol
      uqbias new ligand.sdf --oracle gfn2
      uqbias new radical.xyz --spin 2
      uqbias new system.prmtop system.inpcrd
      uqbias new quartz.cif --oracle gfn1 --frames md.xyz
    """
    from uqbias.campaign.beginning import begin
    from uqbias.campaign.progress import make_progress
    from uqbias.molecule.sources import open_source
    from uqbias.oracles.presets import oracle_section

    options: dict[str, Any] = {}
    for entry in oracle_option or ():
        set_key({"oracle": options}, entry, "--oracle-option", within="oracle")
    section = oracle_section(oracle, options)
    molecule = open_source(source, seed)
    folder = Path(molecule.name) if output is None else output
    with make_progress(quiet) as progress:
        facts = begin(
            molecule,
            section,
            folder,
            progress,
            charge=charge,
            spin=spin,
            frames=frames,
            count=count,
            temperature=temperature,
            seed=seed,
            command=shlex.join(["uqbias", "new", *source, "--oracle", oracle]),
        )
    if json:
        print_json(facts)
        return
    typer.echo(f"{folder}: structure, {facts['start_frames']} start frames, campaign.yaml")
    seconds, more = facts["label_seconds"], facts["labels_at_most"] - facts["start_frames"]
    again = 0 if facts["start_frames_labelled"] else facts["start_frames"]
    cost = "" if seconds is None else f", about {seconds * (more + again):.0f} s at {1000 * seconds:.0f} ms each"
    first = f"{facts['start_frames']} start frames {'first' if again else 'have theirs'}"
    print_pairs(
        [
            ("molecule", f"{facts['formula']}, {facts['atoms']} atoms, {facts['bonds']} bonds, {facts['electrons']}"),
            ("oracle", f"{oracle}, see `oracle:`"),
            ("driver", "; ".join(facts["driver_story"])),
            ("labels", f"{first}, then at most {more}{cost}"),
            *(("note", note) for note in facts["notes"]),
        ]
    )
    typer.echo(f"next: uqbias run {shlex.quote(facts['campaign_file'])}")
