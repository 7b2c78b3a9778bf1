"""Model commands: train, info, export; evaluate has its own file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uqbias.cli.evaluate import LABEL_KEYS, LABELLED, print_errors, print_systems
from uqbias.cli.part_options import options_from
from uqbias.cli.printing import Json, ModelPath, Quiet, output_option, print_json, print_pairs, split_names
from uqbias.errors import UqbiasError
from uqbias.files import check_file
from uqbias.kinds import UNCERTAINTIES
from uqbias.molecule.labels import LabelKeys
from uqbias.settings.training_sections import TrainingOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from uqbias.molecule.frames import Frames
    from uqbias.molecule.topology import Topology

#: Without a default, since --settings may have one.
TRAINING = options_from(
    TrainingOptions, "steps", "max_seconds", "runner", defaults={"steps": None, "max_seconds": None, "runner": None}
)
#: Option of the commands that make a model.
FeatureSpace = Annotated[
    str | None, typer.Option(help="Feature space of the driver: torsions, pair_distances or latents.")
]


def train(
    data: Annotated[list[Path], typer.Argument(metavar="DATA...", help=LABELLED)],
    output: Annotated[Path, output_option("FILE", "Model file to write.")] = Path("model.uqb"),
    structure: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PDB",
            help="Atom names and bonds; bonds are guessed from distances if left out. May be repeated for several "
            "systems.",
        ),
    ] = None,
    driver: Annotated[
        str | None,
        typer.Option(
            metavar="KIND", help="Driver, the uncertainty that a bias acts on: any kind; kernel_density if left out."
        ),
    ] = None,
    features: FeatureSpace = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help=f"Judge, the calibrated uncertainty: {', '.join(UNCERTAINTIES)}.",
        ),
    ] = None,
    members: Annotated[int | None, typer.Option(min=1, help="Committee size.")] = None,
    training: dict[str, Any] = TRAINING,
    settings: Annotated[
        Path | None,
        typer.Option(
            metavar="CAMPAIGN.yaml",
            help="Take potential, training, driver, judge, calibration and seed from this campaign file.",
        ),
    ] = None,
    label_keys: dict[str, Any] = LABEL_KEYS,
    seed: Annotated[int | None, typer.Option(min=0, help="Of weights, order of frames and held-out frames.")] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any key of those sections; may be repeated."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a potential with its uncertainties on your own frames, of one molecule or of several systems.

    Frames with other atoms, or in another order, are of another system; one model learns all systems, and its driver
    and judge are of atoms and elements. A tenth of the frames is held out for early stopping and a tenth, at least 1/α
    frames, for the calibration of the uncertainty, of each system its share. The first training of a molecule compiles
    its training step (under a minute, cached).

    \b
    Examples:
      uqbias train data.xyz --structure molecule.pdb -o model.uqb
      uqbias train water.xyz ethanol.xyz quartz.xyz -o model.uqb
      uqbias train data.xyz --driver gmm --features latents -o model.uqb
      uqbias train data.xyz --judge committee --set judge.quantity=forces
    """
    import torch

    from uqbias.campaign.progress import TrainingProgress, make_progress
    from uqbias.model.fit import fit_model
    from uqbias.molecule.collection import read_collection

    torch.set_num_threads(1)
    check_file(output)
    sections = sections_of(settings)
    choose(sections, driver, features, judge)
    for section, options in (("potential", {"n_members": members}), ("training", training)):
        if given := {key: value for key, value in options.items() if value is not None}:
            sections.setdefault(section, {}).update(given)
    if seed is not None:
        sections["seed"] = seed
    for entry in change or ():
        set_key(sections, entry)
    keys = LabelKeys(*label_keys.values())
    energies_alone = sections.get("training", {}).get("force_weight") == 0
    sets = read_collection(data, labelled="energies" if energies_alone else True, keys=keys)
    graphs = _graphs(structure or [], sets)
    with make_progress(quiet) as progress:
        model, facts = fit_model(
            sets if len(sets) > 1 else next(iter(sets.values())),
            graphs if len(sets) > 1 else next(iter(graphs.values()), None),
            sections,
            begin=lambda: progress.phase("load or compile the training step"),
            progress=TrainingProgress(progress, "train"),
        )
    model.save(output)
    if json:
        print_json({"model": str(output), **facts})
        return
    typer.echo(f"trained on {facts['frames']} frames in {facts['wall_s']:.0f} s ({facts['steps']} steps)")
    if any(frames.forces is None for frames in sets.values()):
        typer.echo("the frames have no forces: the model learned from energies alone, its judge is not calibrated")
    if len(sets) > 1:
        typer.echo(f"{len(sets)} systems: {', '.join(sets)}; {facts['driver_story'][0]}")
    if facts.get("validation"):
        typer.echo("on the frames kept for early stopping, which flatter it a little:")
        (print_systems if len(sets) > 1 else print_errors)(facts["validation"])
    typer.echo(f"model: {output}; next: uqbias evaluate {output} TEST.xyz, uqbias md {output} -o md/")


def info(model: ModelPath, json: Json = False) -> None:
    """What is in a model file: atoms, potential, driver, judge, calibration, training set, versions.

    The file's SHA-256 is checked on reading. --json prints the whole manifest.

    \b
    Example:
      uqbias info model.uqb
    """
    from uqbias.model.manifest import read_manifest
    from uqbias.model.model import UncertaintyModel

    manifest = read_manifest(model)
    if json:
        print_json(manifest)
        return
    loaded = UncertaintyModel.load(model)
    driver = manifest["driver"] or manifest["judge"]
    residues = [name for name in dict.fromkeys(manifest["topology"].get("residues", [])) if name]
    mobile, frozen = loaded.topology.mobile, ", not trained here" if loaded.potential.frozen else ""
    pairs: list[tuple[str, Any]] = [
        ("file", f"{model}, format {manifest['format_version']}, SHA-256 {manifest['sha256'][:16]}"),
        ("molecule", f"{_formula(manifest['atomic_numbers'])}, {len(manifest['topology']['bonds'])} bonds"),
        *([("residues", " ".join(residues))] if residues else []),
        *([("systems", _systems(manifest["systems"]))] if manifest.get("systems") else []),
        *([("mobile protons", f"{mobile} (donor, hydrogen, acceptor)")] if mobile else []),
        ("potential", f"{loaded.potential.kind}, {loaded.potential.n_members} member(s), {manifest['dtype']}{frozen}"),
        ("parameters", sum(weight.numel() for weight in loaded.potential.parameters())),
        ("elements", _elements(loaded.potential.elements)),
        ("cutoff", "none" if loaded.potential.cutoff is None else f"{loaded.potential.cutoff:g} nm"),
        ("driver", _describe(driver)),
        ("judge", _describe(manifest["judge"])),
        ("calibration", _describe_calibration(manifest["calibration"], loaded.calibration.fitted)),
    ]
    noted = manifest["provenance"].items()
    pairs += [(name.replace("_", " "), value) for name, value in noted if isinstance(value, str | int | float)]
    pairs.append(("versions", ", ".join(f"{name} {value}" for name, value in manifest["versions"].items())))
    print_pairs(pairs)


def export(
    model: ModelPath,
    path: Annotated[Path, typer.Option("-o", "--to", metavar="FILE", help="TorchScript file to write.")] = Path(
        "driver.pt"
    ),
    output: Annotated[
        str,
        typer.Option(help="driver, judge (kJ/mol/nm), energy (kJ/mol), or biased (energy + bias)."),
    ] = "driver",
    with_forces: Annotated[
        bool, typer.Option("--with-forces", help="Give (value, forces [N, 3]): faster, for setOutputsForces(True).")
    ] = False,
    components: Annotated[
        str | None,
        typer.Option(help="More values in the file, as energy,max: for COMPONENTS of PLUMED's UNCERTAINTY."),
    ] = None,
    hills: Annotated[
        Path | None, typer.Option(metavar="HILLS", help="For biased: the hills, a file of `uqbias md` or a run.")
    ] = None,
    json: Json = False,
) -> None:
    """Write a plain TorchScript module, forward(positions [N, 3] nm) -> value, that needs no uqbias where it is used.

    It loads as it is in openmmtorch.TorchForce, in C++ and in PLUMED.

    \b
    Examples:
      uqbias export model.uqb -o driver.pt
      uqbias export model.uqb -o energy.pt --output energy --with-forces
    """
    from uqbias.model.export import export_torchscript, unit_of
    from uqbias.model.model import UncertaintyModel

    loaded = UncertaintyModel.load(model)
    if (output == "biased") != (hills is not None):
        raise UqbiasError(
            f"output '{output}' " + ("without a bias" if hills is None else f"with --hills {hills}"),
            "give --hills HILLS with --output biased, and only with it",
        )
    bias = None if hills is None else _bias_of(hills)
    names = split_names(components or None)
    export_torchscript(loaded, path, output, with_forces=with_forces, bias=bias, components=names)
    facts = {
        "file": str(path),
        "output": output,
        "unit": unit_of(loaded, output),
        "with_forces": with_forces,
        "components": names,
        "atoms": len(loaded.numbers),
    }
    if json:
        print_json(facts)
        return
    arguments = "positions [N, 3] nm"
    returned = f"({output}, forces [N, 3] per nm)" if with_forces else ", ".join([output, *names])
    typer.echo(f"wrote {path}: forward({arguments}) -> {returned}; {output} in {unit_of(loaded, output)}")
    extra = "; force.setOutputsForces(True)" if with_forces else ""
    typer.echo(f'use: force = openmmtorch.TorchForce("{path}"){extra}')


def _graphs(structures: list[Path], sets: Mapping[str, Frames]) -> dict[str, Topology]:
    """Bond graphs of the systems that a structure is given for."""
    from uqbias.molecule.sense import check_molecule
    from uqbias.molecule.topology import Topology

    graphs: dict[str, Topology] = {}
    for path in structures:
        graph = Topology.from_pdb(path)
        names = [name for name, frames in sets.items() if tuple(frames.numbers.tolist()) == graph.numbers]
        if not names and len(sets) == 1:
            check_molecule(next(iter(sets.values())), graph.numbers, "the structure")
        if not names:
            raise UqbiasError(
                f"{path} has atoms {list(graph.numbers)}, as none of the systems {', '.join(sets)}",
                "give structures with the atoms of the frames, in the same order",
            )
        graphs |= dict.fromkeys(names, graph)
    return graphs


def sections_of(path: Path | None) -> dict[str, Any]:
    """The sections of a campaign file that make a model."""
    if path is None:
        return {}
    from uqbias.settings.file import load_campaign

    settings = load_campaign(path).campaign.model_dump()
    return {name: settings[name] for name in ("seed", "potential", "training", "driver", "judge", "calibration")}


def set_key(sections: dict[str, Any], entry: str, flag: str = "--set", within: str = "") -> None:
    """Put ``section.key=value``, the value as in a campaign file, into nested sections.

    Parameters
    ----------
    flag : option of the command line that has the entry, for the message.
    within : section that the keys are in, where the entry leaves it out.

    Raises
    ------
    UqbiasError
        If the entry has no key or no value, or goes through something that is not a section.
    """
    from uqbias.settings.yaml_text import read_yaml

    path, separator, text = entry.partition("=")
    *parents, key = [within] * bool(within) + path.strip().split(".")
    if not separator or not key or not parents:
        form = "KEY=VALUE" if within else "SECTION.KEY=VALUE, such as judge.quantity=forces"
        raise UqbiasError(f"{flag} {entry}", f"write {flag} {form}")
    try:
        value = read_yaml(text)
    except UqbiasError as error:
        raise UqbiasError(f"{flag} {entry}: '{text}' is not a YAML value", "quote it, or write a number") from error
    target = sections
    for name in parents:
        target = target.setdefault(name, {})
        if not isinstance(target, dict):
            raise UqbiasError(f"{flag} {entry}: '{name}' is not a section", "write SECTION.KEY=VALUE")
    target[key] = value


def choose(sections: dict[str, Any], driver: str | None, features: str | None, judge: str | None) -> None:
    """Put the kinds named on the command line into the sections."""
    if driver is not None and driver != sections.get("driver", {}).get("kind"):
        sections["driver"] = {"kind": driver}
    if features is not None:
        section = sections.setdefault("driver", {"kind": "kernel_density"})
        section["features"] = {"kind": features}
        if section["kind"] == "kernel_density" and features != "torsions":
            section["kernel"] = "gaussian"
    if judge is not None and judge != sections.get("judge", {}).get("kind"):
        sections["judge"] = {"kind": judge}


def _bias_of(path: Path) -> Any:
    """A frozen bias on the driver from a HILLS file."""
    from uqbias.bias.metad import MetaD
    from uqbias.runs.hills import read_hills
    from uqbias.runs.plumed_files import read_text, stated_values

    hills = read_hills(path, 1.0, ["driver"])
    if not len(hills):
        raise UqbiasError(f"{path} holds no hill", "give the HILLS file of a finished run")
    kernel: Any = stated_values(read_text(path)).get("kerneltype", "gaussian")
    bias = MetaD(sigma=float(hills["sigma"].min()), kernel=kernel)
    bias.load_hills(hills)
    return bias


def _describe(part: dict[str, Any]) -> str:
    quantity, features = part["options"].get("quantity"), part["options"].get("features")
    words = [part["kind"], *(["of", quantity] if quantity else []), *(["on", features["kind"]] if features else [])]
    return f"{' '.join(words)}, {part.get('unit', 'nats')}"


def _describe_calibration(part: dict[str, Any], fitted: bool) -> str:
    if not fitted:
        return "none: the judge is in its own unit"
    return f"{part['kind']} on {part['frames']} frames held out: {part['meaning']}"


def _elements(numbers: Sequence[int]) -> str:
    from ase.data import chemical_symbols

    return " ".join(chemical_symbols[number] for number in numbers)


def _systems(systems: list[dict[str, Any]]) -> str:
    return "; ".join(f"{system['name']}: {_formula(system['topology']['numbers'])}" for system in systems)


def _formula(numbers: list[int]) -> str:
    from uqbias.molecule.collection import formula

    return f"{formula(numbers)}, {len(numbers)} atoms"
