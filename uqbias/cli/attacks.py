"""The command attack: geometries of high uncertainty and affordable energy, by gradient ascent."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uqbias.attacks.attack_options import AttackOptions
from uqbias.cli.part_options import options_from
from uqbias.cli.printing import Json, Quiet, print_json, skipped_frames, tell_some
from uqbias.errors import UqbiasError
from uqbias.files import check_file, write_arrays

if TYPE_CHECKING:
    from uqbias.attacks.ascent import AttackResult
    from uqbias.attacks.usable_frames import UsableFrames

#: kJ/mol an atom from the median energy that is no outlier: between a minimum and room temperature are 3.7.
COMMON_ENERGY = 10.0
#: Quantity, unit of the summary table.
ROWS = (
    ("judge", "kJ/mol/nm, the judge"),
    ("driver", "the driver"),
    ("energy", "kJ/mol above the lowest start frame"),
)
OPTIONS = options_from(
    AttackOptions,
    "of",
    "temperature",
    "iterations",
    "learning_rate",
    "noise",
    "bound",
    "tolerance",
    "patience",
    "batch",
    "runner",
)


def attack(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model file (.uqb).")],
    data: Annotated[
        Path, typer.Argument(metavar="FRAMES.xyz", help="Where attacks begin; eV, Å, labels are not needed.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE.xyz", help="For the geometries reached, extended XYZ.")
    ] = Path("attacks.xyz"),
    count: Annotated[
        int | None, typer.Option(help="Attacks in all; one a frame if left out, more go round the frames.")
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(
            metavar="KIND", help="cartesian (the default), internal, or variables (where --variable is given)."
        ),
    ] = None,
    variable: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=KIND:ATOMS", help="A collective variable, as phi=dihedral:4,6,8,14; repeatable."),
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="An option of the space, as bonds=true; repeatable."),
    ] = None,
    training: Annotated[
        Path | None,
        typer.Option(metavar="DATA.xyz", help="Frames for the partition function Q; FRAMES.xyz if left out."),
    ] = None,
    trajectory: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="Keep the way of each attack (nm, kJ/mol).")
    ] = None,
    options: dict[str, Any] = OPTIONS,
    seed: Annotated[int, typer.Option(help="Of the random starts.")] = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Adversarial attacks: distort frames until the model is as unsure as their energy allows.

    Each attack climbs ln L = ln u - E/kT - ln Q over the distortion of its frame by Adam, all of them in one compiled
    graph, and keeps the geometry of the highest L. Spaces: cartesian moves every atom, internal turns bonds (with --set
    bonds=true, angles=true also stretches and bends), variables changes collective variables.

    The output has the model's energy (model_energy, eV), judge, driver, ln L, norm, the frame that each came from
    (source) and how it ended (status). These are not labels: an oracle has to give those. Attacks that fail (energy
    not finite, molecule flown apart) and frames of another molecule are counted, named and left out; the others go on.
    Where every attack fails, no output is written, and the exit code is 2.

    \b
    Examples:
      uqbias attack model.uqb start.xyz -o attacks.xyz
      uqbias attack model.uqb start.xyz --count 500 --temperature 3000 --bound 0.2 --trajectory traj.npz
      uqbias attack model.uqb start.xyz --space internal --set bonds=true --set angles=true
      uqbias attack model.uqb start.xyz --variable phi=dihedral:4,6,8,14 --variable psi=dihedral:6,8,14,16
    """
    import numpy as np
    import torch

    from uqbias.attacks.ascent import attack as make_attacks
    from uqbias.attacks.usable_frames import usable_frames
    from uqbias.campaign.progress import Announced, make_progress
    from uqbias.cli.models import set_key
    from uqbias.cli.sampling_options import parse_variables
    from uqbias.model.inference import evaluate_frames
    from uqbias.model.model import UncertaintyModel
    from uqbias.options import parameters_of
    from uqbias.registry import SPACES

    torch.set_num_threads(1)
    variables = parse_variables(variable or ())
    section: dict[str, Any] = {"kind": space or ("variables" if variables else "cartesian")}
    for entry in change or ():
        set_key({"space": section}, entry.removeprefix("space."), within="space")
    chosen = AttackOptions(space=section, keep_every=1 if trajectory else 0, **options)
    for name, value, least in (("count", count, 1), ("seed", seed, 0)):
        if value is not None and value < least:
            raise UqbiasError(f"--{name} {value}", f"give {least} or more")
    if variable and "collective_variables" not in parameters_of(SPACES.get(section["kind"])):
        raise UqbiasError(
            f"--variable {variable[0]}, which the space '{section['kind']}' does not use",
            "leave it out, or give --space variables",
        )
    check_file(output)
    if trajectory is not None:
        check_file(trajectory)
        if trajectory.resolve() == output.resolve():
            raise UqbiasError(f"--trajectory {trajectory} is also the file of -o", "give another name")
    loaded = UncertaintyModel.load(model)
    frames = usable_frames(data, loaded.topology)
    energies, training_skipped = None, []
    if training is not None:
        trained = usable_frames(training, loaded.topology)
        energies, training_skipped = evaluate_frames(loaded, trained.positions).energy, trained.skipped
    source = np.arange(count or len(frames.index)) % len(frames.index)
    with make_progress(quiet) as progress:
        progress.phase("load or compile the attack")
        tell = Announced(progress, "attack", len(source) * chosen.iterations)
        attacks = make_attacks(
            loaded,
            frames.positions[source],
            chosen,
            training_energies=energies,
            variables=variables,
            seed=seed,
            advance=tell,
        )
        seconds = time.perf_counter() - tell.since
    files = _write(output, trajectory, loaded.numbers, frames.index[source], attacks)
    if attacks.failed.all():  # an earlier output must not be taken for that of this call
        reasons = Counter(_reason(status).partition(":")[0] for status in attacks.status)
        raise UqbiasError(
            f"all {len(attacks.status)} attacks failed: "
            + ", ".join(f"{reason} ({number})" for reason, number in reasons.most_common()),
            "lower --noise or --learning-rate, or check the start frames",
        )
    facts = _facts(loaded, frames, source, attacks, chosen)
    facts |= {"model": str(model), "data": str(data), "output": str(output), "seconds": seconds}
    facts["training_skipped"] = skipped_frames(training_skipped)
    if json:
        print_json({**facts, "files": [str(file) for file in files]})
    else:
        _tell(facts, files)


def _write(
    output: Path, trajectory: Path | None, numbers: Sequence[int], source: Any, attacks: AttackResult
) -> list[Path]:
    """Geometries that did not fail as extended XYZ, and the way of all attacks; the files written."""
    import numpy as np

    from uqbias.molecule.frames import Frames, write_frames
    from uqbias.units import EV

    files = []
    good = np.flatnonzero(~attacks.failed)
    if len(good):
        columns = {
            "source": source,
            "status": np.array(attacks.status),
            "model_energy": attacks.energy / EV,
            "judge": attacks.judge,
            "driver": attacks.driver,
            "log_likelihood": attacks.log_likelihood,
            "norm": attacks.norm,
            "iterations": attacks.iterations,
        }
        info = [{name: values[i].item() for name, values in columns.items()} for i in good]
        write_frames(output, Frames(np.asarray(numbers, dtype=np.int64), attacks.positions[good], info=info))
        files.append(output)
    if trajectory is not None:
        facts = {"status": np.array(attacks.status), "source": source, "numbers": np.asarray(numbers)}
        write_arrays(trajectory, {**attacks.trajectory, **facts}, compressed=True)
        files.append(trajectory)
    return files


def _facts(
    model: Any, frames: UsableFrames, chosen: Any, attacks: AttackResult, options: AttackOptions
) -> dict[str, Any]:
    """What is printed, JSON-able."""
    import numpy as np

    from uqbias.attacks.usable_frames import inliers, reference_frames
    from uqbias.model.inference import evaluate_frames, stiff_deviations
    from uqbias.molecule.physical import PhysicalFilter

    start = evaluate_frames(model, frames.positions)
    good = ~attacks.failed
    # Broken start frames must not say what is physical, nor which energy is the lowest.
    reference = reference_frames(model.topology, frames.positions)
    energies = inliers(start.energy[reference], COMMON_ENERGY * len(model.numbers))
    lowest = energies.min() if len(energies) else np.nan
    verdicts = PhysicalFilter(model.topology, frames.positions[reference]).verdicts(
        attacks.positions[good], None, stiff_deviations(model, attacks.positions[good])
    )
    table = {}
    for name, _ in ROWS:
        shift = lowest if name == "energy" else 0.0
        before, after = getattr(start, name)[chosen[good]] - shift, getattr(attacks, name)[good] - shift
        table[name] = {"start": _quantiles(before), "reached": _quantiles(after)}
    return {
        "attacks": len(attacks.status),
        "frames": len(frames.index),
        "skipped": skipped_frames(frames.skipped),
        "space": options.space,
        "temperature_K": options.temperature,
        "runner": attacks.runner,
        "iterations": float(attacks.iterations.mean()),
        "status": dict(Counter(status.partition(":")[0] for status in attacks.status)),
        "failed": [
            {"attack": int(i), "frame": int(frames.index[chosen[i]]), "reason": _reason(attacks.status[i])}
            for i in np.flatnonzero(attacks.failed)
        ],
        "physical": sum(not verdict for verdict in verdicts),
        "unphysical": dict(Counter(verdict.split()[0] for verdict in verdicts if verdict)),
        **table,
    }


def _reason(status: str) -> str:
    """Why an attack failed, from ``failed: reason``."""
    return status.partition(": ")[2]


def _quantiles(values: Any) -> dict[str, float]:
    import numpy as np

    finite = values[np.isfinite(values)]
    if not len(finite):
        return {"median": float("nan"), "q90": float("nan")}
    return {"median": float(np.median(finite)), "q90": float(np.quantile(finite, 0.9))}


def _tell(facts: dict[str, Any], files: Sequence[Path]) -> None:
    kinds = ", ".join(f"{number} {name}" for name, number in sorted(facts["status"].items()))
    typer.echo(
        f"{facts['attacks']} attacks on {facts['frames']} frames in {facts['seconds']:.1f} s, runner "
        f"{facts['runner']}, {facts['iterations']:.0f} iterations on average: {kinds}"
    )
    tell_some(facts["skipped"], "frames skipped", "frame {frame}: {reason}")
    tell_some(facts["training_skipped"], "training frames skipped", "frame {frame}: {reason}")
    tell_some(facts["failed"], "attacks failed", "attack {attack} on frame {frame}: {reason}")
    succeeded = facts["attacks"] - len(facts["failed"])
    typer.echo(f"\n{'':<14}{'start':>10}{'':>10}{'reached':>10}")
    typer.echo(f"{'':<14}{'median':>10}{'90 %':>10}{'median':>10}{'90 %':>10}")
    for name, meaning in ROWS:
        numbers = [facts[name][when][which] for when in ("start", "reached") for which in ("median", "q90")]
        typer.echo(f"{name:<14}" + "".join(f"{number:>10.4g}" for number in numbers) + f"  {meaning}")
    faults = ", ".join(f"{name} {number}" for name, number in facts["unphysical"].items())
    typer.echo(
        f"\n{facts['physical']} of {succeeded} pass a campaign's physical filter"
        + (f"; faults: {faults}; for milder attacks lower --temperature or set --bound" if faults else "")
    )
    typer.echo("files: " + ", ".join(str(file) for file in files))
